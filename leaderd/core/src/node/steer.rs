//! Beside Kilo: where our routes carry the workload, and where Kilo does.
//!
//! Between two locations that Kilo steers our planes carry, always: what Kilo does then costs the workload nothing, be it a change of
//! leader, the restart of an agent or an API server that is away. Kilo's way is the fallback. A candidate takes its rule for a remote
//! location away when nothing has got through any plane to it for a while, and puts it back as soon as the leader there forwards. A
//! member has no planes: it follows its leader, which tells it where it does not carry. Before, both go on as a daemon before them did.
//!
//! ```text
//!              the leader there forwards
//!   Kilo's way ─────────────────────────▶ carried
//!              ◀─────────────────────────
//!                nothing gets through for STEP_BACK
//! ```
//!
//! Where the steering of either end is `observe`, nothing is carried. A mesh file that says so anew has our routes step back.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{LocationName, NodeName};
use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::time::{Duration, Instant, Now};

use super::Node;
use super::hello::HELLO_STALE;

/// How long nothing must get through any plane to a location until Kilo's way is taken. Kilo's tunnels end at the same nodes and cross
/// the same networks, so the two mostly fail together, and then a change gains nothing. A failover (0.2 s) and an overloaded machine
/// (a second or two) must be over by then.
const STEP_BACK: Duration = Duration::from_secs(3);

/// Of two locations the one with the greater name steps back so much later. Kilo's tunnels are idle while our planes carry, so the first
/// packet over them begins a handshake; if both ends begin one in the same moment, each drops the other's and both wait for 5 s
/// (`REKEY_TIMEOUT`). A round trip and the spread of what both ends see are shorter.
const YIELD: Duration = Duration::from_millis(1500);

/// How often a candidate looks again: while all is as usual, and while it is not.
const CALM: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Steer {
    /// Remote locations that Kilo serves as well.
    pairs: BTreeSet<LocationName>,
    /// The shell has told where a daemon before this one was carrying.
    told: bool,
    /// Where our routes carry: of the pairs, and for a moment of locations that are only observed now.
    pub(super) carried: BTreeSet<LocationName>,
    /// The same as it is in the kernel; `None` before anything is.
    in_force: Option<BTreeSet<LocationName>>,
    /// Since when nothing gets through to them.
    cut_off: BTreeMap<LocationName, Instant>,
    /// Locations that are only observed now, and when our routes step back.
    leaving: BTreeMap<LocationName, Instant>,
    /// Something changed that this depends on.
    stale: bool,
    next: Option<Instant>,
}

impl Steer {
    pub(super) fn new(mesh: &Mesh, own: &LocationName) -> Self {
        let pairs = mesh.kilo_with(own).cloned().collect();
        Self { pairs, stale: true, ..Self::default() }
    }

    pub(super) fn set_mesh(&mut self, now: Now, old: &Mesh, mesh: &Mesh, own: &LocationName) {
        let before = std::mem::take(&mut self.pairs);
        self.pairs = mesh.kilo_with(own).cloned().collect();
        // Where our routes carried unasked they go on.
        let native = |l: &&LocationName| {
            old.locations.contains_key(*l) && !before.contains(*l) && !old.observed_between(own, l)
        };
        self.carried.extend(self.pairs.iter().filter(native).cloned());
        let observed = |l: &LocationName| mesh.observed_between(own, l);
        self.leaving.retain(|l, _| observed(l));
        for location in self.carried.iter().filter(|l| observed(l)) {
            let at = now.mono + yielding(own, location);
            self.leaving.entry(location.clone()).or_insert(at);
        }
        self.carried.retain(|l| self.pairs.contains(l) || self.leaving.contains_key(l));
        self.cut_off.retain(|l, _| self.pairs.contains(l));
        self.stale = true;
    }

    /// Nothing may be programmed yet: who carries now is not known, and must not change by a restart of this daemon.
    pub(super) fn waits(&self) -> bool {
        !self.pairs.is_empty() && !self.told
    }

    pub(super) fn carries(&self, location: &LocationName) -> bool {
        self.carried.contains(location)
    }

    /// For this node's members: where it does not carry; `None` before it is known, and where Kilo steers nothing.
    pub(super) fn uncarried(&self) -> Option<Vec<LocationName>> {
        let carried = self.in_force.as_ref().filter(|_| !self.pairs.is_empty())?;
        Some(self.pairs.difference(carried).cloned().collect())
    }

    /// What is carried is in the kernel. True if that is news to members.
    pub(super) fn programmed(&mut self) -> bool {
        let news = self.in_force.as_ref() != Some(&self.carried);
        if news {
            self.in_force = Some(self.carried.clone());
        }
        news && !self.pairs.is_empty()
    }

    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn look_again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// What the location adds to the time after which it steps back.
fn yielding(own: &LocationName, other: &LocationName) -> Duration {
    if own > other { YIELD } else { Duration::ZERO }
}

impl Node {
    /// Where a daemon before this one was carrying.
    pub(super) fn carried_before(&mut self, rules: BTreeSet<LocationName>) {
        if std::mem::replace(&mut self.steer.told, true) {
            return;
        }
        self.steer.carried.extend(rules.intersection(&self.steer.pairs).cloned());
        if !self.steer.pairs.is_empty() {
            self.reprogram(true);
        }
    }

    /// Decides anew who carries, if anything changed, and programs what follows.
    pub(super) fn steer(&mut self, now: Now) {
        let due = self.steer.next.is_some_and(|at| at <= now.mono);
        if !self.steer.told || !(self.steer.stale || due) {
            return;
        }
        self.steer.stale = false;
        self.steer.next = None;
        let mut changed = false;
        for (location, at) in self.steer.leaving.clone() {
            if now.mono < at {
                self.steer.look_again(at);
                continue;
            }
            self.steer.leaving.remove(&location);
            changed |=
                self.step_back(&location, "our routes stepped back: the steering is observe");
        }
        for location in self.steer.pairs.clone() {
            changed |= match self.observer {
                Some(_) => self.steer_by_evidence(now, &location),
                None => self.steer_by_leader(now, &location),
            };
        }
        if changed {
            self.reprogram(false);
            self.steer.stale = false;
        }
    }

    /// A candidate goes by what it sees itself. True if that changes something.
    fn steer_by_evidence(&mut self, now: Now, location: &LocationName) -> bool {
        let Some(observer) = &self.observer else { return false };
        if !self.steer.carries(location) {
            // Into a plane that is not known to forward nothing is moved; and before anything is decided Kilo goes on.
            let slot = self.leader_of(location).and_then(|n| self.mesh.node(&n)?.slot);
            if !slot.is_some_and(|slot| observer.forwards(location, slot)) {
                self.steer.look_again(now.mono + LOOK);
                return false;
            }
            return self.step_in(location);
        }
        if !observer.is_cut_off(location) {
            self.steer.cut_off.remove(location);
            self.steer.look_again(now.mono + CALM);
            return false;
        }
        let since = *self.steer.cut_off.entry(location.clone()).or_insert(now.mono);
        let at = since + STEP_BACK + yielding(&self.location, location);
        if now.mono < at {
            self.steer.look_again(at.min(now.mono + LOOK));
            return false;
        }
        self.step_back(location, "Kilo carries the workload: nothing gets through our tunnels")
    }

    /// A member does as its leader says. True if that changes something.
    fn steer_by_leader(&mut self, now: Now, location: &LocationName) -> bool {
        let Some(leader) = self.leader_of(&self.location) else { return false };
        let Some(told) = self.heard.uncarried.get(&leader) else { return false };
        if now.mono.since(told.at) > HELLO_STALE {
            return false;
        }
        // What was said by another mesh file is no reason to begin: the leader may not have heard yet that Kilo steers a location.
        let same_file = told.mesh_hash[..] == self.mesh.hash[..8];
        match !told.locations.contains(location) {
            true if same_file && !self.steer.carries(location) => self.step_in(location),
            false if self.steer.carries(location) => {
                self.step_back(location, "Kilo carries the workload: the leader's routes do not")
            }
            _ => false,
        }
    }

    fn step_in(&mut self, location: &LocationName) -> bool {
        self.steer.cut_off.remove(location);
        self.steer.carried.insert(location.clone());
        self.count("steer.in");
        let fields = [("location.name", location.to_string())];
        self.log(LogLevel::Info, "our routes carry the workload", fields);
        true
    }

    fn step_back(&mut self, location: &LocationName, why: &str) -> bool {
        self.steer.cut_off.remove(location);
        self.steer.carried.remove(location);
        self.count("steer.back");
        self.log(LogLevel::Warn, why, [("location.name", location.to_string())]);
        true
    }

    /// The first leader of a location, as far as this node's routes go. Kilo knows no more than one.
    fn leader_of(&self, location: &LocationName) -> Option<NodeName> {
        let slot = *self.effective_leaders(location)?.first()?;
        Some(self.mesh.candidate(location, slot)?.name.clone())
    }
}
