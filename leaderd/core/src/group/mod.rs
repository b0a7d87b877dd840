//! One location's Raft group on one of its voters, and the decisions that its raft leader takes.
//!
//! Methods of three kinds: `handle_*` and their like take what happened; `poll_output` and `poll_timeout` say what to do
//! and when to come back; the rest looks. After every call of the first kind, drain `poll_output`.
//!
//! Evidence stays out of the replicated state: reports and hellos live in the ledger of every voter, only the raft
//! leader judges them (a pure function of one `Situation`), and only what it concludes is proposed.
//!
//! Epochs count on from the highest that anybody claims for the location, so that a location which has lost all its
//! stores is still obeyed.

mod check;
mod commands;
mod decide;
mod event;
mod ledger;
mod log;
mod raft_node;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{AdminRequest, AdminResponse};
use crate::ids::{Epoch, LocationName, NodeName};
use crate::io::{LocalFacts, LogLevel, Persist, Restored};
use crate::mesh::Mesh;
use crate::state::{Applied, Command, Decision, Event, EventKind, EventTimes, LocationState};
use crate::time::{Instant, Now, WallTime};
use crate::verdict::Report;
use crate::wire::Hello;

use commands::Pending;
use decide::Choice;
use ledger::Ledger;
use raft_node::{LogEvent, RaftNode};

/// Time between two looks at the situation when nothing urgent happens.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time between two tries to move Raft leadership off the location leader, or to change the voters.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Trouble must last this long to be recorded as fail-static: a standby's verdict may only be a burst behind.
const TROUBLE_FOR: Duration = Duration::from_secs(1);
/// Least time between two records about trouble, so that flapping evidence does not fill the events.
const TROUBLE_AGAIN: Duration = Duration::from_secs(10);
/// A node with an empty store listens at least this long before it counts itself part of a new location.
const LISTEN: Duration = Duration::from_millis(1200);
/// … and is no longer mute after this, caught up or not: leadership is not a lock, and epochs cannot go back.
const LISTEN_MAX: Duration = Duration::from_secs(30);
/// Claims about epochs further ahead than this are nonsense.
const MAX_EPOCH_JUMP: u64 = 1 << 32;

/// Why there is no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("{node} is no voter of location {location}")]
    NotVoter { node: NodeName, location: LocationName },
    #[error(
        "the store is damaged ({0}): `leaderd reset` forgets it, and the node rejoins as a new one"
    )]
    Damaged(&'static str),
    #[error(
        "the store belongs to location {0}: give this node its own --state, or `leaderd reset` it"
    )]
    WrongLocation(LocationName),
    #[error("raft: {0}")]
    Raft(String),
}

/// What the group wants done, or tells.
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
    /// An event was added or completed (times, blackout).
    EventChanged(Box<Event>),
    Reply {
        id: u64,
        response: AdminResponse,
    },
    /// This node is not the raft leader: ask [`Group::raft_leader`].
    NotLeader {
        id: u64,
        request: AdminRequest,
    },
    Log {
        level: LogLevel,
        message: String,
        fields: Vec<(String, String)>,
    },
}

/// See the module.
pub struct Group {
    mesh: Arc<Mesh>,
    location: LocationName,
    me: NodeName,
    voters: Vec<NodeName>,
    /// Raft ids of all nodes that vote or voted here.
    ids: BTreeMap<u64, NodeName>,
    raft: RaftNode,
    ledger: Ledger,
    started: Instant,
    next_look: Instant,
    next_housekeeping: Instant,
    /// (index, term) of a proposed decision that is not applied yet.
    proposed: Option<(u64, u64)>,
    pending: VecDeque<Pending>,
    told: Epoch,
    led_by: u64,
    completing: (Epoch, bool, bool),
    trouble_since: Option<Instant>,
    trouble_told: Option<Instant>,
    ignored: u64,
    ignored_told: Option<Instant>,
    outputs: VecDeque<GroupOutput>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("location", &self.location)
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Group {
    /// One location's Raft group on this node, which must be one of `mesh.voters_of(location)`.
    pub fn new(
        mesh: Arc<Mesh>,
        location: LocationName,
        me: NodeName,
        restored: Restored,
        seed: u64,
        now: Now,
    ) -> Result<Self, GroupError> {
        let voters = mesh.voters_of(&location);
        if !voters.contains(&me) {
            return Err(GroupError::NotVoter { node: me, location });
        }
        let ids = ids_of(&mesh, &voters);
        let my_id = u64::from(mesh.nodes[&me].index.0);
        let genesis = LocationState::new(location.clone());
        let voter_ids: Vec<u64> = ids.keys().copied().collect();
        let raft = RaftNode::new(my_id, &voter_ids, &genesis, restored, seed, now.mono)?;
        let mut group = Self {
            mesh,
            location,
            me,
            voters,
            ids,
            raft,
            ledger: Ledger::new(now.mono),
            started: now.mono,
            next_look: now.mono,
            next_housekeeping: now.mono,
            proposed: None,
            pending: VecDeque::new(),
            told: Epoch(0),
            led_by: 0,
            completing: (Epoch(0), false, false),
            trouble_since: None,
            trouble_told: None,
            ignored: 0,
            ignored_told: None,
            outputs: VecDeque::new(),
        };
        // What the store holds was told in an earlier life, but for who leads now.
        group.raft.out.retain(|e| !matches!(e, LogEvent::Applied { .. } | LogEvent::Restored));
        group.tell_decision(now);
        group.settle(now);
        Ok(group)
    }

    /// A new mesh file. The voters follow it by joint consensus, driven by the raft leader.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        self.voters = mesh.voters_of(&self.location);
        self.ids.extend(ids_of(&mesh, &self.voters));
        self.ids.retain(|_, n| mesh.node(n).is_some());
        let ids: Vec<u64> = self.ids.keys().copied().collect();
        self.raft.forget_rtts_but(&ids);
        self.ledger.keep(&mesh);
        self.mesh = mesh;
        self.next_housekeeping = now.mono;
        self.look_soon(now);
        self.settle(now);
    }

    /// Raft bytes from an authenticated node. Anything that does not fit is counted and ignored.
    pub fn handle_raft(&mut self, now: Now, from: &NodeName, message: &[u8]) {
        let Some(id) = self.ids.iter().find(|(_, n)| *n == from).map(|(id, _)| *id) else {
            self.ignore(now, from, "not a voter");
            return;
        };
        self.ledger.sign_of_life(now.mono, from);
        self.raft.receive(id, message);
        self.settle(now);
    }

    /// From observers: candidates of other locations.
    pub fn handle_report(&mut self, now: Now, report: Report) {
        let observer = self.mesh.node(&report.observer);
        let valid = report.location == self.location
            && observer.is_some_and(|n| n.slot.is_some() && n.location != self.location)
            && report.slots.len() <= usize::from(crate::ids::Slot::MAX.0) + 1;
        if !valid {
            self.ignore(now, &report.observer.clone(), "report of no observer");
            return;
        }
        if self.ledger.report(now.mono, report) {
            self.look_soon(now);
        }
        self.settle(now);
    }

    pub fn handle_ack(&mut self, now: Now, from: &NodeName, epoch: Epoch, programmed_at: WallTime) {
        if self.is_observer(from) && epoch <= self.state().epoch() {
            self.ledger.ack(epoch, from, programmed_at);
            self.look_soon(now);
            self.settle(now);
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
            self.ledger.verify(epoch, from, at, blackout);
            self.look_soon(now);
            self.settle(now);
        }
    }

    /// Of nodes of this location and of witnesses: liveness, brokenness, whom they reach.
    pub fn handle_hello(&mut self, now: Now, hello: &Hello) {
        let local = self.mesh.node(&hello.node).is_some_and(|n| n.location == self.location);
        if !local && !self.voters.contains(&hello.node) {
            return;
        }
        if self.ledger.hello(now.mono, hello, &self.location, &self.mesh) {
            self.look_soon(now);
        }
        self.settle(now);
    }

    /// This node's own brokenness.
    pub fn local_facts(&mut self, now: Now, facts: &LocalFacts) {
        let broken = facts.broken.as_ref().map(|(cause, _)| *cause);
        if self.ledger.broken != broken {
            self.ledger.broken = broken;
            self.look_soon(now);
        }
        self.settle(now);
    }

    /// The control channel's round trip to a node, `None` if it is down.
    pub fn peer_rtt(&mut self, now: Now, node: &NodeName, rtt: Option<Duration>) {
        let id = self.ids.iter().find(|(_, n)| *n == node).map(|(id, _)| *id);
        if let (Some(id), Some(rtt)) = (id, rtt) {
            self.raft.rtt(id, rtt);
        }
        if id.is_some() {
            self.ledger.reachable(now.mono, node, rtt.is_some());
        }
    }

    pub fn handle_persisted(&mut self, now: Now, ticket: u64) {
        self.raft.handle_persisted(ticket);
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Now) {
        if now.mono >= self.raft.next_timeout() {
            self.raft.handle_timeout(now.mono);
        }
        self.leave_muteness(now);
        self.expire_commands(now);
        self.settle(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut at = self.raft.next_timeout();
        if self.raft.is_settled_leader() {
            at = at.min(self.next_look);
        }
        if let Some(p) = self.pending.front() {
            at = at.min(p.deadline);
        }
        Some(at)
    }

    pub fn poll_output(&mut self) -> Option<GroupOutput> {
        self.outputs.pop_front()
    }

    pub fn state(&self) -> &LocationState {
        &self.raft.state
    }

    pub fn raft_leader(&self) -> Option<&NodeName> {
        self.ids.get(&self.raft.leader())
    }

    pub fn is_raft_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// Messages and reports that did not fit, since the start.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    fn is_observer(&self, node: &NodeName) -> bool {
        self.mesh.node(node).is_some_and(|n| n.slot.is_some() && n.location != self.location)
    }

    fn look_soon(&mut self, now: Now) {
        self.next_look = now.mono;
    }

    fn log(&mut self, level: LogLevel, message: impl Into<String>, fields: &[(&str, String)]) {
        let mut all = vec![("location.name".to_owned(), self.location.to_string())];
        all.extend(fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        self.outputs.push_back(GroupOutput::Log { level, message: message.into(), fields: all });
    }

    /// Counts, and says so at most once a minute.
    fn ignore(&mut self, now: Now, from: &NodeName, why: &str) {
        self.ignored += 1;
        if self.ignored_told.is_none_or(|at| now.mono.since(at) >= Duration::from_secs(60)) {
            self.ignored_told = Some(now.mono);
            let fields = [
                ("peer.name", from.to_string()),
                ("why", why.to_owned()),
                ("count", self.ignored.to_string()),
            ];
            self.log(LogLevel::Warn, "ignored what does not fit", &fields);
        }
    }

    fn leave_muteness(&mut self, now: Now) {
        if !self.raft.is_mute() {
            return;
        }
        let listened = now.mono.since(self.started);
        let undecided = self.ledger.undecided(now.mono, &self.voters, &self.me);
        let new = undecided.is_some_and(|n| n * 2 > self.voters.len()) && self.raft.leader() == 0;
        if self.raft.caught_up() {
            self.raft.unmute();
            self.log(LogLevel::Info, "caught up with the raft leader: this node votes again", &[]);
        } else if new && listened >= LISTEN {
            self.raft.unmute();
            self.log(LogLevel::Info, "most voters know of no decision: a new location", &[]);
        } else if listened >= LISTEN_MAX {
            self.raft.unmute();
            self.log(
                LogLevel::Warn,
                "found no raft leader to catch up with: this node votes with an empty store",
                &[],
            );
        }
    }

    /// Takes what Raft did, looks at the situation if it is time, until nothing more follows.
    fn settle(&mut self, now: Now) {
        loop {
            while let Some(event) = self.raft.out.pop_front() {
                self.take(now, event);
            }
            self.note_raft_leader(now);
            if now.mono < self.next_look || !self.raft.is_settled_leader() {
                return;
            }
            self.next_look = now.mono + LOOK_EVERY;
            self.look(now);
        }
    }

    fn take(&mut self, now: Now, event: LogEvent) {
        match event {
            LogEvent::Send { to, message } => {
                if let Some(to) = self.ids.get(&to).cloned() {
                    self.outputs.push_back(GroupOutput::Send { to, message });
                }
            }
            LogEvent::Persist { ticket, write } => {
                self.outputs.push_back(GroupOutput::Persist { ticket, write })
            }
            LogEvent::Applied { index, term, applied } => {
                if self.proposed.is_some_and(|(i, _)| i <= index) {
                    self.proposed = None;
                }
                match applied {
                    Applied::Decided(event) => self.decided(now, *event),
                    Applied::Recorded(event) | Applied::Completed(event) => {
                        self.outputs.push_back(GroupOutput::EventChanged(event));
                    }
                    Applied::Changed | Applied::Nothing => {}
                }
                self.look_soon(now);
                self.answer(index, term);
            }
            LogEvent::Restored => {
                self.proposed = None;
                self.tell_decision(now);
            }
            LogEvent::Voters(ids) => {
                let text = ids
                    .iter()
                    .map(|id| self.ids.get(id).map_or(id.to_string(), NodeName::to_string));
                let names = text.collect::<Vec<_>>().join(", ");
                self.log(LogLevel::Info, "the voters changed", &[("voters", names)]);
            }
            LogEvent::Ignored(why) => {
                let me = self.me.clone();
                self.ignore(now, &me, why);
            }
        }
    }

    fn decided(&mut self, now: Now, mut event: Event) {
        let Some(decision) = self.state().decision.clone().filter(|d| d.epoch == event.epoch)
        else {
            return;
        };
        if self.raft.is_leader() {
            event.times.committed = Some(now.wall);
            let times = EventTimes { committed: Some(now.wall), ..Default::default() };
            self.raft.propose(&Command::Complete { epoch: event.epoch, times, blackout: None });
        }
        self.told = decision.epoch;
        self.next_housekeeping = now.mono;
        let level = if event.kind == EventKind::Failover { LogLevel::Warn } else { LogLevel::Info };
        let fields = [("epoch", decision.epoch.to_string()), ("cause", decision.cause.to_string())];
        self.log(level, event.summary.clone(), &fields);
        self.outputs.push_back(GroupOutput::Decided { decision, event: Box::new(event) });
    }

    /// Tells a decision that came with the store or a snapshot.
    fn tell_decision(&mut self, now: Now) {
        let Some(decision) = self.state().decision.clone().filter(|d| d.epoch > self.told) else {
            return;
        };
        self.told = decision.epoch;
        let event = self.state().event_of(decision.epoch).cloned().unwrap_or_else(|| {
            let summary = "the event of this decision is forgotten".into();
            event::notice(
                &self.mesh,
                self.state(),
                None,
                EventKind::Move,
                Some(decision.cause),
                summary,
                now.wall,
            )
        });
        self.outputs.push_back(GroupOutput::Decided { decision, event: Box::new(event) });
    }

    fn note_raft_leader(&mut self, now: Now) {
        let leader = self.raft.leader();
        if leader == self.led_by {
            return;
        }
        self.led_by = leader;
        self.proposed = None;
        self.look_soon(now);
        let name = self.ids.get(&leader).map_or("nobody".to_owned(), NodeName::to_string);
        self.log(
            LogLevel::Info,
            "raft leader",
            &[("raft.leader", name), ("raft.term", self.raft.term().to_string())],
        );
    }

    /// The raft leader looks at the situation.
    fn look(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let situation = self.ledger.situation(now, &mesh, &self.raft.state, &self.me);
        if self.proposed.is_none() {
            match situation.decide() {
                Choice::Keep => self.trouble_over(now, &situation),
                Choice::Blocked { .. } => {}
                Choice::FailStatic { cause } if cause.is_fault() => {
                    self.trouble(now, &situation, cause)
                }
                Choice::FailStatic { .. } => {}
                Choice::Move { leaders, cause, direction } => {
                    self.propose_decision(now, &situation, leaders, (cause, direction));
                }
            }
        }
        self.complete(&situation);
        if now.mono >= self.next_housekeeping {
            self.next_housekeeping = now.mono + HOUSEKEEPING;
            self.housekeeping(now, &situation);
        }
    }

    fn next_epoch(&self) -> Epoch {
        let epoch = self.state().epoch();
        let claimed = self.ledger.highest_epoch;
        if claimed.0.saturating_sub(epoch.0) < MAX_EPOCH_JUMP {
            epoch.max(claimed).next()
        } else {
            epoch.next()
        }
    }

    fn propose_decision(
        &mut self,
        now: Now,
        situation: &decide::Situation,
        leaders: Vec<crate::ids::Slot>,
        why: (crate::verdict::Cause, Option<crate::verdict::Direction>),
    ) -> Option<(u64, u64)> {
        let epoch = self.next_epoch();
        let (decision, event) =
            event::decision(&self.mesh, self.state(), situation, epoch, leaders, why, now.wall);
        let expected_epoch = self.state().epoch();
        let at = self.raft.propose(&Command::Decide {
            expected_epoch,
            decision,
            event: Box::new(event),
        });
        self.proposed = at;
        self.trouble_since = None;
        at
    }

    /// The leader is at fault and nobody would be better: say so once, and loudly.
    fn trouble(&mut self, now: Now, situation: &decide::Situation, cause: crate::verdict::Cause) {
        let since = *self.trouble_since.get_or_insert(now.mono);
        let recently = self.trouble_told.is_some_and(|at| now.mono.since(at) < TROUBLE_AGAIN);
        if self.state().in_trouble() || recently || now.mono.since(since) < TROUBLE_FOR {
            return;
        }
        self.trouble_told = Some(now.mono);
        let summary = format!(
            "the leader is at fault ({cause}) and no standby would be better: nothing was changed"
        );
        self.log(LogLevel::Error, summary.clone(), &[("cause", cause.to_string())]);
        let kind = EventKind::FailStatic;
        let event = event::notice(
            &self.mesh,
            self.state(),
            Some(situation),
            kind,
            Some(cause),
            summary,
            now.wall,
        );
        self.raft.propose(&Command::Record { event: Box::new(event) });
    }

    fn trouble_over(&mut self, now: Now, situation: &decide::Situation) {
        self.trouble_since = None;
        let recently = self.trouble_told.is_some_and(|at| now.mono.since(at) < TROUBLE_AGAIN);
        if recently || !self.state().in_trouble() || situation.observers.is_empty() {
            return;
        }
        self.trouble_told = Some(now.mono);
        let summary = "the leader forwards again".to_owned();
        let event = event::notice(
            &self.mesh,
            self.state(),
            None,
            EventKind::Notice,
            None,
            summary,
            now.wall,
        );
        self.raft.propose(&Command::Record { event: Box::new(event) });
    }

    /// Adds when most observers had programmed, and had verified, the present decision: one command each.
    fn complete(&mut self, situation: &decide::Situation) {
        let epoch = self.state().epoch();
        let Some(event) = self.state().event_of(epoch) else { return };
        if self.completing.0 != epoch {
            self.completing =
                (epoch, event.times.programmed.is_some(), event.times.verified.is_some());
        }
        if !self.ledger.acks_are_of(epoch) || situation.observers.is_empty() {
            return;
        }
        let jury = || situation.observers.iter().map(|o| &o.observer);
        let mut times = EventTimes::default();
        let mut blackout = None;
        let acks: Vec<WallTime> = jury().filter_map(|o| self.ledger.acks.get(o).copied()).collect();
        if !self.completing.1 && acks.len() * 2 > situation.observers.len() {
            times.programmed = acks.into_iter().max();
            self.completing.1 = true;
        }
        let verified: Vec<_> =
            jury().filter_map(|o| self.ledger.verified.get(o).copied()).collect();
        if !self.completing.2 && verified.len() * 2 > situation.observers.len() {
            times.verified = verified.iter().map(|(at, _)| *at).max();
            blackout = verified.iter().filter_map(|(_, b)| *b).max();
            self.completing.2 = true;
        }
        if times != EventTimes::default() {
            self.raft.propose(&Command::Complete { epoch, times, blackout });
        }
    }

    /// Voters as in the mesh file; Raft leadership off the location leader, so that losing it never costs an election.
    fn housekeeping(&mut self, now: Now, situation: &decide::Situation) {
        let wanted: Vec<u64> =
            self.voters.iter().map(|n| u64::from(self.mesh.nodes[n].index.0)).collect();
        self.raft.follow_voters(&wanted);
        let leads = |name: &NodeName| {
            situation
                .leaders
                .iter()
                .any(|s| situation.candidates.get(s).is_some_and(|c| c.name == *name))
        };
        if !leads(&self.me) {
            return;
        }
        // The order of `voters_of` is candidates, members, witnesses.
        for name in &self.voters {
            let broken =
                situation.candidates.values().any(|c| c.name == *name && c.broken.is_some());
            let usable =
                *name != self.me && !leads(name) && !broken && self.ledger.is_up(now.mono, name);
            if usable && self.raft.transfer(u64::from(self.mesh.nodes[name].index.0)) {
                return;
            }
        }
    }
}

fn ids_of(mesh: &Mesh, voters: &[NodeName]) -> BTreeMap<u64, NodeName> {
    voters.iter().map(|n| (u64::from(mesh.nodes[n].index.0), n.clone())).collect()
}

#[cfg(test)]
mod tests;
