//! A candidate's planes, their peers, and the routes into them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use wgctl_plan::{MAIN_TABLE, Nexthop, RouteVia, WgInterface, WgPeer};

use super::ids::plane_nexthop;
use super::{Build, ROUTE_METRIC, host, inner};
use crate::ids::{LocationName, Slot};
use crate::mesh::{Host, Node, plane};

impl<'a> Build<'a> {
    /// Adds the interfaces of a candidate: one for each slot in which another location has a candidate.
    pub(super) fn planes(&mut self) {
        let Some(my_slot) = self.me.slot else { return };
        let mut far: BTreeMap<Slot, Vec<&'a Node>> = BTreeMap::new();
        for location in self.other_locations() {
            for (&slot, &node) in &self.locations[location].candidates {
                far.entry(slot).or_default().push(node);
            }
        }
        for (slot, nodes) in far {
            self.plane(my_slot, slot, &nodes);
        }
    }

    fn plane(&mut self, my_slot: Slot, slot: Slot, far: &[&'a Node]) {
        let mesh = self.mesh();
        let dev = plane(slot);
        let peers = far.iter().map(|b| (b.wireguard_key, self.peer(my_slot, b))).collect();
        let interface = WgInterface {
            public_key: Some(self.me.wireguard_key),
            listen_port: mesh.base_port + u16::from(slot.0),
            mtu: mesh.mtu.into(),
            up: true,
            peers,
        };
        self.net.wireguard.insert(dev.clone(), interface);
        for &family in self.families() {
            let id = plane_nexthop(slot, family);
            self.net.nexthops.insert(id, Nexthop::Device { dev: dev.clone(), family });
            if let Some(address) = inner(mesh, self.me, slot, family) {
                self.net.addresses.insert((dev.clone(), host(address)));
            }
            for b in far {
                if let Some(address) = inner(mesh, b, my_slot, family) {
                    self.route(host(address), RouteVia::Device { dev: dev.clone(), source: None });
                }
            }
        }
    }

    /// Returns `b` as a peer. Its interface towards us is named after our slot, which gives the port and the inner address. It may carry
    /// all of its location, leader or not, and that never changes at a failover.
    fn peer(&self, my_slot: Slot, b: &Node) -> WgPeer {
        let mesh = self.mesh();
        let endpoint: Option<IpAddr> = match &b.endpoint {
            Some(Host::Ip(ip)) => Some(*ip),
            Some(Host::Name(name)) => self.input.resolved.get(name).copied(),
            None => None,
        };
        let mut allowed_ips: BTreeSet<IpNet> = self.locations[&b.location].prefixes.clone();
        allowed_ips
            .extend(self.families().iter().filter_map(|&f| inner(mesh, b, my_slot, f)).map(host));
        WgPeer {
            endpoint: endpoint.map(|ip| SocketAddr::new(ip, mesh.base_port + u16::from(my_slot.0))),
            allowed_ips,
            persistent_keepalive: mesh.keepalive,
        }
    }

    /// Adds routes for probes, which leave by a plane of their choice (SO_BINDTODEVICE), leader or not. IPv4 then takes any destination
    /// to be on that device; IPv6 needs a route out of it. These routes lose to the group's and never change.
    pub(super) fn probe_routes6(&mut self, location: &LocationName, prefixes: &[IpNet]) {
        let slots: Vec<Slot> = self.locations[location].candidates.keys().copied().collect();
        for (prefix, slot) in prefixes.iter().flat_map(|p| slots.iter().map(move |s| (p, *s))) {
            let via = RouteVia::Device { dev: plane(slot), source: None };
            self.route_in(MAIN_TABLE, *prefix, ROUTE_METRIC + 1 + u32::from(slot.0), via);
        }
    }
}
