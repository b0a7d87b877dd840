//! The systems held against each other, each with its configuration in one file.

pub mod frr;
pub mod keepalived;
pub mod kilo;

use std::time::Duration;

use wgctl_lab::System;
use wgctl_lab::system::Leaderd;

/// One of the systems, with the settings that are compared.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Contender {
    Leaderd,
    Bfd50,
    Bfd300,
    Vrrp100,
    Vrrp1000,
    Kilo,
}

impl Contender {
    pub const ALL: [Self; 6] =
        [Self::Leaderd, Self::Bfd50, Self::Bfd300, Self::Vrrp100, Self::Vrrp1000, Self::Kilo];

    /// On the command line.
    pub fn key(self) -> &'static str {
        match self {
            Self::Leaderd => "leaderd",
            Self::Bfd50 => "bfd-50",
            Self::Bfd300 => "bfd-300",
            Self::Vrrp100 => "vrrp-0.1",
            Self::Vrrp1000 => "vrrp-1",
            Self::Kilo => "kilo",
        }
    }

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaderd => "leaderd",
            Self::Bfd50 => "FRR, BFD 3 × 50 ms",
            Self::Bfd300 => "FRR, BFD 3 × 300 ms",
            Self::Vrrp100 => "keepalived, 0.1 s",
            Self::Vrrp1000 => "keepalived, 1 s",
            Self::Kilo => "Kilo's rule",
        }
    }

    /// `run` counts from 0: Kilo's timers stand elsewhere in each.
    pub fn system(self, run: u32) -> Box<dyn System> {
        let ms = Duration::from_millis;
        match self {
            Self::Leaderd => Box::new(Leaderd),
            Self::Bfd50 => Box::new(frr::Frr { interval: ms(50) }),
            Self::Bfd300 => Box::new(frr::Frr { interval: ms(300) }),
            Self::Vrrp100 => Box::new(keepalived::Keepalived::new(ms(100))),
            Self::Vrrp1000 => Box::new(keepalived::Keepalived::new(ms(1000))),
            Self::Kilo => Box::new(kilo::Kilo::new(run)),
        }
    }
}
