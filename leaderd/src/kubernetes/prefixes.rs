//! Watches objects of others that define prefixes: nodes' prefixes (Cilium's and Calico's own), and Service ranges. A kind that the
//! cluster does not know is listed again now and then, and watched once it exists.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use ipnet::IpNet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use leaderd_core::kubernetes::{ClusterView, PrefixSource};

use super::backoff::{Backoff, RetryAfter, spread};
use super::convert;

/// Pause before a missing kind is listed again: CNIs are rarely installed, and every daemon lists them.
const ABSENT_DELAY: Duration = Duration::from_secs(600);
/// The same at first, if the kind existed before.
const LOST_DELAY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PrefixKind {
    Cilium,
    Calico,
    Services,
}

impl PrefixKind {
    /// Returns the kinds to watch for a source of prefixes.
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

    /// Returns the node that an object belongs to (empty for Services), and its prefixes.
    fn read(self, object: &DynamicObject) -> (String, Vec<IpNet>) {
        match self {
            Self::Cilium => convert::cilium_node(object),
            Self::Calico => convert::block_affinity(object),
            Self::Services => (String::new(), convert::service_cidr(object)),
        }
    }
}

/// An event of the watch of one kind.
#[derive(Debug)]
pub enum PrefixEvent {
    Event(Box<Event<DynamicObject>>),
    /// The cluster does not know the kind, or this daemon may not read it: then `hint` says so.
    Absent {
        hint: Option<String>,
    },
    Failed(watcher::Error),
}

impl PrefixEvent {
    fn of(event: Result<Event<DynamicObject>, watcher::Error>) -> Self {
        use watcher::Error::{InitialListFailed, WatchStartFailed};
        match event {
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

type Events = BoxStream<'static, Result<Event<DynamicObject>, watcher::Error>>;

/// Pauses after the events of one watch.
struct RetryDelays {
    /// After a kind is missing, or may not be read.
    absent: Duration,
    /// The same at first, if the kind existed: the server may have been starting.
    lost: Duration,
    /// After any other failure.
    backoff: Backoff,
    /// The kind has existed since the last pause.
    read: bool,
}

impl RetryDelays {
    fn new(retry_after: &RetryAfter) -> Self {
        let backoff = Backoff::new(retry_after.clone());
        Self { absent: ABSENT_DELAY, lost: LOST_DELAY, backoff, read: false }
    }

    fn after(&mut self, event: &PrefixEvent) -> Option<Duration> {
        match event {
            PrefixEvent::Event(event) => {
                if !matches!(**event, Event::Init) {
                    self.read = true;
                    self.backoff.reset();
                }
                None
            }
            PrefixEvent::Absent { .. } if std::mem::take(&mut self.read) => Some(spread(self.lost)),
            PrefixEvent::Absent { .. } => Some(spread(self.absent)),
            PrefixEvent::Failed(_) => self.backoff.next(),
        }
    }
}

/// Returns the events of a watch, which `start` starts. The stream never ends. After a refusal the watch starts again: `kube` would
/// continue where it was, without a list.
fn events(
    start: impl Fn() -> Events + Send + 'static,
    delays: RetryDelays,
) -> BoxStream<'static, PrefixEvent> {
    let events = start();
    let state = (events, start, delays, None::<Duration>);
    stream::unfold(state, |(mut events, start, mut delays, pause)| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let event = PrefixEvent::of(events.next().await?);
        let pause = delays.after(&event);
        if matches!(event, PrefixEvent::Absent { .. }) {
            events = start();
        }
        Some((event, (events, start, delays, pause)))
    })
    .boxed()
}

/// Returns the events of the watches of these kinds.
pub fn watch(
    client: &Client,
    retry_after: &RetryAfter,
    kinds: &[PrefixKind],
    config: fn() -> Config,
) -> BoxStream<'static, (PrefixKind, PrefixEvent)> {
    let all = kinds.iter().map(|&kind| {
        let api = Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
        let start = move || watcher(api.clone(), config().any_semantic()).boxed();
        events(start, RetryDelays::new(retry_after)).map(move |event| (kind, event)).boxed()
    });
    stream::select_all(all).boxed()
}

/// The objects of each kind that is watched.
#[derive(Debug, Default)]
pub struct PrefixObjects(BTreeMap<PrefixKind, Listing>);

/// The current list, and the one that is being read beside it.
#[derive(Debug, Default)]
struct Listing {
    now: Named,
    new: Named,
    /// `None`: not read yet. `Some(false)`: the cluster does not know the kind.
    exists: Option<bool>,
}

/// Node and prefixes of each object, by its name.
type Named = BTreeMap<String, (String, Vec<IpNet>)>;

impl PrefixObjects {
    pub fn of(kinds: &[PrefixKind]) -> Self {
        Self(kinds.iter().map(|k| (*k, Listing::default())).collect())
    }

    /// Forgets what was read: all kinds are listed again.
    pub fn forget(&mut self) {
        self.0.values_mut().for_each(|list| *list = Listing::default());
    }

    /// True if every kind was read, or is known not to exist.
    pub fn is_complete(&self, mesh: bool) -> bool {
        self.unread(mesh).is_none()
    }

    /// Returns a kind that has yet to be read. Service ranges matter only when a mesh is made; after that they can only be a problem.
    pub fn unread(&self, mesh: bool) -> Option<PrefixKind> {
        let unread = |(kind, list): (&PrefixKind, &Listing)| {
            let wanted = list.exists.is_none() && !(mesh && *kind == PrefixKind::Services);
            wanted.then_some(*kind)
        };
        self.0.iter().find_map(unread)
    }

    /// Applies an event. True if the view changes.
    pub fn apply(&mut self, kind: PrefixKind, event: PrefixEvent, view: &mut ClusterView) -> bool {
        let list = self.0.entry(kind).or_default();
        match event {
            PrefixEvent::Failed(_) => return false,
            // Permissions may be missing for a moment. The objects seen before are likelier than none.
            PrefixEvent::Absent { hint: Some(_) } if list.exists == Some(true) => return false,
            PrefixEvent::Absent { .. } => {
                *list = Listing { exists: Some(false), ..Listing::default() }
            }
            PrefixEvent::Event(event) => match *event {
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
                    list.exists = Some(true);
                }
                Event::Apply(object) => drop(list.now.insert(name(&object), kind.read(&object))),
                Event::Delete(object) => drop(list.now.remove(&name(&object))),
            },
        }
        list.update(kind, view)
    }
}

impl Listing {
    fn update(&self, kind: PrefixKind, view: &mut ClusterView) -> bool {
        let mut by_node: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for (whose, nets) in self.now.values() {
            by_node.entry(whose.clone()).or_default().extend(nets);
        }
        by_node.values_mut().for_each(|nets| nets.sort());
        let exists = self.exists == Some(true);
        let place = match kind {
            PrefixKind::Cilium => &mut view.cni.cilium,
            PrefixKind::Calico => &mut view.cni.calico,
            PrefixKind::Services => {
                let all = by_node.into_values().flatten().collect();
                return std::mem::replace(&mut view.services, all) != view.services;
            }
        };
        let now = exists.then_some(by_node);
        let changed = *place != now;
        *place = now;
        changed
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

    fn event(event: Event<DynamicObject>) -> PrefixEvent {
        PrefixEvent::Event(Box::new(event))
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn only_the_chosen_source_is_watched() {
        assert_eq!(
            PrefixKind::all(PrefixSource::Auto),
            [PrefixKind::Cilium, PrefixKind::Calico, PrefixKind::Services]
        );
        assert_eq!(
            PrefixKind::all(PrefixSource::Calico),
            [PrefixKind::Calico, PrefixKind::Services]
        );
        assert_eq!(PrefixKind::all(PrefixSource::Annotation), [PrefixKind::Services]);
    }

    #[test]
    fn a_partial_list_is_not_used() {
        let kinds = [PrefixKind::Cilium, PrefixKind::Services];
        let (mut all, mut view) = (PrefixObjects::of(&kinds), ClusterView::default());
        let a = object("a", json!({"ipam": {"podCIDRs": ["10.1.0.0/24"]}}));
        for e in [Event::Init, Event::InitApply(a)] {
            assert!(!all.apply(PrefixKind::Cilium, event(e), &mut view));
        }
        assert_eq!((view.cni.cilium.clone(), all.is_complete(true)), (None, false));
        assert!(all.apply(PrefixKind::Cilium, event(Event::InitDone), &mut view));
        assert_eq!(view.cni.cilium, Some([("a".to_owned(), nets(&["10.1.0.0/24"]))].into()));
        assert!(!all.is_complete(false), "Service ranges were not read");
        assert!(all.is_complete(true), "an existing mesh has its range");
        assert!(!all.apply(PrefixKind::Services, PrefixEvent::Absent { hint: None }, &mut view));
        assert!(all.is_complete(false));
        // The same prefixes again change nothing; another prefix does, and so does the removal of the CRD.
        let a = |net: &str| event(Event::Apply(object("a", json!({"ipam": {"podCIDRs": [net]}}))));
        assert!(!all.apply(PrefixKind::Cilium, a("10.1.0.0/24"), &mut view));
        assert!(all.apply(PrefixKind::Cilium, a("10.2.0.0/24"), &mut view));
        assert!(all.apply(PrefixKind::Cilium, PrefixEvent::Absent { hint: None }, &mut view));
        assert_eq!(view.cni.cilium, None);
    }

    #[test]
    fn objects_stay_if_reading_them_becomes_forbidden() {
        let (mut all, mut view) =
            (PrefixObjects::of(&[PrefixKind::Cilium]), ClusterView::default());
        let a = object("a", json!({"ipam": {"podCIDRs": ["10.1.0.0/24"]}}));
        for e in [Event::Init, Event::InitApply(a), Event::InitDone] {
            all.apply(PrefixKind::Cilium, event(e), &mut view);
        }
        let seen = view.cni.cilium.clone();
        let refused = || PrefixEvent::Absent { hint: Some("forbidden".into()) };
        assert!(!all.apply(PrefixKind::Cilium, refused(), &mut view));
        assert!(seen.is_some() && view.cni.cilium == seen);
        // Never read: as if none existed.
        let (mut all, mut view) =
            (PrefixObjects::of(&[PrefixKind::Cilium]), ClusterView::default());
        all.apply(PrefixKind::Cilium, refused(), &mut view);
        assert!(all.is_complete(false) && view.cni.cilium.is_none());
    }

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure("no", "no").with_code(code).boxed())
    }

    #[tokio::test]
    async fn a_kind_is_listed_again_after_a_refusal() {
        for code in [403, 404] {
            let start = move || {
                let refused = watcher::Error::WatchStartFailed(answer(code));
                stream::iter([Ok(Event::Init), Ok(Event::InitDone), Err(refused)]).boxed()
            };
            let short = Duration::from_millis(10);
            let delays = RetryDelays {
                absent: short,
                lost: short,
                ..RetryDelays::new(&RetryAfter::default())
            };
            let all: Vec<PrefixEvent> = events(start, delays).take(6).collect().await;
            let lists = all
                .iter()
                .filter(|t| matches!(t, PrefixEvent::Event(e) if matches!(**e, Event::InitDone)));
            assert_eq!(lists.count(), 2, "{all:?}");
        }
    }

    #[test]
    fn a_lost_kind_is_listed_again_soon_and_retry_after_is_respected() {
        let retry_after = RetryAfter::default();
        let mut delays = RetryDelays::new(&retry_after);
        let absent = || PrefixEvent::Absent { hint: None };
        assert!(delays.after(&absent()) >= Some(ABSENT_DELAY / 2));
        assert_eq!(delays.after(&event(Event::InitDone)), None);
        assert!(delays.after(&absent()) <= Some(LOST_DELAY));
        assert!(delays.after(&absent()) >= Some(ABSENT_DELAY / 2));
        let mut failed =
            || delays.after(&PrefixEvent::Failed(watcher::Error::InitialListFailed(answer(500))));
        assert!(failed() < Some(Duration::from_secs(1)));
        let headers = [(hyper::header::RETRY_AFTER, "60".parse().unwrap())].into_iter().collect();
        retry_after.record(hyper::StatusCode::TOO_MANY_REQUESTS, &headers);
        assert!(failed() > Some(Duration::from_secs(50)), "it asked for a minute");
    }

    #[test]
    fn a_nodes_blocks_are_added_and_removed_one_by_one() {
        let (mut all, mut view) =
            (PrefixObjects::of(&[PrefixKind::Calico]), ClusterView::default());
        let block = |name: &str, node: &str, cidr: &str| {
            object(
                name,
                json!({"node": node, "cidr": cidr, "state": "confirmed", "deleted": "false"}),
            )
        };
        let first = block("a-1", "a", "192.168.1.64/26");
        for e in [Event::Init, Event::InitApply(first.clone()), Event::InitDone] {
            all.apply(PrefixKind::Calico, event(e), &mut view);
        }
        let second = block("a-2", "a", "192.168.1.0/26");
        assert!(all.apply(PrefixKind::Calico, event(Event::Apply(second)), &mut view));
        let of_a = |view: &ClusterView| view.cni.calico.as_ref().unwrap().get("a").cloned();
        assert_eq!(of_a(&view), Some(nets(&["192.168.1.0/26", "192.168.1.64/26"])));
        all.apply(PrefixKind::Calico, event(Event::Delete(first)), &mut view);
        assert_eq!(of_a(&view), Some(nets(&["192.168.1.0/26"])));
    }

    #[test]
    fn service_ranges_are_in_the_view() {
        let (mut all, mut view) =
            (PrefixObjects::of(&[PrefixKind::Services]), ClusterView::default());
        let one = object("kubernetes", json!({"cidrs": ["10.96.0.0/12", "fd00:96::/112"]}));
        for e in [Event::Init, Event::InitApply(one)] {
            all.apply(PrefixKind::Services, event(e), &mut view);
        }
        assert!(all.apply(PrefixKind::Services, event(Event::InitDone), &mut view));
        assert_eq!(view.services, nets(&["10.96.0.0/12", "fd00:96::/112"]));
    }
}
