//! One daemon's whole core: probes, Raft groups, known decisions and the network they ask for, as one state machine.
//!
//! Call [`Node::handle_input`] with everything that happens, then drain [`Node::poll_effect`], then sleep until
//! [`Node::poll_timeout`]. The parts never call each other: each one's outputs are carried to the next here, always in
//! the direction probe → evidence → verdict → decision → state → topology → plan.

mod admin;
mod announce;
mod fallback;
mod frames;
mod hello;
mod known;
mod peers;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use wgctl_plan::{InterfaceName, Network};

use crate::group::{Group, GroupError, GroupOutput};
use crate::ids::{LocationName, NodeName, Slot};
use crate::io::{Effect, Input, LocalFacts, LogLevel, Persist, Restored, Ticket};
use crate::mesh::Mesh;
use crate::observe::{Observer, ObserverOutput};
use crate::probe::keys::ProbeKeys;
use crate::probe::reflect::Reflector;
use crate::state::Decision;
use crate::time::{Duration, Instant, Now};
use crate::topology::{self, TopologyInput};
use crate::wire::Frame;

use admin::Forwards;
use announce::Announcer;
use fallback::Fallback;
use hello::Heard;
use known::Known;
pub use peers::{Peer, PeerAddress};

/// Outputs of the parts carried in one go, before something is taken for a loop of ours.
const MAX_PUMP: usize = 100_000;

/// How long after a failed attempt the kernel is asked again to look as desired.
const PROGRAM_RETRY: Duration = Duration::from_secs(1);

/// What a node is made from.
#[derive(Debug)]
pub struct NodeConfig {
    pub mesh: Arc<Mesh>,
    pub me: NodeName,
    pub keys: ProbeKeys,
    /// What the store holds, by location.
    pub restored: BTreeMap<LocationName, Restored>,
    pub seed: u64,
    /// DNS names of endpoints, as far as they resolve.
    pub resolved: BTreeMap<String, IpAddr>,
    /// The device that holds this node's LAN address.
    pub lan_device: Option<InterfaceName>,
}

/// Why a node cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(
        "the mesh file has no node {0}: name this node with --node, or add it to the mesh file"
    )]
    UnknownNode(NodeName),
    #[error("Raft group of location {location}: {source}")]
    Group { location: LocationName, source: GroupError },
}

/// One daemon's core.
pub struct Node {
    mesh: Arc<Mesh>,
    me: NodeName,
    location: LocationName,
    keys: ProbeKeys,
    seed: u64,
    resolved: BTreeMap<String, IpAddr>,
    lan_device: Option<InterfaceName>,

    observer: Option<Observer>,
    reflector: Reflector,
    groups: BTreeMap<LocationName, Group>,
    known: Known,
    announcer: Announcer,
    heard: Heard,
    fallback: Fallback,
    forwards: Forwards,
    facts: LocalFacts,
    /// The groups that this node leads (Raft), to notice when it begins to.
    raft_leading: BTreeSet<LocationName>,

    network: Network,
    revision: u64,
    program_retry: Option<Instant>,
    persists: BTreeMap<Ticket, (LocationName, u64)>,
    last_ticket: u64,
    effects: VecDeque<Effect>,
    counters: BTreeMap<String, u64>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("me", &self.me)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Node {
    pub fn new(config: NodeConfig, now: Now) -> Result<Self, NodeError> {
        let NodeConfig { mesh, me, keys, mut restored, seed, resolved, lan_device } = config;
        let Some(node) = mesh.node(&me) else { return Err(NodeError::UnknownNode(me)) };
        let location = node.location.clone();
        let is_candidate = node.slot.is_some();

        let mut known = Known::default();
        for (location, stored) in &restored {
            if let Some(decision) =
                stored.decision.as_deref().and_then(|b| postcard::from_bytes(b).ok())
            {
                known.restore(location, decision);
            }
        }
        let mut groups = BTreeMap::new();
        for location in mesh.locations.keys().filter(|l| mesh.voters_of(l).contains(&me)) {
            let stored = restored.remove(location).unwrap_or_default();
            let group =
                Group::new(mesh.clone(), location.clone(), me.clone(), stored, seed, now)
                    .map_err(|source| NodeError::Group { location: location.clone(), source })?;
            if let Some(decision) = &group.state().decision {
                known.restore(location, decision.clone());
            }
            groups.insert(location.clone(), group);
        }
        let observer =
            is_candidate.then(|| Observer::new(mesh.clone(), me.clone(), keys.clone(), seed, now));
        let reflector = Reflector::new(mesh.clone(), me.clone(), keys.clone());

        let mut this = Self {
            heard: Heard::new(now.mono),
            fallback: Fallback::new(now.mono),
            mesh,
            me,
            location,
            keys,
            seed,
            resolved,
            lan_device,
            observer,
            reflector,
            groups,
            known,
            announcer: Announcer::default(),
            forwards: Forwards::default(),
            facts: LocalFacts::default(),
            raft_leading: BTreeSet::new(),
            network: Network::default(),
            revision: 0,
            program_retry: None,
            persists: BTreeMap::new(),
            last_ticket: 0,
            effects: VecDeque::new(),
            counters: BTreeMap::new(),
        };
        this.reprogram(true);
        this.pump(now);
        Ok(this)
    }

    /// Something happened.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::ProbeReply { probe, bytes } => {
                if let Some(observer) = &mut self.observer {
                    observer.handle_reply(now, probe, &bytes);
                }
            }
            Input::ProbeError { probe, error } => {
                if let Some(observer) = &mut self.observer {
                    observer.handle_error(now, probe, error);
                }
            }
            Input::ProbeRequest { from, local, ttl, bytes } => {
                match self.reflector.handle(now, from, local, ttl, &bytes) {
                    Ok(bytes) => {
                        self.count("probes.reflected");
                        self.effects.push_back(Effect::Reflect { from: local, to: from, bytes });
                    }
                    Err(reject) => {
                        self.ignored(now, &from.ip().to_string(), &format!("probe: {reject}"))
                    }
                }
            }
            Input::Frame { from, frame } => self.handle_frame(now, from, *frame),
            Input::PeerUp { node, rtt_micros } => {
                self.peer_up(now, node, Duration::from_micros(rtt_micros))
            }
            Input::PeerDown { node } => self.peer_down(now, &node),
            Input::Persisted { ticket } => self.persisted(now, ticket),
            Input::Programmed { revision, error } => self.programmed(now, revision, error),
            Input::Local(facts) => self.local_facts(now, facts),
            Input::Admin { id, request } => self.admin(now, id, request),
            Input::Resolved(resolved) => {
                if self.resolved != resolved {
                    self.resolved = resolved;
                    self.reprogram(false);
                }
            }
            Input::MeshChanged(mesh) => self.mesh_changed(now, *mesh),
        }
        self.pump(now);
    }

    /// The next thing to do, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Timeout`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let parts = self.groups.values().map(Group::poll_timeout);
        parts
            .chain([
                self.observer.as_ref().and_then(Observer::poll_timeout),
                self.announcer.poll_timeout(),
                Some(self.heard.next_hello),
                Some(self.fallback.next_check),
                self.forwards.poll_timeout(),
                self.program_retry,
            ])
            .flatten()
            .min()
    }

    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// The decision that this node knows of a location.
    pub fn decision(&self, location: &LocationName) -> Option<&Decision> {
        self.known.decision(location)
    }

    /// What the kernel is to look like now.
    pub fn desired(&self) -> &Network {
        &self.network
    }

    /// Counts since start, by dotted name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.counters.clone()
    }

    fn handle_timeout(&mut self, now: Now) {
        if let Some(observer) = &mut self.observer
            && observer.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            observer.handle_timeout(now);
        }
        for group in self.groups.values_mut() {
            if group.poll_timeout().is_some_and(|at| at <= now.mono) {
                group.handle_timeout(now);
            }
        }
        if self.heard.next_hello <= now.mono {
            self.send_hellos(now);
        }
        if self.fallback.next_check <= now.mono {
            self.check_fallback(now);
        }
        if self.program_retry.is_some_and(|at| at <= now.mono) {
            self.reprogram(true);
        }
        self.announcer.handle_timeout(now.mono, &mut self.effects);
        self.expire_forwards(now);
    }

    /// Carries the parts' outputs on until all are quiet.
    fn pump(&mut self, now: Now) {
        for _ in 0..MAX_PUMP {
            if let Some(output) = self.observer.as_mut().and_then(Observer::poll_output) {
                self.from_observer(now, output);
                continue;
            }
            let next =
                self.groups.iter_mut().find_map(|(l, g)| Some((l.clone(), g.poll_output()?)));
            match next {
                Some((location, output)) => self.from_group(now, location, output),
                None => {
                    return self.watch_raft_leadership(now);
                }
            }
        }
        self.log(LogLevel::Error, "the core's parts keep each other busy: this is a defect", []);
    }

    fn from_observer(&mut self, now: Now, output: ObserverOutput) {
        match output {
            ObserverOutput::Send(probe) => {
                self.count("probes.sent");
                self.effects.push_back(Effect::SendProbe(Box::new(probe)));
            }
            ObserverOutput::Forget(probe) => self.effects.push_back(Effect::ForgetProbe { probe }),
            ObserverOutput::Report(report) => {
                if let Some(group) = self.groups.get_mut(&report.location) {
                    group.handle_report(now, report.clone());
                }
                let location = report.location.clone();
                self.to_candidates(&location, &Frame::Report(report));
            }
            ObserverOutput::Verified { location, epoch, at, blackout } => {
                let me = self.me.clone();
                if let Some(group) = self.groups.get_mut(&location) {
                    group.handle_verified(now, &me, epoch, at, blackout);
                }
                let blackout_micros =
                    blackout.map(|b| u64::try_from(b.as_micros()).unwrap_or(u64::MAX));
                self.to_candidates(
                    &location,
                    &Frame::Verified { location: location.clone(), epoch, at, blackout_micros },
                );
            }
            ObserverOutput::Log { level, message, fields } => {
                self.effects.push_back(Effect::Log { level, message, fields })
            }
        }
    }

    fn from_group(&mut self, now: Now, location: LocationName, output: GroupOutput) {
        match output {
            GroupOutput::Send { to, message } => self.send(&to, Frame::Raft { location, message }),
            GroupOutput::Persist { ticket, write } => self.persist(location, Some(ticket), write),
            GroupOutput::Decided { decision, event } => {
                self.count("decisions");
                self.adopt(decision.clone());
                self.announce_if_ours(now, decision, Some(event));
            }
            GroupOutput::EventChanged(event) => {
                if self.groups.get(&location).is_some_and(Group::is_raft_leader)
                    && let Some(decision) = self.known.decision(&location).cloned()
                    && event.epoch == decision.epoch
                {
                    self.announcer.update_event(
                        decision,
                        event,
                        &self.audience(&location),
                        &mut self.effects,
                    );
                }
            }
            GroupOutput::Reply { id, response } => self.command_answered(id, response),
            GroupOutput::NotLeader { id, request } => {
                self.command_to_raft_leader(now, &location, id, request)
            }
            GroupOutput::Log { level, message, mut fields } => {
                fields.push(("location.name".into(), location.to_string()));
                self.effects.push_back(Effect::Log { level, message, fields });
            }
        }
    }

    fn persist(&mut self, location: LocationName, group_ticket: Option<u64>, write: Persist) {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        if let Some(group_ticket) = group_ticket {
            self.persists.insert(ticket, (location.clone(), group_ticket));
        }
        self.effects.push_back(Effect::Persist { ticket, location, write: Box::new(write) });
    }

    fn persisted(&mut self, now: Now, ticket: Ticket) {
        let rest = self.persists.split_off(&Ticket(ticket.0 + 1));
        for (_, (location, group_ticket)) in std::mem::replace(&mut self.persists, rest) {
            if let Some(group) = self.groups.get_mut(&location) {
                group.handle_persisted(now, group_ticket);
            }
        }
    }

    /// Computes the desired network and asks for it if it changed, or in any case.
    fn reprogram(&mut self, always: bool) {
        let leaders: BTreeMap<LocationName, Vec<Slot>> = self
            .mesh
            .locations
            .keys()
            .filter_map(|l| Some((l.clone(), self.effective_leaders(l)?)))
            .collect();
        let network = topology::desired(&TopologyInput {
            mesh: &self.mesh,
            me: &self.me,
            leaders: &leaders,
            resolved: &self.resolved,
            lan_device: self.lan_device.as_ref(),
        });
        if always || network != self.network {
            self.network = network;
            self.revision += 1;
            self.program_retry = None;
            self.effects.push_back(Effect::Program {
                revision: self.revision,
                network: Box::new(self.network.clone()),
            });
        }
        self.known.programming(self.revision);
    }

    fn programmed(&mut self, now: Now, revision: u64, error: Option<String>) {
        if let Some(error) = error {
            self.count("program.failed");
            self.log(LogLevel::Error, "cannot program the network", [("error", error)]);
            if revision == self.revision {
                self.program_retry = Some(now.mono + PROGRAM_RETRY);
            }
            return;
        }
        for (decision, announced_by) in self.known.programmed(revision, now.wall) {
            self.decision_in_force(now, &decision, &announced_by);
        }
    }

    fn local_facts(&mut self, now: Now, facts: LocalFacts) {
        if facts.broken != self.facts.broken {
            match &facts.broken {
                Some((cause, why)) => self.log(
                    LogLevel::Error,
                    "this node cannot relay",
                    [("cause", cause.to_string()), ("why", why.clone())],
                ),
                None => self.log(LogLevel::Info, "this node can relay", []),
            }
            // Said at once, not with the next hello.
            self.heard.next_hello = now.mono;
        }
        self.facts = facts;
        if let Some(group) = self.groups.get_mut(&self.location) {
            group.local_facts(now, &self.facts);
        }
        if self.heard.next_hello <= now.mono {
            self.send_hellos(now);
        }
    }

    fn mesh_changed(&mut self, now: Now, mesh: Mesh) {
        let Some(node) = mesh.node(&self.me) else {
            self.log(
                LogLevel::Error,
                "the new mesh file has no node of this name: kept the old one",
                [],
            );
            return;
        };
        if node.location != self.location {
            self.log(
                LogLevel::Error,
                "the new mesh file moves this node to another location: kept the old one; stop leaderd, run `leaderd reset`, start it again",
                [("location.new", node.location.to_string())],
            );
            return;
        }
        let is_candidate = node.slot.is_some();
        let mesh = Arc::new(mesh);
        self.mesh = mesh.clone();
        match (&mut self.observer, is_candidate) {
            (Some(observer), true) => observer.set_mesh(now, mesh.clone()),
            (None, true) => {
                self.observer = Some(Observer::new(
                    mesh.clone(),
                    self.me.clone(),
                    self.keys.clone(),
                    self.seed,
                    now,
                ));
            }
            (_, false) => self.observer = None,
        }
        self.reflector.set_mesh(mesh.clone());
        self.groups.retain(|location, _| mesh.locations.contains_key(location));
        for location in mesh.locations.keys() {
            if let Some(group) = self.groups.get_mut(location) {
                group.set_mesh(now, mesh.clone());
            } else if mesh.voters_of(location).contains(&self.me) {
                match Group::new(
                    mesh.clone(),
                    location.clone(),
                    self.me.clone(),
                    Restored::default(),
                    self.seed,
                    now,
                ) {
                    Ok(group) => drop(self.groups.insert(location.clone(), group)),
                    Err(error) => self.log(
                        LogLevel::Error,
                        "cannot join a Raft group",
                        [("location.name", location.to_string()), ("error", error.to_string())],
                    ),
                }
            }
        }
        self.known.retain(&mesh);
        self.announcer.retain(&mesh);
        self.log(
            LogLevel::Info,
            "mesh file applied",
            [("mesh.generation", mesh.generation.to_string())],
        );
        self.reprogram(false);
    }

    fn send(&mut self, to: &NodeName, frame: Frame) {
        self.effects.push_back(Effect::SendFrame { to: to.clone(), frame: Box::new(frame) });
    }

    /// To every candidate of a location but this node.
    fn to_candidates(&mut self, location: &LocationName, frame: &Frame) {
        let mesh = self.mesh.clone();
        for node in mesh.candidates_of(location).values() {
            if node.name != self.me {
                self.send(&node.name, frame.clone());
            }
        }
    }

    fn count(&mut self, what: &str) {
        match self.counters.get_mut(what) {
            Some(n) => *n += 1,
            None => drop(self.counters.insert(what.to_owned(), 1)),
        }
    }

    fn log<const N: usize>(&mut self, level: LogLevel, message: &str, fields: [(&str, String); N]) {
        let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        self.effects.push_back(Effect::Log { level, message: message.to_owned(), fields });
    }
}
