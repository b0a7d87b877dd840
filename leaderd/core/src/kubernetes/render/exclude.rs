//! Finds out which parts make a mesh file invalid, and leaves them out.
//!
//! The previous mesh was valid. A node of it that now conflicts with others stays as it was, and a new node stays out. So one Node with
//! nonsense in it blocks no change of another. The search tries drafts, as the check of a mesh file names one of two nodes that
//! conflict, and cannot know which of them is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::draft::Draft;
use super::previous::PreviousMesh;
use super::settings::Settings;
use super::text::Origin;
use super::{Problem, RenderError, Subject, problem};
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::view::ClusterView;
use crate::mesh::Mesh;

/// Most drafts that are tried. Each bad node takes two to four; one bad node among a thousand good ones takes ten more.
const TRIES: u32 = 512;

/// What is left out, as the mesh file was invalid with it.
#[derive(Clone, Default)]
pub(super) struct Exclusions {
    /// Nodes, and why. A node of the previous mesh stays as it was.
    pub nodes: BTreeMap<NodeName, String>,
    /// Departed candidates that leave.
    pub leaving: BTreeSet<NodeName>,
    /// Locations whose pool's policy is ignored.
    pub policies: BTreeSet<LocationName>,
    /// Locations whose nodes' annotations about location prefixes are ignored in part.
    pub prefixes: BTreeMap<LocationName, LocationPrefixes>,
}

/// What replaces the location prefixes that nodes' annotations name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LocationPrefixes {
    Previous,
    None,
}

impl Exclusions {
    /// Leaves out the policies and location prefixes that are at fault. True if any were.
    fn add(&mut self, errors: &[RenderError], problems: &mut Vec<Problem>) -> bool {
        let mut more = false;
        for (origin, diagnostic) in errors {
            let (new, what) = match origin {
                Origin::Policy { location, .. } => {
                    (self.policies.insert(location.clone()), "spec.policy is ignored")
                }
                Origin::Prefixes(location) => {
                    let next = match self.prefixes.get(location) {
                        None => LocationPrefixes::Previous,
                        Some(_) => LocationPrefixes::None,
                    };
                    let was = self.prefixes.insert(location.clone(), next);
                    (was != Some(next), "kilo.squat.ai/allowed-location-ips is ignored there")
                }
                _ => continue,
            };
            let mut p = problem(origin, diagnostic);
            p.message = format!("{} ({what})", p.message);
            problems.push(p);
            more |= new;
        }
        more
    }
}

/// A mesh file and the parsed mesh; or what is wrong with it.
type Outcome = Result<(String, Arc<Mesh>), Vec<RenderError>>;

/// Everything that a mesh file is made from.
#[derive(Clone, Copy)]
pub(super) struct RenderInput<'a> {
    pub view: &'a ClusterView,
    pub previous: &'a PreviousMesh,
    pub settings: &'a Settings,
}

impl<'a> RenderInput<'a> {
    /// Returns the new mesh without the parts at fault. It is still invalid only if the settings are at fault.
    pub fn resolve(
        self,
        leaving: &BTreeSet<NodeName>,
        problems: &mut Vec<Problem>,
    ) -> (Draft<'a>, Outcome) {
        let mut exclusions = Exclusions { leaving: leaving.clone(), ..Exclusions::default() };
        let mut all = Vec::new();
        let (draft, outcome) = self.attempt(&mut exclusions, &mut all);
        let of_settings =
            |errors: &[RenderError]| errors.iter().any(|(b, _)| *b == Origin::Settings);
        let mut search =
            ExclusionSearch { input: self, exclusions: without(leaving, &draft), tries: 0 };
        let no_change = draft.new.is_empty() && draft.changed.is_empty();
        let all_new = draft.specs.keys().all(|n| draft.new.contains(n));
        let done = match &outcome {
            Ok(_) => true,
            Err(errors) => {
                no_change || of_settings(errors) || !all_new && search.attempt().is_err()
            }
        };
        if done {
            // The text is valid, or leaving out nodes does not help.
            problems.append(&mut all);
            return (draft, outcome);
        }
        search.admit(draft.new.into_iter().collect());
        search.admit(draft.changed.into_iter().collect());
        let mut exclusions = search.exclusions;
        let found = self.attempt(&mut exclusions, problems);
        for (node, message) in &exclusions.nodes {
            let subject = Subject::Node(node.to_string());
            problems.push(Problem { subject, message: message.clone() });
        }
        found
    }

    /// Drafts without these exclusions, and without the policies and location prefixes that are then at fault.
    fn attempt(
        self,
        exclusions: &mut Exclusions,
        problems: &mut Vec<Problem>,
    ) -> (Draft<'a>, Outcome) {
        let Self { view, previous, settings } = self;
        // Each round leaves out more, so the loop ends.
        loop {
            let mut draft = Draft::of(view, previous, settings, exclusions);
            let outcome = draft.outcome(view, previous, settings);
            match &outcome {
                Err(errors) if exclusions.add(errors, problems) => {}
                _ => return (draft, outcome),
            }
        }
    }
}

/// Excludes everything that could be at fault: every new node, and every change of the others.
fn without(leaving: &BTreeSet<NodeName>, draft: &Draft<'_>) -> Exclusions {
    let nodes = draft.new.iter().chain(&draft.changed);
    Exclusions {
        nodes: nodes.map(|n| (n.clone(), TOO_MANY.to_owned())).collect(),
        leaving: leaving.clone(),
        ..Exclusions::default()
    }
}

const TOO_MANY: &str =
    "its values are not checked, as too many other nodes do not fit into the mesh: fix those first";

struct ExclusionSearch<'a> {
    input: RenderInput<'a>,
    exclusions: Exclusions,
    tries: u32,
}

impl ExclusionSearch<'_> {
    fn attempt(&mut self) -> Result<(), Vec<RenderError>> {
        self.tries += 1;
        // Other exclusions do not depend on the nodes, and are found again.
        let (_, outcome) = self.input.attempt(&mut self.exclusions.clone(), &mut Vec::new());
        outcome.map(drop)
    }

    /// Admits the nodes that fit, and records why the others do not.
    fn admit(&mut self, nodes: Vec<NodeName>) {
        if nodes.is_empty() || self.tries >= TRIES {
            return;
        }
        let why = nodes.iter().filter_map(|n| self.exclusions.nodes.remove_entry(n));
        let why: Vec<(NodeName, String)> = why.collect();
        let Err(errors) = self.attempt() else { return };
        self.exclusions.nodes.extend(why);
        let blamed = |n: &NodeName| errors.iter().find(|(b, _)| *b == Origin::Node(n.clone()));
        if let [node] = &nodes[..] {
            if let Some((origin, diagnostic)) = blamed(node).or(errors.first()) {
                let what = match self.input.previous.node(node.as_str()) {
                    Some(_) => "the node stays in the mesh as it was",
                    None => "the node is left out",
                };
                let message = format!("{} ({what})", problem(origin, diagnostic).message);
                self.exclusions.nodes.insert(node.clone(), message);
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
