//! What evidence means for one candidate, and the report that an observer sends about a location.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
pub use crate::probe::class::ProbeClass;
use crate::time::WallTime;
use crate::wire::bounded;
use crate::wire::limits::{MAX_ROWS, MAX_SLOTS};

/// Which way packets are lost, seen from the observer.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Observer to target: the reflector's sequence numbers show gaps.
    Forward,
    /// Target to observer: the reflector answered, the answer was lost.
    Return,
}

/// What the evidence means for one candidate.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Too little evidence, or none that is fresh.
    Unknown,
    /// Relays, in both directions.
    Forwarding,
    /// A timeout was seen and the burst that settles it is under way.
    Suspected,
    Degraded {
        cause: Fault,
        direction: Option<Direction>,
    },
}

impl Verdict {
    pub const fn is_degraded(&self) -> bool {
        matches!(self, Self::Degraded { .. })
    }

    pub const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Degraded { cause, .. } => Some(*cause),
            _ => None,
        }
    }
}

/// One observer's view of one location, all slots. Sent when a verdict changes and every second.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    pub observer: NodeName,
    pub location: LocationName,
    /// Counts up with every report of this observer about this location; an older one is ignored.
    pub seq: u64,
    /// Decision epoch that the observer has programmed.
    pub epoch: Epoch,
    /// The observer is likely the sick one (most locations fail for it in every slot) and wants not to be counted.
    pub abstains: bool,
    /// The observer watches this location at full rate. Slow watchers count only if none watches at full rate:
    /// they would be the majority in a mesh of many locations, and seconds late.
    pub full_rate: bool,
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_SLOTS>")]
    pub slots: Vec<SlotReport>,
}

/// One observer's view of one candidate.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SlotReport {
    pub slot: Slot,
    pub verdict: Verdict,
    /// When the first lost probe of the present trouble was sent, and when it was first suspected; observer's clock.
    pub first_loss: Option<WallTime>,
    pub suspected: Option<WallTime>,
    /// When this verdict was reached.
    pub since: WallTime,
    /// Smoothed round trip (RFC 6298).
    pub rtt: Option<Duration>,
    /// Share of probes lost in the last 10 s or so, 0 to 1.
    pub loss: f32,
    /// Bytes, headers included: the largest packet known to pass.
    pub path_mtu: Option<u16>,
    /// How many services answer through it, and how many were tried.
    pub services: (u8, u8),
    /// Counts behind the verdict, one row per probe class and target group.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ROWS>")]
    pub evidence: Vec<EvidenceRow>,
}

impl SlotReport {
    /// A report with a verdict and no measurements.
    pub fn new(slot: Slot, verdict: Verdict, since: WallTime) -> Self {
        Self {
            slot,
            verdict,
            first_loss: None,
            suspected: None,
            since,
            rtt: None,
            loss: 0.0,
            path_mtu: None,
            services: (0, 0),
            evidence: Vec::new(),
        }
    }
}

/// Counted probe outcomes of one class through one candidate, over the window that led to the verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EvidenceRow {
    pub class: ProbeClass,
    /// `None`: over all targets. Given where one target behaves unlike the others.
    pub target: Option<NodeName>,
    /// The address of that target, and for a service its port.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub sent: u32,
    pub lost: u32,
    /// ICMP time-exceeded answers.
    pub time_exceeded: u32,
}
