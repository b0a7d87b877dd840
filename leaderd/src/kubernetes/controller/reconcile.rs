//! Plans what is wanted of the cluster and of the daemon, and starts each task when its turn has come.

use std::time::{Duration, Instant};

use leaderd_core::kubernetes::{Action, Rendered, Running, Task, names, plan, watcher_turn_delay};
use leaderd_core::status::Status;

use super::super::watch_cache::MeshObjectState;
use super::{
    ApiRequest, Completion, Controller, DaemonState, LOST_MESH, PUBLISH_KEYS, RECONCILE_INTERVAL,
};
use crate::engine::Request;

impl Controller {
    /// Plans, and starts what is due.
    pub(super) fn reconcile(&mut self) {
        let now = Instant::now();
        if self.reconciled_at.is_some_and(|at| now < at + RECONCILE_INTERVAL) && !self.stale {
            return;
        }
        if self.health.is_paused() {
            return self.log_missing(None);
        }
        self.stale = false;
        self.reconciled_at = Some(now);
        self.publish_keys();
        if !self.cache.is_complete() {
            return self.log_missing(None);
        }
        let mesh = self.mesh.clone();
        let running = match (&self.daemon, &self.status, &mesh) {
            (Some(_), Some(state), Some(mesh)) => {
                let DaemonState { status, events, connected } = &**state;
                Some(Running { mesh, status, events, connected: *connected })
            }
            _ => None,
        };
        let time = self.clock.now();
        let (config, view) = (&self.config, &self.cache.view);
        let (rendered, mut tasks) = plan(view, &config.settings, &config.me, running, time.wall);
        tasks.extend(self.restore_mesh(&rendered));
        if self.cache.mesh_state == MeshObjectState::Newer {
            tasks.retain(|t| !matches!(t.action, Action::Mesh { .. }));
        }
        self.log_problems(&rendered);
        self.log_missing(Some(&rendered));
        let (due, next) = self.turns.due(time.mono, tasks);
        self.next_turn = next.map(|at| self.clock.deadline(at).into_std());
        for Task { key, action, .. } in due {
            if !self.busy.contains(&key) {
                self.start(key, action);
            }
        }
    }

    /// Returns the task that writes the mesh object again if it is missing or damaged.
    pub(super) fn restore_mesh(&self, rendered: &Rendered) -> Option<Task> {
        let lost = self.cache.mesh_state == MeshObjectState::Lost;
        let object = self.cache.view.mesh.as_ref().filter(|_| lost)?;
        // A daemon that leaves changes of the mesh to others restores the previous text.
        let text = rendered.text.clone().filter(|_| !rendered.outdated);
        let text = text.unwrap_or_else(|| object.text.as_str().to_owned());
        if text.is_empty() {
            return None;
        }
        let resource_version = Some(object.resource_version.clone()).filter(|v| !v.is_empty());
        let (view, mesh) = (&self.cache.view, rendered.mesh.as_deref());
        let wait = watcher_turn_delay(view, mesh, LOST_MESH, self.config.me.as_str())?;
        Some(Task {
            key: LOST_MESH.to_owned(),
            wait: Duration::from_secs(1) + wait,
            action: Action::Mesh { resource_version, text },
        })
    }

    /// Publishes this node's own annotations, which no other daemon writes, and restores them if they were removed. It applies all of
    /// them together, as server-side apply removes what a request leaves out.
    fn publish_keys(&mut self) {
        let Some(node) = self.cache.view.nodes.get(self.config.me.as_str()) else { return };
        let mut own = self.config.own.clone();
        let current = node.annotations.get(names::PROBE_ADDRESS).cloned();
        let current = current.map(|address| (names::PROBE_ADDRESS.to_owned(), address));
        own.extend(self.status.as_ref().map(|s| probe_address(&s.status)).or(current));
        let published = own.iter().all(|(name, value)| node.annotations.get(name) == Some(value));
        if published || self.busy.contains(PUBLISH_KEYS) {
            return;
        }
        tracing::info!(node.name = %self.config.me, annotations = ?own, "publishing this node's keys and probe address");
        self.send(PUBLISH_KEYS.to_owned(), ApiRequest::PublishKeys(own));
    }

    /// `None`: the Node does not exist, or was not read yet.
    pub(super) fn keys_are_published(&self) -> Option<bool> {
        let node = self.cache.view.nodes.get(self.config.me.as_str())?;
        Some(self.config.own.iter().all(|(k, v)| node.annotations.get(k) == Some(v)))
    }

    fn start(&mut self, key: String, action: Action) {
        if let Action::Command(request) = action {
            let Some(daemon) = &self.daemon else { return };
            let asker = daemon.asker.clone();
            self.busy.insert(key.clone());
            self.running.push(Box::pin(async move {
                let user = Some("kubernetes".to_owned());
                let command = |to| Request::Command(request.clone(), user, to);
                let response = asker.ask(command, leaderd_core::admin::CLIENT_DEADLINE).await;
                Completion::Command { key, request, response }
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
                "a node's change is not taken into the mesh"
            );
        }
        if let Action::Mesh { text, .. } = &action {
            tracing::info!(bytes = text.len(), "writing the mesh file of the cluster");
        }
        if let Some(request) = ApiRequest::of(action, &self.cache.view, &self.config.me) {
            self.send(key, request);
        }
    }

    pub(super) fn send(&mut self, key: String, mut request: ApiRequest) {
        let (client, what) = (self.client.clone(), request.what());
        let then = request.take_events();
        self.busy.insert(key.clone());
        self.running.push(Box::pin(async move {
            let result = client.send(request).await;
            Completion::Request { key, what, result, then }
        }));
    }
}

/// Returns the annotation that says where the node is probed.
fn probe_address(status: &Status) -> (String, String) {
    let all: Vec<String> = status.probe_addresses.iter().map(ToString::to_string).collect();
    let text = if all.is_empty() { "none".to_owned() } else { all.join(",") };
    (names::PROBE_ADDRESS.to_owned(), text)
}
