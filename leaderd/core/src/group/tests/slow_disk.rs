//! Disks that fill, hang and go on at any moment: while most voters have one that works, commands are confirmed.

use super::cluster::{Cluster, MS, mesh, name};
use super::leaving::lead;
use crate::admin::{AdminRequest, AdminResponse};
use crate::ids::NodeName;

/// A stuck disk is noticed after 2 s and costs at most 1 s more, then there is an election; all of it once more if the
/// next one hangs.
const BOUND: u64 = 9000 * MS;

struct Run {
    c: Cluster,
    /// When a command was confirmed last.
    confirmed: u64,
    replies: usize,
    what: String,
}

impl Run {
    fn new(c: Cluster, what: String) -> Self {
        Self { confirmed: c.time, c, replies: 0, what }
    }

    /// Asks whoever leads Raft for something, every 100 ms.
    fn go_on(&mut self, ms: u64) {
        for step in 0..ms / 100 {
            if self.c.raft_leader().is_some() {
                let node = name("cloud-1");
                self.c.ask(&match step % 2 {
                    0 => AdminRequest::Drain { node },
                    _ => AdminRequest::Undrain { node },
                });
            }
            self.c.run(100);
            let replies = &self.c.replies[self.replies..];
            if replies.iter().any(|(_, r)| matches!(r, AdminResponse::Done { .. })) {
                self.confirmed = self.c.time;
            }
            self.replies = self.c.replies.len();
            self.check();
        }
    }

    fn check(&self) {
        let silent = self.c.time - self.confirmed;
        let leader = self.c.raft_leader();
        assert!(silent < BOUND, "{}: nothing confirmed, {leader:?} leads Raft", self.what);
        for (node, group) in &self.c.groups {
            let stuck = self.stuck_for(node);
            let claims = group.is_raft_leader() || group.raft_leader() == Some(node);
            assert!(!claims || stuck < 3000 * MS, "{}: {node} leads on", self.what);
            let claims = group.is_raft_leader() && group.has_quorum(self.c.now());
            assert!(!claims || stuck < 2100 * MS, "{}: {node} claims a quorum", self.what);
        }
    }

    /// For how long the disk has confirmed none of what waits for it, in µs.
    fn stuck_for(&self, node: &NodeName) -> u64 {
        let since = self.c.stuck_since.get(node).copied();
        since.map_or(0, |since| self.c.time - since)
    }
}

fn voters(c: &Cluster) -> Vec<NodeName> {
    c.mesh.voters_of(&"cloud".parse().unwrap())
}

#[test]
fn commands_are_confirmed_while_most_voters_have_a_disk_that_works() {
    let shapes = [(3, 0, 0), (2, 1, 0), (2, 0, 1), (4, 1, 0)];
    // Ten in each run of the tests, or as many as asked for.
    let seeds = std::env::var("SLOW_DISK_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    for seed in 0..seeds {
        let shape = shapes[seed as usize % shapes.len()];
        let mut c = Cluster::new(mesh(shape.0, shape.1, shape.2), 900 + seed);
        let delay = [1, 5, 30][c.random(3) as usize];
        c.delay_ms = (delay, delay + 2);
        // Also before anybody was elected.
        let early = c.random(2) == 0;
        let first = c.random(2500);
        c.run(if early { first } else { 12_000 });
        let mut run = Run::new(c, format!("seed {seed}, {shape:?}, early {early}"));
        for _ in 0..6 {
            let all = voters(&run.c);
            // Mostly the raft leader's, or whoever is about to become it.
            let victim = match run.c.random(2) {
                0 => run.c.raft_leader().unwrap_or(all[0].clone()),
                _ => all[run.c.random(all.len() as u64) as usize].clone(),
            };
            if run.c.random(2) == 0 {
                run.c.full.insert(victim.clone());
            } else {
                run.c.hung.entry(victim.clone()).or_default();
            }
            run.what += &format!("; {victim} at {} ms", run.c.time / MS);
            let now_and_then = 100 * (1 + run.c.random(250));
            run.go_on(now_and_then);
            run.c.thaw(&victim);
            let pause = 100 * run.c.random(80);
            run.go_on(pause);
        }
    }
}

#[test]
fn a_disk_that_takes_hard_states_but_no_entries_from_before_the_election_blocks_no_decision() {
    for seed in 0..12 {
        let mut c = Cluster::settled(mesh(3, 0, 0), 700 + seed);
        let before = c.raft_leader().unwrap();
        let all = voters(&c);
        let victim = all.into_iter().find(|n| *n != before && *n != name("cloud-0")).unwrap();
        c.full.insert(victim.clone());
        let id = u64::from(c.mesh.nodes[&victim].index.0);
        let now = c.now();
        let group = c.groups.get_mut(&before).unwrap();
        assert!(group.raft.transfer(id));
        group.handle_timeout(now);
        c.until(1000, "elected", |c| c.raft_leader().as_ref() == Some(&victim));
        let took = c.until(3100, "given up", |c| !c.groups[&victim].is_raft_leader());
        assert!(took > 1500, "{took}: it is not hurried");
        assert!(c.groups[&victim].disk_is_stuck(c.now()));
        let notes = c.groups[&victim].notes(c.now());
        assert!(notes.iter().any(|n| n.contains("disk")), "{notes:?}");
        let mut run = Run::new(c, format!("seed {seed}"));
        run.go_on(30_000);
        assert_ne!(run.c.raft_leader(), Some(victim.clone()));
        run.c.thaw(&victim);
        run.go_on(3000);
        let notes = run.c.groups[&victim].notes(run.c.now());
        assert!(!notes.iter().any(|n| n.contains("disk")), "{notes:?}");
    }
}

/// The location leader does not lead Raft for long, even if the first heir hangs and nobody has noticed.
#[test]
fn a_successor_that_hangs_is_not_asked_for_ever() {
    for seed in 0..8 {
        let mut c = Cluster::settled(mesh(3, 0, 0), 820 + seed);
        // Of the standbys nobody is fit, so the location leader goes on leading Raft.
        for slot in [1, 2] {
            c.report_failure(slot, &["home-0", "home-1", "home-2"]);
        }
        lead(&mut c, "cloud-0");
        c.run(5000);
        assert_eq!(c.raft_leader(), Some(name("cloud-0")));
        // They have all that there is. The first one's disk will not even take its vote.
        c.hung.entry(name("cloud-1")).or_default();
        c.heal();
        c.until(6000, "the other heir", |c| c.raft_leader() == Some(name("cloud-2")));
    }
}

/// What it took and could not write is carried out by its heir. Whoever asked is told to look, and may ask again.
#[test]
fn the_successor_carries_out_a_command_that_a_raft_leader_with_a_stuck_disk_took() {
    let (mut c, location) = (Cluster::settled(mesh(3, 0, 0), 860), "cloud".parse().unwrap());
    let freeze = AdminRequest::Freeze { location, duration: None };
    assert!(matches!(c.command(freeze.clone()), AdminResponse::Done { .. }));
    let stuck = c.raft_leader().unwrap();
    c.hung.entry(stuck.clone()).or_default();
    c.ask(&AdminRequest::Unfreeze { location: "cloud".parse().unwrap() });
    c.until(4000, "an heir", |c| c.raft_leader().is_some_and(|n| n != stuck));
    c.run(1000);
    let heir = c.raft_leader().unwrap();
    assert_eq!(c.groups[&heir].state().frozen, None);
    assert!(matches!(c.command(freeze), AdminResponse::Done { .. }));
}

/// One that hangs as well does not keep the raft leader from giving up.
#[test]
fn a_raft_leader_whose_disk_hangs_gives_up_even_if_a_successor_hangs_too() {
    for seed in 0..8 {
        let mut c = Cluster::settled(mesh(5, 0, 0), 800 + seed);
        let leader = c.raft_leader().unwrap();
        let all = voters(&c);
        let hung: Vec<NodeName> =
            all.iter().rev().filter(|n| **n != leader).take(1).cloned().collect();
        for node in hung.iter().chain([&leader]) {
            c.hung.entry(node.clone()).or_default();
        }
        c.ask(&AdminRequest::Drain { node: leader.clone() });
        let what = format!("{hung:?} hang with {leader}");
        c.until(4500, &what, |c| {
            c.raft_leader().is_some_and(|n| n != leader && !hung.contains(&n))
        });
        let mut run = Run::new(c, what);
        run.go_on(20_000);
    }
}

/// A lost snapshot is sent again.
#[test]
fn a_voter_whose_snapshot_was_lost_on_the_way_gets_another() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 850);
    let lost = name("cloud-0");
    c.crash(&lost);
    c.disks.remove(&lost);
    for step in 0..400 {
        let node = name("cloud-0");
        if c.raft_leader().is_some() {
            c.ask(&match step % 2 {
                0 => AdminRequest::Drain { node },
                _ => AdminRequest::Undrain { node },
            });
        }
        c.run(20);
    }
    c.start(&lost);
    c.drop_snapshots = true;
    c.run(1500);
    c.drop_snapshots = false;
    let leader = c.raft_leader().unwrap();
    let index = c.groups[&leader].state().last_seq;
    c.until(5000, "caught up", |c| c.groups[&lost].state().last_seq >= index);
}
