//! Asking services: rounds, bursts at a first failure, timeouts, and what comes back.

use std::time::Duration;

use crate::io::{Flow, LogLevel, ProbeError, ProbeId, ProbeSend};
use crate::mesh::Mesh;
use crate::time::{Instant, Now};
use crate::verdict::ProbeClass;

use super::{Attempt, ROUNDS, Round};
use crate::observe::evidence::Outcome;
use crate::observe::judgement::sprt;
use crate::observe::location::LocationWatch;
use crate::observe::{GRACE, Observer, ObserverOutput, STALL, Timer};

/// Never wait less for a service: a TCP segment that is lost is sent again after 200 ms at the earliest (Linux'
/// `TCP_RTO_MIN`), and servers pause.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);
/// Rounds of a burst: connects are cheap, requests less so.
const BURST_CONNECTS: usize = 8;
const BURST_REQUESTS: usize = 6;
/// Controls of a burst: slots that the service answers through.
const BURST_CONTROLS: usize = 2;
/// Bursts to one service back off while they find nothing.
const BURST_GAP_MIN: Duration = Duration::from_secs(1);
const BURST_GAP_MAX: Duration = Duration::from_secs(60);
const BURST_CALM: Duration = Duration::from_secs(60);

/// A question on its way.
#[derive(Debug, Clone, Copy)]
pub struct InFlightRequest {
    pub watch: usize,
    service: usize,
    round: u64,
    path: usize,
    sent: Instant,
    timed_out: bool,
    due: Instant,
    /// The timeout came late to this process, and so the answer was given more time.
    extended_once: bool,
}

impl LocationWatch {
    /// Time between two rounds over the services of this location, one service each.
    pub fn service_interval(&self, mesh: &Mesh) -> Option<Duration> {
        let count = u32::try_from(self.services.len()).ok().filter(|n| *n > 0)?;
        let policy = mesh.policy_of(&self.location);
        let each = if self.full_rate {
            policy.service_interval
        } else {
            policy.service_interval.max(self.slow_interval(policy))
        };
        Some(each / count)
    }

    /// Paths that a service is asked through: awake, and not the one whose own workload it is.
    fn service_paths(&self, s: usize) -> Vec<usize> {
        let own = self.services[s].candidate;
        (0..self.paths.len())
            .filter(|p| Some(*p) != own && self.paths[*p].first_reply.is_some())
            .collect()
    }

    /// The service and the path that a burst should settle, if any.
    fn service_suspect(&self, now: Instant, h: f64) -> Option<(usize, usize)> {
        (0..self.services.len()).find_map(|s| {
            let service = &self.services[s];
            let of_burst = service.burst_end.saturating_sub(service.first) as usize;
            if service.rounds.iter().take(of_burst).any(|r| !r.is_decided()) {
                return None;
            }
            let suspect = self.service_paths(s).into_iter().find(|p| {
                let (value, _) = service.weigh(*p, self.paths[*p].any_ok);
                let may = now >= service.next_burst || value >= h / 4.0;
                value > 0.0 && value < h && may && !self.paths[*p].verdict.is_degraded()
            })?;
            Some((s, suspect))
        })
    }
}

impl Observer {
    /// The next service of a location, through every slot at once.
    pub(in crate::observe) fn service_round(&mut self, now: Now, at: usize) {
        let mesh = self.mesh.clone();
        let Some(interval) = self.watches[at].service_interval(&mesh) else { return };
        let jitter = self.fraction(interval / 10);
        let w = &mut self.watches[at];
        w.next_service =
            (w.next_service + interval - interval / 20 + jitter).max(now.mono + interval / 2);
        self.timers.insert((w.next_service, Timer::Service(at)));
        let s = w.service_turn % w.services.len();
        w.service_turn = s + 1;
        let paths = w.service_paths(s);
        if self.spend(now.mono, paths.len()) {
            self.ask(now, at, s, &paths);
        } else {
            self.budget.leave_out(now.mono);
        }
    }

    fn ask(&mut self, now: Now, at: usize, s: usize, paths: &[usize]) {
        let mesh = self.mesh.clone();
        let Some(me) = mesh.node(&self.me) else { return };
        let w = &mut self.watches[at];
        let all = w.paths.len();
        let slots: Vec<_> = w.paths.iter().map(|p| p.slot).collect();
        let service = &mut w.services[s];
        if service.rounds.len() == ROUNDS {
            service.rounds.pop_front();
            service.first += 1;
        }
        let round = service.first + service.rounds.len() as u64;
        let mut attempts = vec![Attempt { outcome: Outcome::Void, connected: false }; all];
        let mut sends = Vec::new();
        for &path in paths {
            let source = match service.service.address.is_ipv6() {
                true => mesh.inner6(me, slots[path]).map(Into::into),
                false => Some(mesh.inner4(me, slots[path]).into()),
            };
            let Some(source) = source else { continue };
            let id = ProbeId(self.next_probe);
            self.next_probe += 1;
            attempts[path].outcome = Outcome::Pending;
            let least = mesh.policy.min_probe_timeout.max(LEAST_TIMEOUT);
            let due = now.mono + service.rtt[path].timeout(least);
            let sent = now.mono;
            self.timers.insert((due, Timer::Request(id)));
            let asked = InFlightRequest {
                watch: at,
                service: s,
                round,
                path,
                sent,
                timed_out: false,
                due,
                extended_once: false,
            };
            self.requests.insert(id, asked);
            sends.push(ProbeSend {
                probe: id,
                class: ProbeClass::Service,
                via: Some(slots[path]),
                source,
                target: service.service.address,
                flow: Flow::Fresh,
                dont_fragment: false,
                payload: Vec::new(),
                http: service.service.http.clone(),
            });
        }
        service.rounds.push_back(Round { sent: now.mono, attempts });
        for send in sends {
            self.emit(ObserverOutput::Send(send));
        }
    }

    /// The TCP connect of a request succeeded; its answer is still to come.
    pub fn handle_connected(&mut self, probe: ProbeId) {
        let Some(a) = self.requests.get(&probe).copied() else { return };
        if let Some(t) = self.watches[a.watch].services[a.service].at(a.round, a.path) {
            t.connected = true;
        }
    }

    /// True if the probe is one of a service's. `bytes`: how long the answer was, 4 octets in network order.
    pub(in crate::observe) fn service_reply(
        &mut self,
        now: Now,
        probe: ProbeId,
        bytes: &[u8],
    ) -> bool {
        let Some(a) = self.take_request(probe) else { return false };
        let s = &mut self.watches[a.watch].services[a.service];
        if let Some(length) = bytes.first_chunk() {
            s.answer = s.answer.max(u32::from_be_bytes(*length));
        }
        s.rtt[a.path].sample(now.mono.since(a.sent));
        self.answered(now, a, Outcome::Delivered);
        true
    }

    pub(in crate::observe) fn service_error(
        &mut self,
        now: Now,
        probe: ProbeId,
        error: &ProbeError,
    ) -> bool {
        let Some(a) = self.requests.get(&probe) else { return false };
        if a.timed_out {
            return true;
        }
        let outcome = match error {
            ProbeError::Local { .. } => Outcome::Void,
            // Refused by the service itself as well: through every slot, if it is down.
            _ => Outcome::Lost,
        };
        if let Some(a) = self.take_request(probe) {
            self.answered(now, a, outcome);
        }
        true
    }

    /// A timeout, and then the end of its grace.
    pub(in crate::observe) fn request_timeout(&mut self, now: Now, id: ProbeId) {
        let Some(a) = self.requests.get_mut(&id) else { return };
        let overdue = now.mono.since(a.due);
        if overdue > STALL && !a.timed_out && !a.extended_once {
            // As for packets: the answer may lie in the socket, or its sender did not run either.
            a.extended_once = true;
            a.due = now.mono + overdue.min(a.due.since(a.sent));
            self.timers.insert((a.due, Timer::Request(id)));
            return;
        }
        if a.timed_out {
            self.take_request(id);
            return;
        }
        a.timed_out = true;
        a.due = now.mono + GRACE;
        let a = *a;
        self.timers.insert((a.due, Timer::Request(id)));
        self.answered(now, a, Outcome::Lost);
    }

    pub(in crate::observe) fn take_request(&mut self, id: ProbeId) -> Option<InFlightRequest> {
        let a = self.requests.remove(&id)?;
        self.timers.remove(&(a.due, Timer::Request(id)));
        self.emit(ObserverOutput::Forget(id));
        Some(a)
    }

    fn answered(&mut self, now: Now, a: InFlightRequest, outcome: Outcome) {
        let h = {
            let policy = self.mesh.policy_of(&self.watches[a.watch].location);
            sprt::threshold(policy.probe_interval, policy.false_failovers_per_year)
        };
        let w = &mut self.watches[a.watch];
        let Some(t) = w.services[a.service].at(a.round, a.path) else { return };
        t.outcome = outcome;
        self.log_service_state(a.watch, a.service);
        let w = &mut self.watches[a.watch];
        if let Some((s, suspect)) = w.service_suspect(now.mono, h) {
            self.service_burst(now, a.watch, s, suspect);
        }
        let w = &mut self.watches[a.watch];
        let calm = (0..w.paths.len())
            .all(|p| w.services[a.service].weigh(p, w.paths[p].any_ok).1.is_none());
        let service = &mut w.services[a.service];
        if calm {
            service.suspected = None;
        }
        if service.suspected.is_some() || w.paths.iter().any(|p| p.failed_by_service) {
            self.judge(now, a.watch);
        }
    }

    fn service_burst(&mut self, now: Now, at: usize, s: usize, suspect: usize) {
        let w = &mut self.watches[at];
        let mut paths = vec![suspect];
        let service = &mut w.services[s];
        let passes = |p: &usize| {
            let last = service.rounds.iter().rev().map(|r| r.attempts[*p].outcome);
            last.into_iter().find(|o| *o == Outcome::Delivered || o.is_loss())
                == Some(Outcome::Delivered)
        };
        let controls =
            (0..w.paths.len()).filter(|p| *p != suspect && Some(*p) != service.candidate);
        paths.extend(controls.filter(passes).take(BURST_CONTROLS));
        if now.mono.since(service.next_burst) > BURST_CALM {
            service.burst_gap = Duration::ZERO;
        }
        service.burst_gap = (service.burst_gap * 2).clamp(BURST_GAP_MIN, BURST_GAP_MAX);
        service.next_burst = now.mono + service.burst_gap;
        service.suspected.get_or_insert(now.mono);
        let rounds = if service.service.http.is_some() { BURST_REQUESTS } else { BURST_CONNECTS };
        if self.spend(now.mono, rounds * paths.len()) {
            for _ in 0..rounds {
                self.ask(now, at, s, &paths);
            }
            let service = &mut self.watches[at].services[s];
            service.burst_end = service.first + service.rounds.len() as u64;
        }
    }

    /// Says once when a service answers through no slot, and when it is back.
    fn log_service_state(&mut self, at: usize, s: usize) {
        let w = &mut self.watches[at];
        let service = &mut w.services[s];
        let settled =
            |r: &&Round| r.is_decided() && r.attempts.iter().any(|t| t.outcome != Outcome::Void);
        let dead = |r: &Round| r.attempts.iter().all(|t| t.outcome != Outcome::Delivered);
        let last: Vec<bool> =
            service.rounds.iter().rev().filter(settled).take(2).map(dead).collect();
        let down = match last[..] {
            [true, true] => true,
            [false, ..] => false,
            _ => service.down,
        };
        if std::mem::replace(&mut service.down, down) == down {
            return;
        }
        let message =
            if down { "service answers through no candidate" } else { "service answers again" };
        let fields = vec![
            ("location.name".to_owned(), w.location.to_string()),
            ("service.address".to_owned(), service.service.address.to_string()),
        ];
        self.emit(ObserverOutput::Log {
            level: LogLevel::Info,
            message: message.to_owned(),
            fields,
        });
    }
}
