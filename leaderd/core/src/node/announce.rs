//! Announcements: a decision goes to every node that routes to its location, again until each has acknowledged it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Node;
use crate::ids::{Epoch, LocationName, NodeName};
use crate::io::Effect;
use crate::mesh::Mesh;
use crate::proof::Proof;
use crate::state::{Decision, Event};
use crate::time::{Duration, Instant, Now};
use crate::wire::Frame;

/// First pause before a decision is sent again. A LAN round trip is far shorter, a WAN one about this long.
const FIRST_RETRY: Duration = Duration::from_millis(60);
/// The pause doubles up to this.
const MAX_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Announcer {
    running: BTreeMap<LocationName, Announcement>,
}

#[derive(Debug)]
struct Announcement {
    decision: Decision,
    proof: Proof,
    event: Option<Box<Event>>,
    /// Not acknowledged yet: when to send again, and the pause after that.
    pending: BTreeMap<NodeName, (Instant, Duration)>,
}

impl Announcement {
    fn send(&self, to: &NodeName, effects: &mut VecDeque<Effect>) {
        let frame = Frame::Announce {
            decision: self.decision.clone(),
            proof: self.proof.clone(),
            event: self.event.clone(),
        };
        effects.push_back(Effect::SendFrame { to: to.clone(), frame: Box::new(frame) });
    }
}

impl Announcer {
    /// Sends a decision to its whole audience, in place of any earlier one about the same location.
    pub(super) fn start(
        &mut self,
        now: Instant,
        (decision, proof): (Decision, Proof),
        event: Option<Box<Event>>,
        audience: &BTreeSet<NodeName>,
        effects: &mut VecDeque<Effect>,
    ) {
        if self.running.get(&decision.location).is_some_and(|a| a.decision.epoch >= decision.epoch)
        {
            return;
        }
        let pending =
            audience.iter().map(|n| (n.clone(), (now + FIRST_RETRY, FIRST_RETRY))).collect();
        let announcement = Announcement { decision, proof, event, pending };
        for node in audience {
            announcement.send(node, effects);
        }
        self.running.insert(announcement.decision.location.clone(), announcement);
    }

    /// The event of the decision in force got more times: sent once, for show only.
    pub(super) fn update_event(
        &mut self,
        (decision, proof): (Decision, Proof),
        event: Box<Event>,
        audience: &BTreeSet<NodeName>,
        effects: &mut VecDeque<Effect>,
    ) {
        let update =
            Announcement { decision, proof, event: Some(event.clone()), pending: BTreeMap::new() };
        for node in audience {
            update.send(node, effects);
        }
        if let Some(running) = self.running.get_mut(&update.decision.location) {
            running.event = Some(event);
        }
    }

    pub(super) fn acked(&mut self, location: &LocationName, epoch: Epoch, by: &NodeName) {
        if let Some(running) = self.running.get_mut(location)
            && epoch >= running.decision.epoch
        {
            running.pending.remove(by);
        }
    }

    /// A connection came up: what is pending for it goes out now.
    pub(super) fn peer_up(
        &mut self,
        now: Instant,
        node: &NodeName,
        effects: &mut VecDeque<Effect>,
    ) {
        for running in self.running.values_mut() {
            if let Some(next) = running.pending.get_mut(node) {
                *next = (now + FIRST_RETRY, FIRST_RETRY);
                running.send(node, effects);
            }
        }
    }

    pub(super) fn stop(&mut self, location: &LocationName) {
        if let Some(running) = self.running.get_mut(location) {
            running.pending.clear();
        }
    }

    pub(super) fn retain(&mut self, mesh: &Mesh) {
        self.running.retain(|location, _| mesh.locations.contains_key(location));
        for running in self.running.values_mut() {
            running.pending.retain(|node, _| mesh.nodes.contains_key(node));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.running.values().flat_map(|a| a.pending.values().map(|(at, _)| *at)).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, effects: &mut VecDeque<Effect>) {
        for running in self.running.values_mut() {
            let mut due = Vec::new();
            for (node, (at, pause)) in &mut running.pending {
                if *at <= now {
                    *pause = (*pause * 2).min(MAX_RETRY);
                    *at = now + *pause;
                    due.push(node.clone());
                }
            }
            for node in due {
                running.send(&node, effects);
            }
        }
    }
}

impl Node {
    /// Announces a decision if that is this node's part: the raft leader's, or every candidate's if the raft leader is no
    /// candidate and so has no tunnels.
    pub(super) fn announce_if_ours(
        &mut self,
        now: Now,
        decision: Decision,
        event: Option<Box<Event>>,
    ) {
        let location = &decision.location;
        let proof = self.decisions.proof(location).cloned();
        let proof = proof
            .filter(|_| self.decisions.get(location).is_some_and(|d| d.says_the_same(&decision)));
        if proof.is_none() && self.proof_required(location) {
            // No node would believe it yet.
            return;
        }
        let proof = proof.unwrap_or_default();
        let Some(group) = self.groups.get(location) else { return };
        let is_candidate_here = |name: &NodeName| {
            self.mesh.node(name).is_some_and(|n| n.location == *location && n.slot.is_some())
        };
        let raft_leader_has_tunnels = group.raft_leader().is_some_and(is_candidate_here);
        if group.is_raft_leader() || (!raft_leader_has_tunnels && is_candidate_here(&self.me)) {
            let audience = self.audience(location);
            let said = (decision, proof);
            self.announcer.start(now.mono, said, event, &audience, &mut self.effects);
        } else {
            self.announcer.stop(&decision.location);
        }
    }

    /// A new raft leader announces the decision that it finds: the one before may have died before it could.
    pub(super) fn watch_raft_leadership(&mut self, now: Now) {
        let mut found = Vec::new();
        for (location, group) in &self.groups {
            if !group.is_raft_leader() {
                self.raft_leading.remove(location);
            } else if self.raft_leading.insert(location.clone())
                && let Some(decision) = group.state().decision.clone()
            {
                let event =
                    group.state().events.iter().rev().find(|e| e.epoch == decision.epoch).cloned();
                found.push((decision, event.map(Box::new)));
            }
        }
        for (decision, event) in found {
            self.announce_if_ours(now, decision, event);
        }
    }
}
