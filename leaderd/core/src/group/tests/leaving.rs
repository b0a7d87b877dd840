//! A mesh file takes the vote of the raft leader, or of one that becomes it meanwhile, at any moment of what goes on.

use std::collections::BTreeSet;
use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::cluster::{Cluster, mesh, name};
use super::voters::roll_out;
use crate::admin::{AdminRequest, AdminResponse};
use crate::ids::{Generation, NodeName};
use crate::mesh::Mesh;

const OBSERVERS: [&str; 3] = ["home-0", "home-1", "home-2"];

fn cloud_voters(mesh: &Mesh) -> BTreeSet<NodeName> {
    mesh.voters_of(&"cloud".parse().unwrap()).into_iter().collect()
}

/// The next mesh file, in which this node is no candidate and no witness any more.
fn without(mesh: &Mesh, node: &NodeName) -> Mesh {
    let mut next = mesh.clone();
    next.edit().generation = Generation(mesh.generation.0 + 1);
    next.edit().nodes.get_mut(node).unwrap().slot = None;
    for location in next.edit().locations.values_mut() {
        location.witnesses.retain(|w| w != node);
    }
    assert!(!cloud_voters(&next).contains(node));
    next
}

/// The voters are those of the mesh file, one of them leads Raft, and commands are confirmed.
fn changed(c: &mut Cluster, what: &str) {
    let wanted = cloud_voters(&c.mesh);
    c.until(20_000, what, |c| {
        c.committed_voters() == wanted && c.raft_leader().is_some_and(|n| wanted.contains(&n))
    });
    c.run(2000);
    let freeze = AdminRequest::Freeze { location: "cloud".parse().unwrap(), duration: None };
    let answer = c.command(freeze);
    assert!(matches!(answer, AdminResponse::Done { .. }), "{what}: {answer:?}");
}

/// Candidates, members, witnesses; one way and disk in ms.
const SHAPES: [(u8, u8, u8); 3] = [(4, 0, 0), (3, 0, 1), (5, 0, 1)];
const PACES: [((u64, u64), (u64, u64)); 4] =
    [((1, 2), (1, 3)), ((5, 6), (5, 8)), ((20, 25), (10, 12)), ((2, 3), (30, 60))];

fn settled(shape: (u8, u8, u8), pace: ((u64, u64), (u64, u64)), seed: u64) -> Cluster {
    let mut c = Cluster::settled(mesh(shape.0, shape.1, shape.2), seed);
    (c.delay_ms, c.disk_ms) = pace;
    c.run(3000);
    c
}

#[test]
fn a_raft_leader_that_loses_its_vote_during_a_failover_hands_over_first() {
    for shape in SHAPES {
        for pace in PACES {
            // The nodes know of the file from each other after a second, and the voters change.
            for offset in (900..1200).step_by(30) {
                let mut c = settled(shape, pace, offset);
                let leader = c.raft_leader().unwrap();
                let next = without(&c.mesh, &leader);
                roll_out(&mut c, next);
                c.run(offset);
                c.report_failure(0, &OBSERVERS);
                changed(&mut c, &format!("{shape:?} {pace:?} a failover {offset} ms after it"));
                assert!(!c.all_follow(0));
            }
        }
    }
}

#[test]
fn a_raft_leader_that_loses_its_vote_takes_commands_meanwhile() {
    for shape in SHAPES {
        for pace in PACES {
            for offset in (0..2000).step_by(270) {
                let mut c = settled(shape, pace, 100 + offset);
                let leader = c.raft_leader().unwrap();
                let next = without(&c.mesh, &leader);
                roll_out(&mut c, next);
                // Commands all the time until then, to whoever leads Raft.
                for step in 0..(offset / 10 + 40) {
                    c.run(10);
                    if c.raft_leader().is_some() {
                        let node = name("cloud-1");
                        c.ask(&match step % 2 {
                            0 => AdminRequest::Drain { node },
                            _ => AdminRequest::Undrain { node },
                        });
                    }
                }
                changed(&mut c, &format!("{shape:?} {pace:?} commands for {offset} ms"));
            }
        }
    }
}

/// The change that takes the vote of another voter is in that voter's log, and not committed yet, when it is elected.
#[test]
fn a_voter_elected_with_the_removal_of_its_vote_in_its_log_steps_down() {
    let mut led = 0;
    for shape in [(4, 0, 0), (5, 0, 1)] {
        for seed in 0..12 {
            let mut c = settled(shape, ((3, 9), (1, 3)), 300 + seed);
            let leader = c.raft_leader().unwrap();
            let other = c.groups.keys().find(|n| **n != leader && **n != name("cloud-0"));
            let other = other.unwrap().clone();
            let next = without(&c.mesh, &other);
            roll_out(&mut c, next);
            c.until(5000, "joint", |c| c.groups[&leader].raft.is_joint());
            let ends = |c: &Cluster, node: &NodeName| c.groups[node].raft.ends();
            for _ in 0..30 {
                let (_, last, committed, _) = ends(&c, &leader);
                if ends(&c, &other).1 == last || committed == last {
                    break;
                }
                c.run(1);
            }
            let (term, last, committed, _) = ends(&c, &leader);
            if committed == last {
                // Confirmed by the others before this one had it.
                continue;
            }
            let id = |n: &NodeName| u64::from(c.mesh.nodes[n].index.0);
            let (from, to) = (id(&leader), id(&other));
            c.crash(&leader);
            c.run(5);
            let mut now = Message { from, to, term, ..Default::default() };
            now.set_msg_type(MessageType::MsgTimeoutNow);
            c.receive(&other, &leader, &now.write_to_bytes().unwrap());
            for _ in 0..300 {
                c.run(1);
                let group = &c.groups[&other];
                led += u32::from(group.is_raft_leader());
                assert!(!group.is_raft_leader() || group.raft.voters().contains(&to));
            }
            c.start(&leader);
            changed(&mut c, &format!("{shape:?}, seed {seed}"));
        }
    }
    assert!(led > 0, "never was the one that leaves elected");
}

#[test]
fn a_raft_leader_with_an_older_mesh_file_takes_no_voters_back() {
    for seed in 0..6 {
        let mut c = Cluster::settled(mesh(3, 1, 0), 400 + seed);
        let old = c.mesh.clone();
        let mut next = mesh(4, 1, 0);
        next.edit().generation = Generation(2);
        let next = Arc::new(next);
        c.mesh = next.clone();
        for node in ["cloud-3", "member-0"] {
            c.start(&name(node));
        }
        let stale = name("cloud-1");
        let now = c.now();
        for (node, group) in &mut c.groups {
            if *node != stale {
                group.set_mesh(now, next.clone());
            }
        }
        let wanted = cloud_voters(&next);
        if c.raft_leader().as_ref() == Some(&stale) {
            c.run(3000);
            assert_eq!(c.committed_voters(), cloud_voters(&old), "it knows of no other file");
            lead(&mut c, "cloud-2");
        }
        c.until(10_000, "the voters of the newer file", |c| c.committed_voters() == wanted);
        for _ in 0..3 {
            lead(&mut c, "cloud-1");
            c.run(5000);
            assert_eq!(c.committed_voters(), wanted);
            // It is restarted: what it knows of the generation is in its store.
            c.crash(&stale);
            c.run(2000);
            let newer = std::mem::replace(&mut c.mesh, old.clone());
            c.start(&stale);
            c.mesh = newer;
            c.run(2000);
        }
        let notes = c.groups[&stale].notes(c.now());
        assert!(notes.iter().any(|n| n.contains("generation 2")), "{notes:?}");
    }
}

/// Raft leadership goes to this voter.
pub fn lead(c: &mut Cluster, node: &str) {
    let id = u64::from(c.mesh.nodes[&name(node)].index.0);
    for _ in 0..200 {
        let leader = c.raft_leader();
        if leader.as_ref() == Some(&name(node)) {
            return;
        }
        if let Some(leader) = leader {
            let now = c.now();
            let group = c.groups.get_mut(&leader).unwrap();
            group.raft.transfer(id);
            group.handle_timeout(now);
        }
        c.run(50);
    }
    panic!("{node} does not take over");
}

#[test]
fn a_change_waits_until_most_of_the_voters_to_come_have_the_mesh_file() {
    for seed in 0..6 {
        let mut c = Cluster::settled(mesh(3, 0, 0), 500 + seed);
        let leader = c.raft_leader().unwrap();
        let before = cloud_voters(&c.mesh);
        // All three others of five are new, and not there yet.
        let mut next = mesh(6, 0, 0);
        next.edit().generation = Generation(2);
        for gone in before.iter().filter(|n| **n != leader) {
            next.edit().nodes.get_mut(gone).unwrap().slot = None;
        }
        let next = Arc::new(next);
        c.mesh = next.clone();
        let now = c.now();
        c.groups.get_mut(&leader).unwrap().set_mesh(now, next.clone());
        c.run(10_000);
        assert_eq!(c.committed_voters(), before);
        let freeze = AdminRequest::Freeze { location: "cloud".parse().unwrap(), duration: None };
        let answer = c.command(freeze);
        assert!(matches!(answer, AdminResponse::Done { .. }), "{answer:?}");
        roll_out(&mut c, (*next).clone());
        for node in ["cloud-3", "cloud-4", "cloud-5"] {
            c.start(&name(node));
        }
        let wanted = cloud_voters(&next);
        c.until(20_000, "the voters of the newer file", |c| c.committed_voters() == wanted);
    }
}
