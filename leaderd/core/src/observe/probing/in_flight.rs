//! What became of a probe: its reply, an error on the way, or its timeout and what comes after it.

use std::net::IpAddr;

use crate::io::{ProbeError, ProbeId};
use crate::probe::stamp::{Ntp, ReflectorPacket, StampError};
use crate::time::{Instant, Now};
use crate::verdict::ProbeClass;

use crate::observe::evidence::Outcome;
use crate::observe::probing::schedule::ProbeSpec;
use crate::observe::{GRACE, Observer, ObserverOutput, STALL, Timer};

/// A probe on its way.
#[derive(Debug)]
pub struct InFlight {
    pub watch: usize,
    pub spec: ProbeSpec,
    pub sent: Instant,
    pub source: IpAddr,
    pub ssid: u16,
    pub seq: u32,
    pub stamp: Ntp,
    pub timed_out: bool,
    /// Its timer.
    pub due: Instant,
    /// It got more time, once, because this daemon did not run when it was due.
    pub extended_once: bool,
}

impl Observer {
    pub fn handle_reply(&mut self, now: Now, probe: ProbeId, bytes: &[u8]) {
        self.note_stall(now);
        if self.service_reply(now, probe, bytes) {
            return;
        }
        let Some((id, at, target, reply)) = self.answered_by(probe, bytes) else { return };
        let Some(f) = self.take(id) else { return };
        if let Some(location) = reply.location {
            self.source_seen(now, &f, location.source.ip());
        }
        let w = &mut self.watches[at];
        w.targets[target].replied(reply.sender_seq, reply.seq, f.sent);
        if f.spec.path.is_some_and(|p| w.note_first_reply(now.mono, p, f.sent)) {
            self.forget(id, &f);
            return;
        }
        if let Some(p) = f.spec.path {
            w.daemon_answered(p, target, f.sent);
        }
        let rtt = now.mono.since(f.sent);
        let overdue = f.timed_out || f.extended_once || f.due < now.mono;
        match f.spec.path {
            // Its time says how long this daemon did not run.
            Some(_) if overdue && f.sent < self.stalled => {}
            Some(p) if f.timed_out => w.paths[p].replied_late(now.mono, rtt),
            Some(p) => w.paths[p].replied_in_time(f.sent, rtt),
            None => w.rtt.sample(rtt),
        }
        self.record_outcome(now, &f, id, Outcome::Delivered, None);
        self.forget(id, &f);
        if self.watches[at].needs_eager_judging {
            self.judge(now, at);
        }
    }

    /// The probe that a packet answers, its location and target.
    fn answered_by(
        &mut self,
        probe: ProbeId,
        bytes: &[u8],
    ) -> Option<(ProbeId, usize, usize, ReflectorPacket)> {
        // A long-lived socket may bring the reply to an earlier probe than the one it was asked for, so the packet
        // itself says which one it answers.
        let foreign = self
            .in_flight
            .get(&probe)
            .filter(|f| self.watches[f.watch].targets[f.spec.target].key.is_none());
        if let Some(f) = foreign {
            // Nothing but what was sent proves who answers: the number and the whole timestamp, both hard to guess.
            // TWAMP Light does not return the session id (RFC 8762 §4.6), so the socket says whose reply it is.
            let reply = ReflectorPacket::decode(bytes, None).ok()?;
            let id = *self.by_seq.get(&(f.ssid, reply.sender_seq))?;
            let genuine = self.in_flight.get(&id)?.stamp == reply.sender_timestamp;
            return genuine.then_some((id, f.watch, f.spec.target, reply));
        }
        let ssid = bytes.get(26..28).map(|b| u16::from_be_bytes([b[0], b[1]]))?;
        let &(at, target) = self.by_ssid.get(&ssid)?;
        let key = self.keys.with(&self.watches[at].targets[target].key?);
        let reply = match ReflectorPacket::decode(bytes, Some(&key)) {
            Ok(reply) => reply,
            Err(error) => {
                self.forged += u64::from(error == StampError::BadHmac);
                return None;
            }
        };
        let id = *self.by_seq.get(&(ssid, reply.sender_seq))?;
        // An answer of before this daemon's last start may have the same numbers, and a relay may have kept it.
        let genuine = self.in_flight.get(&id)?.stamp == reply.sender_timestamp;
        genuine.then_some((id, at, target, reply))
    }

    pub fn handle_error(&mut self, now: Now, probe: ProbeId, error: ProbeError) {
        if self.service_error(now, probe, &error) {
            return;
        }
        let Some(f) = self.in_flight.get(&probe) else { return };
        let at = f.watch;
        let target = self.watches[at].targets[f.spec.target].address;
        let (outcome, mtu) = match error {
            ProbeError::TimeExceeded { .. } => (Outcome::Looped, None),
            // Of our own interface, or beyond the plane: in both cases a packet of this size does not pass.
            ProbeError::TooBig { mtu, .. } => (Outcome::Lost, mtu),
            // The target's kernel says that nobody listens: the path is good, its daemon is gone. So it seems: whoever relays can say
            // the same in its name, which is no proof while the daemon answers through others.
            ProbeError::Unreachable { from } if from == Some(target) => {
                let (path, target, sent) = (f.spec.path, f.spec.target, f.sent);
                let forged =
                    path.is_some_and(|p| self.watches[at].port_unreachable(p, target, sent));
                (if forged { Outcome::Lost } else { Outcome::Delivered }, None)
            }
            ProbeError::Unreachable { .. } => (Outcome::Lost, None),
            ProbeError::Local { .. } => (Outcome::Void, None),
        };
        if f.timed_out && outcome != Outcome::Delivered {
            return;
        }
        let Some(f) = self.take(probe) else { return };
        if outcome == Outcome::Delivered {
            self.watches[at].mark_daemon_absent(f.spec.target);
        }
        self.record_outcome(now, &f, probe, outcome, mtu);
        self.forget(probe, &f);
        self.judge(now, at);
    }

    pub(in crate::observe) fn note_stall(&mut self, now: Now) {
        if self.timers.first().is_some_and(|(due, _)| *due + STALL < now.mono) {
            self.stalled = now.mono;
        }
    }

    pub(in crate::observe) fn probe_timeout(&mut self, now: Now, id: ProbeId) -> Option<usize> {
        let f = self.in_flight.get_mut(&id)?;
        let overdue = now.mono.since(f.due);
        if overdue > STALL && !f.timed_out && !f.extended_once {
            // Its reply may lie in the socket, or in another process of this machine that did not run either.
            f.extended_once = true;
            f.due = now.mono + overdue.min(f.due.since(f.sent));
            self.timers.insert((f.due, Timer::Probe(id)));
            return None;
        }
        if f.timed_out {
            let f = self.take(id)?;
            self.forget(id, &f);
            return None;
        }
        f.timed_out = true;
        f.due = now.mono + GRACE;
        self.timers.insert((f.due, Timer::Probe(id)));
        let copy = InFlight { ..*f };
        self.record_outcome(now, &copy, id, Outcome::Lost, None);
        Some(copy.watch)
    }

    pub(in crate::observe) fn take(&mut self, id: ProbeId) -> Option<InFlight> {
        let f = self.in_flight.remove(&id)?;
        self.by_seq.remove(&(f.ssid, f.seq));
        self.timers.remove(&(f.due, Timer::Probe(id)));
        Some(f)
    }

    pub(in crate::observe) fn forget(&mut self, id: ProbeId, f: &InFlight) {
        if f.spec.class != ProbeClass::PinnedFlow {
            self.emit(ObserverOutput::Forget(id));
        }
    }

    fn record_outcome(
        &mut self,
        now: Now,
        f: &InFlight,
        id: ProbeId,
        outcome: Outcome,
        mtu: Option<u16>,
    ) {
        let w = &mut self.watches[f.watch];
        let policy = self.mesh.policy_of(&w.location);
        match f.spec.path {
            Some(p) => w.record_outcome(policy, now.mono, p, id, outcome, mtu),
            None => self.record_verification(now, f, outcome),
        }
    }
}
