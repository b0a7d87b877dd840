//! From evidence to verdicts.
//!
//! [`Watch::weigh`] reads a path's ring and runs the tests; [`Watch::classify`] names the cause from what the same burst
//! did in the other classes; [`Watch::judge`] moves verdicts.

use std::time::Duration;

use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::time::Instant;
use crate::verdict::{Cause, Direction, EvidenceRow, ProbeClass, Verdict};

use super::LATE_FOR;
use super::evidence::{Obs, Outcome};
use super::schedule::Shot;
use super::sprt;
use super::watch::Watch;

/// What the controls lost this recently counts as well as what they lose on average.
const CONTROL_WINDOW: Duration = Duration::from_secs(1);
/// Controls needed for a share.
const CONTROLS: usize = 4;
/// A suspicion that nothing new feeds is dropped after this.
const SUSPICION: Duration = Duration::from_secs(1);
/// Bursts back off to one per this time while they find nothing, and are free again after a calm time.
const BURST_GAP_MIN: Duration = Duration::from_millis(100);
const BURST_GAP_MAX: Duration = Duration::from_secs(1);
const BURST_CALM: Duration = Duration::from_secs(10);
/// A degraded path must work for so long, and pass so many probes of the class that failed, to be taken as recovered.
const RECOVERY: Duration = Duration::from_secs(2);
const RECOVERY_PROBES: usize = 10;
/// The same for classes and targets that are asked less often.
const RECOVERY_FEW: usize = 3;
/// Deliveries before a path is called forwarding for the first time.
const FIRST_DELIVERIES: usize = 3;
/// How long nothing at all must come back before a location is called dark, or failing as a whole.
const DARK: Duration = Duration::from_millis(300);
/// Evidence older than this no longer makes a path 'forwarding'.
const STALE: Duration = Duration::from_secs(10);
/// While nothing at all comes back through a path, a loss counts only this much later than a round trip: the path may
/// have become slower at once (a route changed), and then every reply is merely late. Where the candidate itself or an
/// old flow still answers, nothing has to be waited for.
const SILENCE: Duration = Duration::from_millis(120);
/// How far apart two sizes are when the path MTU is taken as found, in bytes.
const MTU_STEP: u16 = 8;

/// How long after a loss a sign of life of its target still counts, in halves of the probe interval: the controls of the
/// burst come one timeout after it, the next round that asks for the same target a few intervals.
const CONFIRM_SLACKS: u32 = 4;
/// A line for the log: level, message, fields.
type LogLine = (LogLevel, String, Vec<(String, String)>);

/// What a judgement asks for.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub changed: bool,
    /// Paths that need a burst.
    pub bursts: Vec<usize>,
    pub shots: Vec<Shot>,
    pub logs: Vec<LogLine>,
    /// Judge again then, whatever happens: a loss begins to count.
    pub again: Option<Instant>,
}

/// The tests of one path.
#[derive(Debug, Default)]
struct Weight {
    /// New flows of drawn sizes; of full size; the worst single target.
    new: Sum,
    full: Sum,
    target: Sum,
    /// Losses that count.
    losses: usize,
    /// When the next one will that does not yet.
    next: Option<Instant>,
}

/// A CUSUM and where its present climb began.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    value: f64,
    from: Option<Instant>,
}

impl Sum {
    fn add(&mut self, step: f64, at: Instant) {
        self.value = (self.value + step).max(0.0);
        if self.value == 0.0 {
            self.from = None;
        } else if self.from.is_none() {
            self.from = Some(at);
        }
    }
    fn worse(self, other: Sum) -> Sum {
        if other.value > self.value { other } else { self }
    }
}

impl Watch {
    /// The class and target of the latest loss through a path: what its burst repeats.
    pub(super) fn suspicion(&self, p: usize) -> Option<(ProbeClass, usize)> {
        let lost = self.paths[p].ring.iter().rev().find(|o| {
            o.outcome.is_loss()
                && o.class != ProbeClass::Relay
                && !self.targets[o.target].quarantined
        })?;
        Some((lost.class, lost.target))
    }

    /// Where to look for signs of life of a target, other than through path `p`: (path, by its relay probes).
    fn witnesses(&self, p: usize, t: usize) -> Vec<(usize, bool)> {
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
    fn confirmed(&self, witnesses: &[(usize, bool)], lost: &Obs, slack: Duration) -> bool {
        let (from, until) = (lost.sent - slack, lost.sent + slack * CONFIRM_SLACKS);
        witnesses.iter().any(|(k, relay)| {
            let ring = &self.paths[*k].ring;
            let start = ring.partition_point(|o| o.sent < from);
            let same = |o: &&Obs| match relay {
                true => o.class == ProbeClass::Relay,
                false => o.is_fresh() && o.target == lost.target,
            };
            let near = ring.range(start..).take_while(|o| o.sent <= until).filter(same);
            let distance = |o: &Obs| o.sent.since(lost.sent).max(lost.sent.since(o.sent));
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
            for o in other.settled_since(now - CONTROL_WINDOW).filter(|o| o.is_fresh()) {
                let live = (0..self.paths.len())
                    .any(|x| self.cells[x][o.target].delivered >= Some(o.sent - slack));
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
    fn weigh(&self, p: usize, now: Instant, slack: Duration, blame_all: bool) -> Weight {
        let test = sprt::failure(if blame_all { 0.0 } else { self.p0(p, now, slack) });
        let witnesses: Vec<_> = (0..self.targets.len()).map(|t| self.witnesses(p, t)).collect();
        let mut per_target = vec![Sum::default(); self.targets.len()];
        let mut w = Weight::default();
        // Where replies came late elsewhere in this location, wait as long for these.
        let patience =
            self.late.filter(|l| now.since(l.0) < LATE_FOR).map_or(Duration::ZERO, |l| l.1 + slack);
        let path = &self.paths[p];
        let silence = SILENCE + path.rtt.smoothed().unwrap_or_default();
        for o in path.ring.iter().filter(|o| o.is_fresh()) {
            let lives = o.outcome == Outcome::Looped || path.any_ok >= Some(o.sent);
            let wait = if lives { patience } else { patience.max(silence) };
            let lost = match o.outcome {
                Outcome::Pending | Outcome::Void => continue,
                Outcome::Delivered => false,
                _ if now < o.sent + wait => {
                    let due = o.sent + wait;
                    w.next = Some(w.next.map_or(due, |n| n.min(due)));
                    continue;
                }
                _ if blame_all || self.confirmed(&witnesses[o.target], o, slack) => true,
                _ => continue,
            };
            w.losses += usize::from(lost);
            let step = test.step(lost);
            let group = if o.class == ProbeClass::FullSize { &mut w.full } else { &mut w.new };
            group.add(step, o.sent);
            per_target[o.target].add(step, o.sent);
        }
        w.target = per_target.into_iter().fold(Sum::default(), Sum::worse);
        w
    }

    pub(super) fn judge(&mut self, mesh: &Mesh, now: Instant) -> Judged {
        let policy = &mesh.policy;
        let h = sprt::threshold(policy.probe_interval, policy.false_failovers_per_year);
        let slack = policy.probe_interval / 2;
        let mut judged = Judged::default();
        let losses = std::mem::take(&mut self.fresh_losses);
        let dark = self.paths.iter().all(|p| {
            p.lost_in_row >= 3
                && p.any_ok.is_none_or(|t| t + p.rtt.timeout(policy.min_probe_timeout) + DARK < now)
        });
        if self.dark && !dark {
            // What was lost while nothing came back through any slot says nothing about one of them, and a target that
            // lives again now was not known to live then.
            self.paths.iter_mut().for_each(|p| p.ring.clear());
        }
        self.dark = dark;
        // All slots relay nothing although their own candidates answer: they are all sick.
        let all_sick = !self.dark
            && (0..self.paths.len()).all(|p| {
                let last = (0..self.targets.len()).filter(|t| self.can_test(p, *t));
                let last = last.filter_map(|t| self.cells[p][t].delivered).max();
                let after = last.map_or(Instant::default(), |t| t + Duration::from_micros(1));
                // Lost while the candidate itself answered, not when everything was lost.
                self.paths[p].relay_ok > Some(after + DARK)
                    && self.paths[p].relay_run.is_some_and(|run| {
                        self.paths[p].settled_since(after.max(run)).filter(|o| o.is_fresh()).count()
                            >= 6
                    })
            });
        if now.since(self.next_burst) > BURST_CALM {
            self.burst_gap = Duration::ZERO;
        }
        for p in 0..self.paths.len() {
            let w = self.weigh(p, now, slack, all_sick);
            judged.again = [judged.again, w.next].into_iter().flatten().min();
            let worst = w.new.worse(w.full).worse(w.target);
            let next = self.verdict(mesh, now, p, &w, worst, h);
            let path = &mut self.paths[p];
            let degraded = next.is_degraded();
            let lost_now = losses.iter().any(|l| l.0 == p);
            // A burst may be repeated at once while the evidence grows.
            let growing = worst.value >= h / 3.0
                && path.burst.is_none_or(|b| b + path.rtt.timeout(policy.min_probe_timeout) <= now);
            if !degraded && lost_now && !self.dark && (now >= self.next_burst || growing) {
                judged.bursts.push(p);
            }
            if path.burst.is_some_and(|b| now.since(b) > SUSPICION) {
                path.burst = None;
            }
            if next != path.verdict {
                self.change(now, p, next, worst.from, &mut judged);
            }
            if degraded {
                judged.shots.extend(self.search_mtu(p));
            }
        }
        if !judged.bursts.is_empty() {
            self.burst_gap = (self.burst_gap * 2).clamp(BURST_GAP_MIN, BURST_GAP_MAX);
            self.next_burst = now + self.burst_gap;
        }
        self.uneasy = !judged.bursts.is_empty()
            || self.paths.iter().any(|p| p.burst.is_some() || p.verdict != Verdict::Forwarding);
        judged
    }

    fn verdict(
        &self,
        mesh: &Mesh,
        now: Instant,
        p: usize,
        w: &Weight,
        worst: Sum,
        h: f64,
    ) -> Verdict {
        let path = &self.paths[p];
        if path.own_fault.is_some_and(|t| now.since(t) < RECOVERY) || self.dark {
            // Our own kernel refuses, or nobody at all answers: nothing to hold against this candidate.
            return Verdict::Unknown;
        }
        if let Verdict::Degraded { cause, .. } = path.verdict {
            return if self.recovered(mesh, now, p, cause) {
                Verdict::Forwarding
            } else {
                path.verdict.clone()
            };
        }
        let standbys = self.paths.len() > 1;
        if worst.value >= h {
            let from = worst.from.unwrap_or(now);
            let (cause, direction) = self.classify(p, from);
            return Verdict::Degraded { cause, direction };
        }
        if standbys && path.steady >= h && path.loss > mesh.policy.loss_threshold {
            let from = now - STALE;
            return Verdict::Degraded { cause: Cause::Loss, direction: self.direction(from) };
        }
        let burst_pending = path.burst.is_some_and(|b| {
            path.ring.iter().any(|o| o.sent >= b && o.outcome == Outcome::Pending)
                || worst.value >= h / 3.0
        });
        if burst_pending && w.losses > 0 && worst.value > 0.0 {
            return Verdict::Suspected;
        }
        let delivered = path
            .settled_since(now - STALE)
            .filter(|o| o.is_fresh() && o.outcome == Outcome::Delivered);
        if delivered.count() >= FIRST_DELIVERIES { Verdict::Forwarding } else { Verdict::Unknown }
    }

    fn change(
        &mut self,
        now: Instant,
        p: usize,
        next: Verdict,
        from: Option<Instant>,
        judged: &mut Judged,
    ) {
        let rows = if next.is_degraded() { self.rows(p, from.unwrap_or(now)) } else { Vec::new() };
        let partial = match next.cause() {
            Some(Cause::Partial) => self.bad_targets(p, from.unwrap_or(now)).0,
            _ => Vec::new(),
        };
        let path = &mut self.paths[p];
        let was = std::mem::replace(&mut path.verdict, next.clone());
        path.since = now;
        (path.rows, path.partial) = (rows, partial);
        match &next {
            Verdict::Suspected | Verdict::Degraded { .. } => {
                let first = from.unwrap_or(now);
                let earlier = path.first_loss.is_some_and(|t| t <= first)
                    && !matches!(was, Verdict::Forwarding);
                if !earlier {
                    path.first_loss = Some(first);
                    path.suspected = Some(now);
                    let ok = path
                        .ring
                        .iter()
                        .filter(|o| o.is_fresh() && o.outcome == Outcome::Delivered);
                    path.ok_before = ok.map(|o| o.sent).filter(|s| *s < first).max();
                }
                if next.cause() == Some(Cause::Mtu) {
                    let sizes = |lost: bool| {
                        path.ring.iter().filter(move |o| {
                            o.is_fresh()
                                && o.sent >= first
                                && o.outcome.is_loss() == lost
                                && o.outcome != Outcome::Pending
                        })
                    };
                    let low = sizes(false).map(|o| o.size).max().unwrap_or(0);
                    let high = sizes(true).map(|o| o.size).filter(|s| *s > low).min();
                    path.mtu_between = high.map(|high| (low, high));
                    path.path_mtu =
                        path.path_mtu.filter(|m| *m >= low && Some(*m) < high).or(Some(low));
                }
            }
            Verdict::Forwarding | Verdict::Unknown => {
                (path.first_loss, path.suspected, path.mtu_between) = (None, None, None);
                if was.is_degraded() || next == Verdict::Unknown {
                    path.steady = 0.0;
                    path.ring.clear();
                    path.burst = None;
                }
            }
        }
        judged.changed = true;
        let level =
            if next.is_degraded() || was.is_degraded() { LogLevel::Warn } else { LogLevel::Debug };
        let word = |v: &Verdict| match v {
            Verdict::Unknown => "unknown",
            Verdict::Forwarding => "forwarding",
            Verdict::Suspected => "suspected",
            Verdict::Degraded { cause: Cause::Forwarding, .. } => "not-forwarding",
            Verdict::Degraded { cause, .. } => cause.as_str(),
        };
        let fields = [
            ("location.name", self.location.to_string()),
            ("candidate.slot", path.slot.to_string()),
            ("verdict.before", word(&was).to_owned()),
            ("verdict.after", word(&next).to_owned()),
        ];
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        judged.logs.push((level, "verdict changed".to_owned(), fields));
    }

    fn recovered(&self, mesh: &Mesh, now: Instant, p: usize, cause: Cause) -> bool {
        let path = &self.paths[p];
        if now.since(path.since) < RECOVERY {
            return false;
        }
        if cause == Cause::Loss {
            return path.loss < mesh.policy.loss_threshold / 2.0;
        }
        let concerns = |o: &&Obs| match cause {
            // Not the smaller ones that look for the MTU.
            Cause::Mtu => o.class == ProbeClass::FullSize && o.size >= mesh.mtu,
            Cause::Partial => o.is_fresh() && path.partial.contains(&o.target),
            _ => o.is_fresh(),
        };
        let few = matches!(cause, Cause::Mtu | Cause::Partial);
        let (mut n, mut lost) = (0, 0);
        for o in path.settled_since(now - RECOVERY).filter(concerns) {
            // A target that nobody reaches is not this candidate's trouble.
            if o.outcome.is_loss() && self.targets[o.target].quarantined {
                continue;
            }
            n += 1;
            lost += usize::from(o.outcome.is_loss());
        }
        let allowed = (2.0 * self.control_loss(p).unwrap_or(0.0)).max(0.05);
        n >= if few { RECOVERY_FEW } else { RECOVERY_PROBES } && (lost as f64) <= allowed * n as f64
    }

    /// Targets that only fail, and targets that pass, since `from`.
    fn bad_targets(&self, p: usize, from: Instant) -> (Vec<usize>, Vec<usize>, bool) {
        let mut counts = vec![(0, 0); self.targets.len()];
        for o in self.paths[p].settled_since(from).filter(|o| o.is_fresh()) {
            let c: &mut (u32, u32) = &mut counts[o.target];
            if o.outcome.is_loss() { c.0 += 1 } else { c.1 += 1 }
        }
        let which = |f: &dyn Fn(&(u32, u32)) -> bool| -> Vec<usize> {
            (0..counts.len()).filter(|t| !self.targets[*t].quarantined && f(&counts[*t])).collect()
        };
        let mixed = !which(&|c| c.0 > 0 && c.1 > 0 && c.0 * 4 > c.1).is_empty();
        (which(&|c| c.0 >= 2 && c.1 == 0), which(&|c| c.1 > 0), mixed)
    }

    fn classify(&self, p: usize, from: Instant) -> (Cause, Option<Direction>) {
        let path = &self.paths[p];
        let all: Vec<&Obs> = path.settled_since(from).collect();
        let count = |class: ProbeClass, lost: bool| {
            all.iter().filter(|o| o.class == class && o.outcome.is_loss() == lost).count()
        };
        let fresh: Vec<&&Obs> = all.iter().filter(|o| o.is_fresh()).collect();
        let lost = fresh.iter().filter(|o| o.outcome.is_loss()).count();
        let looped = fresh.iter().filter(|o| o.outcome == Outcome::Looped).count();
        if looped >= 2 && looped * 2 >= lost {
            return (Cause::Loop, None);
        }
        let direction = self.direction(from);
        let passed: Vec<u16> =
            fresh.iter().filter(|o| !o.outcome.is_loss()).map(|o| o.size).collect();
        let largest = passed.iter().copied().max().unwrap_or(0);
        let lost_within = fresh.iter().filter(|o| o.outcome.is_loss() && o.size <= largest).count();
        let full_lost = count(ProbeClass::FullSize, true);
        if full_lost >= 2
            && count(ProbeClass::FullSize, false) == 0
            && passed.len() >= 2
            && lost_within * 10 <= lost
        {
            return (Cause::Mtu, direction);
        }
        let (bad, good, mixed) = self.bad_targets(p, from);
        if !bad.is_empty() && !good.is_empty() && !mixed {
            return (Cause::Partial, direction);
        }
        if passed.len() * 4 > fresh.len() {
            return (Cause::Loss, direction);
        }
        let relay = (count(ProbeClass::Relay, false), count(ProbeClass::Relay, true));
        if relay.0 == 0
            && relay.1 > 0
            && path.relay_ok.is_some_and(|t| t + Duration::from_secs(3) > from)
        {
            return (Cause::TunnelDown, direction);
        }
        let pinned = (count(ProbeClass::PinnedFlow, false), count(ProbeClass::PinnedFlow, true));
        if pinned.0 > pinned.1 {
            (Cause::NewFlow, direction)
        } else {
            (Cause::Forwarding, direction)
        }
    }

    /// Which way the losses since `from` went, from the reflectors' counts.
    fn direction(&self, from: Instant) -> Option<Direction> {
        let ways = self.targets.iter().filter_map(|t| t.lost_ways(from));
        let (there, back) = ways.fold((0, 0), |sum, w| (sum.0 + w.0, sum.1 + w.1));
        match there + back {
            0..3 => None,
            all if there * 10 >= all * 8 => Some(Direction::Forward),
            all if back * 10 >= all * 8 => Some(Direction::Return),
            _ => None,
        }
    }

    fn rows(&self, p: usize, from: Instant) -> Vec<EvidenceRow> {
        let all: Vec<&Obs> = self.paths[p].settled_since(from).collect();
        let row = |class, target: Option<usize>| {
            let of = || {
                all.iter().filter(move |o| o.class == class && target.is_none_or(|t| t == o.target))
            };
            EvidenceRow {
                class,
                target: target.map(|t| self.targets[t].node.clone()),
                sent: of().count() as u32,
                lost: of().filter(|o| o.outcome.is_loss()).count() as u32,
                time_exceeded: of().filter(|o| o.outcome == Outcome::Looped).count() as u32,
            }
        };
        let mut rows: Vec<EvidenceRow> =
            ProbeClass::ALL.into_iter().map(|c| row(c, None)).collect();
        let (bad, good, _) = self.bad_targets(p, from);
        if !good.is_empty() {
            rows.extend(bad.into_iter().map(|t| row(ProbeClass::NewFlow, Some(t))));
        }
        rows.retain(|r| r.sent > 0);
        rows
    }

    /// The next size to try, two at a time, while a path's MTU is unknown.
    fn search_mtu(&mut self, p: usize) -> Vec<Shot> {
        let Some((low, high)) = self.paths[p].mtu_between else { return Vec::new() };
        let size = low + (high - low) / 2;
        if high - low <= MTU_STEP {
            self.paths[p].path_mtu = Some(low);
            self.paths[p].mtu_between = None;
            return Vec::new();
        }
        let tries: Vec<Obs> =
            self.paths[p].ring.iter().filter(|o| o.is_fresh() && o.size == size).copied().collect();
        if tries.iter().any(|o| o.outcome == Outcome::Pending) {
            return Vec::new();
        }
        let lost = tries.iter().filter(|o| o.outcome.is_loss()).count();
        if lost >= 2 {
            self.paths[p].mtu_between = Some((low, size));
            return self.search_mtu(p);
        }
        let Some((_, target)) = self.suspicion(p) else { return Vec::new() };
        let shot = Shot { class: ProbeClass::FullSize, path: Some(p), target, size };
        vec![shot; 2]
    }
}
