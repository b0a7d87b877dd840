//! Nodes' own addresses as targets beside their workloads', and addresses that change while all goes on.

use super::*;

/// `node_addresses` everywhere.
fn carried(nodes: &[(&str, &str, Option<u8>)]) -> Mesh {
    let mut mesh = mesh(nodes);
    mesh.edit().locations.values_mut().for_each(|l| l.node_addresses = true);
    mesh
}

fn own(p: &Seen<'_>) -> bool {
    p.address.ip().to_string().starts_with("192.168.")
}

#[test]
fn a_location_is_judged_by_its_nodes_own_addresses_where_no_workload_address_is_held() {
    let mut mesh = carried(PAIR_AND_MEMBER);
    mesh.edit().nodes.values_mut().for_each(|n| n.probe_addresses.clear());
    let mut classes = BTreeSet::new();
    let mut world = World::new(mesh, 2, |p: &Seen<'_>| {
        classes.insert(p.class);
        assert!(own(p) || p.class == ProbeClass::Relay);
        if p.at > ms(30_000) && p.behind(0) { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(ms(29_000));
    for slot in [0, 1] {
        assert_eq!(world.verdict("cloud", slot), Verdict::Forwarding, "{slot}");
    }
    world.run_until(ms(32_000));
    let (at, cause, _) = world.first_degraded(0).expect("it drops what goes to nodes");
    assert!(at < ms(30_600), "{at:?}");
    assert_eq!(cause, Fault::NotForwarding);
    assert_eq!(world.first_degraded(1), None);
    drop(world);
    let all = [
        ProbeClass::NewFlow,
        ProbeClass::FullSize,
        ProbeClass::PinnedFlow,
        ProbeClass::Relay,
        ProbeClass::AsWorkload,
    ];
    assert_eq!(classes, all.into());
}

#[test]
fn both_kinds_are_probed_in_each_few_rounds_and_through_every_slot() {
    let mut asked: BTreeMap<(Option<u8>, bool), u32> = BTreeMap::new();
    let mut world = World::new(carried(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
        if matches!(p.class, ProbeClass::NewFlow | ProbeClass::AsWorkload) && p.at > ms(5000) {
            *asked.entry((p.via, own(p))).or_default() += 1;
        }
        Fate::Back(ms(20))
    });
    world.run_until(ms(25_000));
    world.no_candidate_is_degraded();
    drop(world);
    for via in [Some(0), Some(1), Some(2), None] {
        let (workloads, nodes) = (asked[&(via, false)], asked[&(via, true)]);
        assert!(workloads.abs_diff(nodes) * 5 <= workloads + nodes, "{via:?}: {asked:?}");
    }
}

#[test]
fn a_relay_that_drops_one_kind_only_is_partly_broken() {
    for kind in [true, false] {
        let mut world = World::new(carried(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
            let lost = p.at > ms(30_000)
                && p.via == Some(0)
                && p.class != ProbeClass::Relay
                && own(p) == kind;
            if lost { Fate::Lost } else { Fate::Back(ms(20)) }
        });
        world.run_until(ms(34_000));
        let (at, cause, _) = world.first_degraded(0).expect("one kind is lost");
        assert_eq!(cause, Fault::Partial, "own addresses: {kind}");
        assert!(at < ms(31_500), "{at:?}");
        assert_eq!((world.first_degraded(1), world.first_degraded(2)), (None, None));
    }
}

#[test]
fn addresses_that_change_elsewhere_disturb_no_other_location() {
    let nodes =
        [CLOUD, &[("far-0", "far", Some(0)), ("far-1", "far", Some(1)), ("far-2", "far", None)]]
            .concat();
    let mut moved = mesh(&nodes);
    let mut world = World::new(mesh(&nodes), 2, |p: &Seen<'_>| {
        // cloud-0 fails shortly before far's addresses change.
        if p.at > ms(29_900) && p.target.starts_with("cloud") && p.behind(0) {
            Fate::Lost
        } else {
            Fate::Back(ms(20))
        }
    });
    world.run_until(ms(30_000));
    let far = moved.edit().nodes.get_mut(&"far-2".parse::<NodeName>().unwrap()).unwrap();
    far.probe_addresses = vec![[10, 42, far.index.0 as u8, 77].into()];
    let moved = Arc::new(moved);
    let under_way = |world: &World<'_>| {
        ["cloud", "far"].map(|l| {
            let watch = world.observer.by_name[&l.parse::<LocationName>().unwrap()];
            world.observer.in_flight.of(watch).len()
        })
    };
    let mut at = 30_000;
    while under_way(&world).contains(&0) {
        at += 1;
        assert!(at < 30_200, "they are probed ten times a second");
        world.run_until(ms(at));
    }
    let [cloud, _] = under_way(&world);
    world.mesh = moved.clone();
    world.reflectors.values_mut().for_each(|r| r.set_mesh(moved.clone()));
    world.observer.readdress(world.clock(), moved);
    assert_eq!(under_way(&world), [cloud, 0]);
    world.run_until(ms(33_000));
    let (at, ..) = world.first_degraded(0).expect("it fails");
    assert!(at < ms(30_500), "{at:?}");
    for slot in [0, 1] {
        assert_eq!(world.verdict("far", slot), Verdict::Forwarding, "{slot}");
    }
}
