use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use wgctl_plan::{
    Family, Network, Nexthop, NexthopId, RouteKey, RouteVia, WgPublicKey, owns_nexthop,
};

use super::walk::{Beliefs, World};
use super::{
    ROUTE_METRIC, ROUTE_TABLE, TopologyInput, change_leaders, desired, leaders_group,
    location_group,
};
use crate::ids::{Generation, LocationName, NodeIndex, NodeName, Slot};
use crate::mesh::{
    ControlPublicKey, Host, InnerRange, Location, Mesh, Node, Overlay, Policy, Steering,
};

/// A location to be: its overlay, how many candidates, how many members.
type Shape = (Overlay, usize, usize);

fn vxlan() -> Overlay {
    Overlay::Vxlan { device: "lvx0".parse().unwrap(), vni: 7946, port: 4790, mtu: 1450 }
}

/// Locations a, b, c, … of these shapes; nodes a-0, a-1, …; a-2's workload is 10.{location}.{node}.0/24.
fn mesh(shapes: &[Shape], v6: bool) -> Mesh {
    let (mut locations, mut nodes, mut index) = (BTreeMap::new(), BTreeMap::new(), 0u16);
    for (l, (overlay, candidates, members)) in shapes.iter().enumerate() {
        let location: LocationName = char::from(b'a' + l as u8).to_string().parse().unwrap();
        // A dual-stack workload needs an overlay that carries both.
        let dual = v6 && matches!(overlay, Overlay::Vxlan { .. });
        for n in 0..candidates + members {
            index += 1;
            let name: NodeName = format!("{location}-{n}").parse().unwrap();
            let mut prefixes = vec![format!("10.{l}.{n}.0/24").parse().unwrap()];
            if dual {
                prefixes.push(format!("fd00:0:{l}:{n}::/64").parse().unwrap());
            }
            let node = Node {
                name: name.clone(),
                index: NodeIndex(index),
                location: location.clone(),
                slot: (n < *candidates).then_some(Slot(n as u8)),
                priority: 100,
                endpoint: (n < *candidates)
                    .then(|| Host::Ip(format!("198.51.{l}.{}", n + 1).parse().unwrap())),
                address: format!("192.168.{l}.{}", n + 1).parse().unwrap(),
                device: None,
                prefixes,
                probe_addresses: vec![format!("10.{l}.{n}.1").parse().unwrap()],
                wireguard_key: WgPublicKey([index as u8; 32]),
                control_key: ControlPublicKey([index as u8; 32]),
            };
            nodes.insert(name, node);
        }
        locations.insert(
            location.clone(),
            Location {
                name: location,
                overlay: overlay.clone(),
                witnesses: vec![],
                services: vec![],
                reflectors: vec![],
                steering: Default::default(),
                policy: None,
            },
        );
    }
    Mesh {
        name: "test".into(),
        generation: Generation(1),
        hash: [0; 32],
        index: Default::default(),
        inner: InnerRange {
            v4: "100.127.0.0/16".parse().unwrap(),
            v6: v6.then(|| "fd4c:eade:0:1::/112".parse().unwrap()),
        },
        base_port: 51900,
        control_port: 7946,
        probe_ports: vec![8620],
        mtu: 1420,
        keepalive: 10,
        policy: Policy::default(),
        locations,
        nodes,
    }
}

/// Kilo issue #489: three nodes on-premises, three in the cloud, all candidates.
fn hybrid() -> Mesh {
    mesh(&[(vxlan(), 3, 0), (vxlan(), 3, 0)], false)
}

fn network(mesh: &Mesh, me: &str, leaders: &[(&str, &[u8])]) -> Network {
    let leaders: Beliefs = leaders
        .iter()
        .map(|(l, slots)| (l.parse().unwrap(), slots.iter().map(|&s| Slot(s)).collect()))
        .collect();
    let lan = "eth0".parse().unwrap();
    let (me, resolved) = (me.parse().unwrap(), BTreeMap::new());
    desired(&TopologyInput {
        mesh,
        me: &me,
        leaders: &leaders,
        resolved: &resolved,
        lan_device: Some(&lan),
        carried: &Default::default(),
    })
}

fn route<'n>(net: &'n Network, prefix: &str) -> Option<&'n RouteVia> {
    net.routes.get(&RouteKey {
        table: ROUTE_TABLE,
        prefix: prefix.parse().unwrap(),
        metric: ROUTE_METRIC,
    })
}

fn gateway(dev: &str, ip: &str) -> RouteVia {
    RouteVia::Gateway { dev: dev.parse().unwrap(), gateway: ip.parse().unwrap(), onlink: true }
}

#[test]
fn a_plane_is_named_after_the_slot_of_the_far_end() {
    // a-1 is node 2, in slot 1; b-0, b-1, b-2 are nodes 4, 5, 6.
    let net = network(&hybrid(), "a-1", &[]);
    assert_eq!(
        net.wireguard.keys().map(|k| k.as_str()).collect::<Vec<_>>(),
        ["wgl0", "wgl1", "wgl2"]
    );
    let wgl2 = &net.wireguard[&"wgl2".parse().unwrap()];
    assert_eq!((wgl2.listen_port, wgl2.mtu, wgl2.up), (51902, 1420, true));
    assert_eq!(wgl2.public_key, Some(WgPublicKey([2; 32])));
    assert_eq!(wgl2.peers.keys().collect::<Vec<_>>(), [&WgPublicKey([6; 32])], "b-2 only");
    let peer = &wgl2.peers[&WgPublicKey([6; 32])];
    assert_eq!(
        peer.endpoint,
        Some("198.51.1.3:51901".parse().unwrap()),
        "b-2's interface for slot 1"
    );
    let allowed: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24", "100.127.16.6/32"]);
    assert_eq!(peer.persistent_keepalive, 10);
    assert!(net.addresses.contains(&("wgl2".parse().unwrap(), "100.127.32.2/32".parse().unwrap())));
    let to_b2 = RouteVia::Device { dev: "wgl2".parse().unwrap(), source: None };
    assert_eq!(route(&net, "100.127.16.6/32"), Some(&to_b2));
}

#[test]
fn inside_a_vxlan_location_everything_goes_by_overlay_addresses() {
    let net = network(&mesh(&[(vxlan(), 2, 1), (vxlan(), 1, 0)], false), "a-2", &[]);
    let lvx0 = || "lvx0".parse().unwrap();
    assert!(net.wireguard.is_empty(), "a member has no tunnels");
    assert_eq!(net.vxlan[&lvx0()].local, "192.168.0.3".parse::<IpAddr>().unwrap());
    assert_eq!(net.vxlan[&lvx0()].mac.to_string(), "02:4c:00:00:00:03");
    assert!(net.addresses.contains(&(lvx0(), "100.127.240.3/32".parse().unwrap())));
    let mac = net.neighbours[&(lvx0(), "100.127.240.1".parse().unwrap())];
    assert_eq!(mac.to_string(), "02:4c:00:00:00:01");
    assert_eq!(net.fdb[&(lvx0(), mac)], "192.168.0.1".parse::<IpAddr>().unwrap());
    let table = [
        ("10.0.0.0/24", Some(gateway("lvx0", "100.127.240.1"))),
        ("10.0.2.0/24", None),
        ("100.127.0.0/20", Some(gateway("lvx0", "100.127.240.1"))),
        ("100.127.16.0/20", Some(gateway("lvx0", "100.127.240.2"))),
        ("100.127.240.1/32", Some(RouteVia::Device { dev: lvx0(), source: None })),
        ("10.1.0.0/24", Some(RouteVia::Nexthop(leaders_group(Family::V4)))),
    ];
    for (prefix, via) in table {
        assert_eq!(route(&net, prefix), via.as_ref(), "{prefix}");
    }
}

#[test]
fn direct_and_external_locations_use_the_lan_and_external_leaves_local_prefixes_to_the_cni() {
    for (overlay, local) in
        [(Overlay::Direct, Some(gateway("eth0", "192.168.0.1"))), (Overlay::External, None)]
    {
        let net = network(&mesh(&[(overlay.clone(), 1, 1), (vxlan(), 1, 0)], false), "a-1", &[]);
        assert!(net.vxlan.is_empty());
        assert_eq!(route(&net, "10.0.0.0/24"), local.as_ref(), "{overlay:?}");
        assert_eq!(
            route(&net, "100.127.0.0/20"),
            Some(&gateway("eth0", "192.168.0.1")),
            "{overlay:?}"
        );
        assert_eq!(
            route(&net, "10.1.0.0/24"),
            Some(&RouteVia::Nexthop(leaders_group(Family::V4))),
            "{overlay:?}"
        );
    }
}

#[test]
fn a_candidate_does_not_route_the_range_of_its_own_slot() {
    let net = network(&hybrid(), "a-1", &[]);
    assert_eq!(route(&net, "100.127.16.0/20"), None);
    assert_eq!(route(&net, "100.127.0.0/20"), Some(&gateway("lvx0", "100.127.240.1")));
    assert_eq!(route(&net, "100.127.32.0/20"), Some(&gateway("lvx0", "100.127.240.3")));
}

/// The nexthops in which two networks differ; everything else must be equal.
fn changed_nexthops(mut before: Network, mut after: Network) -> Vec<NexthopId> {
    let (old, new) = (std::mem::take(&mut before.nexthops), std::mem::take(&mut after.nexthops));
    assert_eq!(before, after, "a failover changes nexthops only");
    assert_eq!(
        old.keys().collect::<Vec<_>>(),
        new.keys().collect::<Vec<_>>(),
        "none comes or goes"
    );
    new.iter().filter(|(id, hop)| old[id] != **hop).map(|(id, _)| *id).collect()
}

#[test]
fn a_failover_changes_one_nexthop_group_per_family_and_nothing_else() {
    let mesh = mesh(&[(vxlan(), 2, 1), (vxlan(), 3, 2), (vxlan(), 2, 0)], true);
    let b: LocationName = "b".parse().unwrap();
    let groups = |f: [Family; 2]| f.map(|f| location_group(&mesh, &b, f).unwrap()).to_vec();
    let both = [Family::V4, Family::V6];
    let table = [
        ("a-0", groups(both), "a candidate elsewhere"),
        ("c-1", groups(both), "another one"),
        ("a-2", vec![], "a member elsewhere does not care"),
        ("b-3", both.map(leaders_group).to_vec(), "a member of the location"),
        ("b-0", vec![], "the old leader keeps forwarding as before"),
        ("b-1", vec![], "and the new one did already"),
    ];
    for (me, want, why) in table {
        let changed = changed_nexthops(
            network(&mesh, me, &[("b", &[0])]),
            network(&mesh, me, &[("b", &[1])]),
        );
        assert_eq!(changed, want, "{me}: {why}");
    }
}

#[test]
fn several_leaders_are_an_ecmp_group() {
    let net = network(&hybrid(), "a-0", &[("b", &[2, 0])]);
    let id = location_group(&hybrid(), &"b".parse().unwrap(), Family::V4).unwrap();
    let Nexthop::Group { members } = &net.nexthops[&id] else { panic!("no group") };
    let devs: Vec<&Nexthop> = members.iter().map(|m| &net.nexthops[m]).collect();
    let dev = |d: &str| Nexthop::Device { dev: d.parse().unwrap(), family: Family::V4 };
    assert_eq!(devs, [&dev("wgl0"), &dev("wgl2")]);
}

#[test]
fn nexthop_ids_do_not_change_when_a_location_is_added() {
    let small = network(&mesh(&[(vxlan(), 2, 1), (vxlan(), 2, 0)], true), "a-0", &[]);
    let large =
        network(&mesh(&[(vxlan(), 2, 1), (vxlan(), 2, 0), (vxlan(), 3, 0)], true), "a-0", &[]);
    for (id, hop) in &small.nexthops {
        assert_eq!(large.nexthops.get(id), Some(hop));
    }
    for (key, via) in &small.routes {
        assert_eq!(large.routes.get(key), Some(via));
    }
    assert!(large.nexthops.keys().all(|id| owns_nexthop(*id)));
}

#[test]
fn ipv6_probes_find_a_route_out_of_every_plane_of_the_location() {
    let net = network(&mesh(&[(vxlan(), 1, 0), (vxlan(), 2, 0)], true), "a-0", &[("b", &[0])]);
    for slot in 0..2u8 {
        let prefix = "fd00:0:1:1::/64".parse().unwrap();
        let key =
            RouteKey { table: ROUTE_TABLE, prefix, metric: ROUTE_METRIC + 1 + u32::from(slot) };
        let via = RouteVia::Device { dev: format!("wgl{slot}").parse().unwrap(), source: None };
        assert_eq!(net.routes.get(&key), Some(&via));
    }
}

#[test]
fn a_leader_that_is_no_candidate_gives_way_to_the_ranking() {
    let mut mesh = hybrid();
    mesh.nodes.get_mut(&"b-2".parse::<NodeName>().unwrap()).unwrap().priority = 1;
    for told in [&[][..], &[("b", &[9u8][..])][..], &[("b", &[][..])][..]] {
        assert_eq!(network(&mesh, "a-0", told), network(&mesh, "a-0", &[("b", &[2])]));
    }
}

#[test]
fn odd_meshes_have_a_network_too() {
    let alone = network(&mesh(&[(vxlan(), 2, 1)], false), "a-0", &[]);
    assert!(alone.wireguard.is_empty());
    let members_only = mesh(&[(vxlan(), 0, 2), (Overlay::Direct, 2, 1)], true);
    for me in members_only.nodes.keys() {
        network(&members_only, me.as_str(), &[]);
    }
    assert_eq!(network(&members_only, "nobody", &[]), Network::default());
    let (me, none, resolved) = ("b-2".parse().unwrap(), Beliefs::new(), BTreeMap::new());
    let input = TopologyInput {
        mesh: &members_only,
        me: &me,
        leaders: &none,
        resolved: &resolved,
        lan_device: None,
        carried: &Default::default(),
    };
    assert!(desired(&input).routes.is_empty(), "without a LAN device there is no way to name");
}

#[test]
fn an_endpoint_by_name_is_what_the_shell_resolved() {
    let mut mesh = hybrid();
    mesh.nodes.get_mut(&"b-0".parse::<NodeName>().unwrap()).unwrap().endpoint =
        Some(Host::Name("b.example".into()));
    let (me, none) = ("a-1".parse().unwrap(), Beliefs::new());
    let endpoint = |resolved: &BTreeMap<String, IpAddr>| {
        let net = desired(&TopologyInput {
            mesh: &mesh,
            me: &me,
            leaders: &none,
            resolved,
            lan_device: None,
            carried: &Default::default(),
        });
        net.wireguard[&"wgl0".parse().unwrap()].peers[&WgPublicKey([4; 32])].endpoint
    };
    assert_eq!(endpoint(&BTreeMap::new()), None);
    let resolved = BTreeMap::from([("b.example".to_owned(), "203.0.113.9".parse().unwrap())]);
    assert_eq!(endpoint(&resolved), Some("203.0.113.9:51901".parse().unwrap()));
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let overlay = prop_oneof![Just(vxlan()), Just(Overlay::Direct), Just(Overlay::External)];
    proptest::collection::vec((overlay, 1usize..4, 0usize..3), 1..4)
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

proptest! {
    /// Also where Kilo steers, and where nothing can be reached.
    #[test]
    fn a_change_of_leaders_alone_comes_to_the_same_as_the_whole_network(
        shapes in shapes(), v6: bool, steering in 0..3u8, observed in 0..3usize, carry: bool, lan: bool,
        before in proptest::collection::vec(any::<u8>(), 1..64),
        after in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut mesh = mesh(&shapes, v6);
        let steering = [Steering::Native, Steering::Kilo, Steering::Observe][usize::from(steering)];
        mesh.locations.values_mut().for_each(|l| l.steering = steering);
        if let Some(l) = mesh.locations.values_mut().nth(observed) {
            l.steering = Steering::Observe;
        }
        let (resolved, device) = (BTreeMap::new(), "eth0".parse().unwrap());
        let carried: BTreeSet<_> = mesh.locations.keys().filter(|_| carry).cloned().collect();
        let (before, after) = (beliefs(&mesh, &before), beliefs(&mesh, &after));
        for me in mesh.nodes.keys() {
            for location in mesh.locations.keys() {
                let old = before[me].clone();
                let mut leaders = old.clone();
                leaders.insert(location.clone(), after[me][location].clone());
                let lan_device = lan.then_some(&device);
                let input = |leaders| {
                    TopologyInput { mesh: &mesh, me, leaders, resolved: &resolved, lan_device, carried: &carried }
                };
                let mut net = desired(&input(&old));
                let whole = desired(&input(&leaders));
                let told = change_leaders(&mut net, &input(&leaders), location);
                let group = location_group(&mesh, location, Family::V4);
                prop_assert!(told || !whole.nexthops.contains_key(&group.unwrap()), "too simply");
                if told {
                    prop_assert_eq!(&net, &whole);
                }
            }
        }
    }

    #[test]
    fn every_packet_arrives_without_a_loop_whatever_the_nodes_believe(
        shapes in shapes(), v6: bool, bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let mesh = mesh(&shapes, v6);
        let world = World::new(&mesh, &beliefs(&mesh, &bits));
        for from in mesh.nodes.values() {
            for to in mesh.nodes.values() {
                for source in workloads(from) {
                    for target in workloads(to).into_iter().filter(|t| t.is_ipv4() == source.is_ipv4()) {
                        for walk in world.send(from, source, target) {
                            let walk = walk.map_err(TestCaseError::fail)?;
                            prop_assert_eq!(walk.last(), Some(&to.name));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_probe_crosses_the_candidate_it_is_about_both_ways_whatever_the_nodes_believe(
        shapes in shapes(), v6: bool, bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let mesh = mesh(&shapes, v6);
        let world = World::new(&mesh, &beliefs(&mesh, &bits));
        let candidates = || mesh.nodes.values().filter_map(|n| Some((n, n.slot?)));
        for (a, _) in candidates() {
            for (b, j) in candidates().filter(|(b, _)| b.location != a.location) {
                for target_node in mesh.nodes_of(&b.location) {
                    for target in workloads(target_node) {
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
