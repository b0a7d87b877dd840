//! The view of a cluster. Plain data: the last complete view is saved on disk, so that the mesh does not depend on the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::keys::PinnedKeys;
pub use crate::mesh::Steering;
use crate::mesh::{self, Mesh, PolicyPatch};

/// Everything that was read, from about the same time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterView {
    /// By name.
    pub nodes: BTreeMap<String, ClusterNode>,
    /// By name.
    pub pools: BTreeMap<String, Pool>,
    /// The object that holds the mesh file, once it exists.
    pub mesh: Option<MeshObject>,
    #[serde(default)]
    pub cni: CniPrefixes,
    /// The cluster's Service ranges, as far as the API names them.
    #[serde(default)]
    pub services: Vec<IpNet>,
    /// The keys by which this daemon knows the nodes.
    #[serde(default)]
    pub pins: PinnedKeys,
}

/// The nodes' prefixes according to CNIs, by name of the node. `None`: the cluster has no such objects, or they are not watched.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CniPrefixes {
    /// `CiliumNode`: `spec.ipam.podCIDRs`, and those of its pools.
    pub cilium: Option<BTreeMap<String, Vec<IpNet>>>,
    /// `BlockAffinity` of Calico's own IPAM.
    pub calico: Option<BTreeMap<String, Vec<IpNet>>>,
}

impl CniPrefixes {
    pub(super) fn all(&self) -> impl Iterator<Item = &IpNet> {
        let maps = self.cilium.iter().chain(&self.calico);
        maps.flat_map(BTreeMap::values).flatten()
    }
}

/// A Node, reduced to what leaderd uses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterNode {
    pub name: String,
    /// Precondition of writes.
    pub resource_version: String,
    /// For Events about the object.
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// Those of `kilo.squat.ai/` and `leaderd.io/` only.
    pub annotations: BTreeMap<String, String>,
    pub pod_cidrs: Vec<IpNet>,
    /// `InternalIP` addresses, in the API's order.
    pub internal: Vec<IpAddr>,
    /// `ExternalIP` addresses, in the API's order.
    pub external: Vec<IpAddr>,
    /// Current condition `RelayForwarding`: status, reason.
    pub relay_forwarding: Option<(String, String)>,
    /// Current condition `MeshChangeRefused`: reason, message.
    #[serde(default)]
    pub change_refused: Option<(String, String)>,
}

/// A `LocationPool` of `leaderd.io/v1alpha1`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub resource_version: String,
    pub uid: String,
    /// `metadata.generation`: identifies the spec that a status is about.
    pub generation: i64,
    pub spec: PoolSpec,
    /// Current status as the API has it; it is replaced only if it differs.
    pub status: Option<serde_json::Value>,
}

/// A person's choices for a location.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The location as Kilo names it.
    pub location: String,
    /// Who may lead.
    pub candidates: CandidateRule,
    /// Names of nodes in other locations that vote here and never lead here.
    pub witnesses: Vec<String>,
    /// Policy of the location where it differs from the mesh's.
    pub policy: PolicyPatch,
    pub steering: Steering,
    /// No automatic failover while set.
    pub freeze: bool,
    /// Nodes that must not lead for now.
    pub drained: BTreeSet<String>,
}

/// Who may lead: nodes named, and nodes selected by label. Both empty: every node of the location that can.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CandidateRule {
    pub match_labels: BTreeMap<String, String>,
    /// In order of preference.
    pub names: Vec<String>,
    /// Lower is preferred. Default: 100 for nodes selected by label, 10, 20, … in order for nodes named.
    pub priorities: BTreeMap<String, u16>,
    /// Most candidates; 1 to 15. Default 3.
    pub max: Option<u8>,
}

/// The ConfigMap that holds the mesh file. Every change increments the generation, with the `resourceVersion` as precondition: so all
/// nodes run the same file, and indexes and slots are kept from the previous file. If the object is gone while its text is still
/// known, the view keeps the text, so that indexes stay; the shell creates the object again.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MeshObject {
    pub resource_version: String,
    /// `mesh.toml`.
    pub text: MeshText,
}

/// The text of a mesh file, parsed at most once. Clones share the parsed mesh.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct MeshText {
    text: Arc<str>,
    parsed: OnceLock<Result<Arc<Mesh>, Arc<str>>>,
}

impl MeshText {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the mesh.
    ///
    /// # Errors
    /// If the text is no valid mesh file: all mistakes, one per line.
    pub fn mesh(&self) -> Result<&Arc<Mesh>, &str> {
        let parse = || match mesh::parse(&self.text) {
            Ok(mesh) => Ok(Arc::new(mesh)),
            Err(mistakes) => {
                let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                Err(mistakes.join("\n").into())
            }
        };
        self.parsed.get_or_init(parse).as_ref().map_err(|mistakes| &**mistakes)
    }

    /// Returns the generation that the text states, even if the rest of it is invalid.
    pub fn claimed_generation(&self) -> Option<u64> {
        let value = |line: &str| {
            let value = line.trim().strip_prefix("generation")?.trim_start();
            value.strip_prefix('=')?.trim().parse().ok()
        };
        self.text.lines().find_map(value)
    }
}

impl From<&str> for MeshText {
    fn from(text: &str) -> Self {
        Self { text: text.into(), parsed: OnceLock::new() }
    }
}

impl From<String> for MeshText {
    fn from(text: String) -> Self {
        Self { text: text.into(), parsed: OnceLock::new() }
    }
}

impl From<MeshText> for String {
    fn from(text: MeshText) -> Self {
        text.text.as_ref().to_owned()
    }
}

impl std::ops::Deref for MeshText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl PartialEq for MeshText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for MeshText {}

impl std::fmt::Debug for MeshText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.text.fmt(f)
    }
}

/// Annotations and labels, Kilo's and ours.
pub mod names {
    /// Prefix of all our annotations.
    pub const PREFIX: &str = "leaderd.io/";
    pub const KILO_LOCATION: &str = "kilo.squat.ai/location";
    pub const KILO_LEADER: &str = "kilo.squat.ai/leader";
    pub const KILO_ENDPOINT: &str = "kilo.squat.ai/endpoint";
    pub const KILO_FORCE_ENDPOINT: &str = "kilo.squat.ai/force-endpoint";
    pub const KILO_INTERNAL_IP: &str = "kilo.squat.ai/internal-ip";
    /// Overrides the one above; `-` or empty: none.
    pub const KILO_FORCE_INTERNAL_IP: &str = "kilo.squat.ai/force-internal-ip";
    /// Comma-separated prefixes of the node's location that are behind none of its nodes.
    pub const KILO_ALLOWED_LOCATION_IPS: &str = "kilo.squat.ai/allowed-location-ips";
    /// The location if Kilo's annotation is missing.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// Base64 X25519 public key of the node's daemon.
    pub const WIREGUARD_KEY: &str = "leaderd.io/wireguard-key";
    /// Base64 Ed25519 public key of the node's daemon.
    pub const CONTROL_KEY: &str = "leaderd.io/control-key";
    /// Fingerprint of the keys that the node may have from now on. People write it.
    pub const ACCEPT_KEY: &str = "leaderd.io/accept-key";
    /// Base64 Ed25519 signatures of the node's keys, comma-separated: by its control key, and by its previous control key if that
    /// file exists.
    pub const KEY_PROOF: &str = "leaderd.io/key-proof";
    /// Addresses at which the node's daemon is probed, comma-separated: for people. Daemons announce them to each other, so the mesh
    /// file does not contain them, and a changed address makes no new generation.
    pub const PROBE_ADDRESS: &str = "leaderd.io/probe-address";
    /// Epoch of the decision that last changed this node's leader annotation.
    pub const EPOCH: &str = "leaderd.io/epoch";
    /// The node's workload prefixes, comma-separated: overrides every other source.
    pub const PREFIXES: &str = "leaderd.io/prefixes";
    /// Location of that decision: epochs of different locations are unrelated.
    pub const LOCATION: &str = "leaderd.io/location";
}
