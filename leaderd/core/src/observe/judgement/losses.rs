//! What the losses of a path say: which of them count, against which controls, and the sequential tests over them.

use std::time::Duration;

use crate::observe::evidence::{Outcome, Sample, SizeBand};
use crate::observe::index::{IndexVec, PathIdx, TargetIdx};
use crate::observe::location::LocationWatch;
use crate::time::Instant;

use super::sprt::{self, Cusum};

/// What the controls lost this recently counts as well as what they lose on average.
const CONTROL_WINDOW: Duration = Duration::from_millis(500);
/// Controls needed for a share.
const CONTROLS: usize = 4;
/// Where nothing at all comes back through a path, its losses count only once that has lasted this much longer than a round
/// trip: the path may have become slower at once (a route changed), and then every reply is merely late. Where the candidate
/// itself or an old flow still answers, there is nothing to wait for.
const SILENCE: Duration = Duration::from_millis(130);
/// How long after a loss a sign of life of its target still counts, in halves of the probe interval: the controls of the
/// burst come one timeout after it, the next round over the same target a few intervals.
const CONFIRM_SLACKS: u32 = 4;

/// The tests of one path.
#[derive(Debug, Default)]
pub struct LossTests {
    /// New flows of drawn sizes.
    new: Cusum,
    /// New flows of full size.
    full: Cusum,
    /// The worst single target.
    target: Cusum,
    /// The worst band of sizes.
    size: SizeTest,
    /// Losses that count.
    losses: usize,
    /// When the next one will count that does not yet.
    next: Option<Instant>,
}

impl LossTests {
    /// Returns the strongest test of the path as a whole. That of a band of sizes says something only if hardly a packet of the band passes
    /// ([`SizeTest::dead_since`]): bursts repeat the size that was lost, so a moment's losses are soon all of one band.
    pub fn worst(&self) -> Cusum {
        self.new.worse(self.full).worse(self.target)
    }

    /// Returns the strongest test of all.
    pub fn strongest(&self) -> Cusum {
        self.worst().worse(self.size.sum)
    }

    /// The test of the worst band of sizes.
    pub fn size(&self) -> &SizeTest {
        &self.size
    }

    /// When the next loss will count that does not yet.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Returns whether some loss counts against the path, or soon will.
    pub fn raise_suspicion(&self) -> bool {
        self.losses > 0 && self.strongest().value() > 0.0 || self.next.is_some()
    }
}

/// The test of one band of sizes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SizeTest {
    sum: Cusum,
    /// In the present climb.
    lost: usize,
    passed: usize,
    /// The size of the latest loss.
    lost_size: u16,
}

impl SizeTest {
    fn add(&mut self, step: f64, sample: &Sample, lost: bool) {
        self.sum.add(step, sample.sent);
        if self.sum.from().is_none() {
            *self = Self::default();
        } else if lost {
            (self.lost, self.lost_size) = (self.lost + 1, sample.size);
        } else {
            self.passed += 1;
        }
    }

    /// Returns since when hardly a packet of the band passes, if its test has reached this.
    pub fn dead_since(&self, least: f64) -> Option<Instant> {
        let dead = self.sum.value() >= least && self.passed * 10 <= self.lost;
        self.sum.from().filter(|_| dead)
    }

    /// Returns the size of the latest loss, if the band's test has reached this.
    pub fn doubtful_size(&self, least: f64) -> Option<u16> {
        (self.sum.value() >= least).then_some(self.lost_size)
    }
}

/// A path whose probes can show that a target lives.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    path: PathIdx,
    /// By its relay probes, as it is the target's own candidate; else by its new flows to the target.
    by_relay: bool,
}

impl LocationWatch {
    /// Returns paths that can show `t` alive independently of path `p`.
    pub fn controls(&self, p: PathIdx, t: TargetIdx) -> Vec<Control> {
        let others = self.paths.indices().filter(|k| *k != p && self.can_test(*k, t));
        let others: Vec<_> = others.map(|path| Control { path, by_relay: false }).collect();
        if !others.is_empty() {
            return others;
        }
        // No other path can test it. If some other target can be compared, that one decides.
        let comparable = self.targets.indices().any(|u| {
            self.can_test(p, u) && self.paths.indices().any(|k| k != p && self.can_test(k, u))
        });
        let path = self.targets[t].candidate.unwrap_or(p);
        if comparable { Vec::new() } else { vec![Control { path, by_relay: true }] }
    }

    /// Returns whether a control reached the target of a lost probe at about the same time: of its probes from shortly before
    /// to a little later, the one nearest in time passed. All paths may have been silent for a moment, so one that passed sooner or
    /// later says nothing if a nearer one was lost, or is still on its way.
    ///
    /// Where path `p` carries packets of that size to other nodes meanwhile, the target may be what drops them: then only controls
    /// of that size count.
    fn confirmed(
        &self,
        p: PathIdx,
        controls: &[Control],
        lost: &Sample,
        slack: Duration,
        mtu: u16,
    ) -> bool {
        let (from, until) = (lost.sent - slack, lost.sent + slack * CONFIRM_SLACKS);
        let band = SizeBand::of(lost.size, mtu);
        let of_size = |s: &Sample| s.is_new_flow() && SizeBand::of(s.size, mtu) == band;
        let elsewhere = |s: &Sample| self.targets[s.target].node != self.targets[lost.target].node;
        let mut carried =
            self.paths[p].samples.since(lost.sent).filter(|s| of_size(s) && elsewhere(s));
        let by_size = carried.any(|s| s.outcome == Outcome::Delivered);
        controls.iter().any(|control| {
            let same = |s: &&Sample| match control.by_relay {
                true => s.class.is_of_tunnel(),
                false => s.is_new_flow() && s.target == lost.target,
            };
            let samples = self.paths[control.path].samples.since(from);
            let near = samples.take_while(|s| s.sent <= until).filter(same);
            let near = near.filter(|s| control.by_relay || !by_size || of_size(s));
            let distance = |s: &Sample| s.sent.since(lost.sent).max(lost.sent.since(s.sent));
            // Of a burst sent at once one that passed is enough.
            let nearest = near.min_by_key(|s| (distance(s), s.outcome != Outcome::Delivered));
            nearest.is_some_and(|s| s.outcome == Outcome::Delivered)
        })
    }

    /// Returns the share that the best control loses.
    fn controls_lose(&self, p: PathIdx, now: Instant, slack: Duration) -> f64 {
        let share = |k: PathIdx| {
            let (mut n, mut lost) = (0, 0);
            let recent = self.paths[k].samples.decided_since(now - CONTROL_WINDOW);
            for s in recent.filter(|s| s.is_new_flow()) {
                let lives = |x| self.pairs[x][s.target].delivered() >= Some(s.sent - slack);
                if s.outcome == Outcome::Delivered || self.paths.indices().any(lives) {
                    n += 1;
                    lost += usize::from(s.outcome.is_loss());
                }
            }
            let recent = if n >= CONTROLS { lost as f64 / n as f64 } else { 0.0 };
            recent.max(self.paths[k].loss.own())
        };
        let controls =
            self.paths.indices().filter(|k| *k != p && !self.paths[*k].verdict.get().is_degraded());
        controls.map(share).reduce(f64::min).unwrap_or(0.0)
    }

    /// Runs the tests of a path. With `blame_all` losses count whether or not their target is known to live.
    pub fn test_losses(
        &self,
        p: PathIdx,
        now: Instant,
        slack: Duration,
        mtu: u16,
        blame_all: bool,
    ) -> LossTests {
        let test = sprt::failure(if blame_all { 0.0 } else { self.controls_lose(p, now, slack) });
        let controls: IndexVec<TargetIdx, _> =
            self.targets.indices().map(|t| self.controls(p, t)).collect();
        let mut per_target: IndexVec<TargetIdx, Cusum> =
            self.targets.iter().map(|_| Cusum::default()).collect();
        let mut per_size = [SizeTest::default(); SizeBand::COUNT as usize];
        let mut tests = LossTests::default();
        // Where replies come late elsewhere in this location, wait as long for these.
        let late = self.paths.iter().filter_map(|p| p.late_replies.as_ref()?.patience(now)).max();
        let patience = late.map_or(Duration::ZERO, |rtt| rtt + slack);
        let path = &self.paths[p];
        let unanswered =
            |s: &&Sample| path.life.any_reply() < Some(s.sent) && s.outcome != Outcome::Void;
        let silence = SILENCE + path.rtt.smoothed().unwrap_or_default();
        let heard_by = path.samples.iter().find(unanswered).map_or(now, |s| s.sent + silence);
        for s in path.samples.iter().filter(|s| s.is_new_flow()) {
            let lives = s.outcome == Outcome::Looped || path.life.any_reply() >= Some(s.sent);
            let due = s.sent + patience;
            let due = if lives { due } else { due.max(heard_by) };
            let lost = match s.outcome {
                Outcome::Pending | Outcome::Void => continue,
                Outcome::Delivered => false,
                Outcome::Lost | Outcome::Looped => {
                    if self.targets[s.target].health.is_daemon_absent() {
                        continue;
                    }
                    if now < due {
                        tests.next = Some(tests.next.map_or(due, |next| next.min(due)));
                        continue;
                    }
                    if !blame_all && !self.confirmed(p, &controls[s.target], s, slack, mtu) {
                        continue;
                    }
                    true
                }
            };
            tests.losses += usize::from(lost);
            let step = test.step(lost);
            let of_size = if s.class.is_full_size() { &mut tests.full } else { &mut tests.new };
            of_size.add(step, s.sent);
            per_target[s.target].add(step, s.sent);
            per_size[SizeBand::of(s.size, mtu).number()].add(step, s, lost);
        }
        tests.target = per_target.into_iter().fold(Cusum::default(), Cusum::worse);
        let worst = per_size.into_iter().max_by(|a, b| a.sum.value().total_cmp(&b.sum.value()));
        tests.size = worst.unwrap_or_default();
        tests
    }
}
