//! Whatever observers say, what follows from it can be replicated.

use super::cluster::{Cluster, MS, mesh, name};
use crate::admin::{AdminRequest, AdminResponse};
use crate::ids::{Epoch, Slot};
use crate::state::{Command, EventKind, MAX_COMMAND, MAX_EVENT};
use crate::time::WallTime;
use crate::verdict::{EvidenceRow, ProbeClass, Report, SlotReport, Verdict};

/// A report with so many rows about each of the slots 0 to 2. None so large comes in through a frame.
fn large_report(rows: usize) -> Report {
    let row = EvidenceRow {
        class: ProbeClass::NewFlow,
        target: None,
        address: None,
        port: None,
        sent: 1,
        lost: 0,
        time_exceeded: 0,
    };
    let slot = |n| SlotReport {
        evidence: vec![row.clone(); rows],
        ..SlotReport::new(Slot(n), Verdict::Forwarding, WallTime(0))
    };
    Report {
        observer: name("home-0"),
        location: "cloud".parse().unwrap(),
        seq: 1 << 40,
        epoch: Epoch(0),
        abstains: false,
        full_rate: true,
        slots: (0..3).map(slot).collect(),
    }
}

#[test]
fn evidence_of_any_size_neither_holds_up_a_decision_nor_enters_the_log() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 61);
    let now = c.now();
    for group in c.groups.values_mut() {
        group.handle_report(now, large_report(600_000));
    }
    let answer = c.command(AdminRequest::Promote { node: name("cloud-2"), force: true });
    assert!(matches!(answer, AdminResponse::Done { .. }), "{answer:?}");
    c.until(5000, "the promotion everywhere", |c| c.all_follow(2));
    for group in c.groups.values() {
        let event = group.state().events.iter().rfind(|e| e.epoch == group.state().epoch());
        let event = event.expect("the promotion has its event");
        assert!(event.is_within_bounds(), "{} bytes", event.size());
        assert!(event.summary.ends_with("not all of the evidence is kept"), "{}", event.summary);
    }
}

#[test]
fn a_command_that_is_too_long_is_not_proposed_and_those_after_it_are() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 62);
    let raft_leader = c.raft_leader().unwrap();
    let mut event = c.event();
    event.kind = EventKind::Notice;
    event.summary = "x".repeat(MAX_COMMAND);
    let group = c.groups.get_mut(&raft_leader).unwrap();
    assert_eq!(
        group.raft.propose(Default::default(), &Command::Record { event: Box::new(event) }),
        None
    );
    let answer = c.command(AdminRequest::Drain { node: name("cloud-2") });
    assert!(matches!(answer, AdminResponse::Done { .. }), "{answer:?}");
}

#[test]
fn a_log_of_long_entries_is_compacted_by_bytes_and_a_voter_that_missed_them_catches_up() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 63);
    let raft_leader = c.raft_leader().unwrap();
    let late = c.groups.keys().find(|n| **n != raft_leader).unwrap().clone();
    for other in c.groups.keys() {
        c.cut.insert((late.clone(), other.clone()));
        c.cut.insert((other.clone(), late.clone()));
    }
    let mut event = c.event();
    event.kind = EventKind::Notice;
    event.blocked_by =
        (0..16).map(|n| (name(&format!("cloud-{n}")), vec!["x".repeat(200); 8])).collect();
    let event = event.bounded();
    assert!(event.size() > MAX_EVENT / 2, "only {} bytes", event.size());
    // By count none of these would make a snapshot due.
    let (mut most, mut proposed) = (0, 0);
    let last = c.time + 120_000 * MS;
    while proposed < 240 {
        assert!(c.time < last, "only {proposed} were proposed");
        if let Some(leader) = c.groups.values_mut().find(|g| g.is_raft_leader()) {
            let command = Command::Record { event: Box::new(event.clone()) };
            proposed += usize::from(leader.raft.propose(Default::default(), &command).is_some());
        }
        c.run(200);
        most = c.groups.values().map(|g| g.raft.log_bytes()).max().unwrap().max(most);
    }
    assert!(most > 2 << 20, "at most {most} bytes were in a log");
    assert!(most < (5 << 19) + 2 * MAX_COMMAND, "{most} bytes in a log");
    c.cut.clear();
    c.until(20_000, "what was missed", |c| c.states().values().all(|s| *s == c.states()[&late]));
}
