//! Losses and delays that are no fault of a candidate.

use super::*;

fn back(p: &Seen<'_>) -> Fate {
    Fate::Back(Duration::from_micros(20_000 + (p.random * 2000.0) as u64))
}

/// The whole two hours take minutes in a debug build: `cargo test --release -- --ignored`.
#[test]
#[ignore = "long"]
fn ten_percent_loss_on_every_path_degrades_no_candidate_in_two_hours_of_three_observers() {
    ten_percent_loss(120);
}

#[test]
fn ten_percent_loss_on_every_path_degrades_no_candidate() {
    ten_percent_loss(10);
}

fn ten_percent_loss(minutes: u64) {
    for seed in 0..3 {
        let mut world = World::new(mesh(CLOUD_AND_MEMBERS), seed, |p: &Seen<'_>| {
            if p.random < 0.1 { Fate::Lost } else { back(p) }
        });
        for minute in 1..=minutes {
            world.run_until(Duration::from_secs(60 * minute));
            world.no_candidate_is_degraded();
            world.reports.clear();
        }
    }
}

#[test]
#[ignore = "long"]
fn two_percent_loss_degrades_no_candidate_in_six_hours() {
    let mut world = World::new(
        mesh(CLOUD),
        9,
        |p: &Seen<'_>| if p.random < 0.02 { Fate::Lost } else { back(p) },
    );
    for minute in 1..=360 {
        world.run_until(Duration::from_secs(60 * minute));
        world.no_candidate_is_degraded();
        world.reports.clear();
    }
}

#[test]
fn a_brownout_that_begins_suddenly_degrades_no_candidate() {
    for seed in 0..8 {
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            if p.at > Duration::from_secs(60) && p.random < 0.1 { Fate::Lost } else { back(p) }
        });
        world.run_until(Duration::from_secs(180));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn a_short_burst_of_loss_on_one_path_degrades_no_candidate() {
    // The weather of one link is no fault of the candidate behind it.
    for seed in 0..8 {
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            let bad = p.at.as_secs() >= 20 && p.at.as_millis() % 20_000 < 700;
            if bad && p.via == Some(0) && p.random < 0.4 { Fate::Lost } else { back(p) }
        });
        world.run_until(Duration::from_secs(120));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn slow_and_jittery_paths_degrade_no_candidate() {
    for seed in 0..2 {
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            Fate::Back(Duration::from_micros(600_000 + (p.random * 400_000.0) as u64))
        });
        world.run_until(Duration::from_secs(300));
        world.no_candidate_is_degraded();
        assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
    }
}

#[test]
fn a_sudden_second_of_delay_is_no_loss() {
    for seed in 0..10 {
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            let rtt = if (30_000..31_000).contains(&p.at.as_millis()) { 300 } else { 20 };
            Fate::Back(ms(rtt))
        });
        world.run_until(Duration::from_secs(40));
        world.no_candidate_is_degraded();
        assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
    }
}

#[test]
fn a_pause_of_the_daemon_is_neither_loss_nor_delay() {
    for seed in 0..10 {
        let fault = Duration::from_secs(60);
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            if p.at >= fault && p.behind(0) { Fate::Lost } else { back(p) }
        });
        let second = Duration::from_secs(1);
        for n in 10..60 {
            world.run_until(second * n + ms(seed * 13));
            world.pause(ms(30 + seed * 41));
        }
        world.run_until(fault);
        let calm = |s: &crate::verdict::SlotReport| {
            matches!(s.verdict, Verdict::Forwarding | Verdict::Unknown)
        };
        let alarm = world.reports.iter().find(|(_, r)| !r.slots.iter().all(calm));
        assert!(alarm.is_none(), "seed {seed}: {alarm:?}");
        // And what comes after a pause is found as fast as ever.
        world.run_until(fault + ms(400));
        assert!(world.first_degraded(0).is_some(), "seed {seed}");
    }
}

#[test]
fn a_dead_member_is_no_candidates_fault() {
    for seed in 0..10 {
        let mut world = World::new(mesh(CLOUD_AND_MEMBERS), seed, |p: &Seen<'_>| {
            if p.at > Duration::from_secs(30) && p.target == "cloud-3" {
                Fate::Lost
            } else {
                back(p)
            }
        });
        world.run_until(Duration::from_secs(90));
        world.no_candidate_is_degraded();
        let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
        assert!(
            view.slots.iter().all(|s| s.verdict == Verdict::Forwarding && s.loss < 0.05),
            "{view:?}"
        );
    }
}

#[test]
fn a_member_that_drops_large_packets_is_no_candidates_fault() {
    for (nodes, least) in [(CLOUD_AND_MEMBERS, 1300), (CLOUD_AND_MEMBERS, 600), (CLOUD, 1300)] {
        let mut world = World::new(mesh(nodes), 5, |p: &Seen<'_>| {
            let dropped = p.target == nodes[nodes.len() - 1].0 && p.size > least;
            if p.at > secs(30) && dropped && !p.class.is_of_tunnel() { Fate::Lost } else { back(p) }
        });
        world.run_until(secs(90));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn weather_that_all_paths_have_in_turn_is_no_loss_beyond_that_of_others() {
    for seed in 0..3 {
        let mut world = World::new(mesh(CLOUD_AND_MEMBERS), seed, |p: &Seen<'_>| {
            let slot = u128::from(p.via.unwrap_or(0));
            let phase = (p.at.as_millis() + slot * 370) % 1000;
            if phase < 60 && p.random < 0.5 { Fate::Lost } else { back(p) }
        });
        world.run_until(secs(300));
        let lossy = |v: &Verdict| v.fault() == Some(Fault::Loss);
        let found = world.reports.iter().find(|(_, r)| r.slots.iter().any(|s| lossy(&s.verdict)));
        assert!(found.is_none(), "seed {seed}: {found:?}");
    }
}

#[test]
fn an_observer_whose_uplink_dies_abstains_and_comes_back_without_blame() {
    for seed in 0..10 {
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            if (30_000..40_000).contains(&p.at.as_millis()) { Fate::Lost } else { back(p) }
        });
        world.run_until(Duration::from_secs(35));
        let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
        assert!(view.abstains);
        world.run_until(Duration::from_secs(60));
        world.no_candidate_is_degraded();
        assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
        assert!(!world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap().abstains);
    }
}

#[test]
fn a_short_silence_of_all_paths_degrades_no_candidate() {
    for seed in 0..60 {
        let silence = 30_000..30_000 + u128::from(seed + 1) * 17;
        let mut world = World::new(mesh(CLOUD), seed, |p: &Seen<'_>| {
            if silence.contains(&p.at.as_millis()) { Fate::Lost } else { back(p) }
        });
        world.run_until(Duration::from_secs(36));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn a_dead_daemon_on_a_candidate_that_forwards_degrades_no_candidate() {
    let mut world = World::new(mesh(CLOUD), 4, |p: &Seen<'_>| {
        if p.at > Duration::from_secs(30) && p.target == "cloud-0" { Fate::Lost } else { back(p) }
    });
    world.run_until(Duration::from_secs(60));
    world.no_candidate_is_degraded();
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn our_own_broken_plane_is_not_the_candidates_fault() {
    let mut world = World::new(mesh(CLOUD), 4, |p: &Seen<'_>| {
        if p.at > Duration::from_secs(30) && p.via == Some(0) {
            Fate::Fails(ProbeError::Local { errno: 100 }, Duration::ZERO)
        } else {
            back(p)
        }
    });
    world.run_until(Duration::from_secs(60));
    world.no_candidate_is_degraded();
    assert_eq!(world.verdict("cloud", 0), Verdict::Unknown);
    assert_eq!(world.verdict("cloud", 1), Verdict::Forwarding);
}
