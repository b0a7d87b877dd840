//! Inside the location: the VXLAN overlay, routes to each node's prefixes, and routes to the candidates.

use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::{Family, InterfaceName, Mac, Nexthop, RouteVia, Vxlan};

use super::ids::candidate_nexthop;
use super::{Build, RELAY_TABLE, ROUTE_METRIC, TopologyInput, host, inner, rule, slot_range};
use crate::ids::{NodeIndex, Slot};
use crate::mesh::{Node, Overlay, VxlanDevice};

/// The MAC address of a node's VXLAN device: locally administered, 'L' for the second byte, the node's index at the end.
fn overlay_mac(index: NodeIndex) -> Mac {
    let [high, low] = index.0.to_be_bytes();
    Mac([0x02, 0x4c, 0x00, 0x00, high, low])
}

/// Returns the MTU of our VXLAN device on this node. IPv6 needs at least 1280: on a smaller LAN the outer packets are fragmented.
pub(super) fn vxlan_mtu(input: &TopologyInput<'_>, me: &Node, vxlan: &VxlanDevice) -> u32 {
    let least = if input.mesh.inner.v6.is_some() { 1280 } else { 0 };
    vxlan.mtu_on(input.lan_mtu, Family::of(&me.address)).max(least)
}

impl<'a> Build<'a> {
    /// Adds everything inside the location, and the single nexthops to its candidates, which never change either.
    pub(super) fn location(&mut self) {
        let others: Vec<&'a Node> = self.locations[&self.me.location]
            .nodes
            .iter()
            .copied()
            .filter(|n| n.name != self.me.name)
            .collect();
        if let Some(overlay) = self.overlay().vxlan() {
            let device = &overlay.device;
            let vxlan = Vxlan {
                vni: overlay.vni,
                local: self.me.address,
                port: overlay.port,
                mac: overlay_mac(self.me.index),
                mtu: vxlan_mtu(self.input, self.me, overlay),
                up: true,
            };
            self.net.vxlan.insert(device.clone(), vxlan);
            for &family in self.families() {
                if let Some(ip) = inner(self.mesh(), self.me, Slot::OVERLAY, family) {
                    self.net.addresses.insert((device.clone(), host(ip)));
                }
            }
            for other in &others {
                self.overlay_entry(device, other);
            }
        }
        for other in &others {
            if !self.overlay().is_foreign() {
                self.local_prefixes(other);
            }
            self.route_to_candidate(other);
        }
        if self.overlay().vxlan().is_some() {
            self.last_hop(&others);
        }
    }

    /// Sends what comes in on a plane to its node over our VXLAN. This does not apply to what this node sends: the VXLAN's own packets
    /// go to a node's address too, and the CNI routes the location's prefixes.
    fn last_hop(&mut self, others: &[&'a Node]) {
        if self.me.slot.is_none() {
            return;
        }
        for &family in self.families() {
            let mut any = false;
            for other in others {
                let Some((dev, gateway)) = self.next_hop_to(other, family) else { continue };
                // With overlay `vxlan` they are in `main` already.
                let prefixes: &[IpNet] =
                    if self.overlay().is_foreign() { &other.prefixes } else { &[] };
                let address = self.mesh().carried_address(other).map(host);
                for prefix in prefixes.iter().copied().chain(address) {
                    if Family::of_net(&prefix) == family {
                        let via = RouteVia::Gateway { dev: dev.clone(), gateway, onlink: true };
                        self.route_in(RELAY_TABLE, prefix, ROUTE_METRIC, via);
                        any = true;
                    }
                }
            }
            if any {
                let planes: Vec<InterfaceName> = self.net.wireguard.keys().cloned().collect();
                let rules = planes.into_iter().map(|plane| rule(family, Some(plane), RELAY_TABLE));
                self.net.rules.extend(rules);
            }
        }
    }

    /// Adds what our VXLAN device needs to reach another node: address → MAC → endpoint, all static.
    fn overlay_entry(&mut self, device: &InterfaceName, other: &Node) {
        let mac = overlay_mac(other.index);
        self.net.fdb.insert((device.clone(), mac), other.address);
        for &family in self.families() {
            let Some(ip) = inner(self.mesh(), other, Slot::OVERLAY, family) else { continue };
            self.net.neighbours.insert((device.clone(), ip), mac);
            self.route(host(ip), RouteVia::Device { dev: device.clone(), source: None });
        }
    }

    fn local_prefixes(&mut self, other: &Node) {
        for prefix in &other.prefixes {
            if let Some((dev, gateway)) = self.next_hop_to(other, Family::of_net(prefix)) {
                self.route(*prefix, RouteVia::Gateway { dev, gateway, onlink: true });
            }
        }
    }

    /// Routes the inner addresses of slot j to the candidate in slot j, so that the reply to a probe crosses the candidate that the probe
    /// crossed. The candidate itself has a route to each of them as a tunnel's far end.
    fn route_to_candidate(&mut self, other: &Node) {
        let Some(slot) = other.slot else { return };
        for &family in self.families() {
            let Some((dev, gateway)) = self.next_hop_to(other, family) else { continue };
            if let Some(range) = slot_range(self.mesh(), slot, family) {
                self.route(range, RouteVia::Gateway { dev: dev.clone(), gateway, onlink: true });
            }
            let nexthop = Nexthop::Gateway { dev, gateway, onlink: true };
            self.net.nexthops.insert(candidate_nexthop(slot, family), nexthop);
        }
    }

    /// Returns the device and the gateway by which this node reaches another node of its location. `None` if the LAN device is unknown,
    /// or if the LAN address is of another family (the mesh file's check refuses that where it matters).
    pub(super) fn next_hop_to(
        &self,
        other: &Node,
        family: Family,
    ) -> Option<(InterfaceName, IpAddr)> {
        match self.overlay() {
            Overlay::Vxlan(vxlan) | Overlay::Cni(vxlan) => {
                Some((vxlan.device.clone(), inner(self.mesh(), other, Slot::OVERLAY, family)?))
            }
            Overlay::Flannel { device } => {
                let prefix = other.prefixes.iter().find(|p| Family::of_net(p) == family)?;
                Some((device.clone(), prefix.network()))
            }
            Overlay::Direct | Overlay::External => {
                let dev = self.me.device.as_ref().or(self.input.lan_device)?;
                (Family::of(&other.address) == family).then(|| (dev.clone(), other.address))
            }
        }
    }
}
