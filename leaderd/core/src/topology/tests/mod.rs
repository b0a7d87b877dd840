//! Whole networks of small meshes. `random` has random meshes, and `walk` the packets that cross them.

mod overlays;
mod random;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use wgctl_plan::{
    Family, Network, Nexthop, NexthopId, RouteKey, RouteVia, WgPublicKey, owns_nexthop,
};

use super::ids::{candidate_nexthop, relay_nexthop};
use super::{
    MAIN_TABLE, OWN_SOURCES_TABLE, ROUTE_METRIC, TopologyInput, desired, location_group, own_group,
};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, InnerRange, Location, Mesh, MeshSpec, Node, Overlay, VxlanDevice};
use crate::relay_pair::Relays;
use walk::Beliefs;

/// A location to make: its overlay, the number of its candidates and of its members.
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
            let address = format!("192.168.{l}.{}", n + 1).parse().unwrap();
            let node = Node {
                slot: (n < *candidates).then_some(Slot(n as u8)),
                endpoint: (n < *candidates)
                    .then(|| Host::Ip(format!("198.51.{l}.{}", n + 1).parse().unwrap())),
                prefixes,
                probe_addresses: vec![format!("10.{l}.{n}.1").parse().unwrap()],
                ..Node::member(name.clone(), index, location.clone(), address)
            };
            nodes.insert(name, node);
        }
        locations.insert(location.clone(), Location::new(location, overlay.clone()));
    }
    let inner = InnerRange {
        v4: "100.127.0.0/16".parse().unwrap(),
        v6: v6.then(|| "fd4c:eade:0:1::/112".parse().unwrap()),
    };
    Mesh::unchecked(MeshSpec { inner, locations, nodes, ..MeshSpec::named("test") })
}

/// Kilo issue #489: three nodes on-premises, three in the cloud, all candidates.
fn hybrid() -> Mesh {
    mesh(&[(vxlan(), 3, 0), (vxlan(), 3, 0)], false)
}

/// What a node knows besides its mesh: at first of no leader, no resolved name and no LAN device.
struct Knowledge {
    me: NodeName,
    leaders: Beliefs,
    relays: BTreeMap<LocationName, Relays>,
    resolved: BTreeMap<String, IpAddr>,
    carried: BTreeSet<LocationName>,
}

impl Knowledge {
    fn of(me: &str) -> Self {
        Self {
            me: me.parse().unwrap(),
            leaders: Beliefs::new(),
            relays: BTreeMap::new(),
            resolved: BTreeMap::new(),
            carried: BTreeSet::new(),
        }
    }

    fn input<'a>(&'a self, mesh: &'a Mesh) -> TopologyInput<'a> {
        TopologyInput {
            mesh,
            me: &self.me,
            leaders: &self.leaders,
            relays: &self.relays,
            resolved: &self.resolved,
            lan_device: None,
            lan_mtu: None,
            holds_address: true,
            carried: &self.carried,
        }
    }
}

fn network(mesh: &Mesh, me: &str, leaders: &[(&str, &[u8])]) -> Network {
    let leaders = leaders
        .iter()
        .map(|(l, slots)| (l.parse().unwrap(), slots.iter().map(|&s| Slot(s)).collect()))
        .collect();
    let lan = "eth0".parse().unwrap();
    let knowledge = Knowledge { leaders, ..Knowledge::of(me) };
    desired(&TopologyInput { lan_device: Some(&lan), ..knowledge.input(mesh) })
}

fn route<'n>(net: &'n Network, prefix: &str) -> Option<&'n RouteVia> {
    route_in(net, MAIN_TABLE, prefix)
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
fn a_failover_changes_one_nexthop_per_family_and_nothing_else() {
    let mesh = mesh(&[(vxlan(), 2, 1), (vxlan(), 3, 2), (vxlan(), 2, 0)], true);
    let b: LocationName = "b".parse().unwrap();
    let groups = |f: [Family; 2]| f.map(|f| location_group(&mesh, &b, f).unwrap()).to_vec();
    let both = [Family::V4, Family::V6];
    let table = [
        ("a-0", groups(both), "a candidate elsewhere"),
        ("c-1", groups(both), "another one"),
        ("a-2", vec![], "a member elsewhere does not care"),
        ("b-3", both.map(|f| relay_nexthop(0, f)).to_vec(), "a member of the location"),
        ("b-2", both.map(|f| relay_nexthop(0, f)).to_vec(), "a candidate that stands by"),
    ];
    for (me, want, why) in table {
        let changed = changed_nexthops(
            network(&mesh, me, &[("b", &[0])]),
            network(&mesh, me, &[("b", &[1])]),
        );
        assert_eq!(changed, want, "{me}: {why}");
    }
}

/// The relays between this node's location and `b`.
fn detour(mesh: &Mesh, me: &str, near: u8, far: u8) -> Network {
    let relays = Relays { near: vec![Slot(near)], far: vec![Slot(far)] };
    let lan = "eth0".parse().unwrap();
    let knowledge = Knowledge {
        leaders: Beliefs::from([("a".parse().unwrap(), vec![Slot(0)])]),
        relays: BTreeMap::from([("b".parse().unwrap(), relays)]),
        ..Knowledge::of(me)
    };
    desired(&TopologyInput { lan_device: Some(&lan), ..knowledge.input(mesh) })
}

fn members(net: &Network, id: NexthopId) -> Vec<NexthopId> {
    match &net.nexthops[&id] {
        Nexthop::Group { members } => members.iter().copied().collect(),
        other => panic!("no group: {other:?}"),
    }
}

fn own_rules(net: &Network) -> Vec<String> {
    let own = net.rules.iter().filter(|r| r.table == OWN_SOURCES_TABLE);
    own.map(ToString::to_string).collect()
}

#[test]
fn what_a_standby_sends_itself_goes_by_its_leader_and_what_it_relays_by_its_tunnels() {
    let mesh = mesh(&[(vxlan(), 2, 1), (vxlan(), 2, 0)], false);
    let b: LocationName = "b".parse().unwrap();
    let transit = location_group(&mesh, &b, Family::V4).unwrap();
    let own = own_group(&mesh, &b, Family::V4).unwrap();
    let net = network(&mesh, "a-1", &[("a", &[0]), ("b", &[1])]);
    assert_eq!(own_rules(&net), ["70: IPv4 from 10.0.1.0/24 lookup 759998"]);
    assert_eq!(
        route_in(&net, OWN_SOURCES_TABLE, "10.1.0.0/24"),
        Some(&RouteVia::Nexthop { id: own, source: None })
    );
    assert_eq!(members(&net, own), [relay_nexthop(0, Family::V4)]);
    let to_leader = candidate_nexthop(Slot(0), Family::V4);
    assert_eq!(net.nexthops[&relay_nexthop(0, Family::V4)], net.nexthops[&to_leader]);
    let Nexthop::Device { dev, .. } = &net.nexthops[&members(&net, transit)[0]] else { panic!() };
    assert_eq!(dev.as_str(), "wgl1");
    // The leader sends into its tunnels, whatever it sends.
    assert!(own_rules(&network(&mesh, "a-0", &[("a", &[0])])).is_empty());
}

#[test]
fn a_detour_replaces_the_groups_of_its_location_alone() {
    let mesh = mesh(&[(vxlan(), 2, 1), (vxlan(), 2, 0), (vxlan(), 1, 0)], false);
    let (b, c): (LocationName, LocationName) = ("b".parse().unwrap(), "c".parse().unwrap());
    let group = |l| location_group(&mesh, l, Family::V4).unwrap();
    let own = |l| own_group(&mesh, l, Family::V4).unwrap();
    let relay = relay_nexthop(0, Family::V4);
    let near = |s| candidate_nexthop(Slot(s), Family::V4);
    let member = detour(&mesh, "a-2", 1, 1);
    assert_eq!(members(&member, group(&b)), [near(1)]);
    assert_eq!(members(&member, group(&c)), [relay]);
    // The leader sends what is its own to the relay, for that location.
    let leader = detour(&mesh, "a-0", 1, 1);
    assert_eq!(own_rules(&leader).len(), 1);
    assert_eq!(members(&leader, own(&b)), [near(1)]);
    assert_eq!(members(&leader, own(&c)), members(&leader, group(&c)));
    // The relay of the detour sends by itself there, and by the leader elsewhere.
    let standby = detour(&mesh, "a-1", 1, 1);
    assert_eq!(members(&standby, own(&b)), members(&standby, group(&b)));
    assert_eq!(members(&standby, own(&c)), [relay]);
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
            RouteKey { table: MAIN_TABLE, prefix, metric: ROUTE_METRIC + 1 + u32::from(slot) };
        let via = RouteVia::Device { dev: format!("wgl{slot}").parse().unwrap(), source: None };
        assert_eq!(net.routes.get(&key), Some(&via));
    }
}

#[test]
fn a_leader_that_is_no_candidate_gives_way_to_the_ranking() {
    let mut mesh = hybrid();
    mesh.edit().nodes.get_mut(&"b-2".parse::<NodeName>().unwrap()).unwrap().priority = 1;
    for leaders in [&[][..], &[("b", &[9u8][..])][..], &[("b", &[][..])][..]] {
        assert_eq!(network(&mesh, "a-0", leaders), network(&mesh, "a-0", &[("b", &[2])]));
    }
}

#[test]
fn unusual_meshes_have_a_network_too() {
    let alone = network(&mesh(&[(vxlan(), 2, 1)], false), "a-0", &[]);
    assert!(alone.wireguard.is_empty());
    let members_only = mesh(&[(vxlan(), 0, 2), (Overlay::Direct, 2, 1)], true);
    for me in members_only.nodes.keys() {
        network(&members_only, me.as_str(), &[]);
    }
    assert_eq!(network(&members_only, "nobody", &[]), Network::default());
    assert!(
        desired(&Knowledge::of("b-2").input(&members_only)).routes.is_empty(),
        "without a LAN device no route has a device to name"
    );
}

#[test]
fn an_endpoint_by_name_is_what_the_shell_resolved() {
    let mut mesh = hybrid();
    mesh.edit().nodes.get_mut(&"b-0".parse::<NodeName>().unwrap()).unwrap().endpoint =
        Some(Host::Name("b.example".into()));
    let knowledge = Knowledge::of("a-1");
    let endpoint = |resolved: &BTreeMap<String, IpAddr>| {
        let net = desired(&TopologyInput { resolved, ..knowledge.input(&mesh) });
        net.wireguard[&"wgl0".parse().unwrap()].peers[&WgPublicKey([4; 32])].endpoint
    };
    assert_eq!(endpoint(&BTreeMap::new()), None);
    let resolved = BTreeMap::from([("b.example".to_owned(), "203.0.113.9".parse().unwrap())]);
    assert_eq!(endpoint(&resolved), Some("203.0.113.9:51901".parse().unwrap()));
}
