//! Changes of the mesh file while the mesh runs: each node gets the new file at a time of its own.
//!
//! The world's own `mesh` is the truth: it changes when a roll-out begins. A new node starts when its file arrives. A node whose key is
//! rotated is restarted with it at once, as operators do; the others reload the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::{Generation, LocationName, NodeIndex, NodeName, Slot};
use leaderd_core::io::Input;
use leaderd_core::mesh::Mesh;
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::proof::Signer;
use serde::{Deserialize, Serialize};
use wgctl_plan::Network;

use super::meshes::{endpoint_of, node_of, secret_of};
use super::world::{Event, SimNode, World};
use super::{Fault, Faults};

/// Observers have measured all that a roll-out moved within this time.
const MEASURED: Duration = Duration::from_secs(6);

/// A change of the mesh file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A new node without a slot in this location; it may vote.
    AddMember(LocationName),
    /// A new node with the next free slot.
    AddCandidate(LocationName),
    /// A member becomes a candidate.
    GiveSlot(NodeName),
    /// A candidate becomes a member.
    TakeSlot(NodeName),
    /// The location's witnesses lose their votes.
    DropWitnesses(LocationName),
    /// The node gets another WireGuard key.
    RotateKey(NodeName),
    /// Milliseconds between two rounds of probes.
    ProbeInterval(u32),
    /// Least seconds between two automatic failovers.
    HoldDown(u32),
}

/// A change, when it comes, and by how much later some nodes get it (the others at once). Milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollOut {
    pub at_ms: u32,
    pub change: Change,
    pub late_ms: BTreeMap<NodeName, u32>,
}

impl Change {
    /// Returns the next file, and the secrets of nodes that get a new one. `None`: there is nothing to change.
    pub fn apply(&self, old: &Mesh) -> Option<(Mesh, BTreeMap<NodeName, [u8; 32]>)> {
        let mut mesh = old.clone();
        let mut secrets = BTreeMap::new();
        mesh.edit().generation = Generation(old.generation.0 + 1);
        mesh.edit().hash = [mesh.generation.0 as u8; 32];
        match self {
            Self::AddMember(location) => add(&mut mesh, &mut secrets, location, false)?,
            Self::AddCandidate(location) => add(&mut mesh, &mut secrets, location, true)?,
            Self::GiveSlot(name) => {
                let slot = next_slot(&mesh, &mesh.nodes.get(name)?.location);
                let node = mesh.edit().nodes.get_mut(name).filter(|n| n.slot.is_none())?;
                node.slot = Some(slot);
                node.endpoint = Some(endpoint_of(node.address));
            }
            Self::TakeSlot(name) => {
                let location = mesh.nodes.get(name)?.location.clone();
                // A location without a candidate carries no traffic.
                if mesh.candidates_of(&location).len() < 2 {
                    return None;
                }
                let node = mesh.edit().nodes.get_mut(name).filter(|n| n.slot.is_some())?;
                (node.slot, node.endpoint) = (None, None);
            }
            Self::DropWitnesses(location) => {
                let location = mesh.edit().locations.get_mut(location)?;
                if location.witnesses.is_empty() {
                    return None;
                }
                location.witnesses.clear();
            }
            Self::RotateKey(name) => {
                let mesh = mesh.edit();
                let node = mesh.nodes.get_mut(name)?;
                let secret = secret_of(node.index.0, mesh.generation.0 as u8);
                node.wireguard_key = ProbeKeys::new(secret).public();
                node.control_key = Signer::new(&secret).public();
                secrets.insert(name.clone(), secret);
            }
            Self::ProbeInterval(ms) => {
                mesh.edit().policy.probe_interval = Duration::from_millis((*ms).into());
            }
            Self::HoldDown(secs) => {
                mesh.edit().policy.hold_down = Duration::from_secs((*secs).into())
            }
        }
        Some((mesh, secrets))
    }

    /// Returns whether some nodes cannot reach others until all have the file.
    fn separates_nodes(&self) -> bool {
        !matches!(self, Self::ProbeInterval(_) | Self::HoldDown(_))
    }
}

fn next_slot(mesh: &Mesh, location: &LocationName) -> Slot {
    Slot(mesh.candidates_of(location).keys().next_back().map_or(0, |s| s.0 + 1))
}

fn add(
    mesh: &mut Mesh,
    secrets: &mut BTreeMap<NodeName, [u8; 32]>,
    location: &LocationName,
    candidate: bool,
) -> Option<()> {
    let slot = next_slot(mesh, location);
    let site = mesh.locations.keys().position(|l| l == location)?;
    let number = mesh.nodes_of(location).count() as u8;
    let index = NodeIndex(mesh.nodes.values().map(|n| n.index.0).max()? + 1);
    // The sites' numbers are in their addresses, in the order in which they were given.
    let known = mesh.nodes_of(location).find_map(|n| match n.address {
        std::net::IpAddr::V4(v4) => Some(v4.octets()[2]),
        std::net::IpAddr::V6(_) => None,
    });
    let secret = secret_of(index.0, 1);
    let site_number = known.unwrap_or(site as u8 + 1);
    let slot = candidate.then_some(slot);
    let node = node_of(location, number.into(), (site_number, number), index, slot, secret);
    secrets.insert(node.name.clone(), secret);
    mesh.edit().nodes.insert(node.name.clone(), node);
    Some(())
}

impl World {
    /// Changes the true mesh. Returns the new file, to be [`deliver`](World::deliver)ed to each node. `last`: how long until all have it.
    pub fn change_mesh(&mut self, change: &Change, last: Duration) -> Option<Arc<Mesh>> {
        let (mesh, secrets) = change.apply(&self.mesh)?;
        for name in self.nodes.keys() {
            self.files.entry(name.clone()).or_insert_with(|| self.mesh.clone());
        }
        self.mesh = Arc::new(mesh);
        self.fault_changed = self.now().mono;
        if change.separates_nodes() {
            self.mesh_files_differ_until =
                self.mesh_files_differ_until.max(self.now().mono + last + MEASURED);
        }
        for (name, secret) in secrets {
            match self.nodes.get_mut(&name) {
                Some(node) => {
                    node.secret = secret;
                    self.files.insert(name.clone(), self.mesh.clone());
                    if self.core(&name).is_some() {
                        self.fault(&name, &Fault::DaemonKill, true);
                        self.fault(&name, &Fault::DaemonKill, false);
                    }
                }
                None => {
                    self.faults.insert(name.clone(), Faults::default());
                    self.kernels.insert(name.clone(), Network::default());
                    self.nodes.insert(name.clone(), SimNode::new(secret));
                }
            }
        }
        Some(self.mesh.clone())
    }

    /// Hands a node a new file. It ignores one that is older than its own, as the daemon does.
    pub fn deliver(&mut self, name: &NodeName, mesh: &Arc<Mesh>) {
        let known = self.files.get(name).map(|m| m.generation);
        if known.is_some_and(|g| g >= mesh.generation) {
            return;
        }
        self.files.insert(name.clone(), mesh.clone());
        self.fault_changed = self.now().mono;
        if self.core(name).is_some() {
            let input = Input::MeshChanged(Box::new((**mesh).clone()));
            self.schedule(Duration::ZERO, name, Event::Input(input));
        } else if known.is_none() {
            self.start_daemon(name);
        }
    }

    /// Returns whether each node's file has the other; else their keys do not fit.
    pub(super) fn know_each_other(&self, a: &NodeName, b: &NodeName) -> bool {
        let knows =
            |a: &NodeName, b: &NodeName| self.files.get(a).is_none_or(|m| m.nodes.contains_key(b));
        knows(a, b) && knows(b, a)
    }

    /// Returns whether a change of the mesh file has not reached all nodes, or did so just now.
    pub fn mesh_files_differ(&self) -> bool {
        self.now().mono < self.mesh_files_differ_until
    }
}
