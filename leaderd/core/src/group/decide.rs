//! Who should lead, as a pure function of the present.
//!
//! An observer is a witness for or against *slots*: a leader falls when most fresh observers call it degraded and most
//! of those same observers see another eligible candidate forward. So a sick observer, a sick WAN or a sick target
//! moves nothing: they spoil the standbys' evidence as well.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::ALIVE;
use crate::ids::{NodeName, Slot};
use crate::verdict::{Cause, Direction, SlotReport, Verdict};

/// How long a new location waits for its preferred candidate before it takes another that is alive.
const INITIAL_WAIT: Duration = Duration::from_secs(2);
/// Least time in which a leader is left alone before an automatic fail-back.
const FAIL_BACK_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct CandidateFacts {
    pub name: NodeName,
    pub drained: bool,
    pub broken: Option<Cause>,
    /// Time since its daemon's last sign of life.
    pub silent: Duration,
    /// Ever heard by this node.
    pub heard: bool,
    /// Most of the location's nodes do not reach it.
    pub unreachable: bool,
    /// Condemned not long ago.
    pub ejected: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ObserverView {
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
pub(super) struct Situation {
    pub ranking: Vec<Slot>,
    pub candidates: BTreeMap<Slot, CandidateFacts>,
    /// Fresh, not abstaining.
    pub observers: Vec<ObserverView>,
    pub leaders: Vec<Slot>,
    pub decided: bool,
    pub last_cause: Option<Cause>,
    pub frozen: bool,
    /// What is left of it.
    pub hold_down: Duration,
    pub up_for: Duration,
    pub daemon_dead_after: Duration,
    pub fail_back: bool,
    pub want: usize,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Choice {
    Keep,
    Move {
        leaders: Vec<Slot>,
        cause: Cause,
        direction: Option<Direction>,
    },
    /// Something is wrong with the leader and nobody else would be better.
    FailStatic {
        cause: Cause,
    },
    /// Something would move if the freeze or the hold-down did not forbid it.
    Blocked {
        cause: Cause,
    },
}

/// Why one leader should not lead any more.
struct Fault {
    slot: Slot,
    cause: Cause,
    direction: Option<Direction>,
}

impl Situation {
    pub fn decide(&self) -> Choice {
        if !self.decided {
            return self.initial();
        }
        let faults: Vec<Fault> = self.leaders.iter().filter_map(|&l| self.fault(l)).collect();
        let Some(first) = faults.first() else { return self.improve() };
        let bad = |s: &Slot| faults.iter().any(|f| f.slot == *s);
        let mut leaders: Vec<Slot> = self.leaders.iter().copied().filter(|s| !bad(s)).collect();
        // Of several leaders that go, one may be drained and another one condemned: who condemns is asked who is better.
        let against = faults.iter().map(|f| f.slot).find(|s| self.condemned(*s));
        for slot in self.eligible(against) {
            if leaders.len() < self.want && !bad(&slot) && !leaders.contains(&slot) {
                leaders.push(slot);
            }
        }
        let cause = first.cause;
        let helps = |s: &Slot| against.is_none_or(|c| self.seen_forwarding(*s, Some(c)));
        if leaders.is_empty() || !leaders.iter().any(helps) {
            return if cause == Cause::Reconfigured {
                self.initial()
            } else {
                Choice::FailStatic { cause }
            };
        }
        let asked_for = matches!(cause, Cause::Drained | Cause::Reconfigured);
        // Hold-down spares those who lose packets a move too many. Through a dead leader nothing gets at all.
        let dead = faults.iter().all(|f| self.reached_by_nobody(f.slot));
        let held = self.hold_down > Duration::ZERO && !dead;
        if !asked_for && (self.frozen || held) {
            return Choice::Blocked { cause };
        }
        Choice::Move { leaders, cause, direction: first.direction }
    }

    fn initial(&self) -> Choice {
        let alive = |s: &&Slot| {
            self.candidates.get(s).is_some_and(|c| c.heard && c.silent < ALIVE && !c.drained)
        };
        let well = |s: &&Slot| alive(s) && self.candidates[s].broken.is_none();
        let preferred = self.ranking.first();
        let waited = self.up_for >= INITIAL_WAIT;
        let pick = preferred.filter(well).or_else(|| {
            let other = self
                .ranking
                .iter()
                .find(well)
                .or_else(|| self.ranking.iter().find(alive))
                .or(preferred);
            other.filter(|_| waited)
        });
        let Some(&first) = pick else { return Choice::Keep };
        let mut leaders = vec![first];
        leaders.extend(
            self.ranking.iter().filter(well).copied().filter(|s| *s != first).take(self.want - 1),
        );
        let cause = if self.decided { Cause::Reconfigured } else { Cause::Initial };
        Choice::Move { leaders, cause, direction: None }
    }

    /// Nothing is wrong: more leaders if more are wanted, or back to the preferred one if the policy says so.
    fn improve(&self) -> Choice {
        if self.frozen || self.hold_down > Duration::ZERO || self.up_for < FAIL_BACK_AFTER {
            return Choice::Keep;
        }
        let eligible: Vec<Slot> = self
            .eligible(None)
            .into_iter()
            .filter(|s| !self.candidates[s].ejected && self.trusted(*s))
            .collect();
        let mut leaders = self.leaders.clone();
        for slot in &eligible {
            if leaders.len() < self.want && !leaders.contains(slot) {
                leaders.push(*slot);
            }
        }
        leaders.truncate(self.want);
        if self.fail_back
            && self.last_cause != Some(Cause::Promoted)
            && let Some(best) = self.ranking.first()
            && eligible.contains(best)
            && leaders.first() != Some(best)
        {
            leaders.retain(|s| s != best);
            leaders.insert(0, *best);
            leaders.truncate(self.want);
        }
        if leaders == self.leaders {
            return Choice::Keep;
        }
        Choice::Move { leaders, cause: Cause::FailBack, direction: None }
    }

    /// What is wrong with a leader, the most certain first.
    fn fault(&self, slot: Slot) -> Option<Fault> {
        let fault = |cause, direction| Some(Fault { slot, cause, direction });
        let Some(facts) = self.candidates.get(&slot) else {
            return fault(Cause::Reconfigured, None);
        };
        if facts.drained {
            return fault(Cause::Drained, None);
        }
        if facts.broken.is_some() {
            return fault(Cause::SelfReported, None);
        }
        if self.condemned(slot) {
            let (cause, direction) = self.majority_cause(slot);
            return fault(cause, direction);
        }
        if self.observers.is_empty() && facts.unreachable {
            return fault(Cause::Unreachable, None);
        }
        if facts.silent > self.daemon_dead_after {
            return fault(Cause::DaemonDead, None);
        }
        None
    }

    /// A strict majority of the fresh observers calls it degraded.
    pub fn condemned(&self, slot: Slot) -> bool {
        let degraded = self.observers.iter().filter(|o| o.sees(slot, Verdict::is_degraded)).count();
        degraded * 2 > self.observers.len()
    }

    /// Condemned because nothing comes back from it, and no observer says otherwise.
    fn reached_by_nobody(&self, slot: Slot) -> bool {
        let reached = |v: &Verdict| matches!(v, Verdict::Forwarding | Verdict::Suspected);
        !self.observers.is_empty()
            && self.condemned(slot)
            && self.majority_cause(slot).0 == Cause::TunnelDown
            && !self.observers.iter().any(|o| o.sees(slot, reached))
    }

    fn condemners(&self, slot: Slot) -> impl Iterator<Item = &ObserverView> {
        self.observers.iter().filter(move |o| o.sees(slot, Verdict::is_degraded))
    }

    fn majority_cause(&self, slot: Slot) -> (Cause, Option<Direction>) {
        let mut votes: BTreeMap<(Cause, Option<Direction>), usize> = BTreeMap::new();
        for report in self.condemners(slot).filter_map(|o| o.slot(slot)) {
            if let Verdict::Degraded { cause, direction } = &report.verdict {
                *votes.entry((*cause, *direction)).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(_, n)| *n);
        most.map_or((Cause::Forwarding, None), |(what, _)| what)
    }

    /// Most observers (of those that condemn `against`, if given) see this candidate forward.
    pub fn seen_forwarding(&self, slot: Slot, against: Option<Slot>) -> bool {
        let jury: Vec<&ObserverView> = match against {
            Some(against) => self.condemners(against).collect(),
            None => self.observers.iter().collect(),
        };
        jury.iter().filter(|o| o.forwards(slot)).count() * 2 > jury.len()
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

#[cfg(test)]
mod tests;
