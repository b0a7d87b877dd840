//! Inside a location: overlays, CNIs, the LAN, and what a node's own address does.

use std::net::IpAddr;

use wgctl_plan::{Family, Network, RouteVia, WgPublicKey};

use super::super::ids::candidate_nexthop;
use super::super::{MAIN_TABLE, RELAY_TABLE, TopologyInput, desired, location_group, notes};
use super::{Knowledge, cni, gateway, mesh, network, route, route_in, vxlan};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Mesh, Overlay, VxlanDevice};

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
    for location in mesh.edit().locations.values_mut() {
        location.track_transit = Some(!location.tracks_transit());
    }
    assert_eq!((untracked(&mesh, "a-1"), untracked(&mesh, "b-0")), (None, None));
    assert!(untracked(&mesh, "c-0").is_some() && untracked(&mesh, "d-0").is_some());
}

#[test]
fn inside_a_vxlan_location_everything_goes_by_overlay_addresses() {
    let mesh = mesh(&[(vxlan(), 2, 1), (vxlan(), 1, 0)], false);
    let net = network(&mesh, "a-2", &[]);
    let to_b = location_group(&mesh, &"b".parse().unwrap(), Family::V4).unwrap();
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
        ("10.1.0.0/24", Some(RouteVia::Nexthop { id: to_b, source: None })),
    ];
    for (prefix, via) in table {
        assert_eq!(route(&net, prefix), via.as_ref(), "{prefix}");
    }
}

#[test]
fn direct_and_external_locations_use_the_lan_and_external_leaves_local_prefixes_to_the_cni() {
    let cases = [
        (Overlay::Direct, Some(gateway("eth0", "192.168.0.1")), MAIN_TABLE),
        (Overlay::External, None, 760_003),
    ];
    for (overlay, local, table) in cases {
        let mesh = mesh(&[(overlay.clone(), 1, 1), (vxlan(), 1, 0)], false);
        let net = network(&mesh, "a-1", &[]);
        let id = location_group(&mesh, &"b".parse().unwrap(), Family::V4).unwrap();
        assert!(net.vxlan.is_empty());
        assert_eq!(route(&net, "10.0.0.0/24"), local.as_ref(), "{overlay:?}");
        assert_eq!(
            route(&net, "100.127.0.0/20"),
            Some(&gateway("eth0", "192.168.0.1")),
            "{overlay:?}"
        );
        assert_eq!(
            route_in(&net, table, "10.1.0.0/24"),
            Some(&RouteVia::Nexthop { id, source: None }),
            "{overlay:?}"
        );
        let rules: Vec<String> = net.rules.iter().map(ToString::to_string).collect();
        let own = (table != MAIN_TABLE).then(|| "76: IPv4 from all lookup 760003".to_owned());
        assert_eq!(rules, own.into_iter().collect::<Vec<_>>(), "{overlay:?}");
    }
}

/// Two nodes of a location with a CNI, one of them a candidate, and one elsewhere; the location has a prefix besides.
#[test]
fn the_reverse_path_filter_is_loose_on_the_lan_where_relays_send_by_it() {
    let mesh = mesh(
        &[(Overlay::Direct, 2, 1), (Overlay::External, 2, 1), (vxlan(), 2, 1), (cni(), 2, 1)],
        false,
    );
    let filtered = |net: &Network| -> Vec<String> {
        let device = |path: &String| {
            let dev = path.strip_prefix("net/ipv4/conf/")?.strip_suffix("/rp_filter")?;
            Some(dev.to_owned())
        };
        assert!(net.sysctls.iter().all(|(path, value)| device(path).is_none() || value == "2"));
        net.sysctls.keys().filter_map(device).collect()
    };
    for (me, wanted) in [
        ("a-0", &["eth0", "wgl0", "wgl1"][..]),
        ("a-2", &["eth0"]),
        ("b-1", &["eth0", "wgl0", "wgl1"]),
        ("b-2", &["eth0"]),
        ("c-0", &["lvx0", "wgl0", "wgl1"]),
        ("c-2", &["lvx0"]),
        ("d-2", &["lvx0"]),
    ] {
        assert_eq!(filtered(&network(&mesh, me, &[])), wanted, "{me}");
    }
    // A LAN device that is not known is left alone, and so is that of a node which has no other location to reach.
    assert!(filtered(&desired(&Knowledge::of("a-2").input(&mesh))).is_empty());
    let alone = super::mesh(&[(Overlay::Direct, 2, 1)], false);
    assert!(filtered(&network(&alone, "a-2", &[])).is_empty());
}

fn beside_a_cni() -> Mesh {
    let mut mesh = mesh(&[(cni(), 1, 1), (cni(), 1, 0)], true);
    let a = mesh.edit().locations.get_mut(&"a".parse::<LocationName>().unwrap()).unwrap();
    a.prefixes.push("192.168.0.0/24".parse().unwrap());
    mesh.edit().locations.values_mut().for_each(|l| l.node_addresses = true);
    mesh
}

#[test]
fn beside_a_cni_remote_traffic_crosses_our_vxlan_both_ways_and_local_traffic_is_left_alone() {
    let mesh = beside_a_cni();
    let (relay, member) = (network(&mesh, "a-0", &[]), network(&mesh, "a-1", &[]));
    assert!(route(&relay, "10.0.1.0/24").is_none() && route(&member, "10.0.0.0/24").is_none());
    // To b, whose lowest index is 3, a member goes by its leader, from its own address.
    let source = |ip: &str| Some(ip.parse().unwrap());
    let id = location_group(&mesh, &"b".parse().unwrap(), Family::V4).unwrap();
    let by_leader = RouteVia::Nexthop { id, source: source("192.168.0.2") };
    for prefix in ["10.1.0.0/24", "192.168.1.1/32"] {
        assert_eq!(route_in(&member, 760_003, prefix), Some(&by_leader), "{prefix}");
        assert_eq!(route(&member, prefix), None);
    }
    let candidate = &member.nexthops[&candidate_nexthop(Slot(0), Family::V4)];
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
fn the_vxlan_is_no_larger_than_the_lan_leaves_it_and_a_smaller_one_than_the_mesh_is_noted() {
    let mesh = beside_a_cni();
    let knowledge = Knowledge::of("a-1");
    let of = |mesh: &Mesh, lan_mtu| {
        let input = TopologyInput { lan_mtu, ..knowledge.input(mesh) };
        let notes: Vec<String> = notes(&input).iter().map(ToString::to_string).collect();
        (desired(&input).vxlan.values().next().unwrap().mtu, notes)
    };
    let configured = |mtu| {
        let mut mesh = mesh.clone();
        for l in mesh.edit().locations.values_mut() {
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
    for node in over_v6.edit().nodes.values_mut() {
        node.address = format!("fd00::{}", node.index.0).parse().unwrap();
    }
    assert_eq!(of(&over_v6, Some(1500)).0, 1430);
}

#[test]
fn an_endpoint_of_a_tunnel_is_withheld_from_the_tunnels_and_noted() {
    let mut mesh = beside_a_cni();
    let b: NodeName = "b-0".parse().unwrap();
    mesh.edit().nodes.get_mut(&b).unwrap().endpoint = Some(Host::Name("b.example".into()));
    let of = |at: Option<&str>| {
        let resolved =
            at.map(|a| ("b.example".to_owned(), a.parse().unwrap())).into_iter().collect();
        let knowledge = Knowledge { resolved, ..Knowledge::of("a-0") };
        let input = knowledge.input(&mesh);
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
fn an_address_that_is_an_endpoint_or_not_unique_is_not_carried() {
    let mut mesh = beside_a_cni();
    let [a1, b0] = ["a-1", "b-0"].map(|n| n.parse::<NodeName>().unwrap());
    let carried = |mesh: &Mesh| [&a1, &b0].map(|n| mesh.carried_address(&mesh.nodes[n]).is_some());
    assert_eq!(carried(&mesh.clone()), [true, true]);
    mesh.edit().nodes.get_mut(&b0).unwrap().address = "192.168.0.2".parse().unwrap();
    assert_eq!(carried(&mesh.clone()), [false, false], "they are the same");
    let b = mesh.edit().nodes.get_mut(&b0).unwrap();
    (b.address, b.endpoint) =
        ("203.0.113.9".parse().unwrap(), Some(Host::Ip("203.0.113.9".parse().unwrap())));
    assert_eq!(carried(&mesh.clone()), [true, false]);
    mesh.edit().locations.values_mut().for_each(|l| l.node_addresses = false);
    assert_eq!(carried(&mesh), [false, false]);
}
