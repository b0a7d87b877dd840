//! Who should lead, as a pure function of the present.
//!
//! An observer speaks for or against *slots*: a leader falls when most fresh observers call it degraded and most of those
//! same observers see another eligible candidate forward. So a sick observer, a sick WAN or a sick target moves nothing:
//! they spoil the standbys' evidence as well.

use std::time::Duration;

use super::situation::{ALIVE, Situation};
use crate::fault::{Fault, MoveReason};
use crate::ids::Slot;
use crate::verdict::Direction;

/// How long a new location waits for its preferred candidate before it takes another that is alive.
const INITIAL_WAIT: Duration = Duration::from_secs(2);
/// Least time in which a leader is left alone before an automatic fail-back.
const FAIL_BACK_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Choice {
    Keep,
    Move {
        leaders: Vec<Slot>,
        cause: MoveReason,
        direction: Option<Direction>,
    },
    /// Something is wrong with the leader and no other candidate would be better.
    FailStatic {
        cause: MoveReason,
    },
    /// Something would move if the freeze or the hold-down did not forbid it.
    Blocked {
        cause: MoveReason,
    },
}

/// Why one leader should not lead any more.
struct Departure {
    slot: Slot,
    cause: MoveReason,
    direction: Option<Direction>,
}

impl Situation {
    pub fn decide(&self) -> Choice {
        if !self.decided {
            return self.initial();
        }
        let faults: Vec<Departure> = self.leaders.iter().filter_map(|&l| self.fault(l)).collect();
        let Some(first) = faults.first() else { return self.improve() };
        let bad = |s: &Slot| faults.iter().any(|f| f.slot == *s);
        let mut leaders: Vec<Slot> = self.leaders.iter().copied().filter(|s| !bad(s)).collect();
        // If any outgoing leader failed, only the observers that saw it fail vote on its successor.
        let against = faults.iter().map(|f| f.slot).find(|s| self.failed_by_majority(*s));
        for slot in self.eligible(against) {
            if leaders.len() < self.want && !bad(&slot) && !leaders.contains(&slot) {
                leaders.push(slot);
            }
        }
        let cause = first.cause;
        let helps = |s: &Slot| against.is_none_or(|c| self.seen_forwarding(*s, Some(c)));
        if leaders.is_empty() || !leaders.iter().any(helps) {
            return if cause == MoveReason::Reconfigured {
                self.initial()
            } else {
                Choice::FailStatic { cause }
            };
        }
        let requested = matches!(cause, MoveReason::Drained | MoveReason::Reconfigured);
        // Hold-down keeps a lossy path from moving too often. Nothing passes through a dead leader, so that one is left at once.
        let dead = faults.iter().all(|f| self.is_unreached(f.slot));
        let held_down = self.hold_down > Duration::ZERO && !dead;
        if !requested && (self.frozen || held_down) {
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
        let cause = if self.decided { MoveReason::Reconfigured } else { MoveReason::Initial };
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
            && self.last_cause != Some(MoveReason::Promoted)
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
        Choice::Move { leaders, cause: MoveReason::FailBack, direction: None }
    }

    /// What is wrong with a leader, the most certain first.
    fn fault(&self, slot: Slot) -> Option<Departure> {
        let fault = |cause, direction| Some(Departure { slot, cause, direction });
        let Some(facts) = self.candidates.get(&slot) else {
            return fault(MoveReason::Reconfigured, None);
        };
        if facts.drained {
            return fault(MoveReason::Drained, None);
        }
        if facts.broken.is_some() {
            return fault(Fault::SelfReported.into(), None);
        }
        if self.failed_by_majority(slot) {
            let (cause, direction) = self.majority_fault(slot);
            return fault(cause.into(), direction);
        }
        if self.observers.is_empty() && facts.unreachable {
            return fault(Fault::Unreachable.into(), None);
        }
        if facts.silent > self.daemon_dead_after {
            return fault(Fault::DaemonDead.into(), None);
        }
        None
    }
}

#[cfg(test)]
mod tests;
