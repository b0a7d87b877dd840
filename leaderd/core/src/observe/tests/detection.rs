//! Each fault is found, named, and found fast.

use super::*;

const FAULT: Duration = Duration::from_secs(12);

/// Runs a fault that begins at `FAULT` + 0..100 ms, over some seeds, and returns the median time to the verdict.
fn detects(
    nodes: &[(&str, &str, Option<u8>)],
    cause: Fault,
    within: Duration,
    fault: impl FnMut(&Seen<'_>) -> Option<Fate>,
) -> Vec<Option<Direction>> {
    detects_in(&|| mesh(nodes), cause, within, fault)
}

fn detects_in(
    mesh: &dyn Fn() -> Mesh,
    cause: Fault,
    within: Duration,
    fault: impl FnMut(&Seen<'_>) -> Option<Fate>,
) -> Vec<Option<Direction>> {
    detects_before(mesh, cause, within, secs(10), fault)
}

fn detects_within(
    nodes: &[(&str, &str, Option<u8>)],
    cause: Fault,
    within: Duration,
    limit: Duration,
    fault: impl FnMut(&Seen<'_>) -> Option<Fate>,
) -> Vec<Option<Direction>> {
    detects_before(&|| mesh(nodes), cause, within, limit, fault)
}

/// The same, with a limit of time for every seed.
fn detects_before(
    mesh: &dyn Fn() -> Mesh,
    cause: Fault,
    within: Duration,
    limit: Duration,
    mut fault: impl FnMut(&Seen<'_>) -> Option<Fate>,
) -> Vec<Option<Direction>> {
    let mut times = Vec::new();
    let mut ways = Vec::new();
    for seed in 0..21 {
        let start = FAULT + ms(seed * 37 % 100);
        let fault = &mut fault;
        let mut world = World::new(mesh(), seed, move |p: &Seen<'_>| {
            let rtt = Duration::from_micros(20_000 + (p.random * 1000.0) as u64);
            let hit = if p.at >= start { fault(p) } else { None };
            hit.unwrap_or(Fate::Back(rtt))
        });
        world.run_until(FAULT);
        world.no_candidate_is_degraded();
        world.run_until(FAULT + secs(10));
        for s in 10..limit.as_secs() {
            if world.first_degraded(0).is_some() {
                break;
            }
            world.run_until(FAULT + secs(s + 1));
        }
        let (at, found, way) = world.first_degraded(0).expect("the leader is degraded");
        assert_eq!(found, cause, "seed {seed}");
        for standby in 1..3 {
            assert_eq!(
                world.first_degraded(standby),
                None,
                "seed {seed}: standby {standby} is not degraded"
            );
        }
        times.push(at - start);
        ways.push(way);
    }
    times.sort();
    println!("{cause}: {times:?}");
    assert!(times[10] <= within, "median {:?}, all {times:?}", times[10]);
    ways
}

fn lost_if(hit: bool) -> Option<Fate> {
    hit.then_some(Fate::Lost)
}

#[test]
fn a_leader_that_drops_new_flows_is_degraded() {
    detects(CLOUD_AND_MEMBERS, Fault::NewFlow, ms(150), |p| lost_if(p.behind(0) && p.is_fresh()));
}

#[test]
fn a_leader_that_sends_no_new_flows_into_its_overlay_is_degraded_and_its_standbys_are_not() {
    // Kilo #489: what leaves cloud-0 for the overlay dies, so its own workload fails to answer through the standbys.
    detects(CLOUD, Fault::NewFlow, ms(150), |p| {
        lost_if(p.is_fresh() && (p.behind(0) || p.target == "cloud-0" && p.via.is_some()))
    });
}

#[test]
fn with_one_member_only_its_losses_count_and_the_burst_goes_there() {
    // A candidate's own workload cannot be tested through itself, so of all targets the member alone has a control.
    let hit = |p: &Seen<'_>| {
        lost_if(p.is_fresh() && (p.behind(0) || p.target == "cloud-0" && p.via.is_some()))
    };
    detects(PAIR_AND_MEMBER, Fault::NewFlow, ms(150), hit);
    detects_in(&|| dual_stack(mesh(PAIR_AND_MEMBER)), Fault::NewFlow, ms(150), hit);
    detects(PAIR_AND_MEMBER, Fault::TunnelDown, ms(250), |p| {
        lost_if(p.via == Some(0) || p.target == "cloud-0")
    });
}

#[test]
fn a_leader_that_relays_nothing_is_degraded() {
    detects(CLOUD_AND_MEMBERS, Fault::NotForwarding, ms(150), |p| lost_if(p.behind(0)));
}

#[test]
fn a_crashed_leader_is_degraded_and_its_workload_degrades_no_other() {
    for nodes in [CLOUD, CLOUD_AND_MEMBERS, &CLOUD[..3]] {
        // Nothing at all comes back: that may be a path that has become slower, so it takes longer than other faults.
        detects(nodes, Fault::TunnelDown, ms(250), |p| {
            lost_if(p.via == Some(0) || p.target == "cloud-0")
        });
    }
}

#[test]
fn a_routing_loop_is_named() {
    detects(CLOUD_AND_MEMBERS, Fault::Loop, ms(150), |p| {
        p.behind(0).then_some(Fate::Fails(ProbeError::TimeExceeded { from: None }, ms(20)))
    });
}

#[test]
fn a_stale_entry_for_one_member_is_partial() {
    detects(CLOUD_AND_MEMBERS, Fault::Partial, ms(500), |p| {
        lost_if(p.behind(0) && p.target == "cloud-3")
    });
}

#[test]
fn steady_loss_through_the_leader_alone_is_loss() {
    detects(CLOUD_AND_MEMBERS, Fault::Loss, ms(10_000), |p| {
        lost_if(p.via == Some(0) && p.random < 0.4)
    });
}

#[test]
fn loss_beyond_that_of_the_standbys_is_loss() {
    // 15% each way; a quarter of all flows; 8% each way.
    for (nodes, share, within) in [
        (CLOUD_AND_MEMBERS, 0.28, 9_000),
        (PAIR_AND_MEMBER, 0.25, 12_000),
        (CLOUD_AND_MEMBERS, 0.15, 40_000),
    ] {
        detects_within(nodes, Fault::Loss, ms(within), secs(60), |p| {
            lost_if(p.behind(0) && p.random < share)
        });
    }
}

#[test]
fn packets_of_some_sizes_that_only_the_leader_loses_are_loss() {
    for (from, to) in [(600, 900), (180, 500)] {
        detects(PAIR_AND_MEMBER, Fault::Loss, ms(2_500), |p| {
            lost_if(p.behind(0) && p.is_fresh() && (from..=to).contains(&p.size))
        });
    }
    // A few sizes are drawn rarely.
    detects_within(CLOUD_AND_MEMBERS, Fault::Loss, ms(8_000), secs(60), |p| {
        lost_if(p.behind(0) && p.is_fresh() && (700..=780).contains(&p.size))
    });
}

#[test]
fn the_direction_of_the_loss_is_known() {
    let ways = detects(CLOUD_AND_MEMBERS, Fault::NewFlow, ms(150), |p| {
        lost_if(p.behind(0) && p.is_fresh())
    });
    assert!(ways.iter().all(|w| *w == Some(Direction::Forward)), "{ways:?}");
    let ways = detects(CLOUD_AND_MEMBERS, Fault::NewFlow, ms(150), |p| {
        (p.behind(0) && p.is_fresh()).then_some(Fate::LostBack)
    });
    assert!(ways.iter().all(|w| *w == Some(Direction::Return)), "{ways:?}");
}

#[test]
fn an_mtu_black_hole_is_named_and_measured() {
    detects(CLOUD_AND_MEMBERS, Fault::Mtu, ms(450), |p| lost_if(p.via == Some(0) && p.size > 1300));
    let mut world = World::new(mesh(CLOUD_AND_MEMBERS), 3, |p: &Seen<'_>| {
        if p.at > FAULT && p.via == Some(0) && p.size > 1300 {
            Fate::Lost
        } else {
            Fate::Back(ms(20))
        }
    });
    world.run_until(FAULT + Duration::from_secs(4));
    let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
    let mtu = view.slots[0].path_mtu.unwrap();
    assert!((1290..=1300).contains(&mtu), "{mtu}");
    assert_eq!(view.slots[1].path_mtu, Some(1420));
}

#[test]
fn a_sick_standby_is_seen_before_it_is_needed() {
    let mut world = World::new(mesh(CLOUD), 5, |p: &Seen<'_>| {
        let at = Duration::from_secs(20);
        let first = p.at > at && p.behind(1);
        let then = p.at > at * 2 && p.behind(0);
        if first || then { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(Duration::from_secs(30));
    assert_eq!(world.verdict("cloud", 1).fault(), Some(Fault::NotForwarding));
    assert_eq!(world.observer.own_choice(&"cloud".parse().unwrap()), Some(Slot(0)));
    world.run_until(Duration::from_secs(42));
    assert_eq!(world.verdict("cloud", 0).fault(), Some(Fault::NotForwarding));
    assert_eq!(world.observer.own_choice(&"cloud".parse().unwrap()), Some(Slot(2)));
}

#[test]
fn all_candidates_sick_is_said_of_all() {
    let mut world = World::new(mesh(CLOUD), 5, |p: &Seen<'_>| {
        if p.at > FAULT && p.via.is_some() && p.is_fresh() {
            Fate::Lost
        } else {
            Fate::Back(ms(20))
        }
    });
    world.run_until(FAULT + Duration::from_secs(3));
    for slot in 0..3 {
        assert_eq!(world.verdict("cloud", slot).fault(), Some(Fault::NewFlow), "slot {slot}");
    }
}

#[test]
fn evidence_comes_with_the_verdict() {
    let mut world = World::new(mesh(CLOUD), 5, |p: &Seen<'_>| {
        if p.at > FAULT && p.behind(0) && p.is_fresh() { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(FAULT + Duration::from_secs(1));
    let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
    let slot = &view.slots[0];
    let row =
        |class| slot.evidence.iter().find(|r| r.class == class && r.target.is_none()).unwrap();
    let lost = row(ProbeClass::NewFlow).lost + row(ProbeClass::FullSize).lost;
    assert!(lost >= 7 && lost == row(ProbeClass::NewFlow).sent + row(ProbeClass::FullSize).sent);
    assert_eq!(row(ProbeClass::PinnedFlow).lost, 0);
    assert_eq!(row(ProbeClass::Relay).lost, 0);
    assert!(slot.first_loss < slot.suspected && slot.suspected <= Some(slot.since));
}

#[test]
fn a_second_fault_elsewhere_soon_after_the_first_is_found_as_fast() {
    let mut times = Vec::new();
    for seed in 0..21 {
        let second = ms(26_000 + seed * 37 % 100);
        let mut world = World::new(mesh(PAIR_AND_MEMBER), seed, move |p: &Seen<'_>| {
            let sick = |slot: u8, from: Duration, until: Duration| {
                let own = format!("cloud-{slot}");
                (from..until).contains(&p.at)
                    && p.is_fresh()
                    && (p.behind(slot) || p.target == own && p.via.is_some())
            };
            let hit = sick(0, ms(22_000), ms(23_000)) || sick(1, second, ms(36_000));
            if hit { Fate::Lost } else { Fate::Back(ms(20)) }
        });
        world.run_until(ms(25_900));
        world.reports.clear();
        world.run_until(ms(35_000));
        times.push(world.first_degraded(1).map(|c| c.0 - second));
    }
    times.sort();
    println!("second fault: {times:?}");
    assert!(times[10].is_some_and(|t| t < ms(200)), "{times:?}");
}

#[test]
fn a_hiccup_of_the_standby_at_the_same_time_does_not_hide_the_fault() {
    // The one target that both can test is lost through both for a moment, and must not be taken for dead.
    let mut times = Vec::new();
    for seed in 0..21 {
        let start = FAULT + ms(seed * 37 % 100);
        let mut world = World::new(mesh(PAIR_AND_MEMBER), seed, move |p: &Seen<'_>| {
            let hiccup = (start..start + ms(350)).contains(&p.at) && p.behind(1);
            let fault = p.at >= start && p.is_fresh() && p.behind(0);
            if hiccup || fault { Fate::Lost } else { Fate::Back(ms(20)) }
        });
        world.run_until(FAULT + Duration::from_secs(5));
        times.push(world.first_degraded(0).map(|c| c.0 - start));
    }
    times.sort();
    println!("with a hiccup: {times:?}");
    let soon = |t: &Option<Duration>| t.is_some_and(|t| t < ms(1_500));
    assert!(times.iter().all(soon), "{times:?}");
}
