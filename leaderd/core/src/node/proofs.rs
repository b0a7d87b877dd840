//! Signatures of decisions: made by this node as a voter, gathered from the other voters, and asked of what others tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Node;
use super::ignored::Ignored;
use super::known::Untaken;
use crate::capability::{Capabilities, Capability};
use crate::group::Standing;
use crate::ids::{Epoch, LocationName, NodeName};
use crate::io::{Effect, Persist};
use crate::mesh::{Mesh, ProofPolicy};
use crate::proof::{Proof, SetId, Signature, Signed, Statement, VoterSet};
use crate::state::Decision;
use crate::time::{Instant, Now};
use crate::wire::Frame;
use crate::wire::limits::MAX_SIGNED;

/// Voters that were not heard yet count as ones that sign, for this time after a node first knows of their location. A node
/// that starts without a store knows no proof, and would otherwise take the first claim that it hears. Hellos of remote
/// nodes are rationed in large meshes; all voters that are up have spoken by then.
const PRESUMED: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Asked {
    /// Whether this node's key is the one that the mesh file names.
    Key(Statement),
    Decision {
        location: LocationName,
        epoch: Epoch,
        set: SetId,
    },
}

/// What one voter said of the newest decision that it signed.
#[derive(Debug, Default)]
struct Voice {
    epoch: Epoch,
    signatures: Vec<Signed>,
}

#[derive(Debug)]
pub(super) struct Proofs {
    /// This node's key is the one that the mesh file names, so it can sign.
    able: bool,
    asked: BTreeMap<u64, Asked>,
    last_id: u64,
    /// Of each location's voters: by the present mesh file, and by the last one in which they were others.
    sets: BTreeMap<LocationName, (VoterSet, Option<VoterSet>)>,
    voices: BTreeMap<LocationName, BTreeMap<NodeName, Voice>>,
    /// Locations whose unheard voters count as ones that sign, and until when ([`PRESUMED`]).
    presumed: BTreeMap<LocationName, Instant>,
    /// The decision about which it was last said that this node does not sign it.
    refused: BTreeMap<LocationName, Epoch>,
}

impl Proofs {
    pub(super) fn new(mesh: &Mesh, now: Now) -> Self {
        let set = |l: &LocationName| (l.clone(), (VoterSet::of(mesh, l), None));
        let mut proofs = Self {
            able: false,
            asked: BTreeMap::new(),
            last_id: 0,
            sets: mesh.locations.keys().map(set).collect(),
            voices: BTreeMap::new(),
            presumed: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        proofs.presume_unheard_sign(now);
        proofs
    }

    /// Of all locations, as when this node starts.
    pub(super) fn presume_unheard_sign(&mut self, now: Now) {
        let until = |l: &LocationName| (l.clone(), now.mono + PRESUMED);
        self.presumed = self.sets.keys().map(until).collect();
    }

    /// As if a node had run for [`PRESUMED`].
    #[cfg(test)]
    pub(super) fn presume_no_signers(&mut self) {
        self.presumed.clear();
    }

    fn set_mesh(&mut self, mesh: &Mesh, now: Now) {
        let before = std::mem::take(&mut self.sets);
        for location in mesh.locations.keys() {
            let new = VoterSet::of(mesh, location);
            let old = match before.get(location) {
                Some((old, older)) if *old == new => older.clone(),
                Some((old, _)) => Some(old.clone()),
                None => {
                    self.presumed.insert(location.clone(), now.mono + PRESUMED);
                    None
                }
            };
            self.sets.insert(location.clone(), (new, old));
        }
        self.voices.retain(|l, _| mesh.locations.contains_key(l));
        self.presumed.retain(|l, _| mesh.locations.contains_key(l));
        self.refused.retain(|l, _| mesh.locations.contains_key(l));
    }

    /// The sets of voters whose majority is believed.
    fn sets(&self, location: &LocationName) -> Vec<&VoterSet> {
        let sets = self.sets.get(location);
        sets.into_iter().flat_map(|(now, before)| [Some(now), before.as_ref()]).flatten().collect()
    }

    fn has_signed(&self, location: &LocationName, epoch: Epoch, set: SetId, me: &NodeName) -> bool {
        let asked = |a: &Asked| {
            matches!(a, Asked::Decision { location: l, epoch: e, set: s }
            if l == location && *e == epoch && *s == set)
        };
        let voice = self.voices.get(location).and_then(|v| v.get(me));
        let signed = |v: &Voice| v.epoch == epoch && v.signatures.iter().any(|s| s.set == set);
        self.asked.values().any(asked) || voice.is_some_and(signed)
    }

    /// Keeps what a voter said, if it is not older than what it said before.
    fn hear(&mut self, location: &LocationName, voter: &NodeName, epoch: Epoch, new: Vec<Signed>) {
        let voices = self.voices.entry(location.clone()).or_default();
        let voice = voices.entry(voter.clone()).or_default();
        if epoch > voice.epoch {
            *voice = Voice { epoch, signatures: Vec::new() };
        }
        if epoch == voice.epoch {
            let sets: BTreeSet<SetId> = new.iter().map(|s| s.set).collect();
            voice.signatures.retain(|s| !sets.contains(&s.set));
            voice.signatures.extend(new);
            let surplus = voice.signatures.len().saturating_sub(MAX_SIGNED);
            voice.signatures.drain(..surplus);
        }
    }
}

impl Node {
    /// What this node's daemon understands.
    pub(super) fn capabilities(&self) -> Capabilities {
        let ours = Capabilities::OURS;
        if self.proofs.able { ours.with(Capability::Proofs) } else { ours }
    }

    fn ask_to_sign(&mut self, asked: Asked, statement: Statement) {
        self.proofs.last_id += 1;
        let id = self.proofs.last_id;
        self.proofs.asked.insert(id, asked);
        self.effects.push_back(Effect::Sign { id, statement });
    }

    /// Tries the key: with a wrong one this node would count as a voter that signs, and prove nothing.
    pub(super) fn try_key(&mut self) {
        let statement = Statement::key(&self.mesh.name, &self.me);
        self.ask_to_sign(Asked::Key(statement.clone()), statement);
    }

    pub(super) fn signed(&mut self, now: Now, id: u64, signature: Signature) {
        match self.proofs.asked.remove(&id) {
            Some(Asked::Key(statement)) => {
                let key = self.mesh.node(&self.me).map(|n| n.control_key);
                self.proofs.able = key.is_some_and(|key| signature.verifies(&statement, &key));
                if self.proofs.able {
                    self.keep_proving(now);
                }
            }
            Some(Asked::Decision { location, epoch, set }) => {
                let me = self.me.clone();
                let signed = Signed { voter: me.clone(), set, signature };
                self.proofs.hear(&location, &me, epoch, vec![signed]);
                self.tell_voters(&location);
                self.prove(now, &location);
            }
            None => {}
        }
    }

    /// Tells the other voters what this one has signed.
    fn tell_voters(&mut self, location: &LocationName) {
        let voice = self.proofs.voices.get(location).and_then(|v| v.get(&self.me));
        let Some(voice) = voice.filter(|v| !v.signatures.is_empty()) else { return };
        let frame = Frame::Signed {
            location: location.clone(),
            epoch: voice.epoch,
            signatures: voice.signatures.clone(),
        };
        let sets = self.proofs.sets(location);
        let voters: BTreeSet<NodeName> =
            sets.iter().flat_map(|s| s.voters()).filter(|v| **v != self.me).cloned().collect();
        for voter in voters {
            self.send(&voter, frame.clone());
        }
    }

    /// A decision of a group of this node is on its disk (`present`: signed for the present voters only) or committed.
    pub(super) fn sign(&mut self, now: Now, decision: &Decision, present: bool) {
        let location = &decision.location;
        if !self.proofs.able {
            return;
        }
        let mut wanted = Vec::new();
        for set in self.proofs.sets(location).into_iter().take(if present { 1 } else { 2 }) {
            let signed = self.proofs.has_signed(location, decision.epoch, set.id(), &self.me);
            if set.contains(&self.me) && !signed {
                wanted.push((set.id(), Statement::decision(&self.mesh.name, decision, set)));
            }
        }
        let Some(group) = self.groups.get_mut(location).filter(|_| !wanted.is_empty()) else {
            return;
        };
        if let Err(why) = group.may_sign(now, decision) {
            let told = self.proofs.refused.insert(location.clone(), decision.epoch);
            if told != Some(decision.epoch) {
                self.count("decisions.not-signed");
                let fields = [
                    ("location.name", location.to_string()),
                    ("decision.epoch", decision.epoch.to_string()),
                    ("why", why.to_string()),
                ];
                self.log(why.level(), "a decision is not signed by this voter", fields);
            }
            return;
        }
        let epoch = decision.epoch;
        for (set, statement) in wanted {
            self.ask_to_sign(Asked::Decision { location: location.clone(), epoch, set }, statement);
        }
    }

    pub(super) fn handle_signed(
        &mut self,
        now: Now,
        from: &NodeName,
        location: LocationName,
        epoch: Epoch,
        signatures: Vec<Signed>,
    ) {
        let votes = self.proofs.sets(&location).iter().any(|set| set.contains(from));
        let own = signatures.iter().all(|s| s.voter == *from) && signatures.len() <= MAX_SIGNED;
        if !votes || !own || !self.groups.contains_key(&location) {
            self.ignored(now, from.as_str(), Ignored::SignatureOfNoVoter);
            return;
        }
        self.proofs.hear(&location, from, epoch, signatures);
        self.prove(now, &location);
    }

    /// A decision that this node's group has committed comes into force once enough voters have signed it.
    pub(super) fn prove(&mut self, now: Now, location: &LocationName) {
        let Some(decision) = self.groups.get(location).and_then(|g| g.state().decision.clone())
        else {
            return;
        };
        let newer =
            self.known.epoch(location) > decision.epoch && self.known.proof(location).is_some();
        if newer || self.is_proved(&decision) {
            return;
        }
        let sets = &self.proofs.sets(location)[..];
        let voices = self.proofs.voices.get(location);
        let voices = voices.into_iter().flat_map(BTreeMap::values);
        let signatures =
            voices.filter(|v| v.epoch == decision.epoch).flat_map(|v| v.signatures.iter());
        let Some(proof) = Proof::of(&self.mesh.name, &decision, sets, signatures) else { return };
        self.believe(now, &decision, proof);
    }

    /// This node holds a proof of the decision by the voters of its present mesh file. One by those of the file before is not
    /// enough for ever: who starts with the present file knows no other.
    fn is_proved(&self, decision: &Decision) -> bool {
        let location = &decision.location;
        let known = self.known.decision(location);
        known.is_some_and(|d| d.says_the_same(decision))
            && self.known.proof(location).is_some_and(|proof| {
                self.proofs.sets.get(location).is_some_and(|(set, _)| proof.is_of(set))
            })
    }

    /// A proof of a decision was found, or told.
    fn believe(&mut self, now: Now, decision: &Decision, proof: Proof) {
        let location = decision.location.clone();
        if self.known.attach(decision, proof.clone()) {
            self.store_known(&location);
            self.tell_group(&location);
        } else if self.adopt(decision, Some(&proof)).is_err() {
            return;
        }
        if self.groups.get(&location).is_some_and(|g| g.state().decision.as_ref() == Some(decision))
        {
            let event = self.groups[&location].state().event_of(decision.epoch).cloned();
            self.announce_if_ours(now, decision.clone(), event.map(Box::new));
        }
    }

    pub(super) fn store_known(&mut self, location: &LocationName) {
        let write = Persist { decision: self.known.stored(location), ..Persist::default() };
        self.persist(location.clone(), None, write);
    }

    /// Takes a decision that another node told. `speaks`: its word counts without a proof as well.
    pub(super) fn hear_decision(
        &mut self,
        now: Now,
        from: &NodeName,
        decision: &Decision,
        proof: &Proof,
        speaks: bool,
    ) {
        let location = &decision.location;
        let takes_part = self.observer.is_some() || self.groups.contains_key(location);
        if *location != self.location && !takes_part {
            // Who leads elsewhere is for the candidates of its location, and what it shows it hears from those.
            self.ignored(now, from.as_str(), Ignored::DecisionForCandidates);
            return;
        }
        let known = self.known.epoch(location);
        let by_present_voters =
            self.proofs.sets.get(location).is_some_and(|(set, _)| proof.is_of(set));
        let news = decision.epoch > known
            || self.known.proof(location).is_none()
            || (decision.epoch == known && by_present_voters && !self.is_proved(decision));
        let proof = Some(proof).filter(|proof| news && !proof.is_empty()).and_then(|proof| {
            // What does not count in it is not passed on.
            proof.checked(&self.mesh.name, decision, &self.proofs.sets(location))
        });
        if let Some(proof) = proof {
            if let Some(group) = self.groups.get_mut(location)
                && decision.epoch > group.state().epoch()
            {
                group.proved(now, decision.epoch);
            }
            return self.believe(now, decision, proof);
        }
        if !speaks {
            return;
        }
        if let Err(why) = self.adopt(decision, None)
            && why != Untaken::Old
        {
            self.ignored(now, from.as_str(), Ignored::Decision(why));
        }
    }

    /// Shows a node what this one knows better about its location, if it is proved: its stores may be lost.
    pub(super) fn show_proved(&mut self, to: &NodeName, location: &LocationName, theirs: Epoch) {
        let Some(proof) = self.known.proof(location).cloned() else { return };
        let Some(decision) = self.known.decision(location).cloned() else { return };
        if decision.epoch > theirs {
            self.send(to, Frame::Announce { decision, proof, event: None });
        }
    }

    /// Whether a decision of this location is believed with a proof only.
    pub(super) fn proof_required(&self, location: &LocationName) -> bool {
        if self.mesh.proof == ProofPolicy::Require {
            return true;
        }
        let Some((set, _)) = self.proofs.sets.get(location) else { return false };
        let (sign, do_not) = self.signers(set);
        let may_sign = set.voters().count() - do_not;
        set.is_majority(sign)
            || (self.known.proof(location).is_some() && !set.is_majority(do_not))
            || (self.proofs.presumed.contains_key(location) && set.is_majority(may_sign))
    }

    /// How many voters are known to sign, and how many are known not to.
    fn signers(&self, set: &VoterSet) -> (usize, usize) {
        let signs = |voter: &NodeName| {
            if *voter == self.me {
                return Some(self.proofs.able);
            }
            let (_, hello) = self.heard.last.get(voter)?;
            Some(hello.capabilities.has(Capability::Proofs))
        };
        let all: Vec<bool> = set.voters().filter_map(signs).collect();
        let sign = all.iter().filter(|s| **s).count();
        (sign, all.len() - sign)
    }

    /// What an operator should know where a location's decisions are believed without a proof.
    pub(super) fn proof_note(&self, location: &LocationName) -> Option<String> {
        let known = self.known.decision(location);
        let epoch = known.map_or(Epoch(0), |d| d.epoch);
        let decided = self.voting(location).map(|g| g.state().epoch()).filter(|e| *e > epoch);
        if let Some(decided) = decided.filter(|_| self.proof_required(location)) {
            return Some(format!(
                "decision {decided} is not in force: most voters have not signed it"
            ));
        }
        if known.is_none() || self.known.proof(location).is_some() {
            return None;
        }
        let (set, _) = self.proofs.sets.get(location)?;
        let (sign, _) = self.signers(set);
        Some(format!(
            "who leads is not proved: {sign} of {} voters are known to sign decisions",
            set.voters().count()
        ))
    }

    /// What this node follows of a location that it votes in.
    pub(super) fn tell_group(&mut self, location: &LocationName) {
        let required = self.proof_required(location);
        let decision = self.known.decision(location);
        let standing = match self.known.proof(location) {
            None => Standing::Claimed,
            Some(_) if decision.is_some_and(|d| self.is_proved(d)) => Standing::Proved,
            Some(_) => Standing::ProvedBefore,
        };
        if let Some(group) = self.groups.get_mut(location) {
            group.in_force(decision, standing, required);
        }
    }

    /// With each hello: what was not signed may be signed now, and what was lost is told again.
    pub(super) fn keep_proving(&mut self, now: Now) {
        self.proofs.presumed.retain(|_, until| now.mono < *until);
        let locations: Vec<LocationName> = self.groups.keys().cloned().collect();
        for location in locations {
            self.tell_group(&location);
            let group = self.groups.get(&location);
            let Some(decision) = group.and_then(|g| g.state().decision.clone()) else { continue };
            self.sign(now, &decision, false);
            self.prove(now, &location);
            if !self.is_proved(&decision) {
                self.tell_voters(&location);
            }
        }
    }

    /// A new mesh file: other voters or other keys sign the present decisions again, without a new epoch.
    pub(super) fn new_voters(&mut self, now: Now, mesh: &Arc<Mesh>) {
        self.proofs.set_mesh(mesh, now);
        self.try_key();
        self.keep_proving(now);
    }
}
