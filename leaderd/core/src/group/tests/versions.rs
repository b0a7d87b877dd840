//! Voters of two versions: what one cannot read is never applied as nothing.

use super::cluster::{Cluster, MS, append, mesh, name};
use crate::capability::{Capabilities, Capability};
use crate::ids::NodeName;
use crate::state::Command;

fn drain(node: &str) -> Command {
    Command::Drain { node: name(node) }
}

fn needs_base() -> Capabilities {
    Capabilities::NONE.with(Capability::Base)
}

#[test]
fn a_command_that_one_voter_cannot_read_is_refused_before_it_is_in_the_log() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 71);
    let raft_leader = c.raft_leader().unwrap();
    let old: NodeName = c.groups.keys().find(|n| **n != raft_leader).unwrap().clone();
    let ask = |c: &mut Cluster| {
        let group = c.groups.get_mut(&raft_leader).unwrap();
        group.propose_needing(needs_base(), &drain("cloud-1"))
    };

    c.capabilities.insert(old.clone(), Capabilities::NONE);
    c.run(1100);
    let refused = ask(&mut c).unwrap_err();
    assert!(refused.contains(old.as_str()), "{refused}");
    // One that is down speaks by its last hello: a voter that was never heard may be of any version.
    c.crash(&old);
    c.run(10_000);
    ask(&mut c).unwrap_err();
    assert!(c.groups.values().all(|g| g.state().drained.is_empty()));

    c.capabilities.clear();
    c.start(&old);
    c.run(5000);
    ask(&mut c).unwrap();
    c.command(crate::admin::AdminRequest::Unfreeze { location: "cloud".parse().unwrap() });
    c.run(1000);
    assert!(c.groups.values().all(|g| g.state().drained.contains(&name("cloud-1"))));
}

#[test]
fn an_entry_of_a_newer_version_is_not_acknowledged_and_changes_no_state() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 72);
    let newer = c.raft_leader().unwrap();
    let before = c.states();
    let needs = Capabilities::from_bits(1 << 40);
    let group = c.groups.get_mut(&newer).unwrap();
    // As a raft leader of that version does, or one that lies.
    let at = group.raft_mut().propose(needs, &drain("cloud-1")).unwrap();
    c.run(3000);
    assert_eq!(c.states(), before);
    assert!(c.groups.iter().all(|(n, g)| *n == newer || g.ignored() > 0));
    // Nobody but its author has the entry: without that one the others decide.
    assert!(at.index > 0);
    c.crash(&newer);
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    let slot = |n: &NodeName| c.mesh.nodes[n].slot.unwrap().0;
    let third = c.groups.keys().map(slot).find(|s| *s != 0).unwrap();
    c.until(10_000, "the others decide", |c| c.all_follow(third));
}

#[test]
fn a_voter_with_an_unreadable_log_entry_reports_it_and_neither_applies_votes_nor_leads() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 73);
    let old = c.raft_leader().unwrap();
    let others: Vec<NodeName> = c.groups.keys().filter(|n| **n != old).cloned().collect();
    c.crash(&old);
    // Written by a newer version, before this one was started in its place.
    let needs = Capabilities::from_bits(1 << 40);
    append(c.disks.get_mut(&old).unwrap(), drain("cloud-1").encode(needs));
    c.start(&old);
    c.run(1);
    assert!(c.errors.iter().any(|e| e.contains("cannot read")), "{:?}", c.errors);
    let state = c.groups[&old].state().clone();
    c.run(20_000);
    let now = c.now();
    let group = &c.groups[&old];
    assert!(group.notes(now).iter().any(|n| n.contains("cannot read")), "{:?}", group.notes(now));
    assert_eq!(*group.state(), state);
    assert!(!group.has_quorum(now));

    // The two others are a majority; one of them and the stopped one are none.
    assert!(c.raft_leader().is_some_and(|n| others.contains(&n)));
    c.crash(&others[0]);
    c.run(20_000);
    assert_eq!(c.raft_leader().filter(|n| *n == old), None);
    let left = &c.groups[&others[1]];
    assert!(!left.is_raft_leader() || !left.has_quorum(c.now()));
    assert!(c.time > 40_000 * MS);
}
