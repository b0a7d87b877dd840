//! A location's groups in virtual time, with a network that delays, loses and cuts, and disks that outlive crashes.

mod disk;
mod evidence;
mod mesh;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::super::*;
use crate::admin::{AdminRequest, AdminResponse};
use crate::capability::Capabilities;
use crate::fault::Fault;
use crate::ids::Slot;
use crate::verdict::Verdict;

pub use disk::append;
pub use mesh::{author, mesh, name};

pub const MS: u64 = 1000;
/// Wall clock at virtual time 0, microseconds.
const EPOCH_WALL: u64 = 1_700_000_000_000_000;

pub fn done(response: &AdminResponse) -> bool {
    matches!(response, AdminResponse::Done { .. })
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
    /// How far all wall clocks were set back, in microseconds.
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
    /// The power fails after this many more writes, before the daemon hears that the last of them is done. It comes back soon.
    pub power: BTreeMap<NodeName, u32>,
    /// What observers see: verdict by (observer, slot); forwarding if absent.
    pub verdicts: BTreeMap<(NodeName, Slot), Verdict>,
    pub observers: Vec<NodeName>,
    /// Epochs that observers say they know.
    pub claims: BTreeMap<NodeName, Epoch>,
    /// Nodes whose daemon understands other things than this version.
    pub capabilities: BTreeMap<NodeName, Capabilities>,
    /// Nodes whose daemon says that it cannot relay.
    pub broken: BTreeMap<NodeName, Fault>,
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
}
