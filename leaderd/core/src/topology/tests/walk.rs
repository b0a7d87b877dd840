//! Walks packets through the networks of all nodes: what the kernels would do with what [`desired`] returns.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wgctl_plan::{Hop, InterfaceName, MAIN_TABLE, Network, Packet, RouteKey, RouteVia};

use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Mesh, Node, Overlay, plane};
use crate::relay_pair::Relays;
use crate::topology::{TopologyInput, desired};

/// The leaders that one node believes in.
pub(super) type Beliefs = BTreeMap<LocationName, Vec<Slot>>;

/// The relays that each node believes in, by the other location.
pub(super) type AllRelays = BTreeMap<NodeName, BTreeMap<LocationName, Relays>>;

/// Member → candidate → candidate → member.
const MOST_HOPS: usize = 3;

pub(super) struct World<'a> {
    mesh: &'a Mesh,
    resolved: &'a BTreeMap<String, IpAddr>,
    nets: BTreeMap<&'a NodeName, Network>,
}

/// The result of a walk: the nodes crossed, the first and the last included; or why the packet did not arrive.
pub(super) type Walk = Result<Vec<NodeName>, String>;

impl<'a> World<'a> {
    /// Every node with its own beliefs about who leads what.
    pub(super) fn new(
        mesh: &'a Mesh,
        resolved: &'a BTreeMap<String, IpAddr>,
        beliefs: &BTreeMap<NodeName, Beliefs>,
        relays: &AllRelays,
    ) -> Self {
        let (none, no_relays, lan) = (Beliefs::new(), BTreeMap::new(), "eth0".parse().unwrap());
        let nets = mesh.nodes.keys().map(|me| {
            let input = TopologyInput {
                mesh,
                me,
                leaders: beliefs.get(me).unwrap_or(&none),
                relays: relays.get(me).unwrap_or(&no_relays),
                resolved,
                lan_device: Some(&lan),
                lan_mtu: None,
                holds_address: true,
                carried: &Default::default(),
            };
            (me, desired(&input))
        });
        Self { mesh, resolved, nets: nets.collect() }
    }

    /// Returns every walk (ECMP may choose) from a node by its ordinary routes.
    pub(super) fn send(&self, from: &Node, source: IpAddr, target: IpAddr) -> Vec<Walk> {
        self.go_on(vec![from.name.clone()], Packet { source, target, iif: None })
    }

    /// Returns every walk out of `wgl{slot}`, whatever the routes say.
    pub(super) fn send_by_plane(
        &self,
        from: &Node,
        slot: Slot,
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
        let packet = Packet { source, target, iif: None };
        let plane = plane(slot);
        self.leave(vec![from.name.clone()], self.net(from).hop(&plane, target, target), packet)
    }

    /// Returns the route of ours that a node's own packets to an address take, if one does.
    pub(super) fn caught(&self, node: &Node, target: IpAddr) -> Option<(&RouteKey, &RouteVia)> {
        let packet = Packet { source: node.address, target, iif: None };
        let net = self.net(node);
        net.route_by_rules(&packet).or_else(|| net.route_in(MAIN_TABLE, target))
    }

    pub(super) fn net(&self, node: &Node) -> &Network {
        &self.nets[&node.name]
    }

    fn go_on(&self, path: Vec<NodeName>, packet: Packet<'_>) -> Vec<Walk> {
        let target = packet.target;
        let here = &self.mesh.nodes[path.last().unwrap()];
        let net = self.net(here);
        if here.address == target || net.addresses.iter().any(|(_, a)| a.addr() == target) {
            return vec![Ok(path)];
        }
        let location = &self.mesh.locations[&here.location];
        let by_rules = net.route_by_rules(&packet);
        let behind = here.prefixes.iter().chain(&location.prefixes).any(|p| p.contains(&target));
        if behind && by_rules.is_none() {
            return vec![Ok(path)];
        }
        if path.len() > MOST_HOPS {
            return vec![Err(format!("{target} is too far: {path:?}"))];
        }
        if let Some((_, via)) = by_rules.or_else(|| net.route_in(MAIN_TABLE, target)) {
            let hops = net.hops(via, target).into_iter();
            return hops.flat_map(|hop| self.leave(path.clone(), hop, packet)).collect();
        }
        match self.without_us(here, target) {
            // Where we have a VXLAN, what comes from elsewhere must not depend on a CNI or a fabric.
            Some(_) if path.len() > 1 && location.overlay.vxlan().is_some() => {
                vec![Err(format!("{target} is left to others: {path:?}"))]
            }
            Some(next) => self.arrive(path, next, &"eth0".parse().unwrap(), packet),
            None => vec![Err(format!("no route to {target}: {path:?}"))],
        }
    }

    /// Takes a hop, to the next node.
    fn leave(&self, path: Vec<NodeName>, hop: Hop<'_>, packet: Packet<'_>) -> Vec<Walk> {
        let here = &self.mesh.nodes[path.last().unwrap()];
        match hop {
            Hop::Dropped(why) => vec![Err(format!("{}: {why}: {path:?}", packet.target))],
            Hop::Peer { key, peer } => {
                let next = self.mesh.nodes.values().find(|n| n.wireguard_key == *key).unwrap();
                // The endpoint names the interface of the far end, which must admit this source from us.
                let endpoint = peer.endpoint.unwrap();
                let written = match next.endpoint.as_ref().unwrap() {
                    Host::Ip(ip) => *ip,
                    Host::Name(name) => self.resolved[name],
                };
                assert_eq!(endpoint.ip(), written);
                let far = self.net(next);
                match far.admit(endpoint.port(), &here.wireguard_key, packet.source) {
                    Ok(iif) => self.arrive(path, next, iif, packet),
                    Err(why) => vec![Err(format!("{} from {}: {why}", next.name, here.name))],
                }
            }
            Hop::Node { dev, address } => {
                let overlay = &self.mesh.locations[&here.location].overlay;
                let flannel = matches!(overlay, Overlay::Flannel { device } if device == dev);
                let is_it = |n: &&Node| match flannel {
                    true => n.prefixes[0].network() == address,
                    false => n.address == address,
                };
                match self.mesh.nodes_of(&here.location).find(is_it) {
                    Some(next) => self.arrive(path, next, dev, packet),
                    None => vec![Err(format!("no node at {address} on {dev}: {path:?}"))],
                }
            }
        }
    }

    fn arrive(
        &self,
        mut path: Vec<NodeName>,
        next: &Node,
        iif: &InterfaceName,
        packet: Packet<'_>,
    ) -> Vec<Walk> {
        if path.contains(&next.name) {
            return vec![Err(format!("a loop: {path:?} and again {}", next.name))];
        }
        path.push(next.name.clone());
        self.go_on(path, Packet { iif: Some(iif), ..packet })
    }

    /// Returns the node that a location's CNI, or its LAN, delivers to.
    fn without_us(&self, here: &Node, target: IpAddr) -> Option<&'a Node> {
        let cni = self.mesh.locations[&here.location].overlay.is_foreign();
        let owner = |n: &&Node| {
            let pods = cni && n.prefixes.iter().any(|p| p.contains(&target));
            n.location == here.location && (n.address == target || pods)
        };
        self.mesh.nodes.values().find(owner)
    }
}
