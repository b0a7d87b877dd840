//! Moves the verdicts of a location's paths: what the tests over the evidence find, and what that asks for.

use std::time::Duration;

use crate::fault::Fault;
use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::observe::evidence::{Outcome, Path, Sample};
use crate::observe::index::{PathIdx, TargetIdx};
use crate::observe::location::LocationWatch;
use crate::observe::probing::schedule::ProbeSpec;
use crate::observe::service::ServiceFault;
use crate::time::Instant;
use crate::verdict::{ProbeClass, Verdict};

use super::losses::LossTests;
use super::path_mtu::Attempts;
use super::sprt;
use super::verdict::{Finding, Grounds, Trouble};

/// A burst that found nothing is over after this.
const SUSPICION: Duration = Duration::from_secs(1);
/// A degraded path must work for this long, or for this many rounds, and pass this many probes of the class that failed, to be
/// taken as recovered.
const RECOVERY: Duration = Duration::from_secs(2);
const RECOVERY_ROUNDS: u32 = 12;
const RECOVERY_PROBES: usize = 10;
/// The same for classes and targets that are probed less often.
const RECOVERY_FEW: usize = 3;
/// Deliveries before a path is called forwarding for the first time.
const FIRST_DELIVERIES: usize = 3;
/// How long nothing must come back before all paths count as silent, or all candidates as failing together.
const ALL_SILENT_AFTER: Duration = Duration::from_millis(300);
/// A path through which nothing has come yet gets two tries at WireGuard's handshake (`REKEY_TIMEOUT` is 5 s).
const FIRST_HANDSHAKE: Duration = Duration::from_secs(11);
/// Losses among deliveries may all be of one short burst on one link, and then they are not independent, as the tests take
/// them to be, however many were counted. So they must go on for this long.
const BROWNOUT: Duration = Duration::from_secs(1);
/// Between two bursts meanwhile.
const BURST_AGAIN: Duration = Duration::from_millis(200);
/// Evidence older than this no longer makes a path 'forwarding'.
const STALE: Duration = Duration::from_secs(10);
/// … nor evidence older than this many slow rounds, where that is longer.
const STALE_ROUNDS: u32 = 5;
/// New flows that every path must lose while their candidates answer, before all of them count as failing together.
const ALL_FAIL_LOSSES: usize = 6;
/// Losses in a row, of every path, before all paths count as silent.
const SILENT_LOSSES: u32 = 3;

/// A line for the log: level, message, fields.
type LogLine = (LogLevel, String, Vec<(String, String)>);

/// What follows from a judgement.
#[derive(Debug, Default)]
pub struct Judgement {
    pub changed: bool,
    /// What is known of tunnels changed besides: all fell silent, or one relays nothing, or no longer.
    pub tunnels_changed: bool,
    /// Paths that need a burst.
    pub bursts: Vec<PathIdx>,
    pub probes: Vec<ProbeSpec>,
    pub logs: Vec<LogLine>,
    /// When to judge again whatever happens, as a loss begins to count.
    pub judge_at: Option<Instant>,
}

impl LocationWatch {
    /// Returns a path's latest loss behind its candidate: its burst repeats class, target and size.
    pub fn last_loss(&self, p: PathIdx) -> Option<&Sample> {
        self.paths[p].samples.iter().rev().find(|s| {
            s.outcome.is_loss()
                && !s.class.is_of_tunnel()
                && !self.targets[s.target].health.is_quarantined()
        })
    }

    pub fn judge(&mut self, mesh: &Mesh, now: Instant) -> Judgement {
        let policy = mesh.policy_of(&self.location);
        let threshold = sprt::threshold(policy.probe_interval, policy.false_failovers_per_year);
        let slack = policy.probe_interval / 2;
        let mut judgement = Judgement::default();
        let losses = std::mem::take(&mut self.fresh_losses);
        let silent = self.are_all_paths_silent(mesh, now);
        if self.all_paths_silent && !silent {
            // What was lost while nothing came back through any path says nothing about one of them, and a target that
            // lives again now was not known to live then.
            self.paths.iter_mut().for_each(|p| p.samples.clear());
        }
        let idle: Vec<PathIdx> = self.paths.indices().filter(|p| self.relays_nothing(*p)).collect();
        judgement.tunnels_changed = self.all_paths_silent != silent || self.idle != idle;
        self.idle = idle;
        self.all_paths_silent = silent;
        let all_fail = !silent && self.do_all_candidates_relay_nothing();
        for p in self.paths.indices() {
            let tests = self.test_losses(p, now, slack, mesh.mtu, all_fail);
            let worst = tests.strongest();
            judgement.judge_at = [judgement.judge_at, tests.next()].into_iter().flatten().min();
            let mut finding = self.finding(mesh, now, p, &tests, threshold);
            let mut service_fault = None;
            if finding == Finding::Passes && !self.paths[p].verdict.failed_by_service() {
                service_fault = self.service_fault(p, threshold, mesh.mtu);
                finding = service_fault
                    .map_or(finding, |fault| Finding::ServiceFailed { cause: fault.cause });
            }
            let path = &mut self.paths[p];
            let next = path.verdict.after(finding);
            let degraded = next.is_degraded();
            // A burst may be repeated at once while the evidence grows.
            let timeout = path.rtt.timeout(policy.min_probe_timeout);
            // Once there is enough of it, only its length is awaited.
            let again = if worst.value() < threshold { timeout } else { timeout.max(BURST_AGAIN) };
            let growing =
                worst.value() >= threshold / 3.0 && path.burst.is_none_or(|b| b + again <= now);
            let may_burst = self.bursts.left(now) || growing;
            if !degraded && losses.contains(&p) && !self.all_paths_silent && may_burst {
                judgement.bursts.push(p);
            }
            if path.burst.is_some_and(|b| now.since(b) > SUSPICION) {
                path.burst = None;
            }
            path.doubtful_size = tests.size().doubtful_size(threshold / 3.0);
            if next != *path.verdict.get() {
                let compared = path.compared.worst();
                let by_packets = match next.fault() {
                    Some(Fault::Loss) if compared.value() >= threshold => compared.from(),
                    _ => worst.from(),
                };
                let first_loss = service_fault.map_or(by_packets, |fault| Some(fault.from));
                self.change_verdict(now, p, next, first_loss, service_fault, &mut judgement);
            }
            if degraded {
                judgement.probes.extend(self.search_mtu(p));
            }
        }
        if !judgement.bursts.is_empty() {
            self.bursts.spend(now);
        }
        self.needs_eager_judging = !judgement.bursts.is_empty()
            || self
                .paths
                .iter()
                .any(|p| p.burst.is_some() || *p.verdict.get() != Verdict::Forwarding);
        judgement
    }

    /// Returns whether nothing comes back through any path, and something did before or should by now.
    pub(in crate::observe) fn is_silent(&self, now: Instant) -> bool {
        let begun = |p: &Path| {
            p.life.any_reply().is_some()
                || p.life.new_for(now).is_none_or(|time| time >= FIRST_HANDSHAKE)
        };
        self.all_paths_silent && self.paths.iter().all(begun)
    }

    /// Returns whether nothing at all comes back through any path.
    fn are_all_paths_silent(&self, mesh: &Mesh, now: Instant) -> bool {
        let least = mesh.policy_of(&self.location).min_probe_timeout;
        self.paths.iter().all(|p| {
            let heard = p.life.any_reply();
            p.life.lost_in_row() >= SILENT_LOSSES
                && heard.is_none_or(|t| t + p.rtt.timeout(least) + ALL_SILENT_AFTER < now)
        })
    }

    /// Returns whether all candidates relay nothing although they answer themselves: then they are all sick.
    fn do_all_candidates_relay_nothing(&self) -> bool {
        self.paths.indices().all(|p| self.relays_nothing(p))
    }

    /// Returns whether a candidate relays nothing although it answers itself. The targets may be to blame, where no other path tells.
    pub(in crate::observe) fn relays_nothing(&self, p: PathIdx) -> bool {
        let tested = self.targets.indices().filter(|t| self.can_test(p, *t));
        let passed = tested.filter_map(|t| self.pairs[p][t].delivered()).max();
        let after = passed.map_or(Instant::default(), |t| t + Duration::from_micros(1));
        let path = &self.paths[p];
        // Lost while the candidate itself answered, not when everything was lost.
        path.life.relay_reply() > Some(after + ALL_SILENT_AFTER)
            && path.life.relay_passes_since().is_some_and(|since| {
                let lost = path.samples.decided_since(after.max(since));
                lost.filter(|s| s.is_new_flow()).count() >= ALL_FAIL_LOSSES
            })
    }

    /// Returns what the packets through a path show now.
    fn finding(
        &self,
        mesh: &Mesh,
        now: Instant,
        p: PathIdx,
        tests: &LossTests,
        threshold: f64,
    ) -> Finding {
        let path = &self.paths[p];
        let policy = mesh.policy_of(&self.location);
        let refused = path.own_fault.is_some_and(|t| now.since(t) < RECOVERY);
        let new = path.life.new_for(now).is_some_and(|time| time < FIRST_HANDSHAKE);
        if refused || self.all_paths_silent || new {
            return Finding::NotJudgeable;
        }
        if let Some(cause) = path.verdict.get().fault() {
            let recovered = if path.verdict.failed_by_service() {
                self.services_recovered(now, p, policy.service_interval)
            } else {
                self.recovered(mesh, now, p, cause)
            };
            return if recovered { Finding::Passes } else { Finding::Inconclusive };
        }
        let worst = tests.worst();
        let lossy = path.loss.lossy_for() >= BROWNOUT;
        if worst.value() >= threshold {
            let (cause, direction) = self.classify(p, worst.from().unwrap_or(now));
            if cause != Fault::Loss || lossy {
                return Finding::Failed { cause, direction };
            }
        }
        let has_standbys = self.paths.len() > 1;
        let direction = || self.direction(now - STALE);
        let dead_size = tests.size().dead_since(threshold);
        if dead_size.is_some_and(|from| now.since(from) >= BROWNOUT) {
            return Finding::Failed { cause: Fault::Loss, direction: direction() };
        }
        if tests.next().is_none() && path.compared.worst().value() >= threshold {
            return Finding::Failed { cause: Fault::Loss, direction: direction() };
        }
        // Where the target is what drops them, others lose the same.
        let steady = path.loss.steady() >= threshold
            && path.loss.own() > policy.loss_threshold
            && !self.loses_no_more_than_others(p);
        if has_standbys && tests.next().is_none() && steady && lossy {
            return Finding::Failed { cause: Fault::Loss, direction: direction() };
        }
        let burst_pending = path.burst.is_some_and(|burst| {
            path.samples.since(burst).any(|s| s.outcome == Outcome::Pending)
                || tests.strongest().value() >= threshold / 3.0
        });
        if burst_pending && tests.raise_suspicion() {
            return Finding::Suspicious;
        }
        // With nothing behind it to be tested on, the way to the candidate itself is all that there is; unless it is about to be
        // known.
        let alone = self.targets_of(p).is_empty() && !self.targets_awaited;
        let counts = |s: &Sample| s.is_new_flow() || alone && s.class.is_of_tunnel();
        let fresh = STALE.max(self.slow_interval(policy) * STALE_ROUNDS);
        let passed = path.samples.decided_since(now - fresh);
        let passed = passed.filter(|s| counts(s) && s.outcome == Outcome::Delivered);
        if passed.count() >= FIRST_DELIVERIES { Finding::Passes } else { Finding::Inconclusive }
    }

    fn change_verdict(
        &mut self,
        now: Instant,
        p: PathIdx,
        next: Verdict,
        first_loss: Option<Instant>,
        service_fault: Option<ServiceFault>,
        judgement: &mut Judgement,
    ) {
        let first_loss = first_loss.unwrap_or(now);
        let mut grounds = Grounds { by_service: service_fault.is_some(), ..Grounds::default() };
        if next.is_degraded() {
            grounds.rows = self.evidence_rows(p, first_loss);
        }
        if next.fault() == Some(Fault::Partial) && !grounds.by_service {
            grounds.failing_targets = self.failing_targets(p, first_loss).failing;
        }
        let path = &mut self.paths[p];
        let trouble = match service_fault {
            Some(fault) => Trouble {
                first_loss,
                suspected: fault
                    .suspected
                    .or(path.verdict.trouble().map(|t| t.suspected))
                    .unwrap_or(now),
                ok_before: fault.ok_before,
            },
            None => {
                let passed = path.samples.iter().filter(|s| {
                    s.is_new_flow() && s.outcome == Outcome::Delivered && s.sent < first_loss
                });
                Trouble { first_loss, suspected: now, ok_before: passed.map(|s| s.sent).max() }
            }
        };
        if next.fault() == Some(Fault::Mtu) && service_fault.is_none() {
            let sizes = |lost: bool| {
                let new = path.samples.since(first_loss).filter(|s| s.is_new_flow());
                new.filter(move |s| s.outcome != Outcome::Pending && s.outcome.is_loss() == lost)
                    .map(|s| s.size)
            };
            let passed = sizes(false).max().unwrap_or(0);
            let lost = sizes(true).filter(|s| *s > passed).min();
            path.mtu.begin(passed, lost);
        }
        let was_by_service = path.verdict.failed_by_service();
        let was = path.verdict.change(now, next.clone(), trouble, grounds);
        match next {
            Verdict::Suspected | Verdict::Degraded { .. } => {}
            Verdict::Forwarding | Verdict::Unknown => {
                path.mtu.stop();
                if was.is_degraded() || next == Verdict::Unknown {
                    path.loss.restart_test();
                    path.compared = Default::default();
                    path.samples.clear();
                    path.burst = None;
                }
                if was_by_service {
                    self.clear_service_rounds(p);
                }
            }
        }
        judgement.changed = true;
        judgement.logs.push(self.verdict_changed(p, &was, &next));
    }

    fn verdict_changed(&self, p: PathIdx, was: &Verdict, now: &Verdict) -> LogLine {
        let level =
            if now.is_degraded() || was.is_degraded() { LogLevel::Warn } else { LogLevel::Debug };
        let word = |v: &Verdict| match v {
            Verdict::Unknown => "unknown",
            Verdict::Forwarding => "forwarding",
            Verdict::Suspected => "suspected",
            Verdict::Degraded { cause, .. } => cause.as_str(),
        };
        let fields = [
            ("location.name", self.location.to_string()),
            ("candidate.slot", self.paths[p].slot.to_string()),
            ("verdict.before", word(was).to_owned()),
            ("verdict.after", word(now).to_owned()),
        ];
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        (level, "verdict changed".to_owned(), fields)
    }

    /// Returns whether a path works again that was degraded by its packets.
    fn recovered(&self, mesh: &Mesh, now: Instant, p: PathIdx, cause: Fault) -> bool {
        let path = &self.paths[p];
        let policy = mesh.policy_of(&self.location);
        let window = RECOVERY.max(policy.probe_interval * RECOVERY_ROUNDS);
        if now.since(path.verdict.since()) < window {
            return false;
        }
        if cause == Fault::Loss {
            return path.loss.own() < policy.loss_threshold / 2.0
                && self.loses_no_more_than_others(p);
        }
        let failing = path.verdict.failing_targets();
        let quarantined = |t: TargetIdx| self.targets[t].health.is_quarantined();
        // Where all that it failed for is gone, or dead through every path, the others decide.
        let partial = cause == Fault::Partial && failing.iter().any(|t| !quarantined(*t));
        let concerns = |s: &&Sample| match cause {
            // Not the smaller ones that look for the MTU.
            Fault::Mtu => s.class.is_full_size() && s.size >= mesh.mtu,
            Fault::Partial if partial => s.is_new_flow() && failing.contains(&s.target),
            _ => s.is_new_flow(),
        };
        let few = cause == Fault::Mtu || partial;
        let (mut n, mut lost) = (0, 0);
        for s in path.samples.decided_since(now - window).filter(concerns) {
            // A target that no path reaches is not this candidate's trouble.
            if s.outcome.is_loss() && quarantined(s.target) {
                continue;
            }
            n += 1;
            lost += usize::from(s.outcome.is_loss());
        }
        let allowed = (2.0 * self.control_loss(p).unwrap_or(0.0)).max(0.05);
        n >= if few { RECOVERY_FEW } else { RECOVERY_PROBES } && (lost as f64) <= allowed * n as f64
    }

    /// Plans probes of the next size to try while a path's MTU is searched.
    fn search_mtu(&mut self, p: PathIdx) -> Vec<ProbeSpec> {
        let target = self.last_loss(p).map(|lost| lost.target);
        let path = &mut self.paths[p];
        let samples = &path.samples;
        let size = path.mtu.next_size(|size| {
            let tried = || samples.iter().filter(|s| s.is_new_flow() && s.size == size);
            Attempts {
                pending: tried().any(|s| s.outcome == Outcome::Pending),
                lost: tried().filter(|s| s.outcome.is_loss()).count(),
            }
        });
        let (Some(size), Some(target)) = (size, target) else { return Vec::new() };
        let class = ProbeClass::FullSize;
        vec![ProbeSpec { class, path: Some(p), target, size, round: None }; 2]
    }
}
