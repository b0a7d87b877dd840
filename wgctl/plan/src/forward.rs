//! What a kernel with a [`Network`] does with one packet: which route it takes, and where it leaves the node for.
//!
//! One node at a time. A caller that has the networks of all nodes walks a packet from hop to hop.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::*;

/// Routing table `main`, in which the kernel looks after our rules.
pub const MAIN_TABLE: u32 = 254;

/// A packet at a node.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'p> {
    pub source: IpAddr,
    pub target: IpAddr,
    /// The device that it came in by; `None` if this node sends it.
    pub iif: Option<&'p InterfaceName>,
}

/// Where a packet leaves a node for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop<'n> {
    /// Through a WireGuard interface, to this peer.
    Peer { key: &'n WgPublicKey, peer: &'n WgPeer },
    /// To the node with this address: the endpoint of our VXLAN device, or the gateway on another device.
    Node { dev: &'n InterfaceName, address: IpAddr },
    /// Dropped, with the reason.
    Dropped(&'static str),
}

impl Network {
    /// Returns the route that our rules lead to. They all come before `main`.
    pub fn route_by_rules(&self, packet: &Packet<'_>) -> Option<(&RouteKey, &RouteVia)> {
        let family = Family::of(&packet.target);
        let applies = |r: &&Rule| {
            r.family == family
                && r.from.is_none_or(|p| p.contains(&packet.source))
                && r.to.is_none_or(|p| p.contains(&packet.target))
                && r.iif.as_ref().is_none_or(|iif| Some(iif) == packet.iif)
        };
        // Rules of one family are in the order of their priorities.
        self.rules.iter().filter(applies).find_map(|r| self.route_in(r.table, packet.target))
    }

    /// Returns the route to `target` in one table: of the longest prefixes, the one with the lowest metric.
    pub fn route_in(&self, table: u32, target: IpAddr) -> Option<(&RouteKey, &RouteVia)> {
        let host = IpNet::from(target);
        (0..=host.prefix_len()).rev().find_map(|length| {
            let prefix = IpNet::new(target, length).ok()?.trunc();
            let first = RouteKey { table, prefix, metric: 0 };
            let (key, via) = self.routes.range(first..).next()?;
            (key.table == table && key.prefix == prefix).then_some((key, via))
        })
    }

    /// Returns the route that a packet takes unless a rule or route of another program comes before ours.
    pub fn route_of(&self, packet: &Packet<'_>) -> Option<(&RouteKey, &RouteVia)> {
        self.route_by_rules(packet).or_else(|| self.route_in(MAIN_TABLE, packet.target))
    }

    /// Returns the devices by which a route leaves, each with its gateway: several if it is an ECMP group.
    pub fn ways_out<'n>(&'n self, via: &'n RouteVia) -> Vec<(&'n InterfaceName, Option<IpAddr>)> {
        let single = |nexthop: &'n Nexthop| match nexthop {
            Nexthop::Device { dev, .. } => Some((dev, None)),
            Nexthop::Gateway { dev, gateway, .. } => Some((dev, Some(*gateway))),
            Nexthop::Group { .. } | Nexthop::Blackhole { .. } => None,
        };
        match via {
            RouteVia::Device { dev, .. } => vec![(dev, None)],
            RouteVia::Gateway { dev, gateway, .. } => vec![(dev, Some(*gateway))],
            RouteVia::Nexthop { id, .. } => match self.nexthops.get(id) {
                Some(Nexthop::Group { members }) => {
                    let members = members.iter().filter_map(|m| self.nexthops.get(m));
                    members.filter_map(single).collect()
                }
                nexthop => nexthop.and_then(single).into_iter().collect(),
            },
        }
    }

    /// Returns the hops of a route: several if it is an ECMP group, never none.
    pub fn hops<'n>(&'n self, via: &'n RouteVia, target: IpAddr) -> Vec<Hop<'n>> {
        let single = |nexthop: Option<&'n Nexthop>| match nexthop {
            Some(Nexthop::Device { dev, .. }) => self.hop(dev, target, target),
            Some(Nexthop::Gateway { dev, gateway, .. }) => self.hop(dev, *gateway, target),
            Some(Nexthop::Blackhole { .. }) => Hop::Dropped("blackhole"),
            Some(Nexthop::Group { .. }) => Hop::Dropped("a group in a group"),
            None => Hop::Dropped("no nexthop"),
        };
        match via {
            RouteVia::Device { dev, .. } => vec![self.hop(dev, target, target)],
            RouteVia::Gateway { dev, gateway, .. } => vec![self.hop(dev, *gateway, target)],
            RouteVia::Nexthop { id, .. } => match self.nexthops.get(id) {
                Some(Nexthop::Group { members }) if members.is_empty() => {
                    vec![Hop::Dropped("empty group")]
                }
                Some(Nexthop::Group { members }) => {
                    members.iter().map(|m| single(self.nexthops.get(m))).collect()
                }
                nexthop => vec![single(nexthop)],
            },
        }
    }

    /// Returns the hop out of one device. A WireGuard interface chooses the peer by `target`, a VXLAN device the endpoint by
    /// `gateway`.
    pub fn hop<'n>(&'n self, dev: &'n InterfaceName, gateway: IpAddr, target: IpAddr) -> Hop<'n> {
        if let Some(interface) = self.wireguard.get(dev) {
            return match interface.peers.iter().find(|(_, p)| p.allows(&target)) {
                Some((key, peer)) => Hop::Peer { key, peer },
                None => Hop::Dropped("no peer has the target"),
            };
        }
        if !self.vxlan.contains_key(dev) {
            return Hop::Node { dev, address: gateway };
        }
        let mac = self.neighbours.get(&(dev.clone(), gateway));
        match mac.and_then(|mac| self.fdb.get(&(dev.clone(), *mac))) {
            Some(endpoint) => Hop::Node { dev, address: *endpoint },
            None => Hop::Dropped("no neighbour entry for the gateway"),
        }
    }

    /// Returns the WireGuard interface that listens on `port` and takes a packet from this peer with this source.
    ///
    /// # Errors
    /// The reason for which the packet is dropped.
    pub fn admit(
        &self,
        port: u16,
        from: &WgPublicKey,
        source: IpAddr,
    ) -> Result<&InterfaceName, &'static str> {
        let listening = self.wireguard.iter().find(|(_, w)| w.listen_port == port);
        let (name, interface) = listening.ok_or("no interface listens on the port")?;
        let peer = interface.peers.get(from).ok_or("the sender is no peer")?;
        if peer.allows(&source) { Ok(name) } else { Err("the peer may not have the source") }
    }
}

impl WgPeer {
    /// True if the peer may send from, and is sent to at, this address.
    pub fn allows(&self, ip: &IpAddr) -> bool {
        self.allowed_ips.iter().any(|prefix| prefix.contains(ip))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(text: &str) -> InterfaceName {
        text.parse().unwrap()
    }

    const FAR: WgPublicKey = WgPublicKey([2; 32]);

    /// A plane with one peer, a VXLAN device with one neighbour, and a table for what comes in on the plane.
    fn relay() -> Network {
        let peer = WgPeer {
            endpoint: None,
            allowed_ips: ["10.1.0.0/16".parse().unwrap()].into(),
            persistent_keepalive: 0,
        };
        let plane = WgInterface {
            public_key: None,
            listen_port: 51900,
            mtu: 1420,
            up: true,
            peers: BTreeMap::from([(FAR, peer)]),
        };
        let vxlan = Vxlan {
            vni: 1,
            local: ip("192.168.0.1"),
            port: 4790,
            mac: Mac([2; 6]),
            mtu: 1450,
            up: true,
        };
        let route = |table, prefix: &str, metric, via| {
            (RouteKey { table, prefix: prefix.parse().unwrap(), metric }, via)
        };
        let device = |dev| RouteVia::Device { dev: name(dev), source: None };
        let group = RouteVia::Nexthop { id: NexthopId(3), source: None };
        let gateway = ip("100.127.240.2");
        let last_hop = RouteVia::Gateway { dev: name("lvx0"), gateway, onlink: true };
        let single = |family| Nexthop::Device { dev: name("wgl0"), family };
        Network {
            wireguard: [(name("wgl0"), plane)].into(),
            vxlan: [(name("lvx0"), vxlan)].into(),
            neighbours: [((name("lvx0"), gateway), Mac([3; 6]))].into(),
            fdb: [((name("lvx0"), Mac([3; 6])), ip("192.168.0.2"))].into(),
            nexthops: [
                (NexthopId(1), single(Family::V4)),
                (NexthopId(2), Nexthop::Blackhole { family: Family::V4 }),
                (NexthopId(3), Nexthop::Group { members: [NexthopId(1)].into() }),
            ]
            .into(),
            routes: [
                route(MAIN_TABLE, "10.1.0.0/16", 76, group),
                route(MAIN_TABLE, "10.1.0.0/16", 50, device("eth0")),
                route(MAIN_TABLE, "10.1.2.0/24", 99, device("wgl0")),
                route(7, "10.1.2.0/24", 76, last_hop),
            ]
            .into(),
            rules: [Rule {
                family: Family::V4,
                priority: 76,
                from: Some("10.9.0.0/16".parse().unwrap()),
                to: None,
                iif: Some(name("wgl0")),
                table: 7,
            }]
            .into(),
            ..Network::default()
        }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_lowest_metric() {
        let net = relay();
        let found = |target| net.route_in(MAIN_TABLE, ip(target)).map(|(key, _)| key.metric);
        assert_eq!(found("10.1.1.1"), Some(50));
        assert_eq!(found("10.1.2.1"), Some(99));
        assert_eq!(found("10.3.0.1"), None);
    }

    #[test]
    fn a_packet_takes_the_route_that_our_rules_lead_to_and_else_one_in_main() {
        let (net, plane) = (relay(), name("wgl0"));
        let ways = |source, target, iif| {
            let packet = Packet { source: ip(source), target: ip(target), iif };
            let found = net.route_of(&packet).map(|(_, via)| net.ways_out(via));
            found.map(|ways| ways.iter().map(|(d, g)| format!("{d} {g:?}")).collect::<Vec<_>>())
        };
        let vxlan = Some(vec!["lvx0 Some(100.127.240.2)".to_owned()]);
        assert_eq!(ways("10.9.0.1", "10.1.2.1", Some(&plane)), vxlan);
        assert_eq!(ways("10.8.0.1", "10.1.2.1", Some(&plane)), Some(vec!["wgl0 None".to_owned()]));
        assert_eq!(ways("10.9.0.1", "10.3.0.1", None), None);
        let group = RouteVia::Nexthop { id: NexthopId(3), source: None };
        assert_eq!(net.ways_out(&group), [(&plane, None)]);
    }

    #[test]
    fn a_rule_applies_by_source_and_by_the_device_that_a_packet_came_in_by() {
        let (net, plane) = (relay(), name("wgl0"));
        let found = |source, iif| {
            let packet = Packet { source: ip(source), target: ip("10.1.2.1"), iif };
            net.route_by_rules(&packet).is_some()
        };
        assert!(found("10.9.0.1", Some(&plane)));
        assert!(!found("10.8.0.1", Some(&plane)) && !found("10.9.0.1", None));
    }

    #[test]
    fn a_hop_is_a_peer_by_target_or_a_node_by_gateway_or_a_drop() {
        let net = relay();
        let by = |id| RouteVia::Nexthop { id: NexthopId(id), source: None };
        let hops = |id, target| net.hops(&by(id), ip(target)).len();
        assert_eq!((hops(1, "10.1.1.1"), hops(3, "10.1.1.1")), (1, 1));
        assert!(matches!(net.hops(&by(3), ip("10.1.1.1"))[..], [Hop::Peer { key: &FAR, .. }]));
        for (id, target, why) in [
            (3, "10.3.0.1", "no peer has the target"),
            (2, "10.1.1.1", "blackhole"),
            (9, "10.1.1.1", "no nexthop"),
        ] {
            assert_eq!(net.hops(&by(id), ip(target)), [Hop::Dropped(why)]);
        }
        let (lvx0, eth0, gateway) = (name("lvx0"), name("eth0"), ip("100.127.240.2"));
        let node = |dev, address| Hop::Node { dev, address };
        assert_eq!(net.hop(&lvx0, gateway, ip("10.1.2.1")), node(&lvx0, ip("192.168.0.2")));
        assert_eq!(net.hop(&eth0, gateway, ip("10.1.2.1")), node(&eth0, gateway));
        assert!(matches!(net.hop(&lvx0, ip("100.127.240.9"), gateway), Hop::Dropped(_)));
    }

    #[test]
    fn an_interface_admits_a_peers_own_sources_only() {
        let net = relay();
        assert_eq!(net.admit(51900, &FAR, ip("10.1.0.1")), Ok(&name("wgl0")));
        assert!(net.admit(51900, &FAR, ip("10.2.0.1")).is_err());
        assert!(net.admit(51900, &WgPublicKey([9; 32]), ip("10.1.0.1")).is_err());
        assert!(net.admit(51901, &FAR, ip("10.1.0.1")).is_err());
    }
}
