//! Assigns node indexes. A node's inner addresses and the identifiers in routes, tunnels, probes and logs follow from its index: an index
//! that was in use is reassigned only when all others have been used too.

use std::collections::{BTreeMap, BTreeSet};

use super::previous::PreviousMesh;
use crate::ids::NodeName;
use crate::kubernetes::view::ClusterView;

/// The highest index.
const LAST: u16 = 4094;

#[derive(Debug, Default)]
pub(super) struct Indexes {
    pub indexes: BTreeMap<NodeName, u16>,
    /// Indexes of nodes that have left the mesh: the earliest first.
    pub given_up: Vec<(String, u16)>,
}

impl Indexes {
    /// An index stays with its node, and stays reserved when the node has left the mesh. New nodes get, in order of their names, the lowest
    /// indexes that were never used; then the ones given up earliest by nodes that are no longer in the cluster.
    pub fn of<'a>(
        nodes: impl Iterator<Item = &'a NodeName>,
        view: &ClusterView,
        previous: &PreviousMesh,
    ) -> Self {
        let nodes: Vec<&NodeName> = nodes.collect();
        let here: BTreeSet<&str> = nodes.iter().map(|n| n.as_str()).collect();
        let had = previous.indexes().map(|(n, i)| (n.to_owned(), i));
        let had = previous.given_up.iter().cloned().chain(had);
        let mut waiting: Vec<(String, u16)> = Vec::new();
        let mut indexes = BTreeMap::new();
        let mut used = BTreeSet::new();
        for (name, index) in had {
            if let (true, Ok(node)) = (here.contains(name.as_str()), name.parse::<NodeName>()) {
                used.insert(index);
                indexes.insert(node, index);
            } else {
                waiting.push((name, index));
            }
        }
        waiting.retain(|(_, i)| used.insert(*i));
        let mut fresh = (1..=LAST).filter(|i| !used.contains(i));
        for name in nodes {
            if indexes.contains_key(name) {
                continue;
            }
            let old = || waiting.iter().position(|(n, _)| !view.nodes.contains_key(n));
            let index = match fresh.next() {
                Some(index) => index,
                // The mesh file's own check reports that there are too many nodes.
                None => old().map_or(LAST + 1, |at| waiting.remove(at).1),
            };
            indexes.insert(name.clone(), index);
        }
        Self { indexes, given_up: waiting }
    }
}
