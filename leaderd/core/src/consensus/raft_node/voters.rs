//! Who votes: joint consensus towards the voters of the mesh file, and handing over Raft leadership.
//!
//! * A change carries the generation of the mesh file that it comes from, and the replicated state remembers the newest.
//!   A raft leader with an older file changes nothing.
//! * A raft leader never proposes to leave a configuration that takes its own vote: it hands over first, and its
//!   successor proposes it. raft-rs panics in a raft leader that is no voter any more and still has entries to commit.
//! * One that finds such a change in the log it was elected with steps down when it applies it, and takes no proposals
//!   until then.

use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
};

use super::{LogEvent, RaftNode};
use crate::ids::Generation;

/// Most voters in a configuration.
pub(in crate::consensus) const MAX_VOTERS: usize = 32;

impl RaftNode {
    /// Voters of the committed configuration as far as it is applied here, both halves while it is joint.
    pub fn voters(&self) -> Vec<u64> {
        let conf = self.raw.store().conf();
        let mut all: Vec<u64> = conf.voters.iter().chain(&conf.voters_outgoing).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Two configurations vote together, until the newer one has caught up.
    pub fn is_joint(&self) -> bool {
        !self.raw.store().conf().voters_outgoing.is_empty()
    }

    /// True for a voter of the configuration to come, or of the only one.
    pub fn stays(&self, id: u64) -> bool {
        self.raw.store().conf().voters.contains(&id)
    }

    /// True if the log of this raft leader may hold the end of a joint configuration that takes its own vote.
    pub(super) fn is_leaving(&self) -> bool {
        self.raw.raft.has_pending_conf() && self.is_joint() && !self.stays(self.raw.raft.id)
    }

    /// True if these are not the voters, or not yet the only ones.
    pub fn voters_differ(&self, wanted: &[u64]) -> bool {
        self.is_joint()
            || self.voters().len() != wanted.len()
            || !wanted.iter().all(|id| self.stays(*id))
    }

    /// Lets these vote instead, together with those that do now until [`Self::leave_joint`]. Does nothing if the voters
    /// come from a newer mesh file.
    pub fn enter_joint(&mut self, wanted: &[u64], generation: Generation) {
        if self.is_joint() || generation < self.state.voters_generation {
            return;
        }
        let conf = self.raw.store().conf();
        let added = wanted
            .iter()
            .filter(|id| !conf.voters.contains(id))
            .map(|&id| single(id, ConfChangeType::AddNode));
        let gone = conf
            .voters
            .iter()
            .filter(|id| !wanted.contains(id))
            .map(|&id| single(id, ConfChangeType::RemoveNode));
        let changes: Vec<ConfChangeSingle> = added.chain(gone).collect();
        if changes.is_empty() {
            return;
        }
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Explicit);
        change.set_changes(changes.into());
        change.context = generation.0.to_le_bytes().to_vec().into();
        self.propose_change(change);
    }

    /// Ends the joint configuration, unless that would take the vote of this node.
    pub fn leave_joint(&mut self) {
        if self.is_joint() && self.stays(self.raw.raft.id) {
            self.propose_change(ConfChangeV2::default());
        }
    }

    fn propose_change(&mut self, change: ConfChangeV2) {
        if self.is_settled_leader() && !self.raw.raft.has_pending_conf() {
            let _ = self.raw.propose_conf_change(Vec::new(), change);
            self.pump();
        }
    }

    /// An entry that changes the voters was committed.
    pub(super) fn apply_change(&mut self, entry: &Entry) {
        let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) else { return };
        let Ok(conf) = self.raw.apply_conf_change(&change) else { return };
        let id = self.raw.raft.id;
        let votes =
            |conf: &ConfState| conf.voters.contains(&id) || conf.voters_outgoing.contains(&id);
        if self.is_leader() && !votes(&conf) {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        if let Some(generation) = generation_of(&change) {
            let newest = &mut self.state.voters_generation;
            *newest = (*newest).max(generation);
        }
        self.raw.mut_store().set_conf(conf);
        // A voter that joins must begin with this configuration, so nothing older may be replayed to it.
        self.compact(0);
        self.events.push_back(LogEvent::Voters(self.voters()));
    }

    /// True if most of the voters to come have confirmed the change to this raft leader, so that they vote.
    pub fn newcomers_vote(&self) -> bool {
        let raft = &self.raw.raft;
        let voters = &self.raw.store().conf().voters;
        let know = |id: &&u64| {
            raft.prs().get(**id).is_some_and(|p| p.committed_index >= raft.pending_conf_index)
        };
        voters.iter().filter(know).count() * 2 > voters.len()
    }

    /// Asks this voter to take over, if it is in touch and has the whole log. It may be asked by a raft leader that has
    /// applied nothing of its own term. An earlier request is withdrawn.
    pub fn transfer(&mut self, to: u64) -> bool {
        let raft = &mut self.raw.raft;
        let last = raft.raft_log.last_index();
        let able = to != raft.id && raft.prs().get(to).is_some_and(|p| p.matched == last);
        if raft.state != StateRole::Leader || !able {
            return false;
        }
        raft.abort_leader_transfer();
        self.raw.transfer_leader(to);
        self.pump();
        true
    }

    /// Leads no more, and leaves it to the others who does.
    pub fn step_down(&mut self) {
        if self.is_leader() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
            self.pump();
        }
    }
}

fn single(id: u64, ty: ConfChangeType) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: id, ..Default::default() };
    single.set_change_type(ty);
    single
}

fn generation_of(change: &ConfChangeV2) -> Option<Generation> {
    let bytes: [u8; 8] = change.context.as_ref().try_into().ok()?;
    Some(Generation(u64::from_le_bytes(bytes)))
}

/// True for the two changes that [`RaftNode`] proposes: voters come and go with the generation of their mesh file, and the
/// end of a joint configuration.
pub(in crate::consensus) fn is_ours(bytes: &[u8]) -> bool {
    let Ok(change) = ConfChangeV2::parse_from_bytes(bytes) else { return false };
    if change.changes.is_empty() {
        return bytes.is_empty();
    }
    let voter = |c: &ConfChangeSingle| {
        c.node_id != 0 && c.get_change_type() != ConfChangeType::AddLearnerNode
    };
    change.get_transition() == ConfChangeTransition::Explicit
        && change.changes.len() <= 2 * MAX_VOTERS
        && change.changes.iter().all(voter)
        && generation_of(&change).is_some()
}
