//! Locations whose vote about the leader keeps turning stop counting towards a move for a while.
//!
//! So one location, sick or dishonest, makes another move once by its word alone, and then not for ten minutes. Nobody is cut off meanwhile:
//! relay pairs go around.

use std::collections::BTreeMap;

use super::situation::Situation;
use super::votes::Opinion;
use crate::ids::{LocationName, Slot};
use crate::mesh::Mesh;
use crate::time::{Duration, Instant};

/// Two turns within this time are too many.
const WITHIN: Duration = Duration::from_secs(600);
/// How long a location does not count after the first time. It doubles with each further time.
const DISCOUNTED: Duration = Duration::from_secs(600);
/// Ten minutes, doubled six times: over ten hours.
const MAX_DOUBLINGS: u32 = 6;
/// A location that was steady for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
struct Accuser {
    /// What it said last of each candidate, if it had an opinion.
    said: BTreeMap<Slot, bool>,
    /// Its last turn, unless that led to `until`.
    turned: Option<Instant>,
    /// Until when it does not count, and how often that has happened.
    until: Option<Instant>,
    times: u32,
}

impl Accuser {
    fn turn(&mut self, now: Instant) {
        let again = self.turned.is_some_and(|at| now.since(at) < WITHIN);
        if !again {
            self.turned = Some(now);
            return;
        }
        self.turned = None;
        if self.until.is_some_and(|until| now.since(until) >= FORGIVEN_AFTER) {
            self.times = 0;
        }
        self.until = Some(now + DISCOUNTED * 2u32.pow(self.times.min(MAX_DOUBLINGS)));
        self.times = self.times.saturating_add(1);
    }
}

#[derive(Debug, Default)]
pub(super) struct Accusers(BTreeMap<LocationName, Accuser>);

impl Accusers {
    /// Takes the present votes about all candidates.
    pub fn note(&mut self, now: Instant, situation: &Situation) {
        for (location, ballot) in &situation.ballots {
            let accuser = self.0.entry(location.clone()).or_default();
            let mut turns = false;
            for slot in situation.candidates.keys() {
                let Some(vote) = ballot.straight(*slot) else { continue };
                let before = accuser.said.insert(*slot, vote == Opinion::Yes);
                let turned = before.is_some_and(|yes| yes != (vote == Opinion::Yes));
                turns |= turned && situation.leaders.contains(slot);
            }
            if turns {
                accuser.turn(now);
            }
        }
    }

    pub fn is_discounted(&self, now: Instant, location: &LocationName) -> bool {
        let until = self.0.get(location).and_then(|a| a.until);
        until.is_some_and(|until| now < until)
    }

    pub fn keep(&mut self, mesh: &Mesh) {
        self.0.retain(|l, _| mesh.locations.contains_key(l));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn turn(accusers: &mut Accusers, seconds: u64) -> bool {
        let name: LocationName = "a".parse().unwrap();
        accusers.0.entry(name.clone()).or_default().turn(at(seconds));
        accusers.is_discounted(at(seconds), &name)
    }

    #[test]
    fn two_turns_within_ten_minutes_discount_a_location_for_ten_minutes_then_twenty() {
        let mut accusers = Accusers::default();
        let name: LocationName = "a".parse().unwrap();
        assert!(!turn(&mut accusers, 0));
        assert!(!turn(&mut accusers, 600), "ten minutes apart");
        assert!(turn(&mut accusers, 700));
        assert!(accusers.is_discounted(at(1299), &name));
        assert!(!accusers.is_discounted(at(1300), &name));
        assert!(!turn(&mut accusers, 1400));
        assert!(turn(&mut accusers, 1500));
        assert!(accusers.is_discounted(at(1500 + 1199), &name));
        assert!(!accusers.is_discounted(at(1500 + 1200), &name));
    }

    #[test]
    fn a_day_without_turns_is_forgiven() {
        let mut accusers = Accusers::default();
        let name: LocationName = "a".parse().unwrap();
        turn(&mut accusers, 0);
        assert!(turn(&mut accusers, 1));
        let later = 601 + 24 * 3600;
        turn(&mut accusers, later);
        assert!(turn(&mut accusers, later + 1));
        assert!(!accusers.is_discounted(at(later + 601), &name));
    }

    #[test]
    fn however_often_a_location_turns_the_time_is_bounded() {
        let mut accusers = Accusers::default();
        let name: LocationName = "a".parse().unwrap();
        for n in 0..1000 {
            turn(&mut accusers, n);
        }
        assert!(!accusers.is_discounted(at(1000 + 64 * 600), &name));
    }
}
