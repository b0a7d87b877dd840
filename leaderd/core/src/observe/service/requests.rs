//! Asking services: rounds, bursts at a first failure, and what comes back.

use std::net::IpAddr;
use std::time::Duration;

use crate::io::{LogLevel, ProbeError, ProbeId, ProbeKind, ProbeSend};
use crate::mesh::Mesh;
use crate::observe::evidence::{Outcome, Path};
use crate::observe::index::{PathIdx, ServiceIdx, WatchIdx};
use crate::observe::judgement::sprt;
use crate::observe::location::LocationWatch;
use crate::observe::probing::in_flight::{Exchange, InFlight, Sent};
use crate::observe::{Observer, ObserverOutput, Timer};
use crate::time::{Instant, Now};
use crate::verdict::ProbeClass;

/// Never wait less for a service: a TCP segment that is lost is sent again after 200 ms at the earliest (Linux'
/// `TCP_RTO_MIN`), and servers pause.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);

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

    /// The service whose turn it is.
    fn next_service(&mut self) -> Option<ServiceIdx> {
        let turn = self.service_turn;
        self.service_turn = (turn + 1) % self.services.len().max(1);
        self.services.indices().nth(turn % self.services.len().max(1))
    }

    /// Paths that a service is asked through: those through which something came back, but not that of its own candidate.
    fn service_paths(&self, s: ServiceIdx) -> Vec<PathIdx> {
        let asked =
            |p: &PathIdx| self.services[s].is_asked_through(*p) && !self.paths[*p].life.is_new();
        self.paths.indices().filter(asked).collect()
    }

    /// The service and the path that need a burst, if any.
    fn service_suspect(&self, now: Instant, threshold: f64) -> Option<(ServiceIdx, PathIdx)> {
        self.services.indices().find_map(|s| {
            let service = &self.services[s];
            if service.is_burst_pending() {
                return None;
            }
            let suspect = self.service_paths(s).into_iter().find(|p| {
                let path = &self.paths[*p];
                let sum = service.test(*p, path.life.any_reply());
                service.needs_burst(now, sum, threshold) && !path.verdict.get().is_degraded()
            })?;
            Some((s, suspect))
        })
    }
}

impl Observer {
    /// Asks the next service of a location through every path at once.
    pub(in crate::observe) fn service_round(&mut self, now: Now, watch: WatchIdx) {
        let mesh = self.mesh.clone();
        let Some(interval) = self.watches[watch].service_interval(&mesh) else { return };
        let jitter = self.fraction(interval / 10);
        let w = &mut self.watches[watch];
        w.next_service =
            (w.next_service + interval - interval / 20 + jitter).max(now.mono + interval / 2);
        self.timers.insert((w.next_service, Timer::Service(watch)));
        let Some(s) = w.next_service() else { return };
        let paths = w.service_paths(s);
        if self.spend(now.mono, paths.len()) {
            self.send_requests(now, watch, s, &paths);
        } else {
            self.budget.leave_out(now.mono);
        }
    }

    fn send_requests(&mut self, now: Now, watch: WatchIdx, s: ServiceIdx, paths: &[PathIdx]) {
        let mesh = self.mesh.clone();
        let Some(me) = mesh.node(&self.me) else { return };
        let w = &mut self.watches[watch];
        let target = w.services[s].service().address;
        let kind = match &w.services[s].service().http {
            Some(request) => ProbeKind::Http(request.clone()),
            None => ProbeKind::TcpConnect,
        };
        let source = |p: &PathIdx| {
            let slot = w.paths[*p].slot;
            let source: Option<IpAddr> = match target.is_ipv6() {
                true => mesh.inner6(me, slot).map(Into::into),
                false => Some(mesh.inner4(me, slot).into()),
            };
            Some((*p, slot, source?))
        };
        let asked: Vec<_> = paths.iter().filter_map(source).collect();
        let paths: Vec<PathIdx> = asked.iter().map(|(p, ..)| *p).collect();
        let round = w.services[s].begin_round(now.mono, &paths);
        let least = mesh.policy.min_probe_timeout.max(LEAST_TIMEOUT);
        for (path, slot, source) in asked {
            let id = self.in_flight.next_id();
            let timeout = self.watches[watch].services[s].timeout(path, least);
            let sent = Sent::Exchange(Exchange { service: s, round, path });
            self.in_flight.add(id, InFlight::new(watch, sent, now.mono, timeout));
            self.emit(ObserverOutput::Send(ProbeSend {
                probe: id,
                class: ProbeClass::Service,
                via: Some(slot),
                source,
                target,
                kind: kind.clone(),
            }));
        }
    }

    /// The TCP connect of a request succeeded; its answer is still to come.
    pub fn handle_service_connected(&mut self, probe: ProbeId) {
        let Some(f) = self.in_flight.get(probe) else { return };
        if let Sent::Exchange(e) = f.sent {
            self.watches[f.watch].services[e.service].on_connected(e.round, e.path);
        }
    }

    /// A service answered: with a body of this many bytes, or by taking a connection.
    pub fn handle_service_reply(&mut self, now: Now, probe: ProbeId, body: Option<u32>) {
        self.note_stall(now);
        let Some(f) = self.in_flight.get(probe).copied() else { return };
        let Sent::Exchange(e) = f.sent else { return };
        self.abandon(probe);
        let time = now.mono.since(f.sent_at);
        self.watches[f.watch].services[e.service].on_answer(e.path, time, body);
        self.record_exchange(now, &f, e, Outcome::Delivered);
    }

    pub(in crate::observe) fn service_error(
        &mut self,
        now: Now,
        probe: ProbeId,
        f: &InFlight,
        exchange: Exchange,
        error: &ProbeError,
    ) {
        if f.timed_out() {
            return;
        }
        let outcome = match error {
            ProbeError::Local { .. } => Outcome::Void,
            // Refused by the service itself as well: through every path, if it is down.
            ProbeError::TimeExceeded { .. }
            | ProbeError::TooBig { .. }
            | ProbeError::Unreachable { .. } => Outcome::Lost,
        };
        self.abandon(probe);
        self.record_exchange(now, f, exchange, outcome);
    }

    /// Takes the outcome of an exchange down, sends the burst that it asks for, and judges if there is reason to.
    pub(in crate::observe) fn record_exchange(
        &mut self,
        now: Now,
        f: &InFlight,
        exchange: Exchange,
        outcome: Outcome,
    ) {
        let watch = f.watch;
        let w = &mut self.watches[watch];
        let policy = self.mesh.policy_of(&w.location);
        let threshold = sprt::threshold(policy.probe_interval, policy.false_failovers_per_year);
        if !w.services[exchange.service].record(exchange.round, exchange.path, outcome) {
            return;
        }
        self.log_service_state(watch, exchange.service);
        if let Some((s, suspect)) = self.watches[watch].service_suspect(now.mono, threshold) {
            self.service_burst(now, watch, s, suspect);
        }
        let w = &mut self.watches[watch];
        let climbs = |(p, path): (PathIdx, &Path)| {
            w.services[exchange.service].test(p, path.life.any_reply()).from().is_some()
        };
        if !w.paths.enumerate().any(climbs) {
            w.services[exchange.service].calm();
        }
        if w.services[exchange.service].is_suspicious()
            || w.paths.iter().any(|p| p.verdict.failed_by_service())
        {
            self.judge(now, watch);
        }
    }

    fn service_burst(&mut self, now: Now, watch: WatchIdx, s: ServiceIdx, suspect: PathIdx) {
        let (rounds, paths) = self.watches[watch].services[s].plan_burst(now.mono, suspect);
        if self.spend(now.mono, rounds * paths.len()) {
            for _ in 0..rounds {
                self.send_requests(now, watch, s, &paths);
            }
            self.watches[watch].services[s].burst_sent();
        }
    }

    /// Logs once when a service answers through no path, and when it is back.
    fn log_service_state(&mut self, watch: WatchIdx, s: ServiceIdx) {
        let w = &mut self.watches[watch];
        let Some(down) = w.services[s].down_changed() else { return };
        let message =
            if down { "service answers through no candidate" } else { "service answers again" };
        let fields = vec![
            ("location.name".to_owned(), w.location.to_string()),
            ("service.address".to_owned(), w.services[s].service().address.to_string()),
        ];
        self.emit(ObserverOutput::Log {
            level: LogLevel::Info,
            message: message.to_owned(),
            fields,
        });
    }
}
