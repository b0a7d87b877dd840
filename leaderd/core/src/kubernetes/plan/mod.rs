//! Plans what has to be done in the cluster, and which daemon does it when. Every daemon arrives at the same tasks; each waits for its
//! turn, and then does what is still wanted.

mod commands;
mod depart;
mod status;

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::render::{Rendered, render};
use super::tasks::{Action, Running, Task};
use super::view::ClusterView;
use super::{kilo, turn_order};
use crate::ids::NodeName;
use crate::time::WallTime;

/// How long other daemons leave a task to the location's raft leader before the first of them does it.
const RAFT_LEADER_GRACE: Duration = Duration::from_secs(1);

/// How long a difference lasts before the mesh file is written: nodes that arrive together make one change.
const MESH_SETTLE: Duration = Duration::from_secs(1);

/// How long a daemon with settings of an earlier revision leaves a mesh file alone that was made with later ones: during a rollout of
/// new settings, daemons with old and new ones must not overwrite each other. After that they do write, in case no daemon with the
/// new settings is left.
const OUTDATED_GRACE: Duration = Duration::from_secs(600);

/// Returns what the mesh file would be, and everything that is wanted now. `settings`: text of `settings.toml`, empty if there is
/// none. `me`: the node of this daemon. `running` is `None` until the daemon has a mesh.
pub fn plan(
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
        all.extend(kilo::annotation_tasks(view, running.mesh, running.status, me));
        all.extend(commands::tasks(view, running, me));
        all.extend(depart::tasks(view, settings, &rendered, running, me));
    }
    all.extend(status::tasks(view, &rendered, running, me, now));
    (rendered, all)
}

fn mesh_task(view: &ClusterView, rendered: &Rendered, me: &NodeName) -> Option<Task> {
    let text = rendered.text.as_ref()?;
    if view.mesh.as_ref().is_some_and(|m| m.text.as_str() == text) {
        return None;
    }
    let turn = turn_order::watcher_turn_delay(view, rendered.mesh.as_deref(), "mesh", me.as_str())?;
    let resource_version =
        view.mesh.as_ref().map(|m| m.resource_version.clone()).filter(|v| !v.is_empty());
    let settle = if rendered.outdated { OUTDATED_GRACE } else { MESH_SETTLE };
    Some(Task {
        key: "mesh".into(),
        wait: settle + turn,
        action: Action::Mesh { resource_version, text: text.clone() },
    })
}
