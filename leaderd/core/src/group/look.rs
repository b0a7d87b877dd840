//! The raft leader looks at the situation and proposes what follows from it.

use std::time::Duration;

use super::decide::{Choice, Situation};
use super::{Group, event};
use crate::admin::Author;
use crate::ids::{Epoch, Slot};
use crate::io::LogLevel;
use crate::state::{Command, EventKind, EventTimes};
use crate::time::{Now, WallTime};
use crate::verdict::{Cause, Direction};

/// Trouble must last this long to be recorded as fail-static: a standby's verdict may only be a burst behind.
const TROUBLE_FOR: Duration = Duration::from_secs(1);
/// Least time between two records about trouble, so that flapping evidence does not fill the events.
const TROUBLE_AGAIN: Duration = Duration::from_secs(10);
/// Least time between two decisions for the sake of a claimed epoch, and the longest that it becomes as it doubles with each:
/// one or two are enough where the location has lost its stores, and a liar does not fill the events.
const OUTDONE_AGAIN: Duration = Duration::from_secs(10);
const OUTDONE_AGAIN_MAX: Duration = Duration::from_secs(3600);

impl Group {
    /// The raft leader looks at the situation.
    pub(super) fn look(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let situation = self.ledger.situation(now, &mesh, &self.raft.state, &self.me);
        if self.proposed.is_none() && self.is_outdone(now, &situation) {
            let leaders = situation.leaders.clone();
            self.propose_decision(now, &situation, leaders, (Cause::Initial, None), None);
        } else if let Some(leaders) = self.disowned(now).filter(|_| self.proposed.is_none()) {
            self.propose_decision(now, &situation, leaders, (Cause::Reconfigured, None), None);
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
        self.housekeeping(now, &situation);
    }

    /// Somebody knows a higher epoch than the present decision has, and so obeys none of ours: the location has lost its stores, and
    /// the claim came too late for its first decision. Then the same leaders are told again, beyond that epoch.
    ///
    /// Never so in one unbroken history: a settled raft leader has applied all that was ever committed, so nobody can know more,
    /// but for its own last proposal (`proposed`) and for what has been committed without it: then it is raft leader no more, and
    /// what it proposes comes to nothing. Whoever lies costs one event in a while, as a claim is outdone only so often.
    fn is_outdone(&mut self, now: Now, situation: &Situation) -> bool {
        let outdone = situation.decided && self.next_epoch() > self.state().epoch().next();
        let Some((at, pause)) = self.outdone.filter(|_| outdone) else {
            if outdone {
                self.outdone = Some((now.mono, OUTDONE_AGAIN));
            }
            return outdone;
        };
        let again = now.mono.since(at) >= pause;
        if again {
            self.outdone = Some((now.mono, (pause * 2).min(OUTDONE_AGAIN_MAX)));
        }
        again
    }

    pub(crate) fn next_epoch(&self) -> Epoch {
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
}
