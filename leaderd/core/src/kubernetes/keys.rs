//! Keys of nodes. The first keys of a node are pinned. Others are accepted only if a person confirms them, by annotation
//! `leaderd.io/accept-key`, or if the node proves its identity, by a signature with the pinned control key.
//!
//! ```text
//! Node's annotations ──→ published keys ──┬─ as pinned ──────────────→ in the mesh
//!                                         ├─ accepted, or proved ────→ in the mesh, pinned from then on
//!                                         └─ else ───────────────────→ the pinned ones stay, and the Node gets a condition
//! ```
//!
//! Each daemon pins the keys of the mesh file that it accepts, and saves them on disk with the view. So daemons that see the Nodes reject
//! a mesh file with other keys, whoever writes it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::view::{ClusterNode, ClusterView, names};
use crate::ids::NodeName;
use crate::mesh::{Mesh, Node};

/// Both public keys of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeKeys {
    /// X25519.
    pub wireguard: [u8; 32],
    /// Ed25519.
    pub control: [u8; 32],
}

impl NodeKeys {
    pub(super) fn of(node: &Node) -> Self {
        Self { wireguard: node.wireguard_key.0, control: node.control_key.0 }
    }

    /// Returns the value that annotation `leaderd.io/accept-key` must have: 32 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::new().chain_update(self.wireguard).chain_update(self.control);
        digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
    }

    /// Returns the bytes that a node signs to prove that these keys are its own.
    pub fn to_sign(&self, node: &NodeName) -> Vec<u8> {
        let head = [b"leaderd: new keys of a node\0", node.as_str().as_bytes(), b"\0"].concat();
        [&head[..], &self.wireguard, &self.control].concat()
    }
}

/// Keys in a mesh file that nothing explains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnexpectedKeys {
    pub node: NodeName,
    pub keys: NodeKeys,
}

/// Reads annotation `name` as a key; `None` if it is missing, an error if it is no key.
fn read(node: &ClusterNode, name: &str) -> Option<Result<[u8; 32], ()>> {
    let text = node.annotations.get(name)?;
    let key = STANDARD.decode(text).ok().and_then(|k| <[u8; 32]>::try_from(k).ok());
    Some(key.filter(|k| *k != [0; 32]).ok_or(()))
}

/// Returns the keys that a node publishes, if it publishes both.
pub(super) fn published(node: &ClusterNode, say: &mut impl FnMut(String)) -> Option<NodeKeys> {
    let [wireguard, control] = [names::WIREGUARD_KEY, names::CONTROL_KEY].map(|name| {
        let key = read(node, name);
        if key == Some(Err(())) {
            say(format!("annotation {name} is no key: remove it, its daemon will set it again"));
        }
        key?.ok()
    });
    Some(NodeKeys { wireguard: wireguard?, control: control? })
}

/// True if a node with the keys `pinned` may change to `new`.
fn may_change(node: &ClusterNode, name: &NodeName, pinned: &NodeKeys, new: &NodeKeys) -> bool {
    let of = |name: &str| node.annotations.get(name).map_or("", String::as_str);
    let accepted = of(names::ACCEPT_KEY).trim() == new.fingerprint();
    let proofs = of(names::KEY_PROOF).split(',').filter_map(|p| STANDARD.decode(p.trim()).ok());
    let known_by = VerifyingKey::from_bytes(&pinned.control);
    let proves = |proof: &Vec<u8>| {
        let proof = Signature::from_slice(proof).ok();
        let (Some(proof), Ok(key)) = (proof, &known_by) else { return false };
        key.verify_strict(&new.to_sign(name), &proof).is_ok()
    };
    accepted || proofs.take(4).any(|p| proves(&p))
}

/// Returns the keys of a node that count, given its published and its pinned keys; and the published ones if they are refused.
pub(super) fn effective_keys(
    node: &ClusterNode,
    name: &NodeName,
    published: Option<NodeKeys>,
    pinned: Option<NodeKeys>,
) -> (Option<NodeKeys>, Option<NodeKeys>) {
    match (published, pinned) {
        (Some(new), Some(pinned)) if new != pinned && !may_change(node, name, &pinned, &new) => {
            (Some(pinned), Some(new))
        }
        (published, pinned) => (published.or(pinned), None),
    }
}

/// The pinned keys of each node, by its name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PinnedKeys(BTreeMap<String, Pin>);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Pin {
    keys: NodeKeys,
    /// UID of the Node object; empty if it was not seen. A Node that was deleted and recreated may be another machine's.
    uid: String,
}

impl PinnedKeys {
    /// Returns the pinned keys of a node without a Node object.
    pub fn of_name(&self, node: &NodeName) -> Option<NodeKeys> {
        self.0.get(node.as_str()).map(|p| p.keys)
    }

    /// Returns the pinned keys of a Node; `None` if it was recreated since.
    pub fn of_node(&self, node: &ClusterNode) -> Option<NodeKeys> {
        let pin = self.0.get(&node.name)?;
        (pin.uid.is_empty() || pin.uid == node.uid).then_some(pin.keys)
    }

    /// Pins the keys of a mesh file, all or none.
    ///
    /// # Errors
    /// The nodes whose keys differ from the pinned ones without a reason in the view.
    pub fn check_and_pin(
        &mut self,
        mesh: &Mesh,
        view: &ClusterView,
    ) -> Result<(), Vec<UnexpectedKeys>> {
        let strange = |node: &Node| {
            let (name, keys) = (&node.name, NodeKeys::of(node));
            let object = view.nodes.get(name.as_str());
            let pinned = object.map_or_else(|| self.of_name(name), |n| self.of_node(n))?;
            let may = || object.is_some_and(|n| may_change(n, name, &pinned, &keys));
            (keys != pinned && !may()).then(|| UnexpectedKeys { node: name.clone(), keys })
        };
        let all: Vec<UnexpectedKeys> = mesh.nodes.values().filter_map(strange).collect();
        if !all.is_empty() {
            return Err(all);
        }
        self.pin_unchecked(mesh);
        self.0.retain(|name, pin| {
            let node = view.nodes.get(name);
            if let Some(node) = node.filter(|_| pin.uid.is_empty()) {
                pin.uid.clone_from(&node.uid);
            }
            node.is_some() || name.parse().is_ok_and(|n| mesh.node(&n).is_some())
        });
        Ok(())
    }

    /// Pins the keys of a mesh file without a check: for a daemon that does not see the Nodes.
    pub fn pin_unchecked(&mut self, mesh: &Mesh) {
        for node in mesh.nodes.values() {
            let pin = Pin { keys: NodeKeys::of(node), uid: String::new() };
            self.0.insert(node.name.to_string(), pin);
        }
    }
}

#[cfg(test)]
mod tests;
