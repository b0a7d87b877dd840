//! What is wanted of the cluster and of the daemon, begun when its turn has come.

use std::time::{Duration, Instant};

use leaderd_core::cluster::names;
use leaderd_core::cluster::{self, Action, Rendered, Running, Task};
use leaderd_core::status::Status;

use super::super::seen::Held;
use super::{ANEW, Call, Done, Known, LOST, OWN, Shell};
use crate::engine::{COMMAND_TIMEOUT, Request};

impl Shell {
    /// Finds out what is wanted, and does what is due.
    pub(super) fn weigh(&mut self) {
        let now = Instant::now();
        if self.weighed.is_some_and(|at| now < at + ANEW) && !self.stale {
            return;
        }
        if self.contact.holds() {
            return self.say_what_is_missing(None);
        }
        self.stale = false;
        self.weighed = Some(now);
        self.publish_own();
        if !self.seen.is_whole() {
            return self.say_what_is_missing(None);
        }
        let in_force = self.in_force.as_ref().and_then(|(_, mesh)| mesh.clone());
        let running = match (&self.daemon, &self.status, &in_force) {
            (Some(_), Some(known), Some(mesh)) => {
                let Known { status, events, hears } = &**known;
                Some(Running { mesh, status, events, hears: *hears })
            }
            _ => None,
        };
        let time = self.clock.now();
        let (config, view) = (&self.config, &self.seen.view);
        let (rendered, mut tasks) =
            cluster::tasks(view, &config.settings, &config.me, running, time.wall);
        tasks.extend(self.lost_mesh(&rendered));
        if self.seen.held == Held::Foreign {
            tasks.retain(|t| !matches!(t.action, Action::Mesh { .. }));
        }
        self.say_problems(&rendered);
        self.say_what_is_missing(Some(&rendered));
        let (due, next) = self.turns.due(time.mono, tasks);
        self.next_turn = next.map(|at| self.clock.deadline(at).into_std());
        for Task { key, action, .. } in due {
            if !self.busy.contains(&key) {
                self.begin(key, action);
            }
        }
    }

    /// The object that holds the mesh is gone or damaged: it is written again by the one whose turn it is.
    pub(super) fn lost_mesh(&self, rendered: &Rendered) -> Option<Task> {
        let object = self.seen.view.mesh.as_ref().filter(|_| self.seen.held == Held::Lost)?;
        // Who is to leave the mesh to others puts back what there was.
        let text = rendered.text.clone().filter(|_| !rendered.outdated);
        let text = text.unwrap_or_else(|| object.text.clone());
        if text.is_empty() {
            return None;
        }
        let resource_version = Some(object.resource_version.clone()).filter(|v| !v.is_empty());
        let (view, mesh) = (&self.seen.view, rendered.mesh.as_ref());
        let wait = cluster::turn_of_any(view, mesh, LOST, self.config.me.as_str())?;
        Some(Task {
            key: LOST.to_owned(),
            wait: Duration::from_secs(1) + wait,
            action: Action::Mesh { resource_version, text },
        })
    }

    /// The node's own annotations, which nobody else writes: put back if somebody removed them. All of them at once, as what one
    /// application leaves out is removed.
    fn publish_own(&mut self) {
        let Some(node) = self.seen.view.nodes.get(self.config.me.as_str()) else { return };
        let mut own = self.config.own.clone();
        let found = node.annotations.get(names::PROBE_ADDRESS).cloned();
        let found = found.map(|address| (names::PROBE_ADDRESS.to_owned(), address));
        own.extend(self.status.as_ref().map(|s| probe_address(&s.status)).or(found));
        let published = own.iter().all(|(name, value)| node.annotations.get(name) == Some(value));
        if published || self.busy.contains(OWN) {
            return;
        }
        tracing::info!(node.name = %self.config.me, annotations = ?own, "publishing what this node's daemon is known by");
        self.call(OWN.to_owned(), Call::Own(own));
    }

    /// `None`: there is no such Node, or it was not read yet.
    pub(super) fn keys_are_published(&self) -> Option<bool> {
        let node = self.seen.view.nodes.get(self.config.me.as_str())?;
        Some(self.config.own.iter().all(|(k, v)| node.annotations.get(k) == Some(v)))
    }

    fn begin(&mut self, key: String, action: Action) {
        if let Action::Command(request) = action {
            let Some(daemon) = &self.daemon else { return };
            let asker = daemon.asker.clone();
            self.busy.insert(key.clone());
            self.under_way.push(Box::pin(async move {
                let user = Some("kubernetes".to_owned());
                let command = |to| Request::Command(request.clone(), user, to);
                let response = asker.ask(command, COMMAND_TIMEOUT).await;
                Done::Command { key, request, response }
            }));
            return;
        }
        if let Action::Annotate(change) = &action {
            tracing::info!(node.name = change.node, annotations = ?change.annotations, why = change.why, "annotating a node");
        }
        if let Action::ChangeRefused { node, refused: Some(refused), .. } = &action {
            self.counters.count("kubernetes_changes_refused");
            tracing::error!(
                node.name = node,
                reason = refused.reason,
                problem = refused.message,
                "what a node says is not taken into the mesh"
            );
        }
        if let Action::Mesh { text, .. } = &action {
            tracing::info!(bytes = text.len(), "writing the mesh file of the cluster");
        }
        if let Some(call) = Call::of(action, &self.seen.view, &self.config.me) {
            self.call(key, call);
        }
    }

    pub(super) fn call(&mut self, key: String, mut call: Call) {
        let (carrier, what) = (self.carrier.clone(), call.what());
        let then = match &mut call {
            Call::Pool { events, .. } | Call::Node { events, .. } => {
                events.drain(..).map(|e| Call::Event(Box::new(e))).collect()
            }
            _ => Vec::new(),
        };
        self.busy.insert(key.clone());
        self.under_way.push(Box::pin(async move {
            let result = carrier.carry_out(call).await;
            Done::Call { key, what, result, then }
        }));
    }
}

/// Where the node is probed, as an annotation.
fn probe_address(status: &Status) -> (String, String) {
    let all: Vec<String> = status.probe_addresses.iter().map(ToString::to_string).collect();
    let text = if all.is_empty() { "none".to_owned() } else { all.join(",") };
    (names::PROBE_ADDRESS.to_owned(), text)
}
