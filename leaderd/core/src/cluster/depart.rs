//! Candidates whose Node object is gone, or says no endpoint any more (a kubelet makes a Node again bare): one that leads does so for a while, as Nodes are also deleted by mistake and made again, and
//! then hands over before it leaves the mesh; one that does not lead leaves soon.

use std::collections::BTreeSet;
use std::time::Duration;

use super::rank;
use super::render::{Rendered, render_without};
use super::task::{Action, Running, Task};
use super::view::ClusterView;
use crate::admin::AdminRequest;
use crate::ids::NodeName;
use crate::status::LocationStatus;

/// How long one that leads has to be made again before it hands over.
const STAY: Duration = Duration::from_secs(60);
/// How long one must be seen not to lead before it leaves: by then every daemon knows who leads, and no packet is under way.
const SETTLED: Duration = Duration::from_secs(5);
/// How long somebody elsewhere, or somebody who hears no decisions, leaves it to the location's own daemons: it may not know yet who
/// leads.
const FAR: Duration = STAY.saturating_add(SETTLED);
/// How long others leave a location's raft leader to ask for the hand-over.
const GRACE: Duration = Duration::from_secs(1);

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
        let leave = |wait: Duration, who: BTreeSet<NodeName>| {
            let turn = rank::turn_of_any(view, Some(running.mesh), "depart", me.as_str())?;
            let without = render_without(view, settings, &who);
            let text = without.text.filter(|_| !without.outdated)?;
            // Where nobody else could lead, it stays a candidate.
            let object = view.mesh.as_ref().filter(|object| object.text != text)?;
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
            // Not known, or not decided: nothing is at an end.
        } else if !l.leaders.contains(name) {
            let near = running.status.location == l.name && !l.fallback;
            tasks.extend(leave(if near { SETTLED } else { FAR }, [name.clone()].into()));
        } else if others_lead {
            tasks.extend(leave(STAY, [name.clone()].into()));
        } else if let Some(heir) = heir(l, departed) {
            let candidates = l.candidates.iter().map(|c| c.name.as_str());
            let turn = match rank::turn(candidates, "hand-over", me.as_str()) {
                _ if l.raft_leader.as_ref() == Some(me) => Duration::ZERO,
                Some(turn) => GRACE + turn,
                None => continue,
            };
            let action = Action::Command(AdminRequest::Promote { node: heir, force: false });
            tasks.push(Task { key: format!("hand-over/{name}"), wait: STAY + turn, action });
        } else if all_gone {
            // Nobody is left there to be carried for.
            let here = |n: &&NodeName| running.mesh.node(n).is_some_and(|n| n.location == l.name);
            tasks.extend(leave(STAY, departed.iter().filter(here).cloned().collect()));
        }
    }
    tasks
}

/// Who takes over: the next in line, if that stays; else the first that could. `None`: the departed one goes on, as nobody can.
fn heir(l: &LocationStatus, departed: &BTreeSet<NodeName>) -> Option<NodeName> {
    let stays = |n: &NodeName| !departed.contains(n) && !l.leaders.contains(n);
    let able = l.candidates.iter().filter(|c| c.blocked_by.is_empty() && !c.drained);
    let able = able.map(|c| &c.name);
    l.next.iter().chain(able).find(|n| stays(n)).cloned()
}
