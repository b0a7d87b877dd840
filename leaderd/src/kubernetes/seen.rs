//! What the watches have told so far: the view, and whether it is whole.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::runtime::WatchStreamExt as _;
use kube::{Api, Client};
use leaderd_core::cluster::{ClusterNode, ClusterView, MeshObject, Pool};

use super::backoff::Backoff;
use super::convert;
use super::crd::LocationPool;

/// Name of the ConfigMap that holds the mesh file.
pub const MESH_OBJECT: &str = "leaderd-mesh";

/// One word of a watch.
pub enum Word {
    Node(Event<Node>),
    Pool(Event<LocationPool>),
    Mesh(Event<ConfigMap>),
    /// The watch of these went wrong, and begins anew by itself.
    Failed(&'static str, watcher::Error),
}

/// All that is watched. Ends never; errors back off.
pub fn watch(client: &Client, namespace: &str) -> BoxStream<'static, Word> {
    let nodes = watcher(Api::<Node>::all(client.clone()), Config::default().any_semantic())
        .backoff(Backoff::default())
        .map(|word| word.map_or_else(|e| Word::Failed("nodes", e), Word::Node));
    let pools = watcher(Api::<LocationPool>::all(client.clone()), Config::default().any_semantic())
        .backoff(Backoff::default())
        .map(|word| word.map_or_else(|e| Word::Failed("locationpools", e), Word::Pool));
    // The one object that is written with its version as precondition: the newest, and not what a cache has.
    let own = Config::default().fields(&format!("metadata.name={MESH_OBJECT}"));
    let mesh = watcher(Api::<ConfigMap>::namespaced(client.clone(), namespace), own)
        .backoff(Backoff::default())
        .map(|word| word.map_or_else(|e| Word::Failed("configmaps", e), Word::Mesh));
    stream::select_all([nodes.boxed(), pools.boxed(), mesh.boxed()]).boxed()
}

/// The view, and what of it was read.
#[derive(Default, Debug)]
pub struct Seen {
    pub view: ClusterView,
    nodes: List<ClusterNode>,
    pools: List<Pool>,
    mesh: List<MeshObject>,
}

/// A list that is being read, beside the one in use: a half list is never looked at.
#[derive(Debug)]
struct List<T> {
    new: BTreeMap<String, T>,
    whole: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { new: BTreeMap::new(), whole: false }
    }
}

impl<T> List<T> {
    fn take(&mut self, event: Event<(String, T)>, into: &mut BTreeMap<String, T>) {
        match event {
            Event::Init => self.new.clear(),
            Event::InitApply((name, item)) => drop(self.new.insert(name, item)),
            Event::InitDone => {
                *into = std::mem::take(&mut self.new);
                self.whole = true;
            }
            Event::Apply((name, item)) => drop(into.insert(name, item)),
            Event::Delete((name, _)) => drop(into.remove(&name)),
        }
    }
}

impl Seen {
    /// From what an earlier run kept.
    pub fn from_kept(view: ClusterView) -> Self {
        Self { view, ..Self::default() }
    }

    /// Everything was read at least once since the start. Before that nothing is to be written.
    pub fn is_whole(&self) -> bool {
        self.nodes.whole && self.pools.whole && self.mesh.whole
    }

    pub fn node(&mut self, event: Event<Node>) {
        let event = map(event, |n| {
            let node = convert::node(n);
            (node.name.clone(), node)
        });
        self.nodes.take(event, &mut self.view.nodes);
    }

    pub fn pool(&mut self, event: Event<LocationPool>) {
        let event = map(event, |p| {
            let pool = Pool::from(p);
            (pool.name.clone(), pool)
        });
        self.pools.take(event, &mut self.view.pools);
    }

    /// Where the object is deleted, or has lost its text, the text that was in force stays known, without a version: it is
    /// written again, and generations do not begin anew.
    pub fn mesh(&mut self, event: Event<ConfigMap>) {
        let lost = |event: &Event<ConfigMap>| match event {
            Event::Apply(o) | Event::InitApply(o) => Some(o.metadata.resource_version.clone()),
            _ => None,
        };
        let version = lost(&event).flatten().unwrap_or_default();
        let event = map(event, |o| {
            let object = convert::mesh_object(o);
            (String::new(), object.unwrap_or(MeshObject { resource_version: version.clone(), text: String::new() }))
        });
        let mut now = self.view.mesh.take().map(|m| (String::new(), m)).into_iter().collect();
        let before: Option<MeshObject> = BTreeMap::values(&now).next().cloned();
        self.mesh.take(event, &mut now);
        let kept = before.map(|m| m.text).filter(|text| !text.is_empty());
        self.view.mesh = match (now.into_values().next(), kept) {
            (Some(object), Some(text)) if object.text.is_empty() => {
                Some(MeshObject { text, ..object })
            }
            (Some(object), _) => Some(object),
            (None, Some(text)) => Some(MeshObject { resource_version: String::new(), text }),
            (None, None) => None,
        };
    }
}

fn map<A, B>(event: Event<A>, f: impl Fn(A) -> B) -> Event<B> {
    match event {
        Event::Apply(a) => Event::Apply(f(a)),
        Event::Delete(a) => Event::Delete(f(a)),
        Event::Init => Event::Init,
        Event::InitApply(a) => Event::InitApply(f(a)),
        Event::InitDone => Event::InitDone,
    }
}
