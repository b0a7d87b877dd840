//! What a decision depends on, at one moment.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::votes::{Ballot, ObserverView, Opinion};
use crate::fault::{Fault, MoveReason};
use crate::ids::{LocationName, NodeName, Slot};
use crate::verdict::{Direction, Verdict};

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
pub(crate) struct Situation {
    pub location: LocationName,
    pub ranking: Vec<Slot>,
    pub candidates: BTreeMap<Slot, CandidateFacts>,
    /// Of each other location that has fresh reports.
    pub ballots: BTreeMap<LocationName, Ballot>,
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

/// What all observers that have an opinion say of a candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failing {
    /// It carries nothing, or not all that it should.
    Dead,
    /// The same, by locations whose word turned too often of late.
    Wavering,
    /// For some of them it only loses packets.
    Lossy,
}

impl Situation {
    /// The locations whose word comes in time: those that watch at full rate, or all if none of those has an opinion of the candidate.
    fn judges(&self, slot: Slot) -> impl Iterator<Item = &Ballot> {
        let speaks = |b: &Ballot| b.words(slot).next().is_some();
        let fully = self.ballots.values().any(|b| b.fully && speaks(b));
        self.ballots.values().filter(move |b| b.fully || !fully)
    }

    /// Fresh reports of observers that watch at full rate, or of all if none does.
    pub fn observers(&self) -> impl Iterator<Item = &ObserverView> + Clone {
        let fully = self.ballots.values().any(|b| b.fully);
        let ballots = self.ballots.values().filter(move |b| b.fully || !fully);
        ballots.flat_map(|b| &b.observers)
    }

    pub fn has_observers(&self) -> bool {
        !self.ballots.is_empty()
    }

    /// `Some` if every observer with an opinion finds fault with the candidate: it is the node, and no single tunnel. Its own word about its
    /// tunnels does not count, as it finds fault with all of them where the far ends are at fault.
    pub fn failing(&self, slot: Slot) -> Option<Failing> {
        let words: Vec<Opinion> = self.judges(slot).flat_map(|b| b.words(slot)).collect();
        if words.is_empty() || words.contains(&Opinion::Yes) {
            return None;
        }
        // Those that have found fault for long did so while others did not: with their own tunnels, as far as anybody knows. Who suspects the
        // candidate now is about to say whether there is more to it. So it is with loss, which takes seconds to measure.
        let in_doubt = self.judges(slot).any(|b| b.is_in_doubt(slot));
        let is_news = self.judges(slot).any(|b| b.finds_new_fault(slot));
        if in_doubt && (!is_news || words.contains(&Opinion::Lossy)) {
            return None;
        }
        let steady = |b: &Ballot| !b.discounted && b.words(slot).next().is_some();
        Some(if words.contains(&Opinion::Lossy) {
            Failing::Lossy
        } else if self.judges(slot).any(steady) {
            Failing::Dead
        } else {
            Failing::Wavering
        })
    }

    /// How many locations vote for a candidate, and how many against it.
    fn votes(&self, slot: Slot) -> (usize, usize) {
        let vote = |b: &Ballot| match b.is_served_by(slot) {
            true => Some(Opinion::Yes),
            false => b.straight(slot),
        };
        let count =
            |is: fn(&Opinion) -> bool| self.ballots.values().filter_map(vote).filter(is).count();
        (count(|word| *word == Opinion::Yes), count(|word| *word != Opinion::Yes))
    }

    /// True if some location is seen to be served by the candidate, or there is nobody to see it.
    pub fn may_carry(&self, slot: Slot) -> bool {
        !self.has_observers() || self.votes(slot).0 > 0
    }

    /// More locations vote for it than against it; without any observer it is enough to be reachable.
    pub fn trusted(&self, slot: Slot) -> bool {
        if self.has_observers() {
            let (yes, no) = self.votes(slot);
            yes > no
        } else {
            self.candidates.get(&slot).is_some_and(|c| !c.unreachable)
        }
    }

    /// The locations that gain by `new` in place of `old`.
    pub fn gained(&self, new: Slot, old: Slot) -> impl Iterator<Item = (&LocationName, &Ballot)> {
        self.ballots.iter().filter(move |(_, b)| b.gains(new, old))
    }

    /// How many more locations `new` serves straight than `old`, for those whose vote counts.
    pub fn net(&self, new: Slot, old: Slot) -> i32 {
        let gain = self.gained(new, old).filter(|(_, b)| !b.discounted).count();
        let loss = self.ballots.values().filter(|b| b.loses(new, old)).count();
        i32::try_from(gain).unwrap_or(i32::MAX) - i32::try_from(loss).unwrap_or(i32::MAX)
    }

    /// The most common fault that observers find with a candidate.
    pub fn common_fault(&self, slot: Slot) -> (Fault, Option<Direction>) {
        let mut count: BTreeMap<(Fault, Option<Direction>), usize> = BTreeMap::new();
        let observers = self.ballots.values().flat_map(|b| &b.observers);
        for report in observers.filter_map(|o| o.slot(slot)) {
            if let Verdict::Degraded { cause, direction } = &report.verdict {
                *count.entry((*cause, *direction)).or_default() += 1;
            }
        }
        let most = count.into_iter().max_by_key(|(_, n)| *n);
        // Where no observer finds fault, the candidate did so itself: with its tunnels, or because it would not relay.
        let mut rows = self.ballots.values().filter_map(|b| b.rows.get(&slot));
        let own = if rows.any(|r| r.avoids()) { Fault::SelfReported } else { Fault::TunnelDown };
        most.map_or((own, None), |(what, _)| what)
    }

    /// Candidates that may take over, in the order of the ranking, ejected ones last.
    pub fn eligible(&self) -> Vec<Slot> {
        let fit = |s: &Slot| self.unfit(*s).is_empty() && self.may_carry(*s);
        let mut all: Vec<Slot> = self.ranking.iter().copied().filter(fit).collect();
        all.sort_by_key(|s| self.candidates[s].ejected);
        all
    }

    /// Candidates that may take over from `old`, the best first: who serves most locations, net; then in the order of
    /// [`Self::eligible`].
    pub fn successors(&self, old: Slot) -> Vec<Slot> {
        let mut all = self.eligible();
        all.retain(|s| *s != old);
        if self.candidates.contains_key(&old) {
            all.sort_by_key(|s| Reverse(self.net(*s, old)));
        } else {
            all.sort_by_key(|s| Reverse(self.votes(*s).0));
        }
        all
    }

    /// What is against a candidate but the votes, for people.
    fn unfit(&self, slot: Slot) -> Vec<String> {
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
        why
    }

    /// Why a candidate should not lead, for people.
    pub fn blocked_by(&self, slot: Slot) -> Vec<String> {
        let mut why = self.unfit(slot);
        if self.candidates.contains_key(&slot) && !self.trusted(slot) {
            why.push("not seen forwarding by most locations".into());
        }
        why
    }
}
