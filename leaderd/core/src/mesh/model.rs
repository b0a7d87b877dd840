//! A valid mesh. Whoever holds a [`Mesh`] may rely on every rule that the mesh file is checked against.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use wgctl_plan::{InterfaceName, WgPublicKey};

use super::index::Index;
use crate::ids::{Generation, LocationName, NodeIndex, NodeName, Slot};

/// A whole mesh, checked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Mesh {
    pub name: String,
    pub generation: Generation,
    /// SHA-256 of the file's text: nodes gossip it, so a mesh half on one file is seen.
    pub hash: [u8; 32],
    pub inner: InnerRange,
    /// UDP port of `wgl0`; `wgl{s}` listens on `base_port + s`.
    pub base_port: u16,
    /// UDP port of the QUIC control channel.
    pub control_port: u16,
    /// UDP ports of the STAMP reflectors, at least one.
    pub probe_ports: Vec<u16>,
    /// Bytes: the largest IP packet a workload may send through the mesh, the MTU of the `wgl` interfaces.
    pub mtu: u16,
    /// Seconds between WireGuard keep-alives; 0 is off.
    pub keepalive: u16,
    /// What holds where a location says nothing else; ask [`Mesh::policy_of`] about a location.
    pub policy: Policy,
    pub locations: BTreeMap<LocationName, Location>,
    pub nodes: BTreeMap<NodeName, Node>,
    #[serde(skip)]
    pub index: Index,
}

/// Ranges of the inner addresses (see [`Mesh::inner4`]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InnerRange {
    /// Exactly a /16.
    pub v4: Ipv4Net,
    /// Exactly a /112 of a ULA prefix; present when a workload prefix is IPv6.
    pub v6: Option<Ipv6Net>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Location {
    pub name: LocationName,
    pub overlay: Overlay,
    /// Candidates of other locations that vote here, and never lead here.
    pub witnesses: Vec<NodeName>,
    /// Real services that are probed through every candidate.
    pub services: Vec<Service>,
    /// STAMP or TWAMP Light reflectors that are not ours, at workload addresses: probed without authentication.
    pub reflectors: Vec<SocketAddr>,
    pub steering: Steering,
    /// The mesh's policy with what this location says otherwise, if it does: see [`Mesh::policy_of`].
    pub policy: Option<Policy>,
}

/// How a decision about a location reaches the data path.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// Our routes carry the workload, always.
    #[default]
    Native,
    /// They do beside Kilo, which is told of the decision, and whose way is taken where ours do not get through.
    Kilo,
    /// Nobody's way is changed: it is measured and decided, and told what would have been done.
    Observe,
}

/// A real service behind the candidates: it answers a TCP connect, or an HTTP request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Within a workload prefix of the location.
    pub address: SocketAddr,
    /// What is asked once it is connected; without, the connect is all.
    pub http: Option<HttpRequest>,
}

/// An HTTP/1.1 request: `GET` without a body, `POST` with one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpRequest {
    /// As on the request line: `/healthz`.
    pub path: String,
    /// Bytes that are sent.
    pub body: u32,
}

/// What carries traffic between the nodes of a location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Overlay {
    /// Next hops are the nodes' addresses on the LAN device (named per node, else found by its address).
    Direct,
    /// A VXLAN device that leaderd owns.
    Vxlan { device: InterfaceName, vni: u32, port: u16, mtu: u16 },
    /// A CNI carries it: no local routes are programmed.
    External,
    /// Flannel's VXLAN backend carries it: no local routes are programmed, and another node is reached through the network
    /// address of its first prefix on this device, as flannel does it.
    Flannel { device: InterfaceName },
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub index: NodeIndex,
    pub location: LocationName,
    /// `Some` for candidates.
    pub slot: Option<Slot>,
    /// Candidates with a lower number are preferred; equal ones by slot.
    pub priority: u16,
    /// Host that other locations reach this candidate's WireGuard ports on. Always present for candidates.
    pub endpoint: Option<Host>,
    /// Address within the location (LAN).
    pub address: IpAddr,
    /// LAN device, for overlay `direct`; found by `address` when absent.
    pub device: Option<InterfaceName>,
    /// Workload prefixes behind this node, without host bits; may be empty.
    pub prefixes: Vec<IpNet>,
    /// Workload addresses of this node that its daemon answers probes on (at most one per family).
    /// By default the first host address of its first prefix of each family.
    pub probe_addresses: Vec<IpAddr>,
    /// Public half of the key for WireGuard and for probes (X25519).
    pub wireguard_key: WgPublicKey,
    /// Public half of the key for the control channel (Ed25519).
    pub control_key: ControlPublicKey,
}

/// An address or a DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Host {
    Ip(IpAddr),
    Name(String),
}

/// An Ed25519 public key: the identity of a node on the control channel (RFC 7250).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ControlPublicKey(pub [u8; 32]);

impl fmt::Debug for ControlPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..4] {
            write!(f, "{b:02x}")?;
        }
        f.write_str("…")
    }
}

/// How eagerly to probe, to judge and to move. All of it has defaults.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Time between two rounds over all slots of a location that is watched at full rate.
    pub probe_interval: Duration,
    /// The same for locations watched slowly.
    pub slow_probe_interval: Duration,
    /// Time between two probes of each service through every slot.
    pub service_interval: Duration,
    /// How many other locations watch each location at full rate.
    pub watchers: u8,
    /// Probes a second that one node may send, bursts included.
    pub probe_budget: u32,
    /// Never wait less than this for a reply.
    pub min_probe_timeout: Duration,
    /// Accepted false failovers per location and year.
    pub false_failovers_per_year: f64,
    /// Steady loss through a relay above which it counts as degraded when its standbys lose less (0 to 1).
    pub loss_threshold: f64,
    /// Least time between two automatic failovers of a location; doubles with each recent one.
    pub hold_down: Duration,
    /// Upper bound of the grown hold-down; also the time in which it decays by half.
    pub hold_down_max: Duration,
    /// Go back to the preferred candidate by itself once it forwards again.
    pub fail_back: bool,
    /// How long a leader's daemon may be silent while its relay forwards before leadership moves away calmly.
    pub daemon_dead_after: Duration,
    /// How long without a quorum before nodes fall back to the local ranking.
    pub quorum_lost_after: Duration,
    /// How many leaders a location has (more than one: ECMP).
    pub leaders: u8,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(100),
            slow_probe_interval: Duration::from_secs(2),
            service_interval: Duration::from_secs(1),
            watchers: 3,
            probe_budget: 1000,
            min_probe_timeout: Duration::from_millis(20),
            false_failovers_per_year: 0.01,
            loss_threshold: 0.2,
            hold_down: Duration::from_secs(1),
            hold_down_max: Duration::from_secs(300),
            fail_back: false,
            daemon_dead_after: Duration::from_secs(5),
            quorum_lost_after: Duration::from_secs(10),
            leaders: 1,
        }
    }
}

impl Mesh {
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// What holds for a location: its own policy, or the mesh's.
    pub fn policy_of(&self, location: &LocationName) -> &Policy {
        self.locations.get(location).and_then(|l| l.policy.as_ref()).unwrap_or(&self.policy)
    }

    /// All nodes of a location, by name.
    pub fn nodes_of<'a>(
        &'a self,
        location: &LocationName,
    ) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.index.location(self, location).iter().filter_map(|n| self.nodes.get(n))
    }

    /// The candidates of a location, by slot.
    pub fn candidates_of(&self, location: &LocationName) -> BTreeMap<Slot, &Node> {
        self.nodes_of(location).filter_map(|n| Some((n.slot?, n))).collect()
    }

    /// The candidate in a slot of a location.
    pub fn candidate(&self, location: &LocationName, slot: Slot) -> Option<&Node> {
        self.nodes_of(location).find(|n| n.slot == Some(slot))
    }

    /// True if Kilo carries the workload between these two as well: it steers both.
    pub fn kilo_between(&self, a: &LocationName, b: &LocationName) -> bool {
        let kilo = |l| self.locations.get(l).is_some_and(|l| l.steering == Steering::Kilo);
        a != b && kilo(a) && kilo(b)
    }

    /// True if no traffic between these two is to be touched: either is only observed.
    pub fn observed_between(&self, a: &LocationName, b: &LocationName) -> bool {
        let observed = |l| self.locations.get(l).is_some_and(|l| l.steering == Steering::Observe);
        a != b && (observed(a) || observed(b))
    }

    /// The other locations to which Kilo carries from this one.
    pub fn kilo_with<'a>(
        &'a self,
        location: &'a LocationName,
    ) -> impl Iterator<Item = &'a LocationName> {
        self.locations.keys().filter(|l| self.kilo_between(location, l))
    }

    /// The node of a location with the workload prefix that holds an address.
    pub fn node_behind(&self, location: &LocationName, ip: IpAddr) -> Option<&Node> {
        self.nodes_of(location).find(|n| n.prefixes.iter().any(|p| p.contains(&ip)))
    }

    /// Every workload prefix of a location, in order, without doubles.
    pub fn prefixes_of(&self, location: &LocationName) -> Vec<IpNet> {
        let mut all: Vec<IpNet> =
            self.nodes_of(location).flat_map(|n| n.prefixes.iter().copied()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Candidates of a location in the order in which they are preferred: priority, then slot.
    pub fn ranking(&self, location: &LocationName) -> Vec<Slot> {
        let mut all: Vec<(u16, Slot)> =
            self.nodes_of(location).filter_map(|n| Some((n.priority, n.slot?))).collect();
        all.sort();
        all.into_iter().map(|(_, s)| s).collect()
    }

    /// The voters of a location's Raft group: its candidates, its members by index up to 3 or 5 in all, and its
    /// witnesses.
    pub fn voters_of(&self, location: &LocationName) -> Vec<NodeName> {
        let mut voters: Vec<NodeName> =
            self.candidates_of(location).values().map(|n| n.name.clone()).collect();
        let witnesses =
            self.locations.get(location).map(|l| l.witnesses.clone()).unwrap_or_default();
        let have = voters.len() + witnesses.len();
        let want = if have <= 3 { 3 } else { 5 };
        let mut members: Vec<&Node> =
            self.nodes_of(location).filter(|n| n.slot.is_none()).collect();
        members.sort_by_key(|n| n.index);
        voters.extend(members.into_iter().take(want.max(have) - have).map(|n| n.name.clone()));
        voters.extend(witnesses);
        voters
    }

    /// `inner(n, s)`: the inner IPv4 address of a node on `wgl{s}`: the range's base + (s << 12) + index.
    pub fn inner4(&self, node: &Node, slot: Slot) -> Ipv4Addr {
        let base = u32::from(self.inner.v4.network());
        Ipv4Addr::from(base + (u32::from(slot.0) << 12) + u32::from(node.index.0))
    }

    /// `inner(n, s)` in IPv6, if the mesh has an IPv6 range.
    pub fn inner6(&self, node: &Node, slot: Slot) -> Option<Ipv6Addr> {
        let base = u128::from(self.inner.v6?.network());
        Some(Ipv6Addr::from(base + (u128::from(slot.0) << 12) + u128::from(node.index.0)))
    }

    /// The range of all inner addresses of one slot: a /20, routed to the candidate in that slot.
    pub fn slot_range4(&self, slot: Slot) -> Ipv4Net {
        let base = u32::from(self.inner.v4.network()) + (u32::from(slot.0) << 12);
        Ipv4Net::new(Ipv4Addr::from(base), 20).expect("20 is a prefix length")
    }

    /// The same in IPv6: a /116.
    pub fn slot_range6(&self, slot: Slot) -> Option<Ipv6Net> {
        let base = u128::from(self.inner.v6?.network()) + (u128::from(slot.0) << 12);
        Some(Ipv6Net::new(Ipv6Addr::from(base), 116).expect("116 is a prefix length"))
    }

    /// The node that an inner address or a probe address belongs to, and for inner addresses the slot of its interface.
    pub fn node_by_address(&self, ip: IpAddr) -> Option<(&Node, Option<Slot>)> {
        let low = match ip {
            IpAddr::V4(ip) if self.inner.v4.contains(&ip) => Some((u32::from(ip) & 0xffff) as u16),
            IpAddr::V6(ip) if self.inner.v6.is_some_and(|r| r.contains(&ip)) => {
                Some((u128::from(ip) & 0xffff) as u16)
            }
            _ => None,
        };
        match low {
            Some(low) => {
                let index = NodeIndex(low & 0x0fff);
                let node = self.index.node(self, index)?;
                Some((node, Some(Slot((low >> 12) as u8))))
            }
            None => self.index.probed(self, ip).map(|n| (n, None)),
        }
    }
}

/// The interface whose far ends are the candidates in this slot: `wgl0`, `wgl1`, …
pub fn plane(slot: Slot) -> InterfaceName {
    format!("wgl{}", slot.0).parse().expect("wgl and a small number is an interface name")
}
