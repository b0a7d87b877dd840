use super::cluster::{Cluster, MS, mesh, name};
use crate::admin::{AdminRequest, AdminResponse};
use crate::fault::{Fault, MoveReason};
use crate::ids::Slot;
use crate::state::EventKind;
use crate::verdict::Verdict;
use std::collections::BTreeMap;
use std::time::Duration;

fn done(response: &AdminResponse) -> bool {
    matches!(response, AdminResponse::Done { .. })
}

#[test]
fn a_new_location_decides_for_its_preferred_candidate_and_moves_raft_away_from_it() {
    let c = Cluster::settled(mesh(3, 0, 0), 1);
    assert_eq!(c.event().cause, Some(MoveReason::Initial));
    assert!(c.event().times.committed.is_some());
    assert!(c.leaders().values().all(|l| *l == (1, vec![0])));
}

#[test]
fn a_leader_that_most_observers_report_is_replaced_at_once() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    c.report_failure(0, &["home-0", "home-1"]);
    let took = c.until(200, "failover", |c| c.all_follow(1));
    assert!(took <= 60, "took {took} ms");
    c.run(500);
    let event = c.event();
    assert_eq!((event.kind, event.cause), (EventKind::Failover, Some(Fault::NewFlow.into())));
    assert_eq!(event.leaders_before, [name("cloud-0")]);
    assert_eq!(event.evidence.len(), 3);
    assert_eq!(event.blackout, Some(Duration::from_millis(120)));
    let t = event.times;
    assert!(t.first_loss.is_some() && t.condemned.is_some() && t.committed.is_some());
    assert!(t.programmed.is_some() && t.verified.is_some());
    assert!(event.summary.contains("2 of 3"), "{}", event.summary);
}

#[test]
fn one_sick_observer_moves_nothing() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 3);
    c.report_failure(0, &["home-2"]);
    c.run(30_000);
    assert!(c.all_follow(0));
}

#[test]
fn observers_that_fall_silent_no_longer_count() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 4);
    c.observers = vec![name("home-2")];
    c.report_failure(0, &["home-2"]);
    c.run(1500);
    assert!(c.all_follow(0), "the others' last reports are still fresh");
    c.run(3000);
    assert!(c.all_follow(1));
}

#[test]
fn a_standby_that_does_not_forward_is_passed_over() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 5);
    c.report_failure(1, &["home-0", "home-1", "home-2"]);
    c.run(2000);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.until(200, "failover to the third", |c| c.all_follow(2));
    let told = [(name("cloud-1"), vec!["not seen forwarding by most observers".to_owned()])];
    assert_eq!(c.event().blocked_by, told.into(), "the event keeps why");
}

#[test]
fn of_two_that_forward_the_one_passed_over_was_merely_later_in_the_order() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 5);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.until(200, "failover", |c| c.all_follow(1));
    let told = [(name("cloud-2"), vec!["later in the order of preference".to_owned()])];
    assert_eq!(c.event().blocked_by, told.into());
}

#[test]
fn the_leader_stays_when_all_candidates_are_sick_and_that_is_recorded_once() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 6);
    let sick = Verdict::Degraded { cause: Fault::Loss, direction: None };
    for slot in 0..3 {
        for observer in c.observers.clone() {
            c.verdicts.insert((observer, Slot(slot)), sick.clone());
        }
    }
    c.report_now();
    let slot = c.leaders()[&name("cloud-1")].1[0];
    let failovers = c.decided.len();
    c.run(20_000);
    assert_eq!(c.leaders()[&name("cloud-1")].1[0], slot);
    assert_eq!(c.decided.len(), failovers);
    assert_eq!(c.errors.len(), 1, "{:?}", c.errors);
    let leader = c.raft_leader().unwrap();
    let notes = c.groups[&leader].notes_of_election(c.now());
    assert!(notes.iter().any(|n| n.contains("no standby is known to forward")), "{notes:?}");
    c.heal();
    c.run(15_000);
    assert!(!c.groups[&leader].state().in_trouble());
}

#[test]
fn a_leader_that_says_it_is_broken_is_replaced() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 7);
    c.broken.insert(name("cloud-0"), Fault::SelfReported);
    c.until(1500, "failover", |c| c.all_follow(1));
    assert_eq!(c.event().cause, Some(Fault::SelfReported.into()));
}

#[test]
fn a_dead_daemon_on_a_forwarding_relay_is_left_calmly() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 8);
    c.crash(&name("cloud-0"));
    c.run(4000);
    assert!(c.all_follow(0), "not yet");
    c.until(4000, "calm move", |c| c.all_follow(1));
    assert_eq!(
        (c.event().kind, c.event().cause),
        (EventKind::Move, Some(Fault::DaemonDead.into()))
    );
}

#[test]
fn a_crashed_leader_is_replaced_by_evidence_without_an_election() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 9);
    c.crash(&name("cloud-0"));
    c.run(150);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    let took = c.until(200, "failover", |c| c.all_follow(1));
    assert!(took <= 60, "took {took} ms");
}

#[test]
fn the_raft_leader_crashing_during_a_failover_delays_it_by_one_election() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 10);
    let raft = c.raft_leader().unwrap();
    c.crash(&raft);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    let took =
        c.until(5000, "failover", |c| !c.all_follow(0) && c.leaders().values().all(|l| l.0 == 2));
    assert!(took <= 2500, "took {took} ms");
}

#[test]
fn a_crashed_raft_leader_is_replaced_within_a_second_or_so() {
    let mut worst = 0;
    for seed in 0..10 {
        let mut c = Cluster::settled(mesh(4, 1, 0), 100 + seed);
        let raft = c.raft_leader().unwrap();
        c.crash(&raft);
        worst = worst.max(c.until(5000, "a raft leader", |c| c.raft_leader().is_some()));
    }
    assert!(worst <= 1500, "{worst} ms");
}

#[test]
fn a_raft_leader_with_dead_tunnels_hands_over_to_a_voter_that_reaches_other_locations() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 44);
    let cut = c.raft_leader().unwrap();
    let slot = c.mesh.nodes[&cut].slot.unwrap();
    for observer in c.observers.clone() {
        let verdict = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
        c.verdicts.insert((observer, slot), verdict);
    }
    c.report_now();
    let other = name(if cut == name("cloud-1") { "cloud-2" } else { "cloud-1" });
    c.until(3000, "hand-over", |c| c.raft_leader().as_ref() == Some(&other));
    c.run(10_000);
    assert_eq!(c.raft_leader(), Some(other), "it stays there");
    assert!(c.all_follow(0));
}

#[test]
fn decisions_drains_and_freezes_survive_a_restart_of_all_nodes() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 11);
    assert!(done(&c.command(AdminRequest::Promote { node: name("cloud-1"), force: false })));
    assert!(done(&c.command(AdminRequest::Drain { node: name("cloud-2") })));
    let location = "cloud".parse().unwrap();
    assert!(done(&c.command(AdminRequest::Freeze { location, duration: None })));
    c.run(3000);
    let before = c.leaders();
    let nodes: Vec<_> = c.groups.keys().cloned().collect();
    nodes.iter().for_each(|n| c.crash(n));
    c.run(1000);
    nodes.iter().for_each(|n| c.start(n));
    assert_eq!(c.leaders(), before, "known at once, from disk");
    c.until(4000, "a raft leader", |c| c.raft_leader().is_some());
    c.run(3000);
    c.report_failure(1, &["home-0", "home-1", "home-2"]);
    c.run(5000);
    assert!(c.all_follow(1), "frozen");
    let state = c.groups[&nodes[0]].state();
    assert!(state.drained.contains(&name("cloud-2")));
    assert!(done(&c.command(AdminRequest::Unfreeze { location: "cloud".parse().unwrap() })));
    c.until(500, "failover, not to the drained one", |c| c.all_follow(0));
}

#[test]
fn draining_the_leader_moves_leadership_even_while_frozen() {
    let mut c = Cluster::settled(mesh(2, 1, 0), 12);
    let location = "cloud".parse().unwrap();
    assert!(done(
        &c.command(AdminRequest::Freeze { location, duration: Some(Duration::from_secs(600)) })
    ));
    assert!(done(&c.command(AdminRequest::Drain { node: name("cloud-0") })));
    c.until(500, "move", |c| c.all_follow(1));
    assert_eq!(c.event().cause, Some(MoveReason::Drained));
}

#[test]
fn a_promotion_is_refused_unless_the_candidate_forwards_or_it_is_forced() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 13);
    c.report_failure(2, &["home-0", "home-1"]);
    let promote = |force| AdminRequest::Promote { node: name("cloud-2"), force };
    let AdminResponse::Refused { message } = c.command(promote(false)) else {
        panic!("not refused")
    };
    assert!(message.contains("--force"), "{message}");
    assert!(done(&c.command(promote(true))));
}

#[test]
fn a_node_that_is_not_the_raft_leader_says_so() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 14);
    let now = c.now();
    let request = AdminRequest::Drain { node: name("cloud-1") };
    let follower = c.groups.get_mut(&name("cloud-0")).unwrap();
    follower.handle_command(now, 1, &super::cluster::author(), &request);
    let output = std::iter::from_fn(|| follower.poll_output()).last();
    assert_eq!(output, Some(super::super::GroupOutput::NotLeader { id: 1 }));
}

#[test]
fn hold_down_grows_while_a_fault_flaps() {
    let mut c = Cluster::settled(mesh(2, 1, 0), 15);
    let observers = ["home-0", "home-1", "home-2"];
    for _ in 0..60 {
        let leader = c.leaders()[&name("cloud-0")].1[0];
        c.report_failure(leader, &observers);
        c.run(1000);
        c.heal();
        c.run(1000);
    }
    let failovers = c.decided.iter().filter(|d| d.1 == name("member-0")).count() - 1;
    assert!((4..=7).contains(&failovers), "{failovers} in two minutes");
    let policy = c.mesh.policy.clone();
    let (_, hold) = c.groups[&name("cloud-0")].state().hold_down(&policy).unwrap();
    assert!(hold >= Duration::from_secs(8));
}

#[test]
fn a_clock_set_back_an_hour_neither_moves_the_leader_nor_holds_down_for_an_hour() {
    let observers = ["home-0", "home-1", "home-2"];
    let mut c = Cluster::settled(mesh(2, 1, 0), 25);
    c.report_failure(0, &observers);
    c.until(3000, "failover", |c| c.all_follow(1));
    c.heal();
    c.set_back = 3_600_000 * MS;
    let epochs = c.leaders();
    c.run(20_000);
    assert_eq!(c.leaders(), epochs, "the clock alone moves nothing");
    let state = c.groups[&name("cloud-0")].state();
    let (at, hold) = state.hold_down(&c.mesh.policy).unwrap();
    assert!(at > c.now().wall, "the failover lies in the future by now");
    assert!(hold <= Duration::from_secs(20), "{hold:?}");
    c.report_failure(1, &observers);
    c.until(3000, "failover although the clock says that the last one is yet to come", |c| {
        c.all_follow(0)
    });
}

#[test]
fn a_freeze_of_ten_minutes_ends_after_ten_minutes_though_the_clock_was_set_back() {
    let mut c = Cluster::settled(mesh(2, 1, 0), 26);
    let location = "cloud".parse().unwrap();
    let freeze = AdminRequest::Freeze { location, duration: Some(Duration::from_secs(600)) };
    assert!(done(&c.command(freeze)));
    // Until all have applied it.
    c.run(1000);
    c.set_back = 3_600_000 * MS;
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.run(594_000);
    assert!(c.all_follow(0), "frozen");
    let shown = |c: &Cluster| {
        let (g, now) = (&c.groups[&name("cloud-0")], c.now());
        g.freeze_end(now).map(|until| until.map(|until| until.0 - now.wall.0))
    };
    let left = shown(&c);
    assert!(left.flatten().is_some_and(|l| l < 6_000 * MS), "{left:?}");
    c.until(10_000, "failover once the freeze is over", |c| c.all_follow(1));
    c.run(5000);
    assert_eq!(shown(&c), None);
}

#[test]
fn a_freeze_lasts_no_longer_where_the_clock_is_behind() {
    use crate::election::Reports;
    let mut state = crate::state::LocationState::new("cloud".parse().unwrap());
    let hour = 3600 * 1000 * MS;
    let wall = crate::time::WallTime;
    let at = |seconds: u64, wall_micros| crate::time::Now {
        mono: crate::time::Instant(seconds * 1000 * MS),
        wall: wall(wall_micros + seconds * 1000 * MS),
    };
    // Proposed for ten minutes by a clock that is right; this node's is an hour behind.
    let right = 2 * hour;
    let until = crate::state::FreezeEnd {
        until: wall(right + 600 * 1000 * MS),
        span: Duration::from_secs(600),
    };
    state.apply(&crate::state::Command::Freeze { until: Some(until) });
    let mut reports = Reports::new(at(0, right - hour).mono);
    reports.note_state(at(0, right - hour), &state);
    assert!(reports.is_frozen(at(599, right - hour), &state));
    assert!(!reports.is_frozen(at(601, right - hour), &state));
    // Where it is ahead, the end by the wall clock comes first.
    assert!(!reports.is_frozen(at(1, right + hour), &state));
}

#[test]
fn two_candidates_and_a_witness_survive_a_crash() {
    let mut c = Cluster::settled(mesh(2, 0, 1), 16);
    assert_eq!(c.groups.len(), 3);
    c.crash(&name("cloud-0"));
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.until(3000, "failover", |c| c.all_follow(1));
}

#[test]
fn without_a_quorum_nothing_is_decided_and_the_notes_say_so() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 17);
    let raft = c.raft_leader().unwrap();
    let others: Vec<_> = c.groups.keys().filter(|n| **n != raft).cloned().collect();
    others.iter().for_each(|n| c.crash(n));
    c.run(3000);
    assert!(!c.groups[&raft].has_quorum(c.now()));
    assert!(c.groups[&raft].notes(c.now()).iter().any(|n| n.contains("no quorum: 1 of 3")));
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.run(5000);
    assert!(c.all_follow(0));
    others.iter().for_each(|n| c.start(n));
    c.until(6000, "failover once there is a quorum", |c| !c.all_follow(0));
}

#[test]
fn a_node_that_lost_its_disk_rejoins_without_disturbing() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 18);
    let raft = c.raft_leader().unwrap();
    let lost = c.groups.keys().find(|n| **n != raft && **n != name("cloud-0")).cloned().unwrap();
    c.crash(&lost);
    c.disks.remove(&lost);
    c.run(2000);
    c.raft_leaders.clear();
    c.start(&lost);
    c.until(5000, "it knows the decision again", |c| c.leaders()[&lost] == (1, vec![0]));
    c.run(3000);
    assert_eq!(c.raft_leader().unwrap(), raft);
    assert!(!c.groups[&lost].notes(c.now()).iter().any(|n| n.contains("empty store")));
}

#[test]
fn a_long_log_is_compacted_and_a_lost_disk_is_filled_from_a_snapshot() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 19);
    for i in 0..200 {
        let node = name("cloud-2");
        let request =
            if i % 2 == 0 { AdminRequest::Drain { node } } else { AdminRequest::Undrain { node } };
        assert!(done(&c.command(request)));
    }
    let raft = c.raft_leader().unwrap();
    let lost = c.groups.keys().find(|n| **n != raft && **n != name("cloud-0")).cloned().unwrap();
    c.crash(&lost);
    c.disks.remove(&lost);
    c.start(&lost);
    c.until(5000, "caught up", |c| c.groups[&lost].state() == c.groups[&raft].state());
    c.crash(&lost);
    c.start(&lost);
    c.until(3000, "from its own disk", |c| c.groups[&lost].state() == c.groups[&raft].state());
}

#[test]
fn slow_paths_do_not_make_raft_flap_for_an_hour() {
    let mut c = Cluster::new(mesh(3, 0, 0), 20);
    c.delay_ms = (300, 500);
    let nodes: Vec<_> = c.groups.keys().cloned().collect();
    for node in &nodes {
        for peer in &nodes {
            let now = c.now();
            c.groups.get_mut(node).unwrap().handle_peer_rtt(
                now,
                peer,
                Some(Duration::from_millis(1000)),
            );
        }
    }
    c.until(90_000, "first decision", |c| c.all_follow(0));
    c.until(90_000, "raft off the leader", |c| {
        c.raft_leader().is_some_and(|n| n != name("cloud-0"))
    });
    c.run(5000);
    c.raft_leaders.clear();
    c.run(3_600_000);
    assert!(c.raft_leaders.is_empty(), "{:?}", c.raft_leaders);
    assert!(c.all_follow(0));
}

#[test]
fn a_partitioned_raft_leader_steps_down_and_the_rest_decide() {
    let mut c = Cluster::settled(mesh(4, 1, 0), 22);
    let raft = c.raft_leader().unwrap();
    let others: Vec<_> = c.groups.keys().filter(|n| **n != raft).cloned().collect();
    for other in &others {
        c.cut.insert((raft.clone(), other.clone()));
        c.cut.insert((other.clone(), raft.clone()));
    }
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    let moved = |c: &Cluster| {
        c.leaders().iter().filter(|(n, _)| **n != raft).all(|(_, l)| l.0 == 2 && l.1 != [0])
    };
    c.until(4000, "the majority decides", moved);
    c.cut.clear();
    c.until(5000, "all agree", |c| c.leaders().values().all(|l| l.0 == 2));
    let now = c.now();
    assert!(c.groups.values().all(|g| g.has_quorum(now)));
}

#[test]
fn a_leader_that_its_location_cannot_reach_goes_even_without_observers() {
    let mut c = Cluster::settled(mesh(3, 2, 0), 23);
    c.observers.clear();
    c.run(4000);
    for other in ["cloud-1", "cloud-2", "member-0", "member-1"] {
        c.cut.insert((name("cloud-0"), name(other)));
        c.cut.insert((name(other), name("cloud-0")));
    }
    let moved = |c: &Cluster| {
        c.leaders().iter().filter(|(n, _)| **n != name("cloud-0")).all(|(_, l)| l.1 == [1])
    };
    c.until(8000, "move", moved);
    assert_eq!(c.decided.last().unwrap().2.cause, Fault::Unreachable.into());
}

#[test]
fn the_preferred_candidate_comes_back_only_if_the_policy_says_so() {
    for fail_back in [false, true] {
        let mut mesh = mesh(3, 0, 0);
        mesh.edit().policy.fail_back = fail_back;
        let mut c = Cluster::settled(mesh, 24);
        c.report_failure(0, &["home-0", "home-1", "home-2"]);
        c.run(1000);
        c.heal();
        c.run(30_000);
        assert_eq!(c.all_follow(0), fail_back);
    }
}

#[test]
fn a_location_goes_by_its_own_policy_and_not_by_the_meshs() {
    for own in [false, true] {
        let mut mesh = mesh(3, 0, 0);
        mesh.edit().policy.fail_back = !own;
        let policy = crate::mesh::Policy { fail_back: own, ..mesh.policy.clone() };
        mesh.edit().locations.values_mut().for_each(|l| l.policy = Some(policy.clone()));
        let mut c = Cluster::settled(mesh, 24);
        c.report_failure(0, &["home-0", "home-1", "home-2"]);
        c.run(1000);
        c.heal();
        c.run(30_000);
        assert_eq!(c.all_follow(0), own);
    }
}

#[test]
fn several_leaders_shrink_and_grow_with_health() {
    let mut mesh = mesh(3, 0, 0);
    mesh.edit().policy.leaders = 2;
    let mut c = Cluster::new(mesh, 25);
    c.until(15_000, "two leaders", |c| c.leaders().values().all(|l| l.1 == [0, 1]));
    c.run(12_000);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.until(300, "the sick one is replaced", |c| c.leaders().values().all(|l| l.1 == [1, 2]));
    let summary = c.event().summary;
    assert!(
        summary.starts_with("cloud-0 drops new flows"),
        "the healthy one is not blamed: {summary}"
    );
}

#[test]
fn at_most_one_decision_per_epoch_under_loss_crashes_and_flapping() {
    for seed in 0..12 {
        let mut c = Cluster::new(mesh(4, 1, 0), 1000 + seed);
        c.loss_percent = 15;
        c.delay_ms = (1, 80);
        for round in 0..12u64 {
            c.run(2500);
            let slot = ((seed + round) % 3) as u8;
            c.heal();
            c.report_failure(slot, &["home-0", "home-1"]);
            let victim = name(
                ["cloud-0", "cloud-1", "cloud-2", "cloud-3", "member-0"]
                    [((seed * 7 + round * 3) % 5) as usize],
            );
            if c.groups.contains_key(&victim) && c.groups.len() > 3 {
                c.crash(&victim);
            } else if !c.groups.contains_key(&victim) {
                c.start(&victim);
            }
        }
        let mut by_epoch = BTreeMap::new();
        for (at, node, decision, _) in &c.decided {
            let first = by_epoch.entry(decision.epoch).or_insert_with(|| decision.clone());
            assert_eq!(first, decision, "seed {seed}, {node} at {} ms", at / MS);
        }
        assert!(!by_epoch.is_empty());
    }
}
