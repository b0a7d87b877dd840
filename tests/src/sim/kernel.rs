//! What happens to a node's kernel besides what its daemon programs: it loses nexthop objects with a carrier, it stands still with its
//! machine.

use leaderd_core::ids::NodeName;
use leaderd_core::io::{Input, OverriddenRoute, RouteCheck};
use wgctl_plan::{InterfaceName, Network, Nexthop};

use super::path::overrides;
use super::world::{Event, NOTICE, PROGRAM, World};

/// Packets that wait at a machine that stands still: the receive ring of its device. More are lost.
pub(super) const RING: usize = 256;

/// Does what Linux does when a device loses its carrier: the nexthop objects on it go, then groups without members, then every route
/// that uses one of them. Nothing comes back with the carrier. Routes that name the device themselves stay.
///
/// (`nexthop_flush_dev` in `net/ipv4/nexthop.c`, called by `fib_sync_down_dev` through the device notifier.)
pub(super) fn drop_with_carrier(network: &mut Network, dev: &InterfaceName) {
    let on_it = |n: &Nexthop| n.device() == Some(dev);
    if !network.nexthops.values().any(on_it) {
        return;
    }
    let mut nexthops = (*network.nexthops).clone();
    nexthops.retain(|_, n| !on_it(n));
    let left: Vec<_> = nexthops.keys().copied().collect();
    for nexthop in nexthops.values_mut() {
        if let Nexthop::Group { members } = nexthop {
            members.retain(|m| left.contains(m));
        }
    }
    nexthops.retain(|_, n| !matches!(n, Nexthop::Group { members } if members.is_empty()));
    let mut routes = (*network.routes).clone();
    routes.retain(|_, via| via.nexthop().is_none_or(|id| nexthops.contains_key(&id)));
    *network.nexthops = nexthops;
    *network.routes = routes;
}

impl World {
    /// Puts a network into a node's kernel, but for what its devices without a carrier refuse. Returns the reason if there was any.
    pub(super) fn program(&mut self, name: &NodeName, mut network: Network) -> Option<String> {
        let mut refused = None;
        for dev in &self.faults[name].links_down {
            let before = network.nexthops.len();
            drop_with_carrier(&mut network, dev);
            if network.nexthops.len() < before {
                refused = Some(format!("nexthops on {dev}: network is down"));
            }
        }
        self.kernels.insert(name.clone(), network);
        refused
    }

    /// The daemon's shell asks the kernel which way packets go, and reports a change.
    pub(super) fn check_routes(&mut self, name: &NodeName) {
        let Some(kernel) = self.kernels.get(name) else { return };
        let Some(node) = self.nodes.get(name) else { return };
        let ask = |check: &RouteCheck| {
            let found = overrides(&self.faults[name], kernel, check)?;
            Some(OverriddenRoute { check: check.clone(), found: found.to_owned() })
        };
        let overridden: Vec<OverriddenRoute> = node.checks.iter().filter_map(ask).collect();
        let node = self.nodes.get_mut(name).expect("it was there");
        if node.overridden != overridden {
            node.overridden.clone_from(&overridden);
            self.schedule(NOTICE, name, Event::Input(Input::Overridden(overridden)));
        }
    }

    pub(super) fn lose_carrier(&mut self, name: &NodeName, dev: &InterfaceName) {
        if let Some(kernel) = self.kernels.get_mut(name) {
            drop_with_carrier(kernel, dev);
        }
    }

    /// The daemon's shell will notice that its network has drifted.
    pub(super) fn repair_drift(&mut self, name: &NodeName) {
        self.schedule(NOTICE, name, Event::Drifted);
    }

    /// It programs again what the core last wanted.
    pub(super) fn drifted(&mut self, name: &NodeName) {
        let node = self.nodes.get(name).filter(|n| n.core.is_some());
        if let Some((revision, network)) = node.and_then(|n| n.wanted.clone()) {
            self.schedule(PROGRAM, name, Event::Programmed { revision, network });
        }
    }

    /// Stops a machine, daemon and kernel, or lets it go on. What waited at it then comes.
    pub(super) fn freeze(&mut self, name: &NodeName, on: bool) {
        self.faults.get_mut(name).expect("a node of the mesh").frozen = on;
        self.pause_daemon(name, on);
        if on {
            return;
        }
        for held in self.held.remove(name).unwrap_or_default() {
            self.send_again(held);
        }
    }
}
