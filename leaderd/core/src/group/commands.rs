//! What an operator asks of the raft leader: checked, proposed, answered when committed.

use std::time::Duration;

use super::{Group, GroupOutput, event};
use crate::admin::{AdminRequest, AdminResponse, Author};
use crate::capability::Capabilities;
use crate::ids::NodeName;
use crate::state::{Command, EventKind, FreezeEnd};
use crate::time::{Instant, Now};
use crate::verdict::Cause;

/// How long an operator waits for a commit.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// Commands that may wait at once.
const MAX_PENDING: usize = 64;

/// A proposed command that somebody waits for.
pub(super) struct Pending {
    pub id: u64,
    pub at: (u64, u64),
    pub message: String,
    pub deadline: Instant,
}

type Refusal = String;

impl Group {
    /// Proposes if this node is the raft leader, else gives [`GroupOutput::NotLeader`].
    pub fn handle_command(&mut self, now: Now, id: u64, author: &Author, request: &AdminRequest) {
        if !self.raft.is_settled_leader() {
            self.outputs.push_back(GroupOutput::NotLeader { id });
            return;
        }
        let proposed = if self.pending.len() >= MAX_PENDING {
            Err("too many commands are waiting: try again in a moment".to_owned())
        } else {
            self.propose_request(now, author, request)
        };
        match proposed {
            Ok((at, message)) => {
                self.pending.push_back(Pending {
                    id,
                    at,
                    message,
                    deadline: now.mono + COMMIT_WITHIN,
                });
            }
            Err(message) => self.refuse(id, message),
        }
        self.settle(now);
    }

    fn refuse(&mut self, id: u64, message: String) {
        self.outputs
            .push_back(GroupOutput::Reply { id, response: AdminResponse::Refused { message } });
    }

    fn propose_request(
        &mut self,
        now: Now,
        author: &Author,
        request: &AdminRequest,
    ) -> Result<((u64, u64), String), Refusal> {
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
                if !self.ledger.is_frozen(now, self.state()) {
                    return Err(format!("{location} is not frozen"));
                }
                (Command::Unfreeze, format!("{location} fails over by itself again"))
            }
        };
        let at = self.propose(&command)?;
        let mut event = event::notice(
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
        Ok((at, message))
    }

    /// The (index, term) that the command will have if it is committed.
    pub(super) fn propose(&mut self, command: &Command) -> Result<(u64, u64), Refusal> {
        self.propose_needing(command.needs(), command)
    }

    /// Proposes only what every voter can read: one that cannot would stop at it.
    pub(super) fn propose_needing(
        &mut self,
        needs: Capabilities,
        command: &Command,
    ) -> Result<(u64, u64), Refusal> {
        let lacks = |id: &u64| {
            let theirs = match self.ids.get(id) {
                Some(name) if *name == self.me => Capabilities::OURS,
                Some(name) => self.ledger.capabilities(name),
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
        let situation = self.ledger.situation(now, &self.mesh, &self.raft.state, &self.me);
        let slot = self.mesh.node(node).and_then(|n| n.slot);
        if !slot.is_some_and(|s| situation.leaders.contains(&s)) {
            return format!("{node} is drained: it will not lead");
        }
        match situation.eligible(None).into_iter().find(|s| Some(*s) != slot) {
            Some(s) => format!("{node} is drained: {} takes over", situation.candidates[&s].name),
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
    ) -> Result<((u64, u64), String), Refusal> {
        let slot = self.candidate(node)?;
        let situation = self.ledger.situation(now, &self.mesh, &self.raft.state, &self.me);
        if situation.leaders.first() == Some(&slot) {
            return Err(format!("{node} leads already"));
        }
        if self.state().drained.contains(node) {
            return Err(format!("{node} is drained: `wgctl undrain {node}` first"));
        }
        let blocked = situation.blocked_by(slot, None);
        if !blocked.is_empty() && !force {
            let why = blocked.join(", ");
            return Err(format!(
                "{node} is not known to forward: {why}; mend that, or promote with --force"
            ));
        }
        if self.proposed.is_some() {
            return Err("a decision is under way: look at `wgctl status` and try again".into());
        }
        let mut leaders = vec![slot];
        leaders.extend(situation.leaders.iter().copied().filter(|s| *s != slot));
        leaders.truncate(situation.want);
        let why = (Cause::Promoted, None);
        let at = self
            .propose_decision(now, &situation, leaders, why, Some(author.clone()))
            .ok_or(LOST)?;
        Ok((at, format!("{node} leads now")))
    }

    fn candidate(&self, node: &NodeName) -> Result<crate::ids::Slot, Refusal> {
        let known = self.mesh.node(node).filter(|n| n.location == self.location);
        let known = known.ok_or_else(|| format!("{node} is no node of {}", self.location))?;
        known.slot.ok_or_else(|| format!("{node} is no candidate: it has no slot in the mesh file"))
    }

    fn check_location(&self, location: &crate::ids::LocationName) -> Result<(), Refusal> {
        if *location == self.location {
            Ok(())
        } else {
            Err(format!("this is {}, not {location}", self.location))
        }
    }

    /// An entry was applied: answers who waits for it, and who waits for one that it has replaced.
    pub(super) fn answer(&mut self, index: u64, term: u64) {
        let (done, waiting): (Vec<_>, Vec<_>) =
            self.pending.drain(..).partition(|p| p.at.0 <= index);
        self.pending.extend(waiting);
        for p in done {
            let response = if p.at == (index, term) {
                let epoch = self.state().epoch();
                AdminResponse::Done { location: self.location.clone(), epoch, message: p.message }
            } else {
                AdminResponse::Refused {
                    message: "the raft leader changed meanwhile: try again".into(),
                }
            };
            self.outputs.push_back(GroupOutput::Reply { id: p.id, response });
        }
    }

    pub(super) fn expire_commands(&mut self, now: Now) {
        while self.pending.front().is_some_and(|p| now.mono >= p.deadline) {
            let pending = self.pending.pop_front().expect("there is a front");
            let message = "not committed within 10 s, most voters are out of reach: it may still happen later; \
                           see `wgctl status`";
            self.refuse(pending.id, message.to_owned());
        }
    }
}

const LOST: &str = "this node is no longer the raft leader: try again";

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
