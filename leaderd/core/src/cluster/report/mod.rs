//! What people see: pools' status, a condition of each candidate's node, Events; and what pools ask of the mesh.
//!
//! The raft leader of a location writes about it, since it hears all observers. Others step in only where what is written lags behind:
//! an older epoch, an older spec. So two daemons that see things a little differently never write in turns.

mod conditions;
mod duties;
mod events;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::render::{Rendered, RenderedPool, Subject, location_of};
use super::task::Running;
use super::view::{ClusterView, Pool};
use crate::state::EventKind;
use crate::status::{CandidateStatus, LocationStatus};
use crate::time::WallTime;
use crate::verdict::Verdict;

pub use duties::commands;
pub(super) use duties::status_tasks;
pub use events::ClusterEvent;

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
    /// Ready, Steered, Quorum, Degraded; and Stalled while a person must change something before the pool counts at all.
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
    pub asked: Asked,
}

/// What a pool had the mesh do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
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
    fn could_take_over(&self) -> bool {
        let kept_back = self.leading || self.drained || !self.blocked_by.is_empty();
        self.refused.is_none() && self.verdict == FORWARDING && !kept_back
    }
}

/// As `metav1.Condition`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about: Ready, Steered, Quorum, Degraded or Stalled.
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

/// Most problems that a status names.
const MAX_PROBLEMS: usize = 20;

/// The status of every pool, by name, as it should be. What is not known now is kept from the status before.
pub fn pool_statuses(
    view: &ClusterView,
    rendered: &Rendered,
    running: Option<Running<'_>>,
    now: WallTime,
) -> BTreeMap<String, PoolStatus> {
    let one = |pool: &Pool| {
        let found = rendered.pools.get(&pool.name).cloned().unwrap_or_default();
        pool_status(view, rendered, pool, &found, running, now)
    };
    view.pools.values().map(|p| (p.name.clone(), one(p))).collect()
}

/// The status that a pool has now; an empty one if it has none, or one that cannot be read.
pub(super) fn status_of(pool: &Pool) -> PoolStatus {
    let read = |s: &serde_json::Value| PoolStatus::deserialize(s).ok();
    pool.status.as_ref().and_then(read).unwrap_or_default()
}

/// What this daemon knows of a pool's location.
pub(super) fn known<'a>(
    found: &RenderedPool,
    running: Option<Running<'a>>,
) -> Option<&'a LocationStatus> {
    let location = found.location.as_ref()?;
    running?.status.locations.iter().find(|l| l.name == *location)
}

fn pool_status(
    view: &ClusterView,
    rendered: &Rendered,
    pool: &Pool,
    found: &RenderedPool,
    running: Option<Running<'_>>,
    now: WallTime,
) -> PoolStatus {
    let before = status_of(pool);
    let known = known(found, running);
    let mut status = PoolStatus { observed_generation: pool.generation, ..before.clone() };
    status.problems = problems(view, rendered, pool, found);
    if found.location.is_none() {
        status = PoolStatus {
            observed_generation: pool.generation,
            problems: status.problems,
            asked: before.asked.clone(),
            ..PoolStatus::default()
        };
    }
    if let Some(l) = known {
        // Only the raft leader knows that a decision shown is none any more (as after a reset of the stores); others hear late.
        let leads = running.is_some_and(|r| l.raft_leader.as_ref() == Some(&r.status.node));
        // Without a quorum each node has a ranking of its own: what was decided last is shown.
        if !l.fallback && l.epoch.0 > 0 && (leads || l.epoch.0 >= before.epoch) {
            let all: Vec<String> = l.leaders.iter().map(ToString::to_string).collect();
            status.leader = all.first().cloned();
            status.leaders = if all.len() > 1 { all } else { Vec::new() };
            status.epoch = l.epoch.0;
            status.since = l.since.map(rfc3339);
            status.cause = l.cause.map(|c| c.to_string());
        }
        status.candidates = l.candidates.iter().map(|c| candidate(c, l, &before)).collect();
        let events = running.map_or(&[][..], |r| r.events);
        let here = || events.iter().filter(|e| e.location == l.name);
        let seen = here().map(|e| e.seq).max().unwrap_or(before.last_event);
        status.last_event = if leads { seen } else { seen.max(before.last_event) };
        let newest = here().rev().find(|e| e.kind == EventKind::Failover).map(last_failover);
        status.last_failover = newer(newest, before.last_failover.clone());
        status.asked = asked(pool, l, &before);
    }
    let shown = |r: &&super::Refused| !status.candidates.iter().any(|c| c.node == r.node);
    let refused = found.refused.iter().filter(shown).map(|r| CandidateReport {
        node: r.node.clone(),
        verdict: UNKNOWN.to_owned(),
        refused: Some(r.reason.clone()),
        ..CandidateReport::default()
    });
    let refused: Vec<CandidateReport> = refused.collect();
    status.candidates.retain(|c| c.refused.is_none());
    status.candidates.extend(refused);
    let standbys = status.candidates.iter().filter(|c| c.could_take_over());
    status.standbys = standbys.map(|c| c.node.clone()).collect();
    status.conditions = conditions::all(view, pool, found, known, &before, &status, now);
    status
}

const FORWARDING: &str = "forwarding";
const DEGRADED: &str = "degraded";
const UNKNOWN: &str = "unknown";

/// A candidate without what changes by itself. A suspicion is settled within a timeout: until then it is as it was.
fn candidate(c: &CandidateStatus, l: &LocationStatus, before: &PoolStatus) -> CandidateReport {
    let was = before.candidates.iter().find(|b| b.node == c.name.as_str() && b.refused.is_none());
    let (verdict, cause) = match &c.verdict {
        Verdict::Forwarding => (FORWARDING.to_owned(), None),
        Verdict::Degraded { cause, .. } => (DEGRADED.to_owned(), Some(cause.to_string())),
        Verdict::Unknown => (UNKNOWN.to_owned(), None),
        Verdict::Suspected => {
            was.map_or((UNKNOWN.to_owned(), None), |w| (w.verdict.clone(), w.cause.clone()))
        }
    };
    let suspected = c.verdict == Verdict::Suspected;
    // Only the location's own voters know who is drained and what keeps whom from leading.
    let (drained, blocked_by) = match was {
        Some(was) if !is_voter(l) => (was.drained, was.blocked_by.clone()),
        Some(was) if suspected => (c.drained, was.blocked_by.clone()),
        _ if c.leading => (c.drained, Vec::new()),
        _ => (c.drained, c.blocked_by.iter().map(|b| still(b)).collect()),
    };
    CandidateReport {
        node: c.name.to_string(),
        slot: Some(c.slot.0),
        leading: c.leading,
        verdict,
        cause,
        loss_percent: c.loss.map(|l| loss(l, was.and_then(|w| w.loss_percent))),
        rtt_millis: c.rtt_ms.map(|r| rtt(r, was.and_then(|w| w.rtt_millis))),
        drained,
        blocked_by,
        refused: None,
    }
}

/// True where the daemon has a part in the location's Raft group.
fn is_voter(l: &LocationStatus) -> bool {
    l.quorum.is_some()
}

/// Without the seconds that it counts.
fn still(reason: &str) -> String {
    match reason.split_once(" for ") {
        Some((what, time)) if time.ends_with(" s") => what.to_owned(),
        _ => reason.to_owned(),
    }
}

/// In steps of five per cent, and the step before until it is a whole one away.
fn loss(share: f32, was: Option<u8>) -> u8 {
    let percent = (share * 100.0).clamp(0.0, 100.0);
    match was {
        Some(was) if (percent - f32::from(was)).abs() < 5.0 => was,
        _ => ((percent / 5.0).round() * 5.0) as u8,
    }
}

/// Whole milliseconds, and those before until it is a quarter away (and 2 ms).
fn rtt(millis: f64, was: Option<u32>) -> u32 {
    let millis = millis.clamp(0.0, 1e9);
    match was {
        Some(was) if (millis - f64::from(was)).abs() <= (f64::from(was) / 4.0).max(2.0) => was,
        _ => millis.round() as u32,
    }
}

fn last_failover(e: &crate::state::Event) -> LastFailover {
    let first = |these: &[crate::ids::NodeName], but: &[crate::ids::NodeName]| {
        let node = these.iter().find(|n| !but.contains(n)).or(these.first());
        node.map(ToString::to_string)
    };
    LastFailover {
        epoch: e.epoch.0,
        from: first(&e.leaders_before, &e.leaders_after),
        to: first(&e.leaders_after, &e.leaders_before),
        cause: e.cause.map(|c| c.to_string()),
        at: e.times.committed.or(e.times.condemned).map(rfc3339_millis),
        blackout_millis: e.blackout.map(|b| u64::try_from(b.as_millis()).unwrap_or(u64::MAX)),
        summary: e.summary.clone(),
    }
}

/// Of what this daemon remembers and what was written already the later; what was measured is not forgotten.
fn newer(found: Option<LastFailover>, before: Option<LastFailover>) -> Option<LastFailover> {
    match (found, before) {
        (Some(mut f), Some(b)) if f.epoch == b.epoch => {
            f.blackout_millis = f.blackout_millis.or(b.blackout_millis);
            f.at = f.at.or(b.at);
            Some(f)
        }
        (Some(f), Some(b)) => Some(if f.at >= b.at { f } else { b }),
        (f, b) => f.or(b),
    }
}

/// What the pool has done, or is about to do, to be undone once the spec no longer asks for it. It is written before it is done.
fn asked(pool: &Pool, l: &LocationStatus, before: &PoolStatus) -> Asked {
    let spec = &pool.spec;
    let drained = |n: &&String| {
        let there = l.candidates.iter().find(|c| c.name.as_str() == n.as_str());
        // Who is no candidate now may come back as one, and is drained still.
        there.is_none_or(|c| c.drained || !is_voter(l))
    };
    let kept = before.asked.drained.iter().filter(drained).cloned();
    let frozen = !is_voter(l) || l.frozen == Some(None);
    Asked {
        freeze: spec.freeze || before.asked.freeze && frozen,
        drained: spec.drained.iter().cloned().chain(kept).collect(),
    }
}

fn problems(
    view: &ClusterView,
    rendered: &Rendered,
    pool: &Pool,
    found: &RenderedPool,
) -> Vec<String> {
    let here = |node: &str| {
        let location = view.nodes.get(node).and_then(location_of);
        location.is_some() && location == found.location.as_ref().map(|l| l.as_str())
    };
    let mut all = Vec::new();
    for p in &rendered.problems {
        all.push(match &p.subject {
            Subject::Pool(name) if *name == pool.name => p.message.clone(),
            Subject::Location(l) if found.location.as_ref().is_some_and(|f| f.as_str() == l) => {
                p.message.clone()
            }
            Subject::Node(node) if here(node) => format!("node {node}: {}", p.message),
            Subject::Settings => format!("settings: {}", p.message),
            Subject::Mesh => p.message.clone(),
            _ => continue,
        });
    }
    all.truncate(MAX_PROBLEMS);
    all
}

/// Whole seconds, as metav1.Time is written.
fn rfc3339(at: WallTime) -> String {
    humantime::format_rfc3339_seconds(system_time(at)).to_string()
}

fn rfc3339_millis(at: WallTime) -> String {
    humantime::format_rfc3339_millis(system_time(at)).to_string()
}

/// At most the year 9999, which is all that RFC 3339 has.
fn system_time(at: WallTime) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_micros(at.0).min(Duration::from_secs(253_402_300_799))
}
