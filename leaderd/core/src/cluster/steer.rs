//! What Kilo is told.

use super::task::{NodeChange, Task};
use super::view::ClusterView;
use crate::ids::NodeName;
use crate::mesh::Mesh;
use crate::status::Status;

/// Changes of annotations that make Kilo follow the decisions, for every location with steering `kilo`.
pub fn kilo_changes(_: &ClusterView, _: &Mesh, _: &Status, _: &NodeName) -> Vec<Task> {
    Vec::new()
}

/// Everything of ours removed from the nodes, by one caller that waits for nobody.
pub fn uninstall_changes(_view: &ClusterView) -> Vec<NodeChange> {
    Vec::new()
}
