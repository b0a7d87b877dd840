//! Which daemon writes pools' statuses, nodes' conditions and Events, and when.
//!
//! The raft leader of a location writes about it, since it hears all observers. Other daemons write only if the status lags behind: an
//! older epoch, or an older spec. So two daemons with slightly different views never overwrite each other in turns.

use std::time::{Duration, UNIX_EPOCH};

use super::RAFT_LEADER_GRACE;
use crate::fault::Fault;
use crate::ids::NodeName;
use crate::kubernetes::pool_status::{Condition, PoolStatus};
use crate::kubernetes::render::Rendered;
use crate::kubernetes::status::{current_status, known_location, new_events, pool_statuses};
use crate::kubernetes::tasks::{Action, ChangeRefused, RelayForwarding, Running, Task};
use crate::kubernetes::turn_order;
use crate::kubernetes::view::{ClusterNode, ClusterView, Pool};
use crate::mesh::Mesh;
use crate::status::{CandidateStatus, LocationStatus};
use crate::time::WallTime;
use crate::verdict::Verdict;

/// How long `Quorum` must have been `True` before a daemon that hears nothing of the location contradicts it. That daemon may itself
/// be isolated: then a daemon that hears the location corrects it at once, and the two must not go on correcting each other.
const QUORUM_GRACE: Duration = Duration::from_secs(300);

/// Longest message of a condition that quotes a Node, in characters.
const MAX_MESSAGE: usize = 500;

/// Returns the statuses, conditions and Events that have to be written.
pub(super) fn tasks(
    view: &ClusterView,
    rendered: &Rendered,
    running: Option<Running<'_>>,
    me: &NodeName,
    now: WallTime,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (name, status) in pool_statuses(view, rendered, running, now) {
        let pool = &view.pools[&name];
        let before = current_status(pool);
        if pool.status.is_some() && before == status {
            continue;
        }
        let found = rendered.pools.get(&name);
        let l = found.and_then(|f| known_location(f, running));
        let mesh = rendered.mesh.as_deref();
        let change = (&before, &status);
        let Some(wait) = writer_delay((view, mesh), running, l, pool, change, me, now) else {
            continue;
        };
        let events = match (l, running) {
            (Some(l), Some(r)) => new_events(pool, &l.name, &before, &status, r.events),
            _ => Vec::new(),
        };
        let action = Action::PoolStatus {
            pool: name.clone(),
            resource_version: pool.resource_version.clone(),
            status: Box::new(status),
            events,
        };
        tasks.push(Task { key: format!("status/{name}"), wait, action });
    }
    if let Some(running) = running {
        tasks.extend(relay_tasks(view, rendered, running, me));
    }
    tasks.extend(refusal_tasks(view, rendered, me));
    tasks
}

/// Sets the condition `MeshChangeRefused` of nodes of which the mesh does not take everything, and removes it from the others.
fn refusal_tasks(view: &ClusterView, rendered: &Rendered, me: &NodeName) -> Vec<Task> {
    let mut tasks = Vec::new();
    for node in view.nodes.values() {
        let refused = rendered.refusals.get(&node.name).map(|r| ChangeRefused {
            reason: r.why.as_str(),
            message: r.message.chars().take(MAX_MESSAGE).collect(),
        });
        let has = node.change_refused.as_ref().map(|(r, m)| (r.as_str(), m.as_str()));
        if has == refused.as_ref().map(|r| (r.reason, r.message.as_str())) {
            continue;
        }
        let key = format!("refused/{}", node.name);
        let mesh = rendered.mesh.as_deref();
        let Some(turn) = turn_order::watcher_turn_delay(view, mesh, &key, me.as_str()) else {
            continue;
        };
        let event =
            refused.as_ref().is_some_and(|r| has.is_none_or(|(reason, _)| reason != r.reason));
        let action = Action::ChangeRefused {
            node: node.name.clone(),
            uid: node.uid.clone(),
            resource_version: node.resource_version.clone(),
            refused,
            event,
        };
        tasks.push(Task { key, wait: RAFT_LEADER_GRACE + turn, action });
    }
    tasks
}

/// Returns how long this daemon waits before it writes a pool's status; `None` if it leaves that to others.
fn writer_delay(
    (view, mesh): (&ClusterView, Option<&Mesh>),
    running: Option<Running<'_>>,
    l: Option<&LocationStatus>,
    pool: &Pool,
    (before, after): (&PoolStatus, &PoolStatus),
    me: &NodeName,
    now: WallTime,
) -> Option<Duration> {
    let key = format!("status/{}", pool.name);
    let from_spec = |s: &PoolStatus| (s.observed_generation, s.problems.clone(), s.asked.clone());
    let lags = pool.status.is_none() || from_spec(before) != from_spec(after);
    let (Some(l), Some(running)) = (l, running) else {
        // The location has no raft leader: all daemons see the same.
        let turn = || turn_order::watcher_turn_delay(view, mesh, &key, me.as_str());
        return if lags { Some(RAFT_LEADER_GRACE + turn()?) } else { None };
    };
    if l.raft_leader.as_ref() == Some(me) {
        return Some(Duration::ZERO);
    }
    let lost = |s: &PoolStatus| quorum(s).is_some_and(|c| c.status == "False");
    let long_true = quorum(before)
        .filter(|c| c.status == "True")
        .is_none_or(|c| age(&c.last_transition_time, now).is_none_or(|age| age > QUORUM_GRACE));
    let newly_lost = l.raft_leader.is_none() && long_true && !lost(before) && lost(after);
    // A daemon without peers cannot tell whether the location is down or itself isolated.
    let newly_lost = newly_lost && (running.connected || running.status.location == l.name);
    let lags = lags || before.epoch < after.epoch || newly_lost;
    let candidates = running.mesh.nodes.values().filter(|n| n.slot.is_some());
    let candidates = candidates.map(|n| n.name.as_str());
    let turn = turn_order::turn_delay(candidates, &key, me.as_str())?;
    lags.then_some(RAFT_LEADER_GRACE + turn)
}

fn quorum(status: &PoolStatus) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.kind == "Quorum")
}

/// Returns how long ago an RFC 3339 time was; `None` if it cannot be parsed.
fn age(of: &str, now: WallTime) -> Option<Duration> {
    let at = humantime::parse_rfc3339_weak(of).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_micros(now.0).saturating_sub(at))
}

/// Sets the condition `RelayForwarding` of candidates, by the raft leader of their location, and removes it from other nodes.
fn relay_tasks(
    view: &ClusterView,
    rendered: &Rendered,
    running: Running<'_>,
    me: &NodeName,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut set = |node: &ClusterNode, wait: Duration, condition: Option<RelayForwarding>| {
        let action = Action::RelayForwarding {
            node: node.name.clone(),
            resource_version: node.resource_version.clone(),
            condition,
        };
        tasks.push(Task { key: format!("relay/{}", node.name), wait, action });
    };
    for l in running.status.locations.iter().filter(|l| l.raft_leader.as_ref() == Some(me)) {
        for c in &l.candidates {
            let Some(node) = view.nodes.get(c.name.as_str()) else { continue };
            let Some(want) = relay_forwarding(c) else { continue };
            let same = |(status, reason): &(String, String)| {
                *status == want.status && *reason == want.reason
            };
            if !node.relay_forwarding.as_ref().is_some_and(same) {
                set(node, Duration::ZERO, Some(want));
            }
        }
    }
    let is_candidate = |mesh: &Mesh, n: &str| {
        let node = n.parse().ok().and_then(|n| mesh.node(&n));
        node.is_some_and(|n| n.slot.is_some())
    };
    for node in view.nodes.values().filter(|n| n.relay_forwarding.is_some()) {
        let still = is_candidate(running.mesh, &node.name)
            || rendered.mesh.as_ref().is_none_or(|m| is_candidate(m, &node.name));
        if still {
            continue;
        }
        let key = format!("relay/{}", node.name);
        let mesh = rendered.mesh.as_deref();
        if let Some(turn) = turn_order::watcher_turn_delay(view, mesh, &key, me.as_str()) {
            set(node, RAFT_LEADER_GRACE + turn, None);
        }
    }
    tasks
}

/// `None` while the candidate is only suspected: the verdict follows in a moment.
fn relay_forwarding(c: &CandidateStatus) -> Option<RelayForwarding> {
    let (agree, of) = c.observers;
    let (status, reason, message) = match &c.verdict {
        Verdict::Suspected => return None,
        Verdict::Forwarding => (
            "True",
            "Forwarding".to_owned(),
            "relays between its location and the others, in both directions".to_owned(),
        ),
        Verdict::Degraded { cause, .. } => (
            "False",
            camel_case(*cause),
            format!("does not relay well ({cause}): {agree} of {of} observers say so"),
        ),
        Verdict::Unknown => (
            "Unknown",
            "NotObserved".to_owned(),
            "too little is known to say whether it relays".to_owned(),
        ),
    };
    Some(RelayForwarding { status, reason, message })
}

/// `new-flow` → `NewFlow`, as reasons of conditions are written.
fn camel_case(cause: Fault) -> String {
    let word = |w: &str| {
        let mut letters = w.chars();
        letters.next().map(|c| c.to_ascii_uppercase().to_string() + letters.as_str())
    };
    cause.as_str().split('-').filter_map(word).collect()
}
