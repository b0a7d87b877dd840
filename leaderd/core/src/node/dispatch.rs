//! What the other nodes say, and whom this node believes about what.

use super::Node;
use super::ignored::Ignored;
use crate::ids::{LocationName, NodeName};
use crate::proof::Proof;
use crate::state::{Decision, Event};
use crate::time::{Duration, Now};
use crate::verdict::{SlotReport, Verdict};
use crate::wire::Frame;

impl Node {
    pub(super) fn handle_frame(&mut self, now: Now, from: NodeName, frame: Frame) {
        if !self.mesh.nodes.contains_key(&from) || from == self.me {
            self.ignored(now, from.as_str(), Ignored::Stranger);
            return;
        }
        if let Err(why) = frame.check() {
            self.ignored(now, from.as_str(), Ignored::Nonsense(why));
            return;
        }
        match frame {
            Frame::Raft { location, message } => match self.groups.get_mut(&location) {
                // Not by the mesh file alone: while its voters change, those before still count.
                Some(group) if group.is_peer(now, &from) => {
                    group.handle_raft(now, &from, &message);
                }
                _ => self.ignored(now, from.as_str(), Ignored::RaftOfAnotherGroup),
            },
            Frame::Announce { decision, proof, event } => {
                self.handle_announce(now, &from, decision, proof, event)
            }
            Frame::Signed { location, epoch, signatures } => {
                self.handle_signed(now, &from, location, epoch, signatures);
            }
            Frame::Hello(hello) => self.handle_hello(now, &from, hello),
            Frame::Relayed { from: origin, frame } => {
                // Nodes that take part in the group pass on what they heard; plain members hear nothing of observers.
                let about = observed(&frame).cloned();
                let of_location = self.mesh.node(&from).map(|n| n.location.clone());
                if of_location == about && about.is_some_and(|l| self.speaks_for(&from, &l)) {
                    self.handle_observation(now, &origin, *frame, false);
                } else {
                    self.ignored(now, from.as_str(), Ignored::RelayedFromElsewhere);
                }
            }
            Frame::Forward { id, author, request } => {
                self.forwarded_command(now, from, id, author, request)
            }
            Frame::Forwarded { id, response } => {
                self.forward_answered(now, &from, id, response);
            }
            Frame::Addresses(list) => self.handle_addresses(now, &from, list),
            Frame::Uncarried { mesh_hash, locations } => {
                self.handle_uncarried(now, &from, mesh_hash, locations);
            }
            Frame::Tunnels { location, row, heard } => {
                self.handle_tunnels(now, &from, location, row, heard);
            }
            Frame::Report(report)
                if report.location == self.location && self.is_of_location(&from) =>
            {
                self.outward_report(now, &from, &report);
            }
            Frame::Detours(detours) => self.handle_detours(now, &from, detours),
            frame @ (Frame::Report(_) | Frame::Ack { .. } | Frame::Verified { .. }) => {
                self.handle_observation(now, &from, frame, true);
            }
        }
    }

    fn is_of_location(&self, node: &NodeName) -> bool {
        self.mesh.node(node).is_some_and(|n| n.location == self.location)
    }

    /// Handles what an observer sends to a location. `first_hand`: it came from the observer itself, and may have to be passed on.
    fn handle_observation(&mut self, now: Now, from: &NodeName, frame: Frame, first_hand: bool) {
        if matches!(&frame, Frame::Report(report) if report.observer != *from) {
            self.ignored(now, from.as_str(), Ignored::ReportInAnothersName);
            return;
        }
        let Some(location) = observed(&frame).cloned() else {
            self.ignored(now, from.as_str(), Ignored::NotRelayed);
            return;
        };
        let Some(group) = self.groups.get_mut(&location) else {
            self.ignored(now, from.as_str(), Ignored::AboutAnotherGroup);
            return;
        };
        match &frame {
            Frame::Report(report) => group.handle_report(now, report.clone()),
            Frame::Ack { epoch, programmed_at, .. } => {
                group.handle_ack(now, from, *epoch, *programmed_at)
            }
            Frame::Verified { epoch, at, blackout_micros, .. } => {
                group.handle_verified(
                    now,
                    from,
                    *epoch,
                    *at,
                    blackout_micros.map(Duration::from_micros),
                );
            }
            _ => {}
        }
        if let Frame::Ack { epoch, .. } = &frame {
            self.announcer.acked(&location, *epoch, from);
        }
        let raft_leader = self.groups.get(&location).and_then(|g| g.raft_leader().cloned());
        if first_hand
            && location == self.location
            && let Some(raft_leader) = raft_leader
            && raft_leader != self.me
            && !self.hears_itself(&raft_leader, &frame)
        {
            self.send(&raft_leader, Frame::Relayed { from: from.clone(), frame: Box::new(frame) });
        }
    }

    /// Returns whether the raft leader gets an observer's frame itself. Observers reach a location's candidates only: a raft leader that is
    /// a plain member or a witness gets it from us, and so does one whose own tunnel the observer does not see forwarding.
    fn hears_itself(&self, raft_leader: &NodeName, frame: &Frame) -> bool {
        let node = self.mesh.node(raft_leader).filter(|n| n.location == self.location);
        let Some(slot) = node.and_then(|n| n.slot) else { return false };
        match frame {
            Frame::Report(report) => {
                let reached = |s: &SlotReport| s.slot == slot && s.verdict == Verdict::Forwarding;
                report.slots.iter().any(reached)
            }
            _ => true,
        }
    }

    fn handle_announce(
        &mut self,
        now: Now,
        from: &NodeName,
        decision: Decision,
        proof: Proof,
        event: Option<Box<Event>>,
    ) {
        let location = decision.location.clone();
        if !self.speaks_for(from, &location) {
            // A proof speaks for itself, whoever shows it.
            if proof.is_empty() {
                self.ignored(now, from.as_str(), Ignored::DecisionOfAnotherLocation);
            } else {
                self.consider_decision(now, from, &decision, &proof, false);
            }
            return;
        }
        let epoch = decision.epoch;
        if epoch < self.decisions.epoch(&location) {
            self.count("ignored.old-epoch");
            self.send_if_newer(from, &location, epoch);
        }
        self.consider_decision(now, from, &decision, &proof, true);
        if let Some(event) = event
            && self.voting(&location).is_none()
        {
            let belongs = event.location == location && event.epoch == epoch;
            if !belongs || !self.decisions.remember_event(*event) {
                self.ignored(now, from.as_str(), Ignored::Event);
            }
        }
        if let Some((epoch, programmed_at)) = self.decisions.announced(&location, epoch, from) {
            self.send(from, Frame::Ack { location, epoch, programmed_at });
        }
    }

    /// Returns whether a node may say who leads a location: its candidates, its other voters, and the raft leader that one of those
    /// names, which may be a voter by a mesh file that this node does not have.
    pub(super) fn speaks_for(&self, node: &NodeName, location: &LocationName) -> bool {
        let candidate = |n: &crate::mesh::Node| n.location == *location && n.slot.is_some();
        if self.mesh.node(node).is_some_and(candidate) {
            return true;
        }
        let voters = self.mesh.voters_of(location);
        let names_it = |v: &NodeName| {
            let named = self.peers.hello(v).and_then(|hello| hello.raft_leader.as_ref());
            named == Some(node) && self.mesh.node(v).is_some_and(|n| n.location == *location)
        };
        let of_location = || self.mesh.node(node).is_some_and(|n| n.location == *location);
        voters.contains(node) || (of_location() && voters.iter().any(names_it))
    }
}

/// The location that an observer's frame is about.
fn observed(frame: &Frame) -> Option<&LocationName> {
    match frame {
        Frame::Report(report) => Some(&report.location),
        Frame::Ack { location, .. } | Frame::Verified { location, .. } => Some(location),
        _ => None,
    }
}
