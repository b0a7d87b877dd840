//! Beside Kilo: when our routes carry the workload, and when Kilo does.
//!
//! Kilo changes its leader by breaking before it makes. So a decision is in force on our planes at once, and an annotation (not
//! our business here) has Kilo follow. Our routes to a remote location step back when Kilo goes through who leads, and has
//! done so for a while; on the leader itself, when probes over Kilo's own way pass as well. They step in again whenever that is no
//! longer so, whatever the reason: a person's annotation, a restart of Kilo's, an API server that is away for so long that Kilo
//! drops its peers. Both ways carry during the change, so neither step costs a packet.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{LocationName, NodeName};
use crate::io::{KiloFacts, LogLevel};
use crate::mesh::Mesh;
use crate::time::{Duration, Instant, Now};

use super::Node;

/// Kilo must have been right for so long. It reprograms itself for some 50 ms, once for each change that it hears of.
const STEP_BACK: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Steer {
    /// Remote locations that Kilo serves as well.
    pairs: BTreeSet<LocationName>,
    facts: Option<KiloFacts>,
    /// Those of them to which our routes carry.
    pub(super) carried: BTreeSet<LocationName>,
    right_since: BTreeMap<LocationName, Instant>,
    /// Where probes over Kilo's own way pass.
    passes: BTreeSet<LocationName>,
    /// Something changed that this depends on.
    stale: bool,
    next: Option<Instant>,
}

impl Steer {
    pub(super) fn new(mesh: &Mesh, own: &LocationName) -> Self {
        let mut this = Self::default();
        this.set_mesh(mesh, own);
        this
    }

    pub(super) fn set_mesh(&mut self, mesh: &Mesh, own: &LocationName) {
        self.pairs = mesh.kilo_with(own).cloned().collect();
        self.carried.retain(|l| self.pairs.contains(l));
        self.right_since.retain(|l, _| self.pairs.contains(l));
        self.passes.retain(|l| self.pairs.contains(l));
        self.stale = true;
    }

    /// Nothing may be programmed yet: who carries now is not known, and must not change by a restart of this daemon.
    pub(super) fn waits(&self) -> bool {
        !self.pairs.is_empty() && self.facts.is_none()
    }

    /// Whether our routes carry to a location; `None` where Kilo never does.
    pub(super) fn carries(&self, location: &LocationName) -> Option<bool> {
        self.pairs.contains(location).then(|| self.carried.contains(location))
    }

    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}

impl Node {
    pub(super) fn kilo_facts(&mut self, facts: KiloFacts) {
        let first = self.steer.facts.is_none();
        if first {
            self.steer.carried = &facts.rules & &self.steer.pairs;
        }
        self.steer.facts = Some(facts);
        self.steer.stale = true;
        if first && !self.steer.pairs.is_empty() {
            self.reprogram(true);
        }
    }

    pub(super) fn kilo_way(&mut self, location: LocationName, passes: bool) {
        if passes {
            self.steer.passes.insert(location);
        } else {
            self.steer.passes.remove(&location);
        }
        self.steer.stale = true;
    }

    /// Decides anew who carries, if anything changed, and programs what follows.
    pub(super) fn steer(&mut self, now: Now) {
        let due = self.steer.next.is_some_and(|at| at <= now.mono);
        if self.steer.pairs.is_empty() || !(self.steer.stale || due) {
            return;
        }
        self.steer.stale = false;
        self.steer.next = None;
        let Some(facts) = self.steer.facts.clone() else { return };
        let own = self.leader_of(&self.location);
        let leading = own.as_ref() == Some(&self.me);
        let mut changed = false;
        for location in self.steer.pairs.clone() {
            let far = self.leader_of(&location);
            if let Some(observer) = &mut self.observer {
                observer.try_kilo(now, &location, leading);
            }
            if !leading {
                self.steer.passes.remove(&location);
            }
            // Before anything is decided Kilo, or who carried before, goes on.
            let Some(next_hop) = (if leading { &far } else { &own }) else { continue };
            let way = facts.ways.get(&location);
            let through = way == Some(next_hop);
            if through && (!leading || self.steer.passes.contains(&location)) {
                changed |= self.kilo_is_right(now, &location);
            } else {
                self.steer.right_since.remove(&location);
                changed |= self.step_in(&location, far.as_ref(), next_hop, way);
            }
        }
        if changed {
            self.reprogram(false);
            self.steer.stale = false;
        }
    }

    /// True if our routes step back.
    fn kilo_is_right(&mut self, now: Now, location: &LocationName) -> bool {
        let since = *self.steer.right_since.entry(location.clone()).or_insert(now.mono);
        if !self.steer.carried.contains(location) {
            return false;
        }
        let at = since + STEP_BACK;
        if now.mono < at {
            self.steer.next = Some(self.steer.next.map_or(at, |next| next.min(at)));
            return false;
        }
        self.steer.carried.remove(location);
        self.count("steer.back");
        let fields = [("location.name", location.to_string())];
        self.log(LogLevel::Info, "Kilo carries the workload: our routes stepped back", fields);
        true
    }

    /// True if our routes step in.
    fn step_in(
        &mut self,
        location: &LocationName,
        far: Option<&NodeName>,
        next_hop: &NodeName,
        way: Option<&NodeName>,
    ) -> bool {
        if self.steer.carried.contains(location) {
            return false;
        }
        // Into a plane that is not known to forward nothing is moved. Members have no planes: they follow their leader.
        let slot = far.and_then(|far| self.mesh.node(far)?.slot);
        let forwards = match &self.observer {
            Some(observer) => slot.is_some_and(|slot| observer.forwards(location, slot)),
            None => true,
        };
        if !forwards {
            return false;
        }
        self.steer.carried.insert(location.clone());
        self.count("steer.in");
        let fields = [
            ("location.name", location.to_string()),
            ("next_hop.wanted", next_hop.to_string()),
            ("next_hop.kilo", way.map_or("none", NodeName::as_str).to_owned()),
        ];
        self.log(LogLevel::Info, "our routes carry the workload until Kilo does", fields);
        true
    }

    /// The first leader of a location, as far as this node's routes go. Kilo knows no more than one.
    fn leader_of(&self, location: &LocationName) -> Option<NodeName> {
        let slot = *self.effective_leaders(location)?.first()?;
        Some(self.mesh.candidate(location, slot)?.name.clone())
    }
}
