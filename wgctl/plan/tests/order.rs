//! What particular differences look like.

use std::collections::{BTreeMap, BTreeSet};

use wgctl_plan::*;

fn nexthop(n: u32) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + n)
}

/// Two planes to one peer each, a group on the first, and many routes through the group.
fn two_planes(prefixes: u32) -> Network {
    let mut net = Network::default();
    for plane in 0..2u8 {
        let name: InterfaceName = format!("wgl{plane}").parse().unwrap();
        let peer = WgPeer {
            endpoint: Some(([203, 0, 113, plane], 51900).into()),
            allowed_ips: ["10.42.0.0/16".parse().unwrap()].into(),
            persistent_keepalive: 10,
        };
        net.wireguard.insert(
            name.clone(),
            WgInterface {
                public_key: Some(WgPublicKey([9; 32])),
                listen_port: 51900 + u16::from(plane),
                mtu: 1420,
                up: true,
                peers: BTreeMap::from([(WgPublicKey([plane; 32]), peer)]),
            },
        );
        net.nexthops
            .insert(nexthop(plane.into()), Nexthop::Device { dev: name, family: Family::V4 });
    }
    net.nexthops.insert(nexthop(100), Nexthop::Group { members: BTreeSet::from([nexthop(0)]) });
    for i in 0..prefixes {
        let prefix = format!("10.{}.{}.0/24", 64 + i / 256, i % 256).parse().unwrap();
        net.routes.insert(
            RouteKey { table: 254, prefix, metric: 50 },
            RouteVia::Nexthop { id: nexthop(100), source: None },
        );
    }
    net
}

fn text(changes: &[Change]) -> Vec<String> {
    changes.iter().map(Change::to_string).collect()
}

#[test]
fn a_failover_is_one_change_whatever_the_number_of_prefixes() {
    let old = two_planes(1000);
    let mut new = old.clone();
    new.nexthops.insert(nexthop(100), Nexthop::Group { members: BTreeSet::from([nexthop(1)]) });
    assert!(new.routes.is_same(&old.routes) && new.wireguard.is_same(&old.wireguard));
    assert_eq!(text(&diff_desired(&old, &new)), ["set nexthop L0064 group L0001"]);
}

#[test]
fn a_group_that_stays_while_its_member_changes_family_is_made_anew() {
    let old = two_planes(1);
    let mut new = old.clone();
    let other =
        |n: u32| Nexthop::Device { dev: format!("wgl{n}").parse().unwrap(), family: Family::V6 };
    new.nexthops.insert(nexthop(0), other(0));
    new.routes = Shared::default();
    let kept = Network { routes: new.routes.clone(), ..old.clone() };
    let plan = text(&diff(&new, &kept));
    assert!(plan.contains(&"remove nexthop L0000".to_owned()), "{plan:?}");
}

#[test]
fn a_roamed_endpoint_is_left_alone_and_a_new_desired_one_is_set() {
    let old = two_planes(1);
    let mut other = old.clone();
    let peer = other.wireguard.values_mut().next().unwrap().peers.values_mut().next().unwrap();
    peer.endpoint = Some(([198, 51, 100, 1], 4242).into());
    assert_eq!(diff(&old, &other), vec![]);
    assert_eq!(
        text(&diff_desired(&old, &other)),
        ["set peer 00000000… of wgl0 with 1 allowed-ips endpoint 198.51.100.1:4242"]
    );
}

#[test]
fn a_lost_endpoint_is_set_again() {
    let desired = two_planes(1);
    let mut observed = desired.clone();
    observed.wireguard.values_mut().next().unwrap().peers.values_mut().next().unwrap().endpoint =
        None;
    assert_eq!(diff(&desired, &observed).len(), 1);
}

#[test]
fn only_the_changed_peer_is_sent() {
    let old = two_planes(1);
    let mut new = old.clone();
    for w in new.wireguard.values_mut() {
        w.peers.insert(
            WgPublicKey([7; 32]),
            WgPeer { endpoint: None, allowed_ips: BTreeSet::new(), persistent_keepalive: 0 },
        );
    }
    assert_eq!(
        text(&diff(&new, &old)),
        [
            "set peer 07070707… of wgl0 with 0 allowed-ips",
            "set peer 07070707… of wgl1 with 0 allowed-ips"
        ]
    );
}

#[test]
fn from_nothing_routes_come_last() {
    let all = diff(&two_planes(1), &Network::default());
    assert_eq!(
        text(&all),
        [
            "add wireguard wgl0 mtu 1420",
            "add wireguard wgl1 mtu 1420",
            "set link wgl0 up",
            "set wireguard wgl0 key 09090909… port 51900",
            "set peer 00000000… of wgl0 with 1 allowed-ips endpoint 203.0.113.0:51900",
            "set link wgl1 up",
            "set wireguard wgl1 key 09090909… port 51901",
            "set peer 01010101… of wgl1 with 1 allowed-ips endpoint 203.0.113.1:51900",
            "set nexthop L0000 dev wgl0 (IPv4)",
            "set nexthop L0001 dev wgl1 (IPv4)",
            "set nexthop L0064 group L0000",
            "add route 10.64.0.0/24 table 254 metric 50 nexthop L0064",
        ]
    );
}

#[test]
fn transit_is_untracked_before_it_comes_and_tracked_again_when_it_has_gone() {
    let prefixes = |p: &str| [p.parse().unwrap()].into_iter().collect();
    let transit = Transit {
        own: prefixes("10.42.1.0/24"),
        near: prefixes("10.42.0.0/16"),
        far: prefixes("10.64.0.0/16"),
    };
    let mut relay = two_planes(1);
    relay.untracked = Shared::new(Some(transit));
    let set = "set untracked transit between 1 near and 1 far prefixes, without 1 own";
    let none = Network::default();
    assert_eq!(text(&diff(&relay, &none)).first().unwrap(), set);
    assert_eq!(text(&diff(&none, &relay)).last().unwrap(), "remove untracked transit");
    let mut other = relay.clone();
    other.nexthops.insert(nexthop(100), Nexthop::Group { members: BTreeSet::from([nexthop(1)]) });
    let transit = other.untracked.as_mut().unwrap();
    transit.near = prefixes("10.43.0.0/16");
    assert_eq!(text(&diff(&other, &relay)), [set, "set nexthop L0064 group L0001"]);
}

#[test]
fn a_single_nexthop_becomes_a_group_without_a_moment_without_route() {
    let new = two_planes(1);
    let mut old = new.clone();
    old.nexthops
        .insert(nexthop(100), Nexthop::Device { dev: "wgl1".parse().unwrap(), family: Family::V4 });
    assert_eq!(
        text(&diff(&new, &old)),
        [
            "set nexthop Lffff group L0000",
            "replace route 10.64.0.0/24 table 254 metric 50 nexthop Lffff",
            "remove nexthop L0064",
            "set nexthop L0064 group L0000",
            "replace route 10.64.0.0/24 table 254 metric 50 nexthop L0064",
            "remove nexthop Lffff",
        ]
    );
}

#[test]
fn to_nothing_the_order_is_reversed() {
    let all = diff(&Network::default(), &two_planes(1));
    assert_eq!(
        text(&all),
        [
            "remove route 10.64.0.0/24 table 254 metric 50",
            "remove nexthop L0064",
            "remove nexthop L0000",
            "remove nexthop L0001",
            "delete link wgl0",
            "delete link wgl1",
        ]
    );
}
