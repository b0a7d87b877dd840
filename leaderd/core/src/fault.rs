//! What can be wrong with a candidate, and why leadership moves.
//!
//! To add a fault: a variant of [`Fault`], its words, a row at the end of [`MoveReason::ALL`] with a line in
//! `golden.rs`, and the code that detects it.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// What is wrong with a candidate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// Nothing comes back through the candidate, not even from itself.
    TunnelDown,
    /// The candidate answers, but relays nothing of any size or flow.
    NotForwarding,
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
}

/// Why leadership moved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MoveReason {
    Fault(Fault),
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

/// How a fault or a reason reads.
struct Words {
    /// In logs, the CLI, metrics and JSON.
    name: &'static str,
    /// A clause that follows the name of the leader that was left.
    explanation: &'static str,
    /// The summary of the event. `{what}` and `{of what}` stand for what fails, where that is known.
    summary: &'static str,
}

impl Fault {
    const fn words(self) -> Words {
        match self {
            Self::TunnelDown => Words {
                name: "tunnel-down",
                explanation: "nothing came back through it, not even from the node itself",
                summary: "{old} no longer answers through its tunnels ({seen}); {new} forwards and leads now",
            },
            Self::NotForwarding => Words {
                name: "not-forwarding",
                explanation: "it answered, but relayed nothing",
                summary: "{old} answers but relays nothing ({seen}); {new} forwards and leads now",
            },
            Self::NewFlow => Words {
                name: "new-flow",
                explanation: "established flows passed, but new flows died on it",
                summary: "{old} drops new flows ({seen}); {new} forwards and leads now",
            },
            Self::Mtu => Words {
                name: "mtu",
                explanation: "small packets passed and large ones died on it",
                summary: "{old} drops large packets{of what} ({seen}); {new} forwards and leads now",
            },
            Self::Loop => Words {
                name: "loop",
                explanation: "packets through it went round in a loop",
                summary: "packets through {old} go round in a loop ({seen}); {new} forwards and leads now",
            },
            Self::Partial => Words {
                name: "partial",
                explanation: "some nodes or services could not be reached through it, though through the others they could",
                summary: "{old} does not reach {what} ({seen}); {new} does and leads now",
            },
            Self::Loss => Words {
                name: "loss",
                explanation: "it lost more packets than the other candidates",
                summary: "{old} loses more packets than its standbys ({seen}); {new} leads now",
            },
            Self::SelfReported => Words {
                name: "self-reported",
                explanation: "it said itself that it could not relay",
                summary: "{old} says that it cannot relay; {new} leads now",
            },
            Self::DaemonDead => Words {
                name: "daemon-dead",
                explanation: "its daemon was gone, though it still forwarded",
                summary: "the daemon on {old} is silent; {new} leads now, traffic was not interrupted",
            },
            Self::Unreachable => Words {
                name: "unreachable",
                explanation: "the other nodes of its location could not reach it",
                summary: "most nodes of the location do not reach {old}; {new} leads now",
            },
        }
    }

    /// As in logs, the CLI, metrics and JSON: `new-flow`.
    pub const fn as_str(self) -> &'static str {
        self.words().name
    }

    /// True if traffic through the candidate suffers. A relay whose daemon is gone still forwards.
    pub const fn impairs_traffic(self) -> bool {
        !matches!(self, Self::DaemonDead)
    }

    /// True for what observers measure: their reports can confirm it, or contradict it.
    pub const fn is_seen_by_observers(self) -> bool {
        !matches!(self, Self::SelfReported | Self::DaemonDead | Self::Unreachable)
    }
}

impl MoveReason {
    /// All reasons, in their numbering: frames, the store and the Raft log have the place in this table.
    /// The order is a format: new rows go at the end, none is moved or removed (`docs/compatibility.md`).
    pub const ALL: [Self; 15] = [
        Self::Fault(Fault::TunnelDown),
        Self::Fault(Fault::NotForwarding),
        Self::Fault(Fault::NewFlow),
        Self::Fault(Fault::Mtu),
        Self::Fault(Fault::Loop),
        Self::Fault(Fault::Partial),
        Self::Fault(Fault::Loss),
        Self::Fault(Fault::SelfReported),
        Self::Fault(Fault::DaemonDead),
        Self::Fault(Fault::Unreachable),
        Self::Promoted,
        Self::Drained,
        Self::FailBack,
        Self::Initial,
        Self::Reconfigured,
    ];

    const fn words(self) -> Words {
        match self {
            Self::Fault(fault) => fault.words(),
            Self::Promoted => Words {
                name: "promoted",
                explanation: "an operator promoted another candidate",
                summary: "an operator promoted {new}; {old} led before",
            },
            Self::Drained => Words {
                name: "drained",
                explanation: "an operator drained it",
                summary: "{old} was drained; {new} leads now",
            },
            Self::FailBack => Words {
                name: "fail-back",
                explanation: "the preferred candidate was back",
                summary: "{new} forwards and is preferred to {old}: it leads now",
            },
            Self::Initial => Words {
                name: "initial",
                explanation: "this was the first decision",
                summary: "first decision: {new} leads",
            },
            Self::Reconfigured => Words {
                name: "reconfigured",
                explanation: "the mesh file changed",
                summary: "the mesh file no longer has a leader's slot; {new} leads now",
            },
        }
    }

    /// As in logs, the CLI, metrics and JSON: `new-flow`, `promoted`.
    pub const fn as_str(self) -> &'static str {
        self.words().name
    }

    /// What it means, as a clause that follows the name of the leader that was left.
    pub const fn explanation(self) -> &'static str {
        self.words().explanation
    }

    /// Describes the move from `old` to `new` in a sentence. `seen` says which locations find fault, and `what` which part of the
    /// traffic fails.
    pub fn summary(self, old: &str, new: &str, seen: &str, what: Option<&str>) -> String {
        let of_what = what.map(|w| format!(" of {w}")).unwrap_or_default();
        self.words()
            .summary
            .replace("{old}", old)
            .replace("{new}", new)
            .replace("{seen}", seen)
            .replace("{of what}", &of_what)
            .replace("{what}", what.unwrap_or("some of the nodes behind it"))
    }

    pub const fn fault(self) -> Option<Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    /// True if the leader was left because traffic through it suffered.
    pub const fn is_failover(self) -> bool {
        matches!(self, Self::Fault(fault) if fault.impairs_traffic())
    }
}

impl From<Fault> for MoveReason {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// As the name for people, otherwise as the place in [`MoveReason::ALL`].
impl Serialize for MoveReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(self.as_str());
        }
        let place = (0..).zip(Self::ALL).find(|(_, reason)| reason == self);
        let (place, _) = place.ok_or_else(|| serde::ser::Error::custom("has no place"))?;
        serializer.serialize_u32(place)
    }
}

impl<'de> Deserialize<'de> for MoveReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = if deserializer.is_human_readable() {
            let name = String::deserialize(deserializer)?;
            Self::ALL.into_iter().find(|reason| reason.as_str() == name)
        } else {
            Self::ALL.get(u32::deserialize(deserializer)? as usize).copied()
        };
        found.ok_or_else(|| de::Error::custom("unknown cause"))
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        MoveReason::Fault(*self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reason = MoveReason::deserialize(deserializer)?;
        reason.fault().ok_or_else(|| de::Error::custom("a reason to move that is no fault"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_no_fault_is_refused_where_a_fault_is_due() {
        for reason in MoveReason::ALL {
            let bytes = postcard::to_stdvec(&reason).unwrap();
            let text = serde_json::to_string(&reason).unwrap();
            assert_eq!(text, format!("\"{reason}\""));
            assert_eq!(postcard::from_bytes::<MoveReason>(&bytes), Ok(reason));
            assert_eq!(serde_json::from_str::<MoveReason>(&text).unwrap(), reason);
            assert_eq!(postcard::from_bytes::<Fault>(&bytes).ok(), reason.fault());
            assert_eq!(serde_json::from_str::<Fault>(&text).ok(), reason.fault());
        }
        assert!(postcard::from_bytes::<MoveReason>(&[MoveReason::ALL.len() as u8]).is_err());
        assert!(serde_json::from_str::<MoveReason>("\"forwarding\"").is_err());
    }

    #[test]
    fn a_summary_names_what_fails_where_that_is_known() {
        let summary = |fault, what| {
            MoveReason::Fault(fault).summary("a", "b", "1 of 2 locations: c, as c-0 sees it", what)
        };
        assert_eq!(
            summary(Fault::Mtu, None),
            "a drops large packets (1 of 2 locations: c, as c-0 sees it); b forwards and leads now"
        );
        assert_eq!(
            summary(Fault::Mtu, Some("service c")),
            "a drops large packets of service c (1 of 2 locations: c, as c-0 sees it); b forwards and leads now"
        );
        assert_eq!(
            summary(Fault::Partial, None),
            "a does not reach some of the nodes behind it (1 of 2 locations: c, as c-0 sees it); b does and leads now"
        );
    }
}
