//! From evidence to verdicts.
//!
//! [`LocationWatch::test_losses`] runs the tests over a path's samples, [`LocationWatch::classify`] names the cause; [`LocationWatch::judge`] moves
//! verdicts by them.

use std::time::Duration;

use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::time::Instant;
use crate::verdict::{Cause, ProbeClass, Verdict};

use crate::observe::evidence::{Outcome, Sample};
use crate::observe::judgement::losses::{Cusum, LossTests};
use crate::observe::judgement::sprt;
use crate::observe::location::LocationWatch;
use crate::observe::probing::schedule::ProbeSpec;
use crate::observe::service::ServiceFault;

/// A suspicion that nothing new feeds is dropped after this.
const SUSPICION: Duration = Duration::from_secs(1);
/// A degraded path must work for so long, or for so many rounds, and pass so many probes of the class that failed, to be taken
/// as recovered.
const RECOVERY: Duration = Duration::from_secs(2);
const RECOVERY_ROUNDS: u32 = 12;
const RECOVERY_PROBES: usize = 10;
/// The same for classes and targets that are asked less often.
const RECOVERY_FEW: usize = 3;
/// Deliveries before a path is called forwarding for the first time.
const FIRST_DELIVERIES: usize = 3;
/// How long nothing at all must come back before a location is called all_paths_silent, or failing as a whole.
const ALL_SILENT_AFTER: Duration = Duration::from_millis(300);
/// A path through which nothing has come yet is given two attempts at WireGuard's handshake (`REKEY_TIMEOUT` is 5 s).
const FIRST_HANDSHAKE: Duration = Duration::from_secs(11);
/// Losses among deliveries may all be of one short burst on one link, and then they are not independent, as the tests take
/// them to be, however many were counted. So they must go on for so long.
const BROWNOUT: Duration = Duration::from_secs(1);
/// Evidence older than this no longer makes a path 'forwarding'.
const STALE: Duration = Duration::from_secs(10);
/// … nor evidence older than so many slow rounds, where that is longer.
const STALE_ROUNDS: u32 = 5;
/// How far apart two sizes are when the path MTU is taken as found, in bytes.
const MTU_STEP: u16 = 8;

/// A line for the log: level, message, fields.
type LogLine = (LogLevel, String, Vec<(String, String)>);

/// What a judgement asks for.
#[derive(Debug, Default)]
pub struct Judgement {
    pub changed: bool,
    /// Paths that need a burst.
    pub bursts: Vec<usize>,
    pub probes: Vec<ProbeSpec>,
    pub logs: Vec<LogLine>,
    /// Judge again then, whatever happens: a loss begins to count.
    pub judge_at: Option<Instant>,
}

impl LocationWatch {
    /// The class and target of the latest loss through a path: what its burst repeats.
    pub fn last_loss(&self, p: usize) -> Option<(ProbeClass, usize)> {
        let lost = self.paths[p].samples.iter().rev().find(|o| {
            o.outcome.is_loss()
                && o.class != ProbeClass::Relay
                && !self.targets[o.target].quarantined
        })?;
        Some((lost.class, lost.target))
    }

    pub fn judge(&mut self, mesh: &Mesh, now: Instant) -> Judgement {
        let policy = mesh.policy_of(&self.location);
        let h = sprt::threshold(policy.probe_interval, policy.false_failovers_per_year);
        let slack = policy.probe_interval / 2;
        let mut judged = Judgement::default();
        let losses = std::mem::take(&mut self.fresh_losses);
        let all_paths_silent = self.paths.iter().all(|p| {
            p.lost_in_row >= 3
                && p.any_ok.is_none_or(|t| {
                    t + p.rtt.timeout(policy.min_probe_timeout) + ALL_SILENT_AFTER < now
                })
        });
        if self.all_paths_silent && !all_paths_silent {
            // What was lost while nothing came back through any slot says nothing about one of them, and a target that
            // lives again now was not known to live then.
            self.paths.iter_mut().for_each(|p| p.samples.clear());
        }
        self.all_paths_silent = all_paths_silent;
        // All slots relay nothing although their own candidates answer: they are all sick.
        let all_sick = !self.all_paths_silent
            && (0..self.paths.len()).all(|p| {
                let last = (0..self.targets.len()).filter(|t| self.can_test(p, *t));
                let last = last.filter_map(|t| self.pairs[p][t].delivered).max();
                let after = last.map_or(Instant::default(), |t| t + Duration::from_micros(1));
                // Lost while the candidate itself answered, not when everything was lost.
                self.paths[p].relay_ok > Some(after + ALL_SILENT_AFTER)
                    && self.paths[p].relay_run.is_some_and(|run| {
                        self.paths[p].decided_since(after.max(run)).filter(|o| o.is_fresh()).count()
                            >= 6
                    })
            });
        for p in 0..self.paths.len() {
            let w = self.test_losses(p, now, slack, all_sick);
            judged.judge_at = [judged.judge_at, w.next].into_iter().flatten().min();
            let worst = w.new.worse(w.full).worse(w.target);
            let next = self.verdict(mesh, now, p, &w, worst, h);
            let served = self.service_fault(p, h, mesh.mtu);
            let served =
                served.filter(|_| next == Verdict::Forwarding && !self.paths[p].failed_by_service);
            let next =
                served.map_or(next, |s| Verdict::Degraded { cause: s.cause, direction: None });
            let path = &mut self.paths[p];
            let degraded = next.is_degraded();
            let lost_now = losses.iter().any(|l| l.0 == p);
            // A burst may be repeated at once while the evidence grows.
            let growing = worst.value >= h / 3.0
                && path.burst.is_none_or(|b| b + path.rtt.timeout(policy.min_probe_timeout) <= now);
            if !degraded && lost_now && !self.all_paths_silent && (self.bursts.left(now) || growing)
            {
                judged.bursts.push(p);
            }
            if path.burst.is_some_and(|b| now.since(b) > SUSPICION) {
                path.burst = None;
            }
            if next != path.verdict {
                let from = served.map_or(worst.from, |s| Some(s.from));
                self.change(now, p, next, from, served, &mut judged);
            }
            if degraded {
                judged.probes.extend(self.search_mtu(p));
            }
        }
        if !judged.bursts.is_empty() {
            self.bursts.spend(now);
        }
        self.needs_eager_judging = !judged.bursts.is_empty()
            || self.paths.iter().any(|p| p.burst.is_some() || p.verdict != Verdict::Forwarding);
        judged
    }

    fn verdict(
        &self,
        mesh: &Mesh,
        now: Instant,
        p: usize,
        w: &LossTests,
        worst: Cusum,
        h: f64,
    ) -> Verdict {
        let path = &self.paths[p];
        if path.own_fault.is_some_and(|t| now.since(t) < RECOVERY) || self.all_paths_silent {
            // Our own kernel refuses, or nobody at all answers: nothing to hold against this candidate.
            return Verdict::Unknown;
        }
        if path.first_reply.is_none() && now.since(path.created) < FIRST_HANDSHAKE {
            return Verdict::Unknown;
        }
        if let Verdict::Degraded { cause, .. } = path.verdict {
            let recovered = if path.failed_by_service {
                self.services_recovered(now, p, mesh.policy_of(&self.location).service_interval)
            } else {
                self.recovered(mesh, now, p, cause)
            };
            return if recovered { Verdict::Forwarding } else { path.verdict.clone() };
        }
        let standbys = self.paths.len() > 1;
        if worst.value >= h {
            let from = worst.from.unwrap_or(now);
            let (cause, direction) = self.classify(p, from);
            if cause != Cause::Loss || path.lossy_for() >= BROWNOUT {
                return Verdict::Degraded { cause, direction };
            }
        }
        if standbys
            && w.next.is_none()
            && path.steady >= h
            && path.lossy_for() >= BROWNOUT
            && path.loss > mesh.policy_of(&self.location).loss_threshold
        {
            let from = now - STALE;
            return Verdict::Degraded { cause: Cause::Loss, direction: self.direction(from) };
        }
        let burst_pending = path.burst.is_some_and(|b| {
            path.samples.iter().any(|o| o.sent >= b && o.outcome == Outcome::Pending)
                || worst.value >= h / 3.0
        });
        let speaks = w.losses > 0 && worst.value > 0.0 || w.next.is_some();
        if burst_pending && speaks {
            return Verdict::Suspected;
        }
        // With nothing behind it to be tested on, the way to the candidate itself is all that there is; unless it is about to be known.
        let alone = self.targets_of(p).is_empty() && !self.targets_awaited;
        let counts = |o: &Sample| o.is_fresh() || alone && o.class == ProbeClass::Relay;
        let delivered = path
            .decided_since(
                now - STALE.max(self.slow_interval(mesh.policy_of(&self.location)) * STALE_ROUNDS),
            )
            .filter(|o| counts(o) && o.outcome == Outcome::Delivered);
        if delivered.count() >= FIRST_DELIVERIES { Verdict::Forwarding } else { Verdict::Unknown }
    }

    fn change(
        &mut self,
        now: Instant,
        p: usize,
        next: Verdict,
        from: Option<Instant>,
        served: Option<ServiceFault>,
        judged: &mut Judgement,
    ) {
        let rows = if next.is_degraded() {
            self.evidence_rows(p, from.unwrap_or(now))
        } else {
            Vec::new()
        };
        let partial = match next.cause() {
            Some(Cause::Partial) if served.is_none() => {
                self.failing_targets(p, from.unwrap_or(now)).0
            }
            _ => Vec::new(),
        };
        let path = &mut self.paths[p];
        let was = std::mem::replace(&mut path.verdict, next.clone());
        path.since = now;
        (path.rows, path.partial) = (rows, partial);
        let was_failed_by_service =
            std::mem::replace(&mut path.failed_by_service, served.is_some());
        match &next {
            Verdict::Suspected | Verdict::Degraded { .. } => {
                let first = from.unwrap_or(now);
                let earlier = path.first_loss.is_some_and(|t| t <= first)
                    && !matches!(was, Verdict::Forwarding);
                if !earlier {
                    path.first_loss = Some(first);
                    path.suspected = Some(now);
                    let ok = path
                        .samples
                        .iter()
                        .filter(|o| o.is_fresh() && o.outcome == Outcome::Delivered);
                    path.ok_before = ok.map(|o| o.sent).filter(|s| *s < first).max();
                }
                if let Some(served) = served {
                    path.suspected = served.suspected.or(path.suspected);
                    path.ok_before = served.ok_before;
                } else if next.cause() == Some(Cause::Mtu) {
                    let sizes = |lost: bool| {
                        path.samples.iter().filter(move |o| {
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
                    path.samples.clear();
                    path.burst = None;
                }
            }
        }
        if was_failed_by_service && !next.is_degraded() {
            self.clear_service_rounds(p);
        }
        let path = &self.paths[p];
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
        let policy = mesh.policy_of(&self.location);
        let window = RECOVERY.max(policy.probe_interval * RECOVERY_ROUNDS);
        if now.since(path.since) < window {
            return false;
        }
        if cause == Cause::Loss {
            return path.loss < policy.loss_threshold / 2.0;
        }
        // Where all that it failed for is gone, or dead to everybody, the others decide.
        let partial =
            cause == Cause::Partial && path.partial.iter().any(|t| !self.targets[*t].quarantined);
        let concerns = |o: &&Sample| match cause {
            // Not the smaller ones that look for the MTU.
            Cause::Mtu => o.class == ProbeClass::FullSize && o.size >= mesh.mtu,
            Cause::Partial if partial => o.is_fresh() && path.partial.contains(&o.target),
            _ => o.is_fresh(),
        };
        let few = cause == Cause::Mtu || partial;
        let (mut n, mut lost) = (0, 0);
        for o in path.decided_since(now - window).filter(concerns) {
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

    /// The next size to try, two at a time, while a path's MTU is unknown.
    fn search_mtu(&mut self, p: usize) -> Vec<ProbeSpec> {
        let Some((low, high)) = self.paths[p].mtu_between else { return Vec::new() };
        let size = low + (high - low) / 2;
        if high - low <= MTU_STEP {
            self.paths[p].path_mtu = Some(low);
            self.paths[p].mtu_between = None;
            return Vec::new();
        }
        let attempts: Vec<Sample> = self.paths[p]
            .samples
            .iter()
            .filter(|o| o.is_fresh() && o.size == size)
            .copied()
            .collect();
        if attempts.iter().any(|o| o.outcome == Outcome::Pending) {
            return Vec::new();
        }
        let lost = attempts.iter().filter(|o| o.outcome.is_loss()).count();
        if lost >= 2 {
            self.paths[p].mtu_between = Some((low, size));
            return self.search_mtu(p);
        }
        let Some((_, target)) = self.last_loss(p) else { return Vec::new() };
        let class = ProbeClass::FullSize;
        let spec = ProbeSpec { class, path: Some(p), target, size };
        vec![spec; 2]
    }
}
