use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use wgctl_plan::{
    Family, Network, Nexthop, NexthopId, RouteKey, RouteVia, WgPublicKey, owns_nexthop,
};

use super::walk::{Beliefs, World};
use super::{
    RELAY_TABLE, ROUTE_METRIC, ROUTE_TABLE, TopologyInput, change_leaders, desired, leaders_group,
    location_group, notes,
};
use crate::ids::{Generation, LocationName, NodeIndex, NodeName, Slot};
use crate::mesh::{
    ControlPublicKey, Host, InnerRange, Location, Mesh, Node, Overlay, Policy, Steering,
    VxlanDevice,
};

/// A location to be: its overlay, how many candidates, how many members.
type Shape = (Overlay, usize, usize);

fn vxlan() -> Overlay {
    Overlay::Vxlan(VxlanDevice::default())
}

fn cni() -> Overlay {
    Overlay::Cni(VxlanDevice::default())
}

fn flannel() -> Overlay {
    Overlay::Flannel { device: "flannel.1".parse().unwrap() }
}

/// Locations a, b, c, … of these shapes; nodes a-0, a-1, …; a-2's workload is 10.{location}.{node}.0/24.
fn mesh(shapes: &[Shape], v6: bool) -> Mesh {
    let (mut locations, mut nodes, mut index) = (BTreeMap::new(), BTreeMap::new(), 0u16);
    for (l, (overlay, candidates, members)) in shapes.iter().enumerate() {
        let location: LocationName = char::from(b'a' + l as u8).to_string().parse().unwrap();
        // A dual-stack workload needs an overlay that carries both.
        let dual = v6 && overlay.vxlan().is_some();
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
                probe_addresses_written: false,
                wireguard_key: WgPublicKey([index as u8; 32]),
                control_key: ControlPublicKey([index as u8; 32]),
            };
            nodes.insert(name, node);
        }
        locations.insert(location.clone(), Location::new(location, overlay.clone()));
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
        commands: Default::default(),
        proof: Default::default(),
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
        lan_mtu: None,
        holds_address: true,
        carried: &Default::default(),
    })
}

fn route<'n>(net: &'n Network, prefix: &str) -> Option<&'n RouteVia> {
    route_in(net, ROUTE_TABLE, prefix)
}

fn route_in<'n>(net: &'n Network, table: u32, prefix: &str) -> Option<&'n RouteVia> {
    let prefix = prefix.parse().unwrap();
    net.routes.get(&RouteKey { table, prefix, metric: ROUTE_METRIC })
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

/// What a node leaves untracked: own, near and far.
fn untracked(mesh: &Mesh, me: &str) -> Option<[String; 3]> {
    let transit = network(mesh, me, &[]).untracked.as_ref()?.clone();
    let text =
        |p: &wgctl_plan::Prefixes| p.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Some([text(&transit.own), text(&transit.near), text(&transit.far)])
}

#[test]
fn candidates_leave_transit_untracked_where_a_cni_carries_the_location() {
    let flannel = || Overlay::Flannel { device: "flannel.1".parse().unwrap() };
    let mut mesh = mesh(
        &[(Overlay::External, 2, 1), (flannel(), 1, 0), (vxlan(), 1, 0), (Overlay::Direct, 1, 0)],
        true,
    );
    let v6 = "fd4c:eade:0:1::/112";
    let [own, near, far] = untracked(&mesh, "a-1").unwrap();
    assert_eq!(own, "10.0.1.0/24");
    assert_eq!(near, format!("10.0.0.0/23 10.0.2.0/24 100.127.0.0/16 {v6}"));
    assert_eq!(
        far,
        format!("10.1.0.0/24 10.2.0.0/24 10.3.0.0/24 100.127.0.0/16 fd00:0:2::/64 {v6}")
    );
    assert!(untracked(&mesh, "b-0").is_some());
    let [own, near, of_member] = untracked(&mesh, "a-2").unwrap();
    assert_eq!((own.as_str(), near.as_str()), ("10.0.2.0/24", ""), "a member relays nothing");
    assert_eq!(of_member, far);
    assert_eq!((untracked(&mesh, "c-0"), untracked(&mesh, "d-0")), (None, None), "no CNI");
    for location in mesh.locations.values_mut() {
        location.track_transit = Some(!location.tracks_transit());
    }
    assert_eq!((untracked(&mesh, "a-1"), untracked(&mesh, "b-0")), (None, None));
    assert!(untracked(&mesh, "c-0").is_some() && untracked(&mesh, "d-0").is_some());
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
        ("10.1.0.0/24", Some(RouteVia::Nexthop { id: leaders_group(Family::V4), source: None })),
    ];
    for (prefix, via) in table {
        assert_eq!(route(&net, prefix), via.as_ref(), "{prefix}");
    }
}

#[test]
fn direct_and_external_locations_use_the_lan_and_external_leaves_local_prefixes_to_the_cni() {
    let cases = [
        (Overlay::Direct, Some(gateway("eth0", "192.168.0.1")), ROUTE_TABLE),
        (Overlay::External, None, 760_003),
    ];
    for (overlay, local, table) in cases {
        let net = network(&mesh(&[(overlay.clone(), 1, 1), (vxlan(), 1, 0)], false), "a-1", &[]);
        assert!(net.vxlan.is_empty());
        assert_eq!(route(&net, "10.0.0.0/24"), local.as_ref(), "{overlay:?}");
        assert_eq!(
            route(&net, "100.127.0.0/20"),
            Some(&gateway("eth0", "192.168.0.1")),
            "{overlay:?}"
        );
        assert_eq!(
            route_in(&net, table, "10.1.0.0/24"),
            Some(&RouteVia::Nexthop { id: leaders_group(Family::V4), source: None }),
            "{overlay:?}"
        );
        let rules: Vec<String> = net.rules.iter().map(ToString::to_string).collect();
        let own = (table != ROUTE_TABLE).then(|| "76: IPv4 from all lookup 760003".to_owned());
        assert_eq!(rules, own.into_iter().collect::<Vec<_>>(), "{overlay:?}");
    }
}

/// Two nodes of a location with a CNI, one of them a candidate, and one elsewhere; the location has a prefix besides.
fn beside_a_cni() -> Mesh {
    let mut mesh = mesh(&[(cni(), 1, 1), (cni(), 1, 0)], true);
    let a = mesh.locations.get_mut(&"a".parse::<LocationName>().unwrap()).unwrap();
    a.prefixes.push("192.168.0.0/24".parse().unwrap());
    mesh.locations.values_mut().for_each(|l| l.node_addresses = true);
    mesh
}

#[test]
fn beside_a_cni_what_is_remote_crosses_our_vxlan_both_ways_and_what_is_local_is_left_alone() {
    let mesh = beside_a_cni();
    let (relay, member) = (network(&mesh, "a-0", &[]), network(&mesh, "a-1", &[]));
    assert!(route(&relay, "10.0.1.0/24").is_none() && route(&member, "10.0.0.0/24").is_none());
    // To b, whose lowest index is 3, a member goes by its leader, from its own address.
    let source = |ip: &str| Some(ip.parse().unwrap());
    let id = leaders_group(Family::V4);
    let by_leader = RouteVia::Nexthop { id, source: source("192.168.0.2") };
    for prefix in ["10.1.0.0/24", "192.168.1.1/32"] {
        assert_eq!(route_in(&member, 760_003, prefix), Some(&by_leader), "{prefix}");
        assert_eq!(route(&member, prefix), None);
    }
    let candidate = &member.nexthops[&super::ids::candidate_nexthop(Slot(0), Family::V4)];
    assert_eq!(candidate.device().unwrap().as_str(), "lvx0");
    assert_eq!(route(&member, "100.127.0.0/20"), Some(&gateway("lvx0", "100.127.240.1")));
    // What comes in on a plane goes on over it, pods' prefixes and nodes' addresses.
    let last_hop = gateway("lvx0", "100.127.240.2");
    for prefix in ["10.0.1.0/24", "192.168.0.2/32"] {
        assert_eq!(route_in(&relay, RELAY_TABLE, prefix), Some(&last_hop), "{prefix}");
    }
    let text = |net: &Network| net.rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    let remote = ["76: IPv4 from all lookup 760003", "76: IPv6 from all lookup 760003"];
    let relays =
        ["76: IPv4 from all iif wgl0 lookup 759999", "76: IPv6 from all iif wgl0 lookup 759999"];
    assert_eq!(text(&member), remote);
    assert_eq!(text(&relay), [remote[0], relays[0], remote[1], relays[1]]);
    // The far end takes all of it, and what is behind no node.
    let far = network(&mesh, "b-0", &[]);
    let allowed = &far.wireguard[&"wgl0".parse().unwrap()].peers[&WgPublicKey([1; 32])].allowed_ips;
    let v4: Vec<String> =
        allowed.iter().filter(|p| p.addr().is_ipv4()).map(ToString::to_string).collect();
    assert_eq!(
        v4,
        [
            "10.0.0.0/24",
            "10.0.1.0/24",
            "100.127.0.1/32",
            "192.168.0.0/24",
            "192.168.0.1/32",
            "192.168.0.2/32"
        ]
    );
    let id = location_group(&mesh, &"a".parse().unwrap(), Family::V4).unwrap();
    let via = RouteVia::Nexthop { id, source: source("192.168.1.1") };
    assert_eq!(route_in(&far, 760_001, "192.168.0.0/24"), Some(&via));
}

#[test]
fn the_vxlan_is_no_larger_than_the_lan_leaves_it_and_a_smaller_one_than_the_mesh_is_told() {
    let mesh = beside_a_cni();
    let (me, none, resolved) = ("a-1".parse().unwrap(), Beliefs::new(), BTreeMap::new());
    let of = |mesh: &Mesh, lan_mtu| {
        let carried = Default::default();
        let input = TopologyInput {
            mesh,
            me: &me,
            leaders: &none,
            resolved: &resolved,
            lan_device: None,
            lan_mtu,
            holds_address: true,
            carried: &carried,
        };
        let notes: Vec<String> = notes(&input).iter().map(ToString::to_string).collect();
        (desired(&input).vxlan.values().next().unwrap().mtu, notes)
    };
    let configured = |mtu| {
        let mut mesh = mesh.clone();
        for l in mesh.locations.values_mut() {
            l.overlay = Overlay::Cni(VxlanDevice { mtu: Some(mtu), ..VxlanDevice::default() });
        }
        mesh
    };
    for (lan, mtu) in [(None, 1450), (Some(1500), 1450), (Some(9001), 8951), (Some(1470), 1420)] {
        assert_eq!(of(&mesh, lan), (mtu, vec![]), "{lan:?}");
    }
    assert_eq!(of(&configured(1430), Some(1500)).0, 1430);
    assert_eq!(of(&configured(1440), Some(1480)).0, 1430, "never more than fits");
    let (mtu, notes) = of(&mesh, Some(1450));
    assert_eq!(mtu, 1400);
    assert!(
        matches!(&notes[..], [one] if one.contains("lower `mtu` in [mesh] to 1400")),
        "{notes:?}"
    );
    let mut over_v6 = mesh.clone();
    for node in over_v6.nodes.values_mut() {
        node.address = format!("fd00::{}", node.index.0).parse().unwrap();
    }
    assert_eq!(of(&over_v6, Some(1500)).0, 1430);
}

#[test]
fn what_a_tunnel_runs_to_is_withheld_from_the_tunnels_and_told() {
    let mut mesh = beside_a_cni();
    let b: NodeName = "b-0".parse().unwrap();
    mesh.nodes.get_mut(&b).unwrap().endpoint = Some(Host::Name("b.example".into()));
    let (me, none) = ("a-0".parse().unwrap(), Beliefs::new());
    let of = |at: Option<&str>| {
        let resolved =
            at.map(|a| ("b.example".to_owned(), a.parse().unwrap())).into_iter().collect();
        let carried = Default::default();
        let input = TopologyInput {
            mesh: &mesh,
            me: &me,
            leaders: &none,
            resolved: &resolved,
            lan_device: None,
            lan_mtu: None,
            holds_address: true,
            carried: &carried,
        };
        let net = desired(&input);
        let allowed = net.wireguard[&"wgl0".parse().unwrap()].peers.values().next().unwrap();
        assert!(
            allowed.allowed_ips.contains(&"192.168.1.1/32".parse().unwrap()),
            "both ends agree"
        );
        (route_in(&net, 760_003, "192.168.1.1/32").is_some(), notes(&input).len())
    };
    assert_eq!(of(Some("203.0.113.9")), (true, 0));
    assert_eq!(of(Some("192.168.1.1")), (false, 1), "it is reached at its own address");
    assert_eq!(of(None), (false, 1), "it may be");
}

#[test]
fn an_address_that_is_an_endpoint_or_anothers_too_is_not_carried() {
    let mut mesh = beside_a_cni();
    let [a1, b0] = ["a-1", "b-0"].map(|n| n.parse::<NodeName>().unwrap());
    let carried = |mesh: &Mesh| [&a1, &b0].map(|n| mesh.carried_address(&mesh.nodes[n]).is_some());
    assert_eq!(carried(&mesh.clone()), [true, true]);
    mesh.nodes.get_mut(&b0).unwrap().address = "192.168.0.2".parse().unwrap();
    assert_eq!(carried(&mesh.clone()), [false, false], "they are the same");
    let b = mesh.nodes.get_mut(&b0).unwrap();
    (b.address, b.endpoint) =
        ("203.0.113.9".parse().unwrap(), Some(Host::Ip("203.0.113.9".parse().unwrap())));
    assert_eq!(carried(&mesh.clone()), [true, false]);
    mesh.locations.values_mut().for_each(|l| l.node_addresses = false);
    assert_eq!(carried(&mesh), [false, false]);
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
        lan_mtu: None,
        holds_address: true,
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
            lan_mtu: None,
            holds_address: true,
            carried: &Default::default(),
        });
        net.wireguard[&"wgl0".parse().unwrap()].peers[&WgPublicKey([4; 32])].endpoint
    };
    assert_eq!(endpoint(&BTreeMap::new()), None);
    let resolved = BTreeMap::from([("b.example".to_owned(), "203.0.113.9".parse().unwrap())]);
    assert_eq!(endpoint(&resolved), Some("203.0.113.9:51901".parse().unwrap()));
}

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
            for (l, location) in mesh.locations.values_mut().enumerate() {
                location.node_addresses = bits.next().unwrap() % 4 != 0;
                if bits.next().unwrap() % 2 == 0 {
                    location.prefixes.push(beside(l));
                }
            }
            for node in mesh.nodes.values_mut() {
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

/// What the location with this number has besides its nodes.
fn beside(location: usize) -> IpNet {
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

proptest! {
    /// Also where Kilo steers, and where nothing can be reached.
    #[test]
    fn a_change_of_leaders_alone_comes_to_the_same_as_the_whole_network(
        (mesh, resolved) in varied(), steering in 0..3u8, observed in 0..3usize, carry: bool, lan: bool,
        before in proptest::collection::vec(any::<u8>(), 1..64),
        after in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut mesh = mesh;
        let steering = [Steering::Native, Steering::Kilo, Steering::Observe][usize::from(steering)];
        mesh.locations.values_mut().for_each(|l| l.steering = steering);
        if let Some(l) = mesh.locations.values_mut().nth(observed) {
            l.steering = Steering::Observe;
        }
        let device = "eth0".parse().unwrap();
        let carried: BTreeSet<_> = mesh.locations.keys().filter(|_| carry).cloned().collect();
        let (before, after) = (beliefs(&mesh, &before), beliefs(&mesh, &after));
        for me in mesh.nodes.keys() {
            for location in mesh.locations.keys() {
                let old = before[me].clone();
                let mut leaders = old.clone();
                leaders.insert(location.clone(), after[me][location].clone());
                let lan_device = lan.then_some(&device);
                let input = |leaders| {
                    TopologyInput { mesh: &mesh, me, leaders, resolved: &resolved, lan_device, lan_mtu: None, holds_address: true, carried: &carried }
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
        (mesh, resolved) in varied(), bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let world = World::new(&mesh, &resolved, &beliefs(&mesh, &bits));
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
                let (source, target) = (workloads(from)[0], beside(l).hosts().nth(4).unwrap());
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
        (mesh, resolved) in varied(), told: u8, bits in proptest::collection::vec(any::<u8>(), 1..64)
    ) {
        let known = resolved.clone().into_iter().enumerate().filter(|(i, _)| told >> (i % 8) & 1 == 1);
        let known = known.map(|(_, of)| of).collect();
        let world = World::new(&mesh, &known, &beliefs(&mesh, &bits));
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
        let world = World::new(&mesh, &resolved, &beliefs(&mesh, &bits));
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
