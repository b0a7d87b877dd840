//! The new mesh before it is checked, from the Nodes, the pools and the previous mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::candidates::{self, CandidateSelector, LocationPlan};
use super::exclude::{Exclusions, LocationPrefixes};
use super::indexes::Indexes;
use super::inner::InnerRanges;
use super::node_spec::{self, NodeSpec, RenderContext};
use super::prefixes::{self, NodePrefixes, PrefixSource, overlap};
use super::previous::PreviousMesh;
use super::settings::Settings;
use super::text::{self, Origin};
use super::{
    Problem, Refusal, RefusalReason, RenderError, RenderedCandidate, RenderedPool, Subject,
    node_error,
};
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::view::{ClusterView, Pool, Steering, names};
use crate::mesh::{self, Diagnostic, Mesh};

pub(super) struct Draft<'a> {
    pub inner: InnerRanges,
    pub source: PrefixSource,
    pub specs: BTreeMap<NodeName, NodeSpec>,
    /// Nodes that were not in the previous mesh, including those that are left out for another reason.
    pub new: BTreeSet<NodeName>,
    /// Nodes that were in the previous mesh with another spec.
    pub changed: BTreeSet<NodeName>,
    pub plans: BTreeMap<LocationName, LocationPlan>,
    /// Prefixes of locations besides their nodes'.
    pub prefixes: BTreeMap<LocationName, BTreeSet<IpNet>>,
    pub by_location: BTreeMap<LocationName, &'a Pool>,
    pub pools: BTreeMap<String, RenderedPool>,
    pub problems: Vec<Problem>,
    pub ignored_policies: BTreeSet<LocationName>,
    /// Addresses or endpoints that one node would take from another, or from its location.
    conflicts: Vec<RenderError>,
    /// Nodes that are left out or held as they were, and why.
    excluded: BTreeMap<NodeName, String>,
}

impl<'a> Draft<'a> {
    pub fn of(
        view: &'a ClusterView,
        previous: &PreviousMesh,
        settings: &Settings,
        exclusions: &Exclusions,
    ) -> Self {
        let mut problems = Vec::new();
        let inner = InnerRanges::of(view, settings, previous);
        inner.problems(view, &mut problems);
        let source = prefixes::resolve(settings.prefixes, view);
        let node_prefixes = NodePrefixes::of(view, settings, &mut problems);
        let (pins, leaving) = (&view.pins, &exclusions.leaving);
        let known =
            RenderContext { previous, inner: &inner, node_prefixes: &node_prefixes, pins, leaving };
        let specs =
            view.nodes.values().filter_map(|n| node_spec::node_spec(n, known, &mut problems));
        let specs = specs.map(|f| match previous.node(f.name.as_str()) {
            Some(was) if exclusions.nodes.contains_key(&f.name) => f.held(was, known),
            _ => f,
        });
        let mut specs: BTreeMap<NodeName, NodeSpec> = specs.map(|f| (f.name.clone(), f)).collect();
        let is_new = |f: &&NodeSpec| previous.node(f.name.as_str()).is_none();
        let new: BTreeSet<NodeName> =
            specs.values().filter(is_new).map(|f| f.name.clone()).collect();
        specs.retain(|name, _| !new.contains(name) || !exclusions.nodes.contains_key(name));
        let differs = |f: &&NodeSpec| f.differs(previous);
        let changed: BTreeSet<NodeName> =
            specs.values().filter(differs).map(|f| f.name.clone()).collect();
        add_departed(view, known, &mut specs, &new, &mut problems);
        let by_location = pools_by_location(view, &specs, &mut problems);
        let steering =
            |l: &LocationName| by_location.get(l).map_or(settings.steering, |p| p.spec.steering);
        drop_unsupported(&mut specs, previous, settings, steering, &mut problems);
        let mut prefixes = location_prefixes(&specs, previous, &changed, &mut problems);
        prefixes.retain(|l, all| match exclusions.prefixes.get(l) {
            None => true,
            Some(LocationPrefixes::Previous) => {
                all.retain(|p| previous.location_prefixes(l).contains(p));
                !all.is_empty()
            }
            Some(LocationPrefixes::None) => false,
        });
        let locations: BTreeSet<LocationName> =
            specs.values().map(|f| f.location.clone()).collect();
        let mut selector = CandidateSelector {
            view,
            previous,
            inner: inner.v4,
            specs: &specs,
            endpoints: BTreeMap::new(),
            conflicts: Vec::new(),
            problems: &mut problems,
        };
        let mut plans: BTreeMap<LocationName, LocationPlan> = locations
            .into_iter()
            .map(|l| (l.clone(), selector.select(&l, by_location.get(&l).copied())))
            .collect();
        let mut conflicts = selector.conflicts;
        let mut pools: BTreeMap<String, RenderedPool> =
            view.pools.keys().map(|n| (n.clone(), RenderedPool::default())).collect();
        for (location, pool) in &by_location {
            let plan = plans.get(location).cloned().unwrap_or_default();
            spec_problems(pool, &plan, &mut problems);
            let candidates = plan.candidates.iter().map(|(node, c)| RenderedCandidate {
                node: node.clone(),
                slot: c.slot,
                priority: c.priority,
            });
            let mut candidates: Vec<_> = candidates.collect();
            candidates.sort_by_key(|c| c.slot);
            let found = RenderedPool {
                location: Some(location.clone()),
                steering: pool.spec.steering,
                beside_observed: plans
                    .keys()
                    .any(|l| l != location && steering(l) == Steering::Observe),
                candidates,
                refused: plan.refused,
            };
            pools.insert(pool.name.clone(), found);
        }
        if plans.len() > 1 {
            let lost = plans.iter().filter(|(_, p)| p.candidates.is_empty());
            conflicts.extend(lost.flat_map(|(l, _)| left_without_candidate(l, &changed, previous)));
            plans.retain(|_, p| !p.candidates.is_empty());
            specs.retain(|_, f| plans.contains_key(&f.location));
            prefixes.retain(|l, _| plans.contains_key(l));
        }
        candidates::witnesses(&mut plans, &by_location, previous, &mut problems);
        Self {
            inner,
            source,
            specs,
            new,
            changed,
            plans,
            prefixes,
            by_location,
            pools,
            problems,
            ignored_policies: exclusions.policies.clone(),
            conflicts,
            excluded: exclusions.nodes.clone(),
        }
    }

    /// Returns the nodes of which the mesh does not take everything.
    pub fn refusals(&self) -> BTreeMap<String, Refusal> {
        let keys = self.specs.values().filter_map(|f| Some((&f.name, f.key_refused.clone()?)));
        let keys = keys.map(|(name, message)| {
            (name.to_string(), Refusal { why: RefusalReason::KeyChanged, message })
        });
        let excluded = self.excluded.iter().map(|(name, message)| {
            let why =
                if self.new.contains(name) { RefusalReason::LeftOut } else { RefusalReason::Held };
            (name.to_string(), Refusal { why, message: message.clone() })
        });
        keys.chain(excluded).collect()
    }

    /// Returns the text and the mesh: the previous text, byte for byte, if it means the same.
    pub fn outcome(
        &mut self,
        view: &ClusterView,
        previous: &PreviousMesh,
        settings: &Settings,
    ) -> Result<(String, Arc<Mesh>), Vec<RenderError>> {
        if !self.conflicts.is_empty() {
            return Err(self.conflicts.clone());
        }
        let numbers = Indexes::of(self.specs.keys(), view, previous);
        if self.specs.is_empty() {
            let message = "no node of the cluster is in the mesh yet: leaderd has to run there and to have published its keys, and \
                           the node to be in a location";
            self.problems.push(Problem { subject: Subject::Mesh, message: message.to_owned() });
        }
        let read = |generation: u64| {
            let (text, origins) = text::text(self, settings, previous, &numbers, generation);
            if let Some(was) = &previous.mesh
                && text == previous.text.as_str()
            {
                return Ok((text, was.clone()));
            }
            let errors = |found: Vec<Diagnostic>| {
                let all = found.into_iter().map(|d| (origins.of(d.line), d));
                // An empty mesh has many mistakes; only those of the settings are worth reporting.
                all.filter(|(b, _)| !self.specs.is_empty() || *b == Origin::Settings)
                    .collect::<Vec<RenderError>>()
            };
            mesh::parse(&text).map(|m| (text, Arc::new(m))).map_err(errors)
        };
        let (text, mesh) = read(previous.generation.max(1))?;
        let Some(was) = &previous.mesh else {
            return match previous.generation {
                0 => Ok((text, mesh)),
                generation => read(generation + 1),
            };
        };
        let conflicts = address_conflicts(was, &mesh, &self.changed);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        if was.equals_but_for_generation(&mesh) {
            return Ok((previous.text.as_str().to_owned(), was.clone()));
        }
        read(previous.generation + 1)
    }
}

/// Candidates that leave their location without a node that can lead it.
fn left_without_candidate(
    location: &LocationName,
    changed: &BTreeSet<NodeName>,
    previous: &PreviousMesh,
) -> Vec<RenderError> {
    let led = |n: &&NodeName| {
        let was = previous.node(n.as_str());
        was.is_some_and(|w| w.slot.is_some() && w.location == *location)
    };
    let message = |n: &NodeName| format!("{n} leaves location {location} without a candidate");
    let help = "give an endpoint to another node there, or move all of its nodes";
    changed.iter().filter(led).map(|n| node_error(n, message(n), help)).collect()
}

/// Nodes whose address or endpoint is now the address of another node, which would no longer be carried to other locations.
fn address_conflicts(was: &Mesh, mesh: &Mesh, changed: &BTreeSet<NodeName>) -> Vec<RenderError> {
    let mut all = Vec::new();
    for node in changed.iter().filter_map(|n| mesh.node(n)) {
        let has = |n: &mesh::Node, ip| n.address == ip || n.endpoint == Some(mesh::Host::Ip(ip));
        let had = |ip| was.node(&node.name).is_some_and(|n| has(n, ip));
        let other = mesh.nodes.values().find(|n| {
            let before = || was.node(&n.name).filter(|w| w.address == n.address);
            n.name != node.name
                && has(node, n.address)
                && !had(n.address)
                && before().is_some_and(|w| was.why_not_carried(w).is_none())
                && mesh.why_not_carried(n).is_some()
        });
        if let Some(other) = other {
            let message =
                format!("{} has the address {} of {}", node.name, other.address, other.name);
            all.push(node_error(&node.name, message, "give it an address of its own"));
        }
    }
    all
}

/// Adds the candidates whose Node object is gone, except those that leave now and those that another node replaces.
fn add_departed(
    view: &ClusterView,
    known: RenderContext<'_>,
    specs: &mut BTreeMap<NodeName, NodeSpec>,
    new: &BTreeSet<NodeName>,
    problems: &mut Vec<Problem>,
) {
    let Some(previous) = &known.previous.mesh else { return };
    let was = previous.nodes.values();
    let gone = was
        .filter(|n| !view.nodes.contains_key(n.name.as_str()) && !known.leaving.contains(&n.name));
    let gone = gone.filter_map(|n| node_spec::departed(n, known));
    // A node that was already in the mesh replaces no node of another location.
    let replaces = |f: &NodeSpec, g: &NodeSpec| {
        (new.contains(&f.name) || f.location == g.location) && f.replaces(g)
    };
    for f in gone.filter(|g| !specs.values().any(|f| replaces(f, g))).collect::<Vec<_>>() {
        let message = "its Node object is gone from the cluster: if it leads, it does so for a minute more and then hands over; after \
                       that it leaves the mesh. Create the Node again to keep it";
        let subject = Subject::Node(f.name.to_string());
        problems.push(Problem { subject, message: message.to_owned() });
        specs.insert(f.name.clone(), f);
    }
}

/// Returns the pool of each location. Of two the first by name counts.
fn pools_by_location<'a>(
    view: &'a ClusterView,
    specs: &BTreeMap<NodeName, NodeSpec>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<LocationName, &'a Pool> {
    let mut all: BTreeMap<LocationName, &Pool> = BTreeMap::new();
    for pool in view.pools.values() {
        let asked = &pool.spec.location;
        let location = asked.parse::<LocationName>();
        let there = location.ok().filter(|l| specs.values().any(|f| f.location == *l));
        let message = match there {
            None => format!(
                "spec.location is {asked:?}, where no node of the mesh is: correct it, or run leaderd on nodes there"
            ),
            Some(location) => match all.get(&location) {
                Some(other) => format!(
                    "location {location} has pool {} already, so this one is ignored: remove one of them",
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

/// Removes prefixes that the CNI or Kilo does not carry, and nodes that flannel does not reach.
fn drop_unsupported(
    specs: &mut BTreeMap<NodeName, NodeSpec>,
    previous: &PreviousMesh,
    settings: &Settings,
    steering: impl Fn(&LocationName) -> Steering,
    problems: &mut Vec<Problem>,
) {
    let flannel = settings.overlay == "flannel";
    for f in specs.values_mut() {
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
    specs.retain(|name, f| {
        let old = previous.index(name.as_str()).is_some() && !f.gone;
        let stays = !flannel || !f.prefixes.is_empty() || old;
        if !stays && !f.gone {
            let message = "it has no IPv4 pod CIDR yet, by which flannel would reach it, and is left out: see \
                           spec.podCIDRs of the Node";
            problems.push(Problem { subject: Subject::Node(name.to_string()), message: message.into() });
        }
        stays
    });
}

/// Returns the prefixes of each location besides its nodes'. A prefix that contains a node, or addresses of the mesh, or that another
/// location has already, is left out here: the mesh file's check would blame the node or the location. Previous prefixes go first: if a
/// changed node now conflicts with one, the node is at fault.
fn location_prefixes(
    specs: &BTreeMap<NodeName, NodeSpec>,
    previous: &PreviousMesh,
    changed: &BTreeSet<NodeName>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<LocationName, BTreeSet<IpNet>> {
    let old = |f: &NodeSpec, p: &IpNet| previous.location_prefixes(&f.location).contains(p);
    let mut named: Vec<(bool, &NodeSpec, IpNet)> = specs
        .values()
        .flat_map(|f| f.location_prefixes.iter().map(move |p| (!old(f, p), f, *p)))
        .collect();
    named.sort_by_key(|(new, ..)| *new);
    let mut all: BTreeMap<LocationName, BTreeSet<IpNet>> = BTreeMap::new();
    for (new, by, prefix) in named {
        let others = specs.values().filter(|f| new || !changed.contains(&f.name));
        let node = others.filter_map(|f| in_the_way(f, by, &prefix)).next();
        let taken = || {
            let of = |(l, p): (&LocationName, &IpNet)| {
                let same = *l == by.location && *p == prefix;
                (!same && overlap(p, &prefix)).then(|| format!("{p} of location {l}"))
            };
            all.iter().flat_map(|(l, ps)| ps.iter().map(move |p| (l, p))).find_map(of)
        };
        if let Some(in_the_way) = node.or_else(taken) {
            let message = format!(
                "annotation {} has {prefix}, which overlaps {in_the_way}, and is left out: write only what is behind no node",
                names::KILO_ALLOWED_LOCATION_IPS
            );
            problems.push(Problem { subject: Subject::Node(by.name.to_string()), message });
        } else {
            all.entry(by.location.clone()).or_default().insert(prefix);
        }
    }
    all
}

/// Describes the part of a node that lies in a prefix that must be behind no node.
fn in_the_way(f: &NodeSpec, by: &NodeSpec, prefix: &IpNet) -> Option<String> {
    let pods = f.prefixes.iter().find(|p| overlap(p, prefix)).map(|p| format!("pod CIDR {p}"));
    let endpoint = match f.endpoint {
        Ok(mesh::Host::Ip(ip)) if prefix.contains(&ip) => Some(format!("endpoint {ip}")),
        _ => None,
    };
    let elsewhere = f.location != by.location && prefix.contains(&f.address);
    let address = elsewhere.then(|| format!("address {}", f.address));
    pods.or(endpoint).or(address).map(|what| format!("{what} of {}", f.name))
}

fn spec_problems(pool: &Pool, plan: &LocationPlan, problems: &mut Vec<Problem>) {
    if pool.spec.steering == Steering::Kilo && pool.spec.policy.leaders.is_some_and(|n| n != 1) {
        let message = "spec.policy.leaders is ignored: Kilo knows one leader of a location; remove it, or write \
                       steering: native";
        problems
            .push(Problem { subject: Subject::Pool(pool.name.clone()), message: message.into() });
    }
    for name in &pool.spec.drained {
        if !plan.candidates.keys().any(|c| c.as_str() == name) {
            let message = format!("spec.drained names {name}, which is no candidate: remove it");
            problems.push(Problem { subject: Subject::Pool(pool.name.clone()), message });
        }
    }
}
