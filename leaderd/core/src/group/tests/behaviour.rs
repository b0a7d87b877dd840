//! Evidence moves leadership, or leaves it where it is.

use std::time::Duration;

use super::cluster::{Cluster, mesh, name};
use crate::fault::{Fault, MoveReason};
use crate::ids::Slot;
use crate::relay_pair::{TunnelRow, TunnelState};
use crate::state::EventKind;
use crate::verdict::Verdict;

#[test]
fn a_new_location_decides_for_its_preferred_candidate_and_moves_raft_away_from_it() {
    let c = Cluster::settled(mesh(3, 0, 0), 1);
    assert_eq!(c.event().cause, Some(MoveReason::Initial));
    assert!(c.event().times.committed.is_some());
    assert!(c.leaders().values().all(|l| *l == (1, vec![0])));
}

#[test]
fn a_leader_that_all_observers_find_at_fault_is_replaced_at_once() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
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
    let seen =
        "cloud-0 drops new flows (1 of 1 locations: home, as home-0 and 2 more see it); cloud-1";
    assert!(event.summary.starts_with(seen), "{}", event.summary);
}

/// The tunnel between the two leaders is dead, and `home` is the location that should move: it has a candidate that reaches ours.
#[test]
fn where_another_location_should_move_this_one_does_only_if_that_has_not_helped_for_ten_seconds() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    c.report_dead_tunnel(0, "home-0");
    c.run(12_900);
    assert!(c.all_follow(0));
    c.until(900, "it moves for want of the other", |c| c.all_follow(1));
    let seen = "(1 of 1 locations: home, as home-0 sees it)";
    assert!(c.event().summary.contains(seen), "{}", c.event().summary);
}

/// As before, but `home` has moved to a relay that reaches our leader.
#[test]
fn this_location_stays_if_the_other_moves_in_time() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    c.report_dead_tunnel(0, "home-0");
    c.run(900);
    c.relays_of_home(&[1]);
    c.run(30_000);
    assert!(c.all_follow(0));
}

#[test]
fn observers_that_only_suspect_something_do_not_hold_up_those_that_are_sure() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    let fault = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
    c.verdicts.insert((name("home-0"), Slot(0)), fault);
    for observer in ["home-1", "home-2"] {
        c.verdicts.insert((name(observer), Slot(0)), Verdict::Suspected);
        c.verdicts.insert((name(observer), Slot(1)), Verdict::Suspected);
    }
    c.report_now();
    let took = c.until(1200, "it moves", |c| c.all_follow(1));
    assert!(took <= 60, "all with an opinion agree: {took} ms");
}

/// Candidates tell their group what they see of their own tunnels.
#[test]
fn a_leader_that_finds_fault_with_its_own_tunnel_to_a_relay_does_not_serve_it() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    let row = TunnelRow::UNKNOWN.with(Slot(0), TunnelState::Bad);
    for _ in 0..14 {
        c.row_to_home(0, row);
        c.run(1000);
    }
    assert!(c.all_follow(1), "for all that home-0 says");
    assert_eq!(c.event().cause, Some(Fault::TunnelDown.into()));
    let seen = "(1 of 1 locations: home, as cloud-0 sees it)";
    assert!(c.event().summary.contains(seen), "{}", c.event().summary);
}

/// The relay there comes and goes for our leader; the first time moves it, and the second one would move it back.
#[test]
fn a_location_whose_vote_turns_twice_moves_nothing_more_for_ten_minutes() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 2);
    c.report_failure(0, &["home-0"]);
    c.until(12_000, "it moves once", |c| c.all_follow(1));
    c.heal();
    c.run(5000);
    c.report_failure(1, &["home-0"]);
    c.run(590_000);
    assert!(c.all_follow(1), "discounted");
    c.until(40_000, "it counts again", |c| !c.all_follow(1));
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
    let told = [(name("cloud-1"), vec!["not seen forwarding by most locations".to_owned()])];
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
