//! Candidates whose Node object is gone or names no endpoint any more (a kubelet recreates a Node without annotations). One that
//! leads keeps leading for a while, as Nodes are also deleted and recreated by mistake; then it hands over before it leaves the mesh.
//! One that does not lead leaves soon.

use std::collections::BTreeSet;
use std::time::Duration;

use super::RAFT_LEADER_GRACE;
use crate::admin::AdminRequest;
use crate::ids::NodeName;
use crate::kubernetes::render::{Rendered, render_without};
use crate::kubernetes::tasks::{Action, Running, Task};
use crate::kubernetes::turn_order;
use crate::kubernetes::view::ClusterView;
use crate::status::LocationStatus;

/// How long the Node of a leader may be missing before the leader hands over.
const LEADER_GRACE: Duration = Duration::from_secs(60);
/// How long a candidate must be seen not to lead before it leaves: by then every daemon knows who leads, and no packet is in flight.
const STANDBY_GRACE: Duration = Duration::from_secs(5);
/// How long daemons of other locations, and daemons that hear no decisions, leave this to the location's own daemons: they may not
/// know yet who leads.
const REMOTE_GRACE: Duration = LEADER_GRACE.saturating_add(STANDBY_GRACE);

pub(super) fn tasks(
    view: &ClusterView,
    settings: &str,
    rendered: &Rendered,
    running: Running<'_>,
    me: &NodeName,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    let departed = &rendered.departed;
    for name in departed {
        let Some(node) = running.mesh.node(name) else { continue };
        let of = |l: &&LocationStatus| l.name == node.location;
        let Some(l) = running.status.locations.iter().find(of) else { continue };
        let leave = |wait: Duration, leaving: BTreeSet<NodeName>| {
            let mesh = Some(running.mesh);
            let turn = turn_order::watcher_turn_delay(view, mesh, "depart", me.as_str())?;
            let without = render_without(view, settings, &leaving);
            let text = without.text.filter(|_| !without.outdated)?;
            // If no other node could lead, it stays a candidate and the text stays the same.
            let object = view.mesh.as_ref().filter(|object| *object.text != *text)?;
            let version = object.resource_version.clone();
            let resource_version = Some(version).filter(|v| !v.is_empty());
            let action = Action::Mesh { resource_version, text };
            Some(Task { key: format!("depart/{name}"), wait: wait + turn, action })
        };
        let others_lead = l.leaders.iter().any(|n| !departed.contains(n));
        let all_gone = rendered.mesh.as_ref().is_some_and(|m| {
            m.nodes.values().filter(|n| n.location == l.name).all(|n| departed.contains(&n.name))
        });
        if l.leaders.is_empty() && !all_gone {
            // The leader is unknown, or not elected yet: remove no candidate.
        } else if !l.leaders.contains(name) {
            let local = running.status.location == l.name && !l.fallback;
            let wait = if local { STANDBY_GRACE } else { REMOTE_GRACE };
            tasks.extend(leave(wait, [name.clone()].into()));
        } else if others_lead {
            tasks.extend(leave(LEADER_GRACE, [name.clone()].into()));
        } else if let Some(successor) = successor(l, departed) {
            let candidates = l.candidates.iter().map(|c| c.name.as_str());
            let turn = match turn_order::turn_delay(candidates, "hand-over", me.as_str()) {
                _ if l.raft_leader.as_ref() == Some(me) => Duration::ZERO,
                Some(turn) => RAFT_LEADER_GRACE + turn,
                None => continue,
            };
            let action = Action::Command(AdminRequest::Promote { node: successor, force: false });
            let wait = LEADER_GRACE + turn;
            tasks.push(Task { key: format!("hand-over/{name}"), wait, action });
        } else if all_gone {
            // The location has no node left to forward for.
            let here = |n: &&NodeName| running.mesh.node(n).is_some_and(|n| n.location == l.name);
            tasks.extend(leave(LEADER_GRACE, departed.iter().filter(here).cloned().collect()));
        }
    }
    tasks
}

/// Returns who takes over: the location's next leader unless it departs too, else the first candidate that is able. `None`: the
/// departed leader goes on, as no other node can lead.
fn successor(l: &LocationStatus, departed: &BTreeSet<NodeName>) -> Option<NodeName> {
    let stays = |n: &NodeName| !departed.contains(n) && !l.leaders.contains(n);
    let able = l.candidates.iter().filter(|c| c.blocked_by.is_empty() && !c.drained);
    let able = able.map(|c| &c.name);
    l.next.iter().chain(able).find(|n| stays(n)).cloned()
}
