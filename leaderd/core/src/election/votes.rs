//! What other locations say of a location's candidates: one vote a location, whatever number of observers it has.
//!
//! A location votes as its traffic goes: by the word of its relay towards here about a candidate, and that candidate's own word about
//! the tunnel between the two. Either may find fault. Only where the relay is silent or has no opinion do its other candidates speak for it, if
//! they agree. Who is unsure has no vote: neither for nor against.

use std::collections::{BTreeMap, BTreeSet};

use crate::fault::Fault;
use crate::ids::{NodeName, Slot};
use crate::relay_pair::{TunnelRow, TunnelState};
use crate::verdict::{SlotReport, Verdict};

/// What is said of a candidate, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Opinion {
    /// It forwards.
    Yes,
    /// It loses more packets than its standbys, and forwards the others.
    Lossy,
    /// It does not carry all that it should.
    No,
}

impl Opinion {
    /// What a verdict says; `None`: no opinion.
    const fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Forwarding => Some(Self::Yes),
            Verdict::Degraded { cause: Fault::Loss, .. } => Some(Self::Lossy),
            Verdict::Degraded { .. } => Some(Self::No),
            Verdict::Unknown | Verdict::Suspected => None,
        }
    }

    /// A candidate's own word about a tunnel. It may only find fault: nobody vouches for itself.
    const fn objection(state: TunnelState) -> Option<Self> {
        match state {
            TunnelState::Bad => Some(Self::No),
            TunnelState::Lossy => Some(Self::Lossy),
            TunnelState::Good | TunnelState::Unknown => None,
        }
    }
}

/// The fresh report of an observer that does not abstain.
#[derive(Clone, Debug)]
pub(crate) struct ObserverView {
    pub observer: NodeName,
    /// Its own slot, in its own location.
    pub place: Slot,
    pub slots: Vec<SlotReport>,
    /// The candidates with which it has found fault for a while.
    pub standing: BTreeSet<Slot>,
}

impl ObserverView {
    pub fn slot(&self, slot: Slot) -> Option<&SlotReport> {
        self.slots.iter().find(|s| s.slot == slot)
    }

    pub fn finds_fault(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(|s| s.verdict.is_degraded())
    }

    /// It finds fault with the candidate, and did not before.
    fn finds_new_fault(&self, slot: Slot) -> bool {
        self.finds_fault(slot) && !self.standing.contains(&slot)
    }

    fn suspects(&self, slot: Slot) -> bool {
        self.slot(slot).is_some_and(|s| s.verdict == Verdict::Suspected)
    }
}

/// What one other location has to say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ballot {
    pub observers: Vec<ObserverView>,
    /// Its candidates, whether they report or not.
    pub candidates: Vec<Slot>,
    /// The leaders that it has decided on.
    pub leaders: Vec<Slot>,
    /// Its relays towards here now: others than those while a detour is in use.
    pub relays: Vec<Slot>,
    /// What candidates here say of their tunnels there, by their slot.
    pub rows: BTreeMap<Slot, TunnelRow>,
    /// It watches at full rate.
    pub fully: bool,
    /// Its vote turned too often: it does not count towards a gain.
    pub discounted: bool,
}

impl Ballot {
    /// What both ends of the tunnel between an observer and a candidate say together.
    pub fn pair(&self, observer: &ObserverView, slot: Slot) -> Option<Opinion> {
        let word = observer.slot(slot).and_then(|s| Opinion::of(&s.verdict));
        let row = self.rows.get(&slot).copied().unwrap_or_default();
        word.max(Opinion::objection(row.state(observer.place)))
    }

    /// All that is said of a candidate, by whom.
    pub fn opinions(&self, slot: Slot) -> impl Iterator<Item = (&ObserverView, Opinion)> {
        self.observers.iter().filter_map(move |o| Some((o, self.pair(o, slot)?)))
    }

    /// What its observers themselves say of a candidate.
    pub fn words(&self, slot: Slot) -> impl Iterator<Item = Opinion> {
        let verdicts = self.observers.iter().filter_map(move |o| o.slot(slot));
        verdicts.filter_map(|s| Opinion::of(&s.verdict))
    }

    /// True if an observer suspects the candidate.
    pub fn is_in_doubt(&self, slot: Slot) -> bool {
        self.observers.iter().any(|o| o.suspects(slot))
    }

    /// True if an observer finds fault with the candidate that did not a moment ago.
    pub fn finds_new_fault(&self, slot: Slot) -> bool {
        self.observers.iter().any(|o| o.finds_new_fault(slot))
    }

    /// The vote if these relay.
    fn vote_of(&self, relays: &[Slot], slot: Slot) -> Option<Opinion> {
        let is_relay = |o: &ObserverView| relays.contains(&o.place);
        let of_relays = self.opinions(slot).filter(|(o, _)| is_relay(o)).map(|(_, word)| word);
        // Of several relays each carries a part of the traffic.
        if let Some(worst) = of_relays.max() {
            return Some(worst);
        }
        let mut others = self.opinions(slot).filter(|(o, _)| !is_relay(o)).map(|(_, word)| word);
        let first = others.next()?;
        if !others.all(|word| word == first) {
            return None;
        }
        // Where all is well a location that watches slowly does not report: the relay may be silent for that reason.
        let row = self.rows.get(&slot).copied().unwrap_or_default();
        let well = relays.iter().any(|relay| row.state(*relay) == TunnelState::Good);
        (first == Opinion::Yes || !well).then_some(first)
    }

    /// The vote if its decided leaders relay, as they do unless there is a detour.
    pub fn straight(&self, slot: Slot) -> Option<Opinion> {
        self.vote_of(&self.leaders, slot)
    }

    /// True if its traffic passes through the candidate as it goes now, or would if its decided leaders relayed.
    pub fn is_served_by(&self, slot: Slot) -> bool {
        self.is_served_now_by(slot) || self.straight(slot) == Some(Opinion::Yes)
    }

    fn is_served_now_by(&self, slot: Slot) -> bool {
        self.vote_of(&self.relays, slot) == Some(Opinion::Yes)
    }

    /// True if it would gain by `new` in place of `old`.
    pub fn gains(&self, new: Slot, old: Slot) -> bool {
        let faulty = self.straight(old).is_some_and(|word| word != Opinion::Yes);
        faulty && self.straight(new) == Some(Opinion::Yes) && !self.is_to_blame(new)
    }

    /// True if another candidate here than `new` accuses its leader of not relaying what it should: that is for the leader's own location
    /// to mend, and would most likely meet `new` as well.
    fn is_to_blame(&self, new: Slot) -> bool {
        let accused = |by: &TunnelRow| self.leaders.iter().any(|leader| by.accuses(*leader));
        self.rows.iter().any(|(slot, row)| *slot != new && accused(row))
    }

    /// True if its leader says that the candidate answers and does not relay what it should. No other leader of its own would mend that.
    pub fn blames(&self, slot: Slot) -> bool {
        let leaders = self.observers.iter().filter(|o| self.leaders.contains(&o.place));
        let verdicts = leaders.filter_map(|o| o.slot(slot)).map(|s| &s.verdict);
        verdicts.into_iter().any(TunnelState::is_behind)
    }

    /// True if it is not known to be served by `new` as well as it is by `old`.
    pub fn loses(&self, new: Slot, old: Slot) -> bool {
        match self.straight(old) {
            Some(Opinion::Yes) => self.straight(new) != Some(Opinion::Yes),
            Some(Opinion::Lossy) if self.straight(new).is_none_or(|w| w == Opinion::No) => true,
            _ => self.is_served_now_by(old) && !self.is_served_by(new),
        }
    }

    /// True if it can help itself: it has another candidate than its leaders that has no trouble with ours.
    pub fn could_move(&self, slot: Slot) -> bool {
        let others = self.candidates.iter().filter(|c| !self.leaders.contains(c));
        let says = |c: &Slot| {
            let observer = self.observers.iter().find(|o| o.place == *c);
            observer.and_then(|o| self.pair(o, slot))
        };
        // One that watches slowly does not report while all is well.
        others.into_iter().any(|c| says(c).map_or(!self.fully, |word| word == Opinion::Yes))
    }

    /// True if all its observers vouch for the candidate, and nobody suspects anything.
    pub fn is_sure_of(&self, slot: Slot) -> bool {
        let vouches = |o: &ObserverView| self.pair(o, slot) == Some(Opinion::Yes);
        !self.observers.is_empty() && self.observers.iter().all(vouches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    const FAULTY: Verdict = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
    const LOSSY: Verdict = Verdict::Degraded { cause: Fault::Loss, direction: None };

    /// A location whose candidates say this of the one candidate here; the first of them leads.
    fn ballot(words: &[Verdict]) -> Ballot {
        let observer = |(n, verdict): (usize, &Verdict)| ObserverView {
            observer: format!("a-{n}").parse().unwrap(),
            place: Slot(n as u8),
            slots: vec![SlotReport::new(Slot(0), verdict.clone(), WallTime(0))],
            standing: BTreeSet::new(),
        };
        Ballot {
            observers: words.iter().enumerate().map(observer).collect(),
            candidates: (0..words.len() as u8).map(Slot).collect(),
            fully: true,
            leaders: vec![Slot(0)],
            relays: vec![Slot(0)],
            ..Ballot::default()
        }
    }

    #[test]
    fn the_relay_speaks_for_its_location() {
        use Opinion::*;
        use Verdict::{Forwarding, Suspected, Unknown};
        for (words, vote) in [
            (vec![Forwarding, FAULTY, FAULTY], Some(Yes)),
            (vec![FAULTY, Forwarding, Forwarding], Some(No)),
            (vec![LOSSY, Forwarding], Some(Lossy)),
            // Without an opinion of its own the others speak, if they agree.
            (vec![Suspected, Forwarding, Forwarding], Some(Yes)),
            (vec![Unknown, FAULTY, Suspected], Some(No)),
            (vec![Unknown, FAULTY, Forwarding], None),
            (vec![Unknown, Suspected], None),
            (vec![], None),
        ] {
            assert_eq!(ballot(&words).straight(Slot(0)), vote, "{words:?}");
        }
    }

    #[test]
    fn a_candidate_may_find_fault_with_its_own_tunnel_and_not_vouch_for_it() {
        use Opinion::*;
        use Verdict::{Forwarding, Unknown};
        let vote = |word: Verdict, own| {
            let mut ballot = ballot(&[word]);
            ballot.rows.insert(Slot(0), TunnelRow::UNKNOWN.with(Slot(0), own));
            ballot.straight(Slot(0))
        };
        assert_eq!(vote(Forwarding, TunnelState::Bad), Some(No));
        assert_eq!(vote(Forwarding, TunnelState::Lossy), Some(Lossy));
        assert_eq!(vote(Forwarding, TunnelState::Good), Some(Yes));
        assert_eq!(vote(Forwarding, TunnelState::Unknown), Some(Yes));
        assert_eq!(vote(Unknown, TunnelState::Good), None);
        assert_eq!(vote(FAULTY, TunnelState::Good), Some(No));
    }

    #[test]
    fn others_do_not_condemn_for_a_relay_that_is_silent_as_all_is_well() {
        let mut ballot = ballot(&[Verdict::Unknown, FAULTY]);
        assert_eq!(ballot.straight(Slot(0)), Some(Opinion::No));
        ballot.rows.insert(Slot(0), TunnelRow::UNKNOWN.with(Slot(0), TunnelState::Good));
        assert_eq!(ballot.straight(Slot(0)), None);
    }

    #[test]
    fn a_location_can_help_itself_if_another_of_its_candidates_has_no_trouble() {
        use Verdict::{Forwarding, Unknown};
        let could = |words: &[Verdict], fully| {
            let ballot = Ballot { fully, ..ballot(words) };
            ballot.could_move(Slot(0))
        };
        assert!(could(&[FAULTY, Forwarding], true));
        assert!(!could(&[FAULTY, FAULTY], true));
        assert!(!could(&[FAULTY], true), "it has one candidate");
        assert!(!could(&[FAULTY, Unknown], true));
        assert!(could(&[FAULTY, Unknown], false), "it does not report while all is well");
    }

    #[test]
    fn where_a_relay_is_accused_its_own_location_is_to_move_and_the_other_gains_nothing() {
        let yes = Verdict::Forwarding;
        let observer = ObserverView {
            observer: "a-0".parse().unwrap(),
            place: Slot(0),
            slots: vec![
                SlotReport::new(Slot(0), yes.clone(), WallTime(0)),
                SlotReport::new(Slot(1), yes, WallTime(0)),
            ],
            standing: BTreeSet::new(),
        };
        let mut ballot = Ballot { observers: vec![observer], ..ballot(&[Verdict::Forwarding]) };
        let bad = TunnelRow::UNKNOWN.with(Slot(0), TunnelState::Bad);
        ballot.rows.insert(Slot(0), bad);
        assert!(ballot.gains(Slot(1), Slot(0)), "the tunnel is dead");
        ballot.rows.insert(Slot(0), bad.accusing(Slot(0)));
        assert!(!ballot.gains(Slot(1), Slot(0)), "what lies behind it is");
        assert!(super::tests::ballot(&[FAULTY]).blames(Slot(0)));
        let tunnel = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
        assert!(!super::tests::ballot(&[tunnel]).blames(Slot(0)));
    }

    #[test]
    fn during_a_detour_a_location_is_served_though_its_leader_is_not() {
        let mut ballot = ballot(&[FAULTY, Verdict::Forwarding]);
        assert!(!ballot.is_served_by(Slot(0)));
        ballot.relays = vec![Slot(1)];
        assert!(ballot.is_served_by(Slot(0)));
        assert_eq!(ballot.straight(Slot(0)), Some(Opinion::No));
    }
}
