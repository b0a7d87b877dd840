//! What a daemon knows, as `wgctl status --json` prints it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::fault::MoveReason;
use crate::ids::{Epoch, Generation, LocationName, NodeIndex, NodeName, Slot};
use crate::relay_pair::TunnelState;
use crate::time::WallTime;
use crate::verdict::Verdict;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub mesh: String,
    pub node: NodeName,
    pub location: LocationName,
    pub generation: Generation,
    /// Hex of the mesh file's SHA-256.
    pub mesh_hash: String,
    /// Nodes heard of that use another mesh file: name → generation.
    pub other_generations: BTreeMap<NodeName, Generation>,
    /// Who does WireGuard: `kernel`, `wireguard-go` or `leaderd`.
    pub backend: String,
    /// Workload addresses that this node holds and is probed at; none: nothing proves that its workloads are reached.
    #[serde(default)]
    pub probe_addresses: Vec<IpAddr>,
    pub locations: Vec<LocationStatus>,
    /// Who carries the traffic of this node's location with each other one.
    #[serde(default)]
    pub relay_pairs: Vec<RelayPairStatus>,
}

/// The relay pair of this node's location and another one: by whom traffic goes now, both ways.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RelayPairStatus {
    /// The other location.
    pub location: LocationName,
    /// The relays in this node's location; several only with several leaders.
    pub near: Vec<NodeName>,
    /// The relays in the other one.
    pub far: Vec<NodeName>,
    /// They are not the leaders of both.
    pub detour: bool,
    /// The detour has lasted for more than 15 minutes.
    pub long: bool,
    /// No tunnel between the two locations is known to be good.
    pub cut_off: bool,
    pub since: WallTime,
    /// Why it is a detour.
    pub why: Option<String>,
    /// All tunnels between candidates of the two; none on a plain member, which knows of none.
    pub tunnels: Vec<TunnelStatus>,
}

/// The tunnel between two candidates, as this node knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub near: NodeName,
    pub far: NodeName,
    pub state: TunnelState,
    /// By whose word.
    pub seen_by: Option<NodeName>,
    /// Since when, of this node's own tunnels.
    pub since: Option<WallTime>,
}

/// A change of a relay pair, as one node saw it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RelayChange {
    pub at: WallTime,
    /// The other location.
    pub location: LocationName,
    pub kind: RelayChangeKind,
    pub near: Vec<NodeName>,
    pub far: Vec<NodeName>,
    pub why: Option<String>,
}

/// All changes that one node remembers, oldest first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RelayChanges {
    /// Who saw them.
    pub node: NodeName,
    /// Its location: one of the two of every change.
    pub location: LocationName,
    pub changes: Vec<RelayChange>,
}

/// Which relays carry between this node's location and another one, and why: what `wgctl explain A B` shows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RelayExplanation {
    /// Who says so: a candidate of `location`.
    pub node: NodeName,
    pub location: LocationName,
    pub pair: RelayPairStatus,
    /// Who leads here and there: they carry as long as nothing is known against their tunnel.
    pub near_leaders: Vec<NodeName>,
    pub far_leaders: Vec<NodeName>,
    /// Who would carry if all tunnels in use were bad. `None`: nobody else is known to do better.
    pub next: Option<NextRelays>,
    /// Candidates of either location that ask not to be chosen, as they are drained or cannot relay.
    pub avoided: Vec<NodeName>,
    /// Candidates of either location that answer, and of which somebody at the other end says that they relay less than they should.
    #[serde(default)]
    pub accused: Vec<NodeName>,
    /// As in [`LocationStatus::carried`], of the other location.
    pub carried: Option<bool>,
    /// If two nodes were named: through which nodes packets go from the first to the second. Empty if that depends on the flow.
    pub way: Vec<NodeName>,
}

/// A relay here and one there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NextRelays {
    pub near: NodeName,
    pub far: NodeName,
    /// Of their tunnel.
    pub state: TunnelState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayChangeKind {
    /// Other relays than the two leaders carry, or other ones than before.
    Detour,
    /// The two leaders carry again.
    DetourEnded,
    /// A detour is older than 15 minutes.
    LongDetour,
    /// No tunnel between the two locations is known to be good.
    CutOff,
    /// One is again.
    Reached,
}

impl RelayChangeKind {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detour => "detour",
            Self::DetourEnded => "detour-ended",
            Self::LongDetour => "long-detour",
            Self::CutOff => "cut-off",
            Self::Reached => "reached",
        }
    }

    /// As in the log.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Detour => {
                "detour: other relays than the two leaders carry the traffic with a location"
            }
            Self::DetourEnded => "detour ended: the two leaders carry again",
            Self::LongDetour => {
                "a detour has lasted for 15 minutes: mend the tunnel of the two leaders"
            }
            Self::CutOff => "cut off: no tunnel to a location is known to be good",
            Self::Reached => "a tunnel to the location is good again",
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LocationStatus {
    pub name: LocationName,
    /// The lowest index of its nodes, by which its nexthop groups and tables are numbered.
    #[serde(default)]
    pub lowest_index: Option<NodeIndex>,
    /// In order; empty before the first decision.
    pub leaders: Vec<NodeName>,
    pub epoch: Epoch,
    pub since: Option<WallTime>,
    pub cause: Option<MoveReason>,
    /// `None`: not frozen. `Some(None)`: until unfrozen.
    pub frozen: Option<Option<WallTime>>,
    pub raft_leader: Option<NodeName>,
    /// `None` where this node cannot know.
    pub quorum: Option<bool>,
    /// True while this node's disk confirms none of the writes of this location's Raft group.
    #[serde(default)]
    pub disk_stuck: bool,
    /// True while this node has left the decision for its own ranking, for want of a quorum.
    pub fallback: bool,
    /// Of another location: this node's own evidence (if it is a candidate). Of its own: what the observers reported.
    pub candidates: Vec<CandidateStatus>,
    /// Who would lead if the leader failed now.
    pub next: Option<NodeName>,
    /// With steering `kilo` or `observe`: whether this node's traffic to the location takes leaderd's routes now.
    pub carried: Option<bool>,
    /// Where the sources of this node's probes do not survive on the way to another location.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden_sources: Vec<HiddenSource>,
    /// Nodes of another location that this node reaches through none of its candidates, though it reaches others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<UnreachedNode>,
    /// Why nothing would move although the leader is degraded, or what else an operator should know.
    pub notes: Vec<String>,
}

/// A node behind candidates that forward, which none of them reaches: the fault is the node's own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnreachedNode {
    pub node: NodeName,
    /// Its kernel answers that nothing listens at the probe port.
    pub daemon_absent: bool,
}

impl fmt::Display for UnreachedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, daemon_absent } = self;
        let look = match daemon_absent {
            true => "no daemon listens there",
            false => "its power, probe address, routes, firewall or MTU",
        };
        write!(f, "{node} is reached through no candidate: look at {node} ({look})")
    }
}

/// A source NAT on the way: a probe that this node sent arrived from another address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HiddenSource {
    /// The candidate whose tunnel it took; none: it went as the workload does.
    pub through: Option<NodeName>,
    /// Where it arrived: the candidate itself, or a node behind it.
    pub target: NodeName,
    pub sent_from: IpAddr,
    pub arrived_from: IpAddr,
}

impl fmt::Display for HiddenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { through, target, sent_from, arrived_from } = self;
        let (who, place) = match through {
            Some(relay) if relay != target => (format!("{relay} hides sources"), "on the relay"),
            Some(relay) => (format!("sources are rewritten on the way to {relay}"), "before it"),
            None => (
                "sources of workloads are rewritten on the way".to_owned(),
                "of a CNI, or a firewall's",
            ),
        };
        write!(
            f,
            "{who}: a probe from {sent_from} arrived at {target} from {arrived_from} (source NAT {place}); keep \
             what comes from or goes to other locations out of its masquerade rules"
        )
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CandidateStatus {
    pub name: NodeName,
    pub slot: Slot,
    pub leading: bool,
    pub verdict: Verdict,
    /// How many fresh observers share that verdict, of how many.
    pub observers: (u16, u16),
    /// Milliseconds, smoothed.
    pub rtt_ms: Option<f64>,
    /// 0 to 1; `None` if it is not measured.
    pub loss: Option<f32>,
    pub path_mtu: Option<u16>,
    /// How many services answer through it, and how many were tried; the smallest count of an observer.
    pub services: Option<(u8, u8)>,
    pub drained: bool,
    /// What keeps it from being promoted; empty: eligible.
    #[serde(deserialize_with = "crate::wire::bounded::texts")]
    pub blocked_by: Vec<String>,
}
