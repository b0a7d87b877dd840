//! Whose fault it is that a mesh file is no good, and what is left out for it.
//!
//! What nodes say is held against the mesh before, which was good: a node that is in it and clashes with others stays as it was, a new
//! one stays out. So one Node with nonsense in it costs nobody else a change. Who is at fault is found by trying, as the check of a
//! mesh file names one of two that clash, and cannot know which of them is new.

use std::collections::{BTreeMap, BTreeSet};

use super::before::Before;
use super::draft::Draft;
use super::settings::Settings;
use super::text::Blame;
use super::{Fault, Problem, Subject, problem};
use crate::cluster::view::ClusterView;
use crate::ids::{LocationName, NodeName};
use crate::mesh::Mesh;

/// Most drafts that are tried. Each bad node takes two to four, and one in a thousand good ones ten more.
const TRIES: u32 = 512;

/// What was left out, as the mesh file was no good with it.
#[derive(Clone, Default)]
pub(super) struct LeftOut {
    /// Nodes, and why. One of the mesh before stays as it was.
    pub nodes: BTreeMap<NodeName, String>,
    /// Of the departed candidates.
    pub leaving: BTreeSet<NodeName>,
    /// Locations whose pool's policy counts for nothing.
    pub policies: BTreeSet<LocationName>,
    /// Locations whose nodes' annotations about what else there is do not all count.
    pub prefixes: BTreeMap<LocationName, Besides>,
}

/// What a location has besides its nodes, if not what they say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Besides {
    AsBefore,
    Nothing,
}

impl LeftOut {
    /// True if some of it is the fault of a pool, or of what a location has besides its nodes.
    fn add(&mut self, faults: &[Fault], problems: &mut Vec<Problem>) -> bool {
        let mut more = false;
        for (blame, diagnostic) in faults {
            let (new, what) = match blame {
                Blame::Policy { location, .. } => {
                    (self.policies.insert(location.clone()), "spec.policy counts for nothing")
                }
                Blame::Prefixes(location) => {
                    let next = match self.prefixes.get(location) {
                        None => Besides::AsBefore,
                        Some(_) => Besides::Nothing,
                    };
                    let was = self.prefixes.insert(location.clone(), next);
                    (
                        was != Some(next),
                        "kilo.squat.ai/allowed-location-ips counts for nothing there",
                    )
                }
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

/// A mesh file, and what it says; or what is wrong with it.
type Outcome = Result<(String, Mesh), Vec<Fault>>;

/// All that a mesh file is made of.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub view: &'a ClusterView,
    pub before: &'a Before,
    pub settings: &'a Settings,
}

impl<'a> Case<'a> {
    /// The mesh to be, without what is at fault. Still no good only if that is nobody's but the settings'.
    pub fn settle(
        self,
        leaving: &BTreeSet<NodeName>,
        problems: &mut Vec<Problem>,
    ) -> (Draft<'a>, Outcome) {
        let mut left_out = LeftOut { leaving: leaving.clone(), ..LeftOut::default() };
        let mut all = Vec::new();
        let (draft, outcome) = self.attempt(&mut left_out, &mut all);
        let of_settings = |faults: &[Fault]| faults.iter().any(|(b, _)| *b == Blame::Settings);
        let mut judge = Judge { case: self, left_out: without(leaving, &draft), tries: 0 };
        let nobody = draft.new.is_empty() && draft.changed.is_empty();
        let all_new = draft.facts.keys().all(|n| draft.new.contains(n));
        let good = match &outcome {
            Ok(_) => true,
            Err(faults) => nobody || of_settings(faults) || !all_new && judge.attempt().is_err(),
        };
        if good {
            // Or without all of them it is no better.
            problems.append(&mut all);
            return (draft, outcome);
        }
        judge.admit(draft.new.into_iter().collect());
        judge.admit(draft.changed.into_iter().collect());
        let mut left_out = judge.left_out;
        let found = self.attempt(&mut left_out, problems);
        for (node, message) in &left_out.nodes {
            let subject = Subject::Node(node.to_string());
            problems.push(Problem { subject, message: message.clone() });
        }
        found
    }

    /// A draft without these, and without what of pools and locations is at fault then.
    fn attempt(self, left_out: &mut LeftOut, problems: &mut Vec<Problem>) -> (Draft<'a>, Outcome) {
        let Self { view, before, settings } = self;
        // Each round leaves out something more, so there are only so many.
        loop {
            let mut draft = Draft::of(view, before, settings, left_out);
            let outcome = draft.outcome(view, before, settings);
            match &outcome {
                Err(faults) if left_out.add(faults, problems) => {}
                _ => return (draft, outcome),
            }
        }
    }
}

/// All that could be at fault left out: every new node, and what is new of the others.
fn without(leaving: &BTreeSet<NodeName>, draft: &Draft<'_>) -> LeftOut {
    let nodes = draft.new.iter().chain(&draft.changed);
    LeftOut {
        nodes: nodes.map(|n| (n.clone(), TOO_MANY.to_owned())).collect(),
        leaving: leaving.clone(),
        ..LeftOut::default()
    }
}

const TOO_MANY: &str = "what it says is not looked at, as too many other nodes do not fit into the mesh: mend those first";

struct Judge<'a> {
    case: Case<'a>,
    left_out: LeftOut,
    tries: u32,
}

impl Judge<'_> {
    fn attempt(&mut self) -> Result<(), Vec<Fault>> {
        self.tries += 1;
        // What else is left out is no matter of the nodes, and is found again.
        let (_, outcome) = self.case.attempt(&mut self.left_out.clone(), &mut Vec::new());
        outcome.map(drop)
    }

    /// Takes those of the nodes that fit, and says of the others why they do not.
    fn admit(&mut self, nodes: Vec<NodeName>) {
        if nodes.is_empty() || self.tries >= TRIES {
            return;
        }
        let why = nodes.iter().filter_map(|n| self.left_out.nodes.remove_entry(n));
        let why: Vec<(NodeName, String)> = why.collect();
        let Err(faults) = self.attempt() else { return };
        self.left_out.nodes.extend(why);
        let blamed = |n: &NodeName| faults.iter().find(|(b, _)| *b == Blame::Node(n.clone()));
        if let [node] = &nodes[..] {
            if let Some((blame, diagnostic)) = blamed(node).or(faults.first()) {
                let what = match self.case.before.node(node.as_str()) {
                    Some(_) => "the node stays in the mesh as it was",
                    None => "the node is left out",
                };
                let message = format!("{} ({what})", problem(blame, diagnostic).message);
                self.left_out.nodes.insert(node.clone(), message);
            }
            return;
        }
        let (late, early): (Vec<_>, Vec<_>) =
            nodes.iter().cloned().partition(|n| blamed(n).is_some());
        let (first, second) = if early.is_empty() || late.is_empty() {
            let (a, b) = nodes.split_at(nodes.len() / 2);
            (a.to_vec(), b.to_vec())
        } else {
            (early, late)
        };
        self.admit(first);
        self.admit(second);
    }
}
