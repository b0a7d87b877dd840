//! Tasks: what a daemon may have to do in the cluster or ask of the mesh, and when its turn comes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pool_status::{ClusterEvent, PoolStatus};
use crate::admin::AdminRequest;
use crate::mesh::Mesh;
use crate::state::Event;
use crate::status::Status;
use crate::time::Instant;

/// What this node's daemon knows, once it runs a mesh.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    pub mesh: &'a Mesh,
    pub status: &'a Status,
    /// As [`crate::node::Node::events`] returns them.
    pub events: &'a [Event],
    /// At least one peer is connected. Without peers the daemon cannot tell their silence from its own isolation.
    pub connected: bool,
}

/// Something that one of several daemons does.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    /// Stays the same as long as the same is wanted.
    pub key: String,
    /// This daemon does it once it has been wanted for this long.
    pub wait: Duration,
    pub action: Action,
}

/// What a task does. Every `resource_version` is a precondition: a write that conflicts is dropped.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Writes the mesh file. Without `resource_version` the object does not exist: the write creates it, and fails if another
    /// daemon has created it.
    Mesh { resource_version: Option<String>, text: String },
    /// Changes annotations of a node.
    Annotate(NodeChange),
    /// Replaces a pool's status (subresource `status`), and then emits the events.
    PoolStatus {
        pool: String,
        resource_version: String,
        status: Box<PoolStatus>,
        events: Vec<ClusterEvent>,
    },
    /// Sets (or with `None` removes) the condition `RelayForwarding` of a node, by strategic merge (subresource `status`).
    RelayForwarding { node: String, resource_version: String, condition: Option<RelayForwarding> },
    /// Sets (or with `None` removes) the condition `MeshChangeRefused` of a node in the same way. With `event` it then emits an
    /// Event: the reason is new.
    ChangeRefused {
        node: String,
        uid: String,
        resource_version: String,
        refused: Option<ChangeRefused>,
        event: bool,
    },
    /// Sends a command to the location's raft leader, as an operator's command is sent.
    Command(AdminRequest),
}

/// The Node condition `RelayForwarding`. The shell adds the times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayForwarding {
    /// `True`, `False`, `Unknown`.
    pub status: &'static str,
    /// One word: `Forwarding`, `Degraded`, …
    pub reason: String,
    pub message: String,
}

/// A part of a Node that the mesh does not take, and why. The shell adds the times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeRefused {
    /// One word: `KeyChanged`, `Held`, `LeftOut`.
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

/// Pause after a try (in addition to this daemon's wait) before the same task is tried again: the view needs time to show the write.
const RETRY: Duration = Duration::from_millis(500);

/// Remembers since when each task has been wanted.
#[derive(Debug, Default)]
pub struct TurnScheduler {
    since: BTreeMap<String, Instant>,
}

impl TurnScheduler {
    /// Returns the tasks that are due now, and when to call this again at the latest (`None`: when something has changed). It
    /// returns a task again, a turn later, if the view still asks for it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_is_no_longer_wanted_loses_its_turn() {
        let task = |key: &str, wait: u64| Task {
            key: key.to_owned(),
            wait: Duration::from_millis(wait),
            action: Action::Mesh { resource_version: None, text: String::new() },
        };
        let at = |ms: u64| Instant(ms * 1000);
        let mut turns = TurnScheduler::default();
        assert_eq!(turns.due(at(0), vec![task("a", 400)]), (vec![], Some(at(400))));
        assert_eq!(turns.due(at(300), vec![]), (vec![], None));
        assert_eq!(turns.due(at(350), vec![task("a", 400)]), (vec![], Some(at(750))));
        assert_eq!(turns.due(at(760), vec![task("a", 400)]).0.len(), 1);
        // It was tried, and is not tried again at once.
        assert_eq!(turns.due(at(800), vec![task("a", 400)]).0, []);
        assert_eq!(turns.due(at(760 + 900), vec![task("a", 400)]).0.len(), 1);
    }
}
