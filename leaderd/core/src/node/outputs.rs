//! Hands on the outputs of the parts: the observer's to the groups and to other candidates, a group's to the disk, to its peers and
//! to the known decisions.

use crate::group::{Group, GroupOutput};
use crate::ids::{LocationName, NodeName};
use crate::io::{Effect, LogLevel, Persist, Ticket};
use crate::observe::{Observer, ObserverOutput};
use crate::time::Now;
use crate::wire::Frame;

use super::Node;
use super::decisions::DecisionRefusal;

/// Most outputs that one input can lead to: more is taken for a loop in the core.
const MAX_OUTPUTS: usize = 100_000;

impl Node {
    /// Hands on outputs until no part has any.
    pub(super) fn drain_outputs(&mut self, now: Now) {
        for _ in 0..MAX_OUTPUTS {
            if let Some(output) = self.observer.as_mut().and_then(Observer::poll_output) {
                self.observer_output(now, output);
                continue;
            }
            if let Some(output) = self.outward.poll_output() {
                self.observer_output(now, output);
                continue;
            }
            let next =
                self.groups.iter_mut().find_map(|(l, g)| Some((l.clone(), g.poll_output()?)));
            match next {
                Some((location, output)) => self.group_output(now, location, output),
                None => {
                    return self.watch_raft_leadership(now);
                }
            }
        }
        self.log(LogLevel::Error, "the core's parts keep each other busy: this is a defect", []);
    }

    fn observer_output(&mut self, now: Now, output: ObserverOutput) {
        match output {
            ObserverOutput::Send(probe) => {
                self.count("probes.sent");
                self.effects.push_back(Effect::SendProbe(Box::new(probe)));
            }
            ObserverOutput::Forget(probe) => self.effects.push_back(Effect::ForgetProbe { probe }),
            ObserverOutput::Report(report) if report.location == self.location => {
                let location = report.location.clone();
                self.send_to_candidates(&location, &Frame::Report(report));
            }
            ObserverOutput::Report(report) => {
                self.handover.touch();
                if let Some(group) = self.groups.get_mut(&report.location) {
                    group.handle_report(now, report.clone());
                }
                let location = report.location.clone();
                self.send_to_candidates(&location, &Frame::Report(report));
            }
            ObserverOutput::TunnelsChanged(location) => self.review_relays(now, [location]),
            ObserverOutput::Verified { location, epoch, at, blackout } => {
                let me = self.me.clone();
                if let Some(group) = self.groups.get_mut(&location) {
                    group.handle_verified(now, &me, epoch, at, blackout);
                }
                let blackout_micros =
                    blackout.map(|b| u64::try_from(b.as_micros()).unwrap_or(u64::MAX));
                self.send_to_candidates(
                    &location,
                    &Frame::Verified { location: location.clone(), epoch, at, blackout_micros },
                );
            }
            ObserverOutput::Log { level, message, fields } => {
                self.effects.push_back(Effect::Log { level, message, fields })
            }
        }
    }

    fn group_output(&mut self, now: Now, location: LocationName, output: GroupOutput) {
        match output {
            GroupOutput::Send { to, message } => self.send(&to, Frame::Raft { location, message }),
            GroupOutput::Persist { ticket, write } => self.persist(location, Some(ticket), write),
            GroupOutput::Decided { decision, event } => {
                self.count("decisions");
                self.sign(now, &decision, false);
                // Without the proof that it needs it comes into force when that is there.
                if let Err(why @ (DecisionRefusal::TooFarAhead | DecisionRefusal::NoCandidates)) =
                    self.adopt(now, &decision, None)
                {
                    let fields = [
                        ("location.name", location.to_string()),
                        ("decision.epoch", decision.epoch.to_string()),
                        ("why", why.to_string()),
                    ];
                    self.log(
                        LogLevel::Error,
                        "the location's own decision is not followed",
                        fields,
                    );
                }
                self.announce_if_ours(now, decision, Some(event));
                self.prove(now, &location);
            }
            GroupOutput::Written { decision } => self.sign(now, &decision, true),
            GroupOutput::EventChanged(event) => {
                if self.groups.get(&location).is_some_and(Group::is_raft_leader)
                    && let Some(decision) = self.decisions.get(&location).cloned()
                    && event.epoch == decision.epoch
                {
                    let proof = self.decisions.proof(&location).cloned().unwrap_or_default();
                    self.announcer.update_event(
                        (decision, proof),
                        event,
                        &self.audience(&location),
                        &mut self.effects,
                    );
                }
            }
            GroupOutput::Reply { id, response } => self.command_answered(id, response),
            GroupOutput::NotLeader { id } => self.command_to_raft_leader(now, &location, id),
            GroupOutput::Log { level, message, fields } => {
                self.effects.push_back(Effect::Log { level, message, fields });
            }
        }
    }

    pub(super) fn persist(
        &mut self,
        location: LocationName,
        group_ticket: Option<u64>,
        write: Persist,
    ) {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        if let Some(group_ticket) = group_ticket {
            self.persists.insert(ticket, (location.clone(), group_ticket));
        }
        self.effects.push_back(Effect::Persist { ticket, location, write: Box::new(write) });
    }

    pub(super) fn persisted(&mut self, now: Now, ticket: Ticket) {
        let rest = self.persists.split_off(&Ticket(ticket.0 + 1));
        for (_, (location, group_ticket)) in std::mem::replace(&mut self.persists, rest) {
            let group = self.groups.get_mut(&location).or_else(|| self.paused.get_mut(&location));
            if let Some(group) = group {
                group.handle_persisted(now, group_ticket);
            }
        }
    }

    pub(super) fn send(&mut self, to: &NodeName, frame: Frame) {
        self.effects.push_back(Effect::SendFrame { to: to.clone(), frame: Box::new(frame) });
    }

    /// Sends a frame to every candidate of a location but this node.
    pub(super) fn send_to_candidates(&mut self, location: &LocationName, frame: &Frame) {
        let mesh = self.mesh.clone();
        for node in mesh.candidates_of(location).values() {
            if node.name != self.me {
                self.send(&node.name, frame.clone());
            }
        }
    }
}
