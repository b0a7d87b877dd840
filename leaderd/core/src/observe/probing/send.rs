//! Sending: a round of probes through all paths of a location, and one probe.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::rand_core::Rng;

use crate::io::{Flow, ProbeKind, ProbeSend};
use crate::observe::evidence::{Outcome, Sample};
use crate::observe::index::WatchIdx;
use crate::observe::location::source;
use crate::observe::{Observer, ObserverOutput, Timer, UDP, ip_header};
use crate::probe::class::ProbeFlow;
use crate::probe::stamp::{Ntp, SenderPacket};
use crate::time::{Instant, Now};

use super::in_flight::{InFlight, Sent, SentPacket};
use super::schedule::ProbeSpec;

impl Observer {
    pub(in crate::observe) fn send_round(&mut self, now: Now, watch: WatchIdx) {
        let mesh = self.mesh.clone();
        if self.watches[watch].compare_losses(now.mono) {
            self.judge(now, watch);
        }
        let w = &mut self.watches[watch];
        let interval = w.interval(mesh.policy_of(&w.location), now.mono);
        let probes = w.plan_round(&mesh, &mut self.rng);
        let jitter = self.fraction(interval / 10);
        let w = &mut self.watches[watch];
        // Not from `now`: a late wake-up must not slow the rhythm, but rounds missed in a pause are not made up for.
        w.next_round =
            (w.next_round + interval - interval / 20 + jitter).max(now.mono + interval / 2);
        let taken = self.budget.round(&mesh, now.mono, watch, probes.len());
        if let Err(again) = taken {
            // The same one again: else a class of probes might be left out each time.
            w.round -= 1;
            w.next_round = again.map_or(w.next_round, |again| again.min(w.next_round));
        }
        self.timers.insert((w.next_round, Timer::Round(watch)));
        if taken.is_err() {
            return;
        }
        for spec in probes {
            self.send(now, watch, spec);
        }
    }

    pub(in crate::observe) fn send(&mut self, now: Now, watch: WatchIdx, spec: ProbeSpec) {
        let mesh = self.mesh.clone();
        let Some(me) = mesh.node(&self.me) else { return };
        let w = &mut self.watches[watch];
        let target = &mut w.targets[spec.target];
        let v6 = target.address.is_ipv6();
        let via = spec.path.map(|p| w.paths[p].slot);
        let source = match via {
            Some(slot) if v6 => mesh.inner6(me, slot).map(Into::into),
            Some(slot) => Some(mesh.inner4(me, slot).into()),
            None => source(&mesh, me, target.is_nodes_own, v6),
        };
        let (Some(source), false) = (source, mesh.probe_ports.is_empty()) else { return };
        let id = self.in_flight.next_id();
        let seq = target.seq;
        target.seq = target.seq.wrapping_add(1);
        let class = spec.class.spec();
        // A long-lived flow keeps its five-tuple; the others try every port.
        let port = match class.flow {
            ProbeFlow::LongLived => 0,
            ProbeFlow::Fresh => id.0 as usize % mesh.probe_ports.len(),
        };
        let mut stamp: Ntp = now.wall.into();
        if target.key.is_none() {
            // Below the microsecond, so that the stamp cannot be guessed from the time.
            stamp.0 ^= u64::from(self.rng.next_u32() & 0xfff);
        }
        let request = SenderPacket { seq, timestamp: stamp, ssid: target.ssid };
        let key = target.key.map(|k| self.keys.with(&k));
        let length = usize::from(spec.size.saturating_sub(UDP + ip_header(v6)));
        let packet = match &key {
            Some(key) => request.encode_from(me.index, key, length),
            None => request.encode(None, length),
        };
        let port = target.port.unwrap_or(mesh.probe_ports[port]);
        let (address, ssid) = (target.address, target.ssid);
        let flow = match (class.flow, spec.path) {
            (ProbeFlow::LongLived, Some(p)) => Flow::Pinned(w.pinned(p, spec.target)),
            (ProbeFlow::LongLived, None) | (ProbeFlow::Fresh, _) => Flow::Fresh,
        };
        let least = mesh.policy.min_probe_timeout;
        let timeout = match spec.path {
            Some(p) => w.paths[p].rtt.timeout(least),
            None => w.as_workload_rtt.timeout(least),
        };
        match spec.path {
            Some(p) => w.paths[p].samples.push(Sample {
                probe: id,
                sent: now.mono,
                class: spec.class,
                target: spec.target,
                size: spec.size,
                round: spec.round,
                outcome: Outcome::Pending,
            }),
            None => w.as_workload_sent += 1,
        }
        let sent = SentPacket { spec, source, ssid, seq, stamp };
        self.in_flight.add(id, InFlight::new(watch, Sent::Packet(sent), now.mono, timeout));
        self.emit(ObserverOutput::Send(ProbeSend {
            probe: id,
            class: spec.class,
            via,
            source,
            target: SocketAddr::new(address, port),
            kind: ProbeKind::Stamp { packet, flow, dont_fragment: class.dont_fragment },
        }));
    }

    /// Takes `n` probes from the budget, or none.
    pub(in crate::observe) fn spend(&mut self, now: Instant, n: usize) -> bool {
        self.budget.spend(&self.mesh, now, n)
    }

    /// Returns a random part of a duration.
    pub(in crate::observe) fn fraction(&mut self, of: Duration) -> Duration {
        of.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
    }
}
