//! The world: nodes, clock, network, and everything that is on its way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{
    Effect, Flow, Input, LogLevel, Persist, ProbeError, ProbeId, ProbeSend, Restored,
};
use leaderd_core::mesh::{Mesh, plane};
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::wire::Frame;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wgctl_plan::Network;

use super::Faults;
use super::path::{Fate, Packet, Terrain};

/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// How long after a path broke the control channel notices.
const PEER_DOWN_AFTER: Duration = Duration::from_secs(3);
/// How often broken and healed control connections are looked for.
const CONNECTION_CHECK: Duration = Duration::from_millis(500);
/// A disk's sync.
const SYNC: Duration = Duration::from_millis(1);
/// From asking for a network to having it.
const PROGRAM: Duration = Duration::from_millis(2);
/// Wall clock of virtual second 0.
const WALL_START: u64 = 1_800_000_000_000_000;

/// The network between the nodes.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    pub seed: u64,
    /// One way between locations.
    pub wan_latency: Duration,
    /// Added to it, uniformly drawn from 0 to this.
    pub wan_jitter: Duration,
    /// Share of packets lost between locations, each way.
    pub wan_loss: f64,
    /// One way within a location.
    pub lan_latency: Duration,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            wan_latency: Duration::from_millis(10),
            wan_jitter: Duration::ZERO,
            wan_loss: 0.0,
            lan_latency: Duration::from_micros(200),
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

struct SimNode {
    core: Option<Node>,
    secret: [u8; 32],
    store: BTreeMap<LocationName, Restored>,
    /// Counts restarts: what was on its way to an earlier life is dropped.
    life: u32,
    paused: bool,
    up: BTreeMap<NodeName, Instant>,
}

enum Happening {
    Input(Input),
    Programmed { revision: u64, network: Box<Network> },
    Persisted { ticket: leaderd_core::io::Ticket, location: LocationName, write: Box<Persist> },
}

/// All of it.
pub struct World {
    pub config: WorldConfig,
    pub mesh: Arc<Mesh>,
    pub faults: BTreeMap<NodeName, Faults>,
    pub kernels: BTreeMap<NodeName, Network>,
    pub log: Vec<LogLine>,
    now: Instant,
    rng: ChaCha8Rng,
    nodes: BTreeMap<NodeName, SimNode>,
    queue: BTreeMap<(Instant, u64), (NodeName, u32, Happening)>,
    sequence: u64,
    next_port: u16,
    /// Whose probe a source address belongs to.
    flows: BTreeMap<(NodeName, SocketAddr), ProbeId>,
    next_check: Instant,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World at {:?}", self.now)
    }
}

impl World {
    /// A world of this mesh; `secrets` are the nodes' X25519 keys.
    pub fn new(mesh: Mesh, secrets: &BTreeMap<NodeName, [u8; 32]>, config: WorldConfig) -> Self {
        let mut world = Self {
            faults: mesh.nodes.keys().map(|n| (n.clone(), Faults::default())).collect(),
            kernels: mesh.nodes.keys().map(|n| (n.clone(), Network::default())).collect(),
            mesh: Arc::new(mesh),
            log: Vec::new(),
            now: Instant(1_000_000),
            rng: ChaCha8Rng::seed_from_u64(config.seed),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            next_port: 20_000,
            flows: BTreeMap::new(),
            next_check: Instant(1_000_000),
            config,
        };
        for (name, secret) in secrets {
            let node = SimNode {
                core: None,
                secret: *secret,
                store: BTreeMap::new(),
                life: 0,
                paused: false,
                up: BTreeMap::new(),
            };
            world.nodes.insert(name.clone(), node);
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

    /// Starts a daemon from what its disk holds.
    pub fn start_daemon(&mut self, name: &NodeName) {
        let now = self.now();
        let seed = self.rng.next_u64();
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.life += 1;
        node.up.clear();
        let config = NodeConfig {
            mesh: self.mesh.clone(),
            me: name.clone(),
            keys: ProbeKeys::new(node.secret),
            restored: node.store.clone(),
            seed,
            resolved: BTreeMap::new(),
            lan_device: "eth0".parse().ok(),
        };
        node.core = Some(Node::new(config, now).expect("the node is in the mesh"));
        self.drain(name);
    }

    /// Ends a daemon; the kernel goes on.
    pub fn kill_daemon(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.core = None;
            node.life += 1;
        }
    }

    pub fn pause_daemon(&mut self, name: &NodeName, paused: bool) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.paused = paused;
        }
    }

    /// Switches a machine off, or on again.
    pub fn crash(&mut self, name: &NodeName, off: bool) {
        self.faults.get_mut(name).expect("a node of the mesh").crashed = off;
        if off {
            self.kill_daemon(name);
            self.kernels.insert(name.clone(), Network::default());
        } else {
            self.start_daemon(name);
        }
    }

    /// Hands a node an input now.
    pub fn input(&mut self, name: &NodeName, input: Input) {
        let now = self.now();
        if let Some(core) = self.nodes.get_mut(name).and_then(|n| n.core.as_mut()) {
            core.handle_input(now, input);
        }
        self.drain(name);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until a condition holds; false if it never did.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(end) {
                self.now = end;
                return done(self);
            }
        }
    }

    /// Would a new flow from one node's workload reach the other's now?
    pub fn delivers(&self, from: &NodeName, to: &NodeName) -> bool {
        let source = self.mesh.nodes[from].probe_addresses[0];
        let target = self.mesh.nodes[to].probe_addresses[0];
        let packet =
            Packet { source, target, length: self.mesh.mtu, new_flow: true, bound_to: None };
        matches!(self.terrain().walk(from, &packet), Fate::Delivered { node, .. } if node == *to)
    }

    fn terrain(&self) -> Terrain<'_> {
        Terrain { mesh: &self.mesh, kernels: &self.kernels, faults: &self.faults }
    }

    /// The next thing that happens before `end`; false if nothing does.
    fn step(&mut self, end: Instant) -> bool {
        let timer = self
            .nodes
            .iter()
            .filter(|(_, n)| !n.paused)
            .filter_map(|(name, n)| Some((n.core.as_ref()?.poll_timeout()?, name.clone())))
            .min();
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let next = [timer.as_ref().map(|(at, _)| *at), queued, Some(self.next_check)]
            .into_iter()
            .flatten()
            .min();
        let Some(next) = next.filter(|at| *at <= end) else { return false };
        self.now = self.now.max(next);
        if self.next_check <= next {
            self.next_check = self.next_check + CONNECTION_CHECK;
            self.check_connections();
        } else if queued.is_some_and(|at| at <= next) {
            let (_, (name, life, happening)) = self.queue.pop_first().expect("seen above");
            self.happen(&name, life, happening);
        } else if let Some((_, name)) = timer {
            self.input(&name, Input::Timeout);
        }
        true
    }

    fn happen(&mut self, name: &NodeName, life: u32, happening: Happening) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.life != life || self.faults[name].crashed {
            return;
        }
        if node.paused {
            // Waits in its socket buffers.
            self.sequence += 1;
            let later = self.now + Duration::from_millis(10);
            self.queue.insert((later, self.sequence), (name.clone(), life, happening));
            return;
        }
        let input = match happening {
            Happening::Input(input) => input,
            Happening::Programmed { revision, network } => {
                self.kernels.insert(name.clone(), *network);
                Input::Programmed { revision, error: None }
            }
            Happening::Persisted { ticket, location, write } => {
                store(node.store.entry(location).or_default(), *write);
                Input::Persisted { ticket }
            }
        };
        self.input(name, input);
    }

    fn later(&mut self, delay: Duration, name: &NodeName, happening: Happening) {
        let Some(life) = self.nodes.get(name).map(|n| n.life) else { return };
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), (name.clone(), life, happening));
    }

    fn drain(&mut self, name: &NodeName) {
        while let Some(effect) =
            self.nodes.get_mut(name).and_then(|n| n.core.as_mut()?.poll_effect())
        {
            match effect {
                Effect::SendProbe(probe) => self.send_probe(name, *probe),
                Effect::ForgetProbe { .. } | Effect::AdminReply { .. } => {}
                Effect::Reflect { from, to, bytes } => self.reflect(name, from, to, bytes),
                Effect::SendFrame { to, frame } => self.send_frame(name, &to, *frame),
                Effect::Persist { ticket, location, write } => {
                    self.later(SYNC, name, Happening::Persisted { ticket, location, write });
                }
                Effect::Program { revision, network } => {
                    self.later(PROGRAM, name, Happening::Programmed { revision, network });
                }
                Effect::Log { level, message, fields } => {
                    let fields: Vec<String> =
                        fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let text = format!("{message} {}", fields.join(" "));
                    self.log.push(LogLine { at: self.now, node: name.clone(), level, text });
                }
            }
        }
    }

    fn send_probe(&mut self, name: &NodeName, probe: ProbeSend) {
        if probe.payload.is_empty() {
            return;
        }
        let port = match probe.flow {
            Flow::Fresh => {
                self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
                self.next_port
            }
            Flow::Pinned(number) => 10_000 + (number % 8_000) as u16,
        };
        let source = SocketAddr::new(probe.source, port);
        self.flows.insert((name.clone(), source), probe.probe);
        let packet = Packet {
            source: probe.source,
            target: probe.target.ip(),
            length: (probe.payload.len() + HEADERS) as u16,
            new_flow: matches!(probe.flow, Flow::Fresh),
            bound_to: probe.via.map(plane),
        };
        match self.send_packet(name, &packet) {
            Ok((to, delay, ttl)) => {
                let input = Input::ProbeRequest {
                    from: source,
                    local: probe.target,
                    ttl,
                    bytes: probe.payload,
                };
                self.later(delay, &to, Happening::Input(input));
            }
            Err(Some(delay)) => {
                let error = ProbeError::TimeExceeded { from: None };
                self.later(
                    delay,
                    name,
                    Happening::Input(Input::ProbeError { probe: probe.probe, error }),
                );
            }
            Err(None) => {}
        }
    }

    fn reflect(&mut self, name: &NodeName, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        // The answer is of the same flow, so it is as old as the request: pinned flows come from low ports.
        let packet = Packet {
            source: from.ip(),
            target: to.ip(),
            length: (bytes.len() + HEADERS) as u16,
            new_flow: to.port() >= 20_000,
            bound_to: None,
        };
        if let Ok((observer, delay, _)) = self.send_packet(name, &packet)
            && let Some(probe) = self.flows.get(&(observer.clone(), to)).copied()
        {
            self.later(delay, &observer, Happening::Input(Input::ProbeReply { probe, bytes }));
        }
    }

    /// Where a packet arrives, when and with which hop limit; or after how long ICMP says that it does not.
    fn send_packet(
        &mut self,
        name: &NodeName,
        packet: &Packet,
    ) -> Result<(NodeName, Duration, u8), Option<Duration>> {
        match self.terrain().walk(name, packet) {
            Fate::Delivered { node, ttl, wan_hops, lan_hops } => {
                let mut delay = self.config.lan_latency * lan_hops + Duration::from_micros(50);
                for (a, b) in &wan_hops {
                    delay += self.wan_delay(a, b).ok_or(None)?;
                }
                Ok((node, delay, ttl))
            }
            Fate::Lost { .. } => Err(None),
            Fate::TimeExceeded { .. } => Err(Some(self.config.wan_latency * 2)),
        }
    }

    /// One WAN hop; `None`: lost.
    fn wan_delay(&mut self, a: &NodeName, b: &NodeName) -> Option<Duration> {
        let pass = (1.0 - self.config.wan_loss)
            * (1.0 - self.faults[a].wan_loss)
            * (1.0 - self.faults[b].wan_loss);
        if self.draw() >= pass {
            return None;
        }
        let jitter = self.draw();
        Some(self.config.wan_latency + self.config.wan_jitter.mul_f64(jitter))
    }

    fn draw(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One way over the control channel; `None` while there is no way.
    fn control_delay(&mut self, a: &NodeName, b: &NodeName) -> Option<Duration> {
        let alive = |n: &NodeName| !self.faults[n].crashed && self.nodes[n].core.is_some();
        if !alive(a) || !alive(b) {
            return None;
        }
        let (fa, fb) = (&self.faults[a], &self.faults[b]);
        if self.mesh.nodes[a].location == self.mesh.nodes[b].location {
            return (!fa.lan_cut && !fb.lan_cut).then_some(self.config.lan_latency);
        }
        if fa.wan_cut || fb.wan_cut {
            return None;
        }
        // QUIC repeats what is lost; each time costs about a round trip more.
        let mut total = Duration::ZERO;
        for _ in 0..8 {
            match self.wan_delay(a, b) {
                Some(delay) => return Some(total + delay),
                None => total += self.config.wan_latency * 3,
            }
        }
        None
    }

    fn send_frame(&mut self, from: &NodeName, to: &NodeName, frame: Frame) {
        if !self.nodes[from].up.contains_key(to)
            || self.nodes.get(to).is_none_or(|n| n.core.is_none())
        {
            return;
        }
        if let Some(delay) = self.control_delay(from, to) {
            let bytes = frame.encode();
            let frame = Frame::decode(&bytes).expect("what is encoded can be decoded");
            let input = Input::Frame { from: from.clone(), frame: Box::new(frame) };
            self.later(delay, to, Happening::Input(input));
        }
    }

    fn check_connections(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some(core) = self.core(&name) else { continue };
            let wanted: Vec<NodeName> = core.peers().into_iter().map(|p| p.name).collect();
            for peer in wanted {
                let delay = self.control_delay(&name, &peer);
                let now = self.now;
                let up = &mut self.nodes.get_mut(&name).expect("a name of ours").up;
                match (delay, up.get(&peer).copied()) {
                    (Some(delay), seen) => {
                        up.insert(peer.clone(), now);
                        if seen.is_none() {
                            let rtt_micros = (delay * 2).as_micros() as u64;
                            self.input(&name, Input::PeerUp { node: peer, rtt_micros });
                        }
                    }
                    (None, Some(seen)) if now.since(seen) >= PEER_DOWN_AFTER => {
                        up.remove(&peer);
                        self.input(&name, Input::PeerDown { node: peer });
                    }
                    (None, _) => {}
                }
            }
        }
    }
}

fn store(on_disk: &mut Restored, write: Persist) {
    if let Some(hard_state) = write.hard_state {
        on_disk.hard_state = Some(hard_state);
    }
    if let Some((first, _)) = write.entries.first() {
        on_disk.entries.retain(|(index, _)| index < first);
        on_disk.entries.extend(write.entries);
    }
    if let Some((index, bytes)) = write.snapshot {
        on_disk.entries.retain(|(i, _)| *i > index);
        on_disk.snapshot = Some((index, bytes));
    }
    if let Some(decision) = write.decision {
        on_disk.decision = Some(decision);
    }
}
