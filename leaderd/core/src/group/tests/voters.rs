//! The voters follow the mesh file, also while one of them is down.

use std::sync::Arc;

use super::cluster::{Cluster, mesh, name};
use super::leaving::lead;
use crate::ids::Generation;
use crate::mesh::Mesh;

/// The mesh file changes on all nodes that run.
pub fn roll_out(c: &mut Cluster, mesh: Mesh) {
    c.mesh = Arc::new(mesh);
    let (now, mesh) = (c.now(), c.mesh.clone());
    c.groups.values_mut().for_each(|group| group.set_mesh(now, mesh.clone()));
}

/// `mesh(2, 1, 0)` and a third candidate, which takes the vote of `member-0`.
fn with_third_candidate() -> Mesh {
    let mut bigger = mesh(3, 1, 0);
    bigger.edit().generation = Generation(2);
    bigger
}

#[test]
fn voters_follow_the_mesh_file() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 21);
    roll_out(&mut c, mesh(4, 1, 0));
    c.start(&name("cloud-3"));
    c.start(&name("member-0"));
    c.until(6000, "new voters know", |c| c.leaders().len() == 5 && c.all_follow(0));
    c.run(5000);
    c.crash(&name("cloud-1"));
    c.crash(&name("cloud-0"));
    c.report_failure(0, &["home-0", "home-1", "home-2"]);
    c.report_failure(1, &["home-0", "home-1", "home-2"]);
    c.until(6000, "three of five decide", |c| c.all_follow(2));
}

#[test]
fn voters_change_while_one_of_them_is_down() {
    for seed in 0..8 {
        let mut c = Cluster::settled(mesh(2, 1, 0), 30 + seed);
        c.crash(&name("cloud-0"));
        c.run(10_000);
        assert!(c.all_follow(1));
        roll_out(&mut c, with_third_candidate());
        c.start(&name("cloud-2"));
        let voters = ["cloud-1", "cloud-2"].map(name);
        c.until(10_000, "the new voters have a raft leader", |c| {
            voters.iter().all(|n| c.groups[n].raft_leader().is_some_and(|l| voters.contains(l)))
        });
        c.run(3000);
        c.crash(&name("member-0"));
        c.report_failure(1, &["home-0", "home-1", "home-2"]);
        c.until(5000, "the two of three decide", |c| c.all_follow(2));
    }
}

#[test]
fn a_voter_restarted_while_the_voters_change_still_hears_those_before() {
    for seed in 0..8 {
        let mut c = Cluster::settled(mesh(2, 1, 0), 50 + seed);
        c.crash(&name("cloud-0"));
        c.run(10_000);
        roll_out(&mut c, with_third_candidate());
        // The new voter is not there yet, so the change stops half way.
        c.run(3000);
        c.crash(&name("cloud-1"));
        c.start(&name("cloud-1"));
        c.run(3000);
        c.start(&name("cloud-2"));
        let voters = ["cloud-1", "cloud-2"].map(name);
        c.until(45_000, "the new voters have a raft leader", |c| {
            voters.iter().all(|n| c.groups[n].raft_leader().is_some_and(|l| voters.contains(l)))
        });
    }
}

#[test]
fn a_raft_leader_that_is_no_voter_any_more_hands_over() {
    let mut tried = 0;
    for seed in 0..40 {
        let mut c = Cluster::settled(mesh(2, 1, 0), 70 + seed);
        if c.raft_leader() != Some(name("member-0")) {
            continue;
        }
        tried += 1;
        roll_out(&mut c, with_third_candidate());
        c.start(&name("cloud-2"));
        c.until(5000, "handed over", |c| {
            !c.groups[&name("member-0")].is_raft_leader() && c.raft_leader().is_some()
        });
        c.run(1000);
        let before = c.raft_leaders.len();
        c.run(20_000);
        assert_eq!(c.raft_leaders.len(), before, "nobody disturbs: {:?}", c.raft_leaders);
        c.report_failure(0, &["home-0", "home-1", "home-2"]);
        c.until(300, "failover", |c| {
            ["cloud-1", "cloud-2"].iter().all(|n| c.leaders()[&name(n)].0 == 2)
        });
    }
    assert!(tried > 2, "{tried}");
}

#[test]
fn nodes_that_never_voted_are_not_heard_even_by_a_voter_with_an_empty_store() {
    let mut c = Cluster::new(mesh(3, 2, 0), 29);
    let voters = c.mesh.voters_of(&"cloud".parse().unwrap());
    assert_eq!(voters.len(), 3, "{voters:?}");
    let now = c.now();
    for other in ["member-0", "member-1", "home-0"] {
        for voter in &voters {
            let group = c.groups.get_mut(voter).unwrap();
            let before = group.ignored();
            assert!(!group.is_peer(now, &name(other)));
            group.handle_raft(now, &name(other), &[]);
            assert_eq!(group.ignored(), before + 1);
        }
    }
    // Its own word is not enough, and nobody's is once the voter is part of the group.
    let hello = |node: &str| crate::wire::Hello {
        capabilities: crate::capability::Capabilities::OURS,
        node: name(node),
        generation: Generation(1),
        mesh_hash: [0; 8],
        decision: None,
        raft_leader: Some(name("member-0")),
        broken: None,
        reaches: vec![],
        digest: vec![],
        proof: Default::default(),
        remote: vec![],
    };
    let group = c.groups.get_mut(&voters[0]).unwrap();
    group.handle_hello(now, &hello("member-0"));
    assert!(!group.is_peer(now, &name("member-0")));
    group.handle_hello(now, &hello("member-1"));
    assert!(group.is_peer(now, &name("member-0")) && !group.is_peer(now, &name("home-0")));
    c.run(10_000);
    let now = c.now();
    let group = c.groups.get_mut(&voters[0]).unwrap();
    group.handle_hello(now, &hello("member-1"));
    assert!(!group.is_peer(now, &name("member-0")));
}

#[test]
fn one_far_voter_does_not_slow_elections_of_the_others() {
    for seed in 0..4 {
        let mut c = Cluster::settled(mesh(4, 0, 1), 600 + seed);
        let far = name("home-0");
        let all = ["cloud-0", "cloud-1", "cloud-2", "cloud-3", "home-0"].map(name);
        for (node, other) in all.iter().flat_map(|n| all.iter().map(move |o| (n, o))) {
            if node != other {
                // One second in which something else filled the line, or a witness that takes its time.
                let slow = *node == far || *other == far;
                let rtt = std::time::Duration::from_millis(if slow { 3000 } else { 2 });
                let now = c.now();
                c.groups.get_mut(node).unwrap().handle_peer_rtt(now, other, Some(rtt));
            }
        }
        let unit = |n: &str| c.groups[&name(n)].raft.unit().as_millis();
        assert_eq!((unit("cloud-0"), unit("cloud-1"), unit("home-0")), (50, 50, 3000));
        if c.raft_leader() == Some(far.clone()) {
            lead(&mut c, "cloud-1");
        }
        let leader = c.raft_leader().unwrap();
        c.crash(&leader);
        c.until(2000, "another raft leader", |c| c.raft_leader().is_some_and(|n| n != leader));
    }
}

#[test]
fn an_election_waits_for_the_round_trip_to_a_quorum() {
    let mut c = Cluster::new(mesh(5, 0, 0), 610);
    let me = name("cloud-0");
    for (other, ms) in [("cloud-1", 70), ("cloud-2", 400), ("cloud-3", 500), ("cloud-4", 2000)] {
        let now = c.now();
        let rtt = Some(std::time::Duration::from_millis(ms));
        c.groups.get_mut(&me).unwrap().handle_peer_rtt(now, &name(other), rtt);
    }
    // Itself and two others.
    assert_eq!(c.groups[&me].raft.unit().as_millis(), 400);
}
