//! A pool's status as it should be: conditions, candidates, problems, and the Events about it. `plan::status` says who writes it.

mod conditions;
mod events;
mod relays;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;

use super::pool_status::{
    CandidateReport, DEGRADED, FORWARDING, LastFailover, PoolRequests, PoolStatus, UNKNOWN,
};
use super::render::{RefusedCandidate, Rendered, RenderedPool, Subject, location_of};
use super::tasks::Running;
use super::view::{ClusterView, Pool};
use crate::ids::NodeName;
use crate::state::{Event, EventKind};
use crate::status::{CandidateStatus, LocationStatus};
use crate::time::WallTime;
use crate::verdict::Verdict;

pub(super) use events::new_events;

/// Most problems that a status names.
const MAX_PROBLEMS: usize = 20;

/// Returns the status that every pool should have, by name. What is not known now is kept from the previous status.
pub(super) fn pool_statuses(
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

/// Returns the status that a pool has now; an empty one if it has none, or one that cannot be read.
pub(super) fn current_status(pool: &Pool) -> PoolStatus {
    let read = |s: &serde_json::Value| PoolStatus::deserialize(s).ok();
    pool.status.as_ref().and_then(read).unwrap_or_default()
}

/// Returns what this daemon knows of a pool's location.
pub(super) fn known_location<'a>(
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
    let before = current_status(pool);
    let known = known_location(found, running);
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
        // Only the raft leader knows that a recorded decision no longer counts (after a reset of the stores); others hear of it late.
        let leads_raft = running.is_some_and(|r| l.raft_leader.as_ref() == Some(&r.status.node));
        // Without a quorum each node follows its own ranking: the status keeps the last decision.
        if !l.fallback && l.epoch.0 > 0 && (leads_raft || l.epoch.0 >= before.epoch) {
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
        let newest_seq = here().map(|e| e.seq).max().unwrap_or(before.last_event);
        status.last_event = if leads_raft { newest_seq } else { newest_seq.max(before.last_event) };
        let newest = here().rev().find(|e| e.kind == EventKind::Failover).map(last_failover);
        status.last_failover = later(newest, before.last_failover.clone());
        status.asked = requests(pool, l, &before);
    }
    let unlisted = |r: &&RefusedCandidate| !status.candidates.iter().any(|c| c.node == r.node);
    let refused = found.refused.iter().filter(unlisted).map(|r| CandidateReport {
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
    let pairs = known.zip(running).and_then(|(l, r)| relays::known_pairs(&l.name, r));
    let known = (known, pairs.as_ref());
    status.conditions = conditions::all(view, pool, found, known, &before, &status, now);
    status
}

/// Reports a candidate without details that change by themselves. A suspicion ends within one timeout: until then the report stays as it
/// was.
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
    // Only the location's own voters know which nodes are drained and what blocks each.
    let (drained, blocked_by) = match was {
        Some(was) if !is_voter(l) => (was.drained, was.blocked_by.clone()),
        Some(was) if suspected => (c.drained, was.blocked_by.clone()),
        _ if c.leading => (c.drained, Vec::new()),
        _ => (c.drained, c.blocked_by.iter().map(|b| without_seconds(b)).collect()),
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

/// True if the daemon is a member of the location's Raft group.
pub(super) fn is_voter(l: &LocationStatus) -> bool {
    l.quorum.is_some()
}

/// Drops the seconds from a reason, which would change all the time.
fn without_seconds(reason: &str) -> String {
    match reason.split_once(" for ") {
        Some((what, time)) if time.ends_with(" s") => what.to_owned(),
        _ => reason.to_owned(),
    }
}

/// Rounds to steps of five per cent; keeps the previous step until the value is a whole step away.
fn loss(share: f32, was: Option<u8>) -> u8 {
    let percent = (share * 100.0).clamp(0.0, 100.0);
    match was {
        Some(was) if (percent - f32::from(was)).abs() < 5.0 => was,
        _ => ((percent / 5.0).round() * 5.0) as u8,
    }
}

/// Rounds to milliseconds; keeps the previous value until the new one differs by more than a quarter and 2 ms.
fn rtt(millis: f64, was: Option<u32>) -> u32 {
    let millis = millis.clamp(0.0, 1e9);
    match was {
        Some(was) if (millis - f64::from(was)).abs() <= (f64::from(was) / 4.0).max(2.0) => was,
        _ => millis.round() as u32,
    }
}

fn last_failover(e: &Event) -> LastFailover {
    let first = |these: &[NodeName], but: &[NodeName]| {
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

/// Returns the later of the failover that this daemon remembers and the recorded one; keeps what was measured.
fn later(found: Option<LastFailover>, before: Option<LastFailover>) -> Option<LastFailover> {
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

/// Returns what the pool has done or is about to do, so that it can be undone once the spec no longer asks for it. The status records it
/// before it is done.
fn requests(pool: &Pool, l: &LocationStatus, before: &PoolStatus) -> PoolRequests {
    let spec = &pool.spec;
    let drained = |n: &&String| {
        let there = l.candidates.iter().find(|c| c.name.as_str() == n.as_str());
        // A node that is no candidate now may become one again, and is still drained.
        there.is_none_or(|c| c.drained || !is_voter(l))
    };
    let kept = before.asked.drained.iter().filter(drained).cloned();
    let frozen = !is_voter(l) || l.frozen == Some(None);
    PoolRequests {
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

/// Whole seconds, the format of metav1.Time.
fn rfc3339(at: WallTime) -> String {
    humantime::format_rfc3339_seconds(system_time(at)).to_string()
}

fn rfc3339_millis(at: WallTime) -> String {
    humantime::format_rfc3339_millis(system_time(at)).to_string()
}

/// At most the year 9999, the last one that RFC 3339 can express.
fn system_time(at: WallTime) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_micros(at.0).min(Duration::from_secs(253_402_300_799))
}
