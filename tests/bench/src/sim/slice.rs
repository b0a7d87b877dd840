//! A slice of a large mesh: some nodes run their real cores, all others are stubs that behave as a healthy node would
//! towards these (they answer probes, say hello, acknowledge decisions). A thousand locations of real cores would need
//! more memory than this machine has; what one node costs can be measured on one node, if its surroundings are right.
//!
//! The slice is one location, the locations that watch it and those that it watches, so every report, decision and
//! full-rate probe about that location is real at both ends. Not there: the probes that stubs would send. As every node
//! sends what every node receives, packets received are taken to be as many as packets sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::fault::MoveReason;
use leaderd_core::ids::{Epoch, LocationName, NodeName, Slot};
use leaderd_core::io::{Effect, Input, LanDevice, ProbeId, ProbeSend};
use leaderd_core::mesh::Mesh;
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::probe::stamp::{ERROR_ESTIMATE, ReflectorPacket, SenderPacket};
use leaderd_core::state::Decision;
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::verdict::{ProbeClass, Report, SlotReport, Verdict};
use leaderd_core::wire::{Frame, Hello};
use nix::time::{ClockId, clock_gettime};

use super::scale::watchers;

/// Round trips between locations and within one.
const WAN: Duration = Duration::from_millis(20);
const LAN: Duration = Duration::from_micros(400);
const SYNC: Duration = Duration::from_millis(1);
const PROGRAM: Duration = Duration::from_millis(2);
const HELLO: Duration = Duration::from_secs(1);
/// Most hellos of a node to others far away in a second.
const FAR_HELLOS: usize = 64;
/// Locations whose observers report about one although all is well, as a multiple of those that watch at full rate: two.
const REPORTERS: usize = 2;
const WALL: u64 = 1_800_000_000_000_000;

/// What one real node did.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    pub probes: u64,
    pub reflected: u64,
    /// Control frames sent, by kind.
    pub frames: BTreeMap<&'static str, u64>,
    /// In the core, this process's own clock.
    pub cpu: Duration,
}

struct Real {
    name: NodeName,
    core: Node,
    spent: Spent,
    /// The nodes that its core wants connections with.
    peers: Vec<NodeName>,
    /// Peers that are stubs.
    stubs: Vec<NodeName>,
    /// Whose turn it is to say hello.
    turn: usize,
    /// Stubs that report about this node's location: those that would watch it next (`observe::location`).
    deputies: Vec<NodeName>,
}

enum Event {
    Input(usize, Input),
    Hellos(usize),
}

pub struct Slice {
    pub mesh: Arc<Mesh>,
    pub now: Instant,
    secrets: BTreeMap<NodeName, [u8; 32]>,
    real: Vec<Real>,
    index: BTreeMap<NodeName, usize>,
    by_address: BTreeMap<IpAddr, NodeName>,
    by_number: BTreeMap<u16, NodeName>,
    stub_keys: BTreeMap<NodeName, ProbeKeys>,
    /// Whose probe a source belongs to.
    asked: BTreeMap<SocketAddr, (usize, ProbeId)>,
    next_port: u16,
    queue: BTreeMap<(Instant, u64), Event>,
    timers: BTreeSet<(Instant, usize)>,
    due: Vec<Option<Instant>>,
    count: u64,
    /// New flows through this candidate die on it (issue #489).
    pub broken: Option<NodeName>,
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice of {} at {:?}", self.real.len(), self.now)
    }
}

impl Slice {
    /// Real cores for the nodes of these locations.
    pub fn new(
        mesh: Mesh,
        secrets: BTreeMap<NodeName, [u8; 32]>,
        real: &BTreeSet<LocationName>,
    ) -> Self {
        let mesh = Arc::new(mesh);
        let names: Vec<NodeName> = mesh
            .nodes
            .values()
            .filter(|n| real.contains(&n.location))
            .map(|n| n.name.clone())
            .collect();
        let addresses = mesh
            .nodes
            .values()
            .flat_map(|n| n.probe_addresses.iter().map(|a| (*a, n.name.clone())));
        let mut slice = Self {
            now: Instant(1_000_000),
            by_address: addresses.collect(),
            by_number: mesh.nodes.values().map(|n| (n.index.0, n.name.clone())).collect(),
            index: names.iter().enumerate().map(|(i, n)| (n.clone(), i)).collect(),
            due: vec![None; names.len()],
            mesh,
            secrets,
            real: Vec::new(),
            stub_keys: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_port: 20_000,
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            count: 0,
            broken: None,
        };
        for (i, name) in names.into_iter().enumerate() {
            let config = NodeConfig {
                mesh: slice.mesh.clone(),
                me: name.clone(),
                keys: ProbeKeys::new(slice.secrets[&name]),
                restored: BTreeMap::new(),
                seed: i as u64,
                resolved: BTreeMap::new(),
            };
            let core = Node::new(config, slice.now()).expect("a node of the mesh");
            let spent = Spent::default();
            let (stubs, deputies) = (Vec::new(), Vec::new());
            let peers = Vec::new();
            slice.real.push(Real { name, core, spent, peers, stubs, turn: 0, deputies });
        }
        for i in 0..slice.real.len() {
            let lan = LanDevice { name: "eth0".parse().ok(), mtu: None };
            slice.input(i, Input::LanDevice(lan));
            let peers = slice.real[i].peers.clone();
            slice.real[i].stubs =
                peers.iter().filter(|p| !slice.index.contains_key(*p)).cloned().collect();
            let node = &slice.mesh.nodes[&slice.real[i].name];
            if node.slot.is_some() {
                let all = watchers(&slice.mesh, &node.location, REPORTERS);
                let is_one = |n: &&NodeName| all.contains(&slice.mesh.nodes[*n].location);
                slice.real[i].deputies =
                    slice.real[i].stubs.iter().filter(is_one).cloned().collect();
            }
            for node in peers {
                let rtt_micros = slice.rtt(i, &node).as_micros() as u64;
                slice.input(i, Input::PeerUp { node, rtt_micros });
            }
            // Stubs are out of phase with each other.
            let phase = HELLO * (i as u32 % 10) / 10;
            slice.later(phase, Event::Hellos(i));
        }
        slice
    }

    fn now(&self) -> Now {
        Now { mono: self.now, wall: WallTime(WALL + self.now.0) }
    }

    fn rtt(&self, from: usize, to: &NodeName) -> Duration {
        let place = |n: &NodeName| self.mesh.nodes[n].location.clone();
        if place(&self.real[from].name) == place(to) { LAN } else { WAN }
    }

    fn later(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.queue.insert((self.now + delay, self.count), event);
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// The next thing that happens before `end`.
    pub fn step(&mut self, end: Instant) -> bool {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some(next) = queued.into_iter().chain(timer).min().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(next);
        if queued.is_some_and(|at| at <= next) {
            let (_, event) = self.queue.pop_first().expect("seen above");
            match event {
                Event::Input(i, input) => self.input(i, input),
                Event::Hellos(i) => {
                    self.later(HELLO, Event::Hellos(i));
                    // As many as each of them sends to all, by the core's own bound (`node::hello`).
                    let stubs = self.real[i].stubs.len();
                    for n in 0..stubs.min(FAR_HELLOS) {
                        let stub = self.real[i].stubs[(self.real[i].turn + n) % stubs].clone();
                        let hello = Box::new(Frame::Hello(self.stub_hello(&stub)));
                        self.input(i, Input::Frame { from: stub, frame: hello });
                    }
                    self.real[i].turn += FAR_HELLOS;
                    for deputy in self.real[i].deputies.clone() {
                        let report = Box::new(Frame::Report(self.stub_report(&deputy, i)));
                        self.input(i, Input::Frame { from: deputy, frame: report });
                    }
                }
            }
        } else if let Some((_, i)) = self.timers.first().copied() {
            self.input(i, Input::Timeout);
        }
        true
    }

    fn stub_hello(&self, stub: &NodeName) -> Hello {
        let location = self.mesh.nodes[stub].location.clone();
        let decision = Decision {
            location: location.clone(),
            epoch: Epoch(1),
            leaders: vec![Slot(0)],
            cause: MoveReason::Initial,
            at: WallTime(WALL),
        };
        Hello {
            capabilities: leaderd_core::capability::Capabilities::OURS,
            node: stub.clone(),
            generation: self.mesh.generation,
            mesh_hash: [7; 8],
            decision: Some(decision),
            raft_leader: format!("{location}-1").parse().ok(),
            broken: None,
            reaches: vec![Slot(0), Slot(1), Slot(2)],
            digest: Vec::new(),
            proof: Default::default(),
            remote: Vec::new(),
        }
    }

    /// What an observer that watches slowly says of the location of a candidate: all is well.
    fn stub_report(&self, stub: &NodeName, about: usize) -> Report {
        let node = &self.mesh.nodes[&self.real[about].name];
        let now = self.now().wall;
        let slot = |n| SlotReport {
            slot: Slot(n),
            verdict: Verdict::Forwarding,
            first_loss: None,
            suspected: None,
            since: WallTime(WALL),
            rtt: Some(WAN),
            loss: 0.0,
            services: (0, 0),
            path_mtu: Some(self.mesh.mtu),
            evidence: Vec::new(),
        };
        Report {
            observer: stub.clone(),
            location: node.location.clone(),
            seq: (now.0 - WALL) / 1000,
            // A higher one would tell a location without a store that it is not new.
            epoch: Epoch(0),
            abstains: false,
            full_rate: false,
            slots: (0..3).map(slot).collect(),
        }
    }

    fn input(&mut self, i: usize, input: Input) {
        let now = self.now();
        let before = cpu();
        self.real[i].core.handle_input(now, input);
        let effects: Vec<Effect> = std::iter::from_fn(|| self.real[i].core.poll_effect()).collect();
        let due = self.real[i].core.poll_timeout();
        self.real[i].spent.cpu += cpu().saturating_sub(before);
        for effect in effects {
            self.carry(i, effect);
        }
        if self.due[i] != due {
            if let Some(old) = self.due[i] {
                self.timers.remove(&(old, i));
            }
            if let Some(new) = due {
                self.timers.insert((new, i));
            }
            self.due[i] = due;
        }
    }

    fn carry(&mut self, i: usize, effect: Effect) {
        match effect {
            Effect::SendProbe(probe) => {
                self.real[i].spent.probes += 1;
                self.probe(i, &probe);
            }
            Effect::Reflect { to, bytes, .. } | Effect::ReflectThrough { to, bytes, .. } => {
                self.real[i].spent.reflected += 1;
                if let Some((asker, probe)) = self.asked.remove(&to) {
                    self.later(WAN / 2, Event::Input(asker, Input::ProbeReply { probe, bytes }));
                }
            }
            Effect::SendFrame { to, frame } => self.frame(i, &to, *frame),
            Effect::Persist { ticket, .. } => {
                self.later(SYNC, Event::Input(i, Input::Persisted { ticket }));
            }
            Effect::Program { revision, .. } => {
                let input = Input::Programmed { revision, error: None };
                self.later(PROGRAM, Event::Input(i, input));
            }
            Effect::SetPeers { peers } => {
                self.real[i].peers = peers.into_iter().map(|p| p.name).collect();
            }
            Effect::ForgetProbe { .. }
            | Effect::AdminReply { .. }
            | Effect::Sign { .. }
            | Effect::Log { .. }
            | Effect::ListenProbes { .. }
            | Effect::KeepFlows { .. }
            | Effect::CheckRoutes { .. } => {}
        }
    }

    fn frame(&mut self, i: usize, to: &NodeName, frame: Frame) {
        *self.real[i].spent.frames.entry(frame.kind()).or_default() += 1;
        let rtt = self.rtt(i, to);
        let from = self.real[i].name.clone();
        if let Some(&real) = self.index.get(to) {
            let input = Input::Frame { from, frame: Box::new(frame) };
            self.later(rtt / 2, Event::Input(real, input));
        } else if let Frame::Announce { decision, .. } = frame {
            let programmed_at =
                WallTime(self.now().wall.0 + (rtt / 2 + PROGRAM).as_micros() as u64);
            let ack =
                Frame::Ack { location: decision.location, epoch: decision.epoch, programmed_at };
            let input = Input::Frame { from: to.clone(), frame: Box::new(ack) };
            self.later(rtt + PROGRAM, Event::Input(i, input));
        }
    }

    fn probe(&mut self, i: usize, probe: &ProbeSend) {
        let target = match probe.target.ip() {
            IpAddr::V4(ip) if self.mesh.inner.v4.contains(&ip) => {
                self.by_number.get(&((u32::from(ip) & 0x0fff) as u16)).cloned()
            }
            ip => self.by_address.get(&ip).cloned(),
        };
        let (Some(target), Some(packet)) = (target, probe.packet()) else { return };
        if self.dies(probe, &target) {
            return;
        }
        if let Some(&real) = self.index.get(&target) {
            self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
            let from = SocketAddr::new(probe.source, self.next_port);
            self.asked.insert(from, (i, probe.probe));
            let bytes = packet.to_vec();
            let input = Input::ProbeRequest { from, local: probe.target, ttl: 62, bytes };
            return self.later(WAN / 2, Event::Input(real, input));
        }
        let secret = self.secrets[&target];
        let keys = self.stub_keys.entry(target).or_insert_with(|| ProbeKeys::new(secret));
        let key = keys.with(&self.mesh.nodes[&self.real[i].name].wireguard_key);
        let Ok(request) = SenderPacket::decode(packet, Some(&key)) else { return };
        let stamp = request.timestamp;
        let reply = ReflectorPacket {
            seq: request.seq,
            timestamp: stamp,
            ssid: request.ssid,
            received: stamp,
            sender_seq: request.seq,
            sender_timestamp: stamp,
            sender_error: ERROR_ESTIMATE,
            sender_ttl: 62,
            location: None,
        };
        let bytes = reply.encode(Some(&key), packet);
        self.later(WAN, Event::Input(i, Input::ProbeReply { probe: probe.probe, bytes }));
    }

    fn dies(&self, probe: &ProbeSend, target: &NodeName) -> bool {
        let Some(broken) = &self.broken else { return false };
        let node = &self.mesh.nodes[broken];
        let there = self.mesh.nodes[target].location == node.location;
        let through = probe.via.is_none() || probe.via == node.slot;
        let old = matches!(probe.class, ProbeClass::PinnedFlow | ProbeClass::Relay);
        there && through && target != broken && !old
    }

    /// Who leads a location, as each real node knows.
    pub fn leaders<'a>(
        &'a self,
        location: &'a LocationName,
    ) -> impl Iterator<Item = Option<Slot>> + 'a {
        self.real
            .iter()
            .filter(|r| self.mesh.nodes[&r.name].slot.is_some())
            .map(move |r| r.core.decision(location).and_then(|d| d.leaders.first().copied()))
    }

    /// What the nodes have spent since the last call: candidates, members.
    pub fn take_spent(&mut self) -> (Vec<Spent>, Vec<Spent>) {
        let (mut candidates, mut members) = (Vec::new(), Vec::new());
        for real in &mut self.real {
            let spent = std::mem::take(&mut real.spent);
            let is_candidate = self.mesh.nodes[&real.name].slot.is_some();
            if is_candidate { candidates.push(spent) } else { members.push(spent) }
        }
        (candidates, members)
    }

    /// Ends the cores one by one and gives how many bytes each candidate's had held, by this count of those in use. The
    /// mesh itself is shared here and not part of it.
    pub fn weigh_candidates(self, live: impl Fn() -> i64) -> Vec<i64> {
        let Self { real, mesh, .. } = self;
        let mut weights = Vec::new();
        for Real { name, core, .. } in real {
            let before = live();
            drop(core);
            let node = &mesh.nodes[&name];
            if node.slot.is_some() {
                weights.push(before - live());
            }
        }
        weights
    }
}

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
