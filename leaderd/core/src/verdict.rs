//! What evidence means for one candidate, and the report that an observer sends about a location.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, LocationName, NodeName, Slot};
pub use crate::probe::class::ProbeClass;
use crate::time::WallTime;
use crate::wire::bounded;
use crate::wire::limits::{MAX_ROWS, MAX_SLOTS};

/// Why a candidate is degraded, or why leadership moved.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing comes back through the candidate, not even from itself.
    TunnelDown,
    /// The candidate answers, but relays nothing of any size or flow.
    Forwarding,
    /// Only new flows die (Kilo issue #489).
    NewFlow,
    /// Small packets pass and large ones die.
    Mtu,
    /// Time exceeded on the way: a routing loop.
    Loop,
    /// Some targets, or services, are unreachable through this candidate only.
    Partial,
    /// Loses more than its standbys do.
    Loss,
    /// The candidate itself says that it is broken (interface gone, forwarding off).
    SelfReported,
    /// The relay forwards, but its daemon is gone.
    DaemonDead,
    /// The location's other nodes cannot reach the candidate.
    Unreachable,
    /// An operator asked for it (`wgctl promote`).
    Promoted,
    /// An operator drained the leader.
    Drained,
    /// The preferred candidate is back, and the policy says to go back.
    FailBack,
    /// The first decision of a location.
    Initial,
    /// The mesh file changed under the leader (its slot is gone).
    Reconfigured,
}

impl Cause {
    /// As in logs, the CLI and JSON: `new-flow`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TunnelDown => "tunnel-down",
            Self::Forwarding => "forwarding",
            Self::NewFlow => "new-flow",
            Self::Mtu => "mtu",
            Self::Loop => "loop",
            Self::Partial => "partial",
            Self::Loss => "loss",
            Self::SelfReported => "self-reported",
            Self::DaemonDead => "daemon-dead",
            Self::Unreachable => "unreachable",
            Self::Promoted => "promoted",
            Self::Drained => "drained",
            Self::FailBack => "fail-back",
            Self::Initial => "initial",
            Self::Reconfigured => "reconfigured",
        }
    }

    /// True for the causes that evidence gives; false for an operator's wish or housekeeping.
    pub const fn is_fault(self) -> bool {
        self.is_seen_by_observers() || matches!(self, Self::SelfReported | Self::Unreachable)
    }

    /// True for what observers measure: their word can confirm it, or contradict it.
    pub const fn is_seen_by_observers(self) -> bool {
        matches!(
            self,
            Self::TunnelDown
                | Self::Forwarding
                | Self::NewFlow
                | Self::Mtu
                | Self::Loop
                | Self::Partial
                | Self::Loss
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

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
        cause: Cause,
        direction: Option<Direction>,
    },
}

impl Verdict {
    pub const fn is_degraded(&self) -> bool {
        matches!(self, Self::Degraded { .. })
    }
    pub const fn cause(&self) -> Option<Cause> {
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
    /// The observer watches this location at full rate. Those that look now and then are counted only where nobody does:
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
    /// Services that answer through it, of so many that were asked.
    pub services: (u8, u8),
    /// Counts behind the verdict, one row per probe class and target group.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ROWS>")]
    pub evidence: Vec<EvidenceRow>,
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
