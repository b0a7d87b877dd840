//! What the watches have delivered so far: the view of the cluster, and whether it is complete.

use std::collections::BTreeMap;
use std::mem;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::watcher::Event;
use leaderd_core::kubernetes::{ClusterNode, ClusterView, MeshObject, MeshText, Pool};

use super::convert;
use super::crd::LocationPool;
use super::prefixes::{PrefixEvent, PrefixKind, PrefixObjects};
use super::watch::Scope;

/// The view, and which parts of it were read.
#[derive(Default, Debug)]
pub struct WatchCache {
    pub view: ClusterView,
    pub mesh_state: MeshObjectState,
    scope: Scope,
    mesh_read: bool,
    new_mesh: Option<ConfigMap>,
    nodes: Listing<ClusterNode>,
    pools: Listing<Pool>,
    prefixes: PrefixObjects,
}

/// State of the ConfigMap that holds the mesh file. Unless it is valid, the view has the last valid text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MeshObjectState {
    Valid,
    /// It is missing, empty, damaged, or older than the mesh in force (recreated, or restored from a backup): it has to be written
    /// again, as no daemon goes back to an older generation.
    #[default]
    Lost,
    /// It cannot be parsed here and has a higher generation: a newer leaderd wrote it, and it is left alone.
    Newer,
}

/// A list that is being read, beside the one in use: a partial list is never used.
#[derive(Debug)]
struct Listing<T> {
    new: BTreeMap<String, T>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { new: BTreeMap::new(), complete: false }
    }
}

/// How soon a change has to be acted on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Only the version has changed, as after a kubelet's report.
    None,
    Soon,
    Immediate,
}

impl<T> Listing<T> {
    /// Applies an event to `items`. `urgency` compares an object with its previous state.
    fn apply(
        &mut self,
        event: Event<(String, T)>,
        items: &mut BTreeMap<String, T>,
        urgency: impl Fn(&T, &T) -> Urgency,
    ) -> Urgency {
        match event {
            Event::Init => self.new.clear(),
            Event::InitApply((name, item)) => drop(self.new.insert(name, item)),
            Event::InitDone => {
                *items = mem::take(&mut self.new);
                self.complete = true;
                return Urgency::Soon;
            }
            Event::Apply((name, item)) => {
                let urgency = items.get(&name).map_or(Urgency::Soon, |old| urgency(old, &item));
                items.insert(name, item);
                return urgency;
            }
            Event::Delete((name, _)) => {
                items.remove(&name);
                return Urgency::Soon;
            }
        }
        Urgency::None
    }
}

impl WatchCache {
    /// Starts with the view that an earlier run saved, and with these kinds of prefix objects watched.
    pub fn new(saved: Option<ClusterView>, kinds: &[PrefixKind]) -> Self {
        let (view, prefixes) = (saved.unwrap_or_default(), PrefixObjects::of(kinds));
        Self { view, prefixes, ..Self::default() }
    }

    /// True if the whole cluster was read at least once since the start. Before that, nothing is written.
    pub fn is_complete(&self) -> bool {
        self.scope == Scope::Cluster && self.is_read() && self.prefixes.is_complete(self.has_mesh())
    }

    fn has_mesh(&self) -> bool {
        self.view.mesh.as_ref().is_some_and(|m| !m.text.is_empty())
    }

    fn pools_read(&self) -> bool {
        self.pools.complete || self.scope == Scope::OwnNode
    }

    /// Returns the names of what has not been read yet.
    pub fn unread(&self) -> Vec<&'static str> {
        let all = [
            (self.nodes.complete, "nodes"),
            (self.pools_read(), "locationpools.leaderd.io"),
            (self.mesh_read, "ConfigMap leaderd-mesh"),
        ];
        let all = all.into_iter().filter(|(read, _)| !read).map(|(_, name)| name);
        let prefixes = self.prefixes.unread(self.has_mesh());
        let prefixes = prefixes.filter(|_| self.scope == Scope::Cluster);
        all.chain(prefixes.map(PrefixKind::name)).collect()
    }

    /// True if everything in this scope was read.
    pub fn is_read(&self) -> bool {
        self.nodes.complete && self.pools_read() && self.mesh_read
    }

    /// Sets how much of the cluster is watched. True if that changes: then Nodes and pools are read again.
    pub fn set_scope(&mut self, scope: Scope) -> bool {
        if mem::replace(&mut self.scope, scope) == scope {
            return false;
        }
        self.nodes.complete = false;
        self.pools = Listing::default();
        self.prefixes.forget();
        if scope == Scope::OwnNode {
            self.view.pools.clear();
        }
        true
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    pub fn apply_node(&mut self, event: Event<Node>) -> Urgency {
        let event = map(event, |n| {
            let node = convert::node(n);
            (node.name.clone(), node)
        });
        self.nodes.apply(event, &mut self.view.nodes, |old, new| {
            let resource_version = new.resource_version.clone();
            if old.annotations != new.annotations {
                Urgency::Immediate
            } else if (ClusterNode { resource_version, ..old.clone() }) == *new {
                Urgency::None
            } else {
                Urgency::Soon
            }
        })
    }

    pub fn apply_pool(&mut self, event: Event<LocationPool>) -> Urgency {
        let event = map(event, |p| {
            let pool = Pool::from(p);
            (pool.name.clone(), pool)
        });
        self.pools.apply(event, &mut self.view.pools, |old, new| {
            let resource_version = new.resource_version.clone();
            let same = (Pool { resource_version, ..old.clone() }) == *new;
            if same { Urgency::None } else { Urgency::Soon }
        })
    }

    pub fn apply_prefixes(&mut self, kind: PrefixKind, event: PrefixEvent) -> Urgency {
        let before = self.is_complete();
        let changed = self.prefixes.apply(kind, event, &mut self.view);
        if changed || before != self.is_complete() { Urgency::Soon } else { Urgency::None }
    }

    pub fn apply_mesh(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.new_mesh = None,
            Event::InitApply(object) => self.new_mesh = Some(object),
            Event::InitDone => {
                let object = self.new_mesh.take();
                self.set_mesh(object);
                self.mesh_read = true;
            }
            Event::Apply(object) => self.set_mesh(Some(object)),
            Event::Delete(_) => self.set_mesh(None),
        }
    }

    /// If the object was deleted, or holds a text that no daemon would take, the view keeps the text that was in force.
    fn set_mesh(&mut self, object: Option<ConfigMap>) {
        let previous = self.view.mesh.take().map(|m| m.text);
        let version =
            object.as_ref().map(|o| o.metadata.resource_version.clone().unwrap_or_default());
        let found = object.and_then(convert::mesh_text).map(|text| match &previous {
            // Already parsed.
            Some(previous) if previous.as_str() == text => previous.clone(),
            _ => MeshText::from(text),
        });
        self.mesh_state = MeshObjectState::of(found.as_ref(), previous.as_ref());
        let text =
            if self.mesh_state == MeshObjectState::Valid { found } else { previous.or(found) };
        self.view.mesh = match (version, text) {
            (None, None) => None,
            (version, text) => Some(MeshObject {
                resource_version: version.unwrap_or_default(),
                text: text.unwrap_or_default(),
            }),
        };
    }
}

impl MeshObjectState {
    fn of(found: Option<&MeshText>, previous: Option<&MeshText>) -> Self {
        let Some(found) = found else { return Self::Lost };
        let Some(Ok(previous)) = previous.map(MeshText::mesh) else { return Self::Valid };
        match found.mesh() {
            Ok(found) => {
                let older = found.name == previous.name && found.generation < previous.generation;
                if older { Self::Lost } else { Self::Valid }
            }
            Err(mistakes) => {
                tracing::error!(
                    error = mistakes,
                    "the mesh file of the cluster has mistakes; the one in use stays"
                );
                let newer = found.claimed_generation().is_some_and(|g| g > previous.generation.0);
                if newer { Self::Newer } else { Self::Lost }
            }
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use leaderd_core::mesh;

    use super::*;

    fn object(version: &str, text: Option<&str>) -> ConfigMap {
        let data = text.map_or(json!({}), |t| json!({ convert::MESH_KEY: t }));
        serde_json::from_value(json!({"metadata": {"resourceVersion": version}, "data": data}))
            .unwrap()
    }

    fn named(name: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    }

    #[test]
    fn a_partial_list_is_never_used() {
        let mut cache = WatchCache::default();
        for event in [Event::Init, Event::InitApply(named("a")), Event::InitApply(named("b"))] {
            cache.apply_node(event);
        }
        assert!(cache.view.nodes.is_empty());
        cache.apply_node(Event::InitDone);
        assert_eq!(cache.view.nodes.len(), 2);
        // The list is read again after an outage: Nodes deleted in the meantime disappear once it is complete.
        for event in [Event::Init, Event::InitApply(named("b"))] {
            cache.apply_node(event);
        }
        assert_eq!(cache.view.nodes.len(), 2);
        cache.apply_node(Event::InitDone);
        assert_eq!(cache.view.nodes.keys().collect::<Vec<_>>(), ["b"]);
        assert!(!cache.is_complete(), "pools and the mesh were not read");
        for event in [Event::Init, Event::InitDone] {
            cache.apply_pool(event);
        }
        for event in [Event::Init, Event::InitDone] {
            cache.apply_mesh(event);
        }
        assert!(cache.is_complete());
    }

    /// A view of one node must never be taken for the cluster: all others would leave the mesh.
    #[test]
    fn a_view_of_the_own_node_is_read_but_never_complete() {
        let mut cache = WatchCache::default();
        let read = |cache: &mut WatchCache, names: &[&str]| {
            cache.apply_node(Event::Init);
            for name in names {
                cache.apply_node(Event::InitApply(named(name)));
            }
            cache.apply_node(Event::InitDone);
        };
        read(&mut cache, &["a", "b"]);
        for event in [Event::Init, Event::InitDone] {
            cache.apply_pool(event);
        }
        for event in [Event::Init, Event::InitDone] {
            cache.apply_mesh(event);
        }
        assert!(cache.is_complete() && cache.is_read());
        assert!(!cache.set_scope(Scope::Cluster), "as before");
        assert!(cache.set_scope(Scope::OwnNode));
        assert!(!cache.is_read() && !cache.is_complete());
        read(&mut cache, &["a"]);
        assert!(cache.is_read() && !cache.is_complete());
        // It becomes a candidate: the old view does not count.
        assert!(cache.set_scope(Scope::Cluster));
        assert!(!cache.is_read() && !cache.is_complete());
        read(&mut cache, &["a", "b"]);
        assert!(!cache.is_complete(), "the pools may have changed");
        for event in [Event::Init, Event::InitDone] {
            cache.apply_pool(event);
        }
        assert!(cache.is_complete());
    }

    #[test]
    fn a_kubelets_report_is_not_urgent_and_an_annotation_is_immediate() {
        let node = |version: &str, annotation: Option<&str>, address: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {
                    "name": "a", "resourceVersion": version,
                    "annotations": annotation.map_or(json!({}), |a| json!({"kilo.squat.ai/leader": a})),
                },
                "status": {
                    "conditions": [{"type": "Ready", "status": "True", "reason": version}],
                    "addresses": [{"type": "InternalIP", "address": address}],
                },
            }))
            .unwrap()
        };
        let mut cache = WatchCache::default();
        assert_eq!(cache.apply_node(Event::Apply(node("1", None, "10.0.0.1"))), Urgency::Soon);
        assert_eq!(cache.apply_node(Event::Apply(node("2", None, "10.0.0.1"))), Urgency::None);
        assert_eq!(cache.view.nodes["a"].resource_version, "2", "and is recorded all the same");
        assert_eq!(
            cache.apply_node(Event::Apply(node("3", Some("x"), "10.0.0.1"))),
            Urgency::Immediate
        );
        assert_eq!(cache.apply_node(Event::Apply(node("4", Some("x"), "10.0.0.2"))), Urgency::Soon);
        assert_eq!(
            cache.apply_node(Event::Delete(node("4", Some("x"), "10.0.0.2"))),
            Urgency::Soon
        );
    }

    #[test]
    fn a_deleted_or_empty_mesh_object_is_lost_and_its_text_stays_known() {
        let mut cache = WatchCache::default();
        for event in [Event::Init, Event::InitDone] {
            cache.apply_mesh(event);
        }
        assert_eq!((cache.view.mesh.clone(), cache.mesh_state), (None, MeshObjectState::Lost));
        cache.apply_mesh(Event::Apply(object("1", Some("text"))));
        assert_eq!(cache.mesh_state, MeshObjectState::Valid);
        cache.apply_mesh(Event::Delete(object("1", Some("text"))));
        let kept =
            |version: &str| MeshObject { resource_version: version.into(), text: "text".into() };
        assert_eq!(
            (cache.view.mesh.clone(), cache.mesh_state),
            (Some(kept("")), MeshObjectState::Lost)
        );
        cache.apply_mesh(Event::Apply(object("3", None)));
        assert_eq!(
            (cache.view.mesh.clone(), cache.mesh_state),
            (Some(kept("3")), MeshObjectState::Lost)
        );
        for event in [Event::Init, Event::InitApply(object("4", Some("text"))), Event::InitDone] {
            cache.apply_mesh(event);
        }
        assert_eq!(
            (cache.view.mesh.clone(), cache.mesh_state),
            (Some(kept("4")), MeshObjectState::Valid)
        );
    }

    #[test]
    fn an_older_generation_of_the_mesh_is_lost() {
        let keys = |i: u8| mesh::ExampleKeys { wireguard: [i; 32], control: [100 + i; 32] };
        let text = |generation: u32| {
            let text = mesh::example(&std::array::from_fn(|i| keys(i as u8 + 1)));
            let text = text.replace("generation = 1", &format!("generation = {generation}"));
            assert_eq!(mesh::parse(&text).unwrap().generation.0, u64::from(generation));
            text
        };
        let mut cache = WatchCache::default();
        cache.apply_mesh(Event::Apply(object("1", Some(&text(7)))));
        cache.apply_mesh(Event::Apply(object("2", Some(&text(6)))));
        let now = cache.view.mesh.clone().unwrap();
        assert_eq!((now.resource_version.as_str(), cache.mesh_state), ("2", MeshObjectState::Lost));
        assert_eq!(now.text.as_str(), text(7));
        cache.apply_mesh(Event::Apply(object("3", Some(&text(8)))));
        assert_eq!(cache.mesh_state, MeshObjectState::Valid);
        // A damaged one is written again. One by a newer leaderd, with fields unknown here, is left alone.
        cache.apply_mesh(Event::Apply(object("4", Some("nonsense"))));
        assert_eq!(
            (cache.mesh_state, cache.view.mesh.clone().unwrap().text.as_str()),
            (MeshObjectState::Lost, text(8).as_str())
        );
        let newer = text(9).replace("[policy]", "[policy]\nunheard_of = true");
        cache.apply_mesh(Event::Apply(object("5", Some(&newer))));
        assert_eq!(
            (cache.mesh_state, cache.view.mesh.clone().unwrap().text.as_str()),
            (MeshObjectState::Newer, text(8).as_str())
        );
        cache.apply_mesh(Event::Apply(object(
            "6",
            Some(&newer.replace("generation = 9", "generation = 8")),
        )));
        assert_eq!(cache.mesh_state, MeshObjectState::Lost);
        // Without a previous mesh the core decides.
        let mut cache = WatchCache::default();
        cache.apply_mesh(Event::Apply(object("1", Some("nonsense"))));
        assert_eq!(
            (cache.mesh_state, cache.view.mesh.unwrap().text.as_str()),
            (MeshObjectState::Valid, "nonsense")
        );
    }
}
