//! What leaderd says of a `LocationPool`: its status, and Events about it. Plain data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Verdicts of a candidate.
pub(super) const FORWARDING: &str = "forwarding";
pub(super) const DEGRADED: &str = "degraded";
pub(super) const UNKNOWN: &str = "unknown";

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
    /// Who could take over now, by slot: seen to forward, and kept back by nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<String>,
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
    /// Ready, Steered, Quorum, Degraded, CutOff and LongDetour; and Stalled while a person must change something before the pool counts.
    pub conditions: Vec<Condition>,
    /// The newest failover: leadership that moved because the leader was degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<LastFailover>,
    /// What a person should change, about this pool and its location.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Number of the location's newest event that was told as an Event.
    pub last_event: u64,
    /// What this pool had the mesh do, to be undone when the spec no longer asks for it.
    pub asked: PoolRequests,
}

/// What a pool had the mesh do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct PoolRequests {
    /// It forbade automatic failover.
    pub freeze: bool,
    /// Nodes that it drained.
    pub drained: BTreeSet<String>,
}

/// A candidate as the location's raft leader sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CandidateReport {
    /// Its name.
    pub node: String,
    /// Its number among the location's candidates. Missing where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
    /// It leads now.
    pub leading: bool,
    /// What observers make of it: `forwarding`, `degraded`, `unknown`.
    pub verdict: String,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Packets lost on the way through it, 0 to 100, in steps of 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<u8>,
    /// Round trip through it, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_millis: Option<u32>,
    /// It shall not lead for now.
    pub drained: bool,
    /// What keeps it from being promoted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
    /// Why it may not lead at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl CandidateReport {
    pub(super) fn could_take_over(&self) -> bool {
        let held_back = self.leading || self.drained || !self.blocked_by.is_empty();
        self.refused.is_none() && self.verdict == FORWARDING && !held_back
    }
}

/// As `metav1.Condition`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about: Ready, Steered, Quorum, Degraded, CutOff, LongDetour or Stalled.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// RFC 3339: when `status` changed.
    pub last_transition_time: String,
    /// `metadata.generation` of the spec that this condition is about.
    pub observed_generation: i64,
}

/// The newest failover: leadership that moved because the leader was degraded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LastFailover {
    /// Number of the decision.
    pub epoch: u64,
    /// Who led before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Who led after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why the leader was degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it was decided, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Time without traffic, measured; missing until the observers have verified the new way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blackout_millis: Option<u64>,
    /// It all in a sentence.
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
    /// `Failover`, `FailoverVerified`, `Promotion`, `FailStatic`, `Operator`, `Notice`, `CutOff`, `LongDetour`, …
    pub reason: String,
    pub message: String,
}
