//! What the watches have told so far: the view, and whether it is whole.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use leaderd_core::cluster::{ClusterNode, ClusterView, MeshObject, Pool};
use leaderd_core::mesh;

use super::backoff::{Asked, Backoff, spread};
use super::convert;
use super::crd::LocationPool;
use super::prefixes::{self, Kind, Objects, Told};

/// Name of the ConfigMap that holds the mesh file.
pub const MESH_OBJECT: &str = "leaderd-mesh";

/// One word of a watch.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one at a time.
pub enum Word {
    Node(Event<Node>),
    Pool(Event<LocationPool>),
    Mesh(Event<ConfigMap>),
    Object(Kind, Told),
    /// The watch of these went wrong, and begins anew by itself.
    Failed(&'static str, watcher::Error),
}

/// How much of the cluster is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// All Nodes and pools: what the core's tasks are made from.
    #[default]
    All,
    /// This node's own Node, and no pool. [`leaderd_core::cluster::looks`] says whom that is enough for.
    Own,
}

/// The longest that a watch lasts before it goes on as a new request, in seconds; `kube` gives up a silent one 5 s later.
const WATCH: u64 = 290;

/// Drawn anew for each, so that the watches of daemons that started together do not end together.
fn config() -> Config {
    let seconds = spread(std::time::Duration::from_secs(WATCH)).as_secs();
    Config::default().timeout(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// All that is watched. Ends never; errors back off, and as long as the server asks for.
pub fn watch(
    client: &Client,
    asked: &Asked,
    namespace: &str,
    kinds: &[Kind],
    scope: Scope,
    me: &str,
) -> BoxStream<'static, Word> {
    let backoff = || Backoff::new(asked.clone());
    let of_nodes = match scope {
        Scope::All => config(),
        Scope::Own => config().fields(&format!("metadata.name={me}")),
    };
    let nodes = watcher(Api::<Node>::all(client.clone()), of_nodes.any_semantic())
        .backoff(backoff())
        .map(|word| word.map_or_else(|e| Word::Failed("nodes", e), Word::Node));
    let pools = (scope == Scope::All).then(|| {
        watcher(Api::<LocationPool>::all(client.clone()), config().any_semantic())
            .backoff(backoff())
            .map(|word| word.map_or_else(|e| Word::Failed("locationpools", e), Word::Pool))
            .boxed()
    });
    // The one object that is written with its version as precondition: the newest, and not what a cache has.
    let own = config().fields(&format!("metadata.name={MESH_OBJECT}"));
    let mesh = watcher(Api::<ConfigMap>::namespaced(client.clone(), namespace), own)
        .backoff(backoff())
        .map(|word| word.map_or_else(|e| Word::Failed("configmaps", e), Word::Mesh));
    let others = (scope == Scope::All).then(|| {
        prefixes::watch(client, asked, kinds, config)
            .map(|(kind, told)| Word::Object(kind, told))
            .boxed()
    });
    stream::select_all([nodes.boxed(), mesh.boxed()].into_iter().chain(pools).chain(others)).boxed()
}

/// The view, and what of it was read.
#[derive(Default, Debug)]
pub struct Seen {
    pub view: ClusterView,
    pub held: Held,
    scope: Scope,
    mesh_read: bool,
    new_mesh: Option<ConfigMap>,
    nodes: List<ClusterNode>,
    pools: List<Pool>,
    objects: Objects,
}

/// How the object stands that holds the mesh. If not good, the view has the last good text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Held {
    Good,
    /// It is gone, empty, damaged, or older than what was in force (made anew, or from a backup): to be written again, as no
    /// daemon goes back to an older generation.
    #[default]
    Lost,
    /// It cannot be read here and has a higher generation: a newer leaderd's, to be left alone.
    Foreign,
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

/// Whether something is to be done about what was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// Only the version is another, as after a kubelet's report.
    Nothing,
    Soon,
    AtOnce,
}

impl<T> List<T> {
    /// `news` compares an object with itself before.
    fn take(
        &mut self,
        event: Event<(String, T)>,
        into: &mut BTreeMap<String, T>,
        news: impl Fn(&T, &T) -> News,
    ) -> News {
        match event {
            Event::Init => self.new.clear(),
            Event::InitApply((name, item)) => drop(self.new.insert(name, item)),
            Event::InitDone => {
                *into = std::mem::take(&mut self.new);
                self.whole = true;
                return News::Soon;
            }
            Event::Apply((name, item)) => {
                let news = into.get(&name).map_or(News::Soon, |before| news(before, &item));
                into.insert(name, item);
                return news;
            }
            Event::Delete((name, _)) => {
                into.remove(&name);
                return News::Soon;
            }
        }
        News::Nothing
    }
}

impl Seen {
    /// From what an earlier run kept.
    pub fn from_kept(view: ClusterView) -> Self {
        Self { view, ..Self::default() }
    }

    /// These kinds are looked at too.
    pub fn looking_at(mut self, kinds: &[Kind]) -> Self {
        self.objects = Objects::of(kinds);
        self
    }

    /// Everything was read at least once since the start. Before that nothing is to be written.
    pub fn is_whole(&self) -> bool {
        self.scope == Scope::All && self.is_read() && self.objects.is_whole(self.has_mesh())
    }

    fn has_mesh(&self) -> bool {
        self.view.mesh.as_ref().is_some_and(|m| !m.text.is_empty())
    }

    /// What is to be read and was not yet, for people.
    pub fn unread(&self) -> Vec<&'static str> {
        let all = [
            (self.nodes.whole, "nodes"),
            (self.pools.whole || self.scope == Scope::Own, "locationpools.leaderd.io"),
            (self.mesh_read, "ConfigMap leaderd-mesh"),
        ];
        let all = all.into_iter().filter(|(read, _)| !read).map(|(_, name)| name);
        let object = self.objects.unread(self.has_mesh()).filter(|_| self.scope == Scope::All);
        all.chain(object.map(Kind::name)).collect()
    }

    /// As much was read as is looked at.
    pub fn is_read(&self) -> bool {
        let pools = self.pools.whole || self.scope == Scope::Own;
        self.nodes.whole && pools && self.mesh_read
    }

    /// Other Nodes and pools are read anew, or not at all any more. True if that is another scope than before.
    pub fn look_at(&mut self, scope: Scope) -> bool {
        if std::mem::replace(&mut self.scope, scope) == scope {
            return false;
        }
        self.nodes.whole = false;
        self.pools = List::default();
        self.objects.forget();
        if scope == Scope::Own {
            self.view.pools.clear();
        }
        true
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    pub fn node(&mut self, event: Event<Node>) -> News {
        let event = map(event, |n| {
            let node = convert::node(n);
            (node.name.clone(), node)
        });
        self.nodes.take(event, &mut self.view.nodes, |before, now| {
            let resource_version = now.resource_version.clone();
            if before.annotations != now.annotations {
                News::AtOnce
            } else if (ClusterNode { resource_version, ..before.clone() }) == *now {
                News::Nothing
            } else {
                News::Soon
            }
        })
    }

    pub fn pool(&mut self, event: Event<LocationPool>) -> News {
        let event = map(event, |p| {
            let pool = Pool::from(p);
            (pool.name.clone(), pool)
        });
        self.pools.take(event, &mut self.view.pools, |before, now| {
            let resource_version = now.resource_version.clone();
            let same = (Pool { resource_version, ..before.clone() }) == *now;
            if same { News::Nothing } else { News::Soon }
        })
    }

    pub fn object(&mut self, kind: Kind, told: Told) -> News {
        let before = self.is_whole();
        let news = self.objects.take(kind, told, &mut self.view);
        if news || before != self.is_whole() { News::Soon } else { News::Nothing }
    }

    pub fn mesh(&mut self, event: Event<ConfigMap>) {
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

    /// Where the object was deleted, or holds what no daemon would take, the text that was in force stays known.
    fn set_mesh(&mut self, object: Option<ConfigMap>) {
        let before = self.view.mesh.take().map(|m| m.text);
        let version =
            object.as_ref().map(|o| o.metadata.resource_version.clone().unwrap_or_default());
        let found = object.and_then(convert::mesh_text);
        self.held = Held::of(found.as_deref(), before.as_deref());
        let text = if self.held == Held::Good { found } else { before.or(found) };
        self.view.mesh = match (version, text) {
            (None, None) => None,
            (version, text) => Some(MeshObject {
                resource_version: version.unwrap_or_default(),
                text: text.unwrap_or_default(),
            }),
        };
    }
}

impl Held {
    fn of(found: Option<&str>, before: Option<&str>) -> Self {
        let Some(found) = found else { return Self::Lost };
        let before = before.and_then(|text| mesh::parse(text).ok());
        match (mesh::parse(found), before) {
            (_, None) => Self::Good,
            (Ok(found), Some(before)) => {
                let older = found.name == before.name && found.generation < before.generation;
                if older { Self::Lost } else { Self::Good }
            }
            (Err(mistakes), Some(before)) => {
                let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                tracing::error!(
                    error = mistakes.join("\n"),
                    "the mesh file of the cluster has mistakes; the one in use stays"
                );
                let newer = generation(found).is_some_and(|g| g > before.generation.0);
                if newer { Self::Foreign } else { Self::Lost }
            }
        }
    }
}

/// The generation that a text gives itself, whatever else is in it.
fn generation(text: &str) -> Option<u64> {
    let value = |line: &str| {
        line.trim().strip_prefix("generation")?.trim_start().strip_prefix('=')?.trim().parse().ok()
    };
    text.lines().find_map(value)
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
    fn a_half_list_is_never_looked_at() {
        let mut seen = Seen::default();
        for event in [Event::Init, Event::InitApply(named("a")), Event::InitApply(named("b"))] {
            seen.node(event);
        }
        assert!(seen.view.nodes.is_empty());
        seen.node(Event::InitDone);
        assert_eq!(seen.view.nodes.len(), 2);
        // Read anew after an outage: who went in the meantime is gone, but only once the list is whole.
        for event in [Event::Init, Event::InitApply(named("b"))] {
            seen.node(event);
        }
        assert_eq!(seen.view.nodes.len(), 2);
        seen.node(Event::InitDone);
        assert_eq!(seen.view.nodes.keys().collect::<Vec<_>>(), ["b"]);
        assert!(!seen.is_whole(), "pools and the mesh were not read");
        for event in [Event::Init, Event::InitDone] {
            seen.pool(event);
        }
        for event in [Event::Init, Event::InitDone] {
            seen.mesh(event);
        }
        assert!(seen.is_whole());
    }

    /// A view of one node must never be taken for the cluster: all others would leave the mesh.
    #[test]
    fn who_looks_at_its_own_node_alone_has_read_it_and_has_no_whole_view() {
        let mut seen = Seen::default();
        let read = |seen: &mut Seen, names: &[&str]| {
            seen.node(Event::Init);
            for name in names {
                seen.node(Event::InitApply(named(name)));
            }
            seen.node(Event::InitDone);
        };
        read(&mut seen, &["a", "b"]);
        for event in [Event::Init, Event::InitDone] {
            seen.pool(event);
        }
        for event in [Event::Init, Event::InitDone] {
            seen.mesh(event);
        }
        assert!(seen.is_whole() && seen.is_read());
        assert!(!seen.look_at(Scope::All), "as before");
        assert!(seen.look_at(Scope::Own));
        assert!(!seen.is_read() && !seen.is_whole());
        read(&mut seen, &["a"]);
        assert!(seen.is_read() && !seen.is_whole());
        // It becomes a candidate: what it had of old is no view.
        assert!(seen.look_at(Scope::All));
        assert!(!seen.is_read() && !seen.is_whole());
        read(&mut seen, &["a", "b"]);
        assert!(!seen.is_whole(), "the pools may have changed");
        for event in [Event::Init, Event::InitDone] {
            seen.pool(event);
        }
        assert!(seen.is_whole());
    }

    #[test]
    fn a_kubelets_report_is_no_news_and_an_annotation_is_news_at_once() {
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
        let mut seen = Seen::default();
        assert_eq!(seen.node(Event::Apply(node("1", None, "10.0.0.1"))), News::Soon);
        assert_eq!(seen.node(Event::Apply(node("2", None, "10.0.0.1"))), News::Nothing);
        assert_eq!(seen.view.nodes["a"].resource_version, "2", "and is known all the same");
        assert_eq!(seen.node(Event::Apply(node("3", Some("x"), "10.0.0.1"))), News::AtOnce);
        assert_eq!(seen.node(Event::Apply(node("4", Some("x"), "10.0.0.2"))), News::Soon);
        assert_eq!(seen.node(Event::Delete(node("4", Some("x"), "10.0.0.2"))), News::Soon);
    }

    #[test]
    fn a_mesh_that_was_deleted_or_emptied_stays_known_and_counts_as_lost() {
        let mut seen = Seen::default();
        for event in [Event::Init, Event::InitDone] {
            seen.mesh(event);
        }
        assert_eq!((seen.view.mesh.clone(), seen.held), (None, Held::Lost));
        seen.mesh(Event::Apply(object("1", Some("text"))));
        assert_eq!(seen.held, Held::Good);
        seen.mesh(Event::Delete(object("1", Some("text"))));
        let kept =
            |version: &str| MeshObject { resource_version: version.into(), text: "text".into() };
        assert_eq!((seen.view.mesh.clone(), seen.held), (Some(kept("")), Held::Lost));
        seen.mesh(Event::Apply(object("3", None)));
        assert_eq!((seen.view.mesh.clone(), seen.held), (Some(kept("3")), Held::Lost));
        for event in [Event::Init, Event::InitApply(object("4", Some("text"))), Event::InitDone] {
            seen.mesh(event);
        }
        assert_eq!((seen.view.mesh.clone(), seen.held), (Some(kept("4")), Held::Good));
    }

    #[test]
    fn a_mesh_of_an_older_generation_is_not_gone_back_to() {
        let keys = |i: u8| mesh::ExampleKeys { wireguard: [i; 32], control: [100 + i; 32] };
        let text = |generation: u32| {
            let text = mesh::example(&std::array::from_fn(|i| keys(i as u8 + 1)));
            let text = text.replace("generation = 1", &format!("generation = {generation}"));
            assert_eq!(mesh::parse(&text).unwrap().generation.0, u64::from(generation));
            text
        };
        let mut seen = Seen::default();
        seen.mesh(Event::Apply(object("1", Some(&text(7)))));
        seen.mesh(Event::Apply(object("2", Some(&text(6)))));
        let now = seen.view.mesh.clone().unwrap();
        assert_eq!((now.resource_version.as_str(), seen.held), ("2", Held::Lost));
        assert_eq!(now.text, text(7));
        seen.mesh(Event::Apply(object("3", Some(&text(8)))));
        assert_eq!(seen.held, Held::Good);
        // Damaged: written again. By a newer leaderd, which says what is unknown here: not fought over.
        seen.mesh(Event::Apply(object("4", Some("nonsense"))));
        assert_eq!((seen.held, seen.view.mesh.clone().unwrap().text), (Held::Lost, text(8)));
        let newer = text(9).replace("[policy]", "[policy]\nunheard_of = true");
        seen.mesh(Event::Apply(object("5", Some(&newer))));
        assert_eq!((seen.held, seen.view.mesh.clone().unwrap().text), (Held::Foreign, text(8)));
        seen.mesh(Event::Apply(object(
            "6",
            Some(&newer.replace("generation = 9", "generation = 8")),
        )));
        assert_eq!(seen.held, Held::Lost);
        // Where nothing good was ever seen it is for the core to say.
        let mut seen = Seen::default();
        seen.mesh(Event::Apply(object("1", Some("nonsense"))));
        assert_eq!((seen.held, seen.view.mesh.unwrap().text), (Held::Good, "nonsense".to_owned()));
    }
}
