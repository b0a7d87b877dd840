//! What each command does to the replicated state, and what the state says about the recent past.

use std::time::Duration;

use super::{Command, Decision, Event, EventKind, EventTimes, LocationState, bounds::MAX_DRAINED};
use crate::ids::{Epoch, Generation, LocationName, NodeName};
use crate::mesh::Policy;
use crate::time::WallTime;

/// What a command changed.
#[derive(Clone, PartialEq, Debug)]
pub enum Applied {
    /// Leadership was decided.
    Decided(Box<Event>),
    /// An event was added.
    Recorded(Box<Event>),
    /// An event got times that it lacked.
    Completed(Box<Event>),
    /// Drains or the freeze changed.
    Changed,
    /// Stale, or already so.
    Nothing,
}

impl LocationState {
    pub fn new(location: LocationName) -> Self {
        Self {
            location,
            decision: None,
            drained: Default::default(),
            frozen: None,
            events: Default::default(),
            last_seq: 0,
            voters_generation: Generation(0),
        }
    }

    /// The present epoch; 0 before the first decision.
    pub fn epoch(&self) -> Epoch {
        self.decision.as_ref().map_or(Epoch(0), |d| d.epoch)
    }

    /// Deterministic: the same commands in the same order give the same state on every node.
    pub fn apply(&mut self, command: &Command) -> Applied {
        match command {
            Command::Decide { expected_epoch, decision, event } => {
                self.decide(*expected_epoch, decision, event)
            }
            Command::Drain { node } => {
                changed(self.drained.len() < MAX_DRAINED && self.drained.insert(node.clone()))
            }
            Command::Undrain { node } => changed(self.drained.remove(node)),
            Command::Freeze { until } => changed(self.frozen.replace(*until) != Some(*until)),
            Command::Unfreeze => changed(self.frozen.take().is_some()),
            Command::Record { event } => Applied::Recorded(self.push(event)),
            Command::Complete { epoch, times, blackout } => self.complete(*epoch, times, *blackout),
        }
    }

    fn decide(&mut self, expected: Epoch, decision: &Decision, event: &Event) -> Applied {
        let stale = expected != self.epoch() || !decision.epoch.may_follow(self.epoch());
        if stale || decision.leaders.is_empty() || decision.location != self.location {
            return Applied::Nothing;
        }
        self.decision = Some(decision.clone());
        Applied::Decided(self.push(event))
    }

    fn push(&mut self, event: &Event) -> Box<Event> {
        self.last_seq = self.last_seq.saturating_add(1);
        let event = Event { seq: self.last_seq, location: self.location.clone(), ..event.clone() };
        let event = event.bounded();
        self.events.push_back(event.clone());
        self.shed();
        Box::new(event)
    }

    fn complete(
        &mut self,
        epoch: Epoch,
        times: &EventTimes,
        blackout: Option<Duration>,
    ) -> Applied {
        let Some(event) =
            self.events.iter_mut().rev().find(|e| e.epoch == epoch && e.is_decision())
        else {
            return Applied::Nothing;
        };
        let before = (event.times, event.blackout);
        let t = &mut event.times;
        t.first_loss = t.first_loss.or(times.first_loss);
        t.suspected = t.suspected.or(times.suspected);
        t.condemned = t.condemned.or(times.condemned);
        t.committed = t.committed.or(times.committed);
        t.programmed = t.programmed.or(times.programmed);
        t.verified = t.verified.or(times.verified);
        event.blackout = event.blackout.or(blackout);
        if before == (event.times, event.blackout) {
            Applied::Nothing
        } else {
            Applied::Completed(Box::new(event.clone()))
        }
    }

    /// The event of a decision.
    pub fn event_of(&self, epoch: Epoch) -> Option<&Event> {
        self.events.iter().rev().find(|e| e.epoch == epoch && e.is_decision())
    }

    /// When the last automatic failover was, and for how long it holds down the next one: `policy.hold_down` after the
    /// first, twice as long after each further one, at most `hold_down_max`; what has grown halves with every
    /// `hold_down_max` that passes between two failovers. Derived from events, so every raft leader agrees.
    pub fn hold_down(&self, policy: &Policy) -> Option<(WallTime, Duration)> {
        grow(self.failovers(None), policy.hold_down, policy.hold_down_max)
    }

    /// The same for one candidate: how long after its last failure it is chosen only if no other candidate can be.
    /// It starts at five hold-downs, since a relay that fails once often fails again.
    pub fn ejection(&self, node: &NodeName, policy: &Policy) -> Option<(WallTime, Duration)> {
        grow(self.failovers(Some(node)), policy.hold_down * 5, policy.hold_down_max)
    }

    /// When each automatic failover that is remembered was, as [`Self::hold_down`] and [`Self::ejection`] name them.
    pub fn failover_times(&self) -> impl Iterator<Item = WallTime> + '_ {
        self.failovers(None)
    }

    fn failovers<'a>(&'a self, of: Option<&'a NodeName>) -> impl Iterator<Item = WallTime> + 'a {
        self.events
            .iter()
            .filter(|e| e.kind == EventKind::Failover)
            .filter(move |e| {
                of.is_none_or(|n| e.leaders_before.contains(n) && !e.leaders_after.contains(n))
            })
            .filter_map(|e| e.times.condemned.or(e.times.committed))
    }

    /// True after a fail-static event of this epoch that no later notice or decision has ended.
    pub fn in_trouble(&self) -> bool {
        self.events
            .iter()
            .rev()
            .find(|e| {
                matches!(e.kind, EventKind::FailStatic | EventKind::Notice) || e.is_decision()
            })
            .is_some_and(|e| e.kind == EventKind::FailStatic)
    }
}

impl Event {
    /// True for events that came with a decision.
    pub const fn is_decision(&self) -> bool {
        matches!(self.kind, EventKind::Failover | EventKind::Move)
    }
}

fn changed(yes: bool) -> Applied {
    if yes { Applied::Changed } else { Applied::Nothing }
}

fn grow(
    times: impl Iterator<Item = WallTime>,
    base: Duration,
    max: Duration,
) -> Option<(WallTime, Duration)> {
    let mut held: Option<(WallTime, Duration)> = None;
    for at in times {
        let next = match held {
            None => base,
            Some((last, hold)) => {
                let gap = Duration::from_micros(at.0.saturating_sub(last.0)).as_micros();
                let halvings = gap.checked_div(max.as_micros()).unwrap_or(0).min(31) as u32;
                (hold * 2 / 2u32.pow(halvings)).max(base)
            }
        };
        held = Some((at, next.min(max.max(base))));
    }
    held
}

#[cfg(test)]
mod tests;
