//! The packets whose way the kernel is asked for. Probes are bound to a tunnel's device, so they pass where a rule of another program
//! leads the workload's packets elsewhere.

use std::net::IpAddr;

use wgctl_plan::{Family, InterfaceName, Network};

use super::{Build, TopologyInput, locations, underlay};
use crate::ids::LocationName;
use crate::io::RouteCheck;
use crate::mesh::{Node, plane};

/// Prefixes of each end, for each other location.
const MAX_PREFIXES: usize = 16;
/// In all.
const MAX_CHECKS: usize = 256;

/// Returns packets of each kind that this node routes: on a candidate transit between other nodes of its location and other locations, both
/// ways; on all nodes what is sent from the addresses `held` within the node's own prefixes.
pub fn route_checks(input: &TopologyInput<'_>, held: &[IpAddr]) -> Vec<RouteCheck> {
    let Some(me) = input.mesh.node(input.me) else { return Vec::new() };
    let (locations, underlay) = (locations(input.mesh), underlay(input));
    let build = Build { input, me, locations, underlay, net: Network::default() };
    let mut checks = Vec::new();
    for location in build.routed_locations() {
        for &family in build.families() {
            let far = build.workloads_of(location, family);
            checks.extend(build.sent(location, family, held, &far));
            if me.slot.is_some() {
                checks.extend(build.in_transit(location, family, &far));
            }
        }
    }
    checks.truncate(MAX_CHECKS);
    checks
}

impl Build<'_> {
    /// One address in each prefix that our routes send to a location.
    fn workloads_of(&self, location: &LocationName, family: Family) -> Vec<IpAddr> {
        let prefixes = self.remote(location, family).into_iter();
        prefixes.filter_map(|p| p.hosts().next()).take(MAX_PREFIXES).collect()
    }

    fn sent(
        &self,
        location: &LocationName,
        family: Family,
        held: &[IpAddr],
        far: &[IpAddr],
    ) -> Vec<RouteCheck> {
        let own = |ip: &&IpAddr| {
            Family::of(ip) == family && self.me.prefixes.iter().any(|p| p.contains(*ip))
        };
        let Some(source) = held.iter().find(own) else { return Vec::new() };
        let check = |target: &IpAddr| RouteCheck {
            location: location.clone(),
            source: *source,
            target: *target,
            iif: None,
        };
        far.iter().map(check).collect()
    }

    /// Out of the location and into it.
    fn in_transit(
        &self,
        location: &LocationName,
        family: Family,
        far: &[IpAddr],
    ) -> impl Iterator<Item = RouteCheck> {
        let near: Vec<(InterfaceName, IpAddr)> = self.locations[&self.me.location]
            .nodes
            .iter()
            .filter(|n| n.name != self.me.name)
            .filter_map(|n| Some((self.next_hop_to(n, family)?.0, workload_of(n, family)?)))
            .take(MAX_PREFIXES)
            .collect();
        let planes = self.locations[location].candidates.keys().map(|slot| plane(*slot));
        let check = |iif: &InterfaceName, source: IpAddr, target: IpAddr| RouteCheck {
            location: location.clone(),
            source,
            target,
            iif: Some(iif.clone()),
        };
        let mut all = Vec::new();
        if let Some((lan, source)) = near.first() {
            all.extend(far.iter().map(|target| check(lan, *source, *target)));
        }
        if let Some(source) = far.first() {
            let into = planes.flat_map(|plane| {
                near.iter().map(move |(_, target)| check(&plane, *source, *target))
            });
            all.extend(into.take(MAX_PREFIXES));
        }
        all.into_iter()
    }
}

fn workload_of(node: &Node, family: Family) -> Option<IpAddr> {
    node.prefixes.iter().find(|p| Family::of_net(p) == family)?.hosts().next()
}
