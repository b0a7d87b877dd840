//! Power cuts: after any write the disk holds what the daemon can start from, and nothing that the group has left behind.

use std::sync::Arc;

use super::cluster::{Cluster, mesh, name};
use crate::capability::Capabilities;
use crate::ids::{Epoch, Generation, NodeName};
use crate::state::{Command, EventTimes};

/// (index, term) of the snapshot and of the entries on a disk.
fn on_disk(c: &Cluster, node: &NodeName) -> Vec<(u64, u64)> {
    let log = c.disks[node].read(&"cloud".parse().unwrap()).unwrap().unwrap();
    let meta = log.snapshot.get_metadata();
    let entries = log.entries.iter().map(|e| (e.index, e.term));
    std::iter::once((meta.index, meta.term)).chain(entries).collect()
}

/// Something to write that changes nothing.
fn nothing() -> Command {
    Command::Complete { epoch: Epoch(0), times: EventTimes::default(), blackout: None }
}

/// The others go on, change their voters, and so forget the log that this node would need.
fn left_behind(c: &mut Cluster, node: &NodeName) {
    let mut bigger = mesh(4, 1, 0);
    bigger.edit().generation = Generation(2);
    c.mesh = Arc::new(bigger);
    let (now, mesh) = (c.now(), c.mesh.clone());
    c.groups.values_mut().for_each(|group| group.set_mesh(now, mesh.clone()));
    for new in ["cloud-3", "member-0"] {
        c.start(&name(new));
    }
    c.run(8000);
    let leader = c.raft_leader().expect("a raft leader");
    assert_ne!(leader, *node);
    assert_eq!(c.groups[&leader].raft.voters().len(), 5);
}

fn cut_off(c: &mut Cluster, node: &NodeName) {
    for other in ["cloud-0", "cloud-1", "cloud-2", "cloud-3", "member-0"].map(name) {
        c.cut.insert((node.clone(), other.clone()));
        c.cut.insert((other, node.clone()));
    }
}

/// A raft leader that was cut off has entries that the others never had, and far more of them.
#[test]
fn a_snapshot_from_the_raft_leader_leaves_nothing_of_the_old_log_on_disk() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 81);
    let node = c.raft_leader().unwrap();
    cut_off(&mut c, &node);
    for _ in 0..200 {
        assert!(
            c.groups.get_mut(&node).unwrap().raft.propose(Capabilities::NONE, &nothing()).is_some()
        );
    }
    left_behind(&mut c, &node);
    let old = *on_disk(&c, &node).last().unwrap();
    assert!(old.0 > 200, "the entries are on disk");
    c.cut.clear();
    c.until(8000, "a snapshot in place of the log", |c| {
        let log = c.groups[&node].raft.log();
        c.is_written(&node) && log[0].0 > 2 && log[0].0 < old.0
    });
    assert_eq!(on_disk(&c, &node), c.groups[&node].raft.log());
    assert!(
        c.disks[&node].entries.keys().all(|i| *i < old.0),
        "{:?}",
        c.disks[&node].entries.keys()
    );
    c.crash(&node);
    c.start(&node);
    c.until(8000, "the same again", |c| c.groups[&node].raft.follows());
}

/// The power goes once, after any of the writes of a node that joins, catches up from a log or from a snapshot, and votes.
#[test]
fn a_node_whose_power_fails_after_any_write_comes_back_and_votes() {
    for (compacted, seed) in [(false, 82), (true, 83)] {
        let mut cut = 1;
        loop {
            let mut c = Cluster::settled(mesh(3, 0, 0), seed);
            let node =
                c.groups.keys().find(|n| Some(*n) != c.raft_leader().as_ref()).cloned().unwrap();
            c.crash(&node);
            c.disks.remove(&node);
            if compacted {
                let leader = c.raft_leader().unwrap();
                for _ in 0..300 {
                    c.groups.get_mut(&leader).unwrap().raft.propose(Capabilities::NONE, &nothing());
                }
                c.run(3000);
            }
            c.power.insert(node.clone(), cut);
            c.start(&node);
            c.until(40_000, "it votes", |c| {
                c.groups.get(&node).is_some_and(|g| !g.raft.is_non_voting() && g.raft.follows())
            });
            c.run(2000);
            let leader = c.raft_leader().unwrap();
            assert_eq!(c.groups[&node].state(), c.groups[&leader].state());
            if c.power.contains_key(&node) {
                break;
            }
            cut += 1;
        }
        assert!(cut > 3, "{cut}");
    }
}

/// All of them start at once, and the power of all goes after so many writes: no majority remembers anything else.
#[test]
fn a_location_starts_even_if_the_power_fails_after_any_of_its_first_writes() {
    for cut in 1..12 {
        let mut c = Cluster::new(mesh(3, 0, 0), 90 + u64::from(cut));
        for node in ["cloud-0", "cloud-1", "cloud-2"].map(name) {
            c.power.insert(node, cut);
        }
        c.until(60_000, "a decision", |c| c.groups.len() == 3 && c.all_follow(0));
    }
}
