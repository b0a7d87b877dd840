//! What a decision depends on, at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fault::{Fault, MoveReason};
use crate::ids::{NodeName, Slot};
use crate::verdict::{Direction, SlotReport, Verdict};

/// A daemon is alive for this long after a sign of life: three hellos.
pub(super) const ALIVE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub(crate) struct CandidateFacts {
    pub name: NodeName,
    pub drained: bool,
    pub broken: Option<Fault>,
    /// Time since its daemon's last sign of life.
    pub silent: Duration,
    /// Ever heard by this node.
    pub heard: bool,
    /// Most of the location's nodes do not reach it.
    pub unreachable: bool,
    /// Left for a failure not long ago.
    pub ejected: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ObserverView {
    pub observer: NodeName,
    pub slots: Vec<SlotReport>,
}

impl ObserverView {
    pub fn slot(&self, slot: Slot) -> Option<&SlotReport> {
        self.slots.iter().find(|s| s.slot == slot)
    }
    fn sees(&self, slot: Slot, is: impl Fn(&Verdict) -> bool) -> bool {
        self.slot(slot).is_some_and(|s| is(&s.verdict))
    }
    fn forwards(&self, slot: Slot) -> bool {
        self.sees(slot, |v| *v == Verdict::Forwarding)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Situation {
    pub ranking: Vec<Slot>,
    pub candidates: BTreeMap<Slot, CandidateFacts>,
    /// Fresh, not abstaining.
    pub observers: Vec<ObserverView>,
    pub leaders: Vec<Slot>,
    pub decided: bool,
    pub last_cause: Option<MoveReason>,
    pub frozen: bool,
    /// What is left of it.
    pub hold_down: Duration,
    pub up_for: Duration,
    pub daemon_dead_after: Duration,
    pub fail_back: bool,
    pub want: usize,
}

impl Situation {
    /// A strict majority of the fresh observers calls it degraded.
    pub fn failed_by_majority(&self, slot: Slot) -> bool {
        let degraded = self.observers.iter().filter(|o| o.sees(slot, Verdict::is_degraded)).count();
        degraded * 2 > self.observers.len()
    }

    /// True if most observers get nothing back from it, and none gets anything.
    pub fn is_unreached(&self, slot: Slot) -> bool {
        let reached = |v: &Verdict| matches!(v, Verdict::Forwarding | Verdict::Suspected);
        !self.observers.is_empty()
            && self.failed_by_majority(slot)
            && self.majority_fault(slot).0 == Fault::TunnelDown
            && !self.observers.iter().any(|o| o.sees(slot, reached))
    }

    fn reporters_of_failure(&self, slot: Slot) -> impl Iterator<Item = &ObserverView> {
        self.observers.iter().filter(move |o| o.sees(slot, Verdict::is_degraded))
    }

    pub fn majority_fault(&self, slot: Slot) -> (Fault, Option<Direction>) {
        let mut votes: BTreeMap<(Fault, Option<Direction>), usize> = BTreeMap::new();
        for report in self.reporters_of_failure(slot).filter_map(|o| o.slot(slot)) {
            if let Verdict::Degraded { cause, direction } = &report.verdict {
                *votes.entry((*cause, *direction)).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(_, n)| *n);
        most.map_or((Fault::NotForwarding, None), |(what, _)| what)
    }

    /// Most observers (of those that report the failure of `against`, if given) see this candidate forward.
    pub fn seen_forwarding(&self, slot: Slot, against: Option<Slot>) -> bool {
        let asked: Vec<&ObserverView> = match against {
            Some(against) => self.reporters_of_failure(against).collect(),
            None => self.observers.iter().collect(),
        };
        asked.iter().filter(|o| o.forwards(slot)).count() * 2 > asked.len()
    }

    /// Seen forwarding; without any observer it is enough to be alive and reachable.
    pub fn trusted(&self, slot: Slot) -> bool {
        if self.observers.is_empty() {
            self.candidates.get(&slot).is_some_and(|c| !c.unreachable)
        } else {
            self.seen_forwarding(slot, None)
        }
    }

    /// Candidates that may take over, the best first: in the order of the ranking, ejected ones last.
    pub fn eligible(&self, against: Option<Slot>) -> Vec<Slot> {
        let mut all: Vec<Slot> = self
            .ranking
            .iter()
            .copied()
            .filter(|s| self.blocked_by(*s, against).is_empty())
            .collect();
        all.sort_by_key(|s| self.candidates[s].ejected);
        all
    }

    /// Why a candidate cannot take over, for people.
    pub fn blocked_by(&self, slot: Slot, against: Option<Slot>) -> Vec<String> {
        let mut why = Vec::new();
        let Some(c) = self.candidates.get(&slot) else {
            return vec!["not in the mesh file".into()];
        };
        if c.drained {
            why.push("drained".into());
        }
        if let Some(cause) = c.broken {
            why.push(format!("says that it is broken ({cause})"));
        }
        if !c.heard {
            why.push("its daemon was never heard".into());
        } else if c.silent >= ALIVE {
            why.push(format!("its daemon is silent for {} s", c.silent.as_secs()));
        }
        if c.unreachable {
            why.push("not reachable inside the location".into());
        }
        let forwards = if against.is_some() {
            self.seen_forwarding(slot, against)
        } else {
            self.trusted(slot)
        };
        if !forwards {
            why.push("not seen forwarding by most observers".into());
        }
        why
    }
}
