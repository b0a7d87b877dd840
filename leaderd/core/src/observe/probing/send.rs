//! Sending: a round of paired probes, and one probe.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::rand_core::Rng;

use crate::io::{Flow, ProbeId, ProbeSend};
use crate::probe::stamp::{Ntp, SenderPacket};
use crate::time::{Instant, Now};
use crate::verdict::ProbeClass;

use crate::observe::evidence::{Outcome, Sample};
use crate::observe::location::source;
use crate::observe::probing::in_flight::InFlight;
use crate::observe::probing::schedule::ProbeSpec;
use crate::observe::{Observer, ObserverOutput, Timer, UDP, ip_header};

impl Observer {
    pub(in crate::observe) fn round(&mut self, now: Now, at: usize) {
        let mesh = self.mesh.clone();
        let w = &mut self.watches[at];
        let interval = w.interval(mesh.policy_of(&w.location), now.mono);
        let probes = w.round(&mesh, &mut self.rng);
        let jitter = self.fraction(interval / 10);
        let w = &mut self.watches[at];
        // Not from `now`: a late wake-up must not slow the rhythm, but rounds missed in a pause are not made up for.
        w.next_round =
            (w.next_round + interval - interval / 20 + jitter).max(now.mono + interval / 2);
        let taken = self.budget.round(&mesh, now.mono, at, probes.len());
        if let Err(again) = taken {
            // The same one again: else a class of probes might be left out each time.
            w.round -= 1;
            w.next_round = again.map_or(w.next_round, |again| again.min(w.next_round));
        }
        self.timers.insert((w.next_round, Timer::Round(at)));
        if taken.is_err() {
            return;
        }
        for spec in probes {
            self.send(now, at, spec);
        }
    }

    pub(in crate::observe) fn send(&mut self, now: Now, at: usize, spec: ProbeSpec) {
        let mesh = self.mesh.clone();
        let Some(me) = mesh.node(&self.me) else { return };
        let w = &mut self.watches[at];
        let target = &mut w.targets[spec.target];
        let v6 = target.address.is_ipv6();
        let via = spec.path.map(|p| w.paths[p].slot);
        let source = match via {
            Some(slot) if v6 => mesh.inner6(me, slot).map(Into::into),
            Some(slot) => Some(mesh.inner4(me, slot).into()),
            None => source(&mesh, me, target.own, v6),
        };
        let (Some(source), false) = (source, mesh.probe_ports.is_empty()) else { return };
        let id = ProbeId(self.next_probe);
        self.next_probe += 1;
        let seq = target.seq;
        target.seq = target.seq.wrapping_add(1);
        let pinned = spec.class == ProbeClass::PinnedFlow;
        // A long-lived flow keeps its five-tuple; the others try every port.
        let port = if pinned { 0 } else { id.0 as usize % mesh.probe_ports.len() };
        let mut stamp: Ntp = now.wall.into();
        if target.key.is_none() {
            // Below the microsecond, so that nobody who knows the time knows the stamp.
            stamp.0 ^= u64::from(self.rng.next_u32() & 0xfff);
        }
        let packet = SenderPacket { seq, timestamp: stamp, ssid: target.ssid };
        let key = target.key.map(|k| self.keys.with(&k));
        let length = usize::from(spec.size.saturating_sub(UDP + ip_header(v6)));
        let payload = match &key {
            Some(key) => packet.encode_from(me.index, key, length),
            None => packet.encode(None, length),
        };
        let port = target.port.unwrap_or(mesh.probe_ports[port]);
        let (address, ssid) = (target.address, target.ssid);
        let flow = match spec.path {
            Some(p) if pinned => Flow::Pinned(w.pinned(p, spec.target)),
            _ => Flow::Fresh,
        };
        let least = mesh.policy.min_probe_timeout;
        let timeout = match spec.path {
            Some(p) => w.paths[p].rtt.timeout(least),
            None => w.rtt.timeout(least),
        };
        match spec.path {
            Some(p) => w.paths[p].push(Sample {
                probe: id,
                sent: now.mono,
                class: spec.class,
                target: spec.target,
                size: spec.size,
                outcome: Outcome::Pending,
            }),
            None => w.as_workload_sent += 1,
        }
        let due = now.mono + timeout;
        self.timers.insert((due, Timer::Probe(id)));
        self.by_seq.insert((ssid, seq), id);
        self.in_flight.insert(
            id,
            InFlight {
                watch: at,
                spec,
                sent: now.mono,
                source,
                ssid,
                seq,
                stamp,
                timed_out: false,
                due,
                extended_once: false,
            },
        );
        self.emit(ObserverOutput::Send(ProbeSend {
            probe: id,
            class: spec.class,
            via,
            source,
            target: SocketAddr::new(address, port),
            flow,
            dont_fragment: spec.class == ProbeClass::FullSize,
            payload,
            http: None,
        }));
    }

    /// Takes `n` probes from the budget, or none.
    pub(in crate::observe) fn spend(&mut self, now: Instant, n: usize) -> bool {
        self.budget.spend(&self.mesh, now, n)
    }

    /// A random part of a duration.
    pub(in crate::observe) fn fraction(&mut self, of: Duration) -> Duration {
        of.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
    }
}
