//! From the cluster to the text of `mesh.toml`.
//!
//! ```text
//! nodes → facts ┐
//! pools ────────┼→ choose (candidates, slots, witnesses) → text → mesh::parse
//! mesh before ──┘                                           ↑ again without what was at fault, if that is new
//! ```
//!
//! Indexes and slots are pinned by the mesh before. A node that is in it stays in it as long as the Node exists: what it no longer
//! says is taken from there. A candidate stays even without a Node, until it is seen not to lead (`depart`).

mod before;
mod choose;
mod facts;
mod inner;
mod numbers;
mod prefixes;
mod settings;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::view::{ClusterView, Pool, Steering, names};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{self, Diagnostic, Mesh};

use before::Before;
use choose::{Chooser, Place};
pub(super) use facts::location_of;
use facts::{Facts, Known};
use inner::Inner;
use numbers::Numbers;
use prefixes::Claims;
pub use prefixes::PrefixSource;
use settings::Settings;
use text::Blame;

/// What became of a view.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rendered {
    /// The mesh file that shall be in force: byte for byte the one before if nothing but its form would differ. `None`: no good one
    /// can be made (the problems say why), and the one in force stays.
    pub text: Option<String>,
    /// `text`, read.
    pub mesh: Option<Mesh>,
    /// The mesh file in force was made with settings of a later revision than this daemon has, or with objects of a CNI that it does
    /// not see: it leaves it to others to write.
    pub outdated: bool,
    /// In the order of subjects. Empty: all is well.
    pub problems: Vec<Problem>,
    /// By name: what each pool came to.
    pub pools: BTreeMap<String, RenderedPool>,
    /// Candidates that are in it although their Node object is gone, or says no endpoint any more.
    pub departed: BTreeSet<NodeName>,
}

/// Something that a person should change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    pub subject: Subject,
    /// What is wrong, and what to do.
    pub message: String,
}

/// What a problem is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// The settings file.
    Settings,
    /// The mesh object, or the mesh as a whole.
    Mesh,
    Pool(String),
    Location(String),
    Node(String),
}

/// What a pool came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RenderedPool {
    /// `None` if the pool counts for nothing (no such location, or another pool has it): see the problems.
    pub location: Option<LocationName>,
    pub steering: Steering,
    /// Another location of the mesh is only observed.
    pub beside_observed: bool,
    /// By slot.
    pub candidates: Vec<RenderedCandidate>,
    /// Nodes that were asked for and may not lead, by name.
    pub refused: Vec<Refused>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RenderedCandidate {
    pub node: NodeName,
    pub slot: Slot,
    pub priority: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub node: String,
    pub reason: String,
}

/// The mesh file of a cluster. Deterministic: from one view every node renders the same bytes.
///
/// What is wrong with one node, pool or location is a problem and leaves the others be. Only what cannot be mended by leaving
/// something new out (the settings, a node that is in the mesh) leaves the mesh in force as it is.
pub fn render(view: &ClusterView, settings: &str) -> Rendered {
    render_without(view, settings, &BTreeSet::new())
}

/// The same, without these of the departed candidates: they leave, or are members if their Node object is there.
pub(super) fn render_without(
    view: &ClusterView,
    settings: &str,
    leaving: &BTreeSet<NodeName>,
) -> Rendered {
    let mut problems = Vec::new();
    let settings_read = settings::read(settings, &mut problems);
    let before = Before::of(view, &mut problems);
    let good = settings_read.is_some();
    let settings = settings_read.unwrap_or_default();
    let mut left_out = LeftOut { leaving: leaving.clone(), ..LeftOut::default() };
    // Each round leaves out something more, so there are only so many.
    loop {
        let mut draft = Draft::of(view, &before, &settings, &left_out);
        let outcome = draft.outcome(view, &before, &settings);
        if let Err(faults) = &outcome
            && left_out.add(faults, &before, &mut problems)
        {
            continue;
        }
        problems.append(&mut draft.problems);
        problems.extend(outcome.iter().flat_map(|(_, mesh)| ambiguous(mesh)));
        let pools = draft.pools;
        let departed = draft.facts.values().filter(|f| f.departed).map(|f| f.name.clone());
        let departed = departed.collect();
        let found = match outcome {
            Ok(found) => Some(found),
            Err(faults) => {
                problems.extend(faults.into_iter().map(|(blame, d)| problem(&blame, &d)));
                None
            }
        };
        problems.sort();
        problems.dedup();
        let (text, mesh) = found.filter(|_| good).unzip();
        let outdated = settings.revision < before.revision && settings.mark() != before.mark
            || prefixes::is_behind(settings.prefixes, view, before.source);
        return Rendered { text, mesh, outdated, problems, pools, departed };
    }
}

/// Nodes that other locations reach at their pods only, as two have the same address.
fn ambiguous(mesh: &Mesh) -> Vec<Problem> {
    let wanted =
        |n: &&mesh::Node| mesh.locations.get(&n.location).is_some_and(|l| l.node_addresses);
    let all = mesh.nodes.values().filter(wanted).filter_map(|n| match mesh.why_not_carried(n)? {
        why @ mesh::NotCarried::Ambiguous(_) => {
            let message =
                format!("its address {} is not carried to other locations: {why}", n.address);
            Some(Problem { subject: Subject::Node(n.name.to_string()), message })
        }
        mesh::NotCarried::Endpoint | mesh::NotCarried::Family => None,
    });
    all.collect()
}

/// Where nodes' prefixes are known from, as the settings say.
pub fn prefix_source(settings: &str) -> PrefixSource {
    settings::read(settings, &mut Vec::new()).unwrap_or_default().prefixes
}

/// What is at fault, and how.
type Fault = (Blame, Diagnostic);

fn problem(blame: &Blame, d: &Diagnostic) -> Problem {
    let subject = match blame {
        Blame::Settings => Subject::Settings,
        Blame::Whole => Subject::Mesh,
        Blame::Policy { pool: Some(pool), .. } => Subject::Pool(pool.clone()),
        Blame::Location(l) | Blame::Prefixes(l) | Blame::Policy { location: l, .. } => {
            Subject::Location(l.to_string())
        }
        Blame::Node(n) => Subject::Node(n.to_string()),
    };
    let message =
        if d.help.is_empty() { d.message.clone() } else { format!("{}: {}", d.message, d.help) };
    Problem { subject, message }
}

/// What was left out, as the mesh file was no good with it.
#[derive(Default)]
struct LeftOut {
    nodes: BTreeSet<NodeName>,
    /// Of the departed candidates.
    leaving: BTreeSet<NodeName>,
    /// Locations whose pool's policy counts for nothing.
    policies: BTreeSet<LocationName>,
    /// Locations whose nodes' annotations about what else there is count for nothing.
    prefixes: BTreeSet<LocationName>,
}

impl LeftOut {
    /// True if there was something to leave out. A node of the mesh in force never is.
    fn add(&mut self, faults: &[Fault], before: &Before, problems: &mut Vec<Problem>) -> bool {
        let mut more = false;
        for (blame, diagnostic) in faults {
            let (new, what) = match blame {
                Blame::Node(n) if before.index(n.as_str()).is_none() => {
                    (self.nodes.insert(n.clone()), "the node is left out")
                }
                Blame::Policy { location, .. } => {
                    (self.policies.insert(location.clone()), "spec.policy counts for nothing")
                }
                Blame::Prefixes(location) => (
                    self.prefixes.insert(location.clone()),
                    "kilo.squat.ai/allowed-location-ips counts for nothing there",
                ),
                _ => continue,
            };
            let mut p = problem(blame, diagnostic);
            p.message = format!("{} ({what})", p.message);
            problems.push(p);
            more |= new;
        }
        more
    }
}

/// The mesh to be, not yet checked.
struct Draft<'a> {
    inner: Inner,
    source: PrefixSource,
    facts: BTreeMap<NodeName, Facts>,
    places: BTreeMap<LocationName, Place>,
    /// What locations have besides their nodes.
    prefixes: BTreeMap<LocationName, BTreeSet<IpNet>>,
    by_location: BTreeMap<LocationName, &'a Pool>,
    pools: BTreeMap<String, RenderedPool>,
    problems: Vec<Problem>,
    ignored_policies: BTreeSet<LocationName>,
}

impl<'a> Draft<'a> {
    fn of(view: &'a ClusterView, before: &Before, settings: &Settings, left_out: &LeftOut) -> Self {
        let mut problems = Vec::new();
        let inner = Inner::of(view, settings, before);
        inner.problems(view, &mut problems);
        let source = prefixes::resolve(settings.prefixes, view);
        let claims = Claims::of(view, settings, &mut problems);
        let known = Known { before, inner: &inner, claims: &claims, leaving: &left_out.leaving };
        let facts = view.nodes.values().filter_map(|n| facts::facts(n, known, &mut problems));
        let mut facts: BTreeMap<NodeName, Facts> = facts
            .filter(|f| !left_out.nodes.contains(&f.name))
            .map(|f| (f.name.clone(), f))
            .collect();
        departed(view, known, &mut facts, &mut problems);
        let by_location = pools_by_location(view, &facts, &mut problems);
        let steering =
            |l: &LocationName| by_location.get(l).map_or(settings.steering, |p| p.spec.steering);
        carried(&mut facts, before, settings, steering, &mut problems);
        let mut prefixes = location_prefixes(&facts, &mut problems);
        prefixes.retain(|l, _| !left_out.prefixes.contains(l));
        let locations: BTreeSet<LocationName> =
            facts.values().map(|f| f.location.clone()).collect();
        let mut chooser = Chooser {
            view,
            before,
            inner: inner.v4,
            facts: &facts,
            taken: BTreeMap::new(),
            problems: &mut problems,
        };
        let mut places: BTreeMap<LocationName, Place> = locations
            .into_iter()
            .map(|l| (l.clone(), chooser.place(&l, by_location.get(&l).copied())))
            .collect();
        let mut pools: BTreeMap<String, RenderedPool> =
            view.pools.keys().map(|n| (n.clone(), RenderedPool::default())).collect();
        for (location, pool) in &by_location {
            let place = places.get(location).cloned().unwrap_or_default();
            spec_problems(pool, &place, &mut problems);
            let candidates = place.candidates.iter().map(|(node, c)| RenderedCandidate {
                node: node.clone(),
                slot: c.slot,
                priority: c.priority,
            });
            let mut candidates: Vec<_> = candidates.collect();
            candidates.sort_by_key(|c| c.slot);
            let found = RenderedPool {
                location: Some(location.clone()),
                steering: pool.spec.steering,
                beside_observed: places
                    .keys()
                    .any(|l| l != location && steering(l) == Steering::Observe),
                candidates,
                refused: place.refused,
            };
            pools.insert(pool.name.clone(), found);
        }
        if places.len() > 1 {
            places.retain(|_, p| !p.candidates.is_empty());
            facts.retain(|_, f| places.contains_key(&f.location));
            prefixes.retain(|l, _| places.contains_key(l));
        }
        choose::witnesses(&mut places, &by_location, before, &mut problems);
        Self {
            inner,
            source,
            facts,
            places,
            prefixes,
            by_location,
            pools,
            problems,
            ignored_policies: left_out.policies.clone(),
        }
    }

    /// The text and what it says: the one before, byte for byte, if that says the same.
    fn outcome(
        &mut self,
        view: &ClusterView,
        before: &Before,
        settings: &Settings,
    ) -> Result<(String, Mesh), Vec<Fault>> {
        let numbers = Numbers::of(self.facts.keys(), view, before);
        if self.facts.is_empty() {
            let message = "no node of the cluster is in the mesh yet: leaderd has to run there and to have published its keys, and \
                           the node to be in a location";
            self.problems.push(Problem { subject: Subject::Mesh, message: message.to_owned() });
        }
        let read = |generation: u64| {
            let (text, blames) = text::text(self, settings, before, &numbers, generation);
            let faults = |found: Vec<Diagnostic>| {
                let all = found.into_iter().map(|d| (blames.of(d.line), d));
                // Of an empty mesh all but the settings' own mistakes go without saying.
                all.filter(|(b, _)| !self.facts.is_empty() || *b == Blame::Settings)
                    .collect::<Vec<Fault>>()
            };
            mesh::parse(&text).map(|m| (text, m)).map_err(faults)
        };
        let (text, mesh) = read(before.generation.max(1))?;
        let Some(was) = &before.mesh else {
            return if before.generation == 0 {
                Ok((text, mesh))
            } else {
                read(before.generation + 1)
            };
        };
        let (generation, hash) = (was.generation, was.hash);
        if *was == (Mesh { generation, hash, ..mesh }) {
            return Ok((before.text.clone(), was.clone()));
        }
        read(before.generation + 1)
    }
}

/// Adds the candidates whose Node object is gone, but for those that leave now and those in whose place others are.
fn departed(
    view: &ClusterView,
    known: Known<'_>,
    facts: &mut BTreeMap<NodeName, Facts>,
    problems: &mut Vec<Problem>,
) {
    let Some(before) = &known.before.mesh else { return };
    let was = before.nodes.values();
    let gone = was
        .filter(|n| !view.nodes.contains_key(n.name.as_str()) && !known.leaving.contains(&n.name));
    let gone = gone.filter_map(|n| facts::departed(n, before, known.claims));
    for f in gone.filter(|g| !facts.values().any(|f| f.replaces(g))).collect::<Vec<_>>() {
        let message = "its Node object is gone from the cluster: if it leads, it does so for a minute more and then hands over; after \
                       that it leaves the mesh. Create the Node again to keep it";
        let subject = Subject::Node(f.name.to_string());
        problems.push(Problem { subject, message: message.to_owned() });
        facts.insert(f.name.clone(), f);
    }
}

/// The pool of each location. Of two the first by name counts.
fn pools_by_location<'a>(
    view: &'a ClusterView,
    facts: &BTreeMap<NodeName, Facts>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<LocationName, &'a Pool> {
    let mut all: BTreeMap<LocationName, &Pool> = BTreeMap::new();
    for pool in view.pools.values() {
        let asked = &pool.spec.location;
        let location = asked.parse::<LocationName>();
        let there = location.ok().filter(|l| facts.values().any(|f| f.location == *l));
        let message = match there {
            None => format!(
                "spec.location is {asked:?}, where no node of the mesh is: correct it, or see that leaderd runs on nodes there"
            ),
            Some(location) => match all.get(&location) {
                Some(other) => format!(
                    "location {location} has pool {} already, so this one counts for nothing: remove one of them",
                    other.name
                ),
                None => {
                    all.insert(location, pool);
                    continue;
                }
            },
        };
        problems.push(Problem { subject: Subject::Pool(pool.name.clone()), message });
    }
    all
}

/// Takes away what the CNI or Kilo does not carry, and nodes that flannel does not reach.
fn carried(
    facts: &mut BTreeMap<NodeName, Facts>,
    before: &Before,
    settings: &Settings,
    steering: impl Fn(&LocationName) -> Steering,
    problems: &mut Vec<Problem>,
) {
    let flannel = settings.overlay == "flannel";
    for f in facts.values_mut() {
        let by = match steering(&f.location) {
            _ if flannel => "flannel",
            Steering::Kilo => "Kilo",
            Steering::Native | Steering::Observe => continue,
        };
        let all = f.prefixes.len() + f.location_prefixes.len();
        f.prefixes.retain(|p| p.addr().is_ipv4());
        f.location_prefixes.retain(|p| p.addr().is_ipv4());
        if f.prefixes.len() + f.location_prefixes.len() < all {
            let message = format!("IPv6 prefixes are left out of the mesh: {by} carries IPv4 only");
            problems.push(Problem { subject: Subject::Location(f.location.to_string()), message });
        }
    }
    facts.retain(|name, f| {
        let old = before.index(name.as_str()).is_some() && !f.gone;
        let stays = !flannel || !f.prefixes.is_empty() || old;
        if !stays && !f.gone {
            let message = "it has no IPv4 pod CIDR yet, by which flannel would reach it, and is left out: see \
                           spec.podCIDRs of the Node";
            problems.push(Problem { subject: Subject::Node(name.to_string()), message: message.into() });
        }
        stays
    });
}

/// What each location has besides its nodes. What would hold a node, or what carries the mesh, is left out here: the mesh file's check
/// would blame the node.
fn location_prefixes(
    facts: &BTreeMap<NodeName, Facts>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<LocationName, BTreeSet<IpNet>> {
    let mut all: BTreeMap<LocationName, BTreeSet<IpNet>> = BTreeMap::new();
    for says in facts.values() {
        for prefix in &says.location_prefixes {
            let in_the_way = facts.values().find_map(|f| {
                let pods = f.prefixes.iter().find(|p| p.contains(prefix) || prefix.contains(*p));
                let endpoint = match f.endpoint {
                    Ok(mesh::Host::Ip(ip)) if prefix.contains(&ip) => {
                        Some(format!("endpoint {ip}"))
                    }
                    _ => None,
                };
                let elsewhere = f.location != says.location && prefix.contains(&f.address);
                let what = pods.map(|p| format!("pod CIDR {p}"));
                let what =
                    what.or(endpoint).or(elsewhere.then(|| format!("address {}", f.address)));
                what.map(|what| format!("{what} of {}", f.name))
            });
            if let Some(in_the_way) = in_the_way {
                let message = format!(
                    "annotation {} has {prefix}, which overlaps {in_the_way}, and is left out: write only what is behind no node",
                    names::KILO_ALLOWED_LOCATION_IPS
                );
                problems.push(Problem { subject: Subject::Node(says.name.to_string()), message });
            } else {
                all.entry(says.location.clone()).or_default().insert(*prefix);
            }
        }
    }
    all
}

fn spec_problems(pool: &Pool, place: &Place, problems: &mut Vec<Problem>) {
    if pool.spec.steering == Steering::Kilo && pool.spec.policy.leaders.is_some_and(|n| n != 1) {
        let message = "spec.policy.leaders counts for nothing: Kilo knows one leader of a location; remove it, or write \
                       steering: native";
        problems
            .push(Problem { subject: Subject::Pool(pool.name.clone()), message: message.into() });
    }
    for name in &pool.spec.drained {
        if !place.candidates.keys().any(|c| c.as_str() == name) {
            let message = format!("spec.drained names {name}, which is no candidate: remove it");
            problems.push(Problem { subject: Subject::Pool(pool.name.clone()), message });
        }
    }
}
