//! One location's Raft group on one of its voters, and the decisions that its raft leader takes.
//!
//! Methods of three kinds: `handle_*` and other `&mut` methods take what happened; `poll_output` and `poll_timeout` say what to do
//! and when to call again; the rest only reads. After every call of the first kind, drain `poll_output`.
//!
//! Joins the Raft log (`consensus`) and the evidence (`election`). Evidence stays out of the replicated state: every voter
//! keeps reports and hellos, only the raft leader judges them (a pure function of one `Situation`), and only what it
//! concludes is proposed.
//!
//! Epochs continue from the highest that any node claims for the location, so that other nodes still follow a location that has
//! lost all its stores.

mod commands;
mod disk_watch;
mod drain;
mod leadership;
mod propose;
mod sign;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::admin::AdminResponse;
use crate::consensus::{EntryId, RaftNode, StartError};
use crate::election::Reports;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::io::{LocalFacts, LogLevel, Persist, StoredGroup};
use crate::log_limit::LogLimit;
use crate::mesh::Mesh;
use crate::relay_pair::TunnelRow;
use crate::state::{Decision, Event, LocationState};
use crate::stored::StoredError;
use crate::time::{Instant, Now, WallTime};
use crate::verdict::Report;
use crate::wire::Hello;

use commands::ProposedCommand;
use disk_watch::DiskWatch;
use leadership::Leadership;
use sign::Signing;
pub use sign::{Refusal, Standing};

/// Why a group cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("{node} is no voter of location {location}")]
    NotVoter { node: NodeName, location: LocationName },
    #[error(
        "the store is damaged ({0}): `leaderd reset` forgets it, and the node rejoins as a new one"
    )]
    Damaged(StoredError),
    #[error(
        "a newer version of leaderd wrote the store: start that version, or `leaderd reset` the store, and the node rejoins as a new one"
    )]
    Newer,
    #[error("raft: {0}")]
    Raft(String),
}

/// What the group wants done, and what it reports.
#[derive(Clone, PartialEq, Debug)]
pub enum GroupOutput {
    Send {
        to: NodeName,
        message: Vec<u8>,
    },
    Persist {
        ticket: u64,
        write: Persist,
    },
    /// Committed and applied here: who leads now. Also once at start if the store knows a decision.
    Decided {
        decision: Decision,
        event: Box<Event>,
    },
    /// On this node's disk, as an entry of its present term: it may be signed, though it is not known to be committed.
    Written {
        decision: Decision,
    },
    /// An event was added or completed (times, blackout).
    EventChanged(Box<Event>),
    Reply {
        id: u64,
        response: AdminResponse,
    },
    /// This node is not the raft leader: ask [`Group::raft_leader`].
    NotLeader {
        id: u64,
    },
    Log {
        level: LogLevel,
        message: String,
        fields: Vec<(String, String)>,
    },
}

/// One location's Raft group on this node. See the module.
pub struct Group {
    mesh: Arc<Mesh>,
    location: LocationName,
    me: NodeName,
    voters: Vec<NodeName>,
    /// Raft ids of all nodes of the mesh that vote here by its file, by what Raft has committed, or did since this daemon started.
    ids: BTreeMap<u64, NodeName>,
    raft: RaftNode,
    reports: Reports,
    signing: Signing,
    started: Instant,
    next_evaluation: Instant,
    leadership: Leadership,
    disk: DiskWatch,
    /// A proposed decision that is not applied yet.
    proposed: Option<EntryId>,
    /// Since when the votes ask for another leader than the present one.
    waiting: Option<Instant>,
    commands: Vec<ProposedCommand>,
    /// The epoch of the last decision that was given as [`GroupOutput::Decided`].
    announced_epoch: Epoch,
    /// Raft id of the raft leader that was logged last, 0 if none.
    known_raft_leader: u64,
    completed: Completed,
    trouble_since: Option<Instant>,
    trouble_recorded: Option<Instant>,
    /// When the epoch was last raised above a claimed one, and how long until that may happen again.
    epoch_raised: Option<(Instant, Duration)>,
    ignored: u64,
    ignored_log: LogLimit<()>,
    outputs: VecDeque<GroupOutput>,
}

/// Which times the event of an epoch has, or this raft leader has proposed to add.
#[derive(Default)]
struct Completed {
    epoch: Epoch,
    programmed: bool,
    verified: bool,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("location", &self.location)
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl From<StartError> for GroupError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Stored(StoredError::Newer) => Self::Newer,
            StartError::Stored(error) => Self::Damaged(error),
            StartError::Raft(error) => Self::Raft(error.to_string()),
        }
    }
}

impl Group {
    /// Starts the group from what this node has on disk of it. A voter that forgot its vote or its log might vote twice in a term,
    /// or elect a node that lacks what it helped to commit.
    ///
    /// # Errors
    /// If `me` is none of `mesh.voters_of(location)`, or the store is damaged or newer.
    pub fn new(
        mesh: Arc<Mesh>,
        location: LocationName,
        me: NodeName,
        stored: &StoredGroup,
        seed: u64,
        now: Now,
    ) -> Result<Self, GroupError> {
        let voters = mesh.voters_of(&location);
        if !voters.contains(&me) {
            return Err(GroupError::NotVoter { node: me, location });
        }
        let my_id = u64::from(mesh.nodes[&me].index.0);
        let mut genesis = LocationState::new(location.clone());
        genesis.voters_generation = mesh.generation;
        // A new group begins with the voters of the mesh file; a store may know others, which count until Raft says otherwise.
        let mut genesis_ids: Vec<u64> = voters.iter().map(|n| id_of(&mesh, n)).collect();
        genesis_ids.sort_unstable();
        let raft = RaftNode::new(my_id, &genesis_ids, &genesis, stored, seed, now.mono)?;
        let ids = ids_of(&mesh, &voters, &raft.voters());
        let mut group = Self {
            mesh,
            location,
            me,
            voters,
            ids,
            raft,
            reports: Reports::new(now.mono),
            signing: Signing::default(),
            started: now.mono,
            next_evaluation: now.mono,
            leadership: Leadership::new(now.mono),
            disk: DiskWatch::default(),
            proposed: None,
            waiting: None,
            commands: Vec::new(),
            announced_epoch: Epoch(0),
            known_raft_leader: 0,
            completed: Completed::default(),
            trouble_since: None,
            trouble_recorded: None,
            epoch_raised: None,
            ignored: 0,
            ignored_log: LogLimit::default(),
            outputs: VecDeque::new(),
        };
        group.reports.set_mesh(&group.mesh, &group.location);
        group.begin(now);
        Ok(group)
    }

    /// A new mesh file. The voters follow it by joint consensus, driven by the raft leader.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        self.voters = mesh.voters_of(&self.location);
        self.ids.extend(ids_of(&mesh, &self.voters, &self.raft.voters()));
        self.ids.retain(|_, n| mesh.node(n).is_some());
        let ids: Vec<u64> = self.ids.keys().copied().collect();
        self.raft.forget_rtts_but(&ids);
        self.reports.set_mesh(&mesh, &self.location);
        self.mesh = mesh;
        self.leadership.housekeep_soon(now.mono);
        self.evaluate_soon(now);
        self.drain_raft(now);
    }

    /// True for nodes whose Raft messages count here: voters by the mesh file or by what Raft has committed, present or past.
    /// A new voter with an empty store cannot know the voters before it, and one of them may be the raft leader that fills its
    /// store. So it also accepts a node of the location that another node names as raft leader. It does not vote until its store is
    /// filled.
    pub fn is_peer(&self, now: Now, node: &NodeName) -> bool {
        let local = || self.mesh.node(node).is_some_and(|n| n.location == self.location);
        self.ids.values().any(|n| n == node)
            || (self.raft.is_non_voting()
                && local()
                && self.reports.is_said_to_lead(now.mono, node))
    }

    /// Takes a Raft message from an authenticated node. An invalid one is counted and ignored.
    pub fn handle_raft(&mut self, now: Now, from: &NodeName, message: &[u8]) {
        if !self.is_peer(now, from) {
            self.ignore(now, from, "not a voter");
            return;
        }
        let id = id_of(&self.mesh, from);
        self.ids.entry(id).or_insert_with(|| from.clone());
        self.reports.sign_of_life(now.mono, from);
        self.raft.receive(id, message);
        self.drain_raft(now);
    }

    /// Takes a report from an observer, which is a candidate of another location. While a mesh file is rolled out a report may have
    /// slots that our file lacks: these are dropped.
    pub fn handle_report(&mut self, now: Now, mut report: Report) {
        let observer = self.mesh.node(&report.observer);
        let valid = report.location == self.location
            && observer.is_some_and(|n| n.slot.is_some() && n.location != self.location);
        if !valid {
            self.ignore(now, &report.observer.clone(), "report of no observer");
            return;
        }
        report.slots.retain(|s| self.mesh.candidate(&self.location, s.slot).is_some());
        if self.reports.report(now.mono, report) {
            self.votes_changed(now);
        }
        self.drain_raft(now);
    }

    /// Takes what a candidate of this location says of its tunnels to another location.
    pub fn handle_tunnel_row(
        &mut self,
        now: Now,
        location: &LocationName,
        slot: Slot,
        row: TunnelRow,
    ) {
        let known = self.mesh.locations.contains_key(location) && *location != self.location;
        if known
            && self.mesh.candidate(&self.location, slot).is_some()
            && self.reports.row(now.mono, location, slot, row)
        {
            self.votes_changed(now);
            self.drain_raft(now);
        }
    }

    /// Sets who relays at another location towards this one: by its decision, and now, which differs while a detour is in use.
    pub fn handle_relays(
        &mut self,
        now: Now,
        location: &LocationName,
        leaders: &[Slot],
        relays: &[Slot],
    ) {
        if self.reports.set_relays(location, leaders.to_vec(), relays.to_vec()) {
            self.votes_changed(now);
            self.drain_raft(now);
        }
    }

    pub fn handle_ack(&mut self, now: Now, from: &NodeName, epoch: Epoch, programmed_at: WallTime) {
        if self.is_observer(from) && epoch <= self.state().epoch() {
            self.reports.ack(epoch, from, programmed_at);
            self.evaluate_soon(now);
            self.drain_raft(now);
        }
    }

    pub fn handle_verified(
        &mut self,
        now: Now,
        from: &NodeName,
        epoch: Epoch,
        at: WallTime,
        blackout: Option<Duration>,
    ) {
        if self.is_observer(from) && epoch <= self.state().epoch() {
            self.reports.verify(epoch, from, at, blackout);
            self.evaluate_soon(now);
            self.drain_raft(now);
        }
    }

    /// Takes a hello of a node of this location or of a witness: liveness, brokenness, which candidates it reaches.
    pub fn handle_hello(&mut self, now: Now, hello: &Hello) {
        let local = self.mesh.node(&hello.node).is_some_and(|n| n.location == self.location);
        if !local && !self.voters.contains(&hello.node) {
            return;
        }
        if self.reports.hello(now.mono, hello, &self.location, &self.mesh) {
            self.evaluate_soon(now);
        }
        self.drain_raft(now);
    }

    /// Sets the decision that this node follows, what supports it, and whether decisions need a proof. With that, claimed epochs do
    /// not count (see [`Self::handle_proved_epoch`]), and a decision that is not signed is decided anew.
    pub fn set_followed(
        &mut self,
        decision: Option<&Decision>,
        standing: Standing,
        proof_required: bool,
    ) {
        self.reports.require_proof(proof_required);
        self.reports.followed(decision.map_or(Epoch(0), |d| d.epoch));
        self.signing.in_force = decision.map(|d| (d.clone(), standing));
    }

    /// Another node sent a proved decision of this location: epochs continue from it.
    pub fn handle_proved_epoch(&mut self, now: Now, epoch: Epoch) {
        if self.reports.proved(epoch) {
            self.evaluate_soon(now);
            self.drain_raft(now);
        }
    }

    /// This node's own brokenness.
    pub fn handle_local_facts(&mut self, now: Now, facts: &LocalFacts) {
        let broken = facts.broken.as_ref().map(|(cause, _)| *cause);
        if self.reports.set_broken(broken) {
            self.evaluate_soon(now);
        }
        self.drain_raft(now);
    }

    /// The control channel's round trip to a node, `None` if it is down.
    pub fn handle_peer_rtt(&mut self, now: Now, node: &NodeName, rtt: Option<Duration>) {
        let id = self.ids.iter().find(|(_, n)| *n == node).map(|(id, _)| *id);
        if let (Some(id), Some(rtt)) = (id, rtt) {
            self.raft.rtt(id, rtt);
        }
        if id.is_some() {
            self.reports.reachable(now.mono, node, rtt.is_some());
        }
    }

    pub fn handle_persisted(&mut self, now: Now, ticket: u64) {
        self.disk.written(now.mono, ticket);
        self.sign_written(ticket);
        self.raft.handle_persisted(ticket);
        self.drain_raft(now);
    }

    pub fn handle_timeout(&mut self, now: Now) {
        if now.mono >= self.raft.next_timeout() {
            self.raft.handle_timeout(now.mono);
        }
        self.ask_for_another_raft_leader(now);
        self.drain_raft(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut at = self.raft.next_timeout();
        if self.raft.is_settled_leader() {
            at = at.min(self.next_evaluation);
        }
        let others = [self.disk.poll_timeout(), self.leadership.poll_timeout()];
        others.into_iter().flatten().chain([at]).min()
    }

    pub fn poll_output(&mut self) -> Option<GroupOutput> {
        self.outputs.pop_front()
    }

    pub fn state(&self) -> &LocationState {
        self.raft.state()
    }

    pub fn raft_leader(&self) -> Option<&NodeName> {
        self.ids.get(&self.raft.leader())
    }

    /// False once the mesh file has removed this node's vote: its state may then be stale. The group runs on until the others have
    /// committed the removal, which may need this node's vote, and in case the vote comes back.
    pub fn votes(&self) -> bool {
        self.voters.contains(&self.me) || self.raft.is_leader()
    }

    pub fn is_raft_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// Number of invalid messages and reports since the start.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    #[cfg(test)]
    fn raft_mut(&mut self) -> &mut RaftNode {
        &mut self.raft
    }

    fn is_observer(&self, node: &NodeName) -> bool {
        self.mesh.node(node).is_some_and(|n| n.slot.is_some() && n.location != self.location)
    }

    fn votes_changed(&mut self, now: Now) {
        let situation = self.reports.situation(now, &self.mesh, self.raft.state(), &self.me);
        self.reports.note_votes(now.mono, &situation);
        self.evaluate_soon(now);
    }

    fn evaluate_soon(&mut self, now: Now) {
        self.next_evaluation = now.mono;
    }

    fn log(&mut self, level: LogLevel, message: impl Into<String>, fields: &[(&str, String)]) {
        let mut all = vec![("location.name".to_owned(), self.location.to_string())];
        all.extend(fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        self.outputs.push_back(GroupOutput::Log { level, message: message.into(), fields: all });
    }

    /// Counts an ignored message, and logs at most once a minute.
    fn ignore(&mut self, now: Now, from: &NodeName, why: &str) {
        self.ignored += 1;
        // Whoever it is from: peers of a group are few, and mostly have the same reason.
        if self.ignored_log.allow(now.mono, "", ()).is_some() {
            let fields = [
                ("peer.name", from.to_string()),
                ("why", why.to_owned()),
                ("count", self.ignored.to_string()),
            ];
            self.log(LogLevel::Warn, "ignored what does not fit", &fields);
        }
    }
}

fn id_of(mesh: &Mesh, node: &NodeName) -> u64 {
    u64::from(mesh.nodes[node].index.0)
}

/// The nodes of the mesh that vote by its file, or are among those that Raft has committed.
fn ids_of(mesh: &Mesh, voters: &[NodeName], committed: &[u64]) -> BTreeMap<u64, NodeName> {
    let nodes = mesh.nodes.keys().map(|n| (id_of(mesh, n), n));
    nodes
        .filter(|(id, n)| committed.contains(id) || voters.contains(n))
        .map(|(id, n)| (id, n.clone()))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
