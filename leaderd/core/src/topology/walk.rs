//! A packet's walk through the networks of all nodes: what the kernels would do with what [`desired`] asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::{InterfaceName, Network, Nexthop, RouteVia};

use super::{TopologyInput, desired};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Mesh, Node, Overlay, plane};

pub(super) type Beliefs = BTreeMap<LocationName, Vec<Slot>>;

/// Member → candidate → candidate → member.
const MOST_HOPS: usize = 3;

pub(super) struct World<'a> {
    mesh: &'a Mesh,
    nets: BTreeMap<&'a NodeName, Network>,
}

/// How a walk ended: the nodes crossed, the first and the last included; or why it did not arrive.
pub(super) type Walk = Result<Vec<NodeName>, String>;

impl<'a> World<'a> {
    /// Every node with its own beliefs about who leads what.
    pub(super) fn new(mesh: &'a Mesh, beliefs: &BTreeMap<NodeName, Beliefs>) -> Self {
        let (none, resolved, lan) = (Beliefs::new(), BTreeMap::new(), "eth0".parse().unwrap());
        let nets = mesh.nodes.keys().map(|me| {
            let leaders = beliefs.get(me).unwrap_or(&none);
            (
                me,
                desired(&TopologyInput {
                    mesh,
                    me,
                    leaders,
                    resolved: &resolved,
                    lan_device: Some(&lan),
                    lan_mtu: None,
                    carried: &Default::default(),
                }),
            )
        });
        Self { mesh, nets: nets.collect() }
    }

    /// Every walk (ECMP may choose) from a node by its ordinary routes.
    pub(super) fn send(&self, from: &Node, source: IpAddr, target: IpAddr) -> Vec<Walk> {
        self.go_on(vec![from.name.clone()], source, target)
    }

    /// Every walk out of `wgl{slot}` whatever the routes say.
    pub(super) fn send_by_plane(
        &self,
        from: &Node,
        slot: Slot,
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
        self.leave(vec![from.name.clone()], &plane(slot), target, source, target)
    }

    fn go_on(&self, path: Vec<NodeName>, source: IpAddr, target: IpAddr) -> Vec<Walk> {
        let here = &self.mesh.nodes[path.last().unwrap()];
        let net = &self.nets[&here.name];
        let own = here.prefixes.iter().any(|p| p.contains(&target))
            || net.addresses.iter().any(|(_, a)| a.addr() == target);
        if own {
            return vec![Ok(path)];
        }
        if path.len() > MOST_HOPS {
            return vec![Err(format!("{target} is too far: {path:?}"))];
        }
        let mut matching: Vec<_> =
            net.routes.iter().filter(|(k, _)| k.prefix.contains(&target)).collect();
        matching.sort_by_key(|(k, _)| (std::cmp::Reverse(k.prefix.prefix_len()), k.metric));
        match matching.first() {
            Some((_, via)) => self.by_route(path, via, source, target),
            None => match self.by_cni(here, target) {
                Some(next) => self.arrive(path, next, source, target),
                None => vec![Err(format!("no route to {target}: {path:?}"))],
            },
        }
    }

    fn by_route(
        &self,
        path: Vec<NodeName>,
        via: &RouteVia,
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
        let net = &self.nets[path.last().unwrap()];
        match via {
            RouteVia::Device { dev, .. } => self.leave(path, dev, target, source, target),
            RouteVia::Gateway { dev, gateway, .. } => {
                self.leave(path, dev, *gateway, source, target)
            }
            RouteVia::Nexthop { id, .. } => {
                let singles: Vec<&Nexthop> = match &net.nexthops[id] {
                    Nexthop::Group { members } => {
                        members.iter().map(|m| &net.nexthops[m]).collect()
                    }
                    single => vec![single],
                };
                assert!(!singles.is_empty(), "an empty group");
                let each = singles.into_iter().flat_map(|single| match single {
                    Nexthop::Device { dev, .. } => {
                        self.leave(path.clone(), dev, target, source, target)
                    }
                    Nexthop::Gateway { dev, gateway, .. } => {
                        self.leave(path.clone(), dev, *gateway, source, target)
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
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
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
            assert_eq!(Some(Host::Ip(endpoint.ip())), next.endpoint);
            let far =
                self.nets[&next.name].wireguard.values().find(|w| w.listen_port == endpoint.port());
            let taken = far
                .and_then(|w| w.peers.get(&here.wireguard_key))
                .is_some_and(|p| allows(&p.allowed_ips, source));
            if !taken {
                return vec![Err(format!(
                    "{} refuses {source} from {dev} of {}",
                    next.name, here.name
                ))];
            }
            return self.arrive(path, next, source, target);
        }
        let lan = if net.vxlan.contains_key(dev) {
            net.neighbours
                .get(&(dev.clone(), gateway))
                .and_then(|mac| net.fdb.get(&(dev.clone(), *mac)).copied())
        } else {
            Some(gateway)
        };
        match self
            .mesh
            .nodes
            .values()
            .find(|n| n.location == here.location && Some(n.address) == lan)
        {
            Some(next) => self.arrive(path, next, source, target),
            None => vec![Err(format!("nobody at {gateway} on {dev}: {path:?}"))],
        }
    }

    fn arrive(
        &self,
        mut path: Vec<NodeName>,
        next: &Node,
        source: IpAddr,
        target: IpAddr,
    ) -> Vec<Walk> {
        if path.contains(&next.name) {
            return vec![Err(format!("a loop: {path:?} and again {}", next.name))];
        }
        path.push(next.name.clone());
        self.go_on(path, source, target)
    }

    /// What a CNI carries in a location with overlay `external`.
    fn by_cni(&self, here: &Node, target: IpAddr) -> Option<&'a Node> {
        let external = self.mesh.locations[&here.location].overlay == Overlay::External;
        let owner = |n: &&Node| {
            n.location == here.location && n.prefixes.iter().any(|p| p.contains(&target))
        };
        if external { self.mesh.nodes.values().find(owner) } else { None }
    }
}

fn allows(prefixes: &std::collections::BTreeSet<IpNet>, ip: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&ip))
}
