//! What a voter signs of what its raft leader proposes. A raft leader that was broken into proposes anything.

use std::sync::Arc;

use super::super::{Refusal, Standing};
use super::cluster::{Cluster, mesh, name};
use crate::admin::AdminRequest;
use crate::capability::Capabilities;
use crate::election::narrate;
use crate::fault::{Fault, MoveReason};
use crate::ids::{Epoch, NodeName, Slot};
use crate::io::LogLevel;
use crate::state::{Command, Decision, EventKind};
use crate::verdict::Verdict;

fn settled(seed: u64) -> Cluster {
    let mut c = Cluster::settled(mesh(3, 0, 0), seed);
    c.run(5000);
    c
}

/// The raft leader proposes this as the next decision; the others may have it on their disks by then.
fn proposed(
    c: &mut Cluster,
    leader: &NodeName,
    ahead: u64,
    leaders: &[u8],
    cause: MoveReason,
) -> Decision {
    let now = c.now();
    let group = c.groups.get_mut(leader).unwrap();
    let expected_epoch = group.state().epoch();
    let decision = Decision {
        location: group.state().location.clone(),
        epoch: Epoch(expected_epoch.0 + ahead),
        leaders: leaders.iter().map(|s| Slot(*s)).collect(),
        cause,
        at: now.wall,
    };
    let summary = "made up".to_owned();
    let kind = EventKind::Move;
    let mut event =
        narrate::notice(&group.mesh, group.state(), None, kind, Some(cause), summary, now.wall);
    event.epoch = decision.epoch;
    let command =
        Command::Decide { expected_epoch, decision: decision.clone(), event: Box::new(event) };
    group.raft_mut().propose(Capabilities::NONE, &command).expect("it leads");
    decision
}

/// What each follower says to signing it.
fn answers(c: &mut Cluster, leader: &NodeName, decision: &Decision) -> Vec<Result<(), Refusal>> {
    let now = c.now();
    let followers = c.groups.iter_mut().filter(|(n, _)| *n != leader);
    followers.map(|(_, g)| g.may_sign(now, decision)).collect()
}

fn judged(
    c: &mut Cluster,
    ahead: u64,
    leaders: &[u8],
    cause: MoveReason,
) -> Vec<Result<(), Refusal>> {
    let leader = c.raft_leader().expect("a raft leader");
    let decision = proposed(c, &leader, ahead, leaders, cause);
    c.run(50);
    answers(c, &leader, &decision)
}

#[test]
fn what_an_honest_raft_leader_decides_is_signed_before_it_is_known_to_be_committed() {
    let mut c = settled(31);
    let leader = c.raft_leader().unwrap();
    let before = c.written.len();
    let decision = proposed(&mut c, &leader, 1, &[1], MoveReason::Promoted);
    c.run(50);
    let written: Vec<_> = c.written[before..].iter().filter(|(_, d)| *d == decision).collect();
    assert_eq!(written.len(), 3, "all three, at once: {:?}", c.written);
    assert_eq!(answers(&mut c, &leader, &decision), [Ok(()), Ok(())]);
}

#[test]
fn leaders_that_are_no_candidates_and_false_epochs_are_not_signed() {
    assert_eq!(
        judged(&mut settled(32), 1, &[9], MoveReason::Promoted),
        [Err(Refusal::NoCandidates); 2]
    );
    assert_eq!(
        judged(&mut settled(33), 1, &[], MoveReason::Promoted),
        [Err(Refusal::NoCandidates); 2]
    );
    assert_eq!(judged(&mut settled(34), 5, &[1], MoveReason::Promoted), [Err(Refusal::Epoch); 2]);
}

#[test]
fn a_candidate_of_a_newer_mesh_file_is_signed_once_the_file_is_there() {
    let mut c = settled(42);
    let leader = c.raft_leader().unwrap();
    let decision = proposed(&mut c, &leader, 1, &[3], MoveReason::Promoted);
    c.run(50);
    assert_eq!(answers(&mut c, &leader, &decision), [Err(Refusal::NoCandidates); 2]);
    assert_ne!(Refusal::NoCandidates.level(), LogLevel::Error, "a roll-out is no error");
    let (now, newer) = (c.now(), mesh(4, 0, 0).with(|m| m.generation.0 = 2));
    for group in c.groups.values_mut() {
        group.set_mesh(now, Arc::new(newer.clone()));
    }
    assert_eq!(answers(&mut c, &leader, &decision), [Ok(()); 2]);
}

#[test]
fn a_drained_candidate_is_not_made_to_lead() {
    let mut c = settled(35);
    c.command(AdminRequest::Drain { node: name("cloud-2") });
    assert_eq!(judged(&mut c, 1, &[2], MoveReason::Promoted), [Err(Refusal::Drained); 2]);
    assert_eq!(judged(&mut c, 1, &[1], MoveReason::Promoted), [Ok(()); 2]);
}

#[test]
fn a_fault_that_every_other_location_contradicts_is_not_signed_until_one_sees_it() {
    let mut c = settled(36);
    let leader = c.raft_leader().unwrap();
    let decision = proposed(&mut c, &leader, 1, &[1], Fault::NewFlow.into());
    c.run(50);
    assert_eq!(answers(&mut c, &leader, &decision), [Err(Refusal::Contradicted); 2]);
    let degraded = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
    c.verdicts.insert((name("home-1"), Slot(0)), degraded);
    c.report_now();
    c.run(50);
    assert_eq!(answers(&mut c, &leader, &decision), [Ok(()); 2]);
}

#[test]
fn what_most_voters_signed_is_signed_for_new_voters_though_the_fault_is_over() {
    let mut c = settled(43);
    let leader = c.raft_leader().unwrap();
    let decision = proposed(&mut c, &leader, 1, &[1], Fault::NewFlow.into());
    c.run(50);
    assert_eq!(answers(&mut c, &leader, &decision), [Err(Refusal::Contradicted); 2]);
    for group in c.groups.values_mut() {
        group.set_followed(Some(&decision), Standing::ProvedBefore, true);
    }
    assert_eq!(answers(&mut c, &leader, &decision), [Ok(()); 2]);
}

#[test]
fn a_raft_leader_that_decides_all_the_time_gets_a_bounded_number_of_signatures() {
    let mut c = settled(37);
    let mut signed = 0;
    for i in 0..40 {
        let slot = if i % 2 == 0 { 1 } else { 0 };
        signed += usize::from(judged(&mut c, 1, &[slot], MoveReason::Promoted)[0].is_ok());
    }
    assert!((9..=13).contains(&signed), "{signed} in two seconds");
}

#[test]
fn a_decision_that_another_one_in_the_log_may_void_is_not_signed_early() {
    let mut c = settled(38);
    let leader = c.raft_leader().unwrap();
    let before = c.written.len();
    let first = proposed(&mut c, &leader, 1, &[1], MoveReason::Promoted);
    let second = proposed(&mut c, &leader, 1, &[2], MoveReason::Promoted);
    c.run(200);
    let written: Vec<_> = c.written[before..].iter().map(|(_, d)| d.clone()).collect();
    assert!(written.contains(&first) && !written.contains(&second), "{written:?}");
    assert!(c.groups.values().all(|g| g.state().decision.as_ref() == Some(&first)));
}

#[test]
fn another_raft_leader_decides_anew_what_is_not_signed() {
    let mut c = settled(39);
    let liar = c.raft_leader().unwrap();
    let truth = c.groups[&liar].state().decision.clone().unwrap();
    let made_up = proposed(&mut c, &liar, 1, &[1], Fault::NewFlow.into());
    // As a node does with each of its hellos; the liar signs everything.
    let anew = (0..30).any(|_| {
        c.run(500);
        let now = c.now();
        for (node, group) in &mut c.groups {
            group.set_followed(Some(&truth), Standing::Proved, true);
            let decision = group.state().decision.clone().unwrap();
            assert!(
                *node == liar || decision != made_up || group.may_sign(now, &decision).is_err()
            );
        }
        c.groups.iter().all(|(_, g)| {
            let decision = g.state().decision.as_ref().unwrap();
            decision.leaders == truth.leaders && decision.epoch > made_up.epoch
        })
    });
    assert!(anew, "{:?}", c.raft_leaders);
    assert_ne!(c.raft_leader().unwrap(), liar);
    let decision = c.groups[&liar].state().decision.clone().unwrap();
    assert_eq!(answers(&mut c, &liar, &decision), [Ok(()); 2]);
}

#[test]
fn a_decision_that_a_proof_contradicts_is_not_signed_and_is_decided_anew_above_it() {
    let mut c = settled(40);
    let liar = c.raft_leader().unwrap();
    let before = c.groups[&liar].state().decision.clone().unwrap();
    let made_up = proposed(&mut c, &liar, 1, &[1], MoveReason::Promoted);
    c.run(50);
    // As before a change of the voters: the raft leader cannot check it.
    let proved = Decision { epoch: Epoch(made_up.epoch.0 + 3), ..before };
    for (_, group) in c.groups.iter_mut().filter(|(n, _)| **n != liar) {
        group.set_followed(Some(&proved), Standing::ProvedBefore, true);
    }
    let twin = Decision { leaders: vec![Slot(1)], ..proved.clone() };
    for (decision, answer) in
        [(&made_up, Err(Refusal::Epoch)), (&twin, Err(Refusal::Epoch)), (&proved, Ok(()))]
    {
        assert_eq!(answers(&mut c, &liar, decision), [answer; 2], "{decision:?}");
    }
    let anew = (0..30).any(|_| {
        let now = c.now();
        for (_, group) in c.groups.iter_mut().filter(|(n, _)| **n != liar) {
            group.set_followed(Some(&proved), Standing::ProvedBefore, true);
            let decision = group.state().decision.clone().unwrap();
            let _ = group.may_sign(now, &decision);
        }
        c.run(500);
        c.groups.values().all(|g| g.state().decision.as_ref().unwrap().epoch == proved.epoch.next())
    });
    assert!(anew, "{:?}", c.raft_leaders);
}

#[test]
fn a_raft_leader_exceeds_the_epoch_that_it_follows_whatever_its_store_has() {
    let mut c = settled(41);
    let leader = c.raft_leader().unwrap();
    let before = c.groups[&leader].state().decision.clone().unwrap();
    let followed = Decision { epoch: Epoch(before.epoch.0 + 6), ..before };
    c.groups.get_mut(&leader).unwrap().set_followed(Some(&followed), Standing::Claimed, true);
    c.run(3000);
    for group in c.groups.values() {
        let decision = group.state().decision.as_ref().unwrap();
        assert_eq!((decision.epoch, &decision.leaders), (followed.epoch.next(), &followed.leaders));
    }
}
