//! Operators' commands.

use std::time::Duration;

use super::cluster::{Cluster, done, mesh, name};
use crate::admin::{AdminRequest, AdminResponse};
use crate::fault::MoveReason;

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
