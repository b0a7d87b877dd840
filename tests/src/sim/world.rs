//! The world: nodes, clock, disks, and everything in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::fault::Fault;
use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{
    Effect, Input, LanDevice, LocalFacts, LogLevel, OverriddenRoute, ProbeId, RouteCheck,
    StoredGroup,
};
use leaderd_core::mesh::Mesh;
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::proof::Signer;
use leaderd_core::state::Decision;
use leaderd_core::time::{Instant, Now, WallTime};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use wgctl_plan::{Family, Network};

use super::disk;
use super::path::{DataPath, Fate, Packet};
use super::recording::Recording;
use super::transport::Held;
use super::{Faults, Link, Weather};

/// How often control connections are checked.
const CONNECTION_CHECK: Duration = Duration::from_millis(500);
/// A disk's sync takes `SYNC`; the daemon learns of it after `SYNCED`: a crash may fall between them.
pub(super) const SYNC: Duration = Duration::from_millis(1);
pub(super) const SYNCED: Duration = Duration::from_micros(100);
/// The kernel has a network this long after the daemon sets it.
pub(super) const PROGRAM: Duration = Duration::from_millis(2);
/// A daemon notices within this time what its kernel has lost.
pub(super) const NOTICE: Duration = Duration::from_millis(20);
/// Inputs of a paused process are tried again this often.
const PAUSE: Duration = Duration::from_millis(10);
/// Wall clock of virtual second 0.
const WALL_START: u64 = 1_800_000_000_000_000;

/// The network between the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorldConfig {
    pub seed: u64,
    /// Between locations.
    pub wan: Link,
    /// Within a location.
    pub lan: Link,
    /// Where they differ, one way each.
    pub links: Vec<(NodeName, NodeName, Link)>,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            wan: Link::of(Duration::from_millis(10)),
            lan: Link::of(Duration::from_micros(200)),
            links: Vec::new(),
        }
    }
}

/// What a daemon logged.
#[derive(Clone, Debug)]
pub struct LogLine {
    pub at: Instant,
    pub node: NodeName,
    pub level: LogLevel,
    pub text: String,
}

pub(super) struct SimNode {
    pub core: Option<Node>,
    pub secret: [u8; 32],
    pub store: BTreeMap<LocationName, StoredGroup>,
    pub disk: disk::Queue,
    /// Counts restarts: events for an earlier incarnation are dropped.
    pub incarnation: u32,
    pub paused: bool,
    /// The nodes that its core wants connections with.
    pub peers: Vec<NodeName>,
    /// The ports on which it reflects probes.
    pub probe_ports: Vec<u16>,
    /// Peers with a connection: when it last worked, and with which incarnation of the peer.
    pub connections: BTreeMap<NodeName, (Instant, u32)>,
    /// The network that its core last wanted, with its revision.
    pub wanted: Option<(u64, Box<Network>)>,
    /// The packets whose ways its core asked for, and what it was told of them.
    pub checks: Vec<RouteCheck>,
    pub overridden: Vec<OverriddenRoute>,
    /// Its entry in `World::timers`.
    timer: Option<Instant>,
}

impl SimNode {
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            core: None,
            secret,
            store: BTreeMap::new(),
            disk: disk::Queue::default(),
            incarnation: 0,
            paused: false,
            peers: Vec::new(),
            probe_ports: Vec::new(),
            connections: BTreeMap::new(),
            wanted: None,
            checks: Vec::new(),
            overridden: Vec::new(),
            timer: None,
        }
    }
}

pub(super) enum Event {
    Input(Input),
    Programmed {
        revision: u64,
        network: Box<Network>,
    },
    Write(disk::Write),
    /// The daemon's shell notices that the kernel has lost what it programmed.
    Drifted,
    /// It is time for a hostile node's next frame.
    HostileFrame,
}

/// The simulated mesh: nodes, network, clock.
pub struct World {
    pub config: WorldConfig,
    pub mesh: Arc<Mesh>,
    pub faults: BTreeMap<NodeName, Faults>,
    /// Ordered pairs of nodes between which no direct packet passes.
    pub cuts: BTreeSet<(NodeName, NodeName)>,
    /// The weather between ordered pairs of nodes.
    pub weather: BTreeMap<(NodeName, NodeName), Weather>,
    /// When a fault last began or ended.
    pub fault_changed: Instant,
    pub kernels: BTreeMap<NodeName, Network>,
    pub log: Vec<LogLine>,
    /// The node whose core ran last.
    pub last_run: Option<NodeName>,
    pub(super) now: Instant,
    pub(super) rng: ChaCha8Rng,
    pub(super) nodes: BTreeMap<NodeName, SimNode>,
    queue: BTreeMap<(Instant, u64), (NodeName, u32, Event)>,
    timers: BTreeSet<(Instant, NodeName)>,
    sequence: u64,
    pub(super) next_port: u16,
    /// The probe of each source address.
    pub(super) flows: BTreeMap<(NodeName, SocketAddr), ProbeId>,
    /// The nodes that a request crossed which is not answered yet: by who answers, and the source that it saw.
    pub(super) requests: BTreeMap<(NodeName, SocketAddr), Vec<NodeName>>,
    /// Source NAT: at a node, from the source that it sees to the one that the packet was sent from.
    pub(super) translated: BTreeMap<(NodeName, SocketAddr), SocketAddr>,
    /// Whether each bursty link is in its bad state.
    pub(super) bursting: BTreeMap<(NodeName, NodeName), bool>,
    /// The same of the weather on it.
    pub(super) weather_bursting: BTreeMap<(NodeName, NodeName), bool>,
    /// Packets that wait at machines that stand still.
    pub(super) held: BTreeMap<NodeName, Vec<Held>>,
    next_check: Instant,
    inputs: u64,
    digest: u64,
    pub(super) recording: Recording,
    /// The mesh file of each node, once one has changed; before, all have `mesh`.
    pub(super) files: BTreeMap<NodeName, Arc<Mesh>>,
    /// Nodes that are or were hostile, and the locations that each may command.
    pub(super) commandable: BTreeMap<NodeName, BTreeSet<LocationName>>,
    /// Decisions that hostile nodes forged.
    pub(super) forged_decisions: Vec<Decision>,
    /// When the last change of the mesh file will have reached all nodes and been measured.
    pub(super) mesh_files_differ_until: Instant,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World at {:?}", self.now)
    }
}

impl World {
    /// Starts a world with this mesh; `secrets` are the nodes' X25519 keys.
    pub fn new(mesh: Mesh, secrets: &BTreeMap<NodeName, [u8; 32]>, config: WorldConfig) -> Self {
        let start = Instant(1_000_000);
        let mut world = Self {
            faults: mesh.nodes.keys().map(|n| (n.clone(), Faults::default())).collect(),
            cuts: BTreeSet::new(),
            weather: BTreeMap::new(),
            fault_changed: start,
            kernels: mesh.nodes.keys().map(|n| (n.clone(), Network::default())).collect(),
            mesh: Arc::new(mesh),
            log: Vec::new(),
            last_run: None,
            now: start,
            rng: ChaCha8Rng::seed_from_u64(config.seed),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            sequence: 0,
            next_port: 20_000,
            flows: BTreeMap::new(),
            requests: BTreeMap::new(),
            translated: BTreeMap::new(),
            bursting: BTreeMap::new(),
            weather_bursting: BTreeMap::new(),
            held: BTreeMap::new(),
            next_check: start,
            inputs: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            recording: Recording::default(),
            files: BTreeMap::new(),
            commandable: BTreeMap::new(),
            forged_decisions: Vec::new(),
            mesh_files_differ_until: start,
            config,
        };
        for (name, secret) in secrets {
            world.nodes.insert(name.clone(), SimNode::new(*secret));
        }
        let names: Vec<NodeName> = world.nodes.keys().cloned().collect();
        for name in names {
            world.start_daemon(&name);
        }
        world
    }

    pub fn now(&self) -> Now {
        Now { mono: self.now, wall: WallTime(WALL_START + self.now.0) }
    }

    pub fn core(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)?.core.as_ref()
    }

    /// Returns whether the node's daemon runs and is not paused.
    pub fn is_awake(&self, name: &NodeName) -> bool {
        !self.faults[name].crashed
            && self.nodes.get(name).is_some_and(|n| n.core.is_some() && !n.paused)
    }

    /// Returns whether the node is awake and not hostile.
    pub fn is_sound(&self, name: &NodeName) -> bool {
        self.is_awake(name) && self.faults[name].hostile.is_none()
    }

    /// Returns how often a node's daemon was started or ended.
    pub fn incarnation(&self, name: &NodeName) -> u32 {
        self.nodes[name].incarnation
    }

    /// Returns the number of inputs of all cores, and a hash over them in order: equal for equal runs.
    pub fn input_digest(&self) -> (u64, u64) {
        (self.inputs, self.digest)
    }

    /// Starts a daemon from what its disk holds.
    pub fn start_daemon(&mut self, name: &NodeName) {
        let now = self.now();
        let seed = self.rng.next_u64();
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.incarnation += 1;
        node.connections.clear();
        node.disk = disk::Queue::default();
        (node.checks, node.overridden) = (Vec::new(), Vec::new());
        let config = NodeConfig {
            mesh: self.files.get(name).unwrap_or(&self.mesh).clone(),
            me: name.clone(),
            keys: ProbeKeys::new(node.secret),
            restored: node.store.clone(),
            seed,
            resolved: BTreeMap::new(),
        };
        self.recording.start(&config, now);
        node.core = Some(Node::new(config, now).expect("the node is in the mesh"));
        self.report_local_facts(name);
        self.run_effects(name);
        self.recording.done(name, 0);
        let lan = LanDevice { name: "eth0".parse().ok(), mtu: Some(1500) };
        self.input(name, Input::LanDevice(lan));
    }

    /// Ends a daemon; the kernel goes on.
    pub fn kill_daemon(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.core = None;
            node.incarnation += 1;
            node.disk = disk::Queue::default();
        }
        self.set_timer(name);
    }

    pub fn pause_daemon(&mut self, name: &NodeName, paused: bool) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.paused = paused;
        }
        self.set_timer(name);
    }

    /// Switches a machine off, or on again.
    pub fn crash(&mut self, name: &NodeName, off: bool) {
        self.fault_changed = self.now;
        self.faults.get_mut(name).expect("a node of the mesh").crashed = off;
        if off {
            self.kill_daemon(name);
            self.kernels.insert(name.clone(), Network::default());
        } else {
            self.start_daemon(name);
        }
    }

    /// Empties a node's store.
    pub fn lose_disk(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.store.clear();
        }
    }

    /// Schedules what the shell sees of its own kernel.
    pub(super) fn report_local_facts(&mut self, name: &NodeName) {
        let down = self.faults[name].wireguard_down;
        let broken = down.then(|| (Fault::TunnelDown, "wgl0 is gone".to_owned()));
        let facts = LocalFacts { broken, backend: "simulated".to_owned() };
        self.schedule(NOTICE, name, Event::Input(Input::Local(facts)));
    }

    /// Hands a node an input now.
    pub fn input(&mut self, name: &NodeName, input: Input) {
        let now = self.now();
        if let Some(core) = self.nodes.get_mut(name).and_then(|n| n.core.as_mut()) {
            self.inputs += 1;
            let bytes = postcard::to_stdvec(&(now, name, &input)).expect("plain data");
            for b in bytes {
                self.digest = (self.digest ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
            }
            self.recording.input(name, now, &input, core.forged_packets());
            core.handle_input(now, input);
        }
        self.last_run = Some(name.clone());
        self.run_effects(name);
        if let Some(core) = self.nodes.get(name).and_then(|n| n.core.as_ref()) {
            self.recording.done(name, core.forged_packets());
        }
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Lets time pass until a condition holds. Returns `false` if it never did.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(end) {
                return done(self);
            }
        }
    }

    /// Returns whether a new flow from one node's workload would reach the other's now.
    pub fn delivers(&self, from: &NodeName, to: &NodeName) -> bool {
        matches!(self.fate(from, to), Fate::Delivered { node, .. } if node == *to)
    }

    /// Returns the fate of packets of a new flow between two workloads: of a full-size one, or of the first size that does not arrive.
    pub fn fate(&self, from: &NodeName, to: &NodeName) -> Fate {
        self.fate_in(from, to, Family::V4).expect("every workload has an IPv4 address")
    }

    /// The same for a family. `None`: one of them has no address of it.
    fn fate_in(&self, from: &NodeName, to: &NodeName, family: Family) -> Option<Fate> {
        let packet = self.workload_packet(from, to, family, true)?;
        let walk = |length| self.data_path().walk(from, &Packet { length, ..packet.clone() });
        let arrives = |fate: &Fate| matches!(fate, Fate::Delivered { node, .. } if node == to);
        // Only relays with such a fault tell sizes apart.
        let windows = self.faults.values().filter_map(|f| f.sizes);
        let fates = windows.map(|(a, b)| walk(a.midpoint(b)));
        Some(fates.into_iter().find(|fate| !arrives(fate)).unwrap_or_else(|| walk(packet.length)))
    }

    /// Returns the nodes that packets of a new flow of this family cross between two workloads, both ends included; or why
    /// it does not arrive. `None`: one of them has no address of the family.
    pub fn crossed(
        &self,
        from: &NodeName,
        to: &NodeName,
        family: Family,
    ) -> Option<Result<Vec<NodeName>, Fate>> {
        Some(match self.fate_in(from, to, family)? {
            Fate::Delivered { node, crossed, wan_hops, .. } if node == *to => {
                // A path that loses nearly everything is no way.
                let dead = wan_hops.into_iter().find(|hop| {
                    self.weather.get(hop).is_some_and(|w| w.share() >= Weather::DEAD_FROM)
                });
                match dead {
                    Some((at, _)) => Err(Fate::Lost { at, why: "weather" }),
                    None => Ok(crossed),
                }
            }
            fate => Err(fate),
        })
    }

    /// Returns a full-size packet between two workloads. `None`: one of them has no address of the family.
    pub(super) fn workload_packet(
        &self,
        from: &NodeName,
        to: &NodeName,
        family: Family,
        new_flow: bool,
    ) -> Option<Packet> {
        let address = |node: &NodeName| {
            let all = &self.mesh.nodes[node].probe_addresses;
            all.iter().copied().find(|a| Family::of(a) == family)
        };
        let (source, target) = (address(from)?, address(to)?);
        let (length, bound_to, known_to) = (self.mesh.mtu, None, Vec::new());
        Some(Packet { source, target, length, new_flow, bound_to, known_to })
    }

    pub(super) fn data_path(&self) -> DataPath<'_> {
        let Self { mesh, kernels, faults, cuts, .. } = self;
        DataPath { mesh, kernels, faults, cuts }
    }

    /// Runs the next event before `end`. Returns `false` if there is none, and then it is `end`.
    pub(super) fn step(&mut self, end: Instant) -> bool {
        self.last_run = None;
        let timer = self.timers.first().map(|(at, _)| *at);
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let next = [timer, queued, Some(self.next_check)].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        if self.next_check <= next {
            self.next_check = self.next_check + CONNECTION_CHECK;
            self.check_connections();
        } else if queued.is_some_and(|at| at <= next) {
            let (_, (name, incarnation, event)) = self.queue.pop_first().expect("seen above");
            self.handle(&name, incarnation, event);
        } else if let Some((_, name)) = self.timers.first().cloned() {
            self.input(&name, Input::Timeout);
        }
        true
    }

    fn handle(&mut self, name: &NodeName, incarnation: u32, event: Event) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.incarnation != incarnation || self.faults[name].crashed {
            return;
        }
        if node.paused {
            // It waits in the daemon's socket buffers.
            self.schedule(PAUSE, name, event);
            return;
        }
        let input = match event {
            Event::Input(input) => input,
            Event::Programmed { revision, network } => {
                let error = self.program(name, *network);
                self.check_routes(name);
                Input::Programmed { revision, error }
            }
            Event::Drifted => return self.drifted(name),
            Event::Write(write) => return self.written(name, write),
            Event::HostileFrame => return self.send_hostile_frame(name),
        };
        self.input(name, input);
    }

    pub(super) fn schedule(&mut self, delay: Duration, name: &NodeName, event: Event) {
        let Some(incarnation) = self.nodes.get(name).map(|n| n.incarnation) else { return };
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), (name.clone(), incarnation, event));
    }

    fn run_effects(&mut self, name: &NodeName) {
        while let Some(effect) =
            self.nodes.get_mut(name).and_then(|n| n.core.as_mut()?.poll_effect())
        {
            self.recording.effect(name, &effect);
            match effect {
                Effect::SendProbe(probe) => self.send_probe(name, *probe),
                Effect::ForgetProbe { .. } | Effect::AdminReply { .. } => {}
                Effect::Reflect { from, to, bytes } => self.reflect(name, None, from, to, bytes),
                Effect::ReflectThrough { via, from, to, bytes } => {
                    self.reflect(name, Some(via), from, to, bytes);
                }
                Effect::SendFrame { to, frame } => self.send_frame(name, &to, *frame),
                Effect::Sign { id, statement } => {
                    let secret = self.nodes[name].secret;
                    let signature = Signer::new(&secret).sign(&statement);
                    let signed = Event::Input(Input::Signed { id, signature });
                    self.schedule(Duration::ZERO, name, signed);
                }
                Effect::Persist { ticket, location, write } => {
                    self.write(name, (ticket, location, write));
                }
                Effect::Program { revision, network } => {
                    let node = self.nodes.get_mut(name).expect("a name of ours");
                    node.wanted = Some((revision, network.clone()));
                    self.schedule(PROGRAM, name, Event::Programmed { revision, network });
                }
                Effect::SetPeers { peers } => {
                    let peers = peers.into_iter().map(|p| p.name).collect();
                    self.nodes.get_mut(name).expect("a name of ours").peers = peers;
                }
                Effect::ListenProbes { ports } => {
                    self.nodes.get_mut(name).expect("a name of ours").probe_ports = ports;
                }
                Effect::KeepFlows { flows } => self.keep_flows(name, &flows),
                Effect::CheckRoutes { checks } => {
                    self.nodes.get_mut(name).expect("a name of ours").checks = checks;
                    self.check_routes(name);
                }
                Effect::Log { level, message, fields } => {
                    let fields: Vec<String> =
                        fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let text = format!("{message} {}", fields.join(" "));
                    self.log.push(LogLine { at: self.now, node: name.clone(), level, text });
                }
            }
        }
        self.set_timer(name);
    }

    fn set_timer(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let due = node.core.as_ref().filter(|_| !node.paused).and_then(Node::poll_timeout);
        if due != node.timer {
            if let Some(old) = node.timer {
                self.timers.remove(&(old, name.clone()));
            }
            if let Some(at) = due {
                self.timers.insert((at, name.clone()));
            }
            node.timer = due;
        }
    }

    fn check_connections(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            if !self.is_awake(&name) {
                continue;
            }
            for peer in self.nodes[&name].peers.clone() {
                self.check_connection(&name, &peer);
            }
        }
    }
}
