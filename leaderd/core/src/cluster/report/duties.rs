//! Who writes what about a location, and what its pool has the mesh do.

use std::time::{Duration, UNIX_EPOCH};

use super::{Condition, PoolStatus, events, is_voter, known, pool_statuses, status_of};
use crate::admin::AdminRequest;
use crate::cluster::rank;
use crate::cluster::render::Rendered;
use crate::cluster::task::{Action, ChangeRefused, RelayForwarding, Running, Task};
use crate::cluster::view::{ClusterNode, ClusterView, Pool};
use crate::ids::NodeName;
use crate::mesh::Mesh;
use crate::status::{CandidateStatus, LocationStatus};
use crate::time::WallTime;
use crate::verdict::{Cause, Verdict};

/// How long others leave a location's raft leader to write before the first of them does.
const GRACE: Duration = Duration::from_secs(1);

/// How long `Quorum` must have been `True` before one who hears nothing of the location says otherwise. It may be the deaf one:
/// then whoever hears the location sets it right at once, and is not to be contradicted again and again.
const QUIET: Duration = Duration::from_secs(300);

fn candidates(mesh: &Mesh) -> impl Iterator<Item = &str> {
    mesh.nodes.values().filter(|n| n.slot.is_some()).map(|n| n.name.as_str())
}

/// Statuses, conditions and Events that are to be written.
pub(in crate::cluster) fn status_tasks(
    view: &ClusterView,
    rendered: &Rendered,
    running: Option<Running<'_>>,
    me: &NodeName,
    now: WallTime,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (name, status) in pool_statuses(view, rendered, running, now) {
        let pool = &view.pools[&name];
        let before = status_of(pool);
        if pool.status.is_some() && before == status {
            continue;
        }
        let found = rendered.pools.get(&name);
        let l = found.and_then(|f| known(f, running));
        let mesh = rendered.mesh.as_ref();
        let Some(wait) = writer((view, mesh), running, l, pool, (&before, &status), me, now) else {
            continue;
        };
        let events = match (l, running) {
            (Some(l), Some(r)) => events::untold(pool, &l.name, &before, &status, r.events),
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

/// Longest message of a condition that quotes what a Node says, in characters.
const MAX_MESSAGE: usize = 500;

/// The condition `MeshChangeRefused` of nodes of which something is not taken, and its removal from the others.
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
        let Some(turn) = rank::turn_of_any(view, rendered.mesh.as_ref(), &key, me.as_str()) else {
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
        tasks.push(Task { key, wait: GRACE + turn, action });
    }
    tasks
}

/// How long this daemon waits before it writes a pool's status; `None` if it is not its to write.
fn writer(
    (view, mesh): (&ClusterView, Option<&Mesh>),
    running: Option<Running<'_>>,
    l: Option<&LocationStatus>,
    pool: &Pool,
    (before, after): (&PoolStatus, &PoolStatus),
    me: &NodeName,
    now: WallTime,
) -> Option<Duration> {
    let key = format!("status/{}", pool.name);
    let asks = |s: &PoolStatus| (s.observed_generation, s.problems.clone(), s.asked.clone());
    let lags = pool.status.is_none() || asks(before) != asks(after);
    let (Some(l), Some(running)) = (l, running) else {
        // Nobody decides there: all daemons see the same.
        return if lags {
            Some(GRACE + rank::turn_of_any(view, mesh, &key, me.as_str())?)
        } else {
            None
        };
    };
    if l.raft_leader.as_ref() == Some(me) {
        return Some(Duration::ZERO);
    }
    let told = |s: &PoolStatus| quorum(s).is_some_and(|c| c.status == "False");
    let long_so = quorum(before)
        .filter(|c| c.status == "True")
        .is_none_or(|c| age(&c.last_transition_time, now).is_none_or(|age| age > QUIET));
    let no_quorum = l.raft_leader.is_none() && long_so && !told(before) && told(after);
    // Who hears nobody cannot tell whether the location is silent, or it is deaf itself.
    let no_quorum = no_quorum && (running.hears || running.status.location == l.name);
    let lags = lags || before.epoch < after.epoch || no_quorum;
    let turn = rank::turn(candidates(running.mesh), &key, me.as_str())?;
    lags.then_some(GRACE + turn)
}

fn quorum(status: &PoolStatus) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.kind == "Quorum")
}

/// How long ago a time of RFC 3339 was; `None` if it cannot be read.
fn age(of: &str, now: WallTime) -> Option<Duration> {
    let at = humantime::parse_rfc3339_weak(of).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_micros(now.0).saturating_sub(at))
}

/// The condition `RelayForwarding` of candidates, by the raft leader of their location, and its removal from nodes that are none.
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
        let mesh = rendered.mesh.as_ref();
        if let Some(turn) = rank::turn_of_any(view, mesh, &key, me.as_str()) {
            set(node, GRACE + turn, None);
        }
    }
    tasks
}

/// `None` while it is only suspected: that is settled in a moment.
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
            camel(*cause),
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

/// `new-flow` → `NewFlow`: reasons are written so.
fn camel(cause: Cause) -> String {
    let word = |w: &str| {
        let mut letters = w.chars();
        letters.next().map(|c| c.to_ascii_uppercase().to_string() + letters.as_str())
    };
    cause.as_str().split('-').filter_map(word).collect()
}

/// What pools ask of the mesh and the mesh does not do yet, and what they asked for and no longer do. A pool undoes only what it
/// says (in its status, `asked`) that it did; what it asks for goes on even if an operator undoes it with wgctl.
pub fn commands(view: &ClusterView, running: Running<'_>, me: &NodeName) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for pool in view.pools.values() {
        // Of two pools of a location the first by name counts.
        if !seen.insert(&pool.spec.location) {
            continue;
        }
        let Some(l) =
            running.status.locations.iter().find(|l| l.name.as_str() == pool.spec.location)
        else {
            continue;
        };
        let leads = l.raft_leader.as_ref() == Some(me);
        let key = format!("command/{}", pool.name);
        let turn = match rank::turn(l.candidates.iter().map(|c| c.name.as_str()), &key, me.as_str())
        {
            _ if leads => Duration::ZERO,
            // Only voters know what is frozen and drained.
            Some(turn) if is_voter(l) && l.raft_leader.is_some() => GRACE + turn,
            _ => continue,
        };
        for command in wanted(pool, l) {
            tasks.push(Task {
                key: format!("{key}/{command:?}"),
                wait: turn,
                action: Action::Command(command),
            });
        }
    }
    tasks
}

fn wanted(pool: &Pool, l: &LocationStatus) -> Vec<AdminRequest> {
    let before = status_of(pool);
    // What is asked for is written down before it is done, so that it can be undone.
    if pool.status.is_none() || before.observed_generation != pool.generation {
        return Vec::new();
    }
    let (spec, asked) = (&pool.spec, &before.asked);
    let mut all = Vec::new();
    if spec.freeze && asked.freeze && l.frozen != Some(None) {
        all.push(AdminRequest::Freeze { location: l.name.clone(), duration: None });
    }
    if !spec.freeze && asked.freeze && l.frozen == Some(None) {
        all.push(AdminRequest::Unfreeze { location: l.name.clone() });
    }
    for c in &l.candidates {
        let has = |set: &std::collections::BTreeSet<String>| set.contains(c.name.as_str());
        match (has(&spec.drained), has(&asked.drained), c.drained) {
            (true, true, false) => all.push(AdminRequest::Drain { node: c.name.clone() }),
            (false, true, true) => all.push(AdminRequest::Undrain { node: c.name.clone() }),
            _ => {}
        }
    }
    all
}
