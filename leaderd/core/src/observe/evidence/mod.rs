//! What was measured: recent probes of each path, and for each pair of path and target when it last passed and how often
//! it failed in a row. `record` takes down the outcome of a probe.
//!
//! Outcomes are kept rather than sums: a reply that arrives late turns a loss into a delivery, and the next judgement,
//! which reads the samples again, never knew better.

mod path;
mod record;
mod sources;
mod target;

use crate::io::ProbeId;
use crate::time::Instant;
use crate::verdict::ProbeClass;

pub use path::{LOSS_GAIN, Path};
pub use sources::Sources;
pub use target::Target;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Delivered,
    Lost,
    /// ICMP time exceeded.
    Looped,
    /// Says nothing about the path (a local error).
    Void,
}

impl Outcome {
    pub const fn is_loss(self) -> bool {
        matches!(self, Self::Lost | Self::Looped)
    }
}

/// One probe through one path.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub probe: ProbeId,
    pub sent: Instant,
    pub class: ProbeClass,
    /// Index in the location's targets.
    pub target: usize,
    /// Bytes, headers included.
    pub size: u16,
    pub outcome: Outcome,
}

impl Sample {
    /// A new flow to a workload, of any size.
    pub const fn is_fresh(&self) -> bool {
        matches!(self.class, ProbeClass::NewFlow | ProbeClass::FullSize)
    }
}

/// One path to one target: new flows only.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairStats {
    /// When the latest probe that was answered had been sent.
    pub delivered: Option<Instant>,
    pub lost_in_row: u32,
    /// When the latest probe that the target's daemon answered had been sent.
    pub daemon_answered: Option<Instant>,
    /// When the first probe since was sent of which an ICMP error said, in the target's name, that nobody listens there.
    pub port_unreachable: Option<Instant>,
}
