//! What objects of others say of addresses: nodes' prefixes (Cilium's and Calico's own), and where Services are. A kind that the
//! cluster does not know is asked for again now and then, and watched once it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use ipnet::IpNet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use leaderd_core::cluster::{ClusterView, PrefixSource};

use super::backoff::{Asked, Backoff, spread};
use super::convert;

/// How long a kind that is not there is left alone: a CNI comes seldom, and every daemon asks.
const ABSENT: Duration = Duration::from_secs(600);
/// The same at first, where it was there.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Cilium,
    Calico,
    Services,
}

impl Kind {
    /// Those that matter where prefixes are known from this source.
    pub fn all(source: PrefixSource) -> Vec<Self> {
        let of_nodes: &[Self] = match source {
            PrefixSource::Auto => &[Self::Cilium, Self::Calico],
            PrefixSource::Cilium => &[Self::Cilium],
            PrefixSource::Calico => &[Self::Calico],
            PrefixSource::Node | PrefixSource::Annotation => &[],
        };
        of_nodes.iter().copied().chain([Self::Services]).collect()
    }

    /// For the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cilium => "ciliumnodes",
            Self::Calico => "blockaffinities",
            Self::Services => "servicecidrs",
        }
    }

    fn resource(self) -> ApiResource {
        let (group, version, kind) = match self {
            Self::Cilium => ("cilium.io", "v2", "CiliumNode"),
            Self::Calico => ("crd.projectcalico.org", "v1", "BlockAffinity"),
            Self::Services => ("networking.k8s.io", "v1", "ServiceCIDR"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), self.name())
    }

    /// Whose prefixes an object names (of Services: nobody's), and which.
    fn read(self, object: &DynamicObject) -> (String, Vec<IpNet>) {
        match self {
            Self::Cilium => convert::cilium_node(object),
            Self::Calico => convert::block_affinity(object),
            Self::Services => (String::new(), convert::service_cidr(object)),
        }
    }
}

/// What a watch of a kind tells.
#[derive(Debug)]
pub enum Told {
    Event(Box<Event<DynamicObject>>),
    /// The cluster does not know the kind, or does not let this daemon look: `hint` says the latter.
    Absent {
        hint: Option<String>,
    },
    Failed(watcher::Error),
}

impl Told {
    fn of(word: Result<Event<DynamicObject>, watcher::Error>) -> Self {
        use watcher::Error::{InitialListFailed, WatchStartFailed};
        match word {
            Ok(event) => Self::Event(Box::new(event)),
            Err(InitialListFailed(kube::Error::Api(s)) | WatchStartFailed(kube::Error::Api(s)))
                if s.code == 404 || s.code == 403 =>
            {
                Self::Absent { hint: (s.code == 403).then(|| s.message.clone()) }
            }
            Err(error) => Self::Failed(error),
        }
    }
}

type Words = BoxStream<'static, Result<Event<DynamicObject>, watcher::Error>>;

/// How long nothing is asked.
struct Pauses {
    /// A kind that is not there, or that this daemon may not see.
    absent: Duration,
    /// The same at first, where it was there: the server may have been starting.
    again: Duration,
    /// After anything else that went wrong.
    backoff: Backoff,
    /// It was there.
    read: bool,
}

impl Pauses {
    fn new(asked: &Asked) -> Self {
        let backoff = Backoff::new(asked.clone());
        Self { absent: ABSENT, again: AGAIN, backoff, read: false }
    }

    fn after(&mut self, told: &Told) -> Option<Duration> {
        match told {
            Told::Event(event) => {
                if !matches!(**event, Event::Init) {
                    self.read = true;
                    self.backoff.reset();
                }
                None
            }
            Told::Absent { .. } if std::mem::take(&mut self.read) => Some(spread(self.again)),
            Told::Absent { .. } => Some(spread(self.absent)),
            Told::Failed(_) => self.backoff.next(),
        }
    }
}

/// What the watch of a kind tells, which `begin` begins. It ends never. After a refusal it begins anew: `kube` would go on from where it
/// was and list no more.
fn told(begin: impl Fn() -> Words + Send + 'static, pauses: Pauses) -> BoxStream<'static, Told> {
    let words = begin();
    let state = (words, begin, pauses, None::<Duration>);
    stream::unfold(state, |(mut words, begin, mut pauses, pause)| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let told = Told::of(words.next().await?);
        let pause = pauses.after(&told);
        if matches!(told, Told::Absent { .. }) {
            words = begin();
        }
        Some((told, (words, begin, pauses, pause)))
    })
    .boxed()
}

/// The watches of these kinds.
pub fn watch(
    client: &Client,
    asked: &Asked,
    kinds: &[Kind],
    config: fn() -> Config,
) -> BoxStream<'static, (Kind, Told)> {
    let all = kinds.iter().map(|&kind| {
        let api = Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
        let begin = move || watcher(api.clone(), config().any_semantic()).boxed();
        told(begin, Pauses::new(asked)).map(move |told| (kind, told)).boxed()
    });
    stream::select_all(all).boxed()
}

/// The objects of each kind that is looked at, by name of the object.
#[derive(Debug, Default)]
pub struct Objects(BTreeMap<Kind, Listed>);

/// A list, and the one that is being read beside it.
#[derive(Debug, Default)]
struct Listed {
    now: Named,
    new: Named,
    /// `None`: not read yet. `Some(false)`: the cluster knows no such kind.
    there: Option<bool>,
}

/// By name of the object: whose, and which.
type Named = BTreeMap<String, (String, Vec<IpNet>)>;

impl Objects {
    pub fn of(kinds: &[Kind]) -> Self {
        Self(kinds.iter().map(|k| (*k, Listed::default())).collect())
    }

    /// They are read anew.
    pub fn forget(&mut self) {
        self.0.values_mut().for_each(|list| *list = Listed::default());
    }

    /// Every kind was read, or is known not to be there.
    pub fn is_whole(&self, mesh: bool) -> bool {
        self.unread(mesh).is_none()
    }

    /// A kind that has yet to be read. Where Services are matters when a mesh is made; after that it is a problem to be told at most.
    pub fn unread(&self, mesh: bool) -> Option<Kind> {
        let unread = |(kind, list): (&Kind, &Listed)| {
            let wanted = list.there.is_none() && !(mesh && *kind == Kind::Services);
            wanted.then_some(*kind)
        };
        self.0.iter().find_map(unread)
    }

    /// Takes in what a watch tells. True if the view says something else now.
    pub fn take(&mut self, kind: Kind, told: Told, view: &mut ClusterView) -> bool {
        let list = self.0.entry(kind).or_default();
        match told {
            Told::Failed(_) => return false,
            // Rights may be away for a moment. What was seen with them is likelier than that there is nothing.
            Told::Absent { hint: Some(_) } if list.there == Some(true) => return false,
            Told::Absent { .. } => *list = Listed { there: Some(false), ..Listed::default() },
            Told::Event(event) => match *event {
                Event::Init => {
                    list.new.clear();
                    return false;
                }
                Event::InitApply(object) => {
                    list.new.insert(name(&object), kind.read(&object));
                    return false;
                }
                Event::InitDone => {
                    list.now = std::mem::take(&mut list.new);
                    list.there = Some(true);
                }
                Event::Apply(object) => drop(list.now.insert(name(&object), kind.read(&object))),
                Event::Delete(object) => drop(list.now.remove(&name(&object))),
            },
        }
        list.put(kind, view)
    }
}

impl Listed {
    fn put(&self, kind: Kind, view: &mut ClusterView) -> bool {
        let mut by_node: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for (whose, nets) in self.now.values() {
            by_node.entry(whose.clone()).or_default().extend(nets);
        }
        by_node.values_mut().for_each(|nets| nets.sort());
        let there = self.there == Some(true);
        let place = match kind {
            Kind::Cilium => &mut view.cni.cilium,
            Kind::Calico => &mut view.cni.calico,
            Kind::Services => {
                let all = by_node.into_values().flatten().collect();
                return std::mem::replace(&mut view.services, all) != view.services;
            }
        };
        let now = there.then_some(by_node);
        let news = *place != now;
        *place = now;
        news
    }
}

fn name(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, spec: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn event(event: Event<DynamicObject>) -> Told {
        Told::Event(Box::new(event))
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn a_source_that_was_chosen_is_the_only_one_that_is_watched() {
        assert_eq!(Kind::all(PrefixSource::Auto), [Kind::Cilium, Kind::Calico, Kind::Services]);
        assert_eq!(Kind::all(PrefixSource::Calico), [Kind::Calico, Kind::Services]);
        assert_eq!(Kind::all(PrefixSource::Annotation), [Kind::Services]);
    }

    #[test]
    fn nothing_is_said_of_a_list_before_it_is_whole() {
        let kinds = [Kind::Cilium, Kind::Services];
        let (mut all, mut view) = (Objects::of(&kinds), ClusterView::default());
        let a = object("a", json!({"ipam": {"podCIDRs": ["10.1.0.0/24"]}}));
        for word in [Event::Init, Event::InitApply(a)] {
            assert!(!all.take(Kind::Cilium, event(word), &mut view));
        }
        assert_eq!((view.cni.cilium.clone(), all.is_whole(true)), (None, false));
        assert!(all.take(Kind::Cilium, event(Event::InitDone), &mut view));
        assert_eq!(view.cni.cilium, Some([("a".to_owned(), nets(&["10.1.0.0/24"]))].into()));
        assert!(!all.is_whole(false), "Service ranges were not read");
        assert!(all.is_whole(true), "a mesh that is there has its range");
        assert!(!all.take(Kind::Services, Told::Absent { hint: None }, &mut view));
        assert!(all.is_whole(false));
        // The same again is no news; another prefix is; a CRD that was removed is.
        let a = |net: &str| event(Event::Apply(object("a", json!({"ipam": {"podCIDRs": [net]}}))));
        assert!(!all.take(Kind::Cilium, a("10.1.0.0/24"), &mut view));
        assert!(all.take(Kind::Cilium, a("10.2.0.0/24"), &mut view));
        assert!(all.take(Kind::Cilium, Told::Absent { hint: None }, &mut view));
        assert_eq!(view.cni.cilium, None);
    }

    #[test]
    fn a_kind_that_was_read_and_is_refused_stays_as_it_was() {
        let (mut all, mut view) = (Objects::of(&[Kind::Cilium]), ClusterView::default());
        let a = object("a", json!({"ipam": {"podCIDRs": ["10.1.0.0/24"]}}));
        for word in [Event::Init, Event::InitApply(a), Event::InitDone] {
            all.take(Kind::Cilium, event(word), &mut view);
        }
        let seen = view.cni.cilium.clone();
        let refused = || Told::Absent { hint: Some("forbidden".into()) };
        assert!(!all.take(Kind::Cilium, refused(), &mut view));
        assert!(seen.is_some() && view.cni.cilium == seen);
        // Never read: as if there were none.
        let (mut all, mut view) = (Objects::of(&[Kind::Cilium]), ClusterView::default());
        all.take(Kind::Cilium, refused(), &mut view);
        assert!(all.is_whole(false) && view.cni.cilium.is_none());
    }

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure("no", "no").with_code(code).boxed())
    }

    #[tokio::test]
    async fn after_a_refusal_a_kind_is_listed_anew() {
        for code in [403, 404] {
            let begin = move || {
                let refused = watcher::Error::WatchStartFailed(answer(code));
                stream::iter([Ok(Event::Init), Ok(Event::InitDone), Err(refused)]).boxed()
            };
            let short = Duration::from_millis(10);
            let pauses = Pauses { absent: short, again: short, ..Pauses::new(&Asked::default()) };
            let words: Vec<Told> = told(begin, pauses).take(6).collect().await;
            let lists = words
                .iter()
                .filter(|t| matches!(t, Told::Event(e) if matches!(**e, Event::InitDone)));
            assert_eq!(lists.count(), 2, "{words:?}");
        }
    }

    #[test]
    fn a_kind_that_is_refused_is_asked_for_soon_where_it_was_there_and_pauses_are_the_servers() {
        let asked = Asked::default();
        let mut pauses = Pauses::new(&asked);
        let absent = || Told::Absent { hint: None };
        assert!(pauses.after(&absent()) >= Some(ABSENT / 2));
        assert_eq!(pauses.after(&event(Event::InitDone)), None);
        assert!(pauses.after(&absent()) <= Some(AGAIN));
        assert!(pauses.after(&absent()) >= Some(ABSENT / 2));
        let mut failed =
            || pauses.after(&Told::Failed(watcher::Error::InitialListFailed(answer(500))));
        assert!(failed() < Some(Duration::from_secs(1)));
        let headers = [(hyper::header::RETRY_AFTER, "60".parse().unwrap())].into_iter().collect();
        asked.hear(hyper::StatusCode::TOO_MANY_REQUESTS, &headers);
        assert!(failed() > Some(Duration::from_secs(50)), "it asked for a minute");
    }

    #[test]
    fn a_nodes_blocks_come_and_go_one_by_one() {
        let (mut all, mut view) = (Objects::of(&[Kind::Calico]), ClusterView::default());
        let block = |name: &str, node: &str, cidr: &str| {
            object(
                name,
                json!({"node": node, "cidr": cidr, "state": "confirmed", "deleted": "false"}),
            )
        };
        let first = block("a-1", "a", "192.168.1.64/26");
        for word in [Event::Init, Event::InitApply(first.clone()), Event::InitDone] {
            all.take(Kind::Calico, event(word), &mut view);
        }
        let second = block("a-2", "a", "192.168.1.0/26");
        assert!(all.take(Kind::Calico, event(Event::Apply(second)), &mut view));
        let of_a = |view: &ClusterView| view.cni.calico.as_ref().unwrap().get("a").cloned();
        assert_eq!(of_a(&view), Some(nets(&["192.168.1.0/26", "192.168.1.64/26"])));
        all.take(Kind::Calico, event(Event::Delete(first)), &mut view);
        assert_eq!(of_a(&view), Some(nets(&["192.168.1.0/26"])));
    }

    #[test]
    fn service_ranges_are_told() {
        let (mut all, mut view) = (Objects::of(&[Kind::Services]), ClusterView::default());
        let one = object("kubernetes", json!({"cidrs": ["10.96.0.0/12", "fd00:96::/112"]}));
        for word in [Event::Init, Event::InitApply(one)] {
            all.take(Kind::Services, event(word), &mut view);
        }
        assert!(all.take(Kind::Services, event(Event::InitDone), &mut view));
        assert_eq!(view.services, nets(&["10.96.0.0/12", "fd00:96::/112"]));
    }
}
