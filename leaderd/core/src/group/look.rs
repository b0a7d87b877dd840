//! The raft leader looks at the situation and proposes what follows from it.

use std::time::Duration;

use super::decide::{Choice, Situation};
use super::{Group, event};
use crate::admin::Author;
use crate::ids::{Epoch, NodeName, Slot};
use crate::io::LogLevel;
use crate::state::{Command, EventKind, EventTimes};
use crate::time::{Now, WallTime};
use crate::verdict::{Cause, Direction};

/// Time between two tries to move Raft leadership off the location leader, or to change the voters.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Trouble must last this long to be recorded as fail-static: a standby's verdict may only be a burst behind.
const TROUBLE_FOR: Duration = Duration::from_secs(1);
/// Least time between two records about trouble, so that flapping evidence does not fill the events.
const TROUBLE_AGAIN: Duration = Duration::from_secs(10);
/// Least time between two decisions for the sake of a claimed epoch, so that a liar does not fill the events.
const OUTDONE_AGAIN: Duration = Duration::from_secs(10);
/// A disk that for so long confirms none of the writes that wait for it is full or broken.
const DISK_STUCK: Duration = Duration::from_secs(2);

impl Group {
    /// The raft leader looks at the situation.
    pub(super) fn look(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let situation = self.ledger.situation(now, &mesh, &self.raft.state, &self.me);
        if self.proposed.is_none() && self.is_outdone(now, &situation) {
            let leaders = situation.leaders.clone();
            self.propose_decision(now, &situation, leaders, (Cause::Initial, None), None);
        } else if self.proposed.is_none() {
            match situation.decide() {
                Choice::Keep => self.trouble_over(now, &situation),
                Choice::Blocked { .. } => {}
                Choice::FailStatic { cause } if cause.is_fault() => {
                    self.trouble(now, &situation, cause)
                }
                Choice::FailStatic { .. } => {}
                Choice::Move { leaders, cause, direction } => {
                    self.propose_decision(now, &situation, leaders, (cause, direction), None);
                }
            }
        }
        self.complete(&situation);
        if now.mono >= self.next_housekeeping {
            self.next_housekeeping = now.mono + HOUSEKEEPING;
            self.housekeeping(now, &situation);
        }
    }

    /// Somebody knows a higher epoch than the present decision has, and so obeys none of ours: the location has lost its stores, and
    /// the claim came too late for its first decision. Then the same leaders are told again, beyond that epoch.
    ///
    /// Never so in one unbroken history: a settled raft leader has applied all that was ever committed, so nobody can know more,
    /// but for its own last proposal (`proposed`) and for what has been committed without it: then it is raft leader no more, and
    /// what it proposes comes to nothing. Whoever lies costs one event in a while, as a claim is outdone only so often.
    fn is_outdone(&mut self, now: Now, situation: &Situation) -> bool {
        let outdone = situation.decided && self.next_epoch() > self.state().epoch().next();
        let recently = self.outdone_at.is_some_and(|at| now.mono.since(at) < OUTDONE_AGAIN);
        if outdone && !recently {
            self.outdone_at = Some(now.mono);
        }
        outdone && !recently
    }

    fn next_epoch(&self) -> Epoch {
        self.state().epoch().max(self.ledger.highest_epoch()).next()
    }

    pub(super) fn propose_decision(
        &mut self,
        now: Now,
        situation: &Situation,
        leaders: Vec<Slot>,
        why: (Cause, Option<Direction>),
        author: Option<Author>,
    ) -> Option<(u64, u64)> {
        let epoch = self.next_epoch();
        let (decision, mut event) =
            event::decision(&self.mesh, self.state(), situation, epoch, leaders, why, now.wall);
        event.author = author;
        let expected_epoch = self.state().epoch();
        let at =
            self.propose(&Command::Decide { expected_epoch, decision, event: Box::new(event) });
        let at = at.ok();
        self.proposed = at;
        self.trouble_since = None;
        at
    }

    /// The leader is at fault and nobody would be better: say so once, and loudly.
    fn trouble(&mut self, now: Now, situation: &Situation, cause: Cause) {
        let since = *self.trouble_since.get_or_insert(now.mono);
        let recently = self.trouble_told.is_some_and(|at| now.mono.since(at) < TROUBLE_AGAIN);
        if self.state().in_trouble() || recently || now.mono.since(since) < TROUBLE_FOR {
            return;
        }
        self.trouble_told = Some(now.mono);
        let summary = format!(
            "the leader is at fault ({cause}) and no standby would be better: nothing was changed"
        );
        self.log(LogLevel::Error, summary.clone(), &[("decision.cause", cause.to_string())]);
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
        let _ = self.propose(&Command::Record { event: Box::new(event) });
    }

    fn trouble_over(&mut self, now: Now, situation: &Situation) {
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
        let _ = self.propose(&Command::Record { event: Box::new(event) });
    }

    /// Adds when most observers had programmed, and had verified, the present decision: one command each.
    fn complete(&mut self, situation: &Situation) {
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
            let _ = self.propose(&Command::Complete { epoch, times, blackout });
        }
    }

    fn disk_is_stuck(&self, now: Now) -> bool {
        self.unwritten.is_some_and(|(_, since)| now.mono.since(since) > DISK_STUCK)
    }

    /// A raft leader whose disk took its vote and hangs since: it keeps the others from electing another, and applies nothing of its
    /// own term, so it never gets as far as [`Self::look`]. Whoever has the whole log takes over.
    pub(super) fn hand_over_unsettled(&mut self, now: Now) {
        let unsettled = self.raft.is_leader() && !self.raft.is_settled_leader();
        if !unsettled || now.mono < self.next_housekeeping || !self.disk_is_stuck(now) {
            return;
        }
        self.next_housekeeping = now.mono + HOUSEKEEPING;
        let up = |name: &&NodeName| **name != self.me && self.ledger.is_up(now.mono, name);
        // Those that lead the location come first among the voters, and are better left alone.
        let heirs: Vec<NodeName> = self.voters.iter().rev().filter(up).cloned().collect();
        for name in heirs {
            if self.raft.transfer_unsettled(super::id_of(&self.mesh, &name)) {
                return;
            }
        }
    }

    /// Voters as in the mesh file; Raft leadership off the location leader, so that losing it never costs an election.
    fn housekeeping(&mut self, now: Now, situation: &Situation) {
        let wanted: Vec<u64> = self.voters.iter().map(|n| super::id_of(&self.mesh, n)).collect();
        self.raft.follow_voters(&wanted);
        let leads = |name: &NodeName| {
            situation
                .leaders
                .iter()
                .any(|s| situation.candidates.get(s).is_some_and(|c| c.name == *name))
        };
        // A raft leader whose disk takes no writes sends heartbeats and can commit nothing.
        let stuck = self.disk_is_stuck(now);
        // One whose tunnels are dead hears observers only through others, and announces to nobody far away.
        let condemned = |name: &NodeName| {
            let found = situation.candidates.iter().find(|(_, c)| c.name == *name);
            !situation.observers.is_empty() && found.is_some_and(|(s, _)| situation.condemned(*s))
        };
        // raft-rs leaves a raft leader that is no voter any more in place, but takes no proposals of it.
        let leaves = !self.voters.contains(&self.me);
        if !leaves && !leads(&self.me) && !stuck && !condemned(&self.me) {
            return;
        }
        if self.raft.is_joint() && !stuck {
            // New voters that have not caught up do not vote: an election now might find no winner.
            return;
        }
        let broken = |name: &NodeName| {
            situation.candidates.values().any(|c| c.name == *name && c.broken.is_some())
        };
        let unfit = |name: &NodeName| leads(name) || broken(name) || condemned(name);
        let up = |name: &&NodeName| **name != self.me && self.ledger.is_up(now.mono, name);
        // The order of `voters_of` is candidates, members, witnesses.
        let mut heirs: Vec<&NodeName> = self.voters.iter().filter(up).collect();
        heirs.sort_by_key(|name| unfit(name));
        // Any voter leads Raft better than one that is none.
        let needs_any = !self.raft.voters().contains(&super::id_of(&self.mesh, &self.me));
        for name in heirs.into_iter().filter(|n| needs_any || !unfit(n)) {
            if self.raft.transfer(super::id_of(&self.mesh, name)) {
                return;
            }
        }
    }
}
