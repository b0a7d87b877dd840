//! The detectors that ours is held against: models, their false alarms in closed form, and a simulation of each.
//!
//! * [`InARow`]: a number of probes in a row lost. BFD (RFC 5880) is one of these: a session with multiplier 3 and packets
//!   spaced 75 to 100% of the interval (§6.8.7) goes down when nothing came for 3 × interval. Two lost packets leave a gap
//!   of at most 3 × interval, three one of at least 4 × 0.75 × interval: so three in a row it is, always.
//! * [`Ping`]: one request every so often over a connection that repeats what is lost, as Headscale probes its routes.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use leaderd_core::time::Instant;

use super::loss::{Loss, LossProcess};
use ::tests::sim::link::uniform;

pub const YEAR: f64 = 31_557_600.0;

/// Losses in a row. Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InARow {
    pub name: &'static str,
    pub losses: usize,
    /// Between two packets: drawn uniformly from this.
    pub interval: (f64, f64),
    /// BFD's packets are not answered: each end listens to the other's. Else a probe crosses the path twice.
    pub one_way: bool,
}

/// As many as ours sends of new flows through the leader, per observer.
pub const THREE: InARow =
    InARow { name: "3 of 3 in a row", losses: 3, interval: (0.1, 0.1), one_way: false };
pub const SEVEN: InARow =
    InARow { name: "7 of 7 in a row", losses: 7, interval: (0.1, 0.1), one_way: false };
pub const BFD_50: InARow =
    InARow { name: "BFD 3 × 50 ms", losses: 3, interval: (0.0375, 0.05), one_way: true };
pub const BFD_300: InARow =
    InARow { name: "BFD 3 × 300 ms", losses: 3, interval: (0.225, 0.3), one_way: true };
/// How long a probe of `InARow` waits for its reply beyond a round trip, seconds: our least timeout.
const WAIT: f64 = 0.02;

impl InARow {
    /// False alarms a second: the rate at which runs of lost packets become long enough, in the stationary state of the
    /// Markov chain of (channels' states, losses in a row). Both ends of a BFD session listen, so it counts twice.
    pub fn false_rate(&self, loss: Loss) -> f64 {
        let legs = if self.one_way { 1 } else { 2 };
        let states = 1usize << legs;
        let (lo, hi) = self.interval;
        let mean = (lo + hi) / 2.0;
        // A few points of the interval's distribution stand for all of it (midpoint rule).
        const POINTS: usize = 16;
        let mut turn = vec![vec![0.0; states]; states];
        for i in 0..POINTS {
            let dt = lo + (hi - lo) * (i as f64 + 0.5) / POINTS as f64;
            for (from, row) in turn.iter_mut().enumerate() {
                for (to, chance) in row.iter_mut().enumerate() {
                    *chance += product(loss, legs, from, to, dt) / POINTS as f64;
                }
            }
        }
        let k = self.losses;
        // at[state][losses in a row], the last of which is 'down'; begins in the channels' stationary state.
        let mut at = vec![vec![0.0; k + 1]; states];
        for (s, row) in at.iter_mut().enumerate() {
            row[0] = product(loss, legs, s, s, f64::INFINITY);
        }
        let mut alarms = 0.0;
        for _ in 0..2000 {
            let mut next = vec![vec![0.0; k + 1]; states];
            alarms = 0.0;
            for (from, row) in at.iter().enumerate() {
                for (run, weight) in row.iter().enumerate() {
                    for (to, to_row) in next.iter_mut().enumerate() {
                        let w = weight * turn[from][to];
                        let lost = lost_in(loss, legs, to);
                        to_row[0] += w * (1.0 - lost);
                        to_row[(run + 1).min(k)] += w * lost;
                        if run + 1 == k {
                            alarms += w * lost;
                        }
                    }
                }
            }
            at = next;
        }
        alarms / mean * if self.one_way { 2.0 } else { 1.0 }
    }

    /// Returns the number of false alarms in a number of simulated seconds.
    pub fn simulate(&self, loss: Loss, seconds: f64, seed: u64) -> u64 {
        let ends = if self.one_way { 2 } else { 1 };
        let mut alarms = 0;
        for end in 0..ends {
            let mut losses = LossProcess::new(loss, 2, seed + end);
            let (mut t, mut run) = (0.0, 0);
            while t < seconds {
                run = if self.lost(&mut losses, t) { run + 1 } else { 0 };
                alarms += u64::from(run == self.losses);
                t += self.step(&mut losses);
            }
        }
        alarms
    }

    /// Seconds from a fault that nothing survives, at a random moment, to its detection; over this round trip.
    pub fn detection(&self, loss: Loss, rtt: f64, seed: u64) -> f64 {
        let mut losses = LossProcess::new(loss, 2, seed);
        let fault = 60.0 + uniform(&mut ChaCha8Rng::seed_from_u64(seed ^ 0xfa)) * 10.0;
        let (mut t, mut run, mut heard) = (59.0, 0, 59.0);
        loop {
            // The fault is in the middle of the path.
            let gone = t + rtt / 2.0 >= fault;
            let lost = gone || self.lost(&mut losses, t);
            if !lost {
                heard = t + rtt / 2.0;
            }
            run = if lost { run + 1 } else { 0 };
            if run >= self.losses && gone {
                let at = if self.one_way {
                    heard + self.losses as f64 * self.interval.1
                } else {
                    t + rtt + WAIT
                };
                return (at - fault).max(0.0);
            }
            t += self.step(&mut losses);
        }
    }

    fn lost(&self, losses: &mut LossProcess, t: f64) -> bool {
        let at = Instant((t * 1e6) as u64);
        losses.loses(0, at) || (!self.one_way && losses.loses(1, at))
    }

    fn step(&self, losses: &mut LossProcess) -> f64 {
        self.interval.0 + (self.interval.1 - self.interval.0) * losses.uniform()
    }
}

/// Chance that channels in the states `from` (bits) are in `to` after `dt` seconds.
fn product(loss: Loss, legs: usize, from: usize, to: usize, dt: f64) -> f64 {
    let one = |leg: usize| {
        let bad = loss.bad_after(from >> leg & 1 == 1, dt);
        if to >> leg & 1 == 1 { bad } else { 1.0 - bad }
    };
    (0..legs).map(one).product()
}

fn lost_in(loss: Loss, legs: usize, states: usize) -> f64 {
    1.0 - (0..legs).map(|leg| 1.0 - loss.in_state(states >> leg & 1 == 1)).product::<f64>()
}

/// A request every `every` seconds, given up after `limit`; lost segments are repeated after 200 ms + a round trip, then
/// twice that, and so on (TCP's least retransmission timeout on Linux, doubled).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ping {
    pub name: &'static str,
    pub every: f64,
    pub limit: f64,
}

pub const HEADSCALE: Ping = Ping { name: "ping 10 s + 5 s", every: 10.0, limit: 5.0 };

impl Ping {
    /// When the tries of a request leave, seconds after the first.
    pub fn tries(&self, rtt: f64) -> Vec<f64> {
        let mut all = vec![0.0];
        let (mut at, mut pause) = (0.0, 0.2 + rtt);
        while at + pause + rtt <= self.limit {
            at += pause;
            all.push(at);
            pause *= 2.0;
        }
        all
    }

    /// False alarms a second: all tries of a request lost, there or back.
    pub fn false_rate(&self, loss: Loss, rtt: f64) -> f64 {
        let mut at: Vec<f64> = (0..4).map(|s| product(loss, 2, s, s, f64::INFINITY)).collect();
        let mut last = 0.0;
        for (i, t) in self.tries(rtt).into_iter().enumerate() {
            if i > 0 {
                let mut next = vec![0.0; 4];
                for (from, weight) in at.iter().enumerate() {
                    for (to, sum) in next.iter_mut().enumerate() {
                        *sum += weight * product(loss, 2, from, to, t - last);
                    }
                }
                at = next;
            }
            last = t;
            at.iter_mut().enumerate().for_each(|(s, w)| *w *= lost_in(loss, 2, s));
        }
        at.iter().sum::<f64>() / self.every
    }

    pub fn simulate(&self, loss: Loss, rtt: f64, seconds: f64, seed: u64) -> u64 {
        let mut losses = LossProcess::new(loss, 2, seed);
        let tries = self.tries(rtt);
        (0..(seconds / self.every) as u64)
            .filter(|n| {
                tries.iter().all(|t| {
                    let at = Instant(((*n as f64 * self.every + t) * 1e6) as u64);
                    losses.loses(0, at) || losses.loses(1, at)
                })
            })
            .count() as u64
    }

    /// Seconds from a fault to its detection: this share of them are faster.
    pub fn detection(&self, share: f64) -> f64 {
        self.every * share + self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::super::percentile;
    use super::*;

    const ALL: [InARow; 4] = [THREE, SEVEN, BFD_50, BFD_300];

    #[test]
    fn independent_losses_make_as_many_false_alarms_as_the_formula_for_runs_says() {
        for detector in ALL {
            let p: f64 = 0.1;
            let (q, ends) =
                if detector.one_way { (p, 2.0) } else { (1.0 - (1.0 - p) * (1.0 - p), 1.0) };
            let mean = (detector.interval.0 + detector.interval.1) / 2.0;
            // A run of exactly this length begins after a delivery.
            let formula = ends * (1.0 - q) * q.powi(detector.losses as i32) / mean;
            let rate = detector.false_rate(Loss::Independent(p));
            assert!((rate / formula - 1.0).abs() < 1e-6, "{}: {rate} {formula}", detector.name);
        }
    }

    #[test]
    fn the_chain_and_the_simulation_agree_on_false_alarms() {
        for loss in [Loss::Independent(0.1), Loss::Bursts(0.05), Loss::Bursts(0.1)] {
            for detector in [THREE, BFD_50, BFD_300] {
                let seconds = 200_000.0;
                let counted = detector.simulate(loss, seconds, 3) as f64;
                let expected = detector.false_rate(loss) * seconds;
                assert!(
                    (counted / expected - 1.0).abs() < 0.1,
                    "{} {loss:?}: {counted} {expected}",
                    detector.name
                );
            }
        }
    }

    #[test]
    fn pings_fail_as_often_as_all_their_tries_are_lost() {
        // 0, 0.22, 0.66, 1.54, 3.3 s; the next would be at 6.82 s.
        assert_eq!(HEADSCALE.tries(0.02).len(), 5);
        let q: f64 = 1.0 - 0.7 * 0.7;
        let formula = q.powi(5) / 10.0;
        let rate = HEADSCALE.false_rate(Loss::Independent(0.3), 0.02);
        assert!((rate / formula - 1.0).abs() < 1e-9, "{rate} {formula}");
        for loss in [Loss::Independent(0.3), Loss::Bursts(0.3)] {
            let seconds = 1e6;
            let counted = HEADSCALE.simulate(loss, 0.02, seconds, 5) as f64;
            let expected = HEADSCALE.false_rate(loss, 0.02) * seconds;
            assert!((counted / expected - 1.0).abs() < 0.1, "{loss:?}: {counted} {expected}");
        }
    }

    #[test]
    fn without_loss_faults_are_detected_as_fast_as_the_intervals_say() {
        for detector in ALL {
            let rtt = 0.02;
            let mut times: Vec<f64> = (0..4000)
                .map(|seed| detector.detection(Loss::Independent(0.0), rtt, seed))
                .collect();
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let (lo, hi) = detector.interval;
            let k = detector.losses as f64;
            let formula = if detector.one_way {
                // The last packet that arrives is as old as a random moment's last renewal.
                let age = (lo * lo + lo * hi + hi * hi) / 3.0 / (lo + hi);
                k * hi - age
            } else {
                // The fault hits probes from half a round trip before it.
                lo / 2.0 - rtt / 2.0 + (k - 1.0) * lo + rtt + WAIT
            };
            assert!((mean / formula - 1.0).abs() < 0.02, "{}: {mean} {formula}", detector.name);
            let most = if detector.one_way { k * hi } else { k * lo + rtt / 2.0 + WAIT };
            assert!(percentile(&mut times, 1.0) <= most + 1e-6, "{}", detector.name);
        }
    }
}
