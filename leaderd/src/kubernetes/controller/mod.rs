//! The control loop: handles one watch event, one response or one timer at a time. It never waits for the API: requests run beside it,
//! each with a timeout, and at most one per key. `mesh` decides which mesh is in force, `reconcile` carries out the tasks that are due, and
//! `log` writes what the log says about the cluster.

mod log;
mod mesh;
mod reconcile;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use leaderd_core::admin::{AdminRequest, AdminResponse};
use leaderd_core::kubernetes::{MeshText, Problem, TurnScheduler, prefix_source, watches_cluster};
use leaderd_core::mesh::Mesh;
use leaderd_core::state::Event;
use leaderd_core::status::Status;
use tokio::sync::{mpsc, watch};

use super::Config;
use super::api_health::{ApiError, ApiHealth};
use super::backoff::{RetryAfter, is_overload};
use super::prefixes::{PrefixEvent, PrefixKind};
use super::requests::{ApiClient, ApiRequest};
use super::view_cache::ViewCache;
use super::watch::{self as watches, Scope, WatchEvent};
use super::watch_cache::{Urgency, WatchCache};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::engine::Request;
use crate::run::Daemon;
use mesh::UntrustedMesh;

/// Delay between a change of the view and the reconciliation, so that changes that come together are handled together.
const SETTLE: Duration = Duration::from_millis(200);

/// The same after a change of annotations: the next step waits until the view shows the previous write.
const SETTLE_ANNOTATION: Duration = Duration::from_millis(10);

/// How often a candidate's daemon is asked for its status if it reports no decision.
const POLL: Duration = Duration::from_secs(1);

/// How often everything is reconciled even if nothing seems to have changed.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);

/// What the daemon knows.
struct DaemonState {
    status: Status,
    events: Vec<Event>,
    /// At least one peer is connected.
    connected: bool,
}

impl DaemonState {
    /// Compares without the values that change all the time.
    fn is_equivalent(&self, other: &Self) -> bool {
        let same = self.events == other.events && self.connected == other.connected;
        same && material(&self.status) == material(&other.status)
    }
}

/// The outcome of something that ran beside the loop.
enum Completion {
    /// The daemon's answer; `None`: it is too busy.
    Status(Option<Box<DaemonState>>),
    /// `then`: requests that follow if this one succeeded.
    Request {
        key: String,
        what: &'static str,
        result: Result<(), ApiError>,
        then: Vec<ApiRequest>,
    },
    Command {
        key: String,
        request: AdminRequest,
        response: Option<AdminResponse>,
    },
}

pub struct Controller {
    config: Config,
    client: ApiClient,
    retry_after: RetryAfter,
    /// Receives the mesh in force.
    meshes: watch::Sender<Option<Arc<Mesh>>>,
    counters: Counters,
    clock: Clock,
    /// Kinds of objects of CNIs and Services that are watched.
    kinds: Vec<PrefixKind>,
    cache: WatchCache,
    health: ApiHealth,
    view_cache: ViewCache,
    turns: TurnScheduler,
    daemon: Option<Daemon>,
    running: FuturesUnordered<BoxFuture<'static, Completion>>,
    /// Keys of the requests and commands that are running.
    busy: BTreeSet<String>,
    /// The daemon is being asked for its status.
    polling: bool,
    /// The mesh in force.
    mesh: Option<Arc<Mesh>>,
    /// The last mesh text that was looked at. The mesh in force is an earlier one if this has mistakes.
    mesh_text: MeshText,
    /// The cluster's mesh has unexpected keys.
    untrusted: Option<UntrustedMesh>,
    status: Option<Box<DaemonState>>,
    /// The view, or something material in the status, has changed since the last reconciliation.
    stale: bool,
    reconciled_at: Option<Instant>,
    settle_at: Option<Instant>,
    next_turn: Option<Instant>,
    save_at: Option<Instant>,
    next_tick: Instant,
    next_poll: Instant,
    /// Problems and missing requirements that were logged.
    problems: Vec<Problem>,
    missing: Option<String>,
}

impl Controller {
    /// Must be called within a runtime.
    pub fn new(
        client: kube::Client,
        retry_after: RetryAfter,
        config: Config,
        meshes: watch::Sender<Option<Arc<Mesh>>>,
        counters: Counters,
    ) -> Self {
        let (view_cache, saved) = ViewCache::open(&config.state);
        let kinds = PrefixKind::all(prefix_source(&config.settings));
        let cache = WatchCache::new(saved, &kinds);
        let (namespace, me) = (config.namespace.clone(), config.me.clone());
        Self {
            config,
            client: ApiClient { client, namespace, me },
            meshes,
            health: ApiHealth::new(counters.clone(), retry_after.clone()),
            retry_after,
            counters,
            clock: Clock::default(),
            kinds,
            cache,
            view_cache,
            turns: TurnScheduler::default(),
            daemon: None,
            running: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            polling: false,
            mesh: None,
            mesh_text: MeshText::default(),
            untrusted: None,
            status: None,
            stale: true,
            reconciled_at: None,
            settle_at: Some(Instant::now()),
            next_turn: None,
            save_at: None,
            next_tick: Instant::now(),
            next_poll: Instant::now(),
            problems: Vec::new(),
            missing: None,
        }
    }

    /// Runs forever. `daemons` delivers the daemon once it runs.
    pub async fn run(mut self, mut daemons: mpsc::Receiver<Daemon>) {
        self.update_mesh();
        let mut events = self.watch();
        let mut decided: Option<watch::Receiver<u64>> = None;
        loop {
            let wake = [self.settle_at, self.next_turn, self.save_at].into_iter().flatten();
            let wake = wake.fold(self.next_tick.min(self.health.next_ping()), Instant::min);
            let mut sleep = pin!(tokio::time::sleep_until(wake.into()));
            tokio::select! {
                Some(event) = events.next() => {
                    let mesh_may_change = matches!(event, WatchEvent::Mesh(_)) || self.untrusted.is_some();
                    self.handle_event(event);
                    if mesh_may_change && self.update_scope() {
                        events = self.watch();
                    }
                }
                Some(completion) = self.running.next() => {
                    if self.handle_completion(completion) {
                        events = self.watch();
                    }
                }
                Some(daemon) = daemons.recv() => {
                    decided = Some(daemon.decided.clone());
                    self.daemon = Some(daemon);
                    self.missing = None;
                    if self.update_scope() {
                        events = self.watch();
                    }
                    self.poll_daemon();
                }
                more = changed(&mut decided) => {
                    if !more {
                        decided = None;
                    }
                    self.poll_daemon();
                }
                () = &mut sleep => self.handle_timers(),
            }
        }
    }

    fn watch(&self) -> BoxStream<'static, WatchEvent> {
        let (me, scope) = (self.config.me.as_str(), self.cache.scope());
        let (client, namespace) = (&self.client.client, &self.config.namespace);
        watches::watch(client, &self.retry_after, namespace, &self.kinds, scope, me)
    }

    /// True if the watches have to start again, as the mesh in force changes how much this daemon watches.
    fn update_scope(&mut self) -> bool {
        // Without a running daemon this node still waits for a mesh with its keys, and logs what is missing.
        let own_node = self.daemon.is_some()
            && self.mesh.as_ref().is_some_and(|mesh| !watches_cluster(mesh, &self.config.me));
        let scope = if own_node { Scope::OwnNode } else { Scope::Cluster };
        let changed = self.cache.set_scope(scope);
        if changed {
            // The status was polled for another purpose, and may be old: nothing may be planned from it.
            self.status = None;
            self.stale = true;
            self.next_poll = Instant::now();
            tracing::debug!(?scope, "watching another part of the cluster");
        }
        changed
    }

    fn handle_event(&mut self, event: WatchEvent) {
        let urgency = match event {
            WatchEvent::Node(event) => {
                let urgency = self.cache.apply_node(event);
                // The Node may now explain a changed key.
                if self.untrusted.is_some() && urgency != Urgency::None {
                    self.update_mesh();
                }
                urgency
            }
            WatchEvent::Pool(event) => self.cache.apply_pool(event),
            WatchEvent::Mesh(event) => {
                self.cache.apply_mesh(event);
                self.update_mesh();
                Urgency::Soon
            }
            WatchEvent::Prefixes(kind, PrefixEvent::Failed(error)) => {
                return self.watch_failed(kind.name(), error);
            }
            WatchEvent::Prefixes(kind, event) => {
                if let PrefixEvent::Absent { hint: Some(hint) } = &event {
                    tracing::warn!(
                        what = kind.name(),
                        reason = hint,
                        "not allowed to read these objects; going on as if there were none"
                    );
                }
                self.cache.apply_prefixes(kind, event)
            }
            WatchEvent::Failed(what, error) => return self.watch_failed(what, error),
        };
        // A watch resumes by itself after an outage; the next request finds out about everything else.
        self.health.watch_delivered();
        let delay = match urgency {
            Urgency::None => return,
            Urgency::Soon => SETTLE,
            Urgency::Immediate => SETTLE_ANNOTATION,
        };
        self.stale = true;
        let at = Instant::now() + delay;
        self.settle_at = Some(self.settle_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn watch_failed(&mut self, what: &'static str, error: kube::runtime::watcher::Error) {
        use kube::runtime::watcher::Error;
        match error {
            Error::InitialListFailed(kube::Error::Api(status))
            | Error::WatchStartFailed(kube::Error::Api(status))
                if is_overload(status.code) =>
            {
                self.health.throttled(what, &status.message);
            }
            Error::InitialListFailed(kube::Error::Api(status))
            | Error::WatchStartFailed(kube::Error::Api(status)) => {
                let hint =
                    if status.code == 404 { "; apply what `leaderd crd` prints" } else { "" };
                self.health.refused(what, &format!("{}{hint}", status.message));
            }
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) => {
                self.health.unreachable(&error);
            }
            // The server ended a watch, or a connection broke: the watch starts again, and reports if that fails.
            other => tracing::debug!(what, error = %other, "a watch starts again"),
        }
    }

    /// True if the watches have to start again.
    fn handle_completion(&mut self, completion: Completion) -> bool {
        match completion {
            Completion::Status(answer) => {
                self.polling = false;
                if let Some(new) = answer {
                    self.stale |= self.status.as_ref().is_none_or(|old| !old.is_equivalent(&new));
                    self.status = Some(new);
                    self.reconcile();
                }
                false
            }
            Completion::Request { key, what, result, then } => {
                self.busy.remove(&key);
                for request in then.into_iter().filter(|_| result.is_ok()) {
                    self.send(EVENT.to_owned(), request);
                }
                if key != PING && result.is_ok() {
                    self.counters.count("kubernetes_writes");
                }
                let paused = self.health.is_paused();
                let back = self.health.record(what, result.as_ref().map(|&()| ()));
                if paused && !self.health.is_paused() {
                    self.stale = true;
                    self.reconcile();
                }
                back
            }
            Completion::Command { key, request, response } => {
                self.busy.remove(&key);
                match response {
                    Some(AdminResponse::Done { message, .. }) => {
                        tracing::info!(message, "carried out a pool's command");
                    }
                    Some(AdminResponse::Refused { message }) => {
                        tracing::warn!(request = ?request, reason = message, "a pool's command is refused");
                    }
                    None => tracing::warn!(request = ?request, "no answer to a pool's command"),
                }
                false
            }
        }
    }

    fn handle_timers(&mut self) {
        let now = Instant::now();
        if self.health.next_ping() <= now {
            self.health.ping_sent();
            self.send(PING.to_owned(), ApiRequest::Ping);
        }
        if self.next_tick <= now {
            self.next_tick = now + POLL;
            self.health.export_age();
            self.log_untrusted();
            if self.next_poll <= now {
                self.poll_daemon();
            }
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.save_at) {
            self.save_at = self.view_cache.save(&self.cache.view);
        }
        if due(self.settle_at) {
            self.settle_at = None;
            if self.cache.is_read() {
                self.save_at = self.view_cache.save(&self.cache.view);
            }
            self.reconcile();
        }
        if due(self.next_turn) {
            self.next_turn = None;
            self.stale = true;
            self.reconcile();
        }
    }

    fn is_candidate(&self) -> bool {
        let me = self.mesh.as_ref().and_then(|m| m.node(&self.config.me));
        me.is_some_and(|me| me.slot.is_some())
    }

    /// Asks the daemon for its status, unless that is under way. Candidates report what members know, so members poll less often.
    fn poll_daemon(&mut self) {
        let interval = if self.is_candidate() { POLL } else { RECONCILE_INTERVAL };
        self.next_poll = Instant::now() + interval;
        let Some(daemon) = &self.daemon else { return self.reconcile() };
        if mem::replace(&mut self.polling, true) {
            return;
        }
        let asker = daemon.asker.clone();
        self.running.push(Box::pin(async move {
            let snapshot = asker.lookup(Request::Snapshot).await;
            let events = asker.lookup(Request::Events).await;
            Completion::Status(snapshot.zip(events).map(|(s, events)| {
                let connected = s.peers_connected > 0;
                Box::new(DaemonState { connected, status: s.status, events })
            }))
        }));
    }
}

/// Keys of requests that are no task of the core.
const PING: &str = "ping";
const PUBLISH_KEYS: &str = "publish-keys";
const LOST_MESH: &str = "lost-mesh";
const EVENT: &str = "event";

async fn changed(decided: &mut Option<watch::Receiver<u64>>) -> bool {
    match decided {
        Some(decided) => decided.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// The status without values that change all the time; the regular reconciliation picks those up.
fn material(status: &Status) -> Status {
    let mut status = status.clone();
    for candidate in status.locations.iter_mut().flat_map(|l| &mut l.candidates) {
        candidate.rtt_ms = None;
        candidate.loss = None;
    }
    status
}
