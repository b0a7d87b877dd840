//! Answers that do not come from whom they name.

use super::*;
use crate::probe::Reject;

/// What the kernel of a target says where nothing listens, or a router on the way in its name.
fn refused(p: &Seen<'_>) -> Fate {
    Fate::Fails(ProbeError::Unreachable { from: Some(p.address.ip()) }, ms(20))
}

#[test]
fn an_icmp_error_in_a_targets_name_is_no_answer_while_the_target_answers_through_others() {
    // cloud-0 forwards nothing, and says of every target that nothing listens there.
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
        if p.at > ms(10_000) && p.behind(0) { refused(p) } else { Fate::Back(ms(20)) }
    });
    world.run_until(ms(9_000));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
    world.run_until(ms(14_000));
    assert!(world.verdict("cloud", 0).is_degraded(), "{:?}", world.verdict("cloud", 0));
    for slot in [1, 2] {
        assert_eq!(world.verdict("cloud", slot), Verdict::Forwarding);
        assert_eq!(world.first_degraded(slot), None);
    }
}

#[test]
fn daemons_that_are_gone_or_come_back_are_held_against_no_relay() {
    // The members' daemons are gone, all at once and then one after the other, for a while.
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
        let s = p.at.as_secs();
        let gone = match p.target {
            "cloud-3" => (10..14).contains(&s) || (30..31).contains(&s),
            "cloud-4" => (10..14).contains(&s) || (40..60).contains(&s),
            _ => false,
        };
        if gone { refused(p) } else { Fate::Back(ms(20)) }
    });
    world.run_until(Duration::from_secs(80));
    world.no_candidate_is_degraded();
    for slot in 0..3 {
        assert_eq!(world.verdict("cloud", slot), Verdict::Forwarding);
    }
}

#[test]
fn an_answer_of_before_the_start_with_the_same_numbers_is_not_believed() {
    let mut world = World::new(mesh(CLOUD), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.kept = true;
    world.run_until(ms(9_000));
    for slot in 0..3 {
        assert_ne!(world.verdict("cloud", slot), Verdict::Forwarding);
    }
    assert_eq!(world.observer.forged_replies(), 0, "they are authentic");
}

#[test]
fn one_peers_sessions_push_out_its_own_and_no_others() {
    let mesh = Arc::new(mesh(CLOUD));
    let key = |of: &str| {
        let mut keys =
            ProbeKeys::new([mesh.nodes[&"cloud-1".parse::<NodeName>().unwrap()].index.0 as u8; 32]);
        keys.with(&mesh.nodes[&of.parse::<NodeName>().unwrap()].wireguard_key)
    };
    let mut reflector =
        Reflector::new(mesh.clone(), "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
    let local: SocketAddr = "10.42.3.1:8620".parse().unwrap();
    let mut ask = |from: &str, of: &str, at: u64, ssid: u16| {
        let timestamp = WallTime(1_700_000_000_000_000).into();
        let bytes = SenderPacket { seq: 5, timestamp, ssid }.encode(Some(&key(of)), 300);
        let now = Now { mono: Instant(at), wall: WallTime(1_700_000_000_000_000) };
        reflector.handle(now, from.parse().unwrap(), local, 64, &bytes).map(|r| r.len())
    };
    let [(home, h), (cloud, c)] = [("100.127.0.1:4000", "home-0"), ("100.127.0.2:4000", "cloud-0")];
    assert_eq!(ask(home, h, 1, 9), Ok(300));
    for ssid in 0..10_000 {
        assert_eq!(ask(cloud, c, 2 + u64::from(ssid), ssid), Ok(300));
    }
    assert_eq!(ask(home, h, 20_000, 9), Err(Reject::Replayed), "it is remembered");
    assert_eq!(ask(cloud, c, 20_000, 9_999), Err(Reject::Replayed));
    assert_eq!(ask(cloud, c, 20_000, 0), Ok(300), "forgotten for its own later ones");
}

#[test]
fn long_lived_flows_to_what_stays_outlive_a_new_mesh() {
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.run_until(ms(9_000));
    let before = std::mem::take(&mut world.flows);
    assert!(!before.is_empty() && before.is_subset(&world.observer.pinned_flows()));
    // cloud-1 leaves: the paths after it have other numbers, and so have the targets.
    let mut without = mesh(CLOUD_AND_MEMBERS);
    without.edit().nodes.remove(&"cloud-1".parse::<NodeName>().unwrap());
    world.observer.set_mesh(world.clock(), Arc::new(without));
    world.run_until(ms(20_000));
    let after = std::mem::take(&mut world.flows);
    assert!(after.is_subset(&before), "{after:?} are not all among {before:?}");
    assert!(!after.is_empty() && after.is_subset(&world.observer.pinned_flows()));
    let gone: Vec<u32> = before.difference(&world.observer.pinned_flows()).copied().collect();
    assert!(gone.iter().any(|flow| flow & 0xff == 1), "those through cloud-1 are over: {gone:?}");
    // It comes back, and no packet has its numbers.
    world.observer.set_mesh(world.clock(), Arc::new(mesh(CLOUD_AND_MEMBERS)));
    world.run_until(ms(30_000));
    assert!(after.is_subset(&world.observer.pinned_flows()));
    assert_eq!(world.verdict("cloud", 1), Verdict::Forwarding);
    world.no_candidate_is_degraded();
}
