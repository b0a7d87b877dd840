//! Classes of probes, in one table: [`ProbeClass::spec`] has a row for each.
//!
//! A new class is a variant at the end, an entry in [`ProbeClass::ALL`] and a row. Rounds send it by its `turn`, and the
//! compiler shows every place that has to say what an outcome of a new [`Proves`] counts for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a probe exercises.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeClass {
    /// The candidate's own inner address: the tunnel.
    Relay,
    /// A workload address behind the candidate, with a fresh source port each time.
    NewFlow,
    /// The same on one long-lived 5-tuple.
    PinnedFlow,
    /// A fresh flow with DF set, as large as the workload MTU.
    FullSize,
    /// Workload address to workload address by the ordinary routes.
    AsWorkload,
    /// TCP connect, or an HTTP request, to a real service.
    Service,
}

/// A row of the table: everything in which the classes differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeClassSpec {
    /// As in logs, metrics, the CLI and JSON.
    pub name: &'static str,
    pub target: ProbeTarget,
    pub route: ProbeRoute,
    pub flow: ProbeFlow,
    pub size: ProbeSize,
    /// Set DF: send whole or not at all.
    pub dont_fragment: bool,
    pub turn: ProbeTurn,
    pub proves: Proves,
}

/// What answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeTarget {
    /// The candidate itself, at its inner address.
    Candidate,
    /// A node or workload behind the candidate.
    Workload,
    /// A service of the mesh file.
    Service,
}

/// Which way a probe goes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeRoute {
    /// Through the tunnel to one candidate, for each candidate.
    Plane,
    /// As the traffic of this node's workloads goes.
    Ordinary,
}

/// Which source port a probe has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeFlow {
    /// One of its own.
    Fresh,
    /// That of earlier probes of the same path and target.
    LongLived,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeSize {
    Smallest,
    /// Drawn anew for each round.
    Random,
    /// The mesh's MTU.
    Full,
}

/// In which rounds of a cycle a probe is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeTurn {
    /// In every round in which no other class takes its place.
    EveryRound,
    /// In this round of a cycle, in place of the class of every round.
    InPlace(u64),
    /// In this round of a cycle, beside the others.
    Beside(u64),
    /// Not in rounds: it has a pace of its own.
    OwnPace,
}

/// What is proved by a probe that passes, and so which test counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proves {
    /// The candidate lives: no loss test counts it, but it tells a dead tunnel from a candidate that relays nothing.
    Tunnel,
    /// The candidate relays new flows: the loss tests, one for full packets and one for the others.
    NewFlows { full_size: bool },
    /// The candidate relays a flow that is older than the fault: it tells a fault of new flows from one of all.
    OldFlow,
    /// The decision in force works: it verifies, and judges no candidate.
    Decision,
    /// The candidate relays whole exchanges: the test of services.
    Service,
}

impl ProbeClass {
    pub const ALL: [ProbeClass; 6] = [
        Self::Relay,
        Self::NewFlow,
        Self::PinnedFlow,
        Self::FullSize,
        Self::AsWorkload,
        Self::Service,
    ];

    pub const fn spec(self) -> ProbeClassSpec {
        match self {
            Self::Relay => ProbeClassSpec {
                name: "relay",
                target: ProbeTarget::Candidate,
                route: ProbeRoute::Plane,
                flow: ProbeFlow::Fresh,
                size: ProbeSize::Smallest,
                dont_fragment: false,
                turn: ProbeTurn::Beside(2),
                proves: Proves::Tunnel,
            },
            Self::NewFlow => ProbeClassSpec {
                name: "new-flow",
                target: ProbeTarget::Workload,
                route: ProbeRoute::Plane,
                flow: ProbeFlow::Fresh,
                size: ProbeSize::Random,
                dont_fragment: false,
                turn: ProbeTurn::EveryRound,
                proves: Proves::NewFlows { full_size: false },
            },
            Self::PinnedFlow => ProbeClassSpec {
                name: "pinned-flow",
                target: ProbeTarget::Workload,
                route: ProbeRoute::Plane,
                flow: ProbeFlow::LongLived,
                size: ProbeSize::Smallest,
                dont_fragment: false,
                turn: ProbeTurn::Beside(1),
                proves: Proves::OldFlow,
            },
            Self::FullSize => ProbeClassSpec {
                name: "full-size",
                target: ProbeTarget::Workload,
                route: ProbeRoute::Plane,
                flow: ProbeFlow::Fresh,
                size: ProbeSize::Full,
                dont_fragment: true,
                turn: ProbeTurn::InPlace(0),
                proves: Proves::NewFlows { full_size: true },
            },
            Self::AsWorkload => ProbeClassSpec {
                name: "as-workload",
                target: ProbeTarget::Workload,
                route: ProbeRoute::Ordinary,
                flow: ProbeFlow::Fresh,
                size: ProbeSize::Smallest,
                dont_fragment: false,
                turn: ProbeTurn::Beside(3),
                proves: Proves::Decision,
            },
            Self::Service => ProbeClassSpec {
                name: "service",
                target: ProbeTarget::Service,
                route: ProbeRoute::Plane,
                flow: ProbeFlow::Fresh,
                size: ProbeSize::Smallest,
                dont_fragment: false,
                turn: ProbeTurn::OwnPace,
                proves: Proves::Service,
            },
        }
    }

    pub const fn as_str(self) -> &'static str {
        self.spec().name
    }

    /// A new flow of packets through the candidate, of any size: what the loss tests count.
    pub const fn is_new_flow(self) -> bool {
        match self.spec().proves {
            Proves::NewFlows { .. } => true,
            Proves::Tunnel | Proves::OldFlow | Proves::Decision | Proves::Service => false,
        }
    }

    /// A sign of life of the candidate itself.
    pub const fn is_of_tunnel(self) -> bool {
        match self.spec().proves {
            Proves::Tunnel => true,
            Proves::NewFlows { .. } | Proves::OldFlow | Proves::Decision | Proves::Service => false,
        }
    }

    pub const fn is_full_size(self) -> bool {
        match self.spec().size {
            ProbeSize::Full => true,
            ProbeSize::Smallest | ProbeSize::Random => false,
        }
    }

    pub const fn is_service(self) -> bool {
        match self.spec().target {
            ProbeTarget::Service => true,
            ProbeTarget::Candidate | ProbeTarget::Workload => false,
        }
    }
}

impl fmt::Display for ProbeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_name_of_its_own_and_is_in_the_list_once() {
        let names: std::collections::BTreeSet<_> =
            ProbeClass::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(names.len(), ProbeClass::ALL.len());
    }

    #[test]
    fn one_class_is_sent_in_every_round_and_no_two_others_share_one() {
        let turns: Vec<_> = ProbeClass::ALL.iter().map(|c| c.spec().turn).collect();
        assert_eq!(turns.iter().filter(|t| **t == ProbeTurn::EveryRound).count(), 1);
        let mut rounds: Vec<u64> = turns
            .iter()
            .filter_map(|turn| match turn {
                ProbeTurn::InPlace(n) | ProbeTurn::Beside(n) => Some(*n),
                ProbeTurn::EveryRound | ProbeTurn::OwnPace => None,
            })
            .collect();
        let all = rounds.len();
        rounds.sort_unstable();
        rounds.dedup();
        assert_eq!(rounds.len(), all);
    }
}
