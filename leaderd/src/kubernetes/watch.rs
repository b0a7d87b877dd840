//! The watches: what changes in the cluster, as one stream of events.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};

use super::backoff::{Backoff, RetryAfter, spread};
use super::crd::LocationPool;
use super::prefixes::{self, PrefixEvent, PrefixKind};

/// Name of the ConfigMap that holds the mesh file.
pub const MESH_OBJECT: &str = "leaderd-mesh";

/// One event of a watch.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one at a time.
pub enum WatchEvent {
    Node(Event<Node>),
    Pool(Event<LocationPool>),
    Mesh(Event<ConfigMap>),
    Prefixes(PrefixKind, PrefixEvent),
    /// The watch of these objects failed, and starts again by itself.
    Failed(&'static str, watcher::Error),
}

/// How much of the cluster is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// All Nodes and pools: the core plans from these.
    #[default]
    Cluster,
    /// This node's own Node, and no pool. [`leaderd_core::kubernetes::watches_cluster`] says for which nodes that is enough.
    OwnNode,
}

/// Longest duration of one watch request, in seconds; then the watch continues in a new request. `kube` gives up a silent one 5 s later.
const WATCH_SECONDS: u64 = 290;

/// The duration is drawn anew for each watch, so that the watches of daemons that started together do not end together.
fn config() -> Config {
    let seconds = spread(Duration::from_secs(WATCH_SECONDS)).as_secs();
    Config::default().timeout(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// Returns the events of all watches. The stream never ends; after an error it backs off, for as long as the server asks.
pub fn watch(
    client: &Client,
    retry_after: &RetryAfter,
    namespace: &str,
    kinds: &[PrefixKind],
    scope: Scope,
    me: &str,
) -> BoxStream<'static, WatchEvent> {
    let backoff = || Backoff::new(retry_after.clone());
    let nodes = match scope {
        Scope::Cluster => config(),
        Scope::OwnNode => config().fields(&format!("metadata.name={me}")),
    };
    let nodes = watcher(Api::<Node>::all(client.clone()), nodes.any_semantic())
        .backoff(backoff())
        .map(|event| event.map_or_else(|e| WatchEvent::Failed("nodes", e), WatchEvent::Node));
    let pools = (scope == Scope::Cluster).then(|| {
        let failed = |e| WatchEvent::Failed("locationpools", e);
        watcher(Api::<LocationPool>::all(client.clone()), config().any_semantic())
            .backoff(backoff())
            .map(move |event| event.map_or_else(failed, WatchEvent::Pool))
            .boxed()
    });
    // Writes of this object have its version as precondition, so it is listed at its newest version, not from the server's cache.
    let mesh = config().fields(&format!("metadata.name={MESH_OBJECT}"));
    let mesh = watcher(Api::<ConfigMap>::namespaced(client.clone(), namespace), mesh)
        .backoff(backoff())
        .map(|event| event.map_or_else(|e| WatchEvent::Failed("configmaps", e), WatchEvent::Mesh));
    let prefixes = (scope == Scope::Cluster).then(|| {
        prefixes::watch(client, retry_after, kinds, config)
            .map(|(kind, event)| WatchEvent::Prefixes(kind, event))
            .boxed()
    });
    let all = [nodes.boxed(), mesh.boxed()].into_iter().chain(pools).chain(prefixes);
    stream::select_all(all).boxed()
}
