//! Whole daemons' cores that hear what bytes say: made-up frames of every kind between any two nodes, their own frames again and
//! damaged, disks that hang and go on, operators, other mesh files, and time that passes or does not.

mod frames;
mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::fault::Fault;
use leaderd_core::ids::{Generation, LocationName, NodeName};
use leaderd_core::io::{
    Effect, Input, LanDevice, LocalFacts, ProbeError, ProbeId, ProbeKind, Ticket,
};
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::proof::Signer;
use leaderd_core::state::{Event, MAX_EVENTS, MAX_STATE};
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::wire::Frame;

use crate::sim::meshes::{Site, mesh_of};
use frames::Maker;
use source::Source;

const WALL: u64 = 1_800_000_000_000_000;
/// One way, a sync, and a change of the kernel's network.
const WIRE: Duration = Duration::from_millis(2);
const SYNC: Duration = Duration::from_millis(1);
const PROGRAM: Duration = Duration::from_millis(2);
/// Until leaders are elected and probes have said that all is well.
const SETTLED: Duration = Duration::from_secs(4);
/// Steps of one input, and frames and probes that are remembered to be sent again or answered.
const MAX_STEPS: usize = 200;
const MAX_REMEMBERED: usize = 64;

/// One input, on a mesh that has just settled.
pub fn stateful(bytes: &[u8]) {
    let mut world = Settled::new();
    world.suffer(bytes);
    world.look();
}

/// A mesh of seven nodes: three candidates and a member in `cloud`, two candidates and a member in `home`.
#[derive(Debug)]
pub struct Settled {
    now: Instant,
    nodes: BTreeMap<NodeName, Node>,
    signers: BTreeMap<NodeName, Signer>,
    /// The mesh file, and another one in which a candidate of `cloud` is none.
    files: [Mesh; 2],
    queue: BTreeMap<(Instant, u64), (NodeName, Input)>,
    sequence: u64,
    /// Disks that take nothing at present, and what waits for them.
    hung: BTreeMap<NodeName, VecDeque<Ticket>>,
    /// Pairs whose frames are lost.
    cut: BTreeSet<(NodeName, NodeName)>,
    sent: VecDeque<(NodeName, NodeName, Frame)>,
    probes: VecDeque<(u16, NodeName, ProbeId)>,
    next_port: u16,
    peers: BTreeMap<NodeName, Vec<NodeName>>,
    /// Of the newest mesh file.
    generation: u64,
}

impl Settled {
    #[expect(clippy::new_without_default, reason = "it runs a mesh for seconds")]
    pub fn new() -> Self {
        let (mesh, secrets) =
            mesh_of(&[Site::new("cloud", 3, 1), Site::new("home", 2, 1)], Policy::default());
        let mut other = mesh.clone();
        let changed = other.edit();
        (changed.generation, changed.hash) = (Generation(2), [8; 32]);
        if let Some(node) = changed.nodes.get_mut(&name("cloud-2")) {
            (node.slot, node.endpoint) = (None, None);
        }
        let shared = Arc::new(mesh.clone());
        let mut world = Self {
            now: Instant(0),
            nodes: BTreeMap::new(),
            signers: secrets.iter().map(|(n, secret)| (n.clone(), Signer::new(secret))).collect(),
            files: [mesh, other],
            queue: BTreeMap::new(),
            sequence: 0,
            hung: BTreeMap::new(),
            cut: BTreeSet::new(),
            sent: VecDeque::new(),
            probes: VecDeque::new(),
            next_port: 10_000,
            peers: BTreeMap::new(),
            generation: 2,
        };
        for (n, (me, secret)) in secrets.iter().enumerate() {
            let config = NodeConfig {
                mesh: shared.clone(),
                me: me.clone(),
                keys: ProbeKeys::new(*secret),
                restored: BTreeMap::new(),
                seed: 7 + n as u64,
                resolved: BTreeMap::new(),
            };
            let node = Node::new(config, world.time()).expect("a node of the mesh");
            world.nodes.insert(me.clone(), node);
            world.input(me, Input::LanDevice(LanDevice::default()));
        }
        for me in world.names() {
            for node in world.peers[&me].clone() {
                world.later(WIRE, &me, Input::PeerUp { node, rtt_micros: 4_000 });
            }
        }
        world.run(SETTLED);
        for location in ["cloud", "home"] {
            let location: LocationName = location.parse().expect("a name");
            // Plain members know nothing of other locations: their candidates route for them.
            let needs = |n: &&leaderd_core::mesh::Node| n.slot.is_some() || n.location == location;
            let knows =
                |n: &leaderd_core::mesh::Node| world.nodes[&n.name].decision(&location).is_some();
            assert!(world.files[0].nodes.values().filter(needs).all(knows), "not settled");
            for node in world.files[0].nodes.values().filter(needs) {
                let locations = world.nodes[&node.name].status(world.time()).locations;
                let own = locations.into_iter().find(|l| l.name == location);
                let notes = own.map(|l| l.notes).unwrap_or_default();
                let unproved = notes.iter().any(|n| n.contains("not proved"));
                assert!(!unproved, "{}: {notes:?}", node.name);
            }
        }
        world
    }

    fn names(&self) -> Vec<NodeName> {
        self.nodes.keys().cloned().collect()
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: WallTime(WALL + self.now.0) }
    }

    /// Does what the bytes say.
    pub fn suffer(&mut self, bytes: &[u8]) {
        let mut source = Source(bytes);
        for _ in 0..MAX_STEPS {
            if source.is_empty() {
                return;
            }
            self.step(&mut source);
            // Often nothing comes in between.
            let pause = [0, 0, 0, 1, 2, 5, 50, 700][source.below(8)];
            self.run(Duration::from_millis(pause));
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        let names = self.names();
        let (from, to) = (source.pick(&names), source.pick(&names));
        match source.byte() % 16 {
            0..=6 => {
                let mesh = self.files[0].clone();
                let wall = self.time().wall;
                let signer = self.signers[&from].clone();
                let mut maker =
                    Maker { source, mesh: &mesh, wall, from: from.clone(), to: to.clone(), signer };
                let frame = maker.frame();
                // As it would come over the network, if it would.
                if let Ok(frame) = Frame::decode(&frame.encode()) {
                    self.input(&to, Input::Frame { from, frame: Box::new(frame) });
                }
            }
            7 if !self.sent.is_empty() => {
                let (from, to, mut frame) = self.sent[source.below(self.sent.len())].clone();
                if let Frame::Raft { message, .. } = &mut frame
                    && source.once_in(2)
                    && !message.is_empty()
                {
                    let at = source.below(message.len());
                    message[at] = source.byte();
                }
                self.input(&to, Input::Frame { from, frame: Box::new(frame) });
            }
            8 => {
                if let Ok(frame) = Frame::decode(&source.bytes(60)) {
                    self.input(&to, Input::Frame { from, frame: Box::new(frame) });
                }
            }
            9 | 10 => match self.hung.get_mut(&to) {
                None => drop(self.hung.insert(to, VecDeque::new())),
                Some(waiting) if source.once_in(2) => {
                    // Some of what waits, the rest later.
                    let n = source.below(waiting.len() + 1);
                    let written = waiting.drain(..n).next_back();
                    if let Some(ticket) = written {
                        self.input(&to, Input::Persisted { ticket });
                    }
                }
                Some(_) => self.goes_on(&to),
            },
            11 => {
                let mesh = self.files[0].clone();
                let wall = self.time().wall;
                let signer = self.signers[&from].clone();
                let mut maker = Maker { source, mesh: &mesh, wall, from, to: to.clone(), signer };
                let request = maker.request();
                let user = source.option(Source::text);
                self.input(&to, Input::Admin { id: source.number(), user, request });
            }
            12 => {
                if !self.cut.remove(&(from.clone(), to.clone())) {
                    self.cut.insert((from.clone(), to.clone()));
                }
                let input = match source.once_in(2) {
                    true => Input::PeerDown { node: from },
                    false => Input::PeerUp { node: from, rtt_micros: source.number() },
                };
                self.input(&to, input);
            }
            13 => self.probe(source),
            14 => {
                let broken =
                    source.option(|s| (s.pick(&[Fault::SelfReported, Fault::Loss]), s.text()));
                let facts = LocalFacts { broken, backend: "kernel".into() };
                self.input(&to, Input::Local(facts));
            }
            _ => self.other_file(source, &to),
        }
    }

    fn probe(&mut self, source: &mut Source<'_>) {
        if self.probes.is_empty() {
            return;
        }
        let (_, node, probe) = self.probes[source.below(self.probes.len())].clone();
        let input = match source.byte() % 4 {
            0 => Input::ProbeReply { probe, bytes: source.bytes(80) },
            1 => Input::ProbeError { probe, error: ProbeError::TimeExceeded { from: None } },
            2 => {
                let mtu = source.option(|s| s.small() as u16);
                Input::ProbeError { probe, error: ProbeError::TooBig { mtu, from: None } }
            }
            _ => Input::ProbeError { probe, error: ProbeError::Local { errno: 101 } },
        };
        self.input(&node, input);
    }

    fn other_file(&mut self, source: &mut Source<'_>, to: &NodeName) {
        let file = source.below(2);
        let mut mesh = Box::new(self.files[file].clone());
        // An older one is refused.
        self.generation += 1;
        mesh.edit().generation = Generation(self.generation);
        self.input(to, Input::MeshChanged(mesh));
    }

    fn goes_on(&mut self, node: &NodeName) {
        let waiting = self.hung.remove(node).unwrap_or_default();
        if let Some(ticket) = waiting.into_iter().next_back() {
            self.later(SYNC, node, Input::Persisted { ticket });
        }
    }

    /// Lets all disks go on and time pass, so that everything in flight ends. Then reads everything that a core shows.
    pub fn look(&mut self) {
        for node in self.names() {
            self.goes_on(&node);
        }
        self.cut.clear();
        self.run(Duration::from_secs(3));
        for node in self.nodes.values() {
            let status = node.status(self.time());
            serde_json::to_string(&status).expect("plain data");
            let events = node.events();
            serde_json::to_string(&events).expect("plain data");
            for location in status.locations {
                let kept: Vec<&Event> = node.events_of(&location.name).collect();
                let size: usize = kept.iter().map(|e| e.size()).sum();
                assert!(kept.len() <= 2 * MAX_EVENTS && size <= 2 * MAX_STATE, "{size} bytes");
            }
            node.counters();
            node.poll_timeout();
        }
    }

    fn later(&mut self, after: Duration, node: &NodeName, input: Input) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (node.clone(), input));
    }

    fn input(&mut self, to: &NodeName, input: Input) {
        let now = self.time();
        if let Some(node) = self.nodes.get_mut(to) {
            node.handle_input(now, input);
            self.drain(to);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.nodes.iter().filter_map(|(n, node)| Some((node.poll_timeout()?, n)));
            let timer = timers.min().map(|(at, n)| (at, n.clone()));
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            match (timer, queued) {
                (Some((at, node)), queued) if at <= end && queued.is_none_or(|q| at < q) => {
                    self.now = self.now.max(at);
                    self.input(&node, Input::Timeout);
                }
                (_, Some(at)) if at <= end => {
                    self.now = self.now.max(at);
                    if let Some((_, (node, input))) = self.queue.pop_first() {
                        self.input(&node, input);
                    }
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn drain(&mut self, me: &NodeName) {
        while let Some(effect) = self.nodes.get_mut(me).and_then(Node::poll_effect) {
            match effect {
                Effect::SendFrame { to, frame } => self.send(me, to, *frame),
                Effect::Persist { ticket, .. } => match self.hung.get_mut(me) {
                    Some(waiting) => waiting.push_back(ticket),
                    None => self.later(SYNC, me, Input::Persisted { ticket }),
                },
                Effect::Program { revision, .. } => {
                    self.later(PROGRAM, me, Input::Programmed { revision, error: None });
                }
                Effect::SendProbe(probe) => {
                    let at = probe.target.ip();
                    let mesh = self.nodes[me].mesh().clone();
                    let holder = mesh.nodes.values().find(|n| {
                        let inner = |s| IpAddr::from(mesh.inner4(n, s));
                        n.probe_addresses.contains(&at) || probe.via.is_some_and(|s| inner(s) == at)
                    });
                    let Some(holder) = holder.map(|n| n.name.clone()) else { continue };
                    let ProbeKind::Stamp { packet, .. } = probe.kind else { continue };
                    self.next_port = self.next_port.checked_add(1).unwrap_or(10_000);
                    remember(&mut self.probes, (self.next_port, me.clone(), probe.probe));
                    let request = Input::ProbeRequest {
                        from: SocketAddr::new(probe.source, self.next_port),
                        local: probe.target,
                        ttl: 63,
                        bytes: packet,
                    };
                    self.later(WIRE, &holder, request);
                }
                Effect::Reflect { to, bytes, .. } | Effect::ReflectThrough { to, bytes, .. } => {
                    let asked = self.probes.iter().find(|(port, ..)| *port == to.port()).cloned();
                    if let Some((_, node, probe)) = asked {
                        self.later(WIRE, &node, Input::ProbeReply { probe, bytes });
                    }
                }
                Effect::Sign { id, statement } => {
                    let signature = self.signers[me].sign(&statement);
                    self.later(Duration::ZERO, me, Input::Signed { id, signature });
                }
                Effect::SetPeers { peers } => {
                    let peers = peers.into_iter().map(|p| p.name).collect();
                    self.peers.insert(me.clone(), peers);
                }
                Effect::ForgetProbe { .. }
                | Effect::AdminReply { .. }
                | Effect::Log { .. }
                | Effect::ListenProbes { .. }
                | Effect::KeepFlows { .. }
                | Effect::CheckRoutes { .. } => {}
            }
        }
    }

    /// What a node of ours sends passes at another, whatever was done to it.
    fn send(&mut self, from: &NodeName, to: NodeName, frame: Frame) {
        assert_eq!(frame.check(), Ok(()), "{from} sends {frame:?}");
        let bytes = frame.encode();
        let frame = Frame::decode(&bytes)
            .unwrap_or_else(|e| panic!("{from} sends {} that is refused: {e}", frame.kind()));
        remember(&mut self.sent, (from.clone(), to.clone(), frame.clone()));
        if !self.cut.contains(&(from.clone(), to.clone())) {
            self.later(WIRE, &to, Input::Frame { from: from.clone(), frame: Box::new(frame) });
        }
    }
}

fn remember<T>(list: &mut VecDeque<T>, what: T) {
    list.push_back(what);
    if list.len() > MAX_REMEMBERED {
        list.pop_front();
    }
}

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}
