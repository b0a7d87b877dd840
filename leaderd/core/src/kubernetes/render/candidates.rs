//! Selects the candidates of each location, and the witnesses that vote besides.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::node_spec::NodeSpec;
use super::previous::PreviousMesh;
use super::{Problem, RefusedCandidate, RenderError, Subject, node_error};
use crate::ids::{LocationName, NodeName, Slot};
use crate::kubernetes::turn_order;
use crate::kubernetes::view::{ClusterView, Pool};
use crate::mesh::{Host, is_taken};

/// Default of `spec.candidates.max`.
const DEFAULT_MAX: usize = 3;
/// Priority of candidates that are not named.
const SELECTED_PRIORITY: u16 = 100;
const MAX_WITNESSES: usize = 4;

/// A location of the new mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct LocationPlan {
    /// By name of the node.
    pub candidates: BTreeMap<NodeName, Candidate>,
    /// Number of its nodes, candidates included.
    pub nodes: usize,
    pub refused: Vec<RefusedCandidate>,
    pub witnesses: Vec<NodeName>,
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub slot: Slot,
    pub priority: u16,
    pub endpoint: Host,
}

/// Selects candidates, location by location.
pub(super) struct CandidateSelector<'a> {
    pub view: &'a ClusterView,
    pub previous: &'a PreviousMesh,
    pub inner: Ipv4Net,
    /// All nodes of the new mesh.
    pub specs: &'a BTreeMap<NodeName, NodeSpec>,
    /// Endpoints in use: all candidates listen on the same ports, so no two may share one.
    pub endpoints: BTreeMap<Host, NodeName>,
    /// Errors of nodes that take the endpoint of a candidate of the previous mesh.
    pub conflicts: Vec<RenderError>,
    pub problems: &'a mut Vec<Problem>,
}

impl CandidateSelector<'_> {
    fn report(&mut self, subject: Subject, message: String) {
        self.problems.push(Problem { subject, message });
    }

    /// Selects the candidates of a location. Nodes that the pool names and that cannot lead are refused, with the reason.
    pub fn select(&mut self, location: &LocationName, pool: Option<&Pool>) -> LocationPlan {
        let all = self.specs.values().filter(|f| f.location == *location);
        let (gone, here): (Vec<&NodeSpec>, Vec<&NodeSpec>) = all.partition(|f| f.departed);
        let rule = pool.map(|p| p.spec.candidates.clone()).unwrap_or_default();
        let subject = || match pool {
            Some(pool) => Subject::Pool(pool.name.clone()),
            None => Subject::Location(location.to_string()),
        };
        let max = match rule.max {
            None => DEFAULT_MAX,
            Some(n @ 1..=15) => usize::from(n),
            Some(n) => {
                self.report(subject(), format!("spec.candidates.max is {n}: write 1 to 15"));
                usize::from(n.clamp(1, 15))
            }
        };
        let nodes = here.len() + gone.len();
        let mut plan = LocationPlan { nodes, ..LocationPlan::default() };
        let mut chosen: Vec<(NodeName, u16, Host)> = Vec::new();
        let mut refuse = |node: &str, reason: String| {
            if !plan.refused.iter().any(|r| r.node == node) {
                plan.refused.push(RefusedCandidate { node: node.to_owned(), reason });
            }
        };
        for (n, name) in rule.names.iter().enumerate() {
            let Some(spec) = here.iter().find(|f| f.name.as_str() == name) else {
                if gone.iter().any(|f| f.name.as_str() == name) {
                    continue;
                }
                refuse(name, self.why_not_here(name, location));
                continue;
            };
            if chosen.iter().any(|(c, ..)| *c == spec.name) {
                continue;
            }
            match self.endpoint_of(spec) {
                Err(reason) => refuse(name, reason),
                Ok(_) if chosen.len() == max => {
                    refuse(
                        name,
                        format!("there are {max} candidates before it: raise spec.candidates.max"),
                    );
                }
                Ok(endpoint) => {
                    let priority = u16::try_from(10 * (n + 1)).unwrap_or(u16::MAX);
                    self.endpoints.insert(endpoint.clone(), spec.name.clone());
                    chosen.push((spec.name.clone(), priority, endpoint));
                }
            }
        }
        let selective = !rule.match_labels.is_empty();
        if selective || rule.names.is_empty() {
            let mut others: Vec<&&NodeSpec> =
                here.iter().filter(|f| !selective || self.matches(f, &rule.match_labels)).collect();
            if selective && others.is_empty() {
                let message = "spec.candidates.matchLabels selects no node of the location: change it, or label nodes";
                self.report(subject(), message.to_owned());
            }
            // Nodes with a slot keep it: a new node must not displace an old one.
            let pinned =
                |f: &NodeSpec| self.previous.slot(f.name.as_str(), location.as_str()).is_none();
            others.sort_by_key(|f| (pinned(f), f.name.clone()));
            for spec in others {
                if chosen.iter().any(|(c, ..)| *c == spec.name) {
                    continue;
                }
                match self.endpoint_of(spec) {
                    Err(reason) if selective => refuse(spec.name.as_str(), reason),
                    Ok(endpoint) if chosen.len() < max => {
                        self.endpoints.insert(endpoint.clone(), spec.name.clone());
                        chosen.push((spec.name.clone(), SELECTED_PRIORITY, endpoint));
                    }
                    _ => {}
                }
            }
        }
        // They may exceed the maximum: their successors must not have to wait for them.
        for spec in gone {
            let was = self.previous.node(spec.name.as_str());
            if let (Ok(endpoint), Some(was)) = (self.endpoint_of(spec), was) {
                self.endpoints.insert(endpoint.clone(), spec.name.clone());
                chosen.push((spec.name.clone(), was.priority, endpoint));
            }
        }
        if chosen.is_empty() {
            chosen = self.keep_previous(location, &here, &subject());
        }
        for (name, priority) in &rule.priorities {
            match chosen.iter_mut().find(|(c, ..)| c.as_str() == name) {
                Some(candidate) => candidate.1 = *priority,
                None => self.report(
                    subject(),
                    format!(
                        "spec.candidates.priorities names {name}, which is no candidate: remove it"
                    ),
                ),
            }
        }
        plan.refused.sort_by(|a, b| a.node.cmp(&b.node));
        for refused in &plan.refused {
            let message = format!("node {} may not lead: {}", refused.node, refused.reason);
            self.report(subject(), message);
        }
        plan.candidates = self.slots(location, chosen);
        plan
    }

    fn matches(&self, spec: &NodeSpec, labels: &BTreeMap<String, String>) -> bool {
        self.view
            .nodes
            .get(spec.name.as_str())
            .is_some_and(|n| labels.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
    }

    fn why_not_here(&self, name: &str, location: &LocationName) -> String {
        match (self.specs.values().find(|f| f.name.as_str() == name), self.view.nodes.get(name)) {
            (Some(f), _) => format!("it is in location {}, not in {location}", f.location),
            (None, Some(node)) if !turn_order::has_daemon(node) => {
                "its leaderd has not published its keys yet: make sure that it runs there"
                    .to_owned()
            }
            (None, Some(_)) => {
                "it is left out of the mesh: see the problems of that node".to_owned()
            }
            (None, None) => {
                "there is no such node in the cluster: correct the name, or remove it".to_owned()
            }
        }
    }

    fn endpoint_of(&mut self, spec: &NodeSpec) -> Result<Host, String> {
        let endpoint = spec.endpoint.clone()?;
        let other = match self.endpoints.get(&endpoint) {
            Some(other) if *other != spec.name => other.clone(),
            _ => return Ok(endpoint),
        };
        let had = |n: &NodeName| {
            self.previous.node(n.as_str()).is_some_and(|w| w.endpoint.as_ref() == Some(&endpoint))
        };
        if had(&spec.name) && !had(&other) {
            let message = format!("{other} has the endpoint of candidate {}", spec.name);
            self.conflicts.push(node_error(&other, message, "give it an address of its own"));
        }
        Err(format!(
            "its endpoint is that of candidate {other}, and both would listen on the same ports: give it an address of its own"
        ))
    }

    /// Keeps the previous candidates if no node may lead: a location without a candidate would drop out of the mesh.
    fn keep_previous(
        &mut self,
        location: &LocationName,
        here: &[&NodeSpec],
        subject: &Subject,
    ) -> Vec<(NodeName, u16, Host)> {
        let mut kept = Vec::new();
        for spec in here {
            let Some(was) = self.previous.node(spec.name.as_str()) else { continue };
            let (Some(_), Some(endpoint), true) =
                (was.slot, &was.endpoint, was.location == *location)
            else {
                continue;
            };
            if self.endpoints.get(endpoint).is_none_or(|t| *t == spec.name) {
                self.endpoints.insert(endpoint.clone(), spec.name.clone());
                kept.push((spec.name.clone(), was.priority, endpoint.clone()));
            }
        }
        let reasons: Vec<String> = here
            .iter()
            .filter_map(|f| Some(format!("{}: {}", f.name, f.endpoint.as_ref().err()?)))
            .take(3)
            .collect();
        let reasons =
            if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        let what = if kept.is_empty() {
            "and it is left out of the mesh"
        } else {
            "and its candidates stay as they were"
        };
        let message = format!(
            "no node of location {location} may lead, {what}: name one that can, or give one a public endpoint{reasons}"
        );
        self.report(subject.clone(), message);
        kept
    }

    /// Assigns slots. A slot stays with its node as long as that is a candidate; new candidates get the lowest free slots.
    ///
    /// A decision names slots, so a node that took over the leader's slot would lead without a decision. A slot that was in use until
    /// now is therefore reassigned one generation later, when that decision had to be made again; until then the new candidate is a
    /// member. It does not wait if no other node is left to lead.
    fn slots(
        &mut self,
        location: &LocationName,
        chosen: Vec<(NodeName, u16, Host)>,
    ) -> BTreeMap<NodeName, Candidate> {
        let had = |n: &NodeName| {
            self.previous.slot(n.as_str(), location.as_str()).filter(|s| *s <= Slot::MAX.0)
        };
        let mut used: BTreeSet<u8> = BTreeSet::new();
        let mut all = BTreeMap::new();
        let (old, new): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|(n, ..)| had(n).is_some_and(|s| used.insert(s)));
        for (name, priority, endpoint) in old {
            let slot = Slot(had(&name).expect("it had one"));
            all.insert(name, Candidate { slot, priority, endpoint });
        }
        let was = self.previous.slots_in(location.as_str());
        let alone = all.is_empty();
        // At most 15 are chosen, and there are 15 slots; 14 if one lies in a range that is taken. A candidate without a slot is a member.
        let ours = |s: &u8| !is_taken(self.inner, Slot(*s));
        let free = (0..=Slot::MAX.0).filter(|s| !used.contains(s) && ours(s)).take(new.len());
        let free = free.filter(|s| alone || !was.contains(s));
        for (slot, (name, priority, endpoint)) in free.zip(new) {
            all.insert(name, Candidate { slot: Slot(slot), priority, endpoint });
        }
        all
    }
}

/// Selects the witnesses: the nodes that a location's pool names; and if just two nodes would vote, so that each needs the other, one
/// more candidate of another location.
pub(super) fn witnesses(
    plans: &mut BTreeMap<LocationName, LocationPlan>,
    pools: &BTreeMap<LocationName, &Pool>,
    previous: &PreviousMesh,
    problems: &mut Vec<Problem>,
) {
    let candidates: BTreeMap<NodeName, LocationName> = plans
        .iter()
        .flat_map(|(l, p)| p.candidates.keys().map(move |n| (n.clone(), l.clone())))
        .collect();
    for (location, plan) in plans {
        let elsewhere = |n: &NodeName| candidates.get(n).is_some_and(|l| l != location);
        let mut chosen: Vec<NodeName> = Vec::new();
        if let Some(pool) = pools.get(location) {
            for name in &pool.spec.witnesses {
                let node = name.parse::<NodeName>().ok().filter(elsewhere);
                let why = match node {
                    None => "is no candidate of another location",
                    Some(node) if chosen.contains(&node) => "is named twice",
                    Some(_) if chosen.len() == MAX_WITNESSES => "exceeds the maximum of 4",
                    Some(node) => {
                        chosen.push(node);
                        continue;
                    }
                };
                let message = format!("spec.witnesses: {name} {why}: remove it");
                problems.push(Problem { subject: Subject::Pool(pool.name.clone()), message });
            }
        }
        if voters(plan, chosen.len()) == 2 {
            let was = previous.mesh.as_ref().and_then(|m| m.locations.get(location));
            let was = was.into_iter().flat_map(|l| l.witnesses.iter());
            let kept = was.filter(|n| elsewhere(n) && !chosen.contains(n)).min().cloned();
            let any = || {
                let others = candidates.keys().filter(|n| elsewhere(n) && !chosen.contains(n));
                turn_order::first_in_turn(others.map(NodeName::as_str), location.as_str())
                    .and_then(|n| n.parse().ok())
            };
            chosen.extend(kept.or_else(any));
        }
        plan.witnesses = chosen;
    }
}

/// Number of voters, as [`crate::mesh::Mesh::voters_of`] counts them.
fn voters(plan: &LocationPlan, witnesses: usize) -> usize {
    let have = plan.candidates.len() + witnesses;
    let want: usize = if have <= 3 { 3 } else { 5 };
    have + (plan.nodes - plan.candidates.len()).min(want.max(have) - have)
}
