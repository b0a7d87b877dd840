//! What is to be done in the cluster, and which daemon does it when. Every daemon comes to the same tasks; each waits its turn,
//! and does what is still wanted then.

use std::collections::BTreeMap;
use std::time::Duration;

use super::render::{Rendered, render};
use super::report::{ClusterEvent, PoolStatus};
use super::view::ClusterView;
use super::{depart, rank, report, steer};
use crate::admin::AdminRequest;
use crate::ids::NodeName;
use crate::mesh::Mesh;
use crate::state::Event;
use crate::status::Status;
use crate::time::{Instant, WallTime};

/// What this node's daemon knows, once it runs a mesh.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    pub mesh: &'a Mesh,
    pub status: &'a Status,
    /// As [`crate::node::Node::events`] returns them.
    pub events: &'a [Event],
    /// It is connected to somebody. Without that it hears nothing of others, and cannot tell that from their silence.
    pub hears: bool,
}

/// Something that one of several daemons does.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    /// The same as long as the same is wanted.
    pub key: String,
    /// This daemon does it once it has been wanted for so long.
    pub wait: Duration,
    pub action: Action,
}

/// What is done. Every `resource_version` is a precondition: a write that conflicts is dropped.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Write the mesh file. Without `resource_version` the object is not there: create it, and fail if somebody did.
    Mesh { resource_version: Option<String>, text: String },
    /// Change annotations of a node.
    Annotate(NodeChange),
    /// Replace a pool's status (subresource `status`), and when that was done, emit the events.
    PoolStatus {
        pool: String,
        resource_version: String,
        status: Box<PoolStatus>,
        events: Vec<ClusterEvent>,
    },
    /// Set (or with `None` remove) the condition `RelayForwarding` of a node, by strategic merge (subresource `status`).
    RelayForwarding { node: String, resource_version: String, condition: Option<RelayForwarding> },
    /// Set (or with `None` remove) the condition `MeshChangeRefused` of a node, as above; and when it was set for another reason than
    /// before, emit the event.
    ChangeRefused {
        node: String,
        uid: String,
        resource_version: String,
        refused: Option<ChangeRefused>,
        event: bool,
    },
    /// Ask the mesh: goes to the raft leader of the location, as what an operator asks does.
    Command(AdminRequest),
}

/// The Node condition. The shell adds its times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayForwarding {
    /// `True`, `False`, `Unknown`.
    pub status: &'static str,
    /// In one word: `Forwarding`, `Degraded`, …
    pub reason: String,
    pub message: String,
}

/// What of a node is not taken into the mesh, and why. The shell adds times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeRefused {
    /// In one word: `KeyChanged`, `Held`, `LeftOut`.
    pub reason: &'static str,
    pub message: String,
}

/// Annotations of one node to set (`Some`) and to remove (`None`): a JSON merge patch of `metadata.annotations`, with
/// `metadata.resourceVersion` beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeChange {
    pub node: String,
    pub resource_version: String,
    pub annotations: BTreeMap<String, Option<String>>,
    /// For the log.
    pub why: String,
}

/// All that is wanted now, and what the mesh file would be. `settings`: text of `settings.toml`, empty if there is none. `me`: the
/// node of this daemon. `running` is `None` until the daemon has a mesh.
pub fn tasks(
    view: &ClusterView,
    settings: &str,
    me: &NodeName,
    running: Option<Running<'_>>,
    now: WallTime,
) -> (Rendered, Vec<Task>) {
    let rendered = render(view, settings);
    let mut all = Vec::new();
    all.extend(mesh_task(view, &rendered, me));
    if let Some(running) = running {
        all.extend(steer::kilo_changes(view, running.mesh, running.status, me));
        all.extend(report::commands(view, running, me));
        all.extend(depart::tasks(view, settings, &rendered, running, me));
    }
    all.extend(report::status_tasks(view, &rendered, running, me, now));
    (rendered, all)
}

/// How long a difference stands before the mesh file is written: nodes that come together are one change.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a daemon with settings of an earlier revision leaves a mesh file alone that was made with later ones: while new settings
/// are rolled out, daemons with the old and the new ones must not write in turns. They do write in the end, should nobody be left
/// who has the new ones.
const OUTDATED: Duration = Duration::from_secs(600);

fn mesh_task(view: &ClusterView, rendered: &Rendered, me: &NodeName) -> Option<Task> {
    let text = rendered.text.as_ref()?;
    if view.mesh.as_ref().is_some_and(|m| m.text == *text) {
        return None;
    }
    let wait = rank::turn_of_any(view, rendered.mesh.as_ref(), "mesh", me.as_str())?;
    let resource_version =
        view.mesh.as_ref().map(|m| m.resource_version.clone()).filter(|v| !v.is_empty());
    let settle = if rendered.outdated { OUTDATED } else { SETTLE };
    Some(Task {
        key: "mesh".into(),
        wait: settle + wait,
        action: Action::Mesh { resource_version, text: text.clone() },
    })
}

/// Since when each task has been wanted.
#[derive(Debug, Default)]
pub struct Turns {
    since: BTreeMap<String, Instant>,
}

impl Turns {
    /// What is to be done now, and when to ask again at the latest (`None`: when something changed). What is returned may be
    /// returned again, a turn later, if the view still asks for it.
    pub fn due(&mut self, now: Instant, tasks: Vec<Task>) -> (Vec<Task>, Option<Instant>) {
        let mut since = BTreeMap::new();
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for task in tasks {
            let wanted = self.since.get(&task.key).copied().unwrap_or(now);
            let at = wanted + task.wait;
            let wanted = if at <= now { now + RETRY } else { wanted };
            since.insert(task.key.clone(), wanted);
            if at <= now {
                due.push(task);
            } else {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        }
        self.since = since;
        (due, next)
    }
}

/// After a try, the same is not tried again for so long (and this daemon's wait): the view needs time to show what was written.
const RETRY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
