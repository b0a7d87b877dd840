//! A packet's walk through the networks of all nodes: what the kernels would do with what [`desired`] asks for. As in a kernel, rules in
//! their order say which tables are asked, for what came in where.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::{Family, InterfaceName, Network, Nexthop, RouteKey, RouteVia};

use super::{ROUTE_TABLE, TopologyInput, desired};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Mesh, Node, Overlay, plane};

pub(super) type Beliefs = BTreeMap<LocationName, Vec<Slot>>;

/// Member → candidate → candidate → member.
const MOST_HOPS: usize = 3;

pub(super) struct World<'a> {
    mesh: &'a Mesh,
    resolved: &'a BTreeMap<String, IpAddr>,
    nets: BTreeMap<&'a NodeName, Network>,
}

/// A packet at a node.
#[derive(Clone, Copy)]
struct Packet<'p> {
    source: IpAddr,
    target: IpAddr,
    /// `None`: the node sends it itself.
    iif: Option<&'p InterfaceName>,
}

/// How a walk ended: the nodes crossed, the first and the last included; or why it did not arrive.
pub(super) type Walk = Result<Vec<NodeName>, String>;

impl<'a> World<'a> {
    /// Every node with its own beliefs about who leads what.
    pub(super) fn new(
        mesh: &'a Mesh,
        resolved: &'a BTreeMap<String, IpAddr>,
        beliefs: &BTreeMap<NodeName, Beliefs>,
    ) -> Self {
        let (none, lan) = (Beliefs::new(), "eth0".parse().unwrap());
        let nets = mesh.nodes.keys().map(|me| {
            let leaders = beliefs.get(me).unwrap_or(&none);
            (
                me,
                desired(&TopologyInput {
                    mesh,
                    me,
                    leaders,
                    resolved,
                    lan_device: Some(&lan),
                    lan_mtu: None,
                    holds_address: true,
                    carried: &Default::default(),
                }),
            )
        });
        Self { mesh, resolved, nets: nets.collect() }
    }

    /// Every walk (ECMP may choose) from a node by its ordinary routes.
    pub(super) fn send(&self, from: &Node, source: IpAddr, target: IpAddr) -> Vec<Walk> {
        self.go_on(vec![from.name.clone()], Packet { source, target, iif: None })
    }

    /// The route of ours that a node's own packets to an address take, if one does.
    pub(super) fn caught(&self, node: &Node, target: IpAddr) -> Option<(&RouteKey, &RouteVia)> {
        let packet = Packet { source: node.address, target, iif: None };
        self.lookup(node, packet).or_else(|| self.in_table(node, ROUTE_TABLE, target))
    }

    pub(super) fn net(&self, node: &Node) -> &Network {
        &self.nets[&node.name]
    }

    /// Every walk out of `wgl{slot}` whatever the routes say.
    pub(super) fn send_by_plane(
        &self,
        from: &Node,
        slot: Slot,
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
        let packet = Packet { source, target, iif: None };
        self.leave(vec![from.name.clone()], &plane(slot), target, packet)
    }

    /// The longest match in one table.
    fn in_table(&self, here: &Node, table: u32, target: IpAddr) -> Option<(&RouteKey, &RouteVia)> {
        let matching = self.nets[&here.name]
            .routes
            .iter()
            .filter(|(k, _)| k.table == table && k.prefix.contains(&target));
        matching.min_by_key(|(k, _)| (std::cmp::Reverse(k.prefix.prefix_len()), k.metric))
    }

    /// What our rules find, all of which come before `main`.
    fn lookup(&self, here: &Node, packet: Packet<'_>) -> Option<(&RouteKey, &RouteVia)> {
        let mut rules: Vec<_> = self.nets[&here.name].rules.iter().collect();
        rules.sort_by_key(|r| r.priority);
        let fits = |r: &&wgctl_plan::Rule| {
            assert!(r.from.is_none() && r.to.is_none(), "this kernel does not know them: {r}");
            r.family == Family::of(&packet.target)
                && r.iif.as_ref().is_none_or(|iif| Some(iif) == packet.iif)
        };
        rules.into_iter().filter(fits).find_map(|r| self.in_table(here, r.table, packet.target))
    }

    fn go_on(&self, path: Vec<NodeName>, packet: Packet<'_>) -> Vec<Walk> {
        let target = packet.target;
        let here = &self.mesh.nodes[path.last().unwrap()];
        let net = &self.nets[&here.name];
        if here.address == target || net.addresses.iter().any(|(_, a)| a.addr() == target) {
            return vec![Ok(path)];
        }
        let location = &self.mesh.locations[&here.location];
        let found = self.lookup(here, packet);
        let behind = here.prefixes.iter().chain(&location.prefixes).any(|p| p.contains(&target));
        if behind && found.is_none() {
            return vec![Ok(path)];
        }
        if path.len() > MOST_HOPS {
            return vec![Err(format!("{target} is too far: {path:?}"))];
        }
        if let Some((_, via)) = found {
            return self.by_route(path, via, packet);
        }
        match self.in_table(here, ROUTE_TABLE, target) {
            Some((_, via)) => self.by_route(path, via, packet),
            None => match self.without_us(here, target) {
                // Neither a CNI nor a fabric is trusted with what comes from elsewhere where we have a VXLAN.
                Some(_) if path.len() > 1 && location.overlay.vxlan().is_some() => {
                    vec![Err(format!("{target} is left to others: {path:?}"))]
                }
                Some(next) => self.arrive(path, next, &"eth0".parse().unwrap(), packet),
                None => vec![Err(format!("no route to {target}: {path:?}"))],
            },
        }
    }

    fn by_route(&self, path: Vec<NodeName>, via: &RouteVia, packet: Packet<'_>) -> Vec<Walk> {
        let net = &self.nets[path.last().unwrap()];
        let target = packet.target;
        match via {
            RouteVia::Device { dev, .. } => self.leave(path, dev, target, packet),
            RouteVia::Gateway { dev, gateway, .. } => self.leave(path, dev, *gateway, packet),
            RouteVia::Nexthop { id, .. } => {
                let singles: Vec<&Nexthop> = match &net.nexthops[id] {
                    Nexthop::Group { members } => {
                        members.iter().map(|m| &net.nexthops[m]).collect()
                    }
                    single => vec![single],
                };
                assert!(!singles.is_empty(), "an empty group");
                let each = singles.into_iter().flat_map(|single| match single {
                    Nexthop::Device { dev, .. } => self.leave(path.clone(), dev, target, packet),
                    Nexthop::Gateway { dev, gateway, .. } => {
                        self.leave(path.clone(), dev, *gateway, packet)
                    }
                    other => vec![Err(format!("{other:?} in a group"))],
                });
                each.collect()
            }
        }
    }

    /// Out of a device, to the next node.
    fn leave(
        &self,
        path: Vec<NodeName>,
        dev: &InterfaceName,
        gateway: IpAddr,
        packet: Packet<'_>,
    ) -> Vec<Walk> {
        let Packet { source, target, .. } = packet;
        let here = &self.mesh.nodes[path.last().unwrap()];
        let net = &self.nets[&here.name];
        if let Some(wg) = net.wireguard.get(dev) {
            let Some((key, peer)) = wg.peers.iter().find(|(_, p)| allows(&p.allowed_ips, target))
            else {
                return vec![Err(format!("no peer of {dev} has {target}: {path:?}"))];
            };
            let next = self.mesh.nodes.values().find(|n| n.wireguard_key == *key).unwrap();
            // The endpoint names the interface of the far end, which must take this source from us.
            let endpoint = peer.endpoint.unwrap();
            let written = match next.endpoint.as_ref().unwrap() {
                Host::Ip(ip) => *ip,
                Host::Name(name) => self.resolved[name],
            };
            assert_eq!(endpoint.ip(), written);
            let planes = &self.nets[&next.name].wireguard;
            let far = planes.iter().find(|(_, w)| w.listen_port == endpoint.port());
            let taken = far.filter(|(_, w)| {
                let peer = w.peers.get(&here.wireguard_key);
                peer.is_some_and(|p| allows(&p.allowed_ips, source))
            });
            let Some((iif, _)) = taken else {
                return vec![Err(format!(
                    "{} refuses {source} from {dev} of {}",
                    next.name, here.name
                ))];
            };
            return self.arrive(path, next, iif, packet);
        }
        let lan = if net.vxlan.contains_key(dev) {
            net.neighbours
                .get(&(dev.clone(), gateway))
                .and_then(|mac| net.fdb.get(&(dev.clone(), *mac)).copied())
        } else {
            Some(gateway)
        };
        let flannel = matches!(&self.mesh.locations[&here.location].overlay, Overlay::Flannel { device } if device == dev);
        let is_it = |n: &&Node| match flannel {
            true => n.prefixes[0].network() == gateway,
            false => Some(n.address) == lan,
        };
        match self.mesh.nodes.values().filter(|n| n.location == here.location).find(is_it) {
            Some(next) => self.arrive(path, next, dev, packet),
            None => vec![Err(format!("nobody at {gateway} on {dev}: {path:?}"))],
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

    /// What a CNI carries in a location, and what its LAN delivers.
    fn without_us(&self, here: &Node, target: IpAddr) -> Option<&'a Node> {
        let cni = self.mesh.locations[&here.location].overlay.is_foreign();
        let owner = |n: &&Node| {
            let pods = cni && n.prefixes.iter().any(|p| p.contains(&target));
            n.location == here.location && (n.address == target || pods)
        };
        self.mesh.nodes.values().find(owner)
    }
}

fn allows(prefixes: &std::collections::BTreeSet<IpNet>, ip: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&ip))
}
