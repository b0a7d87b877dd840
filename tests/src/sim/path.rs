//! Walks packets hop by hop through the networks that the nodes have programmed.
//!
//! At each node a packet takes the route that Linux would: policy rules in the order of their priorities, then `main`; in a table the
//! longest prefix, then the lowest metric. Rules and routes of other tools on the node ([`Foreign`]) take part.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leaderd_core::ids::{NodeName, Slot};
use leaderd_core::io::RouteCheck;
use leaderd_core::mesh::Mesh;
use wgctl_plan::{Family, Hop, InterfaceName, MAIN_TABLE, Network, RouteVia};

use super::Faults;
use super::foreign::Foreign;

/// Hop limit that packets start with.
pub const TTL: u8 = 64;

/// Why a packet is held at a machine that is paused: it goes on when the machine does.
pub(super) const PAUSED: &str = "machine paused";

/// A packet in flight.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub target: IpAddr,
    /// Bytes, IP header included.
    pub length: u16,
    /// The flow was never seen before the packet.
    pub new_flow: bool,
    /// Leave the first node by this interface.
    pub bound_to: Option<InterfaceName>,
    /// The nodes that the packet crossed which this one answers: to them it belongs to a flow that they know.
    pub known_to: Vec<NodeName>,
}

/// How a packet ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Arrives at this node with this hop limit, after these WAN and LAN hops. `crossed`: all nodes on the way, first and last included.
    Delivered {
        node: NodeName,
        ttl: u8,
        wan_hops: Vec<(NodeName, NodeName)>,
        lan_hops: u32,
        crossed: Vec<NodeName>,
    },
    /// Dropped silently.
    Lost { at: NodeName, why: &'static str },
    /// Dropped with ICMP time exceeded.
    TimeExceeded { at: NodeName },
}

/// What decides where packets go: the kernels' networks, and what is broken.
#[derive(Debug)]
pub struct DataPath<'a> {
    pub mesh: &'a Mesh,
    pub kernels: &'a BTreeMap<NodeName, Network>,
    pub faults: &'a BTreeMap<NodeName, Faults>,
    /// Ordered pairs of nodes between which no direct packet passes.
    pub cuts: &'a BTreeSet<(NodeName, NodeName)>,
}

/// Where a packet goes from one node.
enum Step {
    Arrived,
    /// Into a tunnel, out of this device of ours, in by that one of the next node.
    Tunnel {
        next: NodeName,
        out: InterfaceName,
        into: InterfaceName,
    },
    Overlay {
        next: NodeName,
        out: InterfaceName,
    },
    Dropped(&'static str),
}

impl DataPath<'_> {
    pub fn walk(&self, from: &NodeName, packet: &Packet) -> Fate {
        let mut at = from.clone();
        let mut iif: Option<InterfaceName> = None;
        let mut ttl = TTL;
        let mut wan_hops = Vec::new();
        let mut lan_hops = 0;
        let mut crossed = vec![from.clone()];
        let mut bound_to = packet.bound_to.clone();
        loop {
            let lost = |why| Fate::Lost { at: at.clone(), why };
            let faults = &self.faults[&at];
            if faults.crashed {
                return lost("crashed");
            }
            if faults.frozen {
                return lost(PAUSED);
            }
            let forwarded = iif.is_some();
            let step = match bound_to.take() {
                Some(dev) if !self.kernels[&at].wireguard.contains_key(&dev) => {
                    Step::Dropped("no such interface")
                }
                Some(dev) => {
                    let hop = self.kernels[&at].hop(&dev, packet.target, packet.target);
                    self.take(&at, hop, packet, &dev)
                }
                None => self.route(&at, packet, iif.as_ref()),
            };
            if let Step::Arrived = step {
                return Fate::Delivered { node: at, ttl, wan_hops, lan_hops, crossed };
            }
            if forwarded {
                if faults.forwarding_off {
                    return lost("forwarding off");
                }
                if faults.family_off == Some(Family::of(&packet.target)) {
                    return lost("family not forwarded");
                }
                if iif.as_ref().is_some_and(|dev| !faults.forwards_from(dev)) {
                    return lost("plane does not forward");
                }
                if faults.mtu.is_some_and(|mtu| packet.length > mtu) {
                    return lost("mtu black hole");
                }
                if faults.sizes.is_some_and(|(a, b)| (a..=b).contains(&packet.length)) {
                    return lost("size not forwarded");
                }
                ttl -= 1;
                if ttl == 0 {
                    return Fate::TimeExceeded { at };
                }
            }
            match step {
                Step::Arrived => unreachable!("returned above"),
                Step::Dropped(why) => return lost(why),
                Step::Tunnel { .. } if forwarded && faults.drops_outward(packet, &at) => {
                    return lost("new flow out");
                }
                Step::Tunnel { next, out, into } => {
                    let far = &self.faults[&next];
                    if faults.wireguard_down || far.wireguard_down {
                        return lost("wireguard down");
                    }
                    if faults.wan_cut || far.wan_cut || self.is_cut(&at, &next) {
                        return lost("wan cut");
                    }
                    if faults.is_down(&out) || far.is_down(&into) {
                        return lost("no carrier");
                    }
                    wan_hops.push((at.clone(), next.clone()));
                    (at, iif) = (next, Some(into));
                }
                Step::Overlay { .. } if forwarded && faults.route_loop => {
                    return Fate::TimeExceeded { at };
                }
                Step::Overlay { next, out } => {
                    let far = &self.faults[&next];
                    if faults.vxlan_all || (faults.vxlan_new_flows && packet.new_flow) {
                        return lost("vxlan");
                    }
                    if faults.lan_packets_cut || far.lan_packets_cut {
                        return lost("lan packets cut");
                    }
                    if faults.ghosts.contains(&next) {
                        return lost("fdb ghost");
                    }
                    if faults.lan_cut || far.lan_cut || self.is_cut(&at, &next) {
                        return lost("lan cut");
                    }
                    // The overlay's own packets cross the LAN device.
                    if [faults, far].iter().any(|f| f.is_down(&out) || f.lan_is_down()) {
                        return lost("no carrier");
                    }
                    lan_hops += 1;
                    (at, iif) = (next, Some(out));
                }
            }
            crossed.push(at.clone());
        }
    }

    fn is_cut(&self, from: &NodeName, to: &NodeName) -> bool {
        !self.cuts.is_empty() && self.cuts.contains(&(from.clone(), to.clone()))
    }

    /// Returns the next step by the node's rules and routes. Of the hops of an ECMP group it takes the first.
    fn route(&self, at: &NodeName, packet: &Packet, iif: Option<&InterfaceName>) -> Step {
        let node = &self.mesh.nodes[at];
        let kernel = &self.kernels[at];
        let target = packet.target;
        // The table `local`, which comes before all rules.
        let local = node.address == target
            || node.prefixes.iter().any(|p| p.contains(&target))
            || kernel.addresses.iter().any(|(_, net)| net.addr() == target);
        if local {
            return Step::Arrived;
        }
        match found_route(kernel, &self.faults[at].foreign, packet.source, target, iif) {
            None => Step::Dropped("no route"),
            Some(Found::Foreign) => Step::Dropped("route of another tool"),
            Some(Found::Ours(via)) => {
                // Both kinds of nexthop name a device; a VXLAN hop is seen by its endpoint alone.
                let hop = kernel.hops(via, target)[0];
                let dev = device_of(kernel, via);
                dev.map_or(Step::Dropped("no device"), |dev| self.take(at, hop, packet, dev))
            }
        }
    }

    /// Takes a hop out of `dev` to the next node, if that takes the packet.
    fn take(&self, at: &NodeName, hop: Hop<'_>, packet: &Packet, dev: &InterfaceName) -> Step {
        let out = dev.clone();
        match hop {
            Hop::Dropped(why) => Step::Dropped(why),
            Hop::Node { address, .. } => {
                let node = self.mesh.nodes.values().find(|n| n.address == address);
                let next = node.map(|n| n.name.clone());
                next.map_or(Step::Dropped("no such gateway"), |next| Step::Overlay { next, out })
            }
            Hop::Peer { key, peer } => {
                let Some(next) = self.mesh.nodes.values().find(|n| n.wireguard_key == *key) else {
                    return Step::Dropped("unknown peer");
                };
                let port = peer.endpoint.map_or(0, |e| e.port());
                let own_key = &self.mesh.nodes[at].wireguard_key;
                match self.kernels[&next.name].admit(port, own_key, packet.source) {
                    Ok(into) => Step::Tunnel { next: next.name.clone(), out, into: into.clone() },
                    Err(why) => Step::Dropped(why),
                }
            }
        }
    }
}

/// The route that a packet takes.
enum Found<'n> {
    Ours(&'n RouteVia),
    /// One of another tool, which leads nowhere.
    Foreign,
}

/// Returns the route that a packet takes: by rules in the order of their priorities, `main` last.
fn found_route<'n>(
    kernel: &'n Network,
    foreign: &[Foreign],
    source: IpAddr,
    target: IpAddr,
    iif: Option<&InterfaceName>,
) -> Option<Found<'n>> {
    let family = Family::of(&target);
    // A rule of another tool leads to a table of its own, with a route for what the rule takes.
    let rules = foreign.iter().filter(|f| f.takes(source, target, iif));
    let theirs = rules.filter_map(|f| f.rule_priority()).min();
    let ours = kernel.rules.iter().filter(|r| {
        r.family == family
            && r.from.is_none_or(|p| p.contains(&source))
            && r.to.is_none_or(|p| p.contains(&target))
            && r.iif.as_ref().is_none_or(|dev| Some(dev) == iif)
    });
    // The set is in the order of families and priorities.
    for rule in ours {
        if theirs.is_some_and(|theirs| theirs < rule.priority) {
            return Some(Found::Foreign);
        }
        let found = match rule.table {
            MAIN_TABLE => found_in_main(kernel, foreign, source, target),
            table => kernel.route_in(table, target).map(|(_, via)| Found::Ours(via)),
        };
        if found.is_some() {
            return found;
        }
    }
    if theirs.is_some() {
        Some(Found::Foreign)
    } else {
        found_in_main(kernel, foreign, source, target)
    }
}

fn found_in_main<'n>(
    kernel: &'n Network,
    foreign: &[Foreign],
    source: IpAddr,
    target: IpAddr,
) -> Option<Found<'n>> {
    let ours = kernel.route_in(MAIN_TABLE, target);
    let rank = ours.map(|(key, _)| (Reverse(key.prefix.prefix_len()), key.metric));
    let theirs = foreign.iter().filter(|f| f.takes(source, target, None));
    match (theirs.filter_map(Foreign::route_rank).min(), rank) {
        (Some(theirs), Some(ours)) if theirs < ours => Some(Found::Foreign),
        (Some(_), None) => Some(Found::Foreign),
        _ => ours.map(|(_, via)| Found::Ours(via)),
    }
}

/// Returns what a node's kernel does with a packet, if that is not what its daemon programmed.
pub(super) fn overrides(
    faults: &Faults,
    kernel: &Network,
    check: &RouteCheck,
) -> Option<&'static str> {
    let RouteCheck { source, target, iif, .. } = check;
    let (source, target, iif) = (*source, *target, iif.as_ref());
    kernel.route_of(&wgctl_plan::Packet { source, target, iif })?;
    if iif.is_some_and(|dev| !faults.forwards_from(dev)) {
        return Some("it is dropped, as forwarding is off");
    }
    let found = found_route(kernel, &faults.foreign, source, target, iif);
    matches!(found, Some(Found::Foreign)).then_some("it leaves by a route of another tool")
}

/// Returns the device that a route leaves by; of a group, its first member's.
fn device_of<'n>(kernel: &'n Network, via: &'n RouteVia) -> Option<&'n InterfaceName> {
    use wgctl_plan::Nexthop::Group;
    if let Some(dev) = via.device() {
        return Some(dev);
    }
    match kernel.nexthops.get(&via.nexthop()?)? {
        Group { members } => kernel.nexthops.get(members.first()?)?.device(),
        single => single.device(),
    }
}

impl Faults {
    /// Returns whether what comes in by a device is forwarded.
    fn forwards_from(&self, dev: &InterfaceName) -> bool {
        self.planes_off.is_empty()
            || !self.planes_off.iter().any(|slot| leaderd_core::mesh::plane(Slot(*slot)) == *dev)
    }

    /// What a relay forwards into a tunnel came in by the LAN: nothing goes from tunnel to tunnel.
    fn drops_outward(&self, packet: &Packet, at: &NodeName) -> bool {
        self.outward_new_flows && packet.new_flow && !packet.known_to.contains(at)
    }

    fn is_down(&self, dev: &InterfaceName) -> bool {
        !self.links_down.is_empty() && self.links_down.contains(dev)
    }

    /// Returns whether the plane of a slot has its carrier.
    pub(super) fn plane_is_up(&self, slot: Slot) -> bool {
        self.links_down.is_empty() || !self.links_down.contains(&leaderd_core::mesh::plane(slot))
    }

    /// Returns whether the device with the LAN address has no carrier.
    pub(super) fn lan_is_down(&self) -> bool {
        self.links_down.iter().any(|dev| dev.as_str() == LAN_DEVICE)
    }
}

/// The device with each node's LAN address.
pub const LAN_DEVICE: &str = "eth0";
