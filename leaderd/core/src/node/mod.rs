//! One daemon's whole core: probes, Raft groups, known decisions and the network they ask for, as one state machine.
//!
//! Call [`Node::handle_input`] with everything that happens, then drain [`Node::poll_effect`], then sleep until
//! [`Node::poll_timeout`]. The parts never call each other: the node hands the outputs of each to the next, always in
//! the direction probe → evidence → verdict → decision → state → topology → plan.

mod addresses;
mod admin;
mod announce;
mod connections;
mod decisions;
mod dispatch;
mod fallback;
mod gossip;
mod ignored;
mod outputs;
mod outward;
mod overridden;
mod peer_table;
mod program;
mod proofs;
mod reconfigure;
mod relays;
mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use wgctl_plan::Network;

use crate::group::{Group, GroupError};
use crate::handover::{Change, Handover, View};
use crate::ids::{LocationName, NodeName};
use crate::io::{Effect, Input, LanDevice, LocalFacts, LogLevel, Peer, StoredGroup, Ticket};
use crate::log_limit::LogLimit;
use crate::mesh::Mesh;
use crate::observe::Observer;
use crate::observe::outward::Outward;
use crate::probe::keys::ProbeKeys;
use crate::probe::reflect::Reflector;
use crate::proof::Proof;
use crate::state::Decision;
use crate::time::{Duration, Instant, Now};

use addresses::Addresses;
use admin::Commands;
use announce::Announcer;
use decisions::KnownDecisions;
use fallback::Fallback;
use ignored::Ignored;
use outward::OutwardWords;
use overridden::Overridden;
use peer_table::PeerTable;
use proofs::Proofs;
pub use reconfigure::{MeshRefusal, check_successor};
use relays::RelayPairs;

/// All that a node is made from.
#[derive(Debug)]
pub struct NodeConfig {
    pub mesh: Arc<Mesh>,
    pub me: NodeName,
    pub keys: ProbeKeys,
    /// The contents of the store, by location.
    pub restored: BTreeMap<LocationName, StoredGroup>,
    pub seed: u64,
    /// Addresses of endpoints by DNS name, as far as they resolve.
    pub resolved: BTreeMap<String, IpAddr>,
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
    /// With the probe addresses in it that nodes said they hold.
    mesh: Arc<Mesh>,
    addresses: Addresses,
    me: NodeName,
    location: LocationName,
    keys: ProbeKeys,
    seed: u64,
    resolved: BTreeMap<String, IpAddr>,
    /// `None` until the shell has said which it is.
    lan: Option<LanDevice>,

    observer: Option<Observer>,
    /// What this node tries itself, and what others say of this one.
    outward: Outward,
    outward_words: OutwardWords,
    reflector: Reflector,
    groups: BTreeMap<LocationName, Group>,
    /// Of locations that left the mesh file. They get answers of the disk only, and go on if the location comes back.
    paused: BTreeMap<LocationName, Group>,
    /// What was on disk at the start of groups in which this node had no vote then.
    stored: BTreeMap<LocationName, StoredGroup>,
    decisions: KnownDecisions,
    announcer: Announcer,
    peers: PeerTable,
    fallback: Fallback,
    commands: Commands,
    proofs: Proofs,
    relays: RelayPairs,
    facts: LocalFacts,
    handover: Handover,
    /// The groups of which this node is raft leader, to notice when it becomes that.
    raft_leading: BTreeSet<LocationName>,

    network: Network,
    /// What operators should know of that network: for the log and the status.
    notes: Vec<String>,
    overridden: Overridden,
    /// What parts of the shell report of this host, for the status.
    host_notes: BTreeMap<String, Vec<String>>,
    revision: u64,
    /// Of the last `Effect::SetPeers`.
    asked_peers: Option<Vec<Peer>>,
    persists: BTreeMap<Ticket, (LocationName, u64)>,
    last_ticket: u64,
    effects: VecDeque<Effect>,
    counters: BTreeMap<String, u64>,
    ignored_log: LogLimit<Ignored>,
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
        let NodeConfig { mesh, me, keys, mut restored, seed, resolved } = config;
        let Some(node) = mesh.node(&me) else { return Err(NodeError::UnknownNode(me)) };
        let location = node.location.clone();
        let is_candidate = node.slot.is_some();

        let mut decisions = KnownDecisions::default();
        for (location, stored) in &restored {
            if let Some((decision, proof)) =
                stored.decision.as_deref().and_then(KnownDecisions::read_stored)
            {
                decisions.restore(location, decision, proof);
            }
        }
        let mut groups = BTreeMap::new();
        for location in mesh.locations.keys().filter(|l| mesh.voters_of(l).contains(&me)) {
            let stored = restored.remove(location).unwrap_or_default();
            let group = Group::new(mesh.clone(), location.clone(), me.clone(), &stored, seed, now)
                .map_err(|source| NodeError::Group { location: location.clone(), source })?;
            // Where decisions are proved, what is committed and not signed is in force nowhere; its proof may come again.
            if let Some(decision) = &group.state().decision
                && decisions.proof(location).is_none()
            {
                decisions.restore(location, decision.clone(), Proof::default());
            }
            groups.insert(location.clone(), group);
        }
        restored.retain(|_, stored| stored.has_log());
        let observer =
            is_candidate.then(|| Observer::new(mesh.clone(), me.clone(), keys.clone(), seed, now));
        let reflector = Reflector::new(mesh.clone(), me.clone(), keys.clone());
        let outward = Outward::new(mesh.clone(), node, keys.clone(), now);

        let mut this = Self {
            handover: Handover::new(&mesh, &location),
            peers: PeerTable::new(now.mono),
            proofs: Proofs::new(&mesh),
            relays: RelayPairs::default(),
            fallback: Fallback::new(now.mono, location.clone()),
            addresses: Addresses::new(mesh.clone()),
            mesh,
            me,
            location,
            keys,
            seed,
            resolved,
            lan: None,
            observer,
            outward,
            outward_words: OutwardWords::default(),
            reflector,
            groups,
            paused: BTreeMap::new(),
            stored: restored,
            decisions,
            announcer: Announcer::default(),
            commands: Commands::new(seed),
            facts: LocalFacts::default(),
            raft_leading: BTreeSet::new(),
            network: Network::default(),
            notes: Vec::new(),
            overridden: Overridden::default(),
            host_notes: BTreeMap::new(),
            revision: 0,
            asked_peers: None,
            persists: BTreeMap::new(),
            last_ticket: 0,
            effects: VecDeque::new(),
            counters: BTreeMap::new(),
            ignored_log: LogLimit::default(),
        };
        this.listen_for_probes();
        this.mesh_in_force();
        this.check_own_key();
        this.relays_of_mesh(now);
        this.drain_outputs(now);
        Ok(this)
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::ProbeReply { probe, bytes } if Outward::sends(probe) => {
                let before = self.outward.forged_replies();
                self.outward.handle_reply(now, probe, &bytes);
                if self.outward.forged_replies() > before {
                    self.count("probes.replies.bad-hmac");
                }
            }
            Input::ProbeReply { probe, bytes } => {
                if let Some(observer) = &mut self.observer {
                    let before = (observer.forged_replies(), observer.rewritten_sources());
                    observer.handle_reply(now, probe, &bytes);
                    let after = (observer.forged_replies(), observer.rewritten_sources());
                    if after.0 > before.0 {
                        self.count("probes.replies.bad-hmac");
                    }
                    if after.1 > before.1 {
                        self.count("probes.source-rewritten");
                    }
                }
            }
            Input::ProbeError { probe, error } if Outward::sends(probe) => {
                self.outward.handle_error(now, probe, &error);
            }
            Input::ProbeError { probe, error } => {
                if let Some(observer) = &mut self.observer {
                    observer.handle_error(now, probe, error);
                }
            }
            Input::ServiceConnected { probe } => {
                if let Some(observer) = &mut self.observer {
                    observer.handle_service_connected(probe);
                }
            }
            Input::ServiceReply { probe, body } => {
                if let Some(observer) = &mut self.observer {
                    observer.handle_service_reply(now, probe, body);
                }
            }
            Input::ProbeRequest { from, local, ttl, bytes } => {
                match self.reflector.handle(now, from, local, ttl, &bytes) {
                    Ok(bytes) => {
                        self.count("probes.reflected");
                        self.effects.push_back(self.reflection(local, from, bytes));
                    }
                    Err(reject) => {
                        self.count(&format!("probes.rejected.{}", reject.as_str()));
                        self.ignored(now, &from.ip().to_string(), Ignored::Probe(reject))
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
            Input::Admin { id, user, request } => self.admin(now, id, user, request),
            Input::Resolved(resolved) => {
                if self.resolved != resolved {
                    self.resolved = resolved;
                    self.reprogram(false);
                }
            }
            Input::MeshChanged(mesh) => self.mesh_changed(now, *mesh),
            Input::Carried(rules) => self.carried_before(&rules),
            Input::Addresses(held) => self.addresses_held(now, held),
            Input::HostNotes { part, notes } => drop(self.host_notes.insert(part, notes)),
            Input::Overridden(routes) => self.routes_overridden(now, routes),
            Input::Signed { id, signature } => self.signed(now, id, signature),
            Input::LanDevice(lan) => {
                let before = self.lan.replace(lan);
                if before != self.lan {
                    self.reprogram(before.is_none());
                }
            }
        }
        self.drain_outputs(now);
        self.hand_over(now);
    }

    /// Returns the next effect to carry out, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns when [`Input::Timeout`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let parts = self.groups.values().map(Group::poll_timeout);
        parts
            .chain([
                self.observer.as_ref().and_then(Observer::poll_timeout),
                self.outward.poll_timeout(),
                self.announcer.poll_timeout(),
                self.addresses.poll_timeout(),
                Some(self.peers.poll_timeout()),
                Some(self.fallback.poll_timeout()),
                self.commands.poll_timeout(),
                self.handover.poll_timeout(),
                self.relays.poll_timeout(),
            ])
            .flatten()
            .min()
    }

    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Returns the group of a location if this node votes in it: what another one knows is stale.
    fn voting(&self, location: &LocationName) -> Option<&Group> {
        self.groups.get(location).filter(|g| g.votes())
    }

    /// Returns the decision that this node knows of a location.
    pub fn decision(&self, location: &LocationName) -> Option<&Decision> {
        self.decisions.get(location)
    }

    /// Returns the proof of that decision; `None` if it was taken without one.
    pub fn proof(&self, location: &LocationName) -> Option<&Proof> {
        self.decisions.proof(location)
    }

    /// Returns the network that this node wants now.
    pub fn desired(&self) -> &Network {
        &self.network
    }

    /// Returns the counters since the start, by dotted name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut counters = self.counters.clone();
        let left_out = self.observer.as_ref().map_or(0, Observer::rounds_left_out);
        if left_out > 0 {
            counters.insert("probes.rounds-left-out".to_owned(), left_out);
        }
        counters
    }

    /// Returns the number of probe packets since the start, of either direction, whose HMAC was wrong. A recorder compares it before and
    /// after an input: it records whether a packet was authentic, and not the HMAC.
    pub fn forged_packets(&self) -> u64 {
        ["probes.rejected.bad-hmac", "probes.replies.bad-hmac"]
            .iter()
            .filter_map(|what| self.counters.get(*what))
            .sum()
    }

    fn handle_timeout(&mut self, now: Now) {
        if let Some(observer) = &mut self.observer
            && observer.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            observer.handle_timeout(now);
        }
        if self.outward.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.outward.handle_timeout(now);
        }
        for group in self.groups.values_mut() {
            if group.poll_timeout().is_some_and(|at| at <= now.mono) {
                group.handle_timeout(now);
            }
        }
        self.apply_addresses(now);
        self.relay_timers(now);
        if self.peers.is_due(now.mono) {
            self.send_hellos(now);
        }
        if self.fallback.is_due(now.mono) {
            self.check_fallback(now);
        }
        self.announcer.handle_timeout(now.mono, &mut self.effects);
        self.expire_commands(now);
    }

    /// Where a daemon before this one carried beside Kilo.
    fn carried_before(&mut self, rules: &BTreeSet<LocationName>) {
        if self.handover.carried_before(rules) {
            self.reprogram(true);
        }
    }

    /// Decides again where our routes carry beside Kilo, if anything changed, and programs what follows.
    fn hand_over(&mut self, now: Now) {
        if !self.handover.is_due(now.mono) {
            return;
        }
        let mut handover = std::mem::take(&mut self.handover);
        let leader = |l: &LocationName| self.effective_leaders(l)?.first().copied();
        let view =
            View { mesh: &self.mesh, observer: self.observer.as_ref(), first_leader: &leader };
        let changes = handover.evaluate(now.mono, &view);
        self.handover = handover;
        if changes.is_empty() {
            return;
        }
        for change in changes {
            let (count, level) = match change {
                Change::In { .. } => ("steer.in", LogLevel::Info),
                Change::Back { .. } => ("steer.back", LogLevel::Warn),
            };
            self.count(count);
            let fields = [("location.name", change.location().to_string())];
            self.log(level, change.why(), fields);
        }
        self.reprogram(false);
        self.handover.settled();
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

#[cfg(test)]
mod tests;
