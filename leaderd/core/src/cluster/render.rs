//! From the cluster to the text of `mesh.toml`.

use std::collections::BTreeMap;

use super::view::{ClusterView, Steering};
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::Mesh;

/// What became of a view.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rendered {
    /// The mesh file that shall be in force: byte for byte the one before if nothing but its form would differ. `None`: no good one
    /// can be made (the problems say why), and the one in force stays.
    pub text: Option<String>,
    /// `text`, read.
    pub mesh: Option<Mesh>,
    /// In the order of subjects. Empty: all is well.
    pub problems: Vec<Problem>,
    /// By name: what each pool came to.
    pub pools: BTreeMap<String, RenderedPool>,
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
pub fn render(_view: &ClusterView, _settings: &str) -> Rendered {
    Rendered::default()
}
