//! Keys of nodes. The first that a node is known by are pinned: others are taken only if a person says so, by annotation
//! `leaderd.io/accept-key`, or if the node proves that it is the same, by a signature with the control key that it was known by.
//!
//! ```text
//! Node's annotations ──→ published keys ──┬─ as pinned ──────────────→ in the mesh
//!                                         ├─ accepted, or proved ────→ in the mesh, pinned from then on
//!                                         └─ else ───────────────────→ the pinned ones stay, and somebody is told
//! ```
//!
//! A daemon pins by itself what the mesh file that it takes says, and keeps that on disk with the view. So whoever writes a mesh file
//! with other keys is not believed by daemons that see the Nodes.

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

    /// What annotation `leaderd.io/accept-key` has to say: 32 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::new().chain_update(self.wireguard).chain_update(self.control);
        digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
    }

    /// What a node signs to prove that these keys are its own.
    pub fn to_sign(&self, node: &NodeName) -> Vec<u8> {
        let head = [b"leaderd: new keys of a node\0", node.as_str().as_bytes(), b"\0"].concat();
        [&head[..], &self.wireguard, &self.control].concat()
    }
}

/// Keys that are not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotTaken {
    pub node: NodeName,
    pub keys: NodeKeys,
}

/// Annotation `name` as a key; `None` if it is not there, an error if it is no key.
fn read(node: &ClusterNode, name: &str) -> Option<Result<[u8; 32], ()>> {
    let text = node.annotations.get(name)?;
    let key = STANDARD.decode(text).ok().and_then(|k| <[u8; 32]>::try_from(k).ok());
    Some(key.filter(|k| *k != [0; 32]).ok_or(()))
}

/// The keys that a node publishes, if it publishes both.
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

/// True if a node that was known by `pinned` may have these.
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

/// The keys that count of those that a node publishes, where others may be pinned; and those that do not.
pub(super) fn counted(
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

/// The keys by which each node is known, by its name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pins(BTreeMap<String, Pin>);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Pin {
    keys: NodeKeys,
    /// Of the Node object; empty if it was not seen. Who may delete a Node and make it again may make it another's.
    uid: String,
}

impl Pins {
    /// The keys that a node without a Node object is known by.
    pub fn of_name(&self, node: &NodeName) -> Option<NodeKeys> {
        self.0.get(node.as_str()).map(|p| p.keys)
    }

    /// The keys that a Node is known by; none if it was made again since.
    pub fn of_node(&self, node: &ClusterNode) -> Option<NodeKeys> {
        let pin = self.0.get(&node.name)?;
        (pin.uid.is_empty() || pin.uid == node.uid).then_some(pin.keys)
    }

    /// Takes what a mesh file says of keys, or nothing of it: then with the nodes whose keys are others than those that are pinned,
    /// for no reason that the view shows.
    pub fn take(&mut self, mesh: &Mesh, view: &ClusterView) -> Result<(), Vec<NotTaken>> {
        let strange = |node: &Node| {
            let (name, keys) = (&node.name, NodeKeys::of(node));
            let told = view.nodes.get(name.as_str());
            let pinned = told.map_or_else(|| self.of_name(name), |n| self.of_node(n))?;
            let may = || told.is_some_and(|n| may_change(n, name, &pinned, &keys));
            (keys != pinned && !may()).then(|| NotTaken { node: name.clone(), keys })
        };
        let all: Vec<NotTaken> = mesh.nodes.values().filter_map(strange).collect();
        if !all.is_empty() {
            return Err(all);
        }
        self.trust(mesh);
        self.0.retain(|name, pin| {
            let node = view.nodes.get(name);
            if let Some(node) = node.filter(|_| pin.uid.is_empty()) {
                pin.uid.clone_from(&node.uid);
            }
            node.is_some() || name.parse().is_ok_and(|n| mesh.node(&n).is_some())
        });
        Ok(())
    }

    /// Takes what a mesh file says of keys, whatever it is: for a daemon that does not see the Nodes.
    pub fn trust(&mut self, mesh: &Mesh) {
        for node in mesh.nodes.values() {
            let pin = Pin { keys: NodeKeys::of(node), uid: String::new() };
            self.0.insert(node.name.to_string(), pin);
        }
    }
}

#[cfg(test)]
mod tests;
