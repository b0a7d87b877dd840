//! From the cluster to the text of `mesh.toml`.
//!
//! ```text
//! nodes → facts ┐
//! pools ────────┼→ choose (candidates, slots, witnesses) → text → mesh::parse
//! mesh before ──┘        ↑ again without what was at fault (`judge`)
//! ```
//!
//! Indexes, slots and keys are pinned by the mesh before. A node that is in it stays in it as long as the Node exists: what it no longer
//! says is taken from there, and so is everything if what it says now does not fit. A candidate stays even without a Node, until it is
//! seen not to lead (`depart`).

mod before;
mod choose;
mod draft;
mod facts;
mod inner;
mod judge;
mod numbers;
mod prefixes;
mod settings;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::view::{ClusterView, Steering};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{self, Diagnostic, Mesh};

use before::Before;
pub(super) use facts::location_of;
use judge::Case;
pub use prefixes::PrefixSource;
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
    /// By name: nodes of which something is not taken into the mesh.
    pub refusals: BTreeMap<String, Refusal>,
    /// Candidates that are in it although their Node object is gone, or says no endpoint any more.
    pub departed: BTreeSet<NodeName>,
}

/// Why what a Node says is not taken into the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub why: Why,
    pub message: String,
}

/// The same in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It publishes other keys than those that it is known by, which stay in the mesh.
    KeyChanged,
    /// What it says does not fit into the mesh: it stays in it as it was.
    Held,
    /// What it says does not fit into the mesh, which it was not in: it is left out.
    LeftOut,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyChanged => "KeyChanged",
            Self::Held => "Held",
            Self::LeftOut => "LeftOut",
        }
    }
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
/// What is wrong with one node, pool or location is a problem and leaves the others be. Only a mistake in the settings leaves the mesh
/// in force as it is.
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
    let case = Case { view, before: &before, settings: &settings };
    let (mut draft, outcome) = case.settle(leaving, &mut problems);
    problems.append(&mut draft.problems);
    problems.extend(outcome.iter().flat_map(|(_, mesh)| ambiguous(mesh)));
    let refusals = draft.refusals();
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
    Rendered { text, mesh, outdated, problems, pools, departed, refusals }
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
