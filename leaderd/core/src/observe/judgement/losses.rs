//! What the evidence of a path weighs: which losses count, against which controls, and the sequential tests over them.

use std::time::Duration;

use crate::time::Instant;
use crate::verdict::ProbeClass;

use crate::observe::evidence::{Outcome, Sample};
use crate::observe::judgement::sprt;
use crate::observe::location::LocationWatch;

/// What the controls lost this recently counts as well as what they lose on average.
const CONTROL_WINDOW: Duration = Duration::from_millis(500);
/// Controls needed for a share.
const CONTROLS: usize = 4;
/// Where nothing at all comes back through a path, its losses count only once that has lasted this much longer than a
/// round trip: the path may have become slower at once (a route changed), and then every reply is merely late. Where the
/// candidate itself or an old flow still answers, nothing has to be waited for.
const SILENCE: Duration = Duration::from_millis(130);
/// How long after a loss a sign of life of its target still counts, in halves of the probe interval: the controls of the
/// burst come one timeout after it, the next round that asks for the same target a few intervals.
const CONFIRM_SLACKS: u32 = 4;

/// The tests of one path.
#[derive(Debug, Default)]
pub struct LossTests {
    /// New flows of drawn sizes; of full size; the worst single target.
    pub new: Cusum,
    pub full: Cusum,
    pub target: Cusum,
    /// Losses that count.
    pub losses: usize,
    /// When the next one will that does not yet.
    pub next: Option<Instant>,
}

/// A CUSUM and where its present climb began.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cusum {
    pub value: f64,
    pub from: Option<Instant>,
}

impl Cusum {
    fn add(&mut self, step: f64, at: Instant) {
        self.value = (self.value + step).max(0.0);
        if self.value == 0.0 {
            self.from = None;
        } else if self.from.is_none() {
            self.from = Some(at);
        }
    }
    pub fn worse(self, other: Cusum) -> Cusum {
        if other.value > self.value { other } else { self }
    }
}

impl LocationWatch {
    /// Where to look for signs of life of a target, other than through path `p`: (path, by its relay probes).
    pub fn controls(&self, p: usize, t: usize) -> Vec<(usize, bool)> {
        let others: Vec<_> =
            (0..self.paths.len()).filter(|k| *k != p && self.can_test(*k, t)).collect();
        if !others.is_empty() {
            return others.into_iter().map(|k| (k, false)).collect();
        }
        // No other slot can test it. If some other target can be compared, that one decides.
        let comparable = (0..self.targets.len()).any(|u| {
            self.can_test(p, u) && (0..self.paths.len()).any(|k| k != p && self.can_test(k, u))
        });
        if comparable { Vec::new() } else { vec![(self.targets[t].candidate.unwrap_or(p), true)] }
    }

    /// A witness reached the target of a lost probe at about the same time: of its probes from shortly before to a little
    /// later, the one nearest in time passed. All paths may have been silent for a moment, so one that passed sooner or
    /// later says nothing if a nearer one was lost, or is still on its way.
    fn confirmed(&self, controls: &[(usize, bool)], lost: &Sample, slack: Duration) -> bool {
        let (from, until) = (lost.sent - slack, lost.sent + slack * CONFIRM_SLACKS);
        controls.iter().any(|(k, relay)| {
            let samples = &self.paths[*k].samples;
            let start = samples.partition_point(|o| o.sent < from);
            let same = |o: &&Sample| match relay {
                true => o.class == ProbeClass::Relay,
                false => o.is_fresh() && o.target == lost.target,
            };
            let near = samples.range(start..).take_while(|o| o.sent <= until).filter(same);
            let distance = |o: &Sample| o.sent.since(lost.sent).max(lost.sent.since(o.sent));
            // Of a burst sent at once one that passed is enough.
            let nearest = near.min_by_key(|o| (distance(o), o.outcome != Outcome::Delivered));
            nearest.is_some_and(|o| o.outcome == Outcome::Delivered)
        })
    }

    /// What the best control loses.
    fn p0(&self, p: usize, now: Instant, slack: Duration) -> f64 {
        let mut best: Option<f64> = None;
        for (k, other) in self.paths.iter().enumerate() {
            if k == p || other.verdict.is_degraded() {
                continue;
            }
            let (mut n, mut lost) = (0, 0);
            for o in other.decided_since(now - CONTROL_WINDOW).filter(|o| o.is_fresh()) {
                let live = (0..self.paths.len())
                    .any(|x| self.pairs[x][o.target].delivered >= Some(o.sent - slack));
                if o.outcome == Outcome::Delivered || live {
                    n += 1;
                    lost += usize::from(o.outcome.is_loss());
                }
            }
            let recent = if n >= CONTROLS { lost as f64 / n as f64 } else { 0.0 };
            let share = recent.max(other.loss);
            best = Some(best.map_or(share, |b| b.min(share)));
        }
        best.unwrap_or(0.0)
    }

    /// Runs the tests of a path. With `blame_all` losses count whether or not their target is known to live.
    pub fn test_losses(
        &self,
        p: usize,
        now: Instant,
        slack: Duration,
        blame_all: bool,
    ) -> LossTests {
        let test = sprt::failure(if blame_all { 0.0 } else { self.p0(p, now, slack) });
        let controls: Vec<_> = (0..self.targets.len()).map(|t| self.controls(p, t)).collect();
        let mut per_target = vec![Cusum::default(); self.targets.len()];
        let mut w = LossTests::default();
        // Where replies come late elsewhere in this location, wait as long for these.
        let late = self.paths.iter().filter_map(|p| p.late_replies.as_ref()?.patience(now)).max();
        let patience = late.map_or(Duration::ZERO, |rtt| rtt + slack);
        let path = &self.paths[p];
        let unanswered = |o: &&Sample| path.any_ok < Some(o.sent) && o.outcome != Outcome::Void;
        let silence = SILENCE + path.rtt.smoothed().unwrap_or_default();
        let heard_by = path.samples.iter().find(unanswered).map_or(now, |o| o.sent + silence);
        for o in path.samples.iter().filter(|o| o.is_fresh()) {
            let lives = o.outcome == Outcome::Looped || path.any_ok >= Some(o.sent);
            let due = o.sent + patience;
            let due = if lives { due } else { due.max(heard_by) };
            let lost = match o.outcome {
                Outcome::Pending | Outcome::Void => continue,
                Outcome::Delivered => false,
                _ if self.targets[o.target].daemon_absent => continue,
                _ if now < due => {
                    w.next = Some(w.next.map_or(due, |n| n.min(due)));
                    continue;
                }
                _ if blame_all || self.confirmed(&controls[o.target], o, slack) => true,
                _ => continue,
            };
            w.losses += usize::from(lost);
            let step = test.step(lost);
            let group = if o.class == ProbeClass::FullSize { &mut w.full } else { &mut w.new };
            group.add(step, o.sent);
            per_target[o.target].add(step, o.sent);
        }
        w.target = per_target.into_iter().fold(Cusum::default(), Cusum::worse);
        w
    }
}
