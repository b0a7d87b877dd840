//! Drains what happened in the Raft log into outputs.

use std::time::Duration;

use super::{Group, GroupOutput};
use crate::consensus::LogEvent;
use crate::election::narrate;
use crate::ids::NodeName;
use crate::io::LogLevel;
use crate::state::{Applied, Command, Event, EventKind, EventTimes};
use crate::time::Now;

/// Time between two evaluations of the situation when nothing urgent happens.
const EVALUATE_EVERY: Duration = Duration::from_millis(200);
/// A node with an empty store listens at least this long before it counts itself part of a new location.
const LISTEN: Duration = Duration::from_millis(1200);
/// … and votes after this, caught up or not: leadership is not a lock, and epochs cannot go back.
const LISTEN_MAX: Duration = Duration::from_secs(30);

/// Logged by a voter that has met a command which it cannot read.
pub(super) const TOO_OLD: &str = "the location's log has an entry that this leaderd cannot read: this node has stopped voting; \
                                  start the version of leaderd here that the other voters run";

impl Group {
    /// An earlier run of this node has announced what the store holds. Only the present decision is announced again.
    pub(super) fn begin(&mut self, now: Now) {
        self.raft.forget_restored();
        self.reports.note_state(now, self.raft.state());
        self.announce_restored(now);
        self.drain_raft(now);
    }

    pub(super) fn start_voting_if_safe(&mut self, now: Now) {
        if !self.raft.is_non_voting() {
            return;
        }
        let listened = now.mono.since(self.started);
        let undecided = self.reports.undecided(now.mono, &self.voters, &self.me);
        let new = undecided.is_some_and(|n| n * 2 > self.voters.len()) && self.raft.leader() == 0;
        if self.raft.caught_up() {
            self.raft.start_voting();
            self.log(LogLevel::Info, "caught up with the raft leader: this node votes again", &[]);
        } else if new && listened >= LISTEN {
            self.raft.start_voting();
            self.log(LogLevel::Info, "most voters know of no decision: a new location", &[]);
        } else if listened >= LISTEN_MAX {
            self.raft.start_voting();
            self.log(
                LogLevel::Warn,
                "found no raft leader to catch up with: this node votes with an empty store",
                &[],
            );
        }
    }

    /// Handles what happened in the log, and evaluates the situation if it is due, until nothing more follows.
    pub(super) fn drain_raft(&mut self, now: Now) {
        loop {
            self.start_voting_if_safe(now);
            self.watch_disk(now);
            while let Some(event) = self.raft.poll_event() {
                self.take(now, event);
            }
            self.note_raft_leader(now);
            if now.mono < self.next_evaluation || !self.raft.is_settled_leader() {
                return;
            }
            self.next_evaluation = now.mono + EVALUATE_EVERY;
            self.evaluate(now);
        }
    }

    fn take(&mut self, now: Now, event: LogEvent) {
        match event {
            LogEvent::Send { to, message } => {
                if let Some(to) = self.ids.get(&to).cloned() {
                    self.outputs.push_back(GroupOutput::Send { to, message });
                }
            }
            LogEvent::Persist { ticket, write } => {
                self.disk.write_waits(now.mono, ticket);
                self.note_logged(ticket, &write);
                self.outputs.push_back(GroupOutput::Persist { ticket, write })
            }
            LogEvent::Applied { entry, applied } => {
                if self.proposed.is_some_and(|p| p.index <= entry.index) {
                    self.proposed = None;
                }
                if applied != Applied::Nothing {
                    self.reports.note_state(now, self.raft.state());
                }
                match applied {
                    Applied::Decided(event) => self.decided(now, *event),
                    Applied::Recorded(event) | Applied::Completed(event) => {
                        self.outputs.push_back(GroupOutput::EventChanged(event));
                    }
                    Applied::Changed | Applied::Nothing => {}
                }
                self.evaluate_soon(now);
                self.answer_applied(entry);
            }
            LogEvent::Restored => {
                self.proposed = None;
                self.signing.forget();
                self.reports.note_state(now, self.raft.state());
                self.announce_restored(now);
            }
            LogEvent::Unreadable { index, why } => {
                self.proposed = None;
                let fields = [("entry.index", index.to_string()), ("error", why.to_string())];
                self.log(LogLevel::Error, TOO_OLD, &fields);
            }
            LogEvent::Voters(ids) => {
                self.signing.voters_changed();
                self.ids.extend(super::ids_of(&self.mesh, &self.voters, &ids));
                // The next step of the change, and a hand-over by a raft leader that lost its vote, come at once.
                self.leadership.housekeep_soon(now.mono);
                self.evaluate_soon(now);
                let text = ids
                    .iter()
                    .map(|id| self.ids.get(id).map_or(id.to_string(), NodeName::to_string));
                let names = text.collect::<Vec<_>>().join(", ");
                self.log(LogLevel::Info, "the voters changed", &[("voters", names)]);
            }
            LogEvent::Ignored(why) => {
                let me = self.me.clone();
                self.ignore(now, &me, why);
            }
        }
    }

    fn decided(&mut self, now: Now, mut event: Event) {
        let Some(decision) = self.state().decision.clone().filter(|d| d.epoch == event.epoch)
        else {
            return;
        };
        if self.raft.is_leader() {
            event.times.committed = Some(now.wall);
            let times = EventTimes { committed: Some(now.wall), ..Default::default() };
            let _ = self.propose(&Command::Complete { epoch: event.epoch, times, blackout: None });
        }
        self.announced_epoch = decision.epoch;
        self.leadership.housekeep_soon(now.mono);
        let level = if event.kind == EventKind::Failover { LogLevel::Warn } else { LogLevel::Info };
        let fields = [
            ("decision.epoch", decision.epoch.to_string()),
            ("decision.cause", decision.cause.to_string()),
        ];
        self.log(level, event.summary.clone(), &fields);
        self.outputs.push_back(GroupOutput::Decided { decision, event: Box::new(event) });
    }

    /// Outputs a decision that came with the store or a snapshot.
    pub(super) fn announce_restored(&mut self, now: Now) {
        let Some(decision) =
            self.state().decision.clone().filter(|d| d.epoch > self.announced_epoch)
        else {
            return;
        };
        self.announced_epoch = decision.epoch;
        let event = self.state().event_of(decision.epoch).cloned().unwrap_or_else(|| {
            let summary = "the event of this decision is forgotten".into();
            narrate::notice(
                &self.mesh,
                self.state(),
                None,
                EventKind::Move,
                Some(decision.cause),
                summary,
                now.wall,
            )
        });
        self.outputs.push_back(GroupOutput::Decided { decision, event: Box::new(event) });
    }

    fn note_raft_leader(&mut self, now: Now) {
        let leader = self.raft.leader();
        if leader == self.known_raft_leader {
            return;
        }
        self.known_raft_leader = leader;
        self.proposed = None;
        self.waiting = None;
        self.leadership.another_leads();
        self.evaluate_soon(now);
        let name = self.ids.get(&leader).map_or("none".to_owned(), NodeName::to_string);
        self.log(
            LogLevel::Info,
            "raft leader",
            &[("raft.leader", name), ("raft.term", self.raft.term().to_string())],
        );
    }
}
