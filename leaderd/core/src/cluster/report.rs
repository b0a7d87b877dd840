//! What people see: pools' status, a condition of each candidate's node, Events; and what pools ask of the mesh.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::render::Rendered;
use super::task::{Running, Task};
use super::view::ClusterView;
use crate::ids::NodeName;
use crate::time::WallTime;

/// `status` of a `LocationPool`. Nothing in it changes by itself: loss and round trips are rounded, and move only when they
/// moved far.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct PoolStatus {
    /// `metadata.generation` of the spec that this status is about.
    pub observed_generation: i64,
    /// Node that leads the location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// All leaders, in order, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leaders: Vec<String>,
    /// Number of the decision.
    pub epoch: u64,
    /// When it was decided, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why leadership moved last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// By slot; then those refused, by name.
    pub candidates: Vec<CandidateReport>,
    /// Ready, Steered, Quorum, Degraded.
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<LastFailover>,
    /// What a person should change, about this pool and its location.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Number of the location's newest event that was told as an Event.
    pub last_event: u64,
    /// What this pool had the mesh do, to be undone when the spec no longer asks for it.
    pub asked: Asked,
}

/// What a pool had the mesh do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    pub freeze: bool,
    pub drained: BTreeSet<String>,
}

/// A candidate as the location's raft leader sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CandidateReport {
    pub node: String,
    /// `None`: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
    pub leading: bool,
    /// `forwarding`, `degraded`, `unknown`.
    pub verdict: String,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// 0 to 100, in steps of 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_millis: Option<u32>,
    pub drained: bool,
    /// What keeps it from being promoted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
    /// Why it may not lead at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// As `metav1.Condition`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// RFC 3339: when `status` changed.
    pub last_transition_time: String,
    pub observed_generation: i64,
}

/// The newest failover: leadership that moved because the leader was degraded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LastFailover {
    pub epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Measured; missing until the observers have verified the new way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blackout_millis: Option<u64>,
    pub summary: String,
}

/// A Kubernetes Event, about a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterEvent {
    pub pool: String,
    pub pool_uid: String,
    /// The node that it is also about (its `related` object): the leader after it.
    pub node: Option<String>,
    /// Type `Warning`, else `Normal`.
    pub warning: bool,
    /// `Failover`, `FailoverVerified`, `Promotion`, `FailStatic`, `Operator`, `Notice`.
    pub reason: String,
    pub message: String,
}

/// The status of every pool, by name, as it should be. What is not known now is kept from the status before.
pub fn pool_statuses(
    _view: &ClusterView,
    _rendered: &Rendered,
    _running: Option<Running<'_>>,
    _now: WallTime,
) -> BTreeMap<String, PoolStatus> {
    BTreeMap::new()
}

/// What pools ask of the mesh and the mesh does not do yet, and what they no longer ask.
pub fn commands(_: &ClusterView, _: Running<'_>, _: &NodeName) -> Vec<Task> {
    Vec::new()
}

/// Statuses, conditions and Events that are to be written.
pub(super) fn status_tasks(
    _: &ClusterView,
    _: &Rendered,
    _: Option<Running<'_>>,
    _: &NodeName,
    _: WallTime,
) -> Vec<Task> {
    Vec::new()
}
