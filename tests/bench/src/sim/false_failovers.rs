//! How often a detector replaces a leader that works, and how long it takes to replace one that does not.
//!
//! The models' rates are exact (their chains, checked against simulation by tests). Ours is measured in two ways:
//!
//! * *counted*: failovers, and alarms of single observers, in simulated hours of the real code; with none, the 95%
//!   upper bound of the rate (rule of three);
//! * *weighed*: where single observers hardly ever raise an alarm, importance sampling finds how often. Now and then losses
//!   on one observer's path to the leader are made likely for a moment; an alarm whose first loss falls into the first
//!   `SLOT` of it counts by the likelihood ratio of those losses. As slots tile all time, the mean over slots is the rate.
//!   Alarms for a share of lost packets (`loss`) take a second of losses, longer than a window: those are only counted.
//!
//! A failover needs two of three observers at once. Where each path loses packets by itself, observers err independently, so
//! the rate follows from a single one's rate λ and the mean length D of its error: 3 observers · λ · 2 others · λ · D.

use std::time::Duration;

use leaderd_core::time::Instant;

use super::loss::Loss;
use super::models::YEAR;
use super::ours::{Alarm, Fault, FaultKind, LossScope, OurDetector};
use super::{Effort, in_parallel, percentile};

pub const LOSSES: [f64; 5] = [0.001, 0.01, 0.02, 0.05, 0.1];
pub const RTTS: [u64; 4] = [1, 20, 150, 800];
/// Alarms are attributed to the slot of time in which their first loss was sent.
const SLOT: Duration = Duration::from_millis(100);
/// Between two weighed windows: what a path remembers (its ring, its calm) is older then.
const CALM: Duration = Duration::from_secs(12);
/// Jobs that a cell is cut into, so that two threads share the work evenly.
const PARTS: u64 = 2;
/// Paths that our detector watches: three observers, three candidates each.
const PATHS: f64 = 9.0;

/// What the network does to packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    pub loss: Loss,
    pub scope: LossScope,
    pub rtt: Duration,
}

/// What the real code did in a number of simulated seconds.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub conditions: Conditions,
    pub seconds: f64,
    pub failovers: usize,
    /// Of single observers, about any candidate.
    pub alarms: usize,
    /// Mean length of an alarm, seconds.
    pub alarm_length: f64,
}

impl Counted {
    pub fn per_year(&self) -> f64 {
        self.failovers as f64 / self.seconds * YEAR
    }

    /// 95% upper bound for none: the rule of three.
    pub fn at_most(&self) -> f64 {
        3.0 / self.seconds * YEAR
    }

    /// Alarms of one observer about one candidate, per second.
    pub fn alarm_rate(&self) -> f64 {
        self.alarms as f64 / (PATHS * self.seconds)
    }
}

/// How often one observer raises an alarm about the leader, by importance sampling.
#[derive(Clone, Copy, Debug)]
pub struct Weighed {
    pub conditions: Conditions,
    pub windows: usize,
    /// Windows with an alarm that counts.
    pub hits: usize,
    /// Alarms per second, and the standard error of that.
    pub rate: f64,
    pub error: f64,
    /// Mean length of an alarm, seconds.
    pub alarm_length: f64,
}

/// Failovers a year that two of three observers cause which err independently (λ per second, length in seconds).
pub fn of_two_in_three(rate: f64, length: f64) -> f64 {
    6.0 * rate * rate * length * YEAR
}

/// Seconds from the fault to its detection.
#[derive(Clone, Debug)]
pub struct Detection {
    pub conditions: Conditions,
    pub kind: FaultKind,
    pub p50: f64,
    pub p99: f64,
    pub faults: usize,
    /// Faults that were not detected within the time allowed.
    pub missed: usize,
}

fn rtts() -> impl Iterator<Item = Duration> {
    RTTS.into_iter().map(Duration::from_millis)
}

pub fn all_conditions() -> Vec<Conditions> {
    let mut all = Vec::new();
    for kind in [Loss::Independent, Loss::Bursts] {
        for p in LOSSES {
            all.extend(rtts().map(|rtt| Conditions { loss: kind(p), scope: LossScope::Path, rtt }));
        }
    }
    let shared = Loss::Bursts(0.02);
    all.extend(rtts().map(|rtt| Conditions { loss: shared, scope: LossScope::Candidate, rtt }));
    all
}

pub fn count(effort: Effort) -> Vec<Counted> {
    let seconds = effort.pick(900, 60);
    in_parallel("false failovers, counted", &all_conditions(), |conditions| {
        count_one(*conditions, seconds)
    })
}

fn count_one(conditions: Conditions, seconds: u64) -> Counted {
    let mut detector = OurDetector::settled(conditions.loss, conditions.scope, conditions.rtt, 11);
    detector.run_until(detector.now + Duration::from_secs(seconds));
    Counted {
        conditions,
        seconds: seconds as f64,
        failovers: detector.failovers.len(),
        alarms: detector.alarms.len(),
        alarm_length: mean_length(&detector.alarms),
    }
}

fn mean_length(alarms: &[Alarm]) -> f64 {
    let over = alarms.iter().filter_map(|a| Some(a.over?.since(a.at).as_secs_f64()));
    let (n, sum) = over.fold((0.0, 0.0), |(n, sum), length| (n + 1.0, sum + length));
    sum / n
}

pub fn weigh(effort: Effort) -> Vec<Weighed> {
    let windows = effort.pick(200, 16);
    let independent = |conditions: &Conditions| matches!(conditions.loss, Loss::Independent(_));
    let jobs: Vec<(Conditions, u64)> = all_conditions()
        .into_iter()
        .filter(independent)
        .flat_map(|conditions| (0..PARTS).map(move |part| (conditions, part)))
        .collect();
    let parts =
        in_parallel("single observers' false alarms, weighed", &jobs, |(conditions, part)| {
            weigh_one(*conditions, windows / PARTS, 100 + part)
        });
    parts
        .chunks(PARTS as usize)
        .zip(jobs.chunks(PARTS as usize))
        .map(|(windows, jobs)| summary(jobs[0].0, &windows.concat()))
        .collect()
}

/// Of each window the weight of its alarm, and how long that lasted.
fn weigh_one(conditions: Conditions, windows: u64, seed: u64) -> Vec<Option<(f64, f64)>> {
    let mut detector =
        OurDetector::settled(conditions.loss, conditions.scope, conditions.rtt, seed);
    // A first loss, the burst that it starts one timeout later, and a burst after that.
    let length = SLOT + Duration::from_millis(200) + conditions.rtt * 3;
    let mut found = Vec::new();
    for _ in 0..windows {
        let start = detector.now;
        let channels = detector.channels_to_leader(0);
        let leader = detector.leader;
        detector.losses.tilt(start + length, |c| channels.contains(&c));
        detector.run_until(start + length + CALM + conditions.rtt * 4);
        let mine = |a: &&Alarm| {
            (a.observer, a.slot) == (0, leader)
                && a.first_loss >= start
                && a.first_loss < start + SLOT
        };
        let alarm = detector.alarms.iter().find(mine);
        found.push(alarm.map(|a| {
            let over = a.over.unwrap_or(detector.now);
            (a.log_weight.exp(), over.since(a.at).as_secs_f64())
        }));
        detector.alarms.retain(|a| a.over.is_none());
    }
    found
}

fn summary(conditions: Conditions, windows: &[Option<(f64, f64)>]) -> Weighed {
    let n = windows.len() as f64;
    let weights = || windows.iter().map(|w| w.map_or(0.0, |w| w.0));
    let mean = weights().sum::<f64>() / n;
    let variance = weights().map(|w| (w - mean) * (w - mean)).sum::<f64>() / (n - 1.0);
    let hits: Vec<f64> = windows.iter().flatten().map(|w| w.1).collect();
    let slot = SLOT.as_secs_f64();
    Weighed {
        conditions,
        windows: windows.len(),
        hits: hits.len(),
        rate: mean / slot,
        error: (variance / n).sqrt() / slot,
        alarm_length: hits.iter().sum::<f64>() / hits.len() as f64,
    }
}

pub fn detect(effort: Effort) -> Vec<Detection> {
    let faults = effort.pick(50, 4);
    let mut jobs = Vec::new();
    let losses = LOSSES.map(Loss::Independent).into_iter().chain([Loss::Bursts(0.02)]);
    for loss in losses {
        for rtt in rtts() {
            for kind in [FaultKind::NewFlows, FaultKind::Death] {
                let conditions = Conditions { loss, scope: LossScope::Path, rtt };
                jobs.extend((0..PARTS).map(|part| (conditions, kind, part)));
            }
        }
    }
    let parts = in_parallel("detection", &jobs, |(conditions, kind, part)| {
        let one = |n| detect_one(*conditions, *kind, part * 1000 + n);
        (0..faults / PARTS).map(one).collect::<Vec<f64>>()
    });
    parts
        .chunks(PARTS as usize)
        .zip(jobs.chunks(PARTS as usize))
        .map(|(times, jobs)| {
            let mut times = times.concat();
            Detection {
                conditions: jobs[0].0,
                kind: jobs[0].1,
                p50: percentile(&mut times, 0.5),
                p99: percentile(&mut times, 0.99),
                faults: times.len(),
                missed: times.iter().filter(|t| t.is_infinite()).count(),
            }
        })
        .collect()
}

/// Returns the seconds until a fault at a random phase was detected; infinite if it was not.
fn detect_one(conditions: Conditions, kind: FaultKind, seed: u64) -> f64 {
    let mut detector =
        OurDetector::settled(conditions.loss, conditions.scope, conditions.rtt, seed);
    let phase = Duration::from_secs(1).mul_f64(detector.losses.uniform());
    let from = detector.now + conditions.rtt + phase;
    detector.fault = Some(Fault { kind, slot: detector.leader, from });
    detector.run_until(from + Duration::from_secs(3) + conditions.rtt * 10);
    let after = |at: &Instant| *at >= from;
    let first = detector.failovers.iter().map(|f| f.decided).find(after);
    first.map_or(f64::INFINITY, |at| at.since(from).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use leaderd_core::fault::Fault as FoundFault;

    use super::*;

    #[test]
    fn weights_become_a_rate() {
        let w = summary(all_conditions()[0], &[None, None, Some((1e-12, 2.0)), Some((3e-12, 4.0))]);
        assert_eq!((w.windows, w.hits, w.alarm_length), (4, 2, 3.0));
        assert!((w.rate / 1e-11 - 1.0).abs() < 1e-9);
        assert!(w.error > 0.0 && w.error < w.rate);
    }

    /// Compares what can be compared: alarms about the leader that a moment's losses raise, all but [`FoundFault::Loss`].
    #[test]
    fn weighed_and_counted_rates_agree() {
        // Bursts so bad that single observers err often enough to be counted.
        let loss = Loss::Bursts(0.02);
        let rtt = Duration::from_millis(20);
        let conditions = Conditions { loss, scope: LossScope::Path, rtt };
        let seconds = 3000;
        let counts = in_parallel("counted", &[11, 12], |seed| {
            let mut detector = OurDetector::settled(loss, LossScope::Path, rtt, *seed);
            let leader = detector.leader;
            detector.run_until(detector.now + Duration::from_secs(seconds));
            let of_a_moment = |a: &&Alarm| a.slot == leader && a.fault != FoundFault::Loss;
            detector.alarms.iter().filter(of_a_moment).count()
        });
        let parts = in_parallel("weighed", &[1, 2], |seed| weigh_one(conditions, 200, *seed));
        let weighed = summary(conditions, &parts.concat());
        let observers = PATHS / 3.0;
        let counted = counts.iter().sum::<usize>() as f64
            / (observers * seconds as f64 * counts.len() as f64);
        let ratio = weighed.rate / counted;
        assert!((0.25..4.0).contains(&ratio), "{ratio}: {counts:?} {weighed:?}");
    }
}
