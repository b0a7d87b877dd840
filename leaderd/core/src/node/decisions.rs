//! The decisions that this node knows, and how far each has come: adopted, asked for, in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::ids::{Epoch, LocationName, NodeName};
use crate::io::{Effect, LogLevel};
use crate::mesh::Mesh;
use crate::proof::Proof;
use crate::state::{Decision, Event, EventSeq, MAX_STATE, surplus};
use crate::time::{Now, WallTime};
use crate::wire::Frame;

/// Bytes of events that are kept for `wgctl events`: of all locations whose state this node does not hold.
const MAX_ALL_EVENTS: usize = 16 << 20;
/// What an event takes in memory beyond its size on the wire: its maps and lists, empty as they may be.
const EVENT_ITSELF: usize = 1 << 10;
/// How far an event's number may be beyond the newest that is known: this node may have missed some. An event further ahead would
/// push out all that come after it.
const MAX_EVENT_JUMP: u64 = 1 << 16;

/// Why a decision is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum DecisionRefusal {
    #[error("decision that is known, or an older one")]
    Old,
    #[error("decision with an epoch too far ahead")]
    TooFarAhead,
    #[error("decision whose leaders are no candidates")]
    NoCandidates,
    #[error("decision without a proof")]
    Unproved,
}

impl DecisionRefusal {
    /// As in metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old-decision",
            Self::TooFarAhead => "decision-with-an-epoch-too-far-ahead",
            Self::NoCandidates => "decision-whose-leaders-are-no-candidates",
            Self::Unproved => "decision-without-a-proof",
        }
    }
}

/// Of each location at most one decision.
///
/// ```text
/// take ──▶ known ── programming ──▶ asked for ── programmed ──▶ in force
///            ▲                                                     │
///            └────────────────── take a newer one ─────────────────┘
/// ```
#[derive(Debug, Default)]
pub(super) struct KnownDecisions {
    locations: BTreeMap<LocationName, KnownDecision>,
    /// Events of locations whose replicated state this node does not hold.
    events: BTreeMap<LocationName, Events>,
    /// Decisions of other locations, as a leader of this one tells a plain member: for show only.
    shown: BTreeMap<LocationName, Decision>,
}

/// Of one location, as many as its own voters keep, and at most [`MAX_STATE`] bytes of them.
#[derive(Debug, Default)]
struct Events {
    by_seq: BTreeMap<u64, Event>,
    size: usize,
}

impl Events {
    fn insert(&mut self, event: Event) {
        self.size += size(&event);
        if let Some(old) = self.by_seq.insert(event.seq, event) {
            self.size -= size(&old);
        }
        while let Some(seq) = surplus(self.by_seq.values()) {
            self.forget(seq);
        }
        while self.size > MAX_STATE {
            self.forget_oldest();
        }
    }

    fn forget(&mut self, seq: EventSeq) {
        if let Some(event) = self.by_seq.remove(&seq) {
            self.size -= size(&event);
        }
    }

    fn forget_oldest(&mut self) {
        match self.by_seq.first_key_value() {
            Some((seq, _)) => self.forget(*seq),
            None => self.size = 0,
        }
    }
}

fn size(event: &Event) -> usize {
    event.size() + EVENT_ITSELF
}

#[derive(Debug)]
struct KnownDecision {
    decision: Decision,
    /// Empty: it was taken without one.
    proof: Proof,
    /// The revision of the network that first had it; `None` until it is asked for.
    revision: Option<u64>,
    programmed_at: Option<WallTime>,
    /// Nodes that get an acknowledgement once it is programmed.
    announced_by: BTreeSet<NodeName>,
}

impl KnownDecisions {
    /// A decision from the store: in force before, not to be acknowledged.
    ///
    /// One that was proved when it was stored is believed.
    pub(super) fn restore(&mut self, location: &LocationName, decision: Decision, proof: Proof) {
        let known = self.epoch(location);
        let newer =
            decision.epoch.may_follow(known) || (!proof.is_empty() && decision.epoch > known);
        if decision.location == *location && newer {
            self.replace(decision, proof);
        }
    }

    /// Bytes for the store: the decision, and its proof behind it.
    pub(super) fn stored(&self, location: &LocationName) -> Option<Vec<u8>> {
        let known = self.locations.get(location)?;
        Some(postcard::to_allocvec(&(&known.decision, &known.proof)).expect("plain data"))
    }

    /// What [`Self::stored`] wrote, or a daemon from before proofs.
    pub(super) fn read_stored(bytes: &[u8]) -> Option<(Decision, Proof)> {
        let (decision, rest) = postcard::take_from_bytes(bytes).ok()?;
        Some((decision, postcard::from_bytes(rest).unwrap_or_default()))
    }

    pub(super) fn proof(&self, location: &LocationName) -> Option<&Proof> {
        self.locations.get(location).map(|k| &k.proof).filter(|p| !p.is_empty())
    }

    /// Sets the proof of the known decision: it came later, or other voters signed it.
    pub(super) fn attach(&mut self, decision: &Decision, proof: Proof) -> bool {
        let known = self.locations.get_mut(&decision.location);
        let Some(known) = known.filter(|k| k.decision.says_the_same(decision)) else {
            return false;
        };
        known.proof = proof;
        true
    }

    pub(super) fn get(&self, location: &LocationName) -> Option<&Decision> {
        self.locations.get(location).map(|k| &k.decision)
    }

    /// What a leader of this node's location said of another one.
    pub(super) fn show(&mut self, mesh: &Mesh, decision: &Decision) {
        let old = self.shown.get(&decision.location).map_or(Epoch(0), |d| d.epoch);
        if decision.epoch.may_follow(old) && decision.fits(mesh) {
            self.shown.insert(decision.location.clone(), decision.clone());
        }
    }

    /// See [`Self::show`].
    pub(super) fn shown(&self, location: &LocationName) -> Option<&Decision> {
        self.shown.get(location)
    }

    /// 0 if nothing is known.
    pub(super) fn epoch(&self, location: &LocationName) -> Epoch {
        self.get(location).map_or(Epoch(0), |d| d.epoch)
    }

    /// Takes a decision if it is newer than the known one. Where proofs are required, a decision with a proof goes before any without:
    /// the epoch of the latter may be made up.
    pub(super) fn take(
        &mut self,
        mesh: &Mesh,
        decision: &Decision,
        proof: Option<&Proof>,
        required: bool,
    ) -> Result<(), DecisionRefusal> {
        let location = &decision.location;
        let known = self.epoch(location);
        let outranks = required && proof.is_some() && self.proof(location).is_none();
        if decision.epoch <= known && (!outranks || self.says(decision)) {
            return Err(DecisionRefusal::Old);
        }
        if proof.is_none() && required {
            return Err(DecisionRefusal::Unproved);
        }
        if proof.is_none() && !decision.epoch.may_follow(known) {
            return Err(DecisionRefusal::TooFarAhead);
        }
        if !decision.fits(mesh) {
            return Err(DecisionRefusal::NoCandidates);
        }
        self.replace(decision.clone(), proof.cloned().unwrap_or_default());
        Ok(())
    }

    fn says(&self, decision: &Decision) -> bool {
        self.get(&decision.location).is_some_and(|d| d.says_the_same(decision))
    }

    fn replace(&mut self, decision: Decision, proof: Proof) {
        self.locations.insert(
            decision.location.clone(),
            KnownDecision {
                decision,
                proof,
                revision: None,
                programmed_at: None,
                announced_by: BTreeSet::new(),
            },
        );
    }

    /// The decisions that are in this node's kernel.
    pub(super) fn in_force(&self) -> impl Iterator<Item = &Decision> {
        self.locations.values().filter(|k| k.programmed_at.is_some()).map(|k| &k.decision)
    }

    /// A node announced a decision. Returns when it was programmed; if it is not yet, that node gets an acknowledgement later.
    pub(super) fn announced(
        &mut self,
        location: &LocationName,
        epoch: Epoch,
        by: &NodeName,
    ) -> Option<(Epoch, WallTime)> {
        let known = self.locations.get_mut(location)?;
        if known.decision.epoch < epoch {
            return None;
        }
        match known.programmed_at {
            Some(at) => Some((known.decision.epoch, at)),
            None => {
                known.announced_by.insert(by.clone());
                None
            }
        }
    }

    /// Everything known is in the network of this revision.
    pub(super) fn programming(&mut self, revision: u64) {
        for known in self.locations.values_mut() {
            known.revision.get_or_insert(revision);
        }
    }

    /// A revision is in the kernel. Returns the decisions that came into force with it, and who gets acknowledgements.
    pub(super) fn programmed(
        &mut self,
        revision: u64,
        at: WallTime,
    ) -> Vec<(Decision, BTreeSet<NodeName>)> {
        let mut in_force = Vec::new();
        for known in self.locations.values_mut() {
            if known.programmed_at.is_none() && known.revision.is_some_and(|r| r <= revision) {
                known.programmed_at = Some(at);
                in_force.push((known.decision.clone(), std::mem::take(&mut known.announced_by)));
            }
        }
        in_force
    }

    /// False if its number is far beyond the newest. The event is within its bounds: that was checked when it came in.
    pub(super) fn remember_event(&mut self, event: Event) -> bool {
        let events = self.events.entry(event.location.clone()).or_default();
        let newest = events.by_seq.last_key_value().map(|(seq, _)| *seq);
        if newest.is_some_and(|newest| event.seq > newest.saturating_add(MAX_EVENT_JUMP)) {
            return false;
        }
        events.insert(event);
        while self.events.values().map(|e| e.size).sum::<usize>() > MAX_ALL_EVENTS {
            // The location with the most events gives way.
            if let Some(most) = self.events.values_mut().max_by_key(|e| e.size) {
                most.forget_oldest();
            }
        }
        true
    }

    pub(super) fn events(&self, location: &LocationName) -> impl Iterator<Item = &Event> {
        self.events.get(location).into_iter().flat_map(|e| e.by_seq.values())
    }

    pub(super) fn has_event(&self, location: &LocationName, seq: u64) -> bool {
        self.events.get(location).is_some_and(|e| e.by_seq.contains_key(&seq))
    }

    pub(super) fn retain(&mut self, mesh: &Mesh) {
        self.locations.retain(|location, _| mesh.locations.contains_key(location));
        self.events.retain(|location, _| mesh.locations.contains_key(location));
        self.shown.retain(|location, _| mesh.locations.contains_key(location));
    }
}

impl Node {
    /// Takes a decision if it is newer, and asks for the network that follows from it.
    pub(super) fn adopt(
        &mut self,
        now: Now,
        decision: &Decision,
        proof: Option<&Proof>,
    ) -> Result<(), DecisionRefusal> {
        let location = &decision.location;
        let (mesh, required) = (self.mesh.clone(), self.proof_required(location));
        self.decisions.take(&mesh, decision, proof, required)?;
        self.fallback.left(location);
        self.store_known(location);
        self.update_group(location);
        let mut changed = match *location == self.location {
            true => self.find_relays(now, self.other_locations()),
            false => self.find_relays(now, [location.clone()]),
        };
        self.tell_groups_of_relays(now, location);
        changed.insert(location.clone());
        // Programmed even if nothing changes in the kernel: the answer brings the decision into force.
        self.reprogram_relays(&changed, true);
        Ok(())
    }

    /// A decision is in this node's kernel.
    pub(super) fn decision_in_force(
        &mut self,
        now: Now,
        decision: &Decision,
        announced_by: &BTreeSet<NodeName>,
    ) {
        let location = &decision.location;
        self.log(
            LogLevel::Info,
            "decision in force",
            [
                ("location.name", location.to_string()),
                ("decision.epoch", decision.epoch.to_string()),
                ("decision.cause", decision.cause.to_string()),
                (
                    "leader.slot",
                    decision.leaders.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                ),
            ],
        );
        if let Some(observer) = &mut self.observer {
            observer.decided(now, location, decision.epoch, &decision.leaders);
        }
        let me = self.me.clone();
        if let Some(group) = self.groups.get_mut(location) {
            group.handle_ack(now, &me, decision.epoch, now.wall);
        }
        for node in announced_by.iter().filter(|n| **n != me) {
            let ack = Frame::Ack {
                location: location.clone(),
                epoch: decision.epoch,
                programmed_at: now.wall,
            };
            self.effects.push_back(Effect::SendFrame { to: node.clone(), frame: Box::new(ack) });
        }
    }
}
