//! Random meshes and beliefs: where every packet goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use wgctl_plan::{Family, RouteVia};

use super::super::{TopologyInput, change_relays, desired, location_group};
use super::walk::{AllRelays, Beliefs, World};
use super::{Shape, cni, flannel, mesh, vxlan};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Mesh, Node, Overlay, Steering};
use crate::relay_pair::Relays;

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let overlay = prop_oneof![2 => Just(vxlan()), 1 => Just(Overlay::Direct), 1 => Just(Overlay::External), 1 => Just(flannel()), 3 => Just(cni())];
    proptest::collection::vec((overlay, 1usize..4, 0usize..3), 1..4)
}

/// A mesh, and what its endpoints' names resolve to.
type Varied = (Mesh, BTreeMap<String, IpAddr>);

/// Locations that carry their nodes' addresses or do not, have prefixes besides, and the same LAN all of them or not; candidates that are
/// reached at an address of their own, at their LAN's, or by a name for either.
fn varied() -> impl Strategy<Value = Varied> {
    let bits = proptest::collection::vec(any::<u8>(), 1..16);
    (shapes(), any::<bool>(), proptest::bool::weighted(0.2), bits).prop_map(
        |(shapes, v6, same_lan, bits)| {
            let (mut mesh, mut resolved) = (mesh(&shapes, v6), BTreeMap::new());
            let mut bits = bits.into_iter().cycle();
            for (l, location) in mesh.edit().locations.values_mut().enumerate() {
                location.node_addresses = bits.next().unwrap() % 4 != 0;
                if bits.next().unwrap() % 2 == 0 {
                    location.prefixes.push(additional_prefix(l));
                }
            }
            for node in mesh.edit().nodes.values_mut() {
                if same_lan {
                    let last = node.address.to_string().rsplit('.').next().unwrap().to_owned();
                    node.address = format!("192.168.0.{last}").parse().unwrap();
                }
                let Some(Host::Ip(public)) = node.endpoint else { continue };
                let kind = bits.next().unwrap() % 4;
                // Two candidates have no endpoint in common.
                let at = if kind % 2 == 1 && !same_lan { node.address } else { public };
                node.endpoint = Some(Host::Ip(at));
                if kind >= 2 {
                    let name = format!("{}.example", node.name);
                    resolved.insert(name.clone(), at);
                    node.endpoint = Some(Host::Name(name));
                }
            }
            (mesh, resolved)
        },
    )
}

/// The additional prefix of the location with this number.
fn additional_prefix(location: usize) -> IpNet {
    format!("172.20.{location}.0/24").parse().unwrap()
}

/// The address of a node where others reach it, and are reached, through the mesh.
fn carried(mesh: &Mesh, resolved: &BTreeMap<String, IpAddr>, node: &Node) -> Option<IpAddr> {
    mesh.carried_address(node).filter(|a| !resolved.values().any(|r| r == a))
}

/// Where the walk leaves its location it does so between candidates, and once.
fn crosses_once_between_candidates(mesh: &Mesh, walk: &[NodeName]) -> bool {
    let crossings: Vec<_> = walk
        .windows(2)
        .map(|w| (&mesh.nodes[&w[0]], &mesh.nodes[&w[1]]))
        .filter(|(a, b)| a.location != b.location)
        .collect();
    matches!(crossings[..], [(a, b)] if a.slot.is_some() && b.slot.is_some())
}

/// What each node believes, drawn from bits: any set of slots for any location, also none and wrong ones.
fn beliefs(mesh: &Mesh, bits: &[u8]) -> BTreeMap<NodeName, Beliefs> {
    let mut bits = bits.iter().cycle();
    let mut belief = || -> Beliefs {
        let draw = |l: &LocationName| {
            let bits = *bits.next().unwrap();
            (l.clone(), (0..4).filter(|s| bits >> s & 1 == 1).map(Slot).collect())
        };
        mesh.locations.keys().map(draw).collect()
    };
    mesh.nodes.keys().map(|n| (n.clone(), belief())).collect()
}

/// An address in each of a node's workload prefixes.
fn workloads(node: &Node) -> Vec<IpAddr> {
    node.prefixes.iter().filter_map(|p| p.hosts().nth(4)).collect()
}

/// The relays that each node believes in, drawn from bits: of some locations any slots, also none and wrong ones.
fn all_relays(mesh: &Mesh, bits: &[u8]) -> AllRelays {
    let mut bits = bits.iter().rev().cycle();
    let mut draw = |l: &LocationName| {
        let bits = *bits.next().unwrap();
        let slots = |bits: u8| (0..4).filter(|s| bits >> s & 1 == 1).map(Slot).collect();
        (!bits.is_multiple_of(3))
            .then(|| (l.clone(), Relays { near: slots(bits), far: slots(bits >> 4) }))
    };
    let mut of = |n: &Node| {
        let others = mesh.locations.keys().filter(|l| **l != n.location);
        others.filter_map(&mut draw).collect()
    };
    mesh.nodes.values().map(|n| (n.name.clone(), of(n))).collect()
}

/// One relay pair for each two locations that have candidates, known to all nodes.
fn agreed_relays(mesh: &Mesh, bits: &[u8]) -> AllRelays {
    let mut bits = bits.iter().cycle();
    let mut all: AllRelays = BTreeMap::new();
    let locations: Vec<&LocationName> = mesh.locations.keys().collect();
    for (n, low) in locations.iter().enumerate() {
        for high in &locations[n + 1..] {
            let mut pick = |l: &LocationName| {
                let slots: Vec<Slot> = mesh.candidates_of(l).into_keys().collect();
                slots[usize::from(*bits.next().unwrap()) % slots.len()]
            };
            let (i, j) = (pick(low), pick(high));
            for (here, there, near, far) in [(low, high, i, j), (high, low, j, i)] {
                for node in mesh.nodes_of(here) {
                    let relays = Relays { near: vec![near], far: vec![far] };
                    all.entry(node.name.clone()).or_default().insert((*there).clone(), relays);
                }
            }
        }
    }
    all
}

proptest! {
    #[test]
    fn both_directions_of_a_flow_cross_the_same_nodes_where_all_agree_on_leaders_and_relays(
        (mesh, resolved) in varied(), bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let leader = |l: &LocationName| {
            let slots: Vec<Slot> = mesh.candidates_of(l).into_keys().collect();
            (l.clone(), vec![slots[usize::from(bits[0]) % slots.len()]])
        };
        let leaders: Beliefs = mesh.locations.keys().map(leader).collect();
        let beliefs = mesh.nodes.keys().map(|n| (n.clone(), leaders.clone())).collect();
        for relays in [AllRelays::new(), agreed_relays(&mesh, &bits)] {
            let world = World::new(&mesh, &resolved, &beliefs, &relays);
            let of = |node| workloads(node).into_iter().chain(carried(&mesh, &resolved, node));
            for from in mesh.nodes.values() {
                for to in mesh.nodes.values().filter(|to| to.location != from.location) {
                    for source in of(from) {
                        for target in of(to).filter(|t| t.is_ipv4() == source.is_ipv4()) {
                            let there = world.send(from, source, target).remove(0).map_err(TestCaseError::fail)?;
                            let mut back = world.send(to, target, source).remove(0).map_err(TestCaseError::fail)?;
                            back.reverse();
                            prop_assert_eq!(there, back);
                        }
                    }
                }
            }
        }
    }

    /// Also where Kilo steers, and where nothing can be reached.
    #[test]
    fn the_fast_path_of_other_leaders_and_relays_equals_the_full_recompute(
        (mesh, resolved) in varied(), steering in 0..3u8, observed in 0..3usize, carry: bool, lan: bool,
        before in proptest::collection::vec(any::<u8>(), 1..64),
        after in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut mesh = mesh;
        let steering = [Steering::Native, Steering::Kilo, Steering::Observe][usize::from(steering)];
        mesh.edit().locations.values_mut().for_each(|l| l.steering = steering);
        if let Some(l) = mesh.edit().locations.values_mut().nth(observed) {
            l.steering = Steering::Observe;
        }
        let device = "eth0".parse().unwrap();
        let carried: BTreeSet<_> = mesh.locations.keys().filter(|_| carry).cloned().collect();
        let (relays, then) = (all_relays(&mesh, &before), all_relays(&mesh, &after));
        let (before, after) = (beliefs(&mesh, &before), beliefs(&mesh, &after));
        for me in mesh.nodes.keys() {
            for location in mesh.locations.keys() {
                let old = before[me].clone();
                let (mut leaders, mut exceptions) = (old.clone(), relays[me].clone());
                leaders.insert(location.clone(), after[me][location].clone());
                exceptions.remove(location);
                exceptions.extend(then[me].get(location).map(|r| (location.clone(), r.clone())));
                let lan_device = lan.then_some(&device);
                let input = |leaders, relays| {
                    TopologyInput { mesh: &mesh, me, leaders, relays, resolved: &resolved, lan_device, lan_mtu: None, holds_address: true, carried: &carried }
                };
                let mut net = desired(&input(&old, &relays[me]));
                let whole = desired(&input(&leaders, &exceptions));
                let changed = change_relays(&mut net, &input(&leaders, &exceptions), [location]);
                let group = location_group(&mesh, location, Family::V4);
                prop_assert!(changed || !whole.nexthops.contains_key(&group.unwrap()), "a full recompute was not needed");
                if changed {
                    prop_assert_eq!(&net, &whole);
                }
            }
        }
    }

    #[test]
    fn every_packet_arrives_without_a_loop_whatever_the_nodes_believe(
        (mesh, resolved) in varied(), bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let world = World::new(&mesh, &resolved, &beliefs(&mesh, &bits), &all_relays(&mesh, &bits));
        let of = |node| workloads(node).into_iter().chain(carried(&mesh, &resolved, node));
        for from in mesh.nodes.values() {
            for to in mesh.nodes.values().filter(|to| to.name != from.name) {
                for source in of(from) {
                    for target in of(to).filter(|t| t.is_ipv4() == source.is_ipv4()) {
                        for walk in world.send(from, source, target) {
                            let walk = walk.map_err(TestCaseError::fail)?;
                            prop_assert_eq!(walk.last(), Some(&to.name));
                            if from.location != to.location {
                                prop_assert!(crosses_once_between_candidates(&mesh, &walk), "{:?}", walk);
                            }
                        }
                    }
                }
            }
            let others = mesh.locations.iter().enumerate().filter(|(_, (name, _))| **name != from.location);
            for (l, (name, _)) in others.filter(|(_, (_, l))| !l.prefixes.is_empty()) {
                let (source, target) = (workloads(from)[0], additional_prefix(l).hosts().nth(4).unwrap());
                for walk in world.send(from, source, target) {
                    let walk = walk.map_err(TestCaseError::fail)?;
                    prop_assert_eq!(&mesh.nodes[walk.last().unwrap()].location, name);
                    prop_assert!(crosses_once_between_candidates(&mesh, &walk), "{:?}", walk);
                }
            }
        }
    }

    /// Names that are not resolved, too.
    #[test]
    fn no_outer_packet_takes_a_route_of_ours_whatever_the_nodes_believe(
        (mesh, resolved) in varied(), known: u8, bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let known = resolved.clone().into_iter().enumerate().filter(|(i, _)| known >> (i % 8) & 1 == 1);
        let known = known.map(|(_, of)| of).collect();
        let world = World::new(&mesh, &known, &beliefs(&mesh, &bits), &all_relays(&mesh, &bits));
        for from in mesh.nodes.values() {
            for to in mesh.nodes.values().filter(|to| to.name != from.name) {
                let mut outer = Vec::new();
                if to.location == from.location {
                    outer.push(to.address);
                } else {
                    outer.extend(match &to.endpoint {
                        Some(Host::Ip(ip)) => Some(*ip),
                        // Also where the name is not resolved here: the far end may begin, and is answered.
                        Some(Host::Name(name)) => Some(resolved[name]),
                        None => None,
                    });
                }
                for target in outer {
                    prop_assert_eq!(world.caught(from, target), None, "{} to {}", from.name, target);
                }
            }
            // What a node sends of its own accord from its address is taken at the far end.
            let sources = world.net(from).routes.values().filter_map(RouteVia::source);
            for source in sources {
                prop_assert_eq!(Some(source), mesh.carried_address(from));
            }
        }
    }

    #[test]
    fn a_probe_crosses_the_candidate_it_is_about_both_ways_whatever_the_nodes_believe(
        (mesh, resolved) in varied(), bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let world = World::new(&mesh, &resolved, &beliefs(&mesh, &bits), &all_relays(&mesh, &bits));
        let candidates = || mesh.nodes.values().filter_map(|n| Some((n, n.slot?)));
        for (a, _) in candidates() {
            for (b, j) in candidates().filter(|(b, _)| b.location != a.location) {
                for target_node in mesh.nodes_of(&b.location) {
                    for target in workloads(target_node).into_iter().chain(mesh.carried_address(target_node)) {
                        let source: IpAddr =
                            if target.is_ipv4() { mesh.inner4(a, j).into() } else { mesh.inner6(a, j).unwrap().into() };
                        for there in world.send_by_plane(a, j, source, target) {
                            let there = there.map_err(TestCaseError::fail)?;
                            prop_assert_eq!(&there[1], &b.name);
                            prop_assert_eq!(there.last(), Some(&target_node.name));
                        }
                        for back in world.send(target_node, target, source) {
                            let back = back.map_err(TestCaseError::fail)?;
                            prop_assert_eq!(back.last(), Some(&a.name));
                            prop_assert_eq!(&back[back.len() - 2], &b.name);
                        }
                    }
                }
            }
        }
    }
}
