//! A location's groups in virtual time, with a network that delays, loses and cuts, and disks that outlive crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::super::*;
use crate::admin::{AdminRequest, AdminResponse, Author};
use crate::capability::Capabilities;
use crate::ids::{Generation, NodeIndex, Slot};
use crate::mesh::{ControlPublicKey, InnerRange, Location, Node, Overlay, Policy};
use crate::verdict::{Cause, EvidenceRow, ProbeClass, SlotReport, Verdict};

pub const MS: u64 = 1000;
/// Wall clock at virtual time 0, microseconds.
const EPOCH_WALL: u64 = 1_700_000_000_000_000;

pub fn name(s: &str) -> NodeName {
    s.parse().unwrap()
}

/// Who gives all commands here.
pub fn author() -> Author {
    Author::new(name("cloud-0"), None)
}

/// Location `cloud` with these candidates, members and witnesses, and location `home` whose candidates observe it.
pub fn mesh(candidates: u8, members: u8, witnesses: u8) -> Mesh {
    let location = |n: &str, witnesses| Location {
        witnesses,
        ..Location::new(n.parse().unwrap(), Overlay::External)
    };
    let mut nodes = BTreeMap::new();
    let mut add = |n: String, location: &str, index: u16, slot: Option<Slot>| {
        let node = Node {
            name: name(&n),
            index: NodeIndex(index),
            location: location.parse().unwrap(),
            slot,
            priority: 100,
            endpoint: None,
            address: "10.0.0.1".parse().unwrap(),
            device: None,
            prefixes: Vec::new(),
            probe_addresses: Vec::new(),
            probe_addresses_written: false,
            wireguard_key: wgctl_plan::WgPublicKey([index as u8; 32]),
            control_key: ControlPublicKey([index as u8; 32]),
        };
        nodes.insert(node.name.clone(), node);
    };
    for i in 0..candidates {
        add(format!("cloud-{i}"), "cloud", 1 + u16::from(i), Some(Slot(i)));
    }
    for i in 0..members {
        add(format!("member-{i}"), "cloud", 20 + u16::from(i), None);
    }
    for i in 0..3 {
        add(format!("home-{i}"), "home", 40 + u16::from(i), Some(Slot(i)));
    }
    let witnesses = (0..witnesses).map(|i| name(&format!("home-{i}"))).collect();
    Mesh {
        name: "test".into(),
        generation: Generation(1),
        hash: [0; 32],
        index: Default::default(),
        inner: InnerRange { v4: "100.127.0.0/16".parse().unwrap(), v6: None },
        base_port: 51900,
        control_port: 7946,
        probe_ports: vec![8620],
        mtu: 1420,
        keepalive: 10,
        commands: Default::default(),
        proof: Default::default(),
        policy: Policy::default(),
        locations: [location("cloud", witnesses), location("home", vec![])]
            .into_iter()
            .map(|l| (l.name.clone(), l))
            .collect(),
        nodes,
    }
}

/// An entry of the last term at the end of the log on a disk.
pub fn append(disk: &mut StoredGroup, data: Vec<u8>) {
    use protobuf::Message as _;
    let log = disk.read(&"cloud".parse().unwrap()).unwrap().unwrap();
    let meta = log.snapshot.get_metadata();
    let (term, index) = log.entries.last().map_or((meta.term, meta.index), |e| (e.term, e.index));
    let index = index + 1;
    let entry = raft::eraftpb::Entry { term, index, data: data.into(), ..Default::default() };
    let entries = vec![(index, entry.write_to_bytes().unwrap())];
    disk.write(&Persist { entries, ..Persist::default() });
}

fn is_snapshot(message: &[u8]) -> bool {
    use protobuf::Message as _;
    let message = raft::eraftpb::Message::parse_from_bytes(message).unwrap();
    message.get_msg_type() == raft::eraftpb::MessageType::MsgSnapshot
}

enum Due {
    Raft { from: NodeName, to: NodeName, message: Vec<u8>, life: u64 },
    Persisted { node: NodeName, ticket: u64, write: Persist, life: u64 },
    PowerIsBack(NodeName),
    Hello,
    Reports,
}

pub struct Cluster {
    pub mesh: Arc<Mesh>,
    pub groups: BTreeMap<NodeName, Group>,
    pub disks: BTreeMap<NodeName, StoredGroup>,
    lives: BTreeMap<NodeName, u64>,
    queue: BTreeMap<(u64, u64), Due>,
    count: u64,
    pub time: u64,
    /// How far everybody's wall clock was set back, in microseconds.
    pub set_back: u64,
    rng: ChaCha8Rng,
    pub delay_ms: (u64, u64),
    /// How long a write takes, in ms.
    pub disk_ms: (u64, u64),
    pub loss_percent: u32,
    /// Pairs of nodes cut off from each other.
    pub cut: BTreeSet<(NodeName, NodeName)>,
    /// Disks that take no more writes, and what waits for them.
    pub hung: BTreeMap<NodeName, VecDeque<(u64, Persist)>>,
    /// Disks in which hard states fit and entries do not: they hang with the first of those.
    pub full: BTreeSet<NodeName>,
    /// Since when a disk has taken none of the writes that wait for it.
    pub stuck_since: BTreeMap<NodeName, u64>,
    /// Snapshots are lost on the way.
    pub drop_snapshots: bool,
    /// The power goes after so many more writes, before the daemon hears that the last of them is done. It comes back soon.
    pub power: BTreeMap<NodeName, u32>,
    /// What observers see: verdict by (observer, slot); forwarding if absent.
    pub verdicts: BTreeMap<(NodeName, Slot), Verdict>,
    pub observers: Vec<NodeName>,
    /// Epochs that observers say they know.
    pub claims: BTreeMap<NodeName, Epoch>,
    /// Nodes whose daemon understands other things than this version.
    pub capabilities: BTreeMap<NodeName, Capabilities>,
    /// Nodes whose daemon says that it cannot relay.
    pub broken: BTreeMap<NodeName, Cause>,
    seq: u64,
    /// (time, node, decision) as told.
    pub decided: Vec<(u64, NodeName, Decision, Event)>,
    /// Decisions that were on a voter's disk, not known to be committed.
    pub written: Vec<(NodeName, Decision)>,
    pub replies: Vec<(u64, AdminResponse)>,
    pub not_leader: usize,
    pub errors: Vec<String>,
    pub raft_leaders: Vec<(u64, String)>,
    pub ack: bool,
}

impl Cluster {
    pub fn new(mesh: Mesh, seed: u64) -> Self {
        let mesh = Arc::new(mesh);
        let mut cluster = Self {
            groups: BTreeMap::new(),
            disks: BTreeMap::new(),
            lives: BTreeMap::new(),
            queue: BTreeMap::new(),
            count: 0,
            time: 0,
            set_back: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            delay_ms: (1, 2),
            disk_ms: (1, 3),
            loss_percent: 0,
            cut: BTreeSet::new(),
            hung: BTreeMap::new(),
            full: BTreeSet::new(),
            stuck_since: BTreeMap::new(),
            drop_snapshots: false,
            power: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            observers: (0..3).map(|i| name(&format!("home-{i}"))).collect(),
            claims: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            broken: BTreeMap::new(),
            seq: 0,
            decided: Vec::new(),
            written: Vec::new(),
            replies: Vec::new(),
            not_leader: 0,
            errors: Vec::new(),
            raft_leaders: Vec::new(),
            ack: true,
            mesh,
        };
        for voter in cluster.mesh.voters_of(&"cloud".parse().unwrap()) {
            cluster.start(&voter);
        }
        cluster.push(5 * MS, Due::Hello);
        cluster.push(7 * MS, Due::Reports);
        cluster
    }

    pub fn now(&self) -> Now {
        Now { mono: Instant(self.time), wall: WallTime(EPOCH_WALL + self.time - self.set_back) }
    }

    fn push(&mut self, after: u64, due: Due) {
        self.count += 1;
        self.queue.insert((self.time + after, self.count), due);
    }

    pub fn start(&mut self, node: &NodeName) {
        let disk = self.disks.entry(node.clone()).or_default().clone();
        let location = "cloud".parse().unwrap();
        let seed = self.rng.next_u64();
        let group =
            Group::new(self.mesh.clone(), location, node.clone(), &disk, seed, self.now()).unwrap();
        *self.lives.entry(node.clone()).or_default() += 1;
        self.groups.insert(node.clone(), group);
        self.drain(node);
    }

    pub fn crash(&mut self, node: &NodeName) {
        self.groups.remove(node);
        *self.lives.get_mut(node).unwrap() += 1;
    }

    /// A disk that hangs takes its oldest write after all; false if none waits.
    pub fn write_one(&mut self, node: &NodeName) -> bool {
        let Some((ticket, write)) = self.hung.get_mut(node).and_then(VecDeque::pop_front) else {
            return false;
        };
        let life = self.lives[node];
        self.stuck_since.insert(node.clone(), self.time);
        if self.is_written(node) {
            self.happen(Due::Persisted { node: node.clone(), ticket, write, life });
        } else {
            // What was given to the disk before it hung goes first.
            self.write_later(node, ticket, write, life);
        }
        true
    }

    /// A disk that hung or was full takes all that waits for it.
    pub fn thaw(&mut self, node: &NodeName) {
        self.full.remove(node);
        self.stuck_since.remove(node);
        let life = self.lives[node];
        for (ticket, write) in self.hung.remove(node).unwrap_or_default() {
            self.write_later(node, ticket, write, life);
        }
    }

    fn write_later(&mut self, node: &NodeName, ticket: u64, write: Persist, life: u64) {
        let (min, max) = self.disk_ms;
        let after = min * MS + self.random((max - min + 1) * MS);
        // Writes are in order: nothing overtakes an earlier one.
        let last = self.queue.iter().filter_map(|((t, _), d)| match d {
            Due::Persisted { node: n, life: l, .. } if n == node && *l == life => Some(*t),
            _ => None,
        });
        let at = last.max().unwrap_or(0).max(self.time + after);
        self.push(at - self.time, Due::Persisted { node: node.clone(), ticket, write, life });
    }

    pub fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    fn drain(&mut self, node: &NodeName) {
        loop {
            let Some(output) = self.groups.get_mut(node).and_then(Group::poll_output) else {
                return;
            };
            match output {
                GroupOutput::Send { to, message } => {
                    let lost = self.random(100) < u64::from(self.loss_percent);
                    let cut = self.cut.contains(&(node.clone(), to.clone()));
                    let lost = lost || self.drop_snapshots && is_snapshot(&message);
                    if !lost && !cut {
                        let (min, max) = self.delay_ms;
                        let delay = min * MS + self.random((max - min + 1) * MS);
                        let life = self.lives.get(&to).copied().unwrap_or(0);
                        self.push(delay, Due::Raft { from: node.clone(), to, message, life });
                    }
                }
                GroupOutput::Persist { ticket, write }
                    if self.full.contains(node)
                        && !self.hung.contains_key(node)
                        && !(write.entries.is_empty() && write.snapshot.is_none()) =>
                {
                    self.hung.insert(node.clone(), VecDeque::from([(ticket, write)]));
                    self.stuck_since.entry(node.clone()).or_insert(self.time);
                }
                GroupOutput::Persist { ticket, write } if self.hung.contains_key(node) => {
                    self.hung.get_mut(node).unwrap().push_back((ticket, write));
                    self.stuck_since.entry(node.clone()).or_insert(self.time);
                }
                GroupOutput::Persist { ticket, write } => {
                    let life = self.lives[node];
                    self.write_later(node, ticket, write, life);
                }
                GroupOutput::Decided { decision, event } => {
                    if self.ack {
                        let observers = self.observers.clone();
                        let wall = WallTime(self.now().wall.0 + 10 * MS);
                        for observer in observers {
                            let now = self.now();
                            for group in self.groups.values_mut() {
                                group.handle_ack(now, &observer, decision.epoch, wall);
                                let blackout = Some(Duration::from_millis(120));
                                group.handle_verified(
                                    now,
                                    &observer,
                                    decision.epoch,
                                    wall,
                                    blackout,
                                );
                            }
                        }
                    }
                    self.decided.push((self.time, node.clone(), decision, *event));
                }
                GroupOutput::EventChanged(_) => {}
                GroupOutput::Written { decision } => self.written.push((node.clone(), decision)),
                GroupOutput::Reply { id, response } => self.replies.push((id, response)),
                GroupOutput::NotLeader { .. } => self.not_leader += 1,
                GroupOutput::Log { level, message, fields } => {
                    if level == LogLevel::Error {
                        self.errors.push(message.clone());
                    }
                    if message == "raft leader" {
                        self.raft_leaders.push((self.time, format!("{node}: {fields:?}")));
                    }
                }
            }
        }
    }

    /// Whatever comes next, a start from this disk must succeed.
    fn write(&mut self, node: &NodeName, write: &Persist) {
        let disk = self.disks.get_mut(node).unwrap();
        disk.write(write);
        if let Err(error) = disk.check(&"cloud".parse().unwrap()) {
            panic!("the disk of {node} after {write:?}: {error}");
        }
    }

    fn power_goes(&mut self, node: &NodeName) -> bool {
        let Some(left) = self.power.get_mut(node) else { return false };
        *left -= 1;
        let goes = *left == 0;
        if goes {
            self.power.remove(node);
        }
        goes
    }

    /// No write of this node is under way.
    pub fn is_written(&self, node: &NodeName) -> bool {
        let life = self.lives[node];
        !self.queue.values().any(
            |due| matches!(due, Due::Persisted { node: n, life: l, .. } if n == node && *l == life),
        )
    }

    /// A Raft message comes from a voter that is not what it should be.
    pub fn receive(&mut self, to: &NodeName, from: &NodeName, message: &[u8]) {
        let now = self.now();
        self.groups.get_mut(to).unwrap().handle_raft(now, from, message);
        self.drain(to);
    }

    fn happen(&mut self, due: Due) {
        let now = self.now();
        match due {
            Due::Raft { from, to, message, life } => {
                if self.lives.get(&to) == Some(&life)
                    && let Some(group) = self.groups.get_mut(&to)
                {
                    group.handle_raft(now, &from, &message);
                    self.drain(&to);
                }
            }
            Due::Persisted { node, ticket, write, life } => {
                if self.lives[&node] == life {
                    self.write(&node, &write);
                    if self.power_goes(&node) {
                        self.crash(&node);
                        self.push(300 * MS, Due::PowerIsBack(node));
                        return;
                    }
                    self.groups.get_mut(&node).unwrap().handle_persisted(now, ticket);
                    self.drain(&node);
                }
            }
            Due::PowerIsBack(node) => self.start(&node),
            Due::Hello => {
                self.hellos();
                self.push(1000 * MS, Due::Hello);
            }
            Due::Reports => {
                self.report_now();
                self.push(1000 * MS, Due::Reports);
            }
        }
    }

    fn hellos(&mut self) {
        let now = self.now();
        let nodes: Vec<NodeName> = self.groups.keys().cloned().collect();
        for from in &nodes {
            let group = &self.groups[from];
            let local = self.mesh.nodes[from].location.as_str() == "cloud";
            let reaches = self.mesh.candidates_of(&"cloud".parse().unwrap());
            let hello = Hello {
                capabilities: self.capabilities.get(from).copied().unwrap_or(Capabilities::OURS),
                node: from.clone(),
                generation: group.mesh.generation,
                mesh_hash: [0; 8],
                decision: group.state().decision.clone().filter(|_| local),
                raft_leader: group.raft_leader().filter(|_| group.has_quorum(now)).cloned(),
                broken: self.broken.get(from).copied(),
                reaches: reaches
                    .into_iter()
                    .filter(|(_, n)| !self.cut.contains(&(from.clone(), n.name.clone())))
                    .map(|(s, _)| s)
                    .collect(),
                digest: Vec::new(),
                proof: Default::default(),
                remote: Vec::new(),
            };
            for to in nodes.iter().filter(|n| *n != from) {
                if !self.cut.contains(&(from.clone(), to.clone())) {
                    self.groups.get_mut(to).unwrap().handle_hello(now, &hello);
                }
            }
            let facts = LocalFacts {
                broken: self.broken.get(from).map(|c| (*c, "broken".into())),
                backend: "kernel".into(),
            };
            self.groups.get_mut(from).unwrap().local_facts(now, &facts);
        }
        nodes.iter().for_each(|n| self.drain(n));
    }

    /// All observers report what they see now.
    pub fn report_now(&mut self) {
        let now = self.now();
        self.seq += 1;
        for observer in self.observers.clone() {
            let slots = self.mesh.ranking(&"cloud".parse().unwrap()).into_iter().map(|slot| {
                let verdict = self
                    .verdicts
                    .get(&(observer.clone(), slot))
                    .cloned()
                    .unwrap_or(Verdict::Forwarding);
                let lost = u32::from(verdict.is_degraded());
                SlotReport {
                    slot,
                    first_loss: verdict.is_degraded().then_some(now.wall),
                    suspected: verdict.is_degraded().then_some(now.wall),
                    since: now.wall,
                    rtt: Some(Duration::from_millis(20)),
                    loss: 0.0,
                    path_mtu: Some(1420),
                    services: (0, 0),
                    evidence: vec![EvidenceRow {
                        class: ProbeClass::NewFlow,
                        target: None,
                        address: None,
                        port: None,
                        sent: 4,
                        lost,
                        time_exceeded: 0,
                    }],
                    verdict,
                }
            });
            let report = Report {
                observer: observer.clone(),
                location: "cloud".parse().unwrap(),
                seq: self.seq,
                epoch: self.claims.get(&observer).copied().unwrap_or(Epoch(0)),
                abstains: false,
                full_rate: true,
                slots: slots.collect(),
            };
            let candidates: Vec<NodeName> = self.groups.keys().cloned().collect();
            for to in candidates {
                self.groups.get_mut(&to).unwrap().handle_report(now, report.clone());
                self.drain(&to);
            }
        }
    }

    /// These observers call a slot degraded from now on, and say so.
    pub fn condemn(&mut self, slot: u8, observers: &[&str]) {
        for observer in observers {
            let verdict = Verdict::Degraded { cause: Cause::NewFlow, direction: None };
            self.verdicts.insert((name(observer), Slot(slot)), verdict);
        }
        self.report_now();
    }

    pub fn heal(&mut self) {
        self.verdicts.clear();
        self.report_now();
    }

    pub fn run(&mut self, ms: u64) {
        let end = self.time + ms * MS;
        loop {
            let timer = self
                .groups
                .values()
                .filter_map(|g| g.poll_timeout())
                .min()
                .map_or(u64::MAX, |t| t.0);
            let event = self.queue.first_key_value().map_or(u64::MAX, |((t, _), _)| *t);
            let at = timer.min(event);
            if at > end {
                self.time = end;
                return;
            }
            self.time = self.time.max(at);
            if event <= timer {
                let (_, due) = self.queue.pop_first().unwrap();
                self.happen(due);
            } else {
                let now = self.now();
                let due: Vec<NodeName> = self
                    .groups
                    .iter()
                    .filter(|(_, g)| g.poll_timeout().is_some_and(|t| t <= now.mono))
                    .map(|(n, _)| n.clone())
                    .collect();
                for node in due {
                    self.groups.get_mut(&node).unwrap().handle_timeout(now);
                    let next = self.groups[&node].poll_timeout().unwrap();
                    assert!(next > now.mono, "{node} would spin at {:?}", now.mono);
                    self.drain(&node);
                }
            }
        }
    }

    /// Runs until it holds; panics after `ms`. Gives the time it took.
    pub fn until(&mut self, ms: u64, what: &str, mut holds: impl FnMut(&Cluster) -> bool) -> u64 {
        let begin = self.time;
        for _ in 0..ms {
            if holds(self) {
                return (self.time - begin) / MS;
            }
            self.run(1);
        }
        panic!(
            "not within {ms} ms: {what}; leaders {:?}, raft {:?}",
            self.leaders(),
            self.raft_leader()
        );
    }

    /// (epoch, leaders) as each living node has applied it.
    pub fn leaders(&self) -> BTreeMap<NodeName, (u64, Vec<u8>)> {
        let of = |g: &Group| {
            let d = g.state().decision.as_ref();
            (
                d.map_or(0, |d| d.epoch.0),
                d.map_or(vec![], |d| d.leaders.iter().map(|s| s.0).collect()),
            )
        };
        self.groups.iter().map(|(n, g)| (n.clone(), of(g))).collect()
    }

    /// The replicated state as each living node has it.
    pub fn states(&self) -> BTreeMap<NodeName, LocationState> {
        self.groups.iter().map(|(n, g)| (n.clone(), g.state().clone())).collect()
    }

    pub fn all_follow(&self, slot: u8) -> bool {
        self.leaders().values().all(|(_, l)| l.first() == Some(&slot))
    }

    /// The raft leader; of several, of which all but one do not know yet that they lead no more, that of the newest term.
    pub fn raft_leader(&self) -> Option<NodeName> {
        let leading = self.groups.iter().filter(|(_, g)| g.is_raft_leader());
        leading.max_by_key(|(_, g)| g.raft.term()).map(|(n, _)| n.clone())
    }

    /// The voters that the raft leader has committed.
    pub fn committed_voters(&self) -> BTreeSet<NodeName> {
        let Some(leader) = self.raft_leader() else { return BTreeSet::new() };
        let voters = self.groups[&leader].raft.voters();
        let all = self.mesh.nodes.values();
        all.filter(|n| voters.contains(&u64::from(n.index.0))).map(|n| n.name.clone()).collect()
    }

    pub fn settled(mesh: Mesh, seed: u64) -> Self {
        let mut cluster = Self::new(mesh, seed);
        cluster.until(8000, "first decision", |c| c.all_follow(0));
        cluster.until(5000, "raft leader off the leader", |c| {
            c.raft_leader().is_some_and(|n| n != name("cloud-0"))
        });
        cluster.run(12_000);
        cluster
    }

    /// Asks the raft leader for something, and does not wait for the answer.
    pub fn ask(&mut self, request: &AdminRequest) -> u64 {
        let id = self.replies.len() as u64 + 100;
        let leader = self.raft_leader().expect("a raft leader");
        let now = self.now();
        self.groups.get_mut(&leader).unwrap().handle_command(now, id, &author(), request);
        self.drain(&leader);
        id
    }

    pub fn command(&mut self, request: AdminRequest) -> AdminResponse {
        let id = self.ask(&request);
        self.until(11_000, "an answer", |c| c.replies.iter().any(|(i, _)| *i == id));
        self.replies.last().unwrap().1.clone()
    }

    pub fn event(&self) -> Event {
        let group = &self.groups[&self.raft_leader().unwrap()];
        let state = group.state();
        state.event_of(state.epoch()).unwrap().clone()
    }
}
