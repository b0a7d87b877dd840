//! Renders the text of `mesh.toml` from the cluster.
//!
//! ```text
//! nodes → specs ──┐
//! pools ──────────┼→ candidates, slots, witnesses → text → mesh::parse
//! previous mesh ──┘        ↑ again without the parts at fault (`exclude`)
//! ```
//!
//! The previous mesh pins indexes, slots and keys. A node stays in the mesh as long as its Node exists: fields that the Node no longer
//! has come from the previous mesh, and so does the whole node if its new values do not fit. A candidate stays even without a Node, until
//! it is seen not to lead (`plan::depart`).

mod candidates;
mod draft;
mod exclude;
mod indexes;
mod inner;
mod node_spec;
mod prefixes;
mod previous;
mod settings;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::view::{ClusterView, Steering};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{self, Diagnostic, Mesh};

use exclude::RenderInput;
pub(super) use node_spec::location_of;
pub use prefixes::PrefixSource;
use previous::PreviousMesh;
use text::Origin;

/// The result of rendering a view.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rendered {
    /// The mesh file that should be in force: the previous one, byte for byte, if only its form would differ. `None`: no valid one can
    /// be made (the problems say why), and the one in force stays.
    pub text: Option<String>,
    /// `text`, parsed.
    pub mesh: Option<Arc<Mesh>>,
    /// The mesh file in force was made with settings of a later revision than this daemon has, or with objects of a CNI that it does
    /// not see: it leaves writing to others.
    pub outdated: bool,
    /// In the order of subjects.
    pub problems: Vec<Problem>,
    /// The result for each pool, by its name.
    pub pools: BTreeMap<String, RenderedPool>,
    /// Nodes of which the mesh does not take everything, by name.
    pub refusals: BTreeMap<String, Refusal>,
    /// Candidates in the mesh whose Node object is gone, or names no endpoint any more.
    pub departed: BTreeSet<NodeName>,
}

/// A change of a Node that the mesh does not take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub why: RefusalReason,
    pub message: String,
}

/// Why a change is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalReason {
    /// The node publishes other keys than those pinned, which stay in the mesh.
    KeyChanged,
    /// The node's new values do not fit into the mesh: it stays as it was.
    Held,
    /// The values of a new node do not fit into the mesh: it is left out.
    LeftOut,
}

impl RefusalReason {
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

/// The result for a pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RenderedPool {
    /// `None` if the pool has no effect (no such location, or another pool has it): see the problems.
    pub location: Option<LocationName>,
    pub steering: Steering,
    /// Another location of the mesh is only observed.
    pub beside_observed: bool,
    /// By slot.
    pub candidates: Vec<RenderedCandidate>,
    /// Nodes that the pool names and that may not lead, by name.
    pub refused: Vec<RefusedCandidate>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RenderedCandidate {
    pub node: NodeName,
    pub slot: Slot,
    pub priority: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedCandidate {
    pub node: String,
    pub reason: String,
}

/// Renders the mesh file of a cluster. Deterministic: from one view every node renders the same bytes.
///
/// A mistake in one node, pool or location is a problem and does not affect the others. Only a mistake in the settings keeps the mesh in
/// force as it is.
pub fn render(view: &ClusterView, settings: &str) -> Rendered {
    render_without(view, settings, &BTreeSet::new())
}

/// Renders without these departed candidates: they leave, or become members if their Node object exists.
pub(super) fn render_without(
    view: &ClusterView,
    settings: &str,
    leaving: &BTreeSet<NodeName>,
) -> Rendered {
    let mut problems = Vec::new();
    let settings_read = settings::read(settings, &mut problems);
    let previous = PreviousMesh::of(view, &mut problems);
    let settings_valid = settings_read.is_some();
    let settings = settings_read.unwrap_or_default();
    let input = RenderInput { view, previous: &previous, settings: &settings };
    let (mut draft, outcome) = input.resolve(leaving, &mut problems);
    problems.append(&mut draft.problems);
    problems.extend(outcome.iter().flat_map(|(_, mesh)| ambiguous(mesh)));
    let refusals = draft.refusals();
    let pools = draft.pools;
    let departed = draft.specs.values().filter(|f| f.departed).map(|f| f.name.clone());
    let departed = departed.collect();
    let found = match outcome {
        Ok(found) => Some(found),
        Err(errors) => {
            problems.extend(errors.into_iter().map(|(origin, d)| problem(&origin, &d)));
            None
        }
    };
    problems.sort();
    problems.dedup();
    let (text, mesh) = found.filter(|_| settings_valid).unzip();
    let outdated = settings.revision < previous.revision && settings.mark() != previous.mark
        || prefixes::is_behind(settings.prefixes, view, previous.source);
    Rendered { text, mesh, outdated, problems, pools, departed, refusals }
}

/// Nodes that other locations reach only at their Pods, as two have the same address.
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

/// Returns the source of nodes' prefixes according to the settings.
pub fn prefix_source(settings: &str) -> PrefixSource {
    settings::read(settings, &mut Vec::new()).unwrap_or_default().prefixes
}

/// A mistake, and the part of the input at fault.
type RenderError = (Origin, Diagnostic);

fn problem(origin: &Origin, d: &Diagnostic) -> Problem {
    let subject = match origin {
        Origin::Settings => Subject::Settings,
        Origin::Whole => Subject::Mesh,
        Origin::Policy { pool: Some(pool), .. } => Subject::Pool(pool.clone()),
        Origin::Location(l) | Origin::Prefixes(l) | Origin::Policy { location: l, .. } => {
            Subject::Location(l.to_string())
        }
        Origin::Node(n) => Subject::Node(n.to_string()),
    };
    let message =
        if d.help.is_empty() { d.message.clone() } else { format!("{}: {}", d.message, d.help) };
    Problem { subject, message }
}

/// An error of a node that belongs to no line of the text.
fn node_error(node: &NodeName, message: String, help: &str) -> RenderError {
    let diagnostic = Diagnostic { line: 0, column: 0, message, help: help.to_owned(), span: 0..0 };
    (Origin::Node(node.clone()), diagnostic)
}
