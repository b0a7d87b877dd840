//! A network with every kind of object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use wgctl_plan::*;

use super::{dev, id, key, route, transit};

/// Two planes with IPv4 and IPv6, a VXLAN device with a neighbour, groups, rules, sysctls, and transit that is not tracked.
pub fn two_planes() -> Network {
    let mut net = Network::default();
    for plane in 0..2u8 {
        let name = dev(&format!("wgl{plane}"));
        let peer = WgPeer {
            endpoint: Some(SocketAddr::from(([192, 0, 2, 2], 51900 + u16::from(plane)))),
            allowed_ips: ["10.42.0.0/16", "100.127.0.0/16", "fd42::/48"]
                .map(|p| p.parse().unwrap())
                .into(),
            persistent_keepalive: 10,
        };
        net.wireguard.insert(
            name.clone(),
            WgInterface {
                public_key: Some(key().public()),
                listen_port: 51900 + u16::from(plane),
                mtu: 1420,
                up: true,
                peers: BTreeMap::from([(WgPublicKey([plane + 1; 32]), peer)]),
            },
        );
        for address in
            [format!("100.127.{}.5/20", plane * 16), format!("fd4c:eade:0:1::{plane}:5/116")]
        {
            net.addresses.insert((name.clone(), address.parse().unwrap()));
        }
        let plane = u32::from(plane);
        net.nexthops.insert(id(plane), Nexthop::Device { dev: name.clone(), family: Family::V4 });
        net.nexthops
            .insert(id(10 + plane), Nexthop::Device { dev: name.clone(), family: Family::V6 });
        net.sysctls.insert(format!("net/ipv4/conf/{name}/rp_filter"), "2".into());
    }
    net.vxlan.insert(
        dev("lvx0"),
        Vxlan {
            vni: 7946,
            local: "192.0.2.1".parse().unwrap(),
            port: 4790,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            up: true,
        },
    );
    let far = Mac([2, 0, 0, 0, 0, 2]);
    net.addresses.insert((dev("lvx0"), "100.127.240.5/32".parse().unwrap()));
    net.fdb.insert((dev("lvx0"), far), "192.0.2.2".parse().unwrap());
    net.neighbours.insert((dev("lvx0"), "100.127.240.6".parse().unwrap()), far);
    net.neighbours.insert((dev("lvx0"), "fd4c:eade:0:1::f006".parse().unwrap()), far);
    let gateway = "100.127.240.6".parse().unwrap();
    net.nexthops.insert(id(20), Nexthop::Gateway { dev: dev("lvx0"), gateway, onlink: true });
    net.nexthops.insert(id(21), Nexthop::Blackhole { family: Family::V4 });
    net.nexthops.insert(id(100), Nexthop::Group { members: BTreeSet::from([id(0)]) });
    net.nexthops.insert(id(101), Nexthop::Group { members: BTreeSet::from([id(10), id(11)]) });
    net.routes.insert(route("10.42.1.0/24"), RouteVia::Nexthop { id: id(100), source: None });
    net.routes.insert(route("10.42.2.0/24"), RouteVia::Nexthop { id: id(100), source: None });
    net.routes.insert(route("fd42:0:0:1::/64"), RouteVia::Nexthop { id: id(101), source: None });
    net.routes.insert(route("10.43.1.0/24"), RouteVia::Nexthop { id: id(20), source: None });
    net.routes.insert(route("10.44.0.0/16"), RouteVia::Nexthop { id: id(21), source: None });
    net.routes.insert(
        RouteKey { table: 7946, ..route("10.45.0.0/16") },
        RouteVia::Device { dev: dev("wgl1"), source: Some("100.127.16.5".parse().unwrap()) },
    );
    net.routes.insert(
        route("10.46.0.0/16"),
        RouteVia::Gateway { dev: dev("lvx0"), gateway, onlink: true },
    );
    let any =
        Rule { family: Family::V4, priority: 76, from: None, to: None, iif: None, table: 7946 };
    net.rules.insert(Rule { table: 760_001, ..any.clone() });
    net.rules.insert(Rule {
        from: Some("10.42.9.0/24".parse().unwrap()),
        iif: Some(dev("eth9")),
        ..any.clone()
    });
    for family in [Family::V4, Family::V6] {
        let iif = Some(dev("wgl0"));
        net.rules.insert(Rule { family, iif, table: 759_999, ..any.clone() });
    }
    net.rules.insert(Rule { family: Family::V6, to: Some("fd42:9::/64".parse().unwrap()), ..any });
    // What comes in on a plane for another node, and what goes to another location from an address that is not ours.
    net.routes.insert(
        RouteKey { table: 759_999, ..route("192.0.2.2/32") },
        RouteVia::Gateway { dev: dev("lvx0"), gateway, onlink: true },
    );
    let source = Some("192.0.2.1".parse().unwrap());
    net.routes.insert(
        RouteKey { table: 760_007, ..route("10.47.0.0/16") },
        RouteVia::Nexthop { id: id(100), source },
    );
    net.rules.insert(Rule {
        family: Family::V4,
        priority: 76,
        from: None,
        to: None,
        iif: None,
        table: 760_007,
    });
    // A location's IPv6 lies in a table of its own, and the ways for probes in `main`.
    net.routes.insert(
        RouteKey { table: 760_007, ..route("fd42:0:0:7::/64") },
        RouteVia::Nexthop { id: id(102), source: None },
    );
    net.nexthops.insert(id(102), Nexthop::Group { members: BTreeSet::from([id(10)]) });
    net.rules.insert(Rule {
        family: Family::V6,
        priority: 76,
        from: None,
        to: None,
        iif: None,
        table: 760_007,
    });
    for plane in 0..2u8 {
        let metric = 51 + u32::from(plane);
        net.routes.insert(
            RouteKey { metric, ..route("fd42:0:0:7::/64") },
            RouteVia::Device { dev: dev(&format!("wgl{plane}")), source: None },
        );
    }
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        net.sysctls.insert(path.into(), "1".into());
    }
    net.sysctls.insert("net/ipv4/nexthop_compat_mode".into(), "0".into());
    net.untracked = Shared::new(Some(Transit {
        own: transit::prefixes(&["10.43.9.0/24"]),
        near: transit::prefixes(&["10.43.0.0/16", "100.127.0.0/16", "fd43::/48"]),
        far: transit::prefixes(&["10.42.0.0/16", "100.127.0.0/16", "fd42::/48"]),
    }));
    net
}
