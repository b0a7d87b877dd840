//! Daemons, each with a view of its own age, at one API server, in virtual time.

mod commands;
mod depart;
mod status;

use super::*;
use crate::admin::AdminRequest;
use crate::ids::Epoch;
use crate::kubernetes::fixture::*;
use crate::kubernetes::{Steering, TurnScheduler, names};
use crate::status::Status;
use crate::time::Instant;

const TICK: Duration = Duration::from_millis(50);

struct Daemon {
    name: NodeName,
    turns: TurnScheduler,
    status: Option<Status>,
    /// Without it nothing is read and nothing written.
    reaches_api: bool,
    /// What it looked at last, and when it wants to look again: as a shell does.
    looked: Option<ClusterView>,
    next: Option<Instant>,
}

struct World {
    now: Instant,
    version: u64,
    /// The cluster at each tick, the newest last.
    history: Vec<ClusterView>,
    /// How many ticks a daemon's view is behind.
    lag: usize,
    daemons: Vec<Daemon>,
    /// When, who, what.
    written: Vec<(u64, String, String)>,
    conflicts: usize,
    /// Of the last decision.
    epoch: u64,
}

impl World {
    fn new(view: ClusterView, lag: usize) -> Self {
        let daemon = |name: &String| Daemon {
            name: name.parse().unwrap(),
            turns: TurnScheduler::default(),
            status: None,
            reaches_api: true,
            looked: None,
            next: None,
        };
        let daemons = view.nodes.keys().map(daemon).collect();
        let (now, written) = (Instant(0), Vec::new());
        Self {
            now,
            version: 9000,
            history: vec![view],
            lag,
            daemons,
            written,
            conflicts: 0,
            epoch: 0,
        }
    }

    fn api(&mut self) -> &mut ClusterView {
        self.history.last_mut().unwrap()
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let seen = self.history[self.history.len().saturating_sub(1 + self.lag)].clone();
            for d in 0..self.daemons.len() {
                let daemon = &mut self.daemons[d];
                let early = daemon.next.is_none_or(|at| self.now < at);
                if !daemon.reaches_api || early && daemon.looked.as_ref() == Some(&seen) {
                    continue;
                }
                daemon.looked = Some(seen.clone());
                let mesh = seen.mesh.as_ref().and_then(|m| crate::mesh::parse(&m.text).ok());
                let running = mesh.as_ref().zip(daemon.status.as_ref());
                let running = running.map(|(mesh, status)| Running {
                    mesh,
                    status,
                    events: &[],
                    connected: true,
                });
                let wall = WallTime(1_790_000_000_000_000 + self.now.0);
                let (_, tasks) = plan(&seen, "", &daemon.name, running, wall);
                let (due, next) = daemon.turns.due(self.now, tasks);
                // After a second it looks again in any case.
                let again = Some(self.now + Duration::from_secs(1));
                daemon.next = [next, again].into_iter().flatten().min();
                let name = daemon.name.to_string();
                for task in due {
                    self.write(&name, task);
                }
            }
            self.now = self.now + TICK;
            let next = self.history.last().unwrap().clone();
            self.history.push(next);
        }
    }

    fn write(&mut self, who: &str, task: Task) {
        self.version += 1;
        let (version, at) = (self.version.to_string(), self.now.0 / 1000);
        let api = self.history.last_mut().unwrap();
        let done = match task.action {
            Action::Mesh { resource_version, text } => {
                let fits =
                    api.mesh.as_ref().map(|m| m.resource_version.clone()) == resource_version;
                if fits {
                    api.mesh = Some(crate::kubernetes::MeshObject {
                        resource_version: version,
                        text: text.into(),
                    });
                }
                fits
            }
            Action::Annotate(change) => {
                let node = api.nodes.get_mut(&change.node).unwrap();
                let fits = node.resource_version == change.resource_version;
                if fits {
                    node.resource_version = version;
                    for (key, value) in change.annotations {
                        match value {
                            Some(value) => node.annotations.insert(key, value),
                            None => node.annotations.remove(&key),
                        };
                    }
                }
                fits
            }
            Action::PoolStatus { pool, resource_version, status, .. } => {
                let pool = api.pools.get_mut(&pool).unwrap();
                let fits = pool.resource_version == resource_version;
                if fits {
                    pool.resource_version = version;
                    pool.status = Some(serde_json::to_value(status).unwrap());
                }
                fits
            }
            Action::RelayForwarding { node, resource_version, condition } => {
                let node = api.nodes.get_mut(&node).unwrap();
                let fits = node.resource_version == resource_version;
                if fits {
                    node.resource_version = version;
                    node.relay_forwarding = condition.map(|c| (c.status.to_owned(), c.reason));
                }
                fits
            }
            Action::ChangeRefused { node, resource_version, refused, .. } => {
                let node = api.nodes.get_mut(&node).unwrap();
                let fits = node.resource_version == resource_version;
                if fits {
                    node.resource_version = version;
                    node.change_refused = refused.map(|r| (r.reason.to_owned(), r.message));
                }
                fits
            }
            Action::Command(AdminRequest::Promote { node, .. }) => {
                let epoch = self.epoch + 1;
                self.decided(node.as_str(), epoch);
                true
            }
            Action::Command(_) => true,
        };
        if done { self.written.push((at, who.to_owned(), task.key)) } else { self.conflicts += 1 }
    }

    fn written(&self, what: &str) -> Vec<&(u64, String, String)> {
        self.written.iter().filter(|(_, _, key)| key.starts_with(what)).collect()
    }

    /// Every daemon hears who leads home, by which epoch.
    fn decided(&mut self, leader: &str, epoch: u64) {
        self.epoch = epoch;
        let text = self.api().mesh.as_ref().unwrap().text.clone();
        let mesh = crate::mesh::parse(&text).unwrap();
        for daemon in &mut self.daemons {
            let mut status = mesh_status(&mesh, daemon.name.as_str());
            let home = status.locations.iter_mut().find(|l| l.name.as_str() == "home").unwrap();
            home.leaders = vec![leader.parse().unwrap()];
            home.epoch = Epoch(epoch);
            home.raft_leader = Some("home-2".parse().unwrap());
            home.candidates.iter_mut().for_each(|c| c.leading = c.name.as_str() == leader);
            daemon.status = Some(status);
            daemon.looked = None;
        }
    }

    fn leaders(&mut self) -> Vec<String> {
        let lead =
            |n: &&crate::kubernetes::ClusterNode| n.annotations.contains_key(names::KILO_LEADER);
        self.api().nodes.values().filter(lead).map(|n| n.name.clone()).collect()
    }
}

fn kilo_cluster() -> ClusterView {
    let mut view = two_locations();
    view.pools.get_mut("home").unwrap().spec.steering = Steering::Kilo;
    view
}

#[test]
fn a_cluster_without_a_mesh_file_gets_one_once() {
    let mut w = World::new(kilo_cluster(), 2);
    w.run(Duration::from_secs(3));
    assert_eq!((w.written("mesh").len(), w.conflicts), (1, 0), "{:?}", w.written);
    let n = node(9, "home", "home-9");
    w.api().nodes.insert(n.name.clone(), n);
    w.run(Duration::from_secs(3));
    assert_eq!((w.written("mesh").len(), w.conflicts), (2, 0), "{:?}", w.written);
    let text = w.api().mesh.as_ref().unwrap().text.clone();
    assert_eq!(crate::mesh::parse(&text).unwrap().generation.0, 2);
}

#[test]
fn one_daemon_annotates_and_one_writes_the_status() {
    let mut view = kilo_cluster();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    w.run(Duration::from_secs(5));
    assert_eq!(w.leaders(), ["home-1"]);
    let (kilo, status) = (w.written("kilo").len(), w.written("status").len());
    // Two may change one node at once, for different reasons: then one does it again.
    let conflicts = std::mem::take(&mut w.conflicts);
    assert!(conflicts <= 1, "{:?}", w.written);
    w.decided("home-0", 2);
    let from = w.now.0 / 1000;
    w.run(Duration::from_secs(5));
    assert_eq!(w.leaders(), ["home-0"]);
    let annotated = &w.written("kilo")[kilo..];
    assert_eq!(annotated.len(), 2, "{:?}", w.written);
    assert!(annotated[0].2.contains("/set/home-0") && annotated[1].2.contains("/remove/home-1"));
    // All daemons had time to hear of the decision, and none waited longer; the second write waited until the view showed the first.
    assert_eq!((annotated[0].0 - from, annotated[1].0 - from), (2000, 2100));
    // Pending, then annotated; each is written once, by the raft leader.
    let status = &w.written("status")[status..];
    assert!(status.len() <= 3 && status.iter().all(|s| s.1 == "home-2"), "{status:?}");
    assert_eq!(w.conflicts, 0, "{:?}", w.written);
}

#[test]
fn any_candidate_that_reaches_the_api_annotates() {
    let mut view = kilo_cluster();
    store_mesh(&mut view);
    for alone in ["home-0", "home-1", "cloud-0", "cloud-1"] {
        let mut w = World::new(view.clone(), 1);
        w.daemons.iter_mut().for_each(|d| d.reaches_api = d.name.as_str() == alone);
        w.decided("home-1", 1);
        w.run(Duration::from_secs(5));
        assert_eq!(w.leaders(), ["home-1"], "{alone}");
        w.decided("home-0", 2);
        w.run(Duration::from_secs(5));
        assert_eq!(w.leaders(), ["home-0"], "{alone}");
        assert!(!w.written("status").is_empty(), "{alone} writes what the raft leader cannot");
    }
}

/// These daemons hear nothing from home, and go by their own ranking.
fn deaf(w: &mut World, names: &[&str]) {
    for d in w.daemons.iter_mut().filter(|d| names.contains(&d.name.as_str())) {
        let locations = &mut d.status.as_mut().unwrap().locations;
        let home = locations.iter_mut().find(|l| l.name.as_str() == "home").unwrap();
        (home.quorum, home.raft_leader, home.fallback) = (None, None, true);
    }
}

#[test]
fn a_daemon_that_hears_nothing_of_a_location_does_not_report_it_dead() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    deaf(&mut w, &["cloud-0"]);
    w.run(Duration::from_secs(60));
    assert!(w.written("status/home").len() <= 3, "{:?}", w.written("status/home"));
}

#[test]
fn a_dead_location_is_reported_once_by_another_location() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    w.run(Duration::from_secs(10));
    let quorum = |w: &mut World| {
        let status = w.api().pools["home"].status.clone().unwrap();
        let all = status["conditions"].as_array().unwrap().clone();
        let one = all.iter().find(|c| c["type"] == "Quorum").unwrap();
        one["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(quorum(&mut w), "True");
    w.daemons.iter_mut().for_each(|d| d.reaches_api = d.name.as_str().starts_with("cloud"));
    deaf(&mut w, &["cloud-0", "cloud-1", "cloud-2"]);
    let before = w.written("status/home").len();
    w.run(Duration::from_secs(320));
    assert_eq!(quorum(&mut w), "False");
    assert_eq!(w.written("status/home").len(), before + 1, "{:?}", w.written);
}

#[test]
fn a_slot_passes_to_its_new_candidate_without_another_change() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    let names = ["home-2", "home-0"].map(String::from);
    w.api().pools.get_mut("home").unwrap().spec.candidates.names = names.into();
    w.run(Duration::from_secs(10));
    assert_eq!((w.written("mesh").len(), w.conflicts), (2, 0), "{:?}", w.written);
    let mesh = crate::mesh::parse(&w.api().mesh.as_ref().unwrap().text).unwrap();
    let slot = mesh.nodes[&"home-2".parse().unwrap()].slot;
    assert_eq!((mesh.generation.0, slot), (3, Some(crate::ids::Slot(0))));
}
