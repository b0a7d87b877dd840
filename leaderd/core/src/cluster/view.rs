//! What leaderd knows of a cluster. Plain data: the last good view is kept on disk, so that an API server that is away stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::keys::Pins;
use crate::mesh::PolicyPatch;
pub use crate::mesh::Steering;

/// Everything read, as of about the same time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterView {
    /// By name.
    pub nodes: BTreeMap<String, ClusterNode>,
    /// By name.
    pub pools: BTreeMap<String, Pool>,
    /// The object that holds the mesh file, once somebody made it.
    pub mesh: Option<MeshObject>,
    #[serde(default)]
    pub cni: CniPrefixes,
    /// Where the cluster's Services have their addresses, as far as the API says it.
    #[serde(default)]
    pub services: Vec<IpNet>,
    /// The keys that this daemon knows the nodes by.
    #[serde(default)]
    pub pins: Pins,
}

/// What CNIs say of the nodes' prefixes, by name of the node. `None`: the cluster knows no such objects, or they are not asked for.
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

/// A Node, as much as matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterNode {
    pub name: String,
    /// For changes that must not overwrite another's.
    pub resource_version: String,
    /// The object's, for Events about it.
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// Those of `kilo.squat.ai/` and `leaderd.io/` only.
    pub annotations: BTreeMap<String, String>,
    pub pod_cidrs: Vec<IpNet>,
    /// `InternalIP` addresses, in the API's order.
    pub internal: Vec<IpAddr>,
    /// `ExternalIP` addresses, in the API's order.
    pub external: Vec<IpAddr>,
    /// Condition `RelayForwarding` as it is set now: status, reason.
    pub relay_forwarding: Option<(String, String)>,
    /// Condition `MeshChangeRefused` as it is set now: reason, message.
    #[serde(default)]
    pub change_refused: Option<(String, String)>,
}

/// A `LocationPool` of `leaderd.io/v1alpha1`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub resource_version: String,
    pub uid: String,
    /// `metadata.generation`: which spec the status is about.
    pub generation: i64,
    pub spec: PoolSpec,
    /// Its status as it is now, as the API has it: replaced only where it differs.
    pub status: Option<serde_json::Value>,
}

/// What a person asks of a location.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The location as Kilo names it.
    pub location: String,
    /// Who may lead.
    pub candidates: CandidateRule,
    /// Names of nodes elsewhere that vote here and never lead here.
    pub witnesses: Vec<String>,
    /// What this location has otherwise than the mesh.
    pub policy: PolicyPatch,
    pub steering: Steering,
    /// No automatic failover while set.
    pub freeze: bool,
    /// Nodes that shall not lead for now.
    pub drained: BTreeSet<String>,
}

/// Who may lead: nodes named, and nodes selected by label. Both empty: every node of the location that can.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CandidateRule {
    pub match_labels: BTreeMap<String, String>,
    /// In order of preference.
    pub names: Vec<String>,
    /// Lower is preferred. Without: 100 for selected ones, 10, 20, … in order for those named.
    pub priorities: BTreeMap<String, u16>,
    /// At most so many candidates; 1 to 15. Default 3.
    pub max: Option<u8>,
}

/// The ConfigMap that holds the mesh file. Whoever changes it counts the generation up, with its `resourceVersion` as
/// precondition: so all nodes run the same file, and indexes and slots are kept from the file before. If the object is gone
/// while its text is still known, the view keeps the text, so that numbers stay; the shell makes the object again.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MeshObject {
    pub resource_version: String,
    /// Text of `mesh.toml`.
    pub text: String,
}

/// Annotations and labels, Kilo's and ours.
pub mod names {
    /// Of all annotations that are ours.
    pub const PREFIX: &str = "leaderd.io/";
    pub const KILO_LOCATION: &str = "kilo.squat.ai/location";
    pub const KILO_LEADER: &str = "kilo.squat.ai/leader";
    pub const KILO_ENDPOINT: &str = "kilo.squat.ai/endpoint";
    pub const KILO_FORCE_ENDPOINT: &str = "kilo.squat.ai/force-endpoint";
    pub const KILO_INTERNAL_IP: &str = "kilo.squat.ai/internal-ip";
    /// Goes before the one above; `-` or nothing: none.
    pub const KILO_FORCE_INTERNAL_IP: &str = "kilo.squat.ai/force-internal-ip";
    /// Comma-separated prefixes of the node's location that are behind none of its nodes.
    pub const KILO_ALLOWED_LOCATION_IPS: &str = "kilo.squat.ai/allowed-location-ips";
    /// The location where Kilo has none.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// Base64 X25519 public key of the node's daemon.
    pub const WIREGUARD_KEY: &str = "leaderd.io/wireguard-key";
    /// Base64 Ed25519 public key of the node's daemon.
    pub const CONTROL_KEY: &str = "leaderd.io/control-key";
    /// Fingerprint of the keys that the node may have from now on. People write it.
    pub const ACCEPT_KEY: &str = "leaderd.io/accept-key";
    /// Base64 Ed25519 signatures of the node's keys, with commas between them: by the control key that it has, and by the one that it
    /// had before if that is there.
    pub const KEY_PROOF: &str = "leaderd.io/key-proof";
    /// Addresses that the node's daemon is probed at, with commas between them: for people. Daemons tell each other, so the mesh file
    /// does not have them, and an address that changes makes no new generation of it.
    pub const PROBE_ADDRESS: &str = "leaderd.io/probe-address";
    /// Epoch of the decision that last changed this node's leader annotation.
    pub const EPOCH: &str = "leaderd.io/epoch";
    /// The node's workload prefixes, with commas between them: goes before whatever else says them.
    pub const PREFIXES: &str = "leaderd.io/prefixes";
    /// Location of that decision: epochs of different locations have nothing to do with each other.
    pub const LOCATION: &str = "leaderd.io/location";
}
