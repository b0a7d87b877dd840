//! Hellos: each node tells its peers that it lives and what it knows, and takes from theirs what an announcement has missed.

use std::collections::BTreeSet;

use super::Node;
use super::ignored::Ignored;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::state::Decision;
use crate::time::{Duration, Now};
use crate::wire::{Frame, Hello};

/// Decisions of other locations in one hello.
const MAX_REMOTE: usize = 16;

impl Node {
    pub(super) fn peer_up(&mut self, now: Now, node: NodeName, rtt: Duration) {
        if !self.mesh.nodes.contains_key(&node) {
            return;
        }
        for group in self.groups.values_mut() {
            group.handle_peer_rtt(now, &node, Some(rtt));
        }
        if self.peers.connect(node.clone()) {
            self.announcer.peer_up(now.mono, &node, &mut self.effects);
            let hello = self.hello(now, &node);
            self.send(&node, Frame::Hello(hello));
            self.resend_addresses(now, &node);
        }
    }

    pub(super) fn peer_down(&mut self, now: Now, node: &NodeName) {
        self.peers.disconnect(node);
        for group in self.groups.values_mut() {
            group.handle_peer_rtt(now, node, None);
        }
    }

    pub(super) fn send_hellos(&mut self, now: Now) {
        for peer in self.begin_hello_round(now) {
            let hello = self.hello(now, &peer);
            self.send(&peer, Frame::Hello(hello));
            self.send_addresses(now, &peer);
            self.send_uncarried(&peer);
        }
        self.relay_round(now);
        self.sign_and_prove_all(now);
        // This node's own groups take its hello like the others'.
        let own = self.hello(now, &self.me);
        for (location, group) in &mut self.groups {
            if *location == self.location || self.mesh.voters_of(location).contains(&self.me) {
                group.handle_hello(now, &own);
            }
        }
    }

    /// Who gets a hello in each round: all nodes of this location and all that share a group with this node.
    fn begin_hello_round(&mut self, now: Now) -> Vec<NodeName> {
        let voters: BTreeSet<NodeName> =
            self.groups.keys().flat_map(|location| self.mesh.voters_of(location)).collect();
        let near = |n: &NodeName| {
            voters.contains(n) || self.mesh.node(n).is_some_and(|n| n.location == self.location)
        };
        self.peers.begin_round(now.mono, near)
    }

    fn hello(&self, now: Now, to: &NodeName) -> Hello {
        let group = self.groups.get(&self.location);
        let raft_leader = match group {
            Some(group) => group.raft_leader().filter(|_| group.has_quorum(now)).cloned(),
            None => None,
        };
        let same_location = self.mesh.node(to).is_some_and(|n| n.location == self.location);
        let digest = match group {
            Some(group) if same_location && *to != self.me && group.is_raft_leader() => {
                group.candidates_status(now)
            }
            _ => Vec::new(),
        };
        let mut mesh_hash = [0; 8];
        mesh_hash.copy_from_slice(&self.mesh.hash[..8]);
        Hello {
            node: self.me.clone(),
            capabilities: self.capabilities(),
            generation: self.mesh.generation,
            mesh_hash,
            decision: self.decisions.get(&self.location).cloned(),
            proof: self.decisions.proof(&self.location).cloned().unwrap_or_default(),
            raft_leader,
            broken: self.facts.broken.as_ref().map(|(cause, _)| *cause),
            reaches: self.reaches(),
            digest,
            remote: self.remote(to),
        }
    }

    /// Sends a member that follows this candidate where it does not carry.
    fn send_uncarried(&mut self, to: &NodeName) {
        let candidate = self.observer.is_some();
        if let Some(locations) =
            self.handover.uncarried().filter(|_| candidate && self.is_member_here(to))
        {
            let mut mesh_hash = [0; 8];
            mesh_hash.copy_from_slice(&self.mesh.hash[..8]);
            self.send(to, Frame::Uncarried { mesh_hash, locations });
        }
    }

    pub(super) fn handle_uncarried(
        &mut self,
        now: Now,
        from: &NodeName,
        mesh_hash: [u8; 8],
        locations: Vec<LocationName>,
    ) {
        let near = |n: &crate::mesh::Node| n.location == self.location && n.slot.is_some();
        if !self.mesh.node(from).is_some_and(near) {
            self.ignored(now, from.as_str(), Ignored::UncarriedOfAnotherLocation);
            return;
        }
        let locations = locations.into_iter().filter(|l| self.mesh.locations.contains_key(l));
        self.handover.heard_uncarried(now.mono, from.clone(), mesh_hash, locations.collect());
    }

    /// A plain member of this node's location.
    fn is_member_here(&self, node: &NodeName) -> bool {
        self.mesh.node(node).is_some_and(|n| n.location == self.location && n.slot.is_none())
    }

    /// Returns the decisions of other locations that a leader passes to a plain member: a few at a time, in turn, so that a hello
    /// stays small in a mesh of any size.
    fn remote(&self, to: &NodeName) -> Vec<Decision> {
        if !self.leads_here() || !self.is_member_here(to) {
            return Vec::new();
        }
        let others = self.mesh.locations.keys().filter(|l| **l != self.location);
        let turn = self.peers.turn_of(others, MAX_REMOTE);
        turn.filter_map(|l| self.decisions.get(l).cloned()).collect()
    }

    /// True on a leader of its location.
    pub(super) fn leads_here(&self) -> bool {
        self.mesh.node(&self.me).and_then(|n| n.slot).is_some_and(|mine| {
            self.effective_leaders(&self.location).is_some_and(|l| l.contains(&mine))
        })
    }

    /// Returns the slots of this location whose candidates this node is connected with, or is itself.
    fn reaches(&self) -> Vec<Slot> {
        let candidates = self.mesh.candidates_of(&self.location);
        candidates
            .into_iter()
            .filter(|(_, n)| n.name == self.me || self.peers.is_connected(&n.name))
            .map(|(slot, _)| slot)
            .collect()
    }

    pub(super) fn handle_hello(&mut self, now: Now, from: &NodeName, mut hello: Hello) {
        let Some(location) = self.mesh.node(from).map(|n| n.location.clone()) else { return };
        if hello.node != *from {
            self.ignored(now, from.as_str(), Ignored::HelloInAnothersName);
            return;
        }
        let speaks = self.speaks_for(from, &location);
        if !speaks {
            // A plain member takes no part in the group, and knows nothing of a quorum.
            hello.raft_leader = None;
        }
        if hello.raft_leader.is_some() {
            self.fallback.saw_quorum(now.mono, &location);
        }
        let mesh = self.mesh.clone();
        for (group_location, group) in &mut self.groups {
            if *group_location == location || mesh.voters_of(group_location).contains(from) {
                group.handle_hello(now, &hello);
            }
        }
        if mesh.voters_of(&location).contains(from) {
            let theirs = hello.decision.as_ref().map_or(Epoch(0), |d| d.epoch);
            self.send_if_newer(from, &location, theirs);
        }
        if let Some(decision) = hello.decision.clone() {
            if decision.location == location {
                // Gossip repairs what an announcement has missed; within a location plain members pass it on, too.
                let speaks = speaks || location == self.location;
                self.consider_decision(now, from, &decision, &hello.proof, speaks);
            } else {
                self.ignored(now, from.as_str(), Ignored::DecisionOfAnotherLocation);
            }
        }
        let is_candidate = |n: &NodeName| mesh.node(n).is_some_and(|n| n.slot.is_some());
        if !is_candidate(&self.me) && is_candidate(from) && location == self.location {
            for decision in &hello.remote {
                self.decisions.show(&mesh, decision);
                self.tell_groups_of_relays(now, &decision.location);
            }
            self.handover.touch();
        }
        // Only what is used later is kept: there is a hello for each node of the mesh.
        let digest = if location == self.location { hello.digest } else { Vec::new() };
        let kept = Hello { remote: Vec::new(), digest, ..hello };
        self.peers.heard(now.mono, from.clone(), kept);
    }

    /// Returns the nodes to which a decision about a location is announced: its own, and the candidates of all others.
    pub(super) fn audience(&self, location: &LocationName) -> BTreeSet<NodeName> {
        self.mesh
            .nodes
            .values()
            .filter(|n| n.name != self.me && (n.location == *location || n.slot.is_some()))
            .map(|n| n.name.clone())
            .collect()
    }
}
