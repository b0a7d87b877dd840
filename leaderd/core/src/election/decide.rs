//! Who should lead, as a pure function of the present.
//!
//! Each other location has one vote about each candidate (`votes`). Two things move leadership by evidence:
//!
//! - A *fault of the node*: it says so itself, its location does not reach it, or everybody who has an opinion finds fault with it. It moves
//!   at once, to the candidate that serves most locations.
//! - A *net gain*: another candidate serves more locations straight. Relay pairs go around what a leader does not serve, so that
//!   cuts nobody off and may wait: where one tunnel between two leaders is dead, one of the two locations is to move and not both.
//!
//! A sick observer, a sick WAN or a sick target moves nothing: they spoil the standbys' evidence as well.

use std::time::Duration;

use super::situation::{ALIVE, Failing, Situation};
use crate::fault::{Fault, MoveReason};
use crate::ids::Slot;
use crate::verdict::Direction;

/// How long a new location waits for its preferred candidate before it takes another that is alive.
const INITIAL_WAIT: Duration = Duration::from_secs(2);
/// Least time in which a leader is left alone before an automatic fail-back.
const FAIL_BACK_AFTER: Duration = Duration::from_secs(10);

/// How long a choice must stand before it is carried out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Wait {
    No,
    /// Long enough that of several locations that could move one does so first, and the others see it.
    Soon,
    /// Until the location that should move instead has had its time.
    Late,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Choice {
    Keep,
    Move {
        leaders: Vec<Slot>,
        cause: MoveReason,
        direction: Option<Direction>,
        wait: Wait,
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

impl Choice {
    fn at_once(leaders: Vec<Slot>, cause: MoveReason, direction: Option<Direction>) -> Self {
        Self::Move { leaders, cause, direction, wait: Wait::No }
    }
}

/// Why one leader should not lead any more.
struct Departure {
    slot: Slot,
    cause: MoveReason,
    direction: Option<Direction>,
    /// Hold-down holds it: some traffic still passes, or those that say otherwise keep changing their word.
    held: bool,
}

impl Situation {
    pub fn decide(&self) -> Choice {
        if !self.decided {
            return self.initial();
        }
        let faults: Vec<Departure> = self.leaders.iter().filter_map(|&l| self.fault(l)).collect();
        match faults.first() {
            Some(first) => self.replace(&faults, first),
            None => self.by_votes().unwrap_or_else(|| self.improve()),
        }
    }

    /// Other leaders in place of those at fault.
    fn replace(&self, faults: &[Departure], first: &Departure) -> Choice {
        let bad = |s: &Slot| faults.iter().any(|f| f.slot == *s);
        let mut leaders: Vec<Slot> = self.leaders.iter().copied().filter(|s| !bad(s)).collect();
        for slot in self.successors(first.slot) {
            if leaders.len() < self.want && !bad(&slot) && !leaders.contains(&slot) {
                leaders.push(slot);
            }
        }
        let cause = first.cause;
        if !leaders.iter().any(|s| self.may_carry(*s)) {
            return if cause == MoveReason::Reconfigured {
                self.initial()
            } else {
                Choice::FailStatic { cause }
            };
        }
        let requested = matches!(cause, MoveReason::Drained | MoveReason::Reconfigured);
        let held_down = self.hold_down > Duration::ZERO && faults.iter().any(|f| f.held);
        if !requested && (self.frozen || held_down) {
            return Choice::Blocked { cause };
        }
        Choice::at_once(leaders, cause, first.direction)
    }

    /// A candidate in place of a leader, by which more locations are served straight than without it.
    fn by_votes(&self) -> Option<Choice> {
        let mut best: Option<(i32, Slot, Slot)> = None;
        for new in self.eligible().into_iter().filter(|s| !self.leaders.contains(s)) {
            for &old in &self.leaders {
                let net = self.net(new, old);
                if net > best.map_or(0, |(net, ..)| net) {
                    best = Some((net, new, old));
                }
            }
        }
        let (_, new, old) = best?;
        let (cause, direction) = self.common_fault(old);
        let cause = cause.into();
        if self.frozen || self.hold_down > Duration::ZERO {
            return Some(Choice::Blocked { cause });
        }
        // Of the two ends of a dead tunnel between leaders the location with the greater name moves, unless it cannot. What lies behind
        // the tunnel is for the location there to mend.
        let ours = self.gained(new, old).any(|(location, ballot)| {
            let greater = *location < self.location;
            !ballot.discounted && (greater || ballot.blames(old) || !ballot.could_move(old))
        });
        let wait = if ours { Wait::Soon } else { Wait::Late };
        let leaders = self.leaders.iter().map(|s| if *s == old { new } else { *s }).collect();
        Some(Choice::Move { leaders, cause, direction, wait })
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
        Choice::at_once(leaders, cause, None)
    }

    /// Nothing is wrong: more leaders if more are wanted, or back to the preferred one if the policy says so.
    fn improve(&self) -> Choice {
        if self.frozen || self.hold_down > Duration::ZERO || self.up_for < FAIL_BACK_AFTER {
            return Choice::Keep;
        }
        let eligible: Vec<Slot> = self
            .eligible()
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
            && leaders.first().is_some_and(|now| now != best && self.net(*best, *now) >= 0)
        {
            leaders.retain(|s| s != best);
            leaders.insert(0, *best);
            leaders.truncate(self.want);
        }
        if leaders == self.leaders {
            return Choice::Keep;
        }
        Choice::at_once(leaders, MoveReason::FailBack, None)
    }

    /// What is wrong with a leader, the most certain first.
    fn fault(&self, slot: Slot) -> Option<Departure> {
        let fault = |cause, direction, held| Some(Departure { slot, cause, direction, held });
        let Some(facts) = self.candidates.get(&slot) else {
            return fault(MoveReason::Reconfigured, None, false);
        };
        if facts.drained {
            return fault(MoveReason::Drained, None, false);
        }
        if facts.broken.is_some() {
            return fault(Fault::SelfReported.into(), None, false);
        }
        if let Some(failing) = self.failing(slot) {
            let (cause, direction) = self.common_fault(slot);
            let held = match failing {
                Failing::Dead => false,
                // Nothing passes through a dead tunnel, whoever says so.
                Failing::Wavering => cause != Fault::TunnelDown,
                Failing::Lossy => true,
            };
            return fault(cause.into(), direction, held);
        }
        // A node whose daemon is dead is not reached either. As long as a location is served by it, its LAN is there.
        let served = self.has_observers() && self.may_carry(slot);
        if facts.unreachable && !served {
            return fault(Fault::Unreachable.into(), None, false);
        }
        if facts.silent > self.daemon_dead_after {
            return fault(Fault::DaemonDead.into(), None, true);
        }
        None
    }
}

#[cfg(test)]
mod tests;
