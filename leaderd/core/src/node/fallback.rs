//! Going on without a quorum of the own location: every node ranks its candidates by what it sees itself, and logs that as an error.
//!
//! This is safe because leadership is no lock: two nodes that rank differently cost symmetry, never packets. Of other locations the last
//! decision stays in force: relay pairs go around a relay that is dead.

use std::collections::BTreeSet;

use super::Node;
use crate::ids::{LocationName, Slot};
use crate::io::LogLevel;
use crate::time::{Duration, Instant, Now};
use crate::wire::HELLO_STALE;

/// How often to check whether the location has lost its quorum, or has it back.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What this node knows for and against its location's candidates.
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
    location: LocationName,
    next_check: Instant,
    /// When a node of the location last knew a raft leader, or this one started.
    quorum_seen: Instant,
    /// Without a quorum: the slots that this node chose.
    chosen: Option<Vec<Slot>>,
}

impl Fallback {
    pub(super) fn new(now: Instant, location: LocationName) -> Self {
        Self { location, next_check: now + CHECK_INTERVAL, quorum_seen: now, chosen: None }
    }

    pub(super) fn is_active(&self, location: &LocationName) -> bool {
        self.chosen_for(location).is_some()
    }

    fn chosen_for(&self, location: &LocationName) -> Option<&Vec<Slot>> {
        self.chosen.as_ref().filter(|_| *location == self.location)
    }

    pub(super) fn saw_quorum(&mut self, now: Instant, location: &LocationName) {
        if *location == self.location {
            self.quorum_seen = now;
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_check
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_check <= now
    }

    /// A new decision was taken: the location has a quorum again.
    pub(super) fn left(&mut self, location: &LocationName) {
        if *location == self.location {
            self.chosen = None;
        }
    }
}

impl Node {
    /// Returns the leaders of a location that this node's routes follow.
    pub(super) fn effective_leaders(&self, location: &LocationName) -> Option<Vec<Slot>> {
        let chosen = self.fallback.chosen_for(location).cloned();
        chosen.or_else(|| self.decided_leaders(location))
    }

    pub(super) fn decided_leaders(&self, location: &LocationName) -> Option<Vec<Slot>> {
        let candidates = self.mesh.candidates_of(location);
        let leaders = &self.decisions.get(location)?.leaders;
        let present: Vec<Slot> =
            leaders.iter().copied().filter(|s| candidates.contains_key(s)).collect();
        (!present.is_empty()).then_some(present)
    }

    pub(super) fn check_fallback(&mut self, now: Now) {
        self.fallback.next_check = now.mono + CHECK_INTERVAL;
        let location = self.location.clone();
        if self.groups.get(&location).is_some_and(|g| g.has_quorum(now)) {
            self.fallback.saw_quorum(now.mono, &location);
        }
        let limit = self.mesh.policy_of(&location).quorum_lost_after;
        let lost = now.mono.since(self.fallback.quorum_seen) > limit;
        let was = self.fallback.chosen.clone();
        let choice = if lost || was.is_some() { self.own_ranking(now) } else { None };
        let choice = choice.filter(|own| lost || self.is_better(now, own));
        if choice == was {
            return;
        }
        let slots = choice.as_ref().map_or_else(
            || "-".to_owned(),
            |s| s.iter().map(Slot::to_string).collect::<Vec<_>>().join(","),
        );
        let (level, message) = match &choice {
            Some(_) => (LogLevel::Error, "no quorum: following this node's own ranking"),
            None => (LogLevel::Info, "own ranking ended: following the location's decisions again"),
        };
        let fields = [("location.name", location.to_string()), ("leader.slot", slots)];
        self.log(level, message, fields);
        self.fallback.chosen = choice;
        self.find_relays(now, self.other_locations());
        self.reprogram(false);
    }

    /// Returns the leaders in force that are good, then other good candidates by ranking, as many as the policy has. A drained
    /// candidate leads only if no other does.
    fn own_ranking(&self, now: Now) -> Option<Vec<Slot>> {
        let ranking = self.mesh.ranking(&self.location);
        let current = self.effective_leaders(&self.location).unwrap_or_default();
        let others = ranking.iter().filter(|s| !current.contains(s));
        let mut order: Vec<Slot> = current.iter().chain(others).copied().collect();
        let evidence = self.evidence(now);
        order.retain(|s| evidence.favours(*s));
        if order.iter().any(|s| !evidence.drained.contains(s)) {
            order.retain(|s| !evidence.drained.contains(s));
        }
        if order.is_empty() {
            // No candidate is good: stay with those that lead.
            order = if current.is_empty() { ranking } else { current };
        }
        order.truncate(usize::from(self.mesh.policy_of(&self.location).leaders.max(1)));
        (!order.is_empty()).then_some(order)
    }

    /// The location has a quorum again, and its decision may be the one from before: true while by this node's evidence a decided
    /// leader is dead and its own choice is not. A new decision ends it.
    fn is_better(&self, now: Now, own: &[Slot]) -> bool {
        let Some(decided) = self.decided_leaders(&self.location) else { return false };
        let evidence = self.evidence(now);
        let good = |slots: &[Slot]| slots.iter().all(|s| evidence.favours(*s));
        decided != own && !good(&decided) && good(own)
    }

    /// Returns what this node knows about its location's candidates: whether they live, and what observers reported.
    fn evidence(&self, now: Now) -> Evidence {
        let reported =
            self.voting(&self.location).map(|g| g.candidates_status(now)).unwrap_or_default();
        let degraded =
            |slot: Slot| reported.iter().any(|c| c.slot == slot && c.verdict.is_degraded());
        let is_good = |slot: &Slot| {
            let Some(node) = self.mesh.candidate(&self.location, *slot) else { return false };
            let alive = if node.name == self.me {
                self.facts.broken.is_none()
            } else {
                self.peers.timed_hello(&node.name).is_some_and(|(at, hello)| {
                    now.mono.since(at) <= HELLO_STALE && hello.broken.is_none()
                })
            };
            alive && !degraded(*slot)
        };
        let good = self.mesh.ranking(&self.location).into_iter().filter(is_good).collect();
        Evidence { good, drained: self.drained_here(now) }
    }
}
