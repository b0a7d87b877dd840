//! Random meshes in virtual time: all voters know the same tunnels, each location moves after its own random wait.
//!
//! Φ is the number of pairs of locations whose leaders have a good tunnel. A move by votes raises it, as a tunnel is the same seen from
//! both ends, so moves come to an end.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::*;
use crate::relay_pair::{End, choose};

/// How long the others act on what they knew before a move, in ms.
const UNKNOWN_FOR: u64 = 50;
/// Between two looks, in ms.
const STEP: u64 = 10;

struct World {
    /// Candidates of each location.
    count: u8,
    locations: Vec<LocationName>,
    bad: BTreeSet<(usize, u8, usize, u8)>,
    leaders: Vec<u8>,
    /// The leaders as the others know them.
    known: Vec<u8>,
    frozen: Option<usize>,
    rng: ChaCha8Rng,
}

impl World {
    fn new(locations: usize, count: u8, good_percent: u32, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bad = BTreeSet::new();
        for a in 0..locations {
            for b in a + 1..locations {
                for (i, j) in (0..count).flat_map(|i| (0..count).map(move |j| (i, j))) {
                    if rng.next_u32() % 100 >= good_percent {
                        bad.insert((a, i, b, j));
                    }
                }
            }
        }
        let names = (0..locations).map(|l| format!("l{l:02}").parse().unwrap());
        let leaders = vec![0; locations];
        let known = leaders.clone();
        Self { count, locations: names.collect(), bad, leaders, known, frozen: None, rng }
    }

    fn good(&self, (a, i): (usize, u8), (b, j): (usize, u8)) -> bool {
        let pair = if a < b { (a, i, b, j) } else { (b, j, a, i) };
        !self.bad.contains(&pair)
    }

    fn phi(&self) -> usize {
        let all = 0..self.locations.len();
        let pairs = all.clone().flat_map(|a| all.clone().map(move |b| (a, b)));
        pairs
            .filter(|(a, b)| a < b && self.good((*a, self.leaders[*a]), (*b, self.leaders[*b])))
            .count()
    }

    /// The relay of `there` in its pair with `here`, as `here` knows it.
    fn relay(&self, here: usize, there: usize) -> u8 {
        let order = |leader: u8| -> Vec<Slot> {
            let others = (0..self.count).filter(|s| *s != leader);
            std::iter::once(leader).chain(others).map(Slot).collect()
        };
        let (low, high) = (here.min(there), here.max(there));
        let (of_low, of_high) = (order(self.known_to(here, low)), order(self.known_to(here, high)));
        let state = |i: Slot, j: Slot| match self.good((low, i.0), (high, j.0)) {
            true => TunnelState::Good,
            false => TunnelState::Bad,
        };
        let low_end = End { leaders: &of_low[..1], order: &of_low };
        let high_end = End { leaders: &of_high[..1], order: &of_high };
        let chosen = choose(low_end, high_end, state, |_, _| false).unwrap();
        if there == low { chosen.low.0 } else { chosen.high.0 }
    }

    fn known_to(&self, here: usize, of: usize) -> u8 {
        if here == of { self.leaders[of] } else { self.known[of] }
    }

    fn ballot(&self, here: usize, there: usize) -> Ballot {
        let slots = || (0..self.count).map(Slot);
        let says = |place: Slot| {
            let verdict = |x: Slot| match self.good((there, place.0), (here, x.0)) {
                true => Verdict::Forwarding,
                false => Verdict::Degraded { cause: Fault::TunnelDown, direction: None },
            };
            let slots = slots().map(|x| SlotReport::new(x, verdict(x), WallTime(0)));
            let observer = format!("{}-{}", self.locations[there], place.0).parse().unwrap();
            ObserverView { observer, place, slots: slots.collect(), standing: BTreeSet::new() }
        };
        Ballot {
            observers: slots().map(says).collect(),
            candidates: slots().collect(),
            leaders: vec![Slot(self.known[there])],
            relays: vec![Slot(self.relay(here, there))],
            fully: true,
            ..Ballot::default()
        }
    }

    fn situation(&self, here: usize) -> Situation {
        let facts = |slot: u8| healthy(&format!("n{slot}"));
        let others = (0..self.locations.len()).filter(|l| *l != here);
        Situation {
            location: self.locations[here].clone(),
            ranking: (0..self.count).map(Slot).collect(),
            candidates: (0..self.count).map(|s| (Slot(s), facts(s))).collect(),
            ballots: others.map(|l| (self.locations[l].clone(), self.ballot(here, l))).collect(),
            leaders: vec![Slot(self.leaders[here])],
            decided: true,
            last_cause: None,
            frozen: self.frozen == Some(here),
            hold_down: Duration::ZERO,
            up_for: Duration::from_secs(60),
            daemon_dead_after: Duration::from_secs(5),
            fail_back: false,
            want: 1,
        }
    }

    /// True if everybody but `here` knows who leads.
    fn all_is_known(&self, here: usize) -> bool {
        (0..self.locations.len()).all(|l| l == here || self.known[l] == self.leaders[l])
    }

    /// Lets all locations move until none wants to. Returns who moved, or `None` if that takes longer than ten minutes. `check` gets Φ
    /// before and after each move that was decided on what is true.
    fn settle(&mut self, check: impl Fn(usize, usize)) -> Option<Vec<usize>> {
        let mut due: BTreeMap<usize, u64> = BTreeMap::new();
        let mut told: BTreeMap<usize, u64> = BTreeMap::new();
        let mut moved = Vec::new();
        // What somebody wants is found again only when something has changed.
        let mut choices: Vec<Option<(u8, Wait)>> = Vec::new();
        for now in (0..600_000).step_by(STEP as usize) {
            let heard: Vec<usize> =
                told.extract_if(.., |_, at| *at <= now).map(|(here, _)| here).collect();
            for here in &heard {
                self.known[*here] = self.leaders[*here];
            }
            if choices.is_empty() || !heard.is_empty() {
                choices = (0..self.locations.len()).map(|here| self.choice(here)).collect();
            }
            for (here, choice) in choices.clone().into_iter().enumerate() {
                let Some((leader, wait)) = choice else {
                    due.remove(&here);
                    continue;
                };
                let spread = u64::from(self.rng.next_u32() % 500);
                let wait = match wait {
                    Wait::No => 0,
                    Wait::Soon => 500 + spread,
                    Wait::Late => 10_500 + spread,
                };
                let at = due.get(&here).copied().unwrap_or(u64::MAX).min(now + wait);
                due.insert(here, at);
                if at > now {
                    continue;
                }
                let before = self.phi();
                self.leaders[here] = leader;
                if self.all_is_known(here) {
                    check(before, self.phi());
                }
                due.remove(&here);
                told.insert(here, now + UNKNOWN_FOR);
                moved.push(here);
                choices[here] = self.choice(here);
            }
            if due.is_empty() && told.is_empty() {
                return Some(moved);
            }
        }
        None
    }

    fn choice(&self, here: usize) -> Option<(u8, Wait)> {
        match self.situation(here).decide() {
            Choice::Move { leaders, wait, .. } => Some((leaders[0].0, wait)),
            _ => None,
        }
    }
}

#[test]
fn in_random_meshes_moves_end_and_none_of_them_parts_leaders_that_had_a_good_tunnel() {
    for (locations, count, meshes) in [(2, 2, 300), (3, 2, 150), (5, 3, 40), (8, 3, 8)] {
        for good in [30, 50, 80] {
            for seed in 0..meshes {
                let mut world = World::new(locations, count, good, seed);
                let what = format!("{locations} × {count}, {good}%, seed {seed}");
                let moved = world.settle(|before, after| {
                    assert!(after >= before, "{what}: Φ fell from {before} to {after}");
                });
                assert!(moved.is_some(), "{what} does not settle");
            }
        }
    }
}

fn dead(tunnels: &[(u8, u8)]) -> World {
    let mut world = World::new(2, 2, 100, 7);
    world.bad = tunnels.iter().map(|(i, j)| (0, *i, 1, *j)).collect();
    world
}

fn rises(before: usize, after: usize) {
    assert!(after > before);
}

#[test]
fn of_a_dead_pair_of_leaders_the_greater_location_moves_and_the_lower_one_stays() {
    for others in [&[][..], &[(1, 1)]] {
        let mut world = dead(&[&[(0, 0)], others].concat());
        assert_eq!(world.settle(rises), Some(vec![1]));
        assert_eq!(world.leaders, [0, 1]);
    }
}

#[test]
fn the_lower_location_moves_if_the_greater_one_cannot() {
    let mut world = dead(&[(0, 0)]);
    world.frozen = Some(1);
    assert_eq!(world.settle(rises), Some(vec![0]));
    // No candidate of the greater one reaches its leader.
    let mut world = dead(&[(0, 0), (0, 1)]);
    assert_eq!(world.settle(rises), Some(vec![0]));
    assert_eq!(world.leaders, [1, 0]);
}

#[test]
fn where_one_of_three_pairs_of_leaders_is_dead_one_location_moves() {
    for bad in [(0, 0, 1, 0), (0, 0, 2, 0), (1, 0, 2, 0)] {
        let mut world = World::new(3, 2, 100, 7);
        world.bad = [bad].into();
        assert_eq!(world.settle(rises), Some(vec![bad.2]), "{bad:?}");
        assert_eq!(world.phi(), 3);
    }
}
