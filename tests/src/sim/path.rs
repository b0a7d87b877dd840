//! Walks packets hop by hop through the networks that the nodes have programmed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::Mesh;
use wgctl_plan::{Hop, InterfaceName, MAIN_TABLE, Network};

use super::Faults;

/// Hop limit that packets start with.
pub const TTL: u8 = 64;

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
}

/// How a packet ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Arrives at this node with this hop limit, after these WAN and LAN hops.
    Delivered { node: NodeName, ttl: u8, wan_hops: Vec<(NodeName, NodeName)>, lan_hops: u32 },
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
    Tunnel(NodeName),
    Overlay(NodeName),
    Dropped(&'static str),
}

impl DataPath<'_> {
    pub fn walk(&self, from: &NodeName, packet: &Packet) -> Fate {
        let mut at = from.clone();
        let mut ttl = TTL;
        let mut wan_hops = Vec::new();
        let mut lan_hops = 0;
        let mut bound_to = packet.bound_to.clone();
        loop {
            let lost = |why| Fate::Lost { at: at.clone(), why };
            let faults = &self.faults[&at];
            if faults.crashed {
                return lost("crashed");
            }
            let forwarded = at != *from || ttl != TTL;
            let step = match bound_to.take() {
                Some(dev) if !self.kernels[&at].wireguard.contains_key(&dev) => {
                    Step::Dropped("no such interface")
                }
                Some(dev) => {
                    let hop = self.kernels[&at].hop(&dev, packet.target, packet.target);
                    self.take(&at, hop, packet)
                }
                None => self.route(&at, packet),
            };
            if let Step::Arrived = step {
                return Fate::Delivered { node: at, ttl, wan_hops, lan_hops };
            }
            if forwarded {
                if faults.forwarding_off {
                    return lost("forwarding off");
                }
                if faults.mtu.is_some_and(|mtu| packet.length > mtu) {
                    return lost("mtu black hole");
                }
                ttl -= 1;
                if ttl == 0 {
                    return Fate::TimeExceeded { at };
                }
            }
            match step {
                Step::Arrived => unreachable!("returned above"),
                Step::Dropped(why) => return lost(why),
                Step::Tunnel(next) => {
                    if faults.wireguard_down || self.faults[&next].wireguard_down {
                        return lost("wireguard down");
                    }
                    if faults.wan_cut || self.faults[&next].wan_cut || self.is_cut(&at, &next) {
                        return lost("wan cut");
                    }
                    wan_hops.push((at.clone(), next.clone()));
                    at = next;
                }
                Step::Overlay(_) if forwarded && faults.route_loop => {
                    return Fate::TimeExceeded { at };
                }
                Step::Overlay(next) => {
                    if faults.vxlan_all || (faults.vxlan_new_flows && packet.new_flow) {
                        return lost("vxlan");
                    }
                    if faults.ghosts.contains(&next) {
                        return lost("fdb ghost");
                    }
                    if faults.lan_cut || self.faults[&next].lan_cut || self.is_cut(&at, &next) {
                        return lost("lan cut");
                    }
                    lan_hops += 1;
                    at = next;
                }
            }
        }
    }

    fn is_cut(&self, from: &NodeName, to: &NodeName) -> bool {
        !self.cuts.is_empty() && self.cuts.contains(&(from.clone(), to.clone()))
    }

    /// Returns the next step by the node's routes. Of the hops of an ECMP group it takes the first.
    fn route(&self, at: &NodeName, packet: &Packet) -> Step {
        let node = &self.mesh.nodes[at];
        let kernel = &self.kernels[at];
        let target = packet.target;
        let local = node.address == target
            || node.prefixes.iter().any(|p| p.contains(&target))
            || kernel.addresses.iter().any(|(_, net)| net.addr() == target);
        if local {
            return Step::Arrived;
        }
        // The simulator's meshes have no rules: all routes are in `main`.
        match kernel.route_in(MAIN_TABLE, target) {
            None => Step::Dropped("no route"),
            Some((_, via)) => self.take(at, kernel.hops(via, target)[0], packet),
        }
    }

    /// Takes a hop to the next node, if that takes the packet.
    fn take(&self, at: &NodeName, hop: Hop<'_>, packet: &Packet) -> Step {
        match hop {
            Hop::Dropped(why) => Step::Dropped(why),
            Hop::Node { address, .. } => {
                let node = self.mesh.nodes.values().find(|n| n.address == address);
                node.map_or(Step::Dropped("no such gateway"), |n| Step::Overlay(n.name.clone()))
            }
            Hop::Peer { key, peer } => {
                let Some(next) = self.mesh.nodes.values().find(|n| n.wireguard_key == *key) else {
                    return Step::Dropped("unknown peer");
                };
                let port = peer.endpoint.map_or(0, |e| e.port());
                let own_key = &self.mesh.nodes[at].wireguard_key;
                match self.kernels[&next.name].admit(port, own_key, packet.source) {
                    Ok(_) => Step::Tunnel(next.name.clone()),
                    Err(why) => Step::Dropped(why),
                }
            }
        }
    }
}
