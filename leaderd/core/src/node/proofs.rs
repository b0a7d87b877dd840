//! Signatures of decisions: made by this node as a voter, gathered from the other voters, and checked on decisions that other
//! nodes send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Node;
use super::decisions::DecisionRefusal;
use super::ignored::Ignored;
use crate::capability::{Capabilities, Capability};
use crate::group::Standing;
use crate::ids::{Epoch, LocationName, NodeName};
use crate::io::{Effect, Persist};
use crate::mesh::{Mesh, ProofPolicy};
use crate::proof::{Proof, SetId, Signature, Signed, Statement, VoterSet};
use crate::state::Decision;
use crate::time::Now;
use crate::wire::Frame;
use crate::wire::limits::MAX_SIGNED;

#[derive(Debug)]
enum SignRequest {
    /// A test of whether this node's key is the one that the mesh file names.
    Key(Statement),
    Decision {
        location: LocationName,
        epoch: Epoch,
        set: SetId,
    },
}

/// One voter's signatures of the newest decision that it signed.
#[derive(Debug, Default)]
struct VoterSignatures {
    epoch: Epoch,
    signatures: Vec<Signed>,
}

#[derive(Debug)]
pub(super) struct Proofs {
    /// This node's key is the one that the mesh file names, so its signatures count.
    key_matches: bool,
    requests: BTreeMap<u64, SignRequest>,
    last_id: u64,
    /// Each location's voters by the present mesh file, and by the last one with other voters.
    sets: BTreeMap<LocationName, (VoterSet, Option<VoterSet>)>,
    by_voter: BTreeMap<LocationName, BTreeMap<NodeName, VoterSignatures>>,
    /// The decision that was last logged as not signed by this node.
    refused: BTreeMap<LocationName, Epoch>,
}

impl Proofs {
    pub(super) fn new(mesh: &Mesh) -> Self {
        let set = |l: &LocationName| (l.clone(), (VoterSet::of(mesh, l), None));
        Self {
            key_matches: false,
            requests: BTreeMap::new(),
            last_id: 0,
            sets: mesh.locations.keys().map(set).collect(),
            by_voter: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    fn set_mesh(&mut self, mesh: &Mesh) {
        let before = std::mem::take(&mut self.sets);
        for location in mesh.locations.keys() {
            let new = VoterSet::of(mesh, location);
            let old = match before.get(location) {
                Some((old, older)) if *old == new => older.clone(),
                Some((old, _)) => Some(old.clone()),
                None => None,
            };
            self.sets.insert(location.clone(), (new, old));
        }
        self.by_voter.retain(|l, _| mesh.locations.contains_key(l));
        self.refused.retain(|l, _| mesh.locations.contains_key(l));
    }

    /// The sets of voters whose majority proves a decision.
    fn sets(&self, location: &LocationName) -> Vec<&VoterSet> {
        let sets = self.sets.get(location);
        sets.into_iter().flat_map(|(now, before)| [Some(now), before.as_ref()]).flatten().collect()
    }

    fn has_signed(&self, location: &LocationName, epoch: Epoch, set: SetId, me: &NodeName) -> bool {
        let asked = |a: &SignRequest| {
            matches!(a, SignRequest::Decision { location: l, epoch: e, set: s }
            if l == location && *e == epoch && *s == set)
        };
        let known = self.by_voter.get(location).and_then(|v| v.get(me));
        let signed =
            |v: &VoterSignatures| v.epoch == epoch && v.signatures.iter().any(|s| s.set == set);
        self.requests.values().any(asked) || known.is_some_and(signed)
    }

    /// Keeps a voter's signatures, unless they are of an older decision than those that it has sent.
    fn record(
        &mut self,
        location: &LocationName,
        voter: &NodeName,
        epoch: Epoch,
        new: Vec<Signed>,
    ) {
        let by_voter = self.by_voter.entry(location.clone()).or_default();
        let known = by_voter.entry(voter.clone()).or_default();
        if epoch > known.epoch {
            *known = VoterSignatures { epoch, signatures: Vec::new() };
        }
        if epoch == known.epoch {
            let sets: BTreeSet<SetId> = new.iter().map(|s| s.set).collect();
            known.signatures.retain(|s| !sets.contains(&s.set));
            known.signatures.extend(new);
            let surplus = known.signatures.len().saturating_sub(MAX_SIGNED);
            known.signatures.drain(..surplus);
        }
    }
}

impl Node {
    /// What this node's daemon understands.
    pub(super) fn capabilities(&self) -> Capabilities {
        let ours = Capabilities::OURS;
        if self.proofs.key_matches { ours.with(Capability::Proofs) } else { ours }
    }

    fn request_signature(&mut self, asked: SignRequest, statement: Statement) {
        self.proofs.last_id += 1;
        let id = self.proofs.last_id;
        self.proofs.requests.insert(id, asked);
        self.effects.push_back(Effect::Sign { id, statement });
    }

    /// Checks the key: with a wrong one this node would count as a voter that signs, and prove nothing.
    pub(super) fn check_own_key(&mut self) {
        let statement = Statement::key(&self.mesh.name, &self.me);
        self.request_signature(SignRequest::Key(statement.clone()), statement);
    }

    pub(super) fn signed(&mut self, now: Now, id: u64, signature: Signature) {
        match self.proofs.requests.remove(&id) {
            Some(SignRequest::Key(statement)) => {
                let key = self.mesh.node(&self.me).map(|n| n.control_key);
                self.proofs.key_matches =
                    key.is_some_and(|key| signature.verifies(&statement, &key));
                if self.proofs.key_matches {
                    self.sign_and_prove_all(now);
                }
            }
            Some(SignRequest::Decision { location, epoch, set }) => {
                let me = self.me.clone();
                let signed = Signed { voter: me.clone(), set, signature };
                self.proofs.record(&location, &me, epoch, vec![signed]);
                self.send_signatures(&location);
                self.prove(now, &location);
            }
            None => {}
        }
    }

    /// Sends this node's signatures to the other voters.
    fn send_signatures(&mut self, location: &LocationName) {
        let known = self.proofs.by_voter.get(location).and_then(|v| v.get(&self.me));
        let Some(known) = known.filter(|v| !v.signatures.is_empty()) else { return };
        let frame = Frame::Signed {
            location: location.clone(),
            epoch: known.epoch,
            signatures: known.signatures.clone(),
        };
        let sets = self.proofs.sets(location);
        let voters: BTreeSet<NodeName> =
            sets.iter().flat_map(|s| s.voters()).filter(|v| **v != self.me).cloned().collect();
        for voter in voters {
            self.send(&voter, frame.clone());
        }
    }

    /// Signs a decision of this node's group that is on its disk (`present`: for the present voters only) or committed.
    pub(super) fn sign(&mut self, now: Now, decision: &Decision, present: bool) {
        let location = &decision.location;
        if !self.proofs.key_matches {
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
            self.request_signature(
                SignRequest::Decision { location: location.clone(), epoch, set },
                statement,
            );
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
        self.proofs.record(&location, from, epoch, signatures);
        self.prove(now, &location);
    }

    /// Puts the decision that this node's group has committed in force if enough voters have signed it.
    pub(super) fn prove(&mut self, now: Now, location: &LocationName) {
        let Some(decision) = self.groups.get(location).and_then(|g| g.state().decision.clone())
        else {
            return;
        };
        let newer = self.decisions.epoch(location) > decision.epoch
            && self.decisions.proof(location).is_some();
        if newer || self.is_proved(&decision) {
            return;
        }
        let sets = &self.proofs.sets(location)[..];
        let by_voter = self.proofs.by_voter.get(location);
        let by_voter = by_voter.into_iter().flat_map(BTreeMap::values);
        let signatures =
            by_voter.filter(|v| v.epoch == decision.epoch).flat_map(|v| v.signatures.iter());
        let Some(proof) = Proof::of(&self.mesh.name, &decision, sets, signatures) else { return };
        self.accept_proved(now, &decision, proof);
    }

    /// True if this node has a proof of the decision by the voters of its present mesh file. One by the voters of the file before
    /// is not enough for long: a node that starts with the present file knows no others.
    fn is_proved(&self, decision: &Decision) -> bool {
        let location = &decision.location;
        let known = self.decisions.get(location);
        known.is_some_and(|d| d.says_the_same(decision))
            && self.decisions.proof(location).is_some_and(|proof| {
                self.proofs.sets.get(location).is_some_and(|(set, _)| proof.is_of(set))
            })
    }

    /// Takes a decision with a checked proof.
    fn accept_proved(&mut self, now: Now, decision: &Decision, proof: Proof) {
        let location = decision.location.clone();
        if self.decisions.attach(decision, proof.clone()) {
            self.store_known(&location);
            self.update_group(&location);
        } else if self.adopt(now, decision, Some(&proof)).is_err() {
            return;
        }
        if self.groups.get(&location).is_some_and(|g| g.state().decision.as_ref() == Some(decision))
        {
            let event = self.groups[&location].state().event_of(decision.epoch).cloned();
            self.announce_if_ours(now, decision.clone(), event.map(Box::new));
        }
    }

    pub(super) fn store_known(&mut self, location: &LocationName) {
        let write = Persist { decision: self.decisions.stored(location), ..Persist::default() };
        self.persist(location.clone(), None, write);
    }

    /// Takes a decision that another node sent, if it may. `speaks`: it counts without a proof as well.
    pub(super) fn consider_decision(
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
            // Only candidates follow other locations. A member learns from them what it shows.
            self.ignored(now, from.as_str(), Ignored::DecisionForCandidates);
            return;
        }
        let known = self.decisions.epoch(location);
        let by_present_voters =
            self.proofs.sets.get(location).is_some_and(|(set, _)| proof.is_of(set));
        let news = decision.epoch > known
            || self.decisions.proof(location).is_none()
            || (decision.epoch == known && by_present_voters && !self.is_proved(decision));
        let proof = Some(proof).filter(|proof| news && !proof.is_empty()).and_then(|proof| {
            // Signatures that do not count are not passed on.
            proof.checked(&self.mesh.name, decision, &self.proofs.sets(location))
        });
        if let Some(proof) = proof {
            if let Some(group) = self.groups.get_mut(location)
                && decision.epoch > group.state().epoch()
            {
                group.handle_proved_epoch(now, decision.epoch);
            }
            return self.accept_proved(now, decision, proof);
        }
        if !speaks {
            return;
        }
        if let Err(why) = self.adopt(now, decision, None)
            && why != DecisionRefusal::Old
        {
            self.ignored(now, from.as_str(), Ignored::Decision(why));
        }
    }

    /// Sends a node the proved decision of its location if that is newer than `theirs`: its stores may be lost.
    pub(super) fn send_if_newer(&mut self, to: &NodeName, location: &LocationName, theirs: Epoch) {
        let Some(proof) = self.decisions.proof(location).cloned() else { return };
        let Some(decision) = self.decisions.get(location).cloned() else { return };
        if decision.epoch > theirs {
            self.send(to, Frame::Announce { decision, proof, event: None });
        }
    }

    /// True if a decision of this location counts only with a proof.
    pub(super) fn proof_required(&self, location: &LocationName) -> bool {
        if self.mesh.proof == ProofPolicy::Require {
            return true;
        }
        let Some((set, _)) = self.proofs.sets.get(location) else { return false };
        let (sign, do_not) = self.signers(set);
        let proved = self.decisions.proof(location).is_some();
        set.is_majority(sign) || (proved && !set.is_majority(do_not))
    }

    /// How many voters are known to sign, and how many are known not to.
    fn signers(&self, set: &VoterSet) -> (usize, usize) {
        let signs = |voter: &NodeName| {
            if *voter == self.me {
                return Some(self.proofs.key_matches);
            }
            let hello = self.peers.hello(voter)?;
            Some(hello.capabilities.has(Capability::Proofs))
        };
        let all: Vec<bool> = set.voters().filter_map(signs).collect();
        let sign = all.iter().filter(|s| **s).count();
        (sign, all.len() - sign)
    }

    /// A note for operators where a location's decision is not proved.
    pub(super) fn proof_note(&self, location: &LocationName) -> Option<String> {
        let known = self.decisions.get(location);
        let epoch = known.map_or(Epoch(0), |d| d.epoch);
        let decided = self.voting(location).map(|g| g.state().epoch()).filter(|e| *e > epoch);
        if let Some(decided) = decided.filter(|_| self.proof_required(location)) {
            return Some(format!(
                "decision {decided} is not in force: most voters have not signed it"
            ));
        }
        if known.is_none() || self.decisions.proof(location).is_some() {
            return None;
        }
        let (set, _) = self.proofs.sets.get(location)?;
        let (sign, _) = self.signers(set);
        Some(format!(
            "who leads is not proved: {sign} of {} voters are known to sign decisions",
            set.voters().count()
        ))
    }

    /// Gives the group of this location the decision that this node follows.
    pub(super) fn update_group(&mut self, location: &LocationName) {
        let required = self.proof_required(location);
        let decision = self.decisions.get(location);
        let standing = match self.decisions.proof(location) {
            None => Standing::Claimed,
            Some(_) if decision.is_some_and(|d| self.is_proved(d)) => Standing::Proved,
            Some(_) => Standing::ProvedBefore,
        };
        if let Some(group) = self.groups.get_mut(location) {
            group.set_followed(decision, standing, required);
        }
    }

    /// With each hello: signs what was not signed before, and sends again signatures that may be lost.
    pub(super) fn sign_and_prove_all(&mut self, now: Now) {
        let locations: Vec<LocationName> = self.groups.keys().cloned().collect();
        for location in locations {
            self.update_group(&location);
            let group = self.groups.get(&location);
            let Some(decision) = group.and_then(|g| g.state().decision.clone()) else { continue };
            self.sign(now, &decision, false);
            self.prove(now, &location);
            if !self.is_proved(&decision) {
                self.send_signatures(&location);
            }
        }
    }

    /// A new mesh file: other voters or other keys sign the present decisions again, without a new epoch.
    pub(super) fn new_voters(&mut self, now: Now, mesh: &Arc<Mesh>) {
        self.proofs.set_mesh(mesh);
        self.check_own_key();
        self.sign_and_prove_all(now);
    }
}
