//! The number of probes that a node may send. Where it is too small, all locations lose rounds alike, and the status says so.

use std::collections::VecDeque;
use std::time::Duration;

use crate::mesh::{Mesh, Node};
use crate::time::Instant;

use crate::observe::index::WatchIdx;
use crate::observe::location::{interval_of, is_watched_fully};
use crate::observe::probing::schedule::probes_per_path;

/// How long after a round was left out the budget counts as too small.
const SHORT: Duration = Duration::from_secs(60);

/// A token bucket. Half of `probe_budget` at once and half of it per second, so no second ever sees more than all of it.
#[derive(Debug)]
pub struct Budget {
    tokens: f64,
    refilled: Instant,
    /// Locations whose round was left out, in the order in which they come next: one with many slots would else wait for ever
    /// beside others with few.
    waiting: VecDeque<WatchIdx>,
    left_out: u64,
    last_left_out: Option<Instant>,
}

/// Returns the size of the bucket, and what it gets in a second.
fn full(mesh: &Mesh) -> f64 {
    f64::from(mesh.policy.probe_budget) / 2.0
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        let waiting = VecDeque::new();
        Self { tokens: 0.0, refilled: now, waiting, left_out: 0, last_left_out: None }
    }

    /// Takes another mesh, in which locations have other indexes.
    pub fn mesh_changed(&mut self, mesh: &Mesh) {
        self.tokens = self.tokens.min(full(mesh));
        self.waiting.clear();
    }

    /// Takes `n` probes, or none. More than the bucket holds are taken when it is full.
    pub fn spend(&mut self, mesh: &Mesh, now: Instant, n: usize) -> bool {
        let full = full(mesh);
        self.tokens = (self.tokens + now.since(self.refilled).as_secs_f64() * full).min(full);
        self.refilled = now;
        let n = (n as f64).min(full);
        let enough = self.tokens >= n;
        if enough {
            self.tokens -= n;
        }
        enough
    }

    /// Takes a round of `n` probes over a location.
    ///
    /// # Errors
    ///
    /// The budget is spent: when to try again, where that is sooner than the location's next round.
    pub fn round(
        &mut self,
        mesh: &Mesh,
        now: Instant,
        watch: WatchIdx,
        n: usize,
    ) -> Result<(), Option<Instant>> {
        let first = self.waiting.front().is_none_or(|first| *first == watch);
        if first && self.spend(mesh, now, n) {
            self.waiting.pop_front();
            return Ok(());
        }
        self.leave_out(now);
        if !self.waiting.contains(&watch) {
            self.waiting.push_back(watch);
        }
        let full = full(mesh);
        let missing = (n as f64).min(full) - self.tokens;
        let wait = Duration::from_secs_f64((missing / full).max(0.0)) + Duration::from_millis(1);
        Err(first.then(|| now + wait))
    }

    /// Counts a round or burst that is not sent.
    pub fn leave_out(&mut self, now: Instant) {
        self.left_out += 1;
        self.last_left_out = Some(now);
    }

    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    pub fn is_short(&self, now: Instant) -> bool {
        self.last_left_out.is_some_and(|at| now.since(at) < SHORT)
    }
}

/// Returns how many probes a candidate wants to send in a second while all is well, and how many it may.
pub fn steady_probes(mesh: &Mesh, node: &Node) -> (f64, f64) {
    let to = |location| {
        let fully = is_watched_fully(mesh, &node.location, location);
        let interval = interval_of(mesh, location, fully).as_secs_f64();
        mesh.candidates_of(location).len() as f64 * probes_per_path() / interval
    };
    (mesh.locations.keys().filter(|l| **l != node.location).map(to).sum(), full(mesh))
}
