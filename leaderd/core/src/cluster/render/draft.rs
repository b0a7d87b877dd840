//! The mesh to be, not yet checked: what nodes, pools and the mesh before come to.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::before::Before;
use super::choose::{self, Chooser, Place};
use super::facts::{self, Facts, Known};
use super::inner::{Inner, overlap};
use super::judge::{Besides, LeftOut};
use super::numbers::Numbers;
use super::prefixes::{self, Claims, PrefixSource};
use super::settings::Settings;
use super::text::{self, Blame};
use super::{Fault, Problem, Refusal, RenderedCandidate, RenderedPool, Subject, Why};
use crate::cluster::view::{ClusterView, Pool, Steering, names};
use crate::ids::{LocationName, NodeName};
use crate::mesh::{self, Diagnostic, Mesh};

pub(super) struct Draft<'a> {
    pub inner: Inner,
    pub source: PrefixSource,
    pub facts: BTreeMap<NodeName, Facts>,
    /// Nodes that were not in the mesh before, those among them that are left out for another reason too.
    pub new: BTreeSet<NodeName>,
    /// Nodes that were in the mesh before with other facts.
    pub changed: BTreeSet<NodeName>,
    pub places: BTreeMap<LocationName, Place>,
    /// What locations have besides their nodes.
    pub prefixes: BTreeMap<LocationName, BTreeSet<IpNet>>,
    pub by_location: BTreeMap<LocationName, &'a Pool>,
    pub pools: BTreeMap<String, RenderedPool>,
    pub problems: Vec<Problem>,
    pub ignored_policies: BTreeSet<LocationName>,
    /// What one node would take from another, or from its location.
    taken: Vec<Fault>,
    /// Nodes that are left out, or held as they were, and why.
    judged: BTreeMap<NodeName, String>,
}

impl<'a> Draft<'a> {
    pub fn of(
        view: &'a ClusterView,
        before: &Before,
        settings: &Settings,
        left_out: &LeftOut,
    ) -> Self {
        let mut problems = Vec::new();
        let inner = Inner::of(view, settings, before);
        inner.problems(view, &mut problems);
        let source = prefixes::resolve(settings.prefixes, view);
        let claims = Claims::of(view, settings, &mut problems);
        let (pins, leaving) = (&view.pins, &left_out.leaving);
        let known = Known { before, inner: &inner, claims: &claims, pins, leaving };
        let facts = view.nodes.values().filter_map(|n| facts::facts(n, known, &mut problems));
        let facts = facts.map(|f| match before.node(f.name.as_str()) {
            Some(was) if left_out.nodes.contains_key(&f.name) => f.held(was, known),
            _ => f,
        });
        let mut facts: BTreeMap<NodeName, Facts> = facts.map(|f| (f.name.clone(), f)).collect();
        let is_new = |f: &&Facts| before.node(f.name.as_str()).is_none();
        let new: BTreeSet<NodeName> =
            facts.values().filter(is_new).map(|f| f.name.clone()).collect();
        facts.retain(|name, _| !new.contains(name) || !left_out.nodes.contains_key(name));
        let differs = |f: &&Facts| f.differs(before);
        let changed: BTreeSet<NodeName> =
            facts.values().filter(differs).map(|f| f.name.clone()).collect();
        departed(view, known, &mut facts, &new, &mut problems);
        let by_location = pools_by_location(view, &facts, &mut problems);
        let steering =
            |l: &LocationName| by_location.get(l).map_or(settings.steering, |p| p.spec.steering);
        carried(&mut facts, before, settings, steering, &mut problems);
        let mut prefixes = location_prefixes(&facts, before, &changed, &mut problems);
        prefixes.retain(|l, all| match left_out.prefixes.get(l) {
            None => true,
            Some(Besides::AsBefore) => {
                all.retain(|p| before.besides(l).contains(p));
                !all.is_empty()
            }
            Some(Besides::Nothing) => false,
        });
        let locations: BTreeSet<LocationName> =
            facts.values().map(|f| f.location.clone()).collect();
        let mut chooser = Chooser {
            view,
            before,
            inner: inner.v4,
            facts: &facts,
            taken: BTreeMap::new(),
            robbed: Vec::new(),
            problems: &mut problems,
        };
        let mut places: BTreeMap<LocationName, Place> = locations
            .into_iter()
            .map(|l| (l.clone(), chooser.place(&l, by_location.get(&l).copied())))
            .collect();
        let mut taken = chooser.robbed;
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
            let lost = places.iter().filter(|(_, p)| p.candidates.is_empty());
            taken.extend(lost.flat_map(|(l, _)| abandoned(l, &changed, before)));
            places.retain(|_, p| !p.candidates.is_empty());
            facts.retain(|_, f| places.contains_key(&f.location));
            prefixes.retain(|l, _| places.contains_key(l));
        }
        choose::witnesses(&mut places, &by_location, before, &mut problems);
        Self {
            inner,
            source,
            facts,
            new,
            changed,
            places,
            prefixes,
            by_location,
            pools,
            problems,
            ignored_policies: left_out.policies.clone(),
            taken,
            judged: left_out.nodes.clone(),
        }
    }

    /// Nodes of which something is not taken.
    pub fn refusals(&self) -> BTreeMap<String, Refusal> {
        let keys = self.facts.values().filter_map(|f| Some((&f.name, f.key_refused.clone()?)));
        let keys = keys
            .map(|(name, message)| (name.to_string(), Refusal { why: Why::KeyChanged, message }));
        let judged = self.judged.iter().map(|(name, message)| {
            let why = if self.new.contains(name) { Why::LeftOut } else { Why::Held };
            (name.to_string(), Refusal { why, message: message.clone() })
        });
        keys.chain(judged).collect()
    }

    /// The text and what it says: the one before, byte for byte, if that says the same.
    pub fn outcome(
        &mut self,
        view: &ClusterView,
        before: &Before,
        settings: &Settings,
    ) -> Result<(String, Mesh), Vec<Fault>> {
        if !self.taken.is_empty() {
            return Err(self.taken.clone());
        }
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
        let robbed = before.mesh.iter().flat_map(|was| robbed(was, &mesh, &self.changed));
        let robbed: Vec<Fault> = robbed.collect();
        if !robbed.is_empty() {
            return Err(robbed);
        }
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

/// A fault of a node that is no line's of the text.
pub(super) fn fault(node: &NodeName, message: String, help: &str) -> Fault {
    let diagnostic = Diagnostic { line: 0, column: 0, message, help: help.to_owned() };
    (Blame::Node(node.clone()), diagnostic)
}

/// Candidates that have left their location to nodes that cannot lead it.
fn abandoned(location: &LocationName, changed: &BTreeSet<NodeName>, before: &Before) -> Vec<Fault> {
    let led = |n: &&NodeName| {
        let was = before.node(n.as_str());
        was.is_some_and(|w| w.slot.is_some() && w.location == *location)
    };
    let message = |n: &NodeName| format!("{n} leaves location {location} without a candidate");
    let help = "give an endpoint to another node there, or move all of its nodes";
    changed.iter().filter(led).map(|n| fault(n, message(n), help)).collect()
}

/// Nodes whose address or endpoint is now the address of another, which was carried to other locations and would be no more.
fn robbed(was: &Mesh, mesh: &Mesh, changed: &BTreeSet<NodeName>) -> Vec<Fault> {
    let mut all = Vec::new();
    for thief in changed.iter().filter_map(|n| mesh.node(n)) {
        let has = |n: &mesh::Node, ip| n.address == ip || n.endpoint == Some(mesh::Host::Ip(ip));
        let had = |ip| was.node(&thief.name).is_some_and(|n| has(n, ip));
        let victim = mesh.nodes.values().find(|n| {
            let before = || was.node(&n.name).filter(|w| w.address == n.address);
            n.name != thief.name
                && has(thief, n.address)
                && !had(n.address)
                && before().is_some_and(|w| was.why_not_carried(w).is_none())
                && mesh.why_not_carried(n).is_some()
        });
        if let Some(victim) = victim {
            let message =
                format!("{} has the address {} of {}", thief.name, victim.address, victim.name);
            all.push(fault(&thief.name, message, "give it an address of its own"));
        }
    }
    all
}

/// Adds the candidates whose Node object is gone, but for those that leave now and those in whose place others are.
fn departed(
    view: &ClusterView,
    known: Known<'_>,
    facts: &mut BTreeMap<NodeName, Facts>,
    new: &BTreeSet<NodeName>,
    problems: &mut Vec<Problem>,
) {
    let Some(before) = &known.before.mesh else { return };
    let was = before.nodes.values();
    let gone = was
        .filter(|n| !view.nodes.contains_key(n.name.as_str()) && !known.leaving.contains(&n.name));
    let gone = gone.filter_map(|n| facts::departed(n, known));
    // A node that was in the mesh already is put in the place of none of another location.
    let replaces =
        |f: &Facts, g: &Facts| (new.contains(&f.name) || f.location == g.location) && f.replaces(g);
    for f in gone.filter(|g| !facts.values().any(|f| replaces(f, g))).collect::<Vec<_>>() {
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

/// What each location has besides its nodes. What would hold a node, or what carries the mesh, or is another location's already, is left
/// out here: the mesh file's check would blame the node, or the location. What was there before goes first, and a node that changed and
/// is now in its way is to be blamed.
fn location_prefixes(
    facts: &BTreeMap<NodeName, Facts>,
    before: &Before,
    changed: &BTreeSet<NodeName>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<LocationName, BTreeSet<IpNet>> {
    let old = |f: &Facts, p: &IpNet| before.besides(&f.location).contains(p);
    let mut said: Vec<(bool, &Facts, IpNet)> = facts
        .values()
        .flat_map(|f| f.location_prefixes.iter().map(move |p| (!old(f, p), f, *p)))
        .collect();
    said.sort_by_key(|(new, ..)| *new);
    let mut all: BTreeMap<LocationName, BTreeSet<IpNet>> = BTreeMap::new();
    for (new, says, prefix) in said {
        let others = facts.values().filter(|f| new || !changed.contains(&f.name));
        let node = others.filter_map(|f| in_the_way(f, says, &prefix)).next();
        let taken = || {
            let of = |(l, p): (&LocationName, &IpNet)| {
                let same = *l == says.location && *p == prefix;
                (!same && overlap(p, &prefix)).then(|| format!("{p} of location {l}"))
            };
            all.iter().flat_map(|(l, ps)| ps.iter().map(move |p| (l, p))).find_map(of)
        };
        if let Some(in_the_way) = node.or_else(taken) {
            let message = format!(
                "annotation {} has {prefix}, which overlaps {in_the_way}, and is left out: write only what is behind no node",
                names::KILO_ALLOWED_LOCATION_IPS
            );
            problems.push(Problem { subject: Subject::Node(says.name.to_string()), message });
        } else {
            all.entry(says.location.clone()).or_default().insert(prefix);
        }
    }
    all
}

/// What of a node would be behind a prefix that is behind none.
fn in_the_way(f: &Facts, says: &Facts, prefix: &IpNet) -> Option<String> {
    let pods = f.prefixes.iter().find(|p| overlap(p, prefix)).map(|p| format!("pod CIDR {p}"));
    let endpoint = match f.endpoint {
        Ok(mesh::Host::Ip(ip)) if prefix.contains(&ip) => Some(format!("endpoint {ip}")),
        _ => None,
    };
    let elsewhere = f.location != says.location && prefix.contains(&f.address);
    let address = elsewhere.then(|| format!("address {}", f.address));
    pods.or(endpoint).or(address).map(|what| format!("{what} of {}", f.name))
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
