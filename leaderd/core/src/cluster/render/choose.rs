//! Who may lead a location, and who votes besides.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::before::Before;
use super::draft::fault;
use super::facts::Facts;
use super::{Fault, Problem, Refused, Subject};
use crate::cluster::rank;
use crate::cluster::view::{ClusterView, Pool};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, is_taken};

/// How many candidates a location has that does not say.
const DEFAULT_MAX: usize = 3;
/// Of candidates that nobody named.
const SELECTED_PRIORITY: u16 = 100;
const MAX_WITNESSES: usize = 4;

/// A location of the mesh to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// By name of the node.
    pub candidates: BTreeMap<NodeName, Candidate>,
    /// All its nodes, candidates among them.
    pub nodes: usize,
    pub refused: Vec<Refused>,
    pub witnesses: Vec<NodeName>,
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub slot: Slot,
    pub priority: u16,
    pub endpoint: Host,
}

/// What is known when candidates are chosen.
pub(super) struct Chooser<'a> {
    pub view: &'a ClusterView,
    pub before: &'a Before,
    pub inner: Ipv4Net,
    /// All nodes of the mesh to be.
    pub facts: &'a BTreeMap<NodeName, Facts>,
    /// Endpoints given out: all candidates listen on the same ports.
    pub taken: BTreeMap<Host, NodeName>,
    /// Nodes that have taken the endpoint of a candidate of the mesh before.
    pub robbed: Vec<Fault>,
    pub problems: &'a mut Vec<Problem>,
}

impl Chooser<'_> {
    fn say(&mut self, subject: Subject, message: String) {
        self.problems.push(Problem { subject, message });
    }

    /// The candidates of a location; those asked for that cannot are refused, with the reason.
    pub fn place(&mut self, location: &LocationName, pool: Option<&Pool>) -> Place {
        let all = self.facts.values().filter(|f| f.location == *location);
        let (gone, here): (Vec<&Facts>, Vec<&Facts>) = all.partition(|f| f.departed);
        let rule = pool.map(|p| p.spec.candidates.clone()).unwrap_or_default();
        let subject = || match pool {
            Some(pool) => Subject::Pool(pool.name.clone()),
            None => Subject::Location(location.to_string()),
        };
        let max = match rule.max {
            None => DEFAULT_MAX,
            Some(n @ 1..=15) => usize::from(n),
            Some(n) => {
                self.say(subject(), format!("spec.candidates.max is {n}: write 1 to 15"));
                usize::from(n.clamp(1, 15))
            }
        };
        let nodes = here.len() + gone.len();
        let mut place = Place { nodes, ..Place::default() };
        let mut chosen: Vec<(NodeName, u16, Host)> = Vec::new();
        let mut refuse = |node: &str, reason: String| {
            if !place.refused.iter().any(|r| r.node == node) {
                place.refused.push(Refused { node: node.to_owned(), reason });
            }
        };
        for (n, name) in rule.names.iter().enumerate() {
            let Some(facts) = here.iter().find(|f| f.name.as_str() == name) else {
                if gone.iter().any(|f| f.name.as_str() == name) {
                    continue;
                }
                refuse(name, self.why_not_here(name, location));
                continue;
            };
            if chosen.iter().any(|(c, ..)| *c == facts.name) {
                continue;
            }
            match self.endpoint_of(facts) {
                Err(reason) => refuse(name, reason),
                Ok(_) if chosen.len() == max => {
                    refuse(
                        name,
                        format!("there are {max} candidates before it: raise spec.candidates.max"),
                    );
                }
                Ok(endpoint) => {
                    let priority = u16::try_from(10 * (n + 1)).unwrap_or(u16::MAX);
                    self.taken.insert(endpoint.clone(), facts.name.clone());
                    chosen.push((facts.name.clone(), priority, endpoint));
                }
            }
        }
        let selective = !rule.match_labels.is_empty();
        if selective || rule.names.is_empty() {
            let mut others: Vec<&&Facts> =
                here.iter().filter(|f| !selective || self.matches(f, &rule.match_labels)).collect();
            if selective && others.is_empty() {
                let message = "spec.candidates.matchLabels selects no node of the location: change it, or label nodes";
                self.say(subject(), message.to_owned());
            }
            // Those that have a slot keep it: a new node must not push an old one out.
            let pinned = |f: &Facts| self.before.slot(f.name.as_str(), location.as_str()).is_none();
            others.sort_by_key(|f| (pinned(f), f.name.clone()));
            for facts in others {
                if chosen.iter().any(|(c, ..)| *c == facts.name) {
                    continue;
                }
                match self.endpoint_of(facts) {
                    Err(reason) if selective => refuse(facts.name.as_str(), reason),
                    Ok(endpoint) if chosen.len() < max => {
                        self.taken.insert(endpoint.clone(), facts.name.clone());
                        chosen.push((facts.name.clone(), SELECTED_PRIORITY, endpoint));
                    }
                    _ => {}
                }
            }
        }
        // Beyond the most that there may be: who is to take over must not have to wait for them.
        for facts in gone {
            let was = self.before.node(facts.name.as_str());
            if let (Ok(endpoint), Some(was)) = (self.endpoint_of(facts), was) {
                self.taken.insert(endpoint.clone(), facts.name.clone());
                chosen.push((facts.name.clone(), was.priority, endpoint));
            }
        }
        if chosen.is_empty() {
            chosen = self.keep(location, &here, &subject());
        }
        for (name, priority) in &rule.priorities {
            match chosen.iter_mut().find(|(c, ..)| c.as_str() == name) {
                Some(candidate) => candidate.1 = *priority,
                None => self.say(
                    subject(),
                    format!(
                        "spec.candidates.priorities names {name}, which is no candidate: remove it"
                    ),
                ),
            }
        }
        place.refused.sort_by(|a, b| a.node.cmp(&b.node));
        for refused in &place.refused {
            let message = format!("node {} may not lead: {}", refused.node, refused.reason);
            self.say(subject(), message);
        }
        place.candidates = self.slots(location, chosen);
        place
    }

    fn matches(&self, facts: &Facts, labels: &BTreeMap<String, String>) -> bool {
        self.view
            .nodes
            .get(facts.name.as_str())
            .is_some_and(|n| labels.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
    }

    fn why_not_here(&self, name: &str, location: &LocationName) -> String {
        match (self.facts.values().find(|f| f.name.as_str() == name), self.view.nodes.get(name)) {
            (Some(f), _) => format!("it is in location {}, not in {location}", f.location),
            (None, Some(node)) if !rank::has_daemon(node) => {
                "its leaderd has not published its keys yet: see that it runs there".to_owned()
            }
            (None, Some(_)) => {
                "it is left out of the mesh: see the problems of that node".to_owned()
            }
            (None, None) => {
                "there is no such node in the cluster: correct the name, or remove it".to_owned()
            }
        }
    }

    fn endpoint_of(&mut self, facts: &Facts) -> Result<Host, String> {
        let endpoint = facts.endpoint.clone()?;
        let other = match self.taken.get(&endpoint) {
            Some(other) if *other != facts.name => other.clone(),
            _ => return Ok(endpoint),
        };
        let had = |n: &NodeName| {
            self.before.node(n.as_str()).is_some_and(|w| w.endpoint.as_ref() == Some(&endpoint))
        };
        if had(&facts.name) && !had(&other) {
            let message = format!("{other} has the endpoint of candidate {}", facts.name);
            self.robbed.push(fault(&other, message, "give it an address of its own"));
        }
        Err(format!(
            "its endpoint is that of candidate {other}, and both would listen on the same ports: give it an address of its own"
        ))
    }

    /// Where nobody may lead, those that did go on: a location without a candidate would fall out of the mesh.
    fn keep(
        &mut self,
        location: &LocationName,
        here: &[&Facts],
        subject: &Subject,
    ) -> Vec<(NodeName, u16, Host)> {
        let mut kept = Vec::new();
        for facts in here {
            let Some(was) = self.before.node(facts.name.as_str()) else { continue };
            let (Some(_), Some(endpoint), true) =
                (was.slot, &was.endpoint, was.location == *location)
            else {
                continue;
            };
            if self.taken.get(endpoint).is_none_or(|t| *t == facts.name) {
                self.taken.insert(endpoint.clone(), facts.name.clone());
                kept.push((facts.name.clone(), was.priority, endpoint.clone()));
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
        self.say(subject.clone(), message);
        kept
    }

    /// A slot stays with its node as long as it is a candidate; new ones get the lowest that are free.
    ///
    /// A decision names slots, so whoever took the leader's slot over would lead unseen. What was somebody's until now is
    /// therefore given out a generation later, when that decision had to be made anew; until then the new candidate is a member. Only
    /// where nobody else is left to lead does it not wait.
    fn slots(
        &mut self,
        location: &LocationName,
        chosen: Vec<(NodeName, u16, Host)>,
    ) -> BTreeMap<NodeName, Candidate> {
        let had = |n: &NodeName| {
            self.before.slot(n.as_str(), location.as_str()).filter(|s| *s <= Slot::MAX.0)
        };
        let mut used: BTreeSet<u8> = BTreeSet::new();
        let mut all = BTreeMap::new();
        let (old, new): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|(n, ..)| had(n).is_some_and(|s| used.insert(s)));
        for (name, priority, endpoint) in old {
            let slot = Slot(had(&name).expect("it had one"));
            all.insert(name, Candidate { slot, priority, endpoint });
        }
        let was = self.before.slots_in(location.as_str());
        let alone = all.is_empty();
        // At most 15 are chosen, and 15 there are; 14 where one is somebody else's. Whoever gets none is a member.
        let ours = |s: &u8| !is_taken(self.inner, Slot(*s));
        let free = (0..=Slot::MAX.0).filter(|s| !used.contains(s) && ours(s)).take(new.len());
        let free = free.filter(|s| alone || !was.contains(s));
        for (slot, (name, priority, endpoint)) in free.zip(new) {
            all.insert(name, Candidate { slot: Slot(slot), priority, endpoint });
        }
        all
    }
}

/// Who votes besides a location's own nodes: those that its pool names; and where just two would vote, of which neither can do
/// without the other, one more candidate from elsewhere.
pub(super) fn witnesses(
    places: &mut BTreeMap<LocationName, Place>,
    pools: &BTreeMap<LocationName, &Pool>,
    before: &Before,
    problems: &mut Vec<Problem>,
) {
    let candidates: BTreeMap<NodeName, LocationName> = places
        .iter()
        .flat_map(|(l, p)| p.candidates.keys().map(move |n| (n.clone(), l.clone())))
        .collect();
    for (location, place) in places {
        let elsewhere = |n: &NodeName| candidates.get(n).is_some_and(|l| l != location);
        let mut chosen: Vec<NodeName> = Vec::new();
        if let Some(pool) = pools.get(location) {
            for name in &pool.spec.witnesses {
                let node = name.parse::<NodeName>().ok().filter(elsewhere);
                let why = match node {
                    None => "is no candidate of another location",
                    Some(node) if chosen.contains(&node) => "is named twice",
                    Some(_) if chosen.len() == MAX_WITNESSES => "is one too many: 4 are the most",
                    Some(node) => {
                        chosen.push(node);
                        continue;
                    }
                };
                let message = format!("spec.witnesses: {name} {why}: remove it");
                problems.push(Problem { subject: Subject::Pool(pool.name.clone()), message });
            }
        }
        if voters(place, chosen.len()) == 2 {
            let was = before.mesh.as_ref().and_then(|m| m.locations.get(location));
            let was = was.into_iter().flat_map(|l| l.witnesses.iter());
            let kept = was.filter(|n| elsewhere(n) && !chosen.contains(n)).min().cloned();
            let any = || {
                let others = candidates.keys().filter(|n| elsewhere(n) && !chosen.contains(n));
                rank::first(others.map(NodeName::as_str), location.as_str())
                    .and_then(|n| n.parse().ok())
            };
            chosen.extend(kept.or_else(any));
        }
        place.witnesses = chosen;
    }
}

/// As [`crate::mesh::Mesh::voters_of`] will count.
fn voters(place: &Place, witnesses: usize) -> usize {
    let have = place.candidates.len() + witnesses;
    let want: usize = if have <= 3 { 3 } else { 5 };
    have + (place.nodes - place.candidates.len()).min(want.max(have) - have)
}
