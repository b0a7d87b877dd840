//! Recovery, verification, budget, and the edges of the packets.

use super::*;

#[test]
fn a_node_that_no_candidate_reaches_is_named_and_held_against_none() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 3, |p: &Seen<'_>| {
        let dead = p.at > Duration::from_secs(20) && p.at < Duration::from_secs(60);
        if p.target == "cloud-2" && dead { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    let cloud = "cloud".parse().unwrap();
    world.run_until(Duration::from_secs(25));
    assert_eq!(world.observer.unreached(&cloud), [], "not at once: it may be starting");
    world.run_until(Duration::from_secs(50));
    let unreached = world.observer.unreached(&cloud);
    let words: Vec<String> = unreached.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(words[0].starts_with("cloud-2 is reached through no candidate: look at cloud-2"));
    world.run_until(Duration::from_secs(80));
    assert_eq!(world.observer.unreached(&cloud), []);
    world.no_candidate_is_degraded();
    let logged = |words: &str| world.logs.iter().filter(|l| l.contains(words)).count();
    assert_eq!(logged("cloud-2 is reached through no candidate"), 1, "{:?}", world.logs);
    assert_eq!(logged("cloud-2 is reached again"), 1, "{:?}", world.logs);
}

#[test]
fn while_nothing_comes_back_no_node_is_named() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 4, |p: &Seen<'_>| {
        if p.at > Duration::from_secs(20) { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(Duration::from_secs(80));
    assert_eq!(world.observer.unreached(&"cloud".parse().unwrap()), []);
}
use crate::probe::Reject;

#[test]
fn a_leader_that_recovers_is_forwarding_again_but_not_at_once() {
    let mut world = World::new(mesh(CLOUD), 2, |p: &Seen<'_>| {
        if (30_000..35_000).contains(&p.at.as_millis()) && p.behind(0) {
            Fate::Lost
        } else {
            Fate::Back(ms(20))
        }
    });
    world.run_until(ms(36_500));
    assert!(world.verdict("cloud", 0).is_degraded());
    world.run_until(ms(38_500));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_leader_recovers_however_seldom_it_is_probed() {
    for interval in [ms(20), ms(400), ms(3000)] {
        let mut mesh = mesh(CLOUD);
        mesh.edit().policy.probe_interval = interval;
        mesh.edit().policy.slow_probe_interval = interval.max(mesh.policy.slow_probe_interval);
        let (fault, end) = (Duration::from_secs(60), Duration::from_secs(160));
        let mut world = World::new(mesh, 2, |p: &Seen<'_>| {
            if p.at > fault && p.at < end && p.behind(0) { Fate::Lost } else { Fate::Back(ms(20)) }
        });
        world.run_until(end);
        assert!(world.verdict("cloud", 0).is_degraded(), "{interval:?}");
        world.run_until(end + interval * 30);
        world.run_until(world.now.since(Instant(0)) + Duration::from_secs(3));
        assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding, "{interval:?}");
    }
}

/// cloud-0 drops what goes to cloud-3 until 30 s.
fn partial_until_30_s<'n>() -> World<'n> {
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
        let at = (20_000..30_000).contains(&p.at.as_millis());
        if at && p.via == Some(0) && p.target == "cloud-3" {
            Fate::Lost
        } else {
            Fate::Back(ms(20))
        }
    });
    world.run_until(Duration::from_secs(24));
    assert_eq!(world.verdict("cloud", 0).fault(), Some(Fault::Partial));
    world
}

#[test]
fn what_a_partial_verdict_is_about_outlives_a_new_mesh() {
    let mut world = partial_until_30_s();
    world.observer.set_mesh(world.clock(), Arc::new(mesh(CLOUD_AND_MEMBERS)));
    for at in [26, 29] {
        world.run_until(Duration::from_secs(at));
        assert_eq!(world.verdict("cloud", 0).fault(), Some(Fault::Partial), "not yet mended");
    }
    world.run_until(Duration::from_secs(40));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_partial_verdict_about_a_node_that_is_gone_ends() {
    let mut world = partial_until_30_s();
    let mut without = mesh(CLOUD_AND_MEMBERS);
    without.edit().nodes.remove(&"cloud-3".parse::<NodeName>().unwrap());
    world.observer.set_mesh(world.clock(), Arc::new(without));
    world.run_until(Duration::from_secs(29));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_partial_verdict_about_a_node_that_no_path_reaches_any_more_ends() {
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |p: &Seen<'_>| {
        let from = if p.via == Some(0) { 20 } else { 25 };
        let lost = p.at > Duration::from_secs(from) && p.target == "cloud-3";
        if lost { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(Duration::from_secs(24));
    assert_eq!(world.verdict("cloud", 0).fault(), Some(Fault::Partial));
    world.run_until(Duration::from_secs(40));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_decision_is_verified_and_the_blackout_measured() {
    let mut world = World::new(mesh(CLOUD), 2, |p: &Seen<'_>| {
        // As-workload probes follow the leader: slot 0 until 30.4 s.
        let through_0 = p.behind(0) || p.via.is_none() && p.at < ms(30_400);
        if p.at > ms(30_000) && through_0 { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    let cloud: LocationName = "cloud".parse().unwrap();
    world.observer.decided(world.clock(), &cloud, Epoch(1), &[Slot(0)]);
    world.run_until(ms(30_300));
    assert_eq!(world.verified, [(Epoch(1), None)]);
    world.observer.decided(world.clock(), &cloud, Epoch(2), &[Slot(1)]);
    world.run_until(ms(31_000));
    let (epoch, blackout) = world.verified[1];
    assert_eq!(epoch, Epoch(2));
    let blackout = blackout.unwrap();
    assert!(blackout >= ms(400) && blackout <= ms(530), "{blackout:?}");
}

#[test]
fn a_degraded_leader_is_reported_again_and_again() {
    let mut world = World::new(mesh(CLOUD), 2, |p: &Seen<'_>| {
        if p.at > ms(30_000) && p.behind(0) { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.observer.decided(world.clock(), &"cloud".parse().unwrap(), Epoch(1), &[Slot(0)]);
    world.run_until(ms(29_999));
    let before = world.reports.len();
    assert!((25..=60).contains(&before), "one a second and the first verdicts: {before}");
    world.run_until(ms(33_000));
    assert!(world.reports.len() - before >= 20);
}

#[test]
fn no_second_has_more_probes_than_the_budget() {
    let mut mesh = mesh(CLOUD_AND_MEMBERS);
    mesh.edit().policy.probe_budget = 40;
    let mut world =
        World::new(
            mesh,
            2,
            |p: &Seen<'_>| if p.random < 0.3 { Fate::Lost } else { Fate::Back(ms(20)) },
        );
    world.run_until(Duration::from_secs(120));
    for (i, at) in world.sent.iter().enumerate() {
        let in_second =
            world.sent[i..].iter().take_while(|t| t.since(*at) < Duration::from_secs(1)).count();
        assert!(in_second <= 40, "{in_second} at {at:?}");
    }
    assert!(world.observer.rounds_left_out() > 0);
    let now = world.clock().mono;
    assert!(world.observer.is_short_of_probes(now));
    assert!(!world.observer.is_short_of_probes(now + Duration::from_secs(60)));
}

#[test]
fn a_budget_that_is_too_small_leaves_out_rounds_of_all_locations_alike() {
    // One location with many slots beside two with one; each round of the one costs more than half of what comes in meanwhile.
    let names: Vec<String> = (0..8).map(|n| format!("wide-{n}")).collect();
    let wide = names.iter().zip(0..).map(|(name, slot)| (name.as_str(), "wide", Some(slot)));
    let narrow =
        [("home-0", "home", Some(0)), ("east-0", "east", Some(0)), ("west-0", "west", Some(0))];
    let mut mesh = mesh(&narrow.into_iter().chain(wide).collect::<Vec<_>>());
    mesh.edit().policy.probe_budget = 40;
    let mut rounds: std::collections::BTreeMap<String, u32> = Default::default();
    let mut world = World::new(mesh, 2, |p: &Seen<'_>| {
        let location = p.target.split('-').next().unwrap_or_default();
        *rounds.entry(location.to_owned()).or_default() += 1;
        Fate::Back(ms(20))
    });
    world.run_until(Duration::from_secs(120));
    assert!(world.observer.rounds_left_out() > 100);
    drop(world);
    // 20 probes a second, of which a round over `wide` takes 8 and the others 1 each: each comes round twice a second.
    let rate = |location: &str, slots: f64| f64::from(rounds[location]) / slots / 120.0;
    let rates = [rate("wide", 8.0), rate("east", 1.0), rate("west", 1.0)];
    assert!(rates.iter().all(|r| (1.0..=4.0).contains(r)), "{rates:?}");
}

#[test]
fn idle_rate_and_memory_stay_small() {
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.run_until(Duration::from_secs(100));
    let per_second = world.sent.len() / 100;
    assert!((35..=60).contains(&per_second), "{per_second}");
    assert!(world.observer.in_flight.len() < 20 && world.observer.timers.len() < 40);
    let probes = world.observer.in_flight.len();
    assert_eq!(world.observer.in_flight.entries(), (probes, probes));
}

#[test]
fn a_location_is_watched_as_often_as_its_own_policy_says() {
    let sent = |interval: Option<Duration>| {
        let mut mesh = mesh(CLOUD_AND_MEMBERS);
        let policy = mesh.policy.clone();
        let cloud = mesh.edit().locations.get_mut(&"cloud".parse().unwrap()).expect("it is there");
        cloud.policy = interval.map(|i| crate::mesh::Policy { probe_interval: i, ..policy });
        let mut world = World::new(mesh, 2, |_: &Seen<'_>| Fate::Back(ms(20)));
        world.run_until(Duration::from_secs(60));
        world.sent.len()
    };
    let (seldom, as_the_mesh, often) = (sent(Some(ms(400))), sent(None), sent(Some(ms(50))));
    assert!(
        seldom * 3 < as_the_mesh && as_the_mesh * 3 < often * 2,
        "{seldom} {as_the_mesh} {often}"
    );
}

#[test]
fn a_single_candidate_with_nothing_else_behind_it_is_forwarding_while_its_tunnel_answers() {
    let nodes = &CLOUD[..2];
    let mut world = World::new(mesh(nodes), 2, |p: &Seen<'_>| {
        if p.at > Duration::from_secs(20) { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(Duration::from_secs(15));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
    world.run_until(Duration::from_secs(25));
    assert_ne!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_member_observes_nothing() {
    let mesh = Arc::new(mesh(CLOUD_AND_MEMBERS));
    let now = Now::default();
    let mut observer =
        Observer::new(mesh, "cloud-3".parse().unwrap(), ProbeKeys::new([5; 32]), 1, now);
    assert_eq!((observer.poll_timeout(), observer.poll_output()), (None, None));
}

#[test]
fn a_new_mesh_keeps_what_is_known() {
    let mut world = World::new(mesh(CLOUD), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.run_until(Duration::from_secs(5));
    let mesh = Arc::new(mesh(CLOUD));
    world.observer.set_mesh(world.clock(), mesh);
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
    world.run_until(Duration::from_secs(10));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn the_reflector_refuses_strangers_replays_and_forgeries_and_believes_a_restart() {
    let mesh = Arc::new(mesh(CLOUD));
    let mut keys = ProbeKeys::new([1; 32]);
    let key = keys.with(&mesh.nodes[&"cloud-1".parse::<NodeName>().unwrap()].wireguard_key);
    let mut reflector =
        Reflector::new(mesh.clone(), "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
    let from: SocketAddr = "100.127.0.1:4000".parse().unwrap();
    let local: SocketAddr = "10.42.3.1:8620".parse().unwrap();
    let packet = |seq, second: u64| {
        let timestamp = WallTime(1_700_000_000_000_000 + second * 1_000_000).into();
        SenderPacket { seq, timestamp, ssid: 9 }.encode(Some(&key), 300)
    };
    let now = Now::default();
    let mut ask =
        |from, bytes: &[u8]| reflector.handle(now, from, local, 64, bytes).map(|r| r.len());
    assert_eq!(ask(from, &packet(5, 0)), Ok(300));
    assert_eq!(ask(from, &packet(5, 0)), Err(Reject::Replayed));
    assert_eq!(ask(from, &packet(7, 0)), Ok(300));
    assert_eq!(ask(from, &packet(6, 0)), Ok(300), "overtaken, not replayed");
    assert_eq!(ask("203.0.113.9:1".parse().unwrap(), &packet(8, 0)), Err(Reject::UnknownSource));
    assert_eq!(
        ask("10.42.2.1:1".parse().unwrap(), &packet(8, 0)),
        Err(Reject::BadHmac),
        "another node's address"
    );
    assert_eq!(ask(from, &packet(8, 0)[..111]), Err(Reject::Truncated));
    assert_eq!(ask(from, &packet(1000, 10)), Ok(300));
    assert_eq!(ask(from, &packet(5, 0)), Err(Reject::Replayed), "old, and its clock is old");
    assert_eq!(ask(from, &packet(0, 20)), Ok(300), "the sender has started again");
}

#[test]
fn who_is_watched_counts_on_those_that_watch_at_full_rate_and_no_others() {
    let nodes: Vec<(String, String)> =
        (0..12).map(|l| (format!("l{l}-0"), format!("l{l}"))).collect();
    let nodes: Vec<_> = nodes.iter().map(|(n, l)| (n.as_str(), l.as_str(), Some(0))).collect();
    let mesh = mesh(&nodes);
    for location in mesh.locations.keys() {
        let watchers: BTreeSet<LocationName> =
            crate::observe::full_watchers(&mesh, location).collect();
        for other in mesh.locations.keys().filter(|o| *o != location) {
            let fully = crate::observe::location::is_watched_fully(&mesh, other, location);
            assert_eq!(fully, watchers.contains(other), "{location} by {other}");
        }
    }
}

/// A mesh of this many locations with two candidates each, seen from `home-0`, for ten seconds after the first twenty.
fn crowd(locations: usize) -> (usize, usize) {
    let names: Vec<(String, String, u8)> = (0..locations)
        .flat_map(|l| (0..2).map(move |n| (format!("l{l}-{n}"), format!("l{l}"), n)))
        .collect();
    let mut nodes = vec![("home-0", "home", Some(0))];
    nodes.extend(names.iter().map(|(n, l, s)| (n.as_str(), l.as_str(), Some(*s))));
    let mut world = World::new(mesh(&nodes), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.run_until(ms(20_000));
    let (sent, reports) = (world.sent.len(), world.reports.len());
    world.run_until(ms(30_000));
    let full = |r: &Report| r.full_rate;
    let full: BTreeSet<&LocationName> =
        world.reports.iter().map(|r| &r.1).filter(|r| full(r)).map(|r| &r.location).collect();
    // What is watched at full rate differs with the names; the rest is what grows.
    let fast = full.len() * 10 * 30;
    for l in 0..locations {
        assert_eq!(world.verdict(&format!("l{l}"), 0), Verdict::Forwarding, "of {locations}");
    }
    ((world.sent.len() - sent).saturating_sub(fast), world.reports.len() - reports)
}

#[test]
fn in_a_large_mesh_an_observer_sends_no_more_probes_and_reports_than_in_one_of_forty_locations() {
    let (probes, reports) = crowd(40);
    let (more_probes, more_reports) = crowd(110);
    assert!(more_probes <= probes * 3 / 2, "{probes} {more_probes}");
    assert!(more_reports <= reports * 3, "{reports} {more_reports}");
    assert!(more_reports < 110 * 10 / 3, "{more_reports}");
}

/// A leader with issue #489 answers at its own address.
#[test]
fn a_relay_whose_targets_are_still_to_be_heard_of_is_not_called_forwarding() {
    let mut silent = mesh(PAIR_AND_MEMBER);
    silent.edit().nodes.values_mut().for_each(|n| n.probe_addresses.clear());
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    // As at the start of a node: what the file says of them is taken back.
    world.observer.targets_are_awaited(true);
    let now = world.clock();
    world.observer.readdress(now, silent.into());
    world.run_until(ms(3_000));
    assert_eq!(world.verdict("cloud", 0), Verdict::Unknown);
    world.observer.targets_are_awaited(false);
    world.run_until(ms(6_000));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}
