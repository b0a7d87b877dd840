//! Who was heard of lately, and telling everyone 'I am alive, and this is what I know'.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use super::ignored::{Ignored, Said};
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::state::Decision;
use crate::time::{Duration, Instant, Now};
use crate::wire::{Frame, Hello};

/// Between two hellos to every peer.
pub(super) const HELLO_INTERVAL: Duration = Duration::from_secs(1);
/// After this long without a hello a node is not counted on.
pub(super) const HELLO_STALE: Duration = Duration::from_millis(3500);
/// Decisions of other locations in one hello.
const MAX_REMOTE: usize = 16;

/// Most hellos to nodes of other locations in one interval; with more of them they take turns. What goes that way (a
/// decision that a push has missed, the mesh file's generation, that there is a quorum) is not urgent, and would else cost
/// each node as much as the mesh is large.
const MAX_FAR_HELLOS: usize = 64;

#[derive(Debug)]
pub(super) struct Heard {
    pub(super) next_hello: Instant,
    /// Whose turn it is among the nodes of other locations, and how long it takes until all have had theirs.
    far_turn: usize,
    pub(super) far_round: Duration,
    /// Smoothed round trips of the control channel to the nodes that it is up to.
    pub(super) up: BTreeMap<NodeName, Duration>,
    pub(super) last: BTreeMap<NodeName, (Instant, Hello)>,
    /// Decisions of other locations, as a leader of this one tells a plain member: for show only.
    pub(super) told: BTreeMap<LocationName, Decision>,
    /// Hellos sent: whose turn it is to be told of.
    turn: usize,
    /// What candidates of this location told its plain members last.
    pub(super) uncarried: BTreeMap<NodeName, Uncarried>,
    /// When a node of the location last knew a raft leader.
    pub(super) quorum_seen: BTreeMap<LocationName, Instant>,
    /// What was ignored, and when the log last said so.
    pub(super) ignored: Said,
}

/// Where a candidate does not carry: see [`Frame::Uncarried`].
#[derive(Debug)]
pub(super) struct Uncarried {
    pub(super) at: Instant,
    pub(super) mesh_hash: [u8; 8],
    pub(super) locations: BTreeSet<LocationName>,
}

impl Heard {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next_hello: now,
            far_turn: 0,
            far_round: HELLO_INTERVAL,
            up: BTreeMap::new(),
            last: BTreeMap::new(),
            told: BTreeMap::new(),
            turn: 0,
            uncarried: BTreeMap::new(),
            quorum_seen: BTreeMap::new(),
            ignored: Said::default(),
        }
    }

    pub(super) fn is_fresh(&self, node: &NodeName, now: Instant) -> bool {
        let stale = HELLO_STALE.max(self.far_round * 3);
        self.last.get(node).is_some_and(|(at, _)| now.since(*at) <= stale)
    }

    /// True while a node can tell this one itself what it has to say.
    pub(super) fn hears(&self, node: &NodeName, now: Instant) -> bool {
        self.up.contains_key(node) || self.is_fresh(node, now)
    }
}

impl Node {
    pub(super) fn peer_up(&mut self, now: Now, node: NodeName, rtt: Duration) {
        if !self.mesh.nodes.contains_key(&node) {
            return;
        }
        for group in self.groups.values_mut() {
            group.handle_peer_rtt(now, &node, Some(rtt));
        }
        let is_new = self.heard.up.insert(node.clone(), rtt).is_none();
        if is_new {
            self.announcer.peer_up(now.mono, &node, &mut self.effects);
            let hello = self.hello(now, &node);
            self.send(&node, Frame::Hello(hello));
            self.tell_addresses_anew(now, &node);
        }
    }

    pub(super) fn peer_down(&mut self, now: Now, node: &NodeName) {
        self.heard.up.remove(node);
        for group in self.groups.values_mut() {
            group.handle_peer_rtt(now, node, None);
        }
    }

    pub(super) fn send_hellos(&mut self, now: Now) {
        self.heard.next_hello = now.mono + HELLO_INTERVAL;
        self.heard.turn = self.heard.turn.wrapping_add(1);
        for peer in self.hello_turn() {
            let hello = self.hello(now, &peer);
            self.send(&peer, Frame::Hello(hello));
            self.tell_addresses(now, &peer);
            self.tell_uncarried(&peer);
        }
        self.sign_and_prove_all(now);
        // Our own groups hear of this node as they hear of the others.
        let own = self.hello(now, &self.me);
        for (location, group) in &mut self.groups {
            if *location == self.location || self.mesh.voters_of(location).contains(&self.me) {
                group.handle_hello(now, &own);
            }
        }
    }

    /// Who gets a hello now: all nodes of this location and all that share a group with this node; of the others some.
    fn hello_turn(&mut self) -> Vec<NodeName> {
        let voters: BTreeSet<NodeName> =
            self.groups.keys().flat_map(|location| self.mesh.voters_of(location)).collect();
        let is_near = |n: &&NodeName| {
            voters.contains(*n) || self.mesh.node(n).is_some_and(|n| n.location == self.location)
        };
        let (mut turn, far): (Vec<&NodeName>, Vec<&NodeName>) =
            self.heard.up.keys().partition(is_near);
        let now = far.len().min(MAX_FAR_HELLOS);
        let from = self.heard.far_turn % far.len().max(1);
        turn.extend(far.iter().cycle().skip(from).take(now));
        let turn = turn.into_iter().cloned().collect();
        let rounds = far.len().div_ceil(MAX_FAR_HELLOS).max(1) as u32;
        self.heard.far_turn = from + now;
        self.heard.far_round = HELLO_INTERVAL * rounds;
        turn
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
            decision: self.known.decision(&self.location).cloned(),
            proof: self.known.proof(&self.location).cloned().unwrap_or_default(),
            raft_leader,
            broken: self.facts.broken.as_ref().map(|(cause, _)| *cause),
            reaches: self.reaches(),
            digest,
            remote: self.remote(to),
        }
    }

    /// Where this candidate does not carry, for a member that follows it.
    fn tell_uncarried(&mut self, to: &NodeName) {
        let candidate = self.observer.is_some();
        if let Some(locations) =
            self.steer.uncarried().filter(|_| candidate && self.is_member_here(to))
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
        let told = Uncarried { at: now.mono, mesh_hash, locations: locations.collect() };
        self.heard.uncarried.insert(from.clone(), told);
        self.steer.touch();
    }

    /// A plain member of this node's location.
    fn is_member_here(&self, node: &NodeName) -> bool {
        self.mesh.node(node).is_some_and(|n| n.location == self.location && n.slot.is_none())
    }

    /// What a leader of the location tells its plain members of others: a few at a time, in turn, so that a hello stays
    /// small in a mesh of any size.
    fn remote(&self, to: &NodeName) -> Vec<Decision> {
        if !self.leads_here() || !self.is_member_here(to) {
            return Vec::new();
        }
        let others = || self.mesh.locations.keys().filter(|l| **l != self.location);
        let from = (self.heard.turn * MAX_REMOTE) % others().count().max(1);
        let turn = others().cycle().skip(from).take(MAX_REMOTE.min(others().count()));
        turn.filter_map(|l| self.known.decision(l).cloned()).collect()
    }

    /// True on a leader of its location.
    pub(super) fn leads_here(&self) -> bool {
        self.mesh.node(&self.me).and_then(|n| n.slot).is_some_and(|mine| {
            self.effective_leaders(&self.location).is_some_and(|l| l.contains(&mine))
        })
    }

    /// Slots of this location whose candidates this node has a connection with (or is).
    fn reaches(&self) -> Vec<Slot> {
        let candidates = self.mesh.candidates_of(&self.location);
        candidates
            .into_iter()
            .filter(|(_, n)| n.name == self.me || self.heard.up.contains_key(&n.name))
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
            // A plain member takes no part in the group, and so knows nothing of a quorum.
            hello.raft_leader = None;
        }
        if hello.raft_leader.is_some() {
            self.heard.quorum_seen.insert(location.clone(), now.mono);
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
                // Gossip repairs what a push has missed; among the nodes of one location plain members pass it on, too.
                let speaks = speaks || location == self.location;
                self.consider_decision(now, from, &decision, &hello.proof, speaks);
            } else {
                self.ignored(now, from.as_str(), Ignored::DecisionOfAnotherLocation);
            }
        }
        let is_candidate = |n: &NodeName| mesh.node(n).is_some_and(|n| n.slot.is_some());
        if !is_candidate(&self.me) && is_candidate(from) && location == self.location {
            for decision in &hello.remote {
                let old = self.heard.told.get(&decision.location).map_or(Epoch(0), |d| d.epoch);
                if decision.epoch.may_follow(old) && decision.fits(&mesh) {
                    self.heard.told.insert(decision.location.clone(), decision.clone());
                }
            }
            self.steer.touch();
        }
        // Only what is asked for later is kept: there is one of each node of the mesh.
        let digest = if location == self.location { hello.digest } else { Vec::new() };
        let kept = Hello { remote: Vec::new(), digest, ..hello };
        self.heard.last.insert(from.clone(), (now.mono, kept));
    }

    /// Everyone a decision about the location is pushed to: its nodes, and the candidates of all others.
    pub(super) fn audience(&self, location: &LocationName) -> BTreeSet<NodeName> {
        self.mesh
            .nodes
            .values()
            .filter(|n| n.name != self.me && (n.location == *location || n.slot.is_some()))
            .map(|n| n.name.clone())
            .collect()
    }
}
