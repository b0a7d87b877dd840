//! Handing the workload over between our routes and another system's that serves the same locations. The only such system is Kilo.
//!
//! Between two locations that Kilo steers our planes carry, always: what Kilo does then costs the workload nothing, be it a change of
//! leader, the restart of an agent or an API server that is away. Kilo's way is the fallback. A candidate takes its rule for a remote
//! location away when nothing has got through any plane to it for a while, and puts it back as soon as the leader there forwards. A
//! member has no planes: it follows its leader, which reports where it does not carry. Until then both go on as the daemon before them did.
//!
//! ```text
//!              the leader there forwards
//!   Kilo's way ─────────────────────────▶ carried
//!              ◀─────────────────────────
//!                nothing gets through for STEP_BACK
//! ```
//!
//! Where the steering of either end is `observe`, nothing is carried. With a new mesh file that says so, our routes step back.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::observe::Observer;
use crate::time::{Duration, Instant};
use crate::wire::HELLO_STALE;

/// How long nothing must get through any plane to a location until Kilo's way is taken. Kilo's tunnels end at the same nodes and cross
/// the same networks, so the two mostly fail together, and then a change gains nothing. A failover (0.2 s) and an overloaded machine
/// (a second or two) must be over by then.
const STEP_BACK: Duration = Duration::from_secs(3);

/// Of two locations the one with the greater name steps back later by this. Kilo's tunnels are idle while our planes carry, so the first
/// packet over them begins a handshake; if both ends begin one in the same moment, each drops the other's and both wait for 5 s
/// (`REKEY_TIMEOUT`). A round trip and the spread of what both ends see are shorter.
const YIELD: Duration = Duration::from_millis(1500);

/// How often a candidate checks: while all is as usual, and while it is not.
const CALM: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// This node's location. `None` only in a default value.
    own: Option<LocationName>,
    /// Remote locations that Kilo serves as well.
    pairs: BTreeSet<LocationName>,
    /// The shell has said where a daemon before this one was carrying.
    past_known: bool,
    /// Where our routes carry: of the pairs, and for a moment of locations that are only observed now.
    carried: BTreeSet<LocationName>,
    /// The same as it is in the kernel; `None` before anything is.
    in_force: Option<BTreeSet<LocationName>>,
    /// Since when nothing gets through to them.
    cut_off: BTreeMap<LocationName, Instant>,
    /// Locations that are only observed now, and when our routes step back.
    leaving: BTreeMap<LocationName, Instant>,
    /// What candidates of this location said last.
    uncarried_by: BTreeMap<NodeName, Uncarried>,
    /// Something changed that this depends on.
    stale: bool,
    next: Option<Instant>,
}

/// Where a candidate does not carry: see [`crate::wire::Frame::Uncarried`].
#[derive(Debug)]
struct Uncarried {
    at: Instant,
    mesh_hash: [u8; 8],
    locations: BTreeSet<LocationName>,
}

/// What the node knows that decides who carries.
pub(crate) struct View<'a> {
    pub mesh: &'a Mesh,
    /// `None` on a plain member.
    pub observer: Option<&'a Observer>,
    /// The first leader of a location, as far as this node's routes go. Kilo knows no more than one.
    pub first_leader: &'a dyn Fn(&LocationName) -> Option<Slot>,
}

/// Our routes to a location begin to carry, or stop.
#[derive(Debug)]
pub(crate) enum Change {
    In { location: LocationName },
    Back { location: LocationName, why: &'static str },
}

impl Change {
    pub fn location(&self) -> &LocationName {
        let (Self::In { location } | Self::Back { location, .. }) = self;
        location
    }

    pub const fn why(&self) -> &'static str {
        match self {
            Self::In { .. } => "our routes carry the workload",
            Self::Back { why, .. } => why,
        }
    }
}

impl Handover {
    pub fn new(mesh: &Mesh, own: &LocationName) -> Self {
        let pairs = mesh.kilo_with(own).cloned().collect();
        Self { own: Some(own.clone()), pairs, stale: true, ..Self::default() }
    }

    pub fn set_mesh(&mut self, now: Instant, old: &Mesh, mesh: &Mesh) {
        let Some(own) = self.own.clone() else { return };
        let before = std::mem::take(&mut self.pairs);
        self.pairs = mesh.kilo_with(&own).cloned().collect();
        // Where our routes carried because nothing else did, they go on.
        let native = |l: &&LocationName| {
            old.locations.contains_key(*l) && !before.contains(*l) && !old.observed_between(&own, l)
        };
        self.carried.extend(self.pairs.iter().filter(native).cloned());
        let observed = |l: &LocationName| mesh.observed_between(&own, l);
        self.leaving.retain(|l, _| observed(l));
        for location in self.carried.iter().filter(|l| observed(l)) {
            let at = now + yielding(&own, location);
            self.leaving.entry(location.clone()).or_insert(at);
        }
        self.carried.retain(|l| self.pairs.contains(l) || self.leaving.contains_key(l));
        self.cut_off.retain(|l, _| self.pairs.contains(l));
        self.stale = true;
    }

    /// Takes in where a daemon before this one carried, once. Returns true if that is what programming waited for.
    pub fn carried_before(&mut self, rules: &BTreeSet<LocationName>) -> bool {
        if std::mem::replace(&mut self.past_known, true) {
            return false;
        }
        self.carried.extend(rules.intersection(&self.pairs).cloned());
        !self.pairs.is_empty()
    }

    /// True while nothing may be programmed: who carries now is not known, and must not change by a restart of this daemon.
    pub fn waits(&self) -> bool {
        !self.pairs.is_empty() && !self.past_known
    }

    pub const fn carried(&self) -> &BTreeSet<LocationName> {
        &self.carried
    }

    pub fn carries(&self, location: &LocationName) -> bool {
        self.carried.contains(location)
    }

    /// For this node's members: where it does not carry; `None` before it is known, and where Kilo steers nothing.
    pub fn uncarried(&self) -> Option<Vec<LocationName>> {
        let carried = self.in_force.as_ref().filter(|_| !self.pairs.is_empty())?;
        Some(self.pairs.difference(carried).cloned().collect())
    }

    /// A candidate of this location said where it does not carry.
    pub fn heard_uncarried(
        &mut self,
        now: Instant,
        from: NodeName,
        mesh_hash: [u8; 8],
        locations: BTreeSet<LocationName>,
    ) {
        self.uncarried_by.insert(from, Uncarried { at: now, mesh_hash, locations });
        self.stale = true;
    }

    /// What is carried is in the kernel. Returns true if that is news to members.
    pub fn programmed(&mut self) -> bool {
        let news = self.in_force.as_ref() != Some(&self.carried);
        if news {
            self.in_force = Some(self.carried.clone());
        }
        news && !self.pairs.is_empty()
    }

    /// Something changed that this depends on.
    pub fn touch(&mut self) {
        self.stale = true;
    }

    /// What was changed by programming what [`Self::evaluate`] asked for is no reason to evaluate again.
    pub fn settled(&mut self) {
        self.stale = false;
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.past_known && (self.stale || self.next.is_some_and(|at| at <= now))
    }

    /// Decides who carries to each location. What changes must be programmed.
    pub fn evaluate(&mut self, now: Instant, view: &View<'_>) -> Vec<Change> {
        self.stale = false;
        self.next = None;
        let mut changes = Vec::new();
        for (location, at) in self.leaving.clone() {
            if now < at {
                self.check_again(at);
                continue;
            }
            self.leaving.remove(&location);
            changes
                .push(self.step_back(location, "our routes stepped back: the steering is observe"));
        }
        for location in self.pairs.clone() {
            changes.extend(match view.observer {
                Some(observer) => self.by_evidence(now, view, observer, location),
                None => self.by_leader(now, view, location),
            });
        }
        changes
    }

    /// A candidate goes by what it sees itself.
    fn by_evidence(
        &mut self,
        now: Instant,
        view: &View<'_>,
        observer: &Observer,
        location: LocationName,
    ) -> Option<Change> {
        if !self.carries(&location) {
            // Into a plane that is not known to forward nothing is moved; and before anything is decided Kilo goes on.
            let leader =
                (view.first_leader)(&location).and_then(|s| view.mesh.candidate(&location, s));
            let slot = leader.and_then(|n| n.slot);
            if !slot.is_some_and(|slot| observer.forwards(&location, slot)) {
                self.check_again(now + CHECK);
                return None;
            }
            return Some(self.step_in(location));
        }
        if !observer.is_cut_off(&location) {
            self.cut_off.remove(&location);
            self.check_again(now + CALM);
            return None;
        }
        let since = *self.cut_off.entry(location.clone()).or_insert(now);
        let yielded = self.own.as_ref().map_or(Duration::ZERO, |own| yielding(own, &location));
        let at = since + STEP_BACK + yielded;
        if now < at {
            self.check_again(at.min(now + CHECK));
            return None;
        }
        let why = "Kilo carries the workload: nothing gets through our tunnels";
        Some(self.step_back(location, why))
    }

    /// A member does as its leader says.
    fn by_leader(
        &mut self,
        now: Instant,
        view: &View<'_>,
        location: LocationName,
    ) -> Option<Change> {
        let own = self.own.as_ref()?;
        let leader = view.mesh.candidate(own, (view.first_leader)(own)?)?;
        let said = self.uncarried_by.get(&leader.name)?;
        if now.since(said.at) > HELLO_STALE {
            return None;
        }
        // What was said by another mesh file is no reason to begin: the leader may not have heard yet that Kilo steers a location.
        let same_file = said.mesh_hash[..] == view.mesh.hash[..8];
        match !said.locations.contains(&location) {
            true if same_file && !self.carries(&location) => Some(self.step_in(location)),
            false if self.carries(&location) => {
                let why = "Kilo carries the workload: the leader's routes do not";
                Some(self.step_back(location, why))
            }
            _ => None,
        }
    }

    fn step_in(&mut self, location: LocationName) -> Change {
        self.cut_off.remove(&location);
        self.carried.insert(location.clone());
        Change::In { location }
    }

    fn step_back(&mut self, location: LocationName, why: &'static str) -> Change {
        self.cut_off.remove(&location);
        self.carried.remove(&location);
        Change::Back { location, why }
    }

    fn check_again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// What the location adds to the time after which it steps back.
fn yielding(own: &LocationName, other: &LocationName) -> Duration {
    if own > other { YIELD } else { Duration::ZERO }
}
