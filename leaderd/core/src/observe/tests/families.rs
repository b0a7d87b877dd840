//! IPv4 and IPv6 side by side: both are probed for the price of one, and a fault of one is found and named.

use super::*;

const FAULT: Duration = Duration::from_secs(20);

fn dual_stack() -> Mesh {
    let mut mesh = mesh(CLOUD_AND_MEMBERS);
    mesh.edit().inner.v6 = Some("fd4c:eade:0:1::/112".parse().unwrap());
    for node in mesh.edit().nodes.values_mut() {
        let i = node.index.0;
        node.prefixes.push(format!("fd42:0:0:{i}::/64").parse().unwrap());
        node.probe_addresses.push(format!("fd42:0:0:{i}::1").parse().unwrap());
    }
    mesh
}

fn count(mesh: Mesh) -> BTreeMap<(ProbeClass, bool), u32> {
    let counts = std::cell::RefCell::new(BTreeMap::new());
    let mut world = World::new(mesh, 1, |p: &Seen<'_>| {
        *counts.borrow_mut().entry((p.class, p.address.is_ipv6())).or_insert(0) += 1;
        Fate::Back(ms(20))
    });
    world.run_until(Duration::from_secs(100));
    world.no_candidate_is_degraded();
    assert!((0..3).all(|s| world.verdict("cloud", s) == Verdict::Forwarding));
    drop(world);
    counts.into_inner()
}

#[test]
fn both_families_take_turns_and_cost_no_more_than_one() {
    let (one, two) = (count(mesh(CLOUD_AND_MEMBERS)), count(dual_stack()));
    for class in
        [ProbeClass::NewFlow, ProbeClass::FullSize, ProbeClass::Relay, ProbeClass::AsWorkload]
    {
        let (v4, v6) = (two[&(class, false)], two[&(class, true)]);
        assert!(v4.abs_diff(v6) * 5 < v4 + v6, "{class}: {v4} over IPv4, {v6} over IPv6");
        let alone = one[&(class, false)];
        assert!((v4 + v6).abs_diff(alone) * 10 < alone, "{class}: {alone} before, {} now", v4 + v6);
    }
    assert!(one.keys().all(|(_, v6)| !v6));
}

#[test]
fn a_tunnel_is_probed_over_ipv6_only_where_workloads_of_both_ends_have_it() {
    let mut mesh = dual_stack();
    let home = mesh.edit().nodes.get_mut(&"home-0".parse::<NodeName>().unwrap()).unwrap();
    home.prefixes.truncate(1);
    home.probe_addresses.truncate(1);
    assert!(!count(mesh).contains_key(&(ProbeClass::Relay, true)));
}

#[test]
fn a_leader_that_forwards_no_ipv6_is_degraded_and_the_evidence_names_it() {
    for (seed, broken_v6) in (0..10).flat_map(|s| [(s, true), (s, false)]) {
        let mut world = World::new(dual_stack(), seed, |p: &Seen<'_>| {
            let family = p.address.is_ipv6() == broken_v6;
            let lost = p.at > FAULT && p.behind(0) && family;
            if lost { Fate::Lost } else { Fate::Back(ms(20)) }
        });
        world.run_until(FAULT);
        world.no_candidate_is_degraded();
        world.run_until(FAULT + Duration::from_secs(3));
        let (_, cause, _) = world.first_degraded(0).expect("the leader is degraded");
        assert_eq!(cause, Fault::Partial, "seed {seed}");
        assert_eq!((world.first_degraded(1), world.first_degraded(2)), (None, None));
        let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
        let rows = view.slots[0].evidence.iter().filter(|r| r.lost > 0 && r.address.is_some());
        let named: Vec<bool> = rows.map(|r| r.address.unwrap().is_ipv6()).collect();
        assert!(!named.is_empty() && named.iter().all(|v6| *v6 == broken_v6), "{view:?}");
    }
}

/// Does home-0 find a decision of cloud's proved within half a minute?
fn verifies(mesh: Mesh, lost: fn(&Seen<'_>) -> bool) -> bool {
    let mut world = World::new(mesh, 1, move |p: &Seen<'_>| {
        if p.class == ProbeClass::AsWorkload && lost(p) { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.observer.decided(world.clock(), &"cloud".parse().unwrap(), Epoch(1), &[Slot(0)]);
    world.run_until(Duration::from_secs(29));
    !world.verified.is_empty()
}

#[test]
fn a_decision_is_proved_over_the_families_that_both_ends_have() {
    for nodes in [&CLOUD[..3], CLOUD_AND_MEMBERS] {
        let both = || super::dual_stack(mesh(nodes));
        assert!(verifies(both(), |_| false));
        assert!(!verifies(both(), |p| p.address.is_ipv6()), "IPv6 is dead");
        assert!(!verifies(both(), |p| p.address.is_ipv4()), "IPv4 is dead");
        let mut only_v4_here = both();
        let home =
            only_v4_here.edit().nodes.get_mut(&"home-0".parse::<NodeName>().unwrap()).unwrap();
        home.prefixes.truncate(1);
        home.probe_addresses.truncate(1);
        assert!(verifies(only_v4_here, |p| p.address.is_ipv6()), "nothing here speaks IPv6");
    }
}
