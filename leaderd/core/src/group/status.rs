//! What an operator sees of the group.

use std::time::Duration;

use super::Group;
use crate::election::Situation;
use crate::ids::{NodeName, Slot};
use crate::status::CandidateStatus;
use crate::time::{Now, WallTime};

impl Group {
    /// True if this node is in touch with most voters (as raft leader), or with a raft leader that is. A raft leader whose
    /// disk takes no writes decides nothing.
    pub fn has_quorum(&self, now: Now) -> bool {
        if self.raft.is_leader() {
            !self.disk_is_stuck(now) && self.reachable_voters(now) * 2 > self.voters.len()
        } else {
            self.raft.follows()
        }
    }

    /// True while the disk confirms none of the writes that wait for it.
    pub fn disk_is_stuck(&self, now: Now) -> bool {
        self.disk.stuck_for(now.mono).is_some()
    }

    fn reachable_voters(&self, now: Now) -> usize {
        let within = (self.raft.election_timeout() * 2).max(Duration::from_millis(1500));
        let heard = |n: &&NodeName| {
            **n == self.me || self.reports.silence(now.mono, n).is_some_and(|s| s < within)
        };
        self.voters.iter().filter(heard).count()
    }

    fn situation(&self, now: Now) -> Situation {
        self.reports.situation(now, &self.mesh, self.raft.state(), &self.me)
    }

    pub fn candidates_status(&self, now: Now) -> Vec<CandidateStatus> {
        self.situation(now).candidates_status()
    }

    /// Who would lead if the leader failed now.
    pub fn next_leader(&self, now: Now) -> Option<Slot> {
        let situation = self.situation(now);
        let next = match situation.leaders.first() {
            Some(leader) => situation.successors(*leader),
            None => situation.eligible(),
        };
        next.into_iter().find(|s| !situation.leaders.contains(s))
    }

    /// The freeze in force and when it ends, by this node's wall clock; `None` once it has ended.
    pub fn freeze_end(&self, now: Now) -> Option<Option<WallTime>> {
        let ends = |left: Duration| WallTime(now.wall.0.saturating_add(left.as_micros() as u64));
        self.reports.freeze_left(now, self.state()).map(|left| left.map(ends))
    }

    /// What prevents a decision, as far as every voter knows.
    pub fn notes(&self, now: Now) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(waited) = self.disk.stuck_for(now.mono) {
            notes.push(format!(
                "the disk has confirmed no writes for {} s: this node neither votes nor leads Raft until it does",
                waited.as_secs()
            ));
        }
        let (mine, theirs) = (self.mesh.generation, self.state().voters_generation);
        if mine < theirs {
            notes.push(format!(
                "the voters come from generation {theirs} of the mesh file, and this node has {mine}"
            ));
        }
        if !self.has_quorum(now) {
            let (have, of) = (self.reachable_voters(now), self.voters.len());
            notes.push(format!(
                "no quorum: {have} of {of} voters reachable; nothing can be decided"
            ));
        }
        if self.raft.is_stopped() {
            notes.push(super::drain::TOO_OLD.into());
        }
        if self.raft.is_non_voting() {
            notes.push(
                "this node came with an empty store and does not vote until it has caught up"
                    .into(),
            );
        }
        notes
    }

    /// Why leadership does not move although it should. Only for a voter that gets reports: without them it decides otherwise.
    pub fn notes_of_election(&self, now: Now) -> Vec<String> {
        self.situation(now).notes()
    }
}
