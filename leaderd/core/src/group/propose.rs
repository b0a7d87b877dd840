//! The raft leader evaluates the situation and proposes what follows from it.

use std::time::Duration;

use super::{Completed, Group};
use crate::admin::Author;
use crate::consensus::EntryId;
use crate::election::{Choice, Situation, Wait, narrate};
use crate::fault::MoveReason;
use crate::ids::{Epoch, Slot};
use crate::io::LogLevel;
use crate::rendezvous::weight;
use crate::state::{Command, EventKind, EventTimes};
use crate::time::{Instant, Now};
use crate::verdict::Direction;

/// Trouble must last this long to be recorded as fail-static: a standby's verdict may only be a burst behind.
const TROUBLE_FOR: Duration = Duration::from_secs(1);
/// Least time between two records about trouble, so that flapping evidence does not fill the events.
const TROUBLE_AGAIN: Duration = Duration::from_secs(10);
/// Least time between two decisions that only raise the epoch above a claimed one, and the longest: it doubles each time.
/// One or two are enough for a location that lost its stores, and a false claim does not fill the events.
const RAISE_EPOCH_AGAIN: Duration = Duration::from_secs(10);
const RAISE_EPOCH_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// How long the votes must ask for another leader before it is moved: from 3 s to 3.5 s, another time for each location and epoch. So of
/// several locations that could move one is the first, and the others learn of it. A detour carries meanwhile, and a tunnel that was called
/// bad for a burst of losses is good again before: an observer takes its word back after 2 s.
const VOTED_FOR: Duration = Duration::from_secs(3);
const SPREAD: Duration = Duration::from_millis(500);
/// How much longer it takes where another location should move: that one may have no quorum, be frozen, or gain nothing by it.
const OTHERS_TURN: Duration = Duration::from_secs(10);

impl Group {
    /// Proposes what the situation asks for.
    pub(super) fn evaluate(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let situation = self.reports.situation(now, &mesh, self.raft.state(), &self.me);
        self.reports.note_votes(now.mono, &situation);
        if self.proposed.is_none() && self.must_raise_epoch(now, &situation) {
            let leaders = situation.leaders.clone();
            self.propose_decision(now, &situation, leaders, (MoveReason::Initial, None), None);
        } else if let Some(leaders) = self.replace_unsigned(now).filter(|_| self.proposed.is_none())
        {
            self.propose_decision(now, &situation, leaders, (MoveReason::Reconfigured, None), None);
        } else if self.proposed.is_none() {
            self.choose(now, &situation);
        }
        self.complete(&situation);
        self.housekeeping(now, &situation);
    }

    fn choose(&mut self, now: Now, situation: &Situation) {
        let choice = situation.decide();
        if let Choice::Move { wait, .. } = &choice
            && let Some(due) = self.due(now, *wait)
        {
            self.next_evaluation = self.next_evaluation.min(due);
            return;
        }
        self.waiting = None;
        match choice {
            Choice::Keep => self.trouble_over(now, situation),
            Choice::Blocked { .. } => {}
            Choice::FailStatic { cause } if cause.is_failover() => {
                self.trouble(now, situation, cause)
            }
            Choice::FailStatic { .. } => {}
            Choice::Move { leaders, cause, direction, .. } => {
                self.propose_decision(now, situation, leaders, (cause, direction), None);
            }
        }
    }

    /// When a choice that has to stand for a while may be carried out; `None`: now.
    fn due(&mut self, now: Now, wait: Wait) -> Option<Instant> {
        let more = match wait {
            Wait::No => return None,
            Wait::Soon => Duration::ZERO,
            Wait::Late => OTHERS_TURN,
        };
        let since = *self.waiting.get_or_insert(now.mono);
        let number = weight(self.location.as_str(), &self.state().epoch().to_string());
        let spread = Duration::from_micros(number % SPREAD.as_micros() as u64);
        let due = since + VOTED_FOR + spread + more;
        (due > now.mono).then_some(due)
    }

    /// A peer claims a higher epoch than ours, so it ignores our decisions: our stores were lost, and the claim came too late
    /// for the first decision. Then the same leaders are announced again, above that epoch.
    ///
    /// Never in one unbroken history: a settled raft leader has applied all that was ever committed, so no node knows more but
    /// its own last proposal (`proposed`) and what was committed without it. In that case it is raft leader no more, and what it
    /// proposes is never committed. A false claim costs one event per pause, and the pause doubles.
    fn must_raise_epoch(&mut self, now: Now, situation: &Situation) -> bool {
        let behind = situation.decided && self.next_epoch() > self.state().epoch().next();
        let Some((at, pause)) = self.epoch_raised.filter(|_| behind) else {
            if behind {
                self.epoch_raised = Some((now.mono, RAISE_EPOCH_AGAIN));
            }
            return behind;
        };
        let again = now.mono.since(at) >= pause;
        if again {
            self.epoch_raised = Some((now.mono, (pause * 2).min(RAISE_EPOCH_AGAIN_MAX)));
        }
        again
    }

    pub(crate) fn next_epoch(&self) -> Epoch {
        self.state().epoch().max(self.reports.highest_epoch()).next()
    }

    pub(super) fn propose_decision(
        &mut self,
        now: Now,
        situation: &Situation,
        leaders: Vec<Slot>,
        why: (MoveReason, Option<Direction>),
        author: Option<Author>,
    ) -> Option<EntryId> {
        let epoch = self.next_epoch();
        let (decision, mut event) =
            narrate::decision(&self.mesh, self.state(), situation, epoch, leaders, why, now.wall);
        event.author = author;
        let expected_epoch = self.state().epoch();
        let command = Command::Decide { expected_epoch, decision, event: Box::new(event) };
        self.proposed = self.propose(&command).ok();
        self.trouble_since = None;
        self.proposed
    }

    /// The leader is at fault and no candidate would be better: records that once.
    fn trouble(&mut self, now: Now, situation: &Situation, cause: MoveReason) {
        let since = *self.trouble_since.get_or_insert(now.mono);
        let recently = self.trouble_recorded.is_some_and(|at| now.mono.since(at) < TROUBLE_AGAIN);
        if self.state().in_trouble() || recently || now.mono.since(since) < TROUBLE_FOR {
            return;
        }
        self.trouble_recorded = Some(now.mono);
        let summary = format!(
            "the leader is at fault ({cause}) and no standby would be better: nothing was changed"
        );
        self.log(LogLevel::Error, summary.clone(), &[("decision.cause", cause.to_string())]);
        let kind = EventKind::FailStatic;
        let event = narrate::notice(
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
        let recently = self.trouble_recorded.is_some_and(|at| now.mono.since(at) < TROUBLE_AGAIN);
        let served = situation.leaders.iter().any(|s| situation.may_carry(*s));
        if recently || !self.state().in_trouble() || !situation.has_observers() || !served {
            return;
        }
        self.trouble_recorded = Some(now.mono);
        let summary = "the leader forwards again".to_owned();
        let event = narrate::notice(
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
        if self.completed.epoch != epoch {
            self.completed = Completed {
                epoch,
                programmed: event.times.programmed.is_some(),
                verified: event.times.verified.is_some(),
            };
        }
        let observers = situation.observers();
        let most = |n: usize| n * 2 > observers.clone().count();
        let mut times = EventTimes::default();
        let mut blackout = None;
        let acks = self.reports.acks(epoch, observers.clone());
        if !self.completed.programmed && most(acks.len()) {
            times.programmed = acks.into_iter().max();
            self.completed.programmed = true;
        }
        let verified = self.reports.verified(epoch, observers.clone());
        if !self.completed.verified && most(verified.len()) {
            times.verified = verified.iter().map(|(at, _)| *at).max();
            blackout = verified.iter().filter_map(|(_, b)| *b).max();
            self.completed.verified = true;
        }
        if times != EventTimes::default() {
            let _ = self.propose(&Command::Complete { epoch, times, blackout });
        }
    }
}
