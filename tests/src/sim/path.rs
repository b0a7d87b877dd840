//! Where a packet really goes: hop by hop through the networks that the nodes have programmed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use leaderd_core::ids::NodeName;
use leaderd_core::mesh::Mesh;
use wgctl_plan::{InterfaceName, Network, Nexthop, NexthopId, RouteVia};

use super::Faults;

/// Hop limit that packets start with.
pub const TTL: u8 = 64;

/// A packet on its way.
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

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Arrives at this node with this hop limit, after these WAN and LAN hops.
    Delivered { node: NodeName, ttl: u8, wan_hops: Vec<(NodeName, NodeName)>, lan_hops: u32 },
    /// Dropped, and nobody says so.
    Lost { at: NodeName, why: &'static str },
    /// Dropped with ICMP time exceeded.
    TimeExceeded { at: NodeName },
}

/// What a walk needs to know of the world.
#[derive(Debug)]
pub struct Terrain<'a> {
    pub mesh: &'a Mesh,
    pub kernels: &'a BTreeMap<NodeName, Network>,
    pub faults: &'a BTreeMap<NodeName, Faults>,
    /// Ordered pairs of nodes between which nothing passes straight.
    pub cuts: &'a BTreeSet<(NodeName, NodeName)>,
}

enum Hop {
    Here,
    Tunnel(NodeName),
    Overlay(NodeName),
    Nowhere(&'static str),
}

impl Terrain<'_> {
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
            let hop = match bound_to.take() {
                Some(dev) => self.tunnel(&at, &dev, packet),
                None => self.route(&at, packet),
            };
            if let Hop::Here = hop {
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
            match hop {
                Hop::Here => unreachable!("returned above"),
                Hop::Nowhere(why) => return lost(why),
                Hop::Tunnel(next) => {
                    if faults.wireguard_down || self.faults[&next].wireguard_down {
                        return lost("wireguard down");
                    }
                    if faults.wan_cut || self.faults[&next].wan_cut || self.is_cut(&at, &next) {
                        return lost("wan cut");
                    }
                    wan_hops.push((at.clone(), next.clone()));
                    at = next;
                }
                Hop::Overlay(_) if forwarded && faults.route_loop => {
                    return Fate::TimeExceeded { at };
                }
                Hop::Overlay(next) => {
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

    fn route(&self, at: &NodeName, packet: &Packet) -> Hop {
        let node = &self.mesh.nodes[at];
        let kernel = &self.kernels[at];
        let target = packet.target;
        let ours = node.address == target
            || node.prefixes.iter().any(|p| p.contains(&target))
            || kernel.addresses.iter().any(|(_, net)| net.addr() == target);
        if ours {
            return Hop::Here;
        }
        let best = kernel
            .routes
            .iter()
            .filter(|(key, _)| key.prefix.contains(&target))
            .max_by_key(|(key, _)| (key.prefix.prefix_len(), std::cmp::Reverse(key.metric)));
        match best {
            None => Hop::Nowhere("no route"),
            Some((_, RouteVia::Nexthop { id, .. })) => self.nexthop(at, kernel, *id, packet),
            Some((_, RouteVia::Device { dev, .. })) => self.tunnel(at, dev, packet),
            Some((_, RouteVia::Gateway { dev, gateway, .. })) => {
                self.gateway(kernel, dev, *gateway)
            }
        }
    }

    fn nexthop(&self, at: &NodeName, kernel: &Network, id: NexthopId, packet: &Packet) -> Hop {
        match kernel.nexthops.get(&id) {
            None => Hop::Nowhere("no nexthop"),
            Some(Nexthop::Blackhole { .. }) => Hop::Nowhere("blackhole"),
            Some(Nexthop::Device { dev, .. }) => self.tunnel(at, dev, packet),
            Some(Nexthop::Gateway { dev, gateway, .. }) => self.gateway(kernel, dev, *gateway),
            Some(Nexthop::Group { members }) => match members.first() {
                Some(first) => self.nexthop(at, kernel, *first, packet),
                None => Hop::Nowhere("empty group"),
            },
        }
    }

    /// Out of a WireGuard interface: the peer is chosen by target, and must accept the source.
    fn tunnel(&self, at: &NodeName, dev: &InterfaceName, packet: &Packet) -> Hop {
        let Some(interface) = self.kernels[at].wireguard.get(dev) else {
            return Hop::Nowhere("no such interface");
        };
        let holds = |nets: &BTreeSet<IpNet>, ip: &IpAddr| nets.iter().any(|n| n.contains(ip));
        let peer =
            interface.peers.iter().find(|(_, peer)| holds(&peer.allowed_ips, &packet.target));
        let Some((key, peer)) = peer else { return Hop::Nowhere("no peer for the target") };
        let Some(next) = self.mesh.nodes.values().find(|n| n.wireguard_key == *key) else {
            return Hop::Nowhere("unknown peer");
        };
        let port = peer.endpoint.map_or(0, |e| e.port());
        let own_key = self.mesh.nodes[at].wireguard_key;
        let far = self.kernels[&next.name].wireguard.values().find(|i| i.listen_port == port);
        match far.and_then(|i| i.peers.get(&own_key)) {
            Some(us) if holds(&us.allowed_ips, &packet.source) => Hop::Tunnel(next.name.clone()),
            Some(_) => Hop::Nowhere("source not allowed by the peer"),
            None => Hop::Nowhere("peer does not know us"),
        }
    }

    /// To a gateway in the location: over the VXLAN's neighbour and FDB entries, or straight.
    fn gateway(&self, kernel: &Network, dev: &InterfaceName, gateway: IpAddr) -> Hop {
        let address = match kernel.vxlan.get(dev) {
            None => Some(gateway),
            Some(_) => kernel
                .neighbours
                .get(&(dev.clone(), gateway))
                .and_then(|mac| kernel.fdb.get(&(dev.clone(), *mac)))
                .copied(),
        };
        let node = address.and_then(|a| self.mesh.nodes.values().find(|n| n.address == a));
        node.map_or(Hop::Nowhere("no such gateway"), |n| Hop::Overlay(n.name.clone()))
    }
}
