//! Operators' commands: to the raft leader of the location they are about, wherever that is, and the answer back.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::Node;
use super::ignored::Ignored;
use crate::admin::{
    AdminRequest, AdminResponse, Author, COMMAND_DEADLINE, MAX_COMMANDS, MAX_FREEZE,
};
use crate::ids::{LocationName, NodeName};
use crate::io::Effect;
use crate::time::{Duration, Instant, Now};
use crate::wire::Frame;

/// Commands under way at once of one source.
const MAX_PER_SOURCE: usize = 8;
/// A source may give this many commands at once, and afterwards one in [`EVERY`].
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(1);
/// A command without a reachable raft leader is offered again after this long.
const RETRY: Duration = Duration::from_millis(250);

/// Sets this use of the seed apart from others.
const IDS: u64 = 0x636f_6d6d_616e_6473;

/// Where the answer goes, and the id that the command has there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ReplyTo {
    AdminSocket(u64),
    Node(NodeName, u64),
}

/// Commands of one source are counted together: the author's node, and the node that passed them on.
type Source = (NodeName, NodeName);

#[derive(Debug)]
struct PendingCommand {
    reply_to: ReplyTo,
    source: Source,
    author: Author,
    request: AdminRequest,
    location: LocationName,
    deadline: Instant,
    /// When it is offered again; `None` while it is with the group or with another node.
    retry: Option<Instant>,
    /// Nodes that it was sent to: no other node may answer it.
    asked: BTreeSet<NodeName>,
}

/// The commands under way on this node.
#[derive(Debug)]
pub(super) struct Commands {
    pending: BTreeMap<u64, PendingCommand>,
    last_id: u64,
    /// When each source may give [`BURST`] commands at once again; past times are forgotten.
    quota_full_at: BTreeMap<Source, Instant>,
}

impl Commands {
    /// Ids continue from a random place that differs at each start, so that a late answer to a command of an earlier run matches
    /// none of this one.
    pub(super) fn new(seed: u64) -> Self {
        let first = ChaCha8Rng::seed_from_u64(seed ^ IDS).next_u64();
        // Halved, so that ids cannot overflow.
        Self { pending: BTreeMap::new(), last_id: first >> 1, quota_full_at: BTreeMap::new() }
    }

    /// Counts one command of a source, or says which limit it exceeds.
    fn admit(&mut self, now: Instant, source: &Source) -> Result<(), String> {
        let pending = self.pending.values();
        if pending.clone().filter(|p| p.source == *source).count() >= MAX_PER_SOURCE {
            return Err(format!(
                "{MAX_PER_SOURCE} commands of {} are under way already: try again in some seconds",
                source.0
            ));
        }
        if pending.count() >= MAX_COMMANDS {
            return Err(format!(
                "{MAX_COMMANDS} commands are under way already: try again in some seconds"
            ));
        }
        self.quota_full_at.retain(|_, at| *at > now);
        let quota_full_at = self.quota_full_at.get(source).copied().unwrap_or(now) + EVERY;
        if quota_full_at.since(now) > EVERY * BURST {
            return Err(format!(
                "{} gave {BURST} commands in a short time: it may give one a second",
                source.0
            ));
        }
        self.quota_full_at.insert(source.clone(), quota_full_at);
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(|p| p.retry.unwrap_or(p.deadline).min(p.deadline)).min()
    }
}

impl Node {
    pub(super) fn admin(&mut self, now: Now, id: u64, user: Option<String>, request: AdminRequest) {
        let author = Author::new(self.me.clone(), user);
        self.accept_command(now, ReplyTo::AdminSocket(id), author, request);
    }

    pub(super) fn forwarded_command(
        &mut self,
        now: Now,
        from: NodeName,
        id: u64,
        author: Author,
        request: AdminRequest,
    ) {
        let mut author = author.bounded();
        author.through = (author.node != from).then(|| from.clone());
        self.accept_command(now, ReplyTo::Node(from, id), author, request);
    }

    /// Checks whether the author may give this command and has not given too many. Every node on its way does.
    fn accept_command(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        author: Author,
        request: AdminRequest,
    ) {
        let location = match self.location_of(&request) {
            Ok(location) => location,
            Err(message) => return self.answer(reply_to, AdminResponse::Refused { message }),
        };
        let teller = author.through.clone().unwrap_or_else(|| author.node.clone());
        let source = (author.node.clone(), teller);
        let accepted = self
            .check_author(&author, &location)
            .and_then(|()| self.commands.admit(now.mono, &source));
        if let Err(message) = accepted {
            self.count("commands.refused");
            return self.answer(reply_to, AdminResponse::Refused { message });
        }
        self.commands.last_id += 1;
        let id = self.commands.last_id;
        let deadline = now.mono + COMMAND_DEADLINE;
        let asked = BTreeSet::new();
        let pending = PendingCommand {
            reply_to,
            source,
            author,
            asked,
            request,
            location,
            deadline,
            retry: None,
        };
        self.commands.pending.insert(id, pending);
        self.offer_command(now, id);
    }

    /// Only nodes of the location may pass on commands of others.
    fn check_author(&self, author: &Author, location: &LocationName) -> Result<(), String> {
        let of_location = |n: &NodeName| {
            self.mesh.node(n).is_some_and(|n| n.location == *location)
                || self.mesh.voters_of(location).contains(n)
        };
        if let Some(through) = &author.through
            && !of_location(through)
        {
            return Err(format!("{through} may not give a command in the name of {}", author.node));
        }
        if self.mesh.may_command(&author.node, location) {
            return Ok(());
        }
        Err(format!(
            "{} may not command {location}: ask a node of {location}, or list it in `commands` of the mesh file",
            author.node
        ))
    }

    fn location_of(&self, request: &AdminRequest) -> Result<LocationName, String> {
        match request {
            AdminRequest::Promote { node, .. }
            | AdminRequest::Drain { node }
            | AdminRequest::Undrain { node } => {
                let Some(node) = self.mesh.node(node) else {
                    return Err(format!(
                        "the mesh has no node {node}: `wgctl status` lists the candidates"
                    ));
                };
                if node.slot.is_none() {
                    return Err(format!(
                        "{} has no slot, so it can never lead: give it one in the mesh file",
                        node.name
                    ));
                }
                Ok(node.location.clone())
            }
            AdminRequest::Freeze { duration: Some(duration), .. } if *duration > MAX_FREEZE => {
                Err("a freeze with an end lasts ten years at most: freeze without one".to_owned())
            }
            AdminRequest::Freeze { location, .. } | AdminRequest::Unfreeze { location } => {
                if self.mesh.locations.contains_key(location) {
                    return Ok(location.clone());
                }
                let all: Vec<&str> = self.mesh.locations.keys().map(LocationName::as_str).collect();
                Err(format!("the mesh has no location {location}: it has {}", all.join(", ")))
            }
        }
    }

    /// Gives a command to our own group, or to a node of the location.
    fn offer_command(&mut self, now: Now, id: u64) {
        let Some(pending) = self.commands.pending.get_mut(&id) else { return };
        pending.retry = None;
        if let Some(group) = self.groups.get_mut(&pending.location).filter(|g| g.votes()) {
            group.handle_command(now, id, &pending.author, &pending.request);
            return;
        }
        let knows_raft_leader =
            |name: &NodeName| self.peers.hello(name).and_then(|hello| hello.raft_leader.clone());
        let reachable: Vec<NodeName> = self
            .mesh
            .nodes_of(&pending.location)
            .map(|n| n.name.clone())
            .filter(|n| self.peers.is_connected(n) && self.peers.is_fresh(n, now.mono))
            .collect();
        // Straight to the raft leader if it is in reach, else to a node that knows it.
        let raft_leader =
            reachable.iter().find_map(knows_raft_leader).filter(|l| reachable.contains(l));
        let to = raft_leader
            .or_else(|| reachable.iter().find(|n| knows_raft_leader(n).is_some()).cloned());
        match to {
            Some(to) => self.pass_command(&to, id),
            None => self.retry_command(now, id),
        }
    }

    fn pass_command(&mut self, to: &NodeName, id: u64) {
        let Some(pending) = self.commands.pending.get_mut(&id) else { return };
        pending.asked.insert(to.clone());
        let (author, request) = (pending.author.clone(), pending.request.clone());
        self.send(to, Frame::Forward { id, author, request });
    }

    fn retry_command(&mut self, now: Now, id: u64) {
        if let Some(pending) = self.commands.pending.get_mut(&id) {
            pending.retry = Some(now.mono + RETRY);
        }
    }

    /// Our own group is not led by this node.
    pub(super) fn command_to_raft_leader(&mut self, now: Now, location: &LocationName, id: u64) {
        let from_afar = matches!(self.commands.pending.get(&id), Some(PendingCommand { reply_to: ReplyTo::Node(from, _), .. })
            if self.groups.get(location).and_then(|g| g.raft_leader()) == Some(from));
        let raft_leader = self.groups.get(location).and_then(|g| g.raft_leader().cloned());
        match raft_leader {
            // Never back to the node that sent it: two nodes that each take the other for the raft leader would loop.
            Some(leader) if leader != self.me && !from_afar && self.peers.is_connected(&leader) => {
                self.pass_command(&leader, id);
            }
            _ => self.retry_command(now, id),
        }
    }

    /// An answer from another node, which must be one that was asked.
    pub(super) fn forward_answered(
        &mut self,
        now: Now,
        from: &NodeName,
        id: u64,
        response: AdminResponse,
    ) {
        match self.commands.pending.get(&id) {
            Some(pending) if pending.asked.contains(from) => self.command_answered(id, response),
            // An answer to a command that was given up is late, not false.
            None => {}
            Some(_) => self.ignored(now, from.as_str(), Ignored::AnswerNotAsked),
        }
    }

    pub(super) fn command_answered(&mut self, id: u64, response: AdminResponse) {
        if let Some(pending) = self.commands.pending.remove(&id) {
            self.answer(pending.reply_to, response);
        }
    }

    pub(super) fn expire_commands(&mut self, now: Now) {
        let due =
            |p: &PendingCommand| p.deadline <= now.mono || p.retry.is_some_and(|at| at <= now.mono);
        let ids: Vec<u64> =
            self.commands.pending.iter().filter(|(_, p)| due(p)).map(|(id, _)| *id).collect();
        for id in ids {
            if self.commands.pending.get(&id).is_some_and(|p| p.deadline > now.mono) {
                self.offer_command(now, id);
            } else if let Some(pending) = self.commands.pending.remove(&id) {
                if let Some(group) = self.groups.get_mut(&pending.location) {
                    group.forget_command(id);
                }
                self.answer(pending.reply_to, AdminResponse::unanswered(Some(&pending.location)));
            }
        }
    }

    fn answer(&mut self, reply_to: ReplyTo, response: AdminResponse) {
        let response = response.shortened();
        match reply_to {
            ReplyTo::AdminSocket(id) => self.effects.push_back(Effect::AdminReply { id, response }),
            ReplyTo::Node(node, id) => self.send(&node, Frame::Forwarded { id, response }),
        }
    }
}
