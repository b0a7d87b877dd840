//! New flows *out of* this node's own location: what only nodes behind its candidates can try.
//!
//! What other locations send comes in through a candidate, and the answers leave as parts of flows that the candidate knows. A firewall
//! that refuses what is begun behind it spares all of that. So two nodes of a location send probes through each of its candidates to
//! candidates of the other locations, as a workload would:
//!
//! ```text
//! this node ──LAN──▶ candidate in slot j ═══▶ a candidate there, at its inner address of slot j
//!           ◀──LAN──                     ◀═══ which answers through the device that it was asked by
//! ```
//!
//! Inner addresses of slot j are routed to the candidate in slot j ([`crate::topology`]). A round sends to the same candidate there
//! through every candidate here. What one of them loses and another one does not is that one's fault, if it answers over the LAN itself;
//! what all lose says nothing. A loss brings bursts, which settle it within some timeouts.
//!
//! What was found goes to the candidates of the own location, over the LAN: a [`Report`] about the own location, whose rows name a
//! candidate of each location that is not reached. It asks not to be counted, so releases that know no such reports leave it alone.

mod way;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::fault::Fault;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::io::{Flow, LogLevel, ProbeError, ProbeId, ProbeKind, ProbeSend};
use crate::mesh::{Mesh, Node};
use crate::probe::ProbeKeys;
use crate::probe::class::ProbeClass;
use crate::probe::stamp::{Ntp, REQUEST_LEN, ReflectorPacket, SenderPacket, StampError};
use crate::time::{Instant, Now};
use crate::verdict::{Direction, EvidenceRow, Report, SlotReport, Verdict};
use crate::wire::limits::MAX_ROWS;

use super::ObserverOutput;
use super::judgement::sprt;
use super::location::source;
use super::probing::in_flight::STALL;
use way::Way;

/// Between two rounds to a location. With more than [`LOCATIONS`] of them the rounds are rarer, so that they cost no more.
const ROUND: Duration = Duration::from_millis(500);
const LOCATIONS: usize = 8;
/// Nodes of a location that try each candidate.
const TESTERS: usize = 2;
/// Candidates of the other location that a burst goes to.
const BURST_TARGETS: usize = 3;
/// How long a reply is awaited before there was any.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a late reply is awaited.
const GRACE: Duration = Duration::from_secs(2);
/// What fails is told again this often.
const REPEAT: Duration = Duration::from_secs(1);
/// The session of these probes. Those of observers are others.
pub const SSID: u16 = 0;
/// Numbers of these probes: an observer's count up from zero.
const FIRST_ID: u64 = 1 << 62;

/// Whom a probe goes to through a candidate here.
#[derive(Debug, Clone, Copy)]
enum End {
    /// A candidate of the other location, by its number.
    Far(usize),
    /// The candidate here itself.
    Near,
}

/// A probe whose reply is awaited.
#[derive(Debug, Clone)]
struct Sent {
    location: LocationName,
    slot: Slot,
    /// Who answers: a candidate there, or the one here.
    target: NodeName,
    address: IpAddr,
    seq: u32,
    stamp: Ntp,
    at: Instant,
    due: Instant,
    /// It got more time, as this process did not run.
    extended: bool,
    timed_out: bool,
    is_near: bool,
}

/// The ways to one other location.
#[derive(Debug)]
struct Ways {
    /// Its candidates.
    fars: Vec<NodeName>,
    /// By the slot of the candidate here.
    ways: BTreeMap<Slot, Way>,
    round: usize,
    next_round: Instant,
}

impl Ways {
    /// How long to wait for a reply: as long for all of them, as they are compared.
    fn timeout(&self, least: Duration) -> Duration {
        self.ways.values().filter_map(|way| way.timeout(least)).max().unwrap_or(FIRST_TIMEOUT)
    }
}

/// Tries new flows out of this node's location.
#[derive(Debug)]
pub struct Outward {
    mesh: Arc<Mesh>,
    me: NodeName,
    location: LocationName,
    keys: ProbeKeys,
    /// The candidates that this node tries. The others serve to compare with.
    tested: BTreeSet<Slot>,
    locations: BTreeMap<LocationName, Ways>,
    in_flight: BTreeMap<ProbeId, Sent>,
    timers: BTreeSet<(Instant, ProbeId)>,
    /// Of the next probe to each node.
    seqs: BTreeMap<NodeName, u32>,
    next_id: u64,
    report_seq: u64,
    next_report: Option<Instant>,
    /// The next of all timers: there may be a thousand locations, and it is asked for after every input of the daemon.
    due: Option<Instant>,
    forged: u64,
    out: VecDeque<ObserverOutput>,
}

impl Outward {
    pub fn new(mesh: Arc<Mesh>, me: &Node, keys: ProbeKeys, now: Now) -> Self {
        let mut outward = Self {
            me: me.name.clone(),
            location: me.location.clone(),
            keys,
            tested: BTreeSet::new(),
            locations: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            timers: BTreeSet::new(),
            seqs: BTreeMap::new(),
            next_id: FIRST_ID,
            report_seq: 0,
            next_report: None,
            due: None,
            forged: 0,
            out: VecDeque::new(),
            mesh: mesh.clone(),
        };
        outward.set_mesh(now, mesh);
        outward
    }

    /// Takes another mesh. What is known of ways that stay is kept.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        self.mesh = mesh.clone();
        self.tested = tested(&mesh, &self.me);
        let mut before = std::mem::take(&mut self.locations);
        if self.tested.is_empty() {
            self.next_report = None;
            return self.find_due();
        }
        let slots: Vec<Slot> = mesh.candidates_of(&self.location).into_keys().collect();
        let others = mesh.locations.keys().filter(|l| **l != self.location);
        let carried = others.filter(|l| !mesh.observed_between(&self.location, l));
        let carried: Vec<&LocationName> = carried.collect();
        let period = self.round_of(carried.len());
        for (n, location) in carried.iter().enumerate() {
            let fars = mesh.candidates_of(location).into_values().map(|n| n.name.clone());
            let fars: Vec<NodeName> = fars.collect();
            if fars.is_empty() {
                continue;
            }
            let same = before
                .remove(*location)
                .filter(|w| w.fars == fars && w.ways.keys().copied().eq(slots.iter().copied()));
            // The rounds to different locations come one after the other.
            let first = now.mono + period * (n as u32) / carried.len() as u32;
            let fresh = || Ways {
                fars,
                ways: slots.iter().map(|slot| (*slot, Way::new())).collect(),
                round: 0,
                next_round: first,
            };
            self.locations.insert((*location).clone(), same.unwrap_or_else(fresh));
        }
        self.find_due();
    }

    fn round_of(&self, locations: usize) -> Duration {
        ROUND * locations.div_ceil(LOCATIONS).max(1) as u32
    }

    /// Returns whether a probe is one of these.
    pub const fn sends(probe: ProbeId) -> bool {
        probe.0 >= FIRST_ID
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn find_due(&mut self) {
        let rounds = self.locations.values().map(|w| w.next_round);
        let tested = |w: &Ways, slot: &Slot| w.ways.get(slot).and_then(Way::poll_timeout);
        let doubts = self.locations.values().flat_map(|w| self.tested.iter().map(|s| tested(w, s)));
        let probe = self.timers.first().map(|(due, _)| *due);
        self.due = rounds.chain(doubts.flatten()).chain(probe).chain(self.next_report).min();
    }

    pub fn poll_output(&mut self) -> Option<ObserverOutput> {
        self.out.pop_front()
    }

    /// Returns the number of replies since the start whose HMAC was wrong.
    pub fn forged_replies(&self) -> u64 {
        self.forged
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.expire_probes(now);
        let due = |w: &Ways| w.next_round <= now.mono;
        let rounds: Vec<LocationName> =
            self.locations.iter().filter(|(_, w)| due(w)).map(|(l, _)| l.clone()).collect();
        for location in rounds {
            self.send_round(now, &location);
        }
        let doubted = |w: &Ways| {
            let mut tested = self.tested.iter().filter_map(|slot| w.ways.get(slot));
            tested.any(|way| way.poll_timeout().is_some())
        };
        let doubted: Vec<LocationName> =
            self.locations.iter().filter(|(_, w)| doubted(w)).map(|(l, _)| l.clone()).collect();
        for location in doubted {
            self.judge(now, &location);
        }
        if self.next_report.is_some_and(|at| at <= now.mono) {
            self.report(now);
        }
        self.find_due();
    }

    /// A datagram came in on the socket of a probe.
    pub fn handle_reply(&mut self, now: Now, probe: ProbeId, bytes: &[u8]) {
        let Some(sent) = self.in_flight.get(&probe) else { return };
        let Some(target) = self.mesh.node(&sent.target) else { return };
        let key = self.keys.with(&target.wireguard_key);
        let reply = match ReflectorPacket::decode(bytes, Some(&key)) {
            Ok(reply) => reply,
            Err(error) => {
                self.forged += u64::from(error == StampError::BadHmac);
                return;
            }
        };
        let asked = (reply.ssid, reply.sender_seq, reply.sender_timestamp);
        if asked != (SSID, sent.seq, sent.stamp) {
            return;
        }
        let Some(sent) = self.forget(probe) else { return };
        if let Some(way) = self.way(&sent).filter(|_| !sent.is_near) {
            way.replied(sent.at, now.mono);
        }
        self.ended(now, probe, &sent, true);
        self.judge(now, &sent.location);
        self.find_due();
    }

    /// ICMP, or the local kernel, says that a probe failed.
    pub fn handle_error(&mut self, now: Now, probe: ProbeId, error: &ProbeError) {
        let Some(sent) = self.in_flight.get(&probe).filter(|sent| !sent.timed_out) else { return };
        let passed = match error {
            // Its daemon does not run. That is said by the routes, and so through some ways alone.
            ProbeError::Unreachable { from } if *from == Some(sent.address) => None,
            ProbeError::Unreachable { .. } | ProbeError::TimeExceeded { .. } => Some(false),
            // This node's own.
            ProbeError::Local { .. } | ProbeError::TooBig { .. } => None,
        };
        let Some(sent) = self.forget(probe) else { return };
        match passed {
            Some(passed) => self.ended(now, probe, &sent, passed),
            None => {
                if let Some(way) = self.way(&sent) {
                    way.void(probe);
                }
            }
        }
        self.judge(now, &sent.location);
        self.find_due();
    }

    fn ended(&mut self, now: Now, probe: ProbeId, sent: &Sent, passed: bool) {
        match self.way(sent) {
            Some(way) if sent.is_near => way.near_ended(sent.at, passed),
            Some(way) => way.ended(probe, now.mono, passed),
            None => {}
        }
    }

    fn way(&mut self, sent: &Sent) -> Option<&mut Way> {
        self.locations.get_mut(&sent.location)?.ways.get_mut(&sent.slot)
    }

    fn forget(&mut self, probe: ProbeId) -> Option<Sent> {
        let sent = self.in_flight.remove(&probe)?;
        self.timers.remove(&(sent.due, probe));
        self.out.push_back(ObserverOutput::Forget(probe));
        Some(sent)
    }

    fn expire_probes(&mut self, now: Now) {
        while let Some(&(due, probe)) = self.timers.first().filter(|(due, _)| *due <= now.mono) {
            self.timers.pop_first();
            let Some(sent) = self.in_flight.get_mut(&probe) else { continue };
            if sent.timed_out {
                self.in_flight.remove(&probe);
                self.out.push_back(ObserverOutput::Forget(probe));
                continue;
            }
            let overdue = now.mono.since(due);
            let late = overdue > STALL && !sent.extended;
            // This process did not run: the reply may lie in the socket.
            let more = if late { overdue.min(due.since(sent.at)) } else { GRACE };
            (sent.extended, sent.timed_out) = (true, !late);
            sent.due = now.mono + more;
            self.timers.insert((sent.due, probe));
            if !late {
                let sent = sent.clone();
                self.ended(now, probe, &sent, false);
            }
        }
    }

    /// Sends to one candidate of a location through every candidate here.
    fn send_round(&mut self, now: Now, location: &LocationName) {
        let mut period = self.round_of(self.locations.len());
        let Some(ways) = self.locations.get_mut(location) else { return };
        if ways.ways.values().any(Way::fails) {
            period /= 2;
        }
        ways.next_round = (ways.next_round + period).max(now.mono + period / 2);
        ways.round = ways.round.wrapping_add(1);
        let far = ways.round % ways.fars.len();
        let slots: Vec<Slot> = ways.ways.keys().copied().collect();
        for slot in slots {
            self.send(now, location, slot, End::Far(far));
        }
    }

    /// Sends several to some candidates of a location through this one, one to each of them through all others, and one to this one.
    fn send_burst(&mut self, now: Now, location: &LocationName, doubted: Slot) {
        let Some(ways) = self.locations.get(location) else { return };
        let slots: Vec<Slot> = ways.ways.keys().copied().collect();
        let (round, number) = (ways.round, ways.fars.len());
        let each = if number == 1 { 4 } else { 2 };
        for far in (0..number.min(BURST_TARGETS)).map(|n| (round + n) % number) {
            for slot in &slots {
                let probes = if *slot == doubted { each } else { 1 };
                for _ in 0..probes {
                    self.send(now, location, *slot, End::Far(far));
                }
            }
        }
        self.send(now, location, doubted, End::Near);
    }

    fn send(&mut self, now: Now, location: &LocationName, slot: Slot, end: End) {
        let mesh = self.mesh.clone();
        let Some(me) = mesh.node(&self.me) else { return };
        let source = [false, true].into_iter().find_map(|own| source(&mesh, me, own, false));
        let Some(ways) = self.locations.get_mut(location) else { return };
        let (target, address) = match end {
            End::Far(far) => {
                let node = mesh.node(&ways.fars[far]);
                (node, node.map(|n| mesh.inner4(n, slot).into()))
            }
            End::Near => {
                let node = mesh.candidate(&self.location, slot);
                let addresses = node.into_iter().flat_map(|n| mesh.probed_at(n));
                (node, addresses.into_iter().find(IpAddr::is_ipv4))
            }
        };
        let (Some(source), Some(target), Some(address)) = (source, target, address) else { return };
        let ports = &mesh.probe_ports;
        let Some(port) = ports.get(self.next_id as usize % ports.len().max(1)) else { return };
        let probe = ProbeId(self.next_id);
        self.next_id += 1;
        let seq = self.seqs.entry(target.name.clone()).or_default();
        let request = SenderPacket { seq: *seq, timestamp: now.wall.into(), ssid: SSID };
        *seq = seq.wrapping_add(1);
        let key = self.keys.with(&target.wireguard_key);
        let packet = request.encode_from(me.index, &key, REQUEST_LEN);
        let timeout = ways.timeout(mesh.policy.min_probe_timeout);
        let Some(way) = ways.ways.get_mut(&slot) else { return };
        if let End::Far(far) = end {
            way.sent(probe, now.mono, far);
        }
        let sent = Sent {
            location: location.clone(),
            slot,
            target: target.name.clone(),
            address,
            seq: request.seq,
            stamp: request.timestamp,
            at: now.mono,
            due: now.mono + timeout,
            extended: false,
            timed_out: false,
            is_near: matches!(end, End::Near),
        };
        self.timers.insert((sent.due, probe));
        self.in_flight.insert(probe, sent);
        self.out.push_back(ObserverOutput::Send(ProbeSend {
            probe,
            class: ProbeClass::NewFlow,
            via: None,
            source,
            target: SocketAddr::new(address, *port),
            kind: ProbeKind::Stamp { packet, flow: Flow::Fresh, dont_fragment: false },
        }));
    }

    /// Judges the ways to a location, sends the bursts that they ask for, tells what changed.
    fn judge(&mut self, now: Now, location: &LocationName) {
        let policy = self.mesh.policy_of(&self.location);
        let threshold = sprt::threshold(ROUND, policy.false_failovers_per_year);
        let least = self.mesh.policy.min_probe_timeout;
        let Some(ways) = self.locations.get_mut(location) else { return };
        let timeout = ways.timeout(least);
        let mut changed = Vec::new();
        let mut bursts = Vec::new();
        for slot in &self.tested {
            let Some(mut way) = ways.ways.remove(slot) else { continue };
            let fars = ways.fars.len();
            let others = ways.ways.values().filter(|other| !other.fails());
            if way.judge(now.mono, others, fars, threshold, timeout) {
                changed.push((*slot, way.fails()));
            } else if way.take_burst(now.mono, timeout) {
                bursts.push(*slot);
            }
            ways.ways.insert(*slot, way);
        }
        for slot in bursts {
            self.send_burst(now, location, slot);
        }
        for (slot, fails) in &changed {
            self.log(location, *slot, *fails);
        }
        if !changed.is_empty() {
            self.report(now);
        }
    }

    fn log(&mut self, location: &LocationName, slot: Slot, fails: bool) {
        let name = |n: &Node| n.name.to_string();
        let candidate = self.mesh.candidate(&self.location, slot).map(name).unwrap_or_default();
        let (level, message) = match fails {
            true => {
                (LogLevel::Warn, "new flows to another location do not leave through a candidate")
            }
            false => {
                (LogLevel::Info, "new flows to another location leave through a candidate again")
            }
        };
        let fields = [("location.name", location.to_string()), ("candidate", candidate)];
        self.out.push_back(ObserverOutput::Log {
            level,
            message: message.to_owned(),
            fields: fields.map(|(k, v)| (k.to_owned(), v)).to_vec(),
        });
    }

    /// Tells the candidates of this location what fails, and again while something does. After that, once that nothing does.
    fn report(&mut self, now: Now) {
        let mut slots: BTreeMap<Slot, SlotReport> = BTreeMap::new();
        for ways in self.locations.values() {
            for (slot, way) in ways.ways.iter().filter(|(slot, _)| self.tested.contains(slot)) {
                let Some(first_loss) = way.first_loss() else { continue };
                let (cause, direction) = (Fault::NewFlow, Some(Direction::Forward));
                let fresh =
                    SlotReport::new(*slot, Verdict::Degraded { cause, direction }, now.wall);
                let said = slots.entry(*slot).or_insert(fresh);
                let first_loss = now.wall_at(first_loss);
                said.first_loss = Some(said.first_loss.map_or(first_loss, |t| t.min(first_loss)));
                let (sent, lost) = way.counts();
                if said.evidence.len() < MAX_ROWS {
                    said.evidence.push(EvidenceRow {
                        class: ProbeClass::NewFlow,
                        target: ways.fars.first().cloned(),
                        address: None,
                        port: None,
                        sent,
                        lost,
                        time_exceeded: 0,
                    });
                }
            }
        }
        self.next_report = (!slots.is_empty()).then(|| now.mono + REPEAT);
        self.report_seq += 1;
        self.out.push_back(ObserverOutput::Report(Report {
            observer: self.me.clone(),
            location: self.location.clone(),
            seq: self.report_seq,
            epoch: Epoch(0),
            abstains: true,
            full_rate: false,
            slots: slots.into_values().collect(),
        }));
    }
}

/// Returns the candidates of its own location that a node tries: of those that are not itself, each has two testers. Plain members come
/// first, as they are what has to get through.
pub(crate) fn tested(mesh: &Mesh, me: &NodeName) -> BTreeSet<Slot> {
    let Some(me) = mesh.node(me) else { return BTreeSet::new() };
    let mut nodes: Vec<&Node> = mesh.nodes_of(&me.location).collect();
    nodes.sort_by_key(|n| (n.slot.is_some(), n.index));
    let candidates: Vec<Slot> = nodes.iter().filter_map(|n| n.slot).collect();
    if candidates.len() < 2 {
        return BTreeSet::new();
    }
    let tests = |slot: &Slot| {
        let testers = nodes.iter().filter(|n| n.slot != Some(*slot));
        testers.take(TESTERS).any(|n| n.name == me.name)
    };
    candidates.into_iter().filter(tests).collect()
}
