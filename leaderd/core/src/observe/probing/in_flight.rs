//! Probes whose reply is awaited, packets and exchanges with services alike.
//!
//! ```text
//!            sent                reply: removed
//!             │                        ▲
//!             ▼   due, on time         │            due
//!          Waiting ──────────────▶ TimedOut ──────────────▶ removed
//!             │                        ▲
//!             │ due, but this process  │ due
//!             ▼ did not run            │
//!         Extended ────────────────────┘
//! ```
//!
//! A probe that timed out is lost, and its reply is awaited for `GRACE` nevertheless: one that comes shows that the timeout
//! was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::io::ProbeId;
use crate::observe::index::{PathIdx, ServiceIdx, WatchIdx};
use crate::observe::probing::schedule::ProbeSpec;
use crate::probe::stamp::Ntp;
use crate::time::Instant;
use crate::verdict::ProbeClass;

/// How long a reply is still awaited after its timeout.
const GRACE: Duration = Duration::from_secs(2);
/// A timer that fires this much later than it was due shows that this process did not run: what was on its way meanwhile is
/// neither lost nor slow on that account.
pub const STALL: Duration = Duration::from_millis(5);

/// A STAMP packet that was sent.
#[derive(Debug, Clone, Copy)]
pub struct SentPacket {
    pub spec: ProbeSpec,
    pub source: IpAddr,
    /// Session and sequence number, which the reply repeats.
    pub ssid: u16,
    pub seq: u32,
    pub stamp: Ntp,
}

/// One path's part in a round over a service.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    pub service: ServiceIdx,
    pub round: u64,
    pub path: PathIdx,
}

#[derive(Debug, Clone, Copy)]
pub enum Sent {
    Packet(SentPacket),
    Exchange(Exchange),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Extended,
    TimedOut,
}

/// One probe on its way.
#[derive(Debug, Clone, Copy)]
pub struct InFlight {
    pub watch: WatchIdx,
    pub sent: Sent,
    pub sent_at: Instant,
    due: Instant,
    stage: Stage,
}

impl InFlight {
    pub fn new(watch: WatchIdx, sent: Sent, sent_at: Instant, timeout: Duration) -> Self {
        Self { watch, sent, sent_at, due: sent_at + timeout, stage: Stage::Waiting }
    }

    pub fn class(&self) -> ProbeClass {
        match self.sent {
            Sent::Packet(packet) => packet.spec.class,
            Sent::Exchange(_) => ProbeClass::Service,
        }
    }

    pub fn timed_out(&self) -> bool {
        self.stage == Stage::TimedOut
    }

    /// Its round trip may be longer than it was on the wire, by the time that this process did not run.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.stage != Stage::Waiting || self.due < now
    }
}

/// What the passing of time does to a probe.
#[derive(Debug)]
pub enum Expiry {
    /// It is lost; a late reply may still come.
    TimedOut(InFlight),
    /// Nothing more is awaited, and it was removed.
    Ended(InFlight),
}

#[derive(Debug, Default)]
pub struct InFlightProbes {
    probes: BTreeMap<ProbeId, InFlight>,
    /// The packets among them by session and sequence number.
    by_seq: BTreeMap<(u16, u32), ProbeId>,
    timers: BTreeSet<(Instant, ProbeId)>,
    next_id: u64,
}

impl InFlightProbes {
    pub fn next_id(&mut self) -> ProbeId {
        let id = ProbeId(self.next_id);
        self.next_id += 1;
        id
    }

    pub fn add(&mut self, id: ProbeId, probe: InFlight) {
        if let Sent::Packet(packet) = probe.sent {
            self.by_seq.insert((packet.ssid, packet.seq), id);
        }
        self.timers.insert((probe.due, id));
        self.probes.insert(id, probe);
    }

    pub fn get(&self, id: ProbeId) -> Option<&InFlight> {
        self.probes.get(&id)
    }

    /// The packet with these numbers.
    pub fn packet(&self, ssid: u16, seq: u32) -> Option<(ProbeId, &SentPacket)> {
        let id = *self.by_seq.get(&(ssid, seq))?;
        match &self.probes.get(&id)?.sent {
            Sent::Packet(packet) => Some((id, packet)),
            Sent::Exchange(_) => None,
        }
    }

    pub fn remove(&mut self, id: ProbeId) -> Option<InFlight> {
        let probe = self.probes.remove(&id)?;
        if let Sent::Packet(packet) = probe.sent {
            self.by_seq.remove(&(packet.ssid, packet.seq));
        }
        self.timers.remove(&(probe.due, id));
        Some(probe)
    }

    /// Probes to one location.
    pub fn of(&self, watch: WatchIdx) -> Vec<ProbeId> {
        self.probes.iter().filter(|(_, p)| p.watch == watch).map(|(id, _)| *id).collect()
    }

    pub fn all(&self) -> Vec<ProbeId> {
        self.probes.keys().copied().collect()
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Takes the first timer, if it is due. `None`: it is not, or its probe got more time.
    pub fn expire(&mut self, now: Instant) -> Option<(ProbeId, Expiry)> {
        let &(due, id) = self.timers.first().filter(|(due, _)| *due <= now)?;
        self.timers.pop_first();
        let probe = self.probes.get_mut(&id)?;
        let overdue = now.since(due);
        let wait = match probe.stage {
            Stage::TimedOut => return self.remove(id).map(|probe| (id, Expiry::Ended(probe))),
            Stage::Waiting if overdue > STALL => {
                // The reply may lie in the socket, or in another process of this machine that did not run either.
                probe.stage = Stage::Extended;
                overdue.min(due.since(probe.sent_at))
            }
            Stage::Waiting | Stage::Extended => {
                probe.stage = Stage::TimedOut;
                GRACE
            }
        };
        probe.due = now + wait;
        self.timers.insert((probe.due, id));
        let probe = *probe;
        probe.timed_out().then_some((id, Expiry::TimedOut(probe)))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.probes.len()
    }

    /// How many sequence numbers and timers there are.
    #[cfg(test)]
    pub fn entries(&self) -> (usize, usize) {
        (self.by_seq.len(), self.timers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::index::{Index, TargetIdx};

    const TIMEOUT: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    /// A packet with this sequence number, and an exchange, both sent at 0.
    fn two() -> InFlightProbes {
        let spec = ProbeSpec {
            class: ProbeClass::NewFlow,
            path: Some(PathIdx::new(0)),
            target: TargetIdx::new(0),
            size: 200,
            round: Some(1),
        };
        let source = [100, 127, 0, 1].into();
        let packet = SentPacket { spec, source, ssid: 7, seq: 3, stamp: Ntp(5) };
        let exchange = Exchange { service: ServiceIdx::new(0), round: 1, path: PathIdx::new(1) };
        let mut probes = InFlightProbes::default();
        for (id, sent) in [(1, Sent::Packet(packet)), (2, Sent::Exchange(exchange))] {
            let watch = WatchIdx::new(id as usize);
            probes.add(ProbeId(id), InFlight::new(watch, sent, at(0), TIMEOUT));
        }
        probes
    }

    fn timed_out(probes: &mut InFlightProbes, now: Instant) -> Vec<u64> {
        let mut ids = Vec::new();
        while probes.next_due().is_some_and(|due| due <= now) {
            if let Some((id, Expiry::TimedOut(_))) = probes.expire(now) {
                ids.push(id.0);
            }
        }
        ids
    }

    #[test]
    fn a_reply_removes_every_trace_of_its_probe() {
        let mut probes = two();
        let (id, packet) = probes.packet(7, 3).expect("it is on its way");
        assert_eq!((id, packet.stamp), (ProbeId(1), Ntp(5)));
        assert_eq!(probes.packet(7, 4).map(|p| p.0), None);
        assert!(probes.remove(ProbeId(1)).is_some_and(|p| !p.is_overdue(at(50))));
        assert_eq!((probes.len(), probes.entries()), (1, (0, 1)));
        assert!(probes.remove(ProbeId(1)).is_none());
        assert_eq!(
            (probes.of(WatchIdx::new(1)), probes.of(WatchIdx::new(2))),
            (vec![], vec![ProbeId(2)])
        );
    }

    #[test]
    fn packets_and_exchanges_time_out_once_and_are_awaited_until_the_grace_ends() {
        let mut probes = two();
        assert!(probes.expire(at(99)).is_none());
        assert_eq!(timed_out(&mut probes, at(100)), [1, 2]);
        assert!(probes.get(ProbeId(1)).is_some_and(InFlight::timed_out));
        assert!(probes.packet(7, 3).is_some(), "a late reply finds it");
        assert_eq!(probes.next_due(), Some(at(2100)));
        let ended = |probes: &mut InFlightProbes| match probes.expire(at(2100)) {
            Some((id, Expiry::Ended(_))) => id.0,
            other => panic!("{other:?}"),
        };
        assert_eq!((ended(&mut probes), ended(&mut probes)), (1, 2));
        assert_eq!((probes.len(), probes.entries()), (0, (0, 0)));
    }

    #[test]
    fn a_process_that_did_not_run_gives_more_time_once_and_no_more_than_the_timeout() {
        let mut probes = two();
        assert_eq!(timed_out(&mut probes, at(140)), [] as [u64; 0]);
        assert_eq!(probes.next_due(), Some(at(180)), "as long as it did not run");
        assert!(probes.get(ProbeId(1)).is_some_and(|p| p.is_overdue(at(150)) && !p.timed_out()));
        assert_eq!(timed_out(&mut probes, at(300)), [1, 2], "not once more");
        let mut probes = two();
        assert_eq!(timed_out(&mut probes, at(5000)), [] as [u64; 0]);
        assert_eq!(probes.next_due(), Some(at(5100)));
        let mut probes = two();
        assert_eq!(timed_out(&mut probes, at(105)), [1, 2], "a little late is on time");
    }
}
