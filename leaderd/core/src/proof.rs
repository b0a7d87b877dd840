//! Proves a decision: signatures of a majority of the location's voters.
//!
//! A voter signs a decision once it is on its disk, or committed. Making, raising or replaying a decision takes the control keys
//! of a majority: see `docs/decisions/0011-signed-decisions.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{LocationName, NodeName};
use crate::mesh::{ControlPublicKey, Mesh};
use crate::state::Decision;

/// Most signatures of a proof: two sets of voters of the largest location.
pub const MAX_SIGNATURES: usize = 64;

/// A node's control key, to sign with. The shell holds it, never the core, so recordings hold signatures and no key.
/// Zeroed on drop.
#[derive(Clone)]
pub struct Signer(SigningKey);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(…)")
    }
}

impl Signer {
    pub fn new(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> ControlPublicKey {
        ControlPublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, statement: &Statement) -> Signature {
        let bytes = self.0.sign(&statement.0).to_bytes();
        let (mut r, mut s) = ([0; 32], [0; 32]);
        r.copy_from_slice(&bytes[..32]);
        s.copy_from_slice(&bytes[32..]);
        Signature(r, s)
    }
}

/// Ed25519 (RFC 8032): R and S.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}…", self.0[0], self.0[1])
    }
}

impl Signature {
    pub fn verifies(&self, statement: &Statement, key: &ControlPublicKey) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&key.0) else { return false };
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        key.verify_strict(&statement.0, &ed25519_dalek::Signature::from_bytes(&bytes)).is_ok()
    }
}

/// Bytes to sign. They begin with their purpose, so that a signature is never mistaken for one of another purpose: TLS signs with
/// the same key, and begins otherwise (RFC 8446 §4.4.3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statement(Vec<u8>);

impl Statement {
    /// A decision, signed as one of this set of voters.
    pub fn decision(mesh: &str, decision: &Decision, set: &VoterSet) -> Self {
        let mut bytes = b"leaderd decision 1".to_vec();
        put(&mut bytes, mesh.as_bytes());
        put(&mut bytes, decision.location.as_str().as_bytes());
        bytes.extend(decision.epoch.0.to_be_bytes());
        let leaders: Vec<u8> = decision.leaders.iter().map(|slot| slot.0).collect();
        put(&mut bytes, &leaders);
        bytes.extend(set.id.0);
        Self(bytes)
    }

    /// A test of whether a node's key is the one that the mesh file names.
    pub fn key(mesh: &str, node: &NodeName) -> Self {
        let mut bytes = b"leaderd key 1".to_vec();
        put(&mut bytes, mesh.as_bytes());
        put(&mut bytes, node.as_str().as_bytes());
        Self(bytes)
    }
}

/// Appends the length, then the bytes.
fn put(bytes: &mut Vec<u8>, more: &[u8]) {
    bytes.extend((more.len() as u64).to_be_bytes());
    bytes.extend(more);
}

/// SHA-256 over names and keys of a set of voters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SetId([u8; 32]);

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}…", self.0[0], self.0[1])
    }
}

/// The voters of a location by one mesh file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoterSet {
    id: SetId,
    keys: BTreeMap<NodeName, ControlPublicKey>,
}

impl VoterSet {
    pub fn of(mesh: &Mesh, location: &LocationName) -> Self {
        let voters = mesh.voters_of(location);
        let keys: BTreeMap<NodeName, ControlPublicKey> =
            voters.iter().filter_map(|v| Some((v.clone(), mesh.node(v)?.control_key))).collect();
        let mut bytes = b"leaderd voters 1".to_vec();
        for (name, key) in &keys {
            put(&mut bytes, name.as_str().as_bytes());
            bytes.extend(key.0);
        }
        Self { id: SetId(Sha256::digest(&bytes).into()), keys }
    }

    pub fn id(&self) -> SetId {
        self.id
    }

    pub fn contains(&self, node: &NodeName) -> bool {
        self.keys.contains_key(node)
    }

    pub fn voters(&self) -> impl Iterator<Item = &NodeName> {
        self.keys.keys()
    }

    pub fn is_majority(&self, voters: usize) -> bool {
        voters * 2 > self.keys.len()
    }
}

/// A voter's signature, as one of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signed {
    pub voter: NodeName,
    pub set: SetId,
    pub signature: Signature,
}

/// Signatures that prove a decision wherever one of their sets is known.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Proof(Vec<Signed>);

impl Proof {
    /// The signatures that count, if they are enough for one of the sets.
    pub fn of<'a>(
        mesh: &str,
        decision: &Decision,
        sets: &[&VoterSet],
        signatures: impl Iterator<Item = &'a Signed> + Clone,
    ) -> Option<Self> {
        let mut all = Vec::new();
        let mut enough = false;
        for set in sets {
            let statement = Statement::decision(mesh, decision, set);
            let mut seen = BTreeSet::new();
            let of_set = signatures.clone().filter(|s| s.set == set.id);
            for signed in of_set.take(MAX_SIGNATURES) {
                let Some(key) = set.keys.get(&signed.voter) else { continue };
                if !seen.contains(&signed.voter) && signed.signature.verifies(&statement, key) {
                    seen.insert(&signed.voter);
                    all.push(signed.clone());
                }
            }
            enough |= set.is_majority(seen.len());
        }
        enough.then_some(Self(all))
    }

    /// The part of this proof that counts; `None` if no majority of one of these sets has signed the decision.
    pub fn checked(&self, mesh: &str, decision: &Decision, sets: &[&VoterSet]) -> Option<Self> {
        Self::of(mesh, decision, sets, self.0.iter())
    }

    /// True if it names as many voters of this set as a proof needs. [`Self::checked`] checks their signatures.
    pub fn is_of(&self, set: &VoterSet) -> bool {
        let of_set = self.0.iter().filter(|s| s.set == set.id && set.contains(&s.voter));
        set.is_majority(of_set.map(|s| &s.voter).collect::<BTreeSet<_>>().len())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests;
