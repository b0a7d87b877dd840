//! Which voter leads Raft: the voters follow the mesh file, Raft leadership keeps off the location leader, and a node
//! whose disk takes no writes gives it up.

use std::time::Duration;

use super::{Group, id_of};
use crate::election::Situation;
use crate::ids::NodeName;
use crate::io::LogLevel;
use crate::time::{Instant, Now};

/// Time between two tries to move Raft leadership off the location leader, or to change the voters; longer where an
/// election takes longer.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long such a raft leader tries to hand over before it just steps down: with [`STUCK_AFTER`](super::disk_watch::STUCK_AFTER) less than 3 s.
const GIVE_UP_WITHIN: Duration = Duration::from_millis(800);
/// How long each successor has for taking over from it.
const SUCCESSOR_TURN: Duration = Duration::from_millis(400);
/// How long a raft leader that loses its vote tries to hand over to a voter that stays before it lets the new ones in:
/// one of those takes over then.
const HAND_OVER_FIRST: Duration = Duration::from_secs(3);

/// What a group knows about giving up and handing over Raft leadership.
#[derive(Debug)]
pub(super) struct Leadership {
    next_housekeeping: Instant,
    /// Since when this raft leader gives up because of its disk, and when the next successor is asked.
    giving_up: Option<(Instant, Instant)>,
    leaving_since: Option<Instant>,
    /// Successors that were asked while this raft leader leads, the last one last.
    asked: Vec<NodeName>,
}

impl Leadership {
    pub fn new(now: Instant) -> Self {
        Self { next_housekeeping: now, giving_up: None, leaving_since: None, asked: Vec::new() }
    }

    pub fn housekeep_soon(&mut self, now: Instant) {
        self.next_housekeeping = now;
    }

    pub fn another_leads(&mut self) {
        self.asked.clear();
        self.leaving_since = None;
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.giving_up.map(|(_, next)| next)
    }
}

impl Group {
    /// A raft leader whose disk takes no writes can commit nothing, and its heartbeats keep the others from electing
    /// another. So it hands over, or steps down, and campaigns no more until the disk confirms something.
    pub(super) fn watch_disk(&mut self, now: Now) {
        let stuck = self.disk_is_stuck(now);
        self.raft.bar_campaigns(stuck);
        match self.disk.change(now.mono) {
            Some(true) => {
                let text = "the disk confirms no writes: this node neither votes nor leads Raft until it does";
                self.log(LogLevel::Error, text, &[]);
            }
            Some(false) => self.log(LogLevel::Info, "the disk confirms writes again", &[]),
            None => {}
        }
        if !stuck || !self.raft.is_leader() {
            self.leadership.giving_up = None;
            return;
        }
        let (since, next) = self.leadership.giving_up.unwrap_or((now.mono, now.mono));
        if now.mono < next {
            return;
        }
        self.leadership.giving_up = Some((since, now.mono + SUCCESSOR_TURN));
        let mut successors = self.successors(now);
        // Leaders of the location come first in that order, and should lead Raft last.
        successors.reverse();
        if now.mono.since(since) >= GIVE_UP_WITHIN || !self.ask_successor(successors) {
            self.leadership.giving_up = None;
            self.raft.step_down();
            self.log(LogLevel::Warn, "gave up raft leadership: the disk confirms no writes", &[]);
        }
    }

    /// The other voters that are up and keep their vote: candidates, then members and witnesses.
    fn successors(&self, now: Now) -> Vec<NodeName> {
        // The order of `voters_of`. One that a newer mesh file knows comes last.
        let place = |name: &NodeName| {
            self.voters.iter().position(|v| v == name).unwrap_or(self.voters.len())
        };
        let able = |(id, name): &(&u64, &NodeName)| {
            **name != self.me && self.raft.stays(**id) && self.reports.is_up(now.mono, name)
        };
        let mut successors: Vec<NodeName> =
            self.ids.iter().filter(able).map(|(_, name)| name.clone()).collect();
        successors.sort_by_key(place);
        successors
    }

    /// Asks one of them to take over, in turn: one that hangs is not asked again before the others.
    fn ask_successor(&mut self, mut successors: Vec<NodeName>) -> bool {
        let asked = &mut self.leadership.asked;
        successors.sort_by_key(|name| asked.iter().position(|a| a == name).map_or(0, |at| at + 1));
        for name in successors {
            if self.raft.transfer(id_of(&self.mesh, &name)) {
                let asked = &mut self.leadership.asked;
                asked.retain(|a| *a != name);
                asked.push(name);
                return true;
            }
        }
        false
    }

    /// Keeps the voters as in the mesh file, and Raft leadership off the location's leaders, so that losing one costs no election.
    pub(super) fn housekeeping(&mut self, now: Now, situation: &Situation) {
        if now.mono < self.leadership.next_housekeeping {
            return;
        }
        self.leadership.next_housekeeping = now.mono + HOUSEKEEPING.max(self.raft.unit() * 4);
        self.follow_voters(now);
        let leads = |name: &NodeName| {
            situation
                .leaders
                .iter()
                .any(|s| situation.candidates.get(s).is_some_and(|c| c.name == *name))
        };
        // A node whose tunnels are dead hears observers only through others, and cannot announce to other locations.
        let failed = |name: &NodeName| {
            let found = situation.candidates.iter().find(|(_, c)| c.name == *name);
            found.is_some_and(|(s, _)| situation.failing(*s).is_some())
        };
        let leaves = !self.raft.stays(id_of(&self.mesh, &self.me));
        if !leaves && !leads(&self.me) && !failed(&self.me) {
            return;
        }
        if self.raft.is_joint() && !(leaves && self.raft.newcomers_vote()) {
            // New voters that have not caught up do not vote: an election now might find no winner.
            return;
        }
        let broken = |name: &NodeName| {
            situation.candidates.values().any(|c| c.name == *name && c.broken.is_some())
        };
        let unfit = |name: &NodeName| leads(name) || broken(name) || failed(name);
        let mut successors = self.successors(now);
        // Any voter is a better raft leader than one that loses its vote.
        if !leaves || !successors.iter().all(unfit) {
            successors.retain(|name| !unfit(name));
        }
        self.ask_successor(successors);
    }

    /// Brings the voters to those of the mesh file, one step a call.
    fn follow_voters(&mut self, now: Now) {
        let wanted: Vec<u64> = self.voters.iter().map(|n| id_of(&self.mesh, n)).collect();
        if self.raft.is_joint() {
            return self.raft.leave_joint();
        }
        if !self.raft.voters_differ(&wanted) || !self.know_the_file(now) {
            self.leadership.leaving_since = None;
            return;
        }
        if !self.voters.contains(&self.me) {
            let since = *self.leadership.leaving_since.get_or_insert(now.mono);
            let mut successors = self.successors(now);
            successors.retain(|name| self.voters.contains(name) && self.has_the_file(now, name));
            if !successors.is_empty() && now.mono.since(since) < HAND_OVER_FIRST {
                self.ask_successor(successors);
                return;
            }
        }
        self.raft.enter_joint(&wanted, self.mesh.generation);
    }

    /// True if most of the voters to come are alive and have this mesh file, or a later one: without them the change
    /// could not be committed, and nothing after it.
    fn know_the_file(&self, now: Now) -> bool {
        let know = self.voters.iter().filter(|n| **n == self.me || self.has_the_file(now, n));
        know.count() * 2 > self.voters.len()
    }

    fn has_the_file(&self, now: Now, node: &NodeName) -> bool {
        let known = self.reports.generation(now.mono, node);
        known.is_some_and(|generation| generation >= self.mesh.generation)
    }
}
