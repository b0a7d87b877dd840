//! Operators' commands at the raft leader: checked, proposed, answered when committed. The node bounds how many wait and for
//! how long.

use std::time::Duration;

use super::{Group, GroupOutput};
use crate::admin::{AdminRequest, AdminResponse, Author};
use crate::capability::Capabilities;
use crate::consensus::EntryId;
use crate::election::narrate;
use crate::fault::MoveReason;
use crate::ids::NodeName;
use crate::state::{Command, EventKind, FreezeEnd};
use crate::time::Now;

/// A command that was proposed and is not applied yet.
pub(super) struct ProposedCommand {
    id: u64,
    /// The entry that it is once it is committed.
    entry: EntryId,
    message: String,
}

impl Group {
    /// Proposes the command if this node is the raft leader, else outputs [`GroupOutput::NotLeader`].
    pub fn handle_command(&mut self, now: Now, id: u64, author: &Author, request: &AdminRequest) {
        if !self.raft.is_settled_leader() {
            self.outputs.push_back(GroupOutput::NotLeader { id });
            return;
        }
        match self.propose_request(now, author, request) {
            Ok((entry, message)) => self.commands.push(ProposedCommand { id, entry, message }),
            Err(message) => {
                let response = AdminResponse::Refused { message };
                self.outputs.push_back(GroupOutput::Reply { id, response });
            }
        }
        self.drain_raft(now);
    }

    /// Drops a command that the node has given up. It may still be committed.
    pub fn forget_command(&mut self, id: u64) {
        self.commands.retain(|c| c.id != id);
    }

    fn propose_request(
        &mut self,
        now: Now,
        author: &Author,
        request: &AdminRequest,
    ) -> Result<(EntryId, String), String> {
        let (command, message) = match request {
            AdminRequest::Promote { node, force } => {
                return self.promote(now, author, node, *force);
            }
            AdminRequest::Drain { node } => {
                self.candidate(node)?;
                if self.state().drained.contains(node) {
                    return Err(format!(
                        "{node} is drained already; `wgctl undrain {node}` ends it"
                    ));
                }
                (Command::Drain { node: node.clone() }, self.drain_message(now, node))
            }
            AdminRequest::Undrain { node } => {
                if !self.state().drained.contains(node) {
                    return Err(format!("{node} is not drained"));
                }
                (Command::Undrain { node: node.clone() }, format!("{node} may lead again"))
            }
            AdminRequest::Freeze { location, duration } => {
                self.check_location(location)?;
                let until = duration.map(|span| FreezeEnd {
                    until: crate::time::WallTime(now.wall.0.saturating_add(micros(span))),
                    span,
                });
                let how = duration
                    .map_or("until `unfreeze`".to_owned(), |d| format!("for {} s", d.as_secs()));
                (Command::Freeze { until }, format!("no automatic failover of {location} {how}"))
            }
            AdminRequest::Unfreeze { location } => {
                self.check_location(location)?;
                if !self.reports.is_frozen(now, self.state()) {
                    return Err(format!("{location} is not frozen"));
                }
                (Command::Unfreeze, format!("{location} fails over by itself again"))
            }
        };
        let entry = self.propose(&command)?;
        let mut event = narrate::notice(
            &self.mesh,
            self.state(),
            None,
            EventKind::Operator,
            None,
            message.clone(),
            now.wall,
        );
        event.author = Some(author.clone());
        let _ = self.propose(&Command::Record { event: Box::new(event) });
        Ok((entry, message))
    }

    /// Returns the entry that the command is once it is committed.
    pub(super) fn propose(&mut self, command: &Command) -> Result<EntryId, String> {
        self.propose_needing(command.needs(), command)
    }

    /// Proposes only what every voter can read: one that cannot would stop at it.
    pub(super) fn propose_needing(
        &mut self,
        needs: Capabilities,
        command: &Command,
    ) -> Result<EntryId, String> {
        let lacks = |id: &u64| {
            let theirs = match self.ids.get(id) {
                Some(name) if *name == self.me => Capabilities::OURS,
                Some(name) => self.reports.capabilities(name),
                None => Capabilities::NONE,
            };
            !needs.without(theirs).is_empty()
        };
        let voters = self.raft.voters();
        let old: Vec<String> = voters
            .iter()
            .filter(|id| lacks(id))
            .map(|id| self.ids.get(id).map_or(id.to_string(), NodeName::to_string))
            .collect();
        if !old.is_empty() {
            let names = old.join(", ");
            return Err(format!(
                "not every voter's leaderd is known to understand this: bring {names} to this version, or start it there"
            ));
        }
        self.raft.propose(needs, command).ok_or_else(|| LOST.to_owned())
    }

    fn drain_message(&mut self, now: Now, node: &NodeName) -> String {
        let situation = self.reports.situation(now, &self.mesh, self.raft.state(), &self.me);
        let slot = self.mesh.node(node).and_then(|n| n.slot);
        let Some(slot) = slot.filter(|s| situation.leaders.contains(s)) else {
            return format!("{node} is drained: it will not lead");
        };
        match situation.successors(slot).first() {
            Some(s) => format!("{node} is drained: {} takes over", situation.candidates[s].name),
            None => format!(
                "{node} is drained, but leads until another candidate forwards: see `wgctl status`"
            ),
        }
    }

    fn promote(
        &mut self,
        now: Now,
        author: &Author,
        node: &NodeName,
        force: bool,
    ) -> Result<(EntryId, String), String> {
        let slot = self.candidate(node)?;
        let situation = self.reports.situation(now, &self.mesh, self.raft.state(), &self.me);
        if situation.leaders.first() == Some(&slot) {
            return Err(format!("{node} leads already"));
        }
        if self.state().drained.contains(node) {
            return Err(format!("{node} is drained: `wgctl undrain {node}` first"));
        }
        let blocked = situation.blocked_by(slot);
        if !blocked.is_empty() && !force {
            let why = blocked.join(", ");
            return Err(format!(
                "{node} is not known to forward: {why}; mend that, or promote with --force"
            ));
        }
        let leader = situation.leaders.first().filter(|l| situation.net(slot, **l) < 0);
        if let Some(leader) = leader.and_then(|l| situation.candidates.get(l)).filter(|_| !force) {
            let leader = &leader.name;
            return Err(format!(
                "{node} is seen to serve fewer locations than {leader}, which would soon lead again; mend that, or promote with --force"
            ));
        }
        if self.proposed.is_some() {
            return Err("a decision is under way: look at `wgctl status` and try again".into());
        }
        let mut leaders = vec![slot];
        leaders.extend(situation.leaders.iter().copied().filter(|s| *s != slot));
        leaders.truncate(situation.want);
        let why = (MoveReason::Promoted, None);
        let entry = self
            .propose_decision(now, &situation, leaders, why, Some(author.clone()))
            .ok_or(LOST)?;
        Ok((entry, format!("{node} leads now")))
    }

    fn candidate(&self, node: &NodeName) -> Result<crate::ids::Slot, String> {
        let known = self.mesh.node(node).filter(|n| n.location == self.location);
        let known = known.ok_or_else(|| format!("{node} is no node of {}", self.location))?;
        known.slot.ok_or_else(|| format!("{node} is no candidate: it has no slot in the mesh file"))
    }

    fn check_location(&self, location: &crate::ids::LocationName) -> Result<(), String> {
        if *location == self.location {
            Ok(())
        } else {
            Err(format!("this is {}, not {location}", self.location))
        }
    }

    /// An entry was applied: answers the command that it is, and those whose place it took.
    pub(super) fn answer_applied(&mut self, applied: EntryId) {
        for command in self.commands.extract_if(.., |c| c.entry.index <= applied.index) {
            let response = if command.entry == applied {
                let (location, epoch) = (self.location.clone(), self.raft.state().epoch());
                AdminResponse::Done { location, epoch, message: command.message }
            } else {
                let message = "the raft leader changed meanwhile: try again".into();
                AdminResponse::Refused { message }
            };
            self.outputs.push_back(GroupOutput::Reply { id: command.id, response });
        }
    }
}

const LOST: &str = "this node is no longer the raft leader: try again";

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
