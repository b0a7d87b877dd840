//! Going on without a quorum: every node ranks the candidates by what it sees itself, and logs that as an error.
//!
//! This is safe because leadership is no lock: two nodes that rank differently cost symmetry, never packets.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::ids::{LocationName, Slot};
use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::time::{Duration, Instant, Now};
use crate::verdict::Verdict;
use crate::wire::HELLO_STALE;

/// How often to check whether a location has lost its quorum, or has it back.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What this node knows for and against a location's candidates.
struct Evidence {
    good: BTreeSet<Slot>,
    drained: BTreeSet<Slot>,
}

impl Evidence {
    fn favours(&self, slot: Slot) -> bool {
        self.good.contains(&slot)
    }
}

#[derive(Debug)]
pub(super) struct Fallback {
    next_check: Instant,
    started: Instant,
    /// When a node of the location last knew a raft leader.
    quorum_seen: BTreeMap<LocationName, Instant>,
    /// Locations without a quorum, and the slots this node chose for them.
    chosen: BTreeMap<LocationName, Vec<Slot>>,
}

impl Fallback {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next_check: now + CHECK_INTERVAL,
            started: now,
            quorum_seen: BTreeMap::new(),
            chosen: BTreeMap::new(),
        }
    }

    pub(super) fn is_active(&self, location: &LocationName) -> bool {
        self.chosen.contains_key(location)
    }

    pub(super) fn saw_quorum(&mut self, now: Instant, location: &LocationName) {
        self.quorum_seen.insert(location.clone(), now);
    }

    /// Returns for how long no quorum of a location was seen.
    fn without_quorum(&self, now: Instant, location: &LocationName) -> Duration {
        now.since(self.quorum_seen.get(location).copied().unwrap_or(self.started))
    }

    /// Locations that are gone have no quorum to miss.
    pub(super) fn retain(&mut self, mesh: &Mesh) {
        self.quorum_seen.retain(|l, _| mesh.locations.contains_key(l));
    }

    #[cfg(test)]
    pub(super) fn with_quorum_seen(&self) -> impl Iterator<Item = &LocationName> {
        self.quorum_seen.keys()
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_check
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_check <= now
    }

    /// A new decision was taken: the location has a quorum again.
    pub(super) fn left(&mut self, location: &LocationName) {
        self.chosen.remove(location);
    }
}

impl Node {
    /// Returns the leaders of a location that this node's routes follow.
    pub(super) fn effective_leaders(&self, location: &LocationName) -> Option<Vec<Slot>> {
        let chosen = self.fallback.chosen.get(location).cloned();
        chosen.or_else(|| self.decided_leaders(location))
    }

    fn decided_leaders(&self, location: &LocationName) -> Option<Vec<Slot>> {
        let candidates = self.mesh.candidates_of(location);
        let leaders = &self.decisions.get(location)?.leaders;
        let present: Vec<Slot> =
            leaders.iter().copied().filter(|s| candidates.contains_key(s)).collect();
        (!present.is_empty()).then_some(present)
    }

    pub(super) fn check_fallback(&mut self, now: Now) {
        self.fallback.next_check = now.mono + CHECK_INTERVAL;
        let mesh = self.mesh.clone();
        let mut changed = false;
        for location in mesh.locations.keys() {
            if *location != self.location && self.observer.is_none() {
                // A plain member hears nothing of other locations: its leader chooses for it. It may have been a candidate before.
                changed |= self.fallback.is_active(location);
                self.fallback.left(location);
                continue;
            }
            if self.groups.get(location).is_some_and(|g| g.has_quorum(now)) {
                self.fallback.saw_quorum(now.mono, location);
            }
            let far = *location != self.location;
            let limit = mesh.policy_of(location).quorum_lost_after;
            let limit = if far { limit.max(self.peers.far_silence()) } else { limit };
            let lost = self.fallback.without_quorum(now.mono, location) > limit;
            let was = self.fallback.chosen.get(location).cloned();
            let choice = if lost || was.is_some() { self.own_ranking(now, location) } else { None };
            let choice = choice.filter(|own| lost || self.is_better(now, location, own));
            if choice == was {
                continue;
            }
            let slots = |s: &Option<Vec<Slot>>| {
                s.as_ref().map_or_else(
                    || "-".to_owned(),
                    |s| s.iter().map(Slot::to_string).collect::<Vec<_>>().join(","),
                )
            };
            let fields = [("location.name", location.to_string()), ("leader.slot", slots(&choice))];
            match &choice {
                Some(_) => self.log(
                    LogLevel::Error,
                    "no quorum: following this node's own ranking",
                    fields,
                ),
                None => self.log(
                    LogLevel::Info,
                    "own ranking ended: following the location's decisions again",
                    fields,
                ),
            }
            match choice {
                Some(choice) => drop(self.fallback.chosen.insert(location.clone(), choice)),
                None => self.fallback.left(location),
            }
            changed = true;
        }
        if changed {
            self.find_relays(now, self.other_locations());
            self.reprogram(false);
        }
    }

    /// Returns the leaders in force that are good, then other good candidates by ranking, as many as the policy has. A drained
    /// candidate leads only if no other does.
    fn own_ranking(&self, now: Now, location: &LocationName) -> Option<Vec<Slot>> {
        let ranking = self.mesh.ranking(location);
        let current = self.effective_leaders(location).unwrap_or_default();
        let others = ranking.iter().filter(|s| !current.contains(s));
        let mut order: Vec<Slot> = current.iter().chain(others).copied().collect();
        let evidence = self.evidence(now, location);
        order.retain(|s| evidence.favours(*s));
        if order.iter().any(|s| !evidence.drained.contains(s)) {
            order.retain(|s| !evidence.drained.contains(s));
        }
        if order.is_empty() {
            // No candidate is good: stay with those that lead.
            order = if current.is_empty() { ranking } else { current };
        }
        order.truncate(usize::from(self.mesh.policy_of(location).leaders.max(1)));
        (!order.is_empty()).then_some(order)
    }

    /// The location has a quorum again, and its decision may be the one from before: true while by this node's evidence a decided
    /// leader is dead and its own choice is not. A new decision ends it.
    fn is_better(&self, now: Now, location: &LocationName, own: &[Slot]) -> bool {
        let Some(decided) = self.decided_leaders(location) else { return false };
        let evidence = self.evidence(now, location);
        let good = |slots: &[Slot]| slots.iter().all(|s| evidence.favours(*s));
        decided != own && !good(&decided) && good(own)
    }

    /// Returns what this node knows about a location's candidates.
    fn evidence(&self, now: Now, location: &LocationName) -> Evidence {
        let verdicts = self.verdicts(now, location);
        let here = *location == self.location;
        let is_good = |slot: &Slot| {
            let degraded = verdicts.get(slot).is_some_and(Verdict::is_degraded);
            if !here {
                return verdicts.get(slot) == Some(&Verdict::Forwarding);
            }
            let Some(node) = self.mesh.candidate(location, *slot) else { return false };
            let alive = if node.name == self.me {
                self.facts.broken.is_none()
            } else {
                self.peers.timed_hello(&node.name).is_some_and(|(at, hello)| {
                    now.mono.since(at) <= HELLO_STALE && hello.broken.is_none()
                })
            };
            alive && !degraded
        };
        let good = self.mesh.ranking(location).into_iter().filter(is_good).collect();
        // Drains are known within a location only.
        let drained = if here { self.drained_here(now) } else { BTreeSet::new() };
        Evidence { good, drained }
    }

    /// What is known of a location's candidates here: own evidence, or what observers reported to this location.
    fn verdicts(&self, now: Now, location: &LocationName) -> BTreeMap<Slot, Verdict> {
        if *location == self.location {
            let reported =
                self.voting(location).map(|g| g.candidates_status(now)).unwrap_or_default();
            reported.into_iter().map(|c| (c.slot, c.verdict)).collect()
        } else {
            let view = self.observer.as_ref().and_then(|o| o.view(now, location));
            view.into_iter().flat_map(|r| r.slots).map(|s| (s.slot, s.verdict)).collect()
        }
    }
}
