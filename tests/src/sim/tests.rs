//! Tests of the simulator's own network: rules and routes, planes, links, machines that stand still.

use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::Policy;
use wgctl_plan::{Family, Network, RouteKey, RouteVia, Rule};

use super::meshes::{Site, mesh_of};
use super::path::Fate;
use super::{Fault, Foreign, ForeignKind, World, WorldConfig};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn calm(sites: [Site; 2]) -> World {
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let mut world = World::new(mesh, &secrets, WorldConfig::default());
    world.run_for(Duration::from_secs(20));
    assert!(world.delivers(&name("home-2"), &name("cloud-2")));
    world
}

fn sites() -> [Site; 2] {
    [Site::new("cloud", 2, 1), Site::new("home", 2, 1)]
}

fn crossed(world: &World, from: &str, to: &str) -> String {
    match world.crossed(&name(from), &name(to), Family::V4).expect("both have IPv4") {
        Ok(nodes) => nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" "),
        Err(Fate::Lost { at, why }) => format!("{why} at {at}"),
        Err(fate) => format!("{fate:?}"),
    }
}

/// The route of `main` to this prefix.
fn route_to(kernel: &Network, prefix: &str) -> RouteVia {
    let prefix = prefix.parse().expect("a prefix");
    let found = kernel.routes.iter().find(|(key, _)| key.prefix == prefix);
    found.map(|(_, via)| via.clone()).expect("a route")
}

/// `cloud-1` sends what its own workloads send to `home` by `cloud-0`: a rule by source, and a table.
fn source_rule(world: &mut World) {
    let kernel = world.kernels.get_mut(&name("cloud-1")).expect("a kernel");
    let via = route_to(kernel, "10.1.0.0/24");
    let key = RouteKey { table: 4242, prefix: "10.2.0.0/16".parse().expect("a prefix"), metric: 1 };
    kernel.routes.insert(key, via);
    let from = Some("10.1.1.0/24".parse().expect("a prefix"));
    let (family, to, iif) = (Family::V4, None, None);
    kernel.rules.insert(Rule { family, priority: 70, from, to, iif, table: 4242 });
}

#[test]
fn a_rule_by_source_takes_a_nodes_own_packets_and_no_transit() {
    let mut world = calm(sites());
    let before = crossed(&world, "home-2", "cloud-1");
    source_rule(&mut world);
    assert!(crossed(&world, "cloud-1", "home-2").starts_with("cloud-1 cloud-0 home-"));
    assert_eq!(crossed(&world, "home-2", "cloud-1"), before);
    // A member that relays by cloud-1 is in transit there.
    let member = world.kernels.get_mut(&name("cloud-2")).expect("a kernel");
    let via = route_to(member, "10.1.1.0/24");
    let key = RouteKey { table: 254, prefix: "10.2.2.0/25".parse().expect("a prefix"), metric: 1 };
    member.routes.insert(key, via);
    assert!(crossed(&world, "cloud-2", "home-2").starts_with("cloud-2 cloud-1 home-"));
}

#[test]
fn a_rule_of_another_tool_wins_by_its_priority() {
    let taken = "route of another tool at cloud-1";
    let rule = |priority| Foreign {
        to: "10.2.2.0/24".parse().expect("a prefix"),
        from: None,
        iif: None,
        kind: ForeignKind::Rule(priority),
    };
    for (priority, ours, wins) in
        [(10, false, true), (5270, false, true), (10, true, true), (5270, true, false)]
    {
        let mut world = calm(sites());
        // Without the rules that the core has for a standby's own packets.
        world.kernels.get_mut(&name("cloud-1")).expect("a kernel").rules = Default::default();
        if ours {
            source_rule(&mut world);
        }
        world.fault(&name("cloud-1"), &Fault::Foreign(rule(priority)), true);
        let way = crossed(&world, "cloud-1", "home-2");
        assert_eq!(way == taken, wins, "{priority} {ours}: {way}");
        assert!(!crossed(&world, "cloud-1", "home-1").contains("another tool"));
        world.fault(&name("cloud-1"), &Fault::Foreign(rule(priority)), false);
        assert!(world.delivers(&name("cloud-1"), &name("home-2")));
    }
}

#[test]
fn a_rule_of_another_tool_may_look_at_source_and_device() {
    let mut world = calm(sites());
    let rule = |from: Option<&str>, iif: Option<&str>| Foreign {
        to: "10.1.2.0/24".parse().expect("a prefix"),
        from: from.map(|p| p.parse().expect("a prefix")),
        iif: iif.map(|dev| dev.parse().expect("a name")),
        kind: ForeignKind::Rule(10),
    };
    for (foreign, takes) in [
        (rule(Some("10.2.2.0/24"), None), true),
        (rule(Some("10.2.1.0/24"), None), false),
        (rule(None, Some("wgl0")), true),
        (rule(None, Some("wgl1")), false),
    ] {
        world.fault(&name("cloud-0"), &Fault::Foreign(foreign.clone()), true);
        assert_eq!(!world.delivers(&name("home-2"), &name("cloud-2")), takes, "{foreign:?}");
        world.fault(&name("cloud-0"), &Fault::Foreign(foreign), false);
    }
}

#[test]
fn a_route_of_another_tool_wins_by_its_prefix_and_its_metric() {
    let mut world = calm(sites());
    for (to, metric, takes) in [
        ("10.2.2.0/25", 500, true),
        ("10.2.2.0/24", 50, true),
        ("10.2.2.0/24", 500, false),
        ("10.2.0.0/16", 1, false),
    ] {
        let kind = ForeignKind::Route { metric };
        let foreign = Foreign { to: to.parse().expect("a prefix"), from: None, iif: None, kind };
        world.fault(&name("cloud-0"), &Fault::Foreign(foreign.clone()), true);
        assert_eq!(!world.delivers(&name("cloud-2"), &name("home-2")), takes, "{foreign:?}");
        world.fault(&name("cloud-0"), &Fault::Foreign(foreign), false);
    }
}

#[test]
fn a_plane_that_does_not_forward_still_takes_what_is_for_its_node() {
    let mut world = calm(sites());
    world.fault(&name("cloud-0"), &Fault::PlaneOff(0), true);
    assert_eq!(crossed(&world, "home-2", "cloud-2"), "plane does not forward at cloud-0");
    assert_eq!(crossed(&world, "home-2", "cloud-0"), "home-2 home-0 cloud-0");
    assert_eq!(crossed(&world, "cloud-2", "home-2"), "cloud-2 cloud-0 home-0 home-2");
}

#[test]
fn lost_carrier_deletes_nexthops_and_their_routes_until_the_daemon_programs_them_again() {
    for daemon in [true, false] {
        let mut world = calm(sites().map(Site::direct));
        let routes = |world: &World| world.kernels[&name("cloud-2")].routes.len();
        let before = routes(&world);
        let flap = Fault::LinkDown("eth0".parse().expect("a name"));
        if !daemon {
            world.fault(&name("cloud-2"), &Fault::DaemonKill, true);
        }
        world.fault(&name("cloud-2"), &flap, true);
        let left = routes(&world);
        assert!(left < before, "routes that use nexthop objects are gone");
        assert!(left > 0, "others are not");
        world.run_for(ms(100));
        assert_eq!(crossed(&world, "home-2", "cloud-2"), "no carrier at cloud-0");
        world.fault(&name("cloud-2"), &flap, false);
        assert_eq!(routes(&world), left, "nothing comes back with the carrier");
        assert_eq!(crossed(&world, "cloud-2", "home-2"), "no route at cloud-2");
        assert!(
            world.delivers(&name("home-2"), &name("cloud-2")),
            "the other way needs none of them"
        );
        world.run_for(ms(40));
        assert_eq!(routes(&world) == before, daemon);
        assert_eq!(world.delivers(&name("cloud-2"), &name("home-2")), daemon);
    }
}

#[test]
fn a_machine_that_stands_still_loses_nothing_that_waits() {
    let mut world = calm(sites());
    world.fault(&name("cloud-2"), &Fault::MachinePause, true);
    assert_eq!(crossed(&world, "home-2", "cloud-2"), "machine paused at cloud-2");
    world.run_for(ms(400));
    let waiting = world.held[&name("cloud-2")].len();
    assert!(waiting > 3, "{waiting} packets wait");
    world.fault(&name("cloud-2"), &Fault::MachinePause, false);
    assert!(world.held.is_empty());
    assert!(world.delivers(&name("home-2"), &name("cloud-2")));
}
