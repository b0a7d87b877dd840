//! The mesh, and what follows from it. A [`Mesh`] keeps every rule that the mesh file is checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use wgctl_plan::InterfaceName;

use super::index::{CachedIndex, Index};
use super::inner::InnerRange;
use super::location::{Location, Steering};
use super::node::Node;
use super::policy::Policy;
use crate::ids::{Generation, LocationName, NodeName, Slot};

/// A checked mesh. It dereferences to its [`MeshSpec`], to be read only: a different mesh comes from a file ([`super::parse`]) or from a
/// method here, so every mesh keeps every rule.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mesh {
    pub(super) spec: MeshSpec,
    #[serde(skip)]
    pub(super) index: CachedIndex,
}

impl Deref for Mesh {
    type Target = MeshSpec;

    fn deref(&self) -> &MeshSpec {
        &self.spec
    }
}

/// The contents of a mesh file, with defaults for what it leaves out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MeshSpec {
    pub name: String,
    pub generation: Generation,
    /// SHA-256 of the file's text: nodes tell each other, so that a half rolled-out file is seen.
    pub hash: [u8; 32],
    pub inner: InnerRange,
    /// UDP port of `wgl0`; `wgl{s}` listens on `base_port + s`.
    pub base_port: u16,
    /// UDP port of the QUIC control channel.
    pub control_port: u16,
    /// UDP ports of the STAMP reflectors; at least one.
    pub probe_ports: Vec<u16>,
    /// The MTU of the `wgl` interfaces in bytes: the largest IP packet that a workload may send through the mesh.
    pub mtu: u16,
    /// Seconds between WireGuard keep-alives; 0 is off.
    pub keepalive: u16,
    /// The policy of locations that set none. [`Mesh::policy_of`] returns that of a location.
    pub policy: Policy,
    /// Who may command a location besides its own nodes and voters. [`Mesh::may_command`] answers for one node.
    pub commands: Commands,
    /// Whether nodes believe decisions without a proof.
    pub proof: ProofPolicy,
    pub locations: BTreeMap<LocationName, Location>,
    pub nodes: BTreeMap<NodeName, Node>,
}

/// When decisions need a proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ProofPolicy {
    /// Once most voters of the location are known to sign, or it has proved one.
    #[default]
    Auto,
    Require,
}

/// Who may command every location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Commands {
    All,
    Of(BTreeSet<NodeName>),
}

impl Default for Commands {
    fn default() -> Self {
        Self::Of(BTreeSet::new())
    }
}

/// Why a node's own address is not carried in a location that has `node_addresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotCarried {
    /// It is a candidate's endpoint, which the underlay reaches: the tunnel would run through itself.
    Endpoint,
    /// A node of another location has the same one on its LAN.
    Ambiguous(NodeName),
    /// It is IPv6, and the mesh has no inner IPv6 range.
    Family,
}

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint => {
                f.write_str("it is an endpoint, which is reached outside of the tunnels")
            }
            Self::Ambiguous(other) => write!(
                f,
                "{other}, of another location, has the same one: give the locations' LANs different ranges"
            ),
            Self::Family => f.write_str("it is IPv6: add `inner_cidr6` to [mesh]"),
        }
    }
}

impl Mesh {
    pub(super) fn new(spec: MeshSpec) -> Self {
        Self { spec, index: CachedIndex::default() }
    }

    fn index(&self) -> &Index {
        self.index.of(&self.spec.nodes)
    }

    /// Returns the nodes with this LAN address: nodes of different locations may share one.
    fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &Node> {
        self.index().at_address(address).iter().filter_map(|n| self.nodes.get(n))
    }

    /// Returns whether the two are equal but for generation and hash.
    pub fn equals_but_for_generation(&self, other: &Self) -> bool {
        let (generation, hash) = (self.generation, self.hash);
        self.spec == MeshSpec { generation, hash, ..other.spec.clone() }
    }

    /// Returns the node of this name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Returns the policy of a location: its own, or else the mesh's.
    pub fn policy_of(&self, location: &LocationName) -> &Policy {
        self.locations.get(location).and_then(|l| l.policy.as_ref()).unwrap_or(&self.policy)
    }

    /// Returns all nodes of a location, by name.
    pub fn nodes_of<'a>(
        &'a self,
        location: &LocationName,
    ) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.index().location(location).iter().filter_map(|n| self.nodes.get(n))
    }

    /// Returns the candidates of a location, by slot.
    pub fn candidates_of(&self, location: &LocationName) -> BTreeMap<Slot, &Node> {
        self.nodes_of(location).filter_map(|n| Some((n.slot?, n))).collect()
    }

    /// Returns the candidate in a slot of a location.
    pub fn candidate(&self, location: &LocationName, slot: Slot) -> Option<&Node> {
        self.nodes_of(location).find(|n| n.slot == Some(slot))
    }

    /// Returns whether Kilo carries the workload between these two as well: both have `steering = "kilo"`.
    pub fn kilo_between(&self, a: &LocationName, b: &LocationName) -> bool {
        let kilo = |l| self.locations.get(l).is_some_and(|l| l.steering == Steering::Kilo);
        a != b && kilo(a) && kilo(b)
    }

    /// Returns whether leaderd leaves the traffic between these two alone: either is only observed.
    pub fn observed_between(&self, a: &LocationName, b: &LocationName) -> bool {
        let observed = |l| self.locations.get(l).is_some_and(|l| l.steering == Steering::Observe);
        a != b && (observed(a) || observed(b))
    }

    /// Returns the other locations to which Kilo carries from this one.
    pub fn kilo_with<'a>(
        &'a self,
        location: &'a LocationName,
    ) -> impl Iterator<Item = &'a LocationName> {
        self.locations.keys().filter(|l| self.kilo_between(location, l))
    }

    /// Returns the node of a location whose workload prefixes contain an address.
    pub fn node_behind(&self, location: &LocationName, ip: IpAddr) -> Option<&Node> {
        self.nodes_of(location).find(|n| n.prefixes.iter().any(|p| p.contains(&ip)))
    }

    /// Returns this mesh with the addresses that nodes answer probes on, as far as they are known; `None` if nothing changes. Addresses
    /// that the mesh file sets stay, and addresses outside of a node's prefixes are left out.
    pub fn with_probe_addresses(&self, known: &BTreeMap<NodeName, Vec<IpAddr>>) -> Option<Self> {
        let mut other = BTreeMap::new();
        for (name, addresses) in known {
            let Some(node) = self.nodes.get(name).filter(|n| !n.probe_addresses_written) else {
                continue;
            };
            let within = addresses.iter().copied().filter(|a| node.has_workload(*a));
            let within: Vec<IpAddr> = within.collect();
            if within != node.probe_addresses {
                other.insert(name, within);
            }
        }
        if other.is_empty() {
            return None;
        }
        let mut spec = self.spec.clone();
        for (name, addresses) in other {
            if let Some(node) = spec.nodes.get_mut(name) {
                node.probe_addresses = addresses;
            }
        }
        Some(Self::new(spec))
    }

    /// Returns every workload prefix of a location, behind a node or not, sorted and without duplicates.
    pub fn prefixes_of(&self, location: &LocationName) -> Vec<IpNet> {
        let own = self.locations.get(location).map_or(&[][..], |l| &l.prefixes);
        let mut all: Vec<IpNet> =
            self.nodes_of(location).flat_map(|n| &n.prefixes).chain(own).copied().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Returns the node's own address if other locations reach it there through the mesh: its location has `node_addresses`, and
    /// [`Mesh::why_not_carried`] finds no reason against it. Both ends of a tunnel agree, as it follows from the mesh alone. (The
    /// present address of an endpoint with a DNS name does not matter here: see `topology`.)
    pub fn carried_address(&self, node: &Node) -> Option<IpAddr> {
        let wanted = self.locations.get(&node.location).is_some_and(|l| l.node_addresses);
        (wanted && self.why_not_carried(node).is_none()).then_some(node.address)
    }

    /// Returns why the address of a node cannot be carried; `None` if it can.
    pub fn why_not_carried(&self, node: &Node) -> Option<NotCarried> {
        if node.address.is_ipv6() && self.inner.v6.is_none() {
            return Some(NotCarried::Family);
        }
        if self.index().is_endpoint(node.address) {
            return Some(NotCarried::Endpoint);
        }
        let other = self.at_address(node.address).find(|n| n.location != node.location);
        other.map(|n| NotCarried::Ambiguous(n.name.clone()))
    }

    /// Returns every address at which other locations probe a node: those within its prefixes, and its own where that is carried.
    pub fn probed_at(&self, node: &Node) -> impl Iterator<Item = IpAddr> {
        let own = self.carried_address(node).filter(|a| !node.probe_addresses.contains(a));
        node.probe_addresses.clone().into_iter().chain(own)
    }

    /// Returns the candidates of a location, preferred ones first: by priority, then by slot.
    pub fn ranking(&self, location: &LocationName) -> Vec<Slot> {
        let mut all: Vec<(u16, Slot)> =
            self.nodes_of(location).filter_map(|n| Some((n.priority, n.slot?))).collect();
        all.sort();
        all.into_iter().map(|(_, s)| s).collect()
    }

    /// Returns the voters of a location's Raft group: its candidates, its witnesses, and as many members, by index, as make 3 or 5
    /// voters.
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

    /// Returns whether this node may command this location. Voters of a location may: they decide who leads there anyway.
    pub fn may_command(&self, node: &NodeName, location: &LocationName) -> bool {
        let listed = match &self.commands {
            Commands::All => true,
            Commands::Of(nodes) => nodes.contains(node),
        };
        let own = || self.node(node).is_some_and(|n| n.location == *location);
        listed || own() || self.voters_of(location).contains(node)
    }

    /// Returns `inner(n, s)`: the inner IPv4 address of a node on `wgl{s}`.
    pub fn inner4(&self, node: &Node, slot: Slot) -> Ipv4Addr {
        self.inner.address4(slot, node.index)
    }

    /// Returns `inner(n, s)` in IPv6, if the mesh has an IPv6 range.
    pub fn inner6(&self, node: &Node, slot: Slot) -> Option<Ipv6Addr> {
        self.inner.address6(slot, node.index)
    }

    /// Returns the range of all inner addresses of one slot: a /20, routed to the candidate in that slot.
    pub fn slot_range4(&self, slot: Slot) -> Ipv4Net {
        self.inner.of_slot4(slot)
    }

    /// Returns the same in IPv6: a /116.
    pub fn slot_range6(&self, slot: Slot) -> Option<Ipv6Net> {
        self.inner.of_slot6(slot)
    }

    /// Returns the node that has this inner, probe or carried address, and for an inner address the slot of its interface.
    pub fn node_by_address(&self, ip: IpAddr) -> Option<(&Node, Option<Slot>)> {
        let index = self.index();
        if let Some((slot, number)) = self.inner.read(ip) {
            return Some((self.nodes.get(index.node(number)?)?, Some(slot)));
        }
        let carried = |n: &&Node| self.carried_address(n) == Some(ip);
        let probed = index.probed(ip).and_then(|n| self.nodes.get(n));
        probed.or_else(|| self.at_address(ip).find(carried)).map(|n| (n, None))
    }
}

/// Returns the interface whose far ends are the candidates in this slot: `wgl0`, `wgl1`, …
pub fn plane(slot: Slot) -> InterfaceName {
    format!("wgl{}", slot.0).parse().expect("wgl and a small number is an interface name")
}
