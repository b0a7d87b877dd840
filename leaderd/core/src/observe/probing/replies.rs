//! What becomes of a probe that was sent: its reply, an error on the way, or its timeout.

use crate::io::{ProbeError, ProbeId};
use crate::observe::evidence::Outcome;
use crate::observe::index::WatchIdx;
use crate::observe::{Observer, ObserverOutput};
use crate::probe::class::{ProbeClass, ProbeFlow};
use crate::probe::stamp::{ReflectorPacket, StampError};
use crate::time::Now;

use super::in_flight::{Expiry, InFlight, STALL, Sent, SentPacket};

impl Observer {
    /// A datagram came in on the socket of a probe.
    pub fn handle_reply(&mut self, now: Now, probe: ProbeId, bytes: &[u8]) {
        self.note_stall(now);
        let Some((id, reply)) = self.answered_by(probe, bytes) else { return };
        let Some(f) = self.in_flight.remove(id) else { return };
        let Sent::Packet(packet) = f.sent else { return };
        if let Some(location) = reply.location {
            self.source_seen(now, &f, &packet, location.source.ip());
        }
        let target = packet.spec.target;
        let w = &mut self.watches[f.watch];
        w.targets[target].replied(reply.sender_seq, reply.seq, f.sent_at);
        if packet.spec.path.is_some_and(|p| w.note_first_reply(now.mono, p, f.sent_at)) {
            self.forget(id, packet.spec.class);
            return;
        }
        if let Some(p) = packet.spec.path {
            w.pairs[p][target].on_daemon_answered(f.sent_at);
        }
        let rtt = now.mono.since(f.sent_at);
        match packet.spec.path {
            // Its time says how long this daemon did not run.
            Some(_) if f.is_overdue(now.mono) && f.sent_at < self.stalled => {}
            Some(p) if f.timed_out() => w.paths[p].replied_late(now.mono, rtt),
            Some(p) => w.paths[p].replied_in_time(f.sent_at, rtt),
            None => w.as_workload_rtt.sample(rtt),
        }
        self.record_outcome(now, &f, &packet, id, Outcome::Delivered, None);
        self.forget(id, packet.spec.class);
        if self.watches[f.watch].needs_eager_judging {
            self.judge(now, f.watch);
        }
    }

    /// The probe that a packet answers.
    fn answered_by(&mut self, probe: ProbeId, bytes: &[u8]) -> Option<(ProbeId, ReflectorPacket)> {
        // The socket of a long-lived flow may bring the reply to an earlier probe, so the packet itself says which one it
        // answers.
        let foreign = self.in_flight.get(probe).and_then(|f| match f.sent {
            Sent::Packet(p) if self.watches[f.watch].targets[p.spec.target].key.is_none() => {
                Some(p.ssid)
            }
            Sent::Packet(_) | Sent::Exchange(_) => None,
        });
        let (ssid, reply) = match foreign {
            // Nothing but what was sent proves who answers: the number and the whole timestamp, both hard to guess.
            // TWAMP Light does not return the session id (RFC 8762 §4.6), so the socket says whose reply it is.
            Some(ssid) => (ssid, ReflectorPacket::decode(bytes, None).ok()?),
            None => {
                let ssid = ReflectorPacket::claimed_ssid(bytes)?;
                let &(watch, target) = self.by_ssid.get(&ssid)?;
                let key = self.keys.with(&self.watches[watch].targets[target].key?);
                match ReflectorPacket::decode(bytes, Some(&key)) {
                    Ok(reply) => (ssid, reply),
                    Err(error) => {
                        self.forged += u64::from(error == StampError::BadHmac);
                        return None;
                    }
                }
            }
        };
        let (id, packet) = self.in_flight.packet(ssid, reply.sender_seq)?;
        // An answer of before this daemon's last start may have the same numbers, and a relay may have kept it.
        (packet.stamp == reply.sender_timestamp).then_some((id, reply))
    }

    /// ICMP, or the local kernel, says that a probe failed.
    pub fn handle_error(&mut self, now: Now, probe: ProbeId, error: ProbeError) {
        let Some(f) = self.in_flight.get(probe).copied() else { return };
        match f.sent {
            Sent::Packet(packet) => self.packet_error(now, probe, &f, &packet, error),
            Sent::Exchange(exchange) => self.service_error(now, probe, &f, exchange, &error),
        }
    }

    fn packet_error(
        &mut self,
        now: Now,
        id: ProbeId,
        f: &InFlight,
        packet: &SentPacket,
        error: ProbeError,
    ) {
        let (watch, target) = (f.watch, packet.spec.target);
        let address = self.watches[watch].targets[target].address;
        let (outcome, mtu) = match error {
            ProbeError::TimeExceeded { .. } => (Outcome::Looped, None),
            // Of our own interface, or beyond the plane: in both cases a packet of this size does not pass.
            ProbeError::TooBig { mtu, .. } => (Outcome::Lost, mtu),
            // The target's kernel says that nothing listens there: the path is good, its daemon is gone. So it seems: whoever
            // relays can say the same in its name, which is no proof while the daemon answers through others.
            ProbeError::Unreachable { from } if from == Some(address) => {
                let forged = packet
                    .spec
                    .path
                    .is_some_and(|p| self.watches[watch].port_unreachable(p, target, f.sent_at));
                (if forged { Outcome::Lost } else { Outcome::Delivered }, None)
            }
            ProbeError::Unreachable { .. } => (Outcome::Lost, None),
            ProbeError::Local { .. } => (Outcome::Void, None),
        };
        if f.timed_out() && outcome != Outcome::Delivered {
            return;
        }
        self.in_flight.remove(id);
        if outcome == Outcome::Delivered {
            self.watches[watch].mark_daemon_absent(target);
        }
        self.record_outcome(now, f, packet, id, outcome, mtu);
        self.forget(id, packet.spec.class);
        self.judge(now, watch);
    }

    pub(in crate::observe) fn note_stall(&mut self, now: Now) {
        if self.poll_timeout().is_some_and(|due| due + STALL < now.mono) {
            self.stalled = now.mono;
        }
    }

    /// Serves the first timer of a probe. Returns the location that lost a packet by it.
    pub(in crate::observe) fn expire_probe(&mut self, now: Now) -> Option<WatchIdx> {
        match self.in_flight.expire(now.mono)? {
            (id, Expiry::TimedOut(f)) => match f.sent {
                Sent::Packet(packet) => {
                    self.record_outcome(now, &f, &packet, id, Outcome::Lost, None);
                    Some(f.watch)
                }
                Sent::Exchange(exchange) => {
                    self.record_exchange(now, &f, exchange, Outcome::Lost);
                    None
                }
            },
            (id, Expiry::Ended(f)) => {
                self.forget(id, f.class());
                None
            }
        }
    }

    /// Gives up a probe without an outcome.
    pub(in crate::observe) fn abandon(&mut self, id: ProbeId) {
        if let Some(f) = self.in_flight.remove(id) {
            self.forget(id, f.class());
        }
    }

    /// Nothing more is expected on the socket of a probe, unless later ones use it too.
    pub(in crate::observe) fn forget(&mut self, id: ProbeId, class: ProbeClass) {
        match class.spec().flow {
            ProbeFlow::Fresh => self.emit(ObserverOutput::Forget(id)),
            ProbeFlow::LongLived => {}
        }
    }

    fn record_outcome(
        &mut self,
        now: Now,
        f: &InFlight,
        packet: &SentPacket,
        id: ProbeId,
        outcome: Outcome,
        mtu: Option<u16>,
    ) {
        let w = &mut self.watches[f.watch];
        let policy = self.mesh.policy_of(&w.location);
        match packet.spec.path {
            Some(p) => w.record_outcome(policy, now.mono, p, id, outcome, mtu),
            None => self.record_verification(now, f, packet, outcome),
        }
    }
}
