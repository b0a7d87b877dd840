//! A valid mesh. Whoever holds a [`Mesh`] may rely on every rule that the mesh file is checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use wgctl_plan::{Family, InterfaceName, WgPublicKey};

use super::index::Index;
use super::policy::Policy;
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
    /// Who may command a location besides its own nodes and voters; ask [`Mesh::may_command`].
    pub commands: Commands,
    /// Whether decisions are believed without a proof.
    pub proof: ProofPolicy,
    pub locations: BTreeMap<LocationName, Location>,
    pub nodes: BTreeMap<NodeName, Node>,
    #[serde(skip)]
    pub index: Index,
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
    /// Whether the addresses of its nodes are carried as well: see [`Mesh::carried_address`].
    pub node_addresses: bool,
    /// Prefixes of the location that are behind none of its nodes: its leaders hand them on by the routes that they have.
    pub prefixes: Vec<IpNet>,
    /// Candidates of other locations that vote here, and never lead here.
    pub witnesses: Vec<NodeName>,
    /// Real services that are probed through every candidate.
    pub services: Vec<Service>,
    /// STAMP or TWAMP Light reflectors that are not ours, at workload addresses: probed without authentication.
    pub reflectors: Vec<SocketAddr>,
    pub steering: Steering,
    /// Whether connection tracking sees what this location's candidates relay, if the mesh file says; else see
    /// [`Location::tracks_transit`].
    pub track_transit: Option<bool>,
    /// The mesh's policy with what this location says otherwise, if it does: see [`Mesh::policy_of`].
    pub policy: Option<Policy>,
}

impl Location {
    /// One with nothing said of it but what carries it.
    pub fn new(name: LocationName, overlay: Overlay) -> Self {
        Self {
            name,
            overlay,
            node_addresses: false,
            prefixes: Vec::new(),
            witnesses: Vec::new(),
            services: Vec::new(),
            reflectors: Vec::new(),
            steering: Steering::default(),
            track_transit: None,
            policy: None,
        }
    }

    /// Whether what its candidates relay is tracked, and so open to source NAT and stateful firewalls there. Not where a CNI carries
    /// the location, unless the mesh file says so: most CNIs rewrite the source of what is neither from nor for their own node.
    pub fn tracks_transit(&self) -> bool {
        self.track_transit.unwrap_or(!self.overlay.is_foreign())
    }
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
    Vxlan(VxlanDevice),
    /// A CNI carries the location's own prefixes, and a VXLAN device that leaderd owns what is remote, in both directions.
    Cni(VxlanDevice),
    /// A CNI carries it: no local routes are programmed.
    External,
    /// Flannel's VXLAN backend carries it: no local routes are programmed, and another node is reached through the network
    /// address of its first prefix on this device, as flannel does it.
    Flannel { device: InterfaceName },
}

/// A VXLAN device of leaderd's own between the nodes of a location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VxlanDevice {
    pub device: InterfaceName,
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Bytes of an inner packet; without, what the LAN leaves: see [`VxlanDevice::mtu_on`].
    pub mtu: Option<u16>,
}

impl VxlanDevice {
    /// Its MTU where the LAN device has this one: never more than fits there, so that no packet is cut or lost. Where nothing is
    /// known of the LAN it is taken for Ethernet.
    pub fn mtu_on(&self, lan_mtu: Option<u32>, lan: Family) -> u32 {
        let overhead = match lan {
            Family::V4 => 50,
            Family::V6 => 70,
        };
        let configured = self.mtu.map(u32::from);
        match lan_mtu {
            Some(lan_mtu) => {
                let fits = lan_mtu.saturating_sub(overhead);
                configured.map_or(fits, |mtu| mtu.min(fits))
            }
            None => configured.unwrap_or(1450),
        }
    }
}

impl Default for VxlanDevice {
    fn default() -> Self {
        let device = "lvx0".parse().expect("an interface name");
        Self { device, vni: 7946, port: 4790, mtu: None }
    }
}

impl Overlay {
    /// The VXLAN device that leaderd has in such a location.
    pub const fn vxlan(&self) -> Option<&VxlanDevice> {
        match self {
            Self::Vxlan(vxlan) | Self::Cni(vxlan) => Some(vxlan),
            Self::Direct | Self::External | Self::Flannel { .. } => None,
        }
    }

    /// Whether somebody else carries the location's own prefixes. Then our routes lie in tables of their own: a CNI may have better
    /// ones in `main`, have rules before it, or tell others of what is in it.
    pub const fn is_foreign(&self) -> bool {
        match self {
            Self::Cni(_) | Self::External | Self::Flannel { .. } => true,
            Self::Direct | Self::Vxlan(_) => false,
        }
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
    /// Workload addresses of this node that its daemon answers probes on (at most one per family): what the mesh file says,
    /// else what the node was told to hold ([`Mesh::with_probe_addresses`]), else, until anything is known, the first host
    /// address of its first prefix of each family.
    pub probe_addresses: Vec<IpAddr>,
    /// The mesh file says which: nothing is searched for, and nobody is asked.
    pub probe_addresses_written: bool,
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

    /// This mesh with the addresses that nodes answer probes on, as far as they are known; `None` if it has them already.
    /// What the mesh file says of a node stays, and so does what lies in none of its prefixes out of it.
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
        let mut mesh = self.clone();
        for (name, addresses) in other {
            if let Some(node) = mesh.nodes.get_mut(name) {
                node.probe_addresses = addresses;
            }
        }
        Some(mesh)
    }

    /// Every workload prefix of a location, behind a node or not, in order, without doubles.
    pub fn prefixes_of(&self, location: &LocationName) -> Vec<IpNet> {
        let own = self.locations.get(location).map_or(&[][..], |l| &l.prefixes);
        let mut all: Vec<IpNet> =
            self.nodes_of(location).flat_map(|n| &n.prefixes).chain(own).copied().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The address of a node at which other locations reach it through the mesh, if they do: if its location has `node_addresses`, and
    /// unless there is a reason against it ([`Mesh::why_not_carried`]). It follows from the mesh alone, so that both ends of a tunnel
    /// agree. (An endpoint that is a DNS name, and which address it has now, is no business of the mesh: see `topology`.)
    pub fn carried_address(&self, node: &Node) -> Option<IpAddr> {
        let wanted = self.locations.get(&node.location).is_some_and(|l| l.node_addresses);
        (wanted && self.why_not_carried(node).is_none()).then_some(node.address)
    }

    /// Why the address of a node cannot be carried, if so.
    pub fn why_not_carried(&self, node: &Node) -> Option<NotCarried> {
        if node.address.is_ipv6() && self.inner.v6.is_none() {
            return Some(NotCarried::Family);
        }
        if self.index.is_endpoint(self, node.address) {
            return Some(NotCarried::Endpoint);
        }
        let other = self.index.at_address(self, node.address).find(|n| n.location != node.location);
        other.map(|n| NotCarried::Ambiguous(n.name.clone()))
    }

    /// Every address at which other locations probe a node: within its prefixes, and its own where that is carried.
    pub fn probed_at(&self, node: &Node) -> impl Iterator<Item = IpAddr> {
        let own = self.carried_address(node).filter(|a| !node.probe_addresses.contains(a));
        node.probe_addresses.clone().into_iter().chain(own)
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

    /// True if commands that this node gives count in this location. Its voters decide who leads there anyway.
    pub fn may_command(&self, node: &NodeName, location: &LocationName) -> bool {
        let listed = match &self.commands {
            Commands::All => true,
            Commands::Of(nodes) => nodes.contains(node),
        };
        let own = || self.node(node).is_some_and(|n| n.location == *location);
        listed || own() || self.voters_of(location).contains(node)
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

    /// The node that an inner address, a probe address or a carried one belongs to, and for inner addresses the slot of its interface.
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
            None => {
                let carried = |n: &&Node| self.carried_address(n) == Some(ip);
                let found = self.index.probed(self, ip);
                found.or_else(|| self.index.at_address(self, ip).find(carried)).map(|n| (n, None))
            }
        }
    }
}

impl Node {
    /// True for an address within a workload prefix of this node.
    pub fn has_workload(&self, ip: IpAddr) -> bool {
        self.prefixes.iter().any(|p| p.contains(&ip))
    }
}

/// The interface whose far ends are the candidates in this slot: `wgl0`, `wgl1`, …
pub fn plane(slot: Slot) -> InterfaceName {
    format!("wgl{}", slot.0).parse().expect("wgl and a small number is an interface name")
}
