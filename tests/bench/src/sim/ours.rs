//! leaderd's detector alone, in a tight loop: three real observers, the real reflectors that answer them, and the real Raft group
//! that decides by their reports. Of the mesh around them there is only what they can see.
//!
//! Location `cloud` has three candidates and a member, location `home` three candidates: the observers. Between them lies
//! the [`LossProcess`]: a channel for each direction between each observer and each candidate, or, as the harder case, one
//! for each direction of each candidate, which all observers share. Within `cloud` nothing is lost but by the fault.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::fault::{Fault as FoundFault, MoveReason};
use leaderd_core::group::{Group, GroupOutput};
use leaderd_core::ids::{Epoch, LocationName, NodeName, Slot};
use leaderd_core::io::{ProbeId, ProbeSend, StoredGroup};
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::observe::{Observer, ObserverOutput};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::probe::reflect::Reflector;
use leaderd_core::state::Decision;
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::verdict::{ProbeClass, Report};
use leaderd_core::wire::Hello;

use super::loss::{Loss, LossProcess};
use ::tests::sim::meshes::{Site, mesh_of};

const OBSERVERS: usize = 3;
const CANDIDATES: usize = 3;
/// One way within a location.
const LAN: Duration = Duration::from_micros(200);
/// Until a write is on disk, and until a decision is in an observer's kernel.
const SYNC: Duration = Duration::from_millis(1);
const PROGRAM: Duration = Duration::from_millis(2);
const HELLO: Duration = Duration::from_secs(1);
/// Round trips vary by this share, upwards.
const JITTER: f64 = 0.1;
/// Wall clock of virtual time 0, µs.
const WALL: u64 = 1_800_000_000_000_000;

/// What is broken, of the candidate in which slot, from when on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    pub slot: usize,
    pub from: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Kilo issue #489: new flows to the nodes behind it die on the leader.
    NewFlows,
    /// The node is gone.
    Death,
}

/// Where packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossScope {
    /// Each path between an observer and a candidate by itself.
    Path,
    /// On each candidate's own line, the same for all observers.
    Candidate,
}

/// A leader was replaced because of a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failover {
    pub first_loss: Instant,
    pub decided: Instant,
    pub cause: MoveReason,
}

/// A single observer called a candidate degraded that is well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alarm {
    pub observer: usize,
    pub slot: usize,
    pub fault: FoundFault,
    pub first_loss: Instant,
    pub at: Instant,
    /// When it took that back.
    pub over: Option<Instant>,
    /// [`LossProcess::log_weight`] at that moment.
    pub log_weight: f64,
}

enum Event {
    Reply { observer: usize, probe: ProbeId, bytes: Vec<u8> },
    Report(Box<Report>),
    Raft { from: usize, to: usize, message: Vec<u8> },
    Persisted { node: usize, ticket: u64 },
    Decided(Decision),
    Hello,
}

/// Observers and group; time passes in [`OurDetector::run_until`].
pub struct OurDetector {
    mesh: Arc<Mesh>,
    location: LocationName,
    pub losses: LossProcess,
    scope: LossScope,
    rtt: Duration,
    pub fault: Option<Fault>,
    pub now: Instant,
    observers: Vec<Observer>,
    groups: Vec<Group>,
    reflectors: BTreeMap<NodeName, Reflector>,
    queue: BTreeMap<(Instant, u64), Event>,
    count: u64,
    epoch: Epoch,
    /// Slot of the leader.
    pub leader: usize,
    /// Since the caller last cleared them.
    pub failovers: Vec<Failover>,
    /// Verdicts of single observers, since the caller last cleared them.
    pub alarms: Vec<Alarm>,
}

impl std::fmt::Debug for OurDetector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OurDetector at {:?}", self.now)
    }
}

impl OurDetector {
    pub fn new(loss: Loss, scope: LossScope, rtt: Duration, seed: u64) -> Self {
        let sites = [Site::new("cloud", CANDIDATES as u16, 1), Site::new("home", 3, 0)];
        let (mesh, secrets) = mesh_of(&sites, Policy::default());
        let mesh = Arc::new(mesh);
        let start = Now { mono: Instant(1_000_000), wall: WallTime(WALL + 1_000_000) };
        let location: LocationName = "cloud".parse().expect("a name");
        let observers = (0..OBSERVERS)
            .map(|i| {
                let me = name("home", i);
                let keys = ProbeKeys::new(secrets[&me]);
                Observer::new(mesh.clone(), me, keys, seed * 16 + i as u64, start)
            })
            .collect();
        let groups = (0..CANDIDATES)
            .map(|i| {
                let seed = seed * 16 + 8 + i as u64;
                let (mesh, me) = (mesh.clone(), name("cloud", i));
                Group::new(mesh, location.clone(), me, &StoredGroup::default(), seed, start)
                    .expect("a candidate votes")
            })
            .collect();
        let reflectors = mesh
            .nodes_of(&location)
            .map(|n| {
                let keys = ProbeKeys::new(secrets[&n.name]);
                (n.name.clone(), Reflector::new(mesh.clone(), n.name.clone(), keys))
            })
            .collect();
        let mut detector = Self {
            losses: LossProcess::new(loss, OBSERVERS * CANDIDATES * 2, seed),
            mesh,
            location,
            scope,
            rtt,
            fault: None,
            now: start.mono,
            observers,
            groups,
            reflectors,
            queue: BTreeMap::new(),
            count: 0,
            epoch: Epoch(0),
            leader: 0,
            failovers: Vec::new(),
            alarms: Vec::new(),
        };
        for i in 0..CANDIDATES {
            for k in (0..CANDIDATES).filter(|k| *k != i) {
                detector.groups[i].handle_peer_rtt(start, &name("cloud", k), Some(LAN * 2));
            }
        }
        detector.later(Duration::ZERO, Event::Hello);
        detector.drain();
        detector
    }

    /// Has a leader that the observers see forward, for so long that nothing of the start is left.
    pub fn settled(loss: Loss, scope: LossScope, rtt: Duration, seed: u64) -> Self {
        let mut detector = Self::new(loss, scope, rtt, seed);
        detector.run_until(detector.now + Duration::from_secs(25) + rtt * 10);
        assert!(detector.epoch > Epoch(0), "no first decision");
        detector.failovers.clear();
        detector.alarms.clear();
        detector
    }

    /// The channels between an observer and the leader, if each path loses packets by itself.
    pub fn channels_to_leader(&self, observer: usize) -> [usize; 2] {
        let path = observer * CANDIDATES + self.leader;
        [path * 2, path * 2 + 1]
    }

    pub fn run_until(&mut self, end: Instant) {
        loop {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timers = self.observers.iter().filter_map(Observer::poll_timeout);
            let groups = (0..CANDIDATES).filter(|i| !self.is_dead(*i));
            let groups = groups.filter_map(|i| self.groups[i].poll_timeout());
            let next = queued.into_iter().chain(timers).chain(groups).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now();
            while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
                let happening = entry.remove();
                self.happen(now, happening);
            }
            for observer in &mut self.observers {
                if observer.poll_timeout().is_some_and(|at| at <= now.mono) {
                    observer.handle_timeout(now);
                }
            }
            for i in 0..CANDIDATES {
                if !self.is_dead(i) && self.groups[i].poll_timeout().is_some_and(|t| t <= now.mono)
                {
                    self.groups[i].handle_timeout(now);
                }
            }
            self.drain();
        }
        self.now = end;
    }

    fn now(&self) -> Now {
        Now { mono: self.now, wall: WallTime(WALL + self.now.0) }
    }

    fn is_dead(&self, candidate: usize) -> bool {
        self.fault.is_some_and(|f| {
            f.kind == FaultKind::Death && f.slot == candidate && f.from <= self.now
        })
    }

    fn later(&mut self, delay: Duration, happening: Event) {
        self.count += 1;
        self.queue.insert((self.now + delay, self.count), happening);
    }

    fn happen(&mut self, now: Now, happening: Event) {
        match happening {
            Event::Reply { observer, probe, bytes } => {
                self.observers[observer].handle_reply(now, probe, &bytes);
            }
            Event::Report(report) => {
                for i in (0..CANDIDATES).filter(|i| !self.is_dead(*i)).collect::<Vec<_>>() {
                    self.groups[i].handle_report(now, (*report).clone());
                }
            }
            Event::Raft { from, to, message } => {
                if !self.is_dead(from) && !self.is_dead(to) {
                    self.groups[to].handle_raft(now, &name("cloud", from), &message);
                }
            }
            Event::Persisted { node, ticket } => {
                if !self.is_dead(node) {
                    self.groups[node].handle_persisted(now, ticket);
                }
            }
            Event::Decided(decision) => {
                for observer in &mut self.observers {
                    observer.decided(now, &self.location, decision.epoch, &decision.leaders);
                }
            }
            Event::Hello => {
                self.later(HELLO, Event::Hello);
                let alive: Vec<usize> = (0..CANDIDATES).filter(|i| !self.is_dead(*i)).collect();
                for from in &alive {
                    let hello = self.hello(*from, &alive);
                    alive.iter().for_each(|to| self.groups[*to].handle_hello(now, &hello));
                }
            }
        }
    }

    fn hello(&self, from: usize, alive: &[usize]) -> Hello {
        let group = &self.groups[from];
        Hello {
            capabilities: leaderd_core::capability::Capabilities::OURS,
            node: name("cloud", from),
            generation: self.mesh.generation,
            mesh_hash: [7; 8],
            decision: group.state().decision.clone(),
            raft_leader: group.raft_leader().cloned(),
            broken: None,
            reaches: alive.iter().map(|i| Slot(*i as u8)).collect(),
            digest: Vec::new(),
            proof: Default::default(),
            remote: Vec::new(),
        }
    }

    fn drain(&mut self) {
        for i in 0..OBSERVERS {
            while let Some(output) = self.observers[i].poll_output() {
                match output {
                    ObserverOutput::Send(probe) => self.carry(i, &probe),
                    ObserverOutput::Report(report) if report.location == self.location => {
                        self.note_alarms(i, &report);
                        // A datagram that is lost is sent again one and a half round trips later.
                        let mut delay = self.rtt / 2 + LAN;
                        while self.losses.uniform() < self.losses.loss.mean() {
                            delay += self.rtt * 3 / 2;
                        }
                        self.later(delay, Event::Report(Box::new(report)));
                    }
                    _ => {}
                }
            }
        }
        for i in 0..CANDIDATES {
            while let Some(output) = self.groups[i].poll_output() {
                match output {
                    GroupOutput::Send { to, message } => {
                        let to = (0..CANDIDATES).find(|k| name("cloud", *k) == to);
                        let to = to.expect("the voters are the candidates");
                        self.later(LAN, Event::Raft { from: i, to, message });
                    }
                    GroupOutput::Persist { ticket, .. } => {
                        self.later(SYNC, Event::Persisted { node: i, ticket });
                    }
                    GroupOutput::Decided { decision, event } if decision.epoch > self.epoch => {
                        self.epoch = decision.epoch;
                        self.leader = usize::from(decision.leaders[0].0);
                        let mono = |t: WallTime| Instant(t.0 - WALL);
                        let decided = event.times.condemned.map(mono);
                        if let (Some(decided), true) = (decided, decision.cause.is_failover()) {
                            let first_loss = event.times.first_loss.map_or(decided, mono);
                            let cause = decision.cause;
                            self.failovers.push(Failover { first_loss, decided, cause });
                        }
                        self.later(self.rtt / 2 + PROGRAM, Event::Decided(decision));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Observers report at once when a verdict changes.
    fn note_alarms(&mut self, observer: usize, report: &Report) {
        for (slot, said) in report.slots.iter().enumerate() {
            let of_it =
                |a: &&mut Alarm| a.over.is_none() && (a.observer, a.slot) == (observer, slot);
            let open = self.alarms.iter_mut().find(of_it);
            match (open, said.verdict.fault()) {
                (None, Some(fault)) => self.alarms.push(Alarm {
                    observer,
                    slot,
                    fault,
                    first_loss: said.first_loss.map_or(self.now, |t| Instant(t.0 - WALL)),
                    at: self.now,
                    over: None,
                    log_weight: self.losses.log_weight,
                }),
                (Some(open), None) => open.over = Some(self.now),
                _ => {}
            }
        }
    }

    /// A probe through a slot, or by the ordinary routes through the leader: there, answered, and back.
    fn carry(&mut self, observer: usize, probe: &ProbeSend) {
        let slot = probe.via.map_or(self.leader, |s| usize::from(s.0));
        let target = self.mesh.node_by_address(probe.target.ip()).expect("an address of ours").0;
        if target.location != self.location {
            return;
        }
        let half = (self.rtt / 2).mul_f64(1.0 + JITTER * self.losses.uniform());
        let path = match self.scope {
            LossScope::Path => observer * CANDIDATES + slot,
            LossScope::Candidate => slot,
        };
        let fresh = probe.class.is_new_flow();
        if self.losses.loses_one(path * 2, self.now, fresh)
            || self.dies(probe, slot, target.slot, half)
        {
            return;
        }
        let from = SocketAddr::new(probe.source, 40_000);
        let now = self.now();
        let Some(packet) = probe.packet() else { return };
        let reflector = self.reflectors.get_mut(&target.name).expect("a node of cloud");
        let Ok(bytes) = reflector.handle(now, from, probe.target, 62, packet) else {
            return;
        };
        if self.losses.loses_one(path * 2 + 1, self.now + half, fresh) {
            return;
        }
        self.later(half * 2, Event::Reply { observer, probe: probe.probe, bytes });
    }

    /// Does the fault kill a probe that arrives in this time?
    fn dies(&self, probe: &ProbeSend, via: usize, target: Option<Slot>, after: Duration) -> bool {
        let Some(fault) = self.fault.filter(|f| f.from <= self.now + after) else { return false };
        let behind = target != Some(Slot(via as u8));
        match fault.kind {
            FaultKind::Death => via == fault.slot || target == Some(Slot(fault.slot as u8)),
            FaultKind::NewFlows => {
                let old = matches!(probe.class, ProbeClass::PinnedFlow | ProbeClass::Relay);
                via == fault.slot && behind && !old
            }
        }
    }
}

fn name(location: &str, n: usize) -> NodeName {
    format!("{location}-{n}").parse().expect("a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_faults_are_detected_with_their_cause_and_nothing_is_without_a_fault() {
        for (kind, cause) in [
            (FaultKind::NewFlows, MoveReason::Fault(FoundFault::NewFlow)),
            (FaultKind::Death, MoveReason::Fault(FoundFault::TunnelDown)),
        ] {
            let rtt = Duration::from_millis(20);
            let mut detector =
                OurDetector::settled(Loss::Independent(0.001), LossScope::Path, rtt, 3);
            let from = detector.now + Duration::from_secs(5);
            detector.fault = Some(Fault { kind, slot: detector.leader, from });
            detector.run_until(from);
            assert_eq!(detector.failovers, []);
            detector.run_until(from + Duration::from_secs(2));
            let [failover] = detector.failovers[..] else { panic!("{:?}", detector.failovers) };
            assert_eq!(failover.cause, cause);
            assert!(failover.decided > from, "{failover:?}");
        }
    }
}
