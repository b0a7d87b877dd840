//! Voters and raft leaders that crash, lose their disks or are cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::{Cluster, MS, done, mesh, name};
use crate::admin::AdminRequest;
use crate::fault::Fault;
use crate::verdict::Verdict;

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
