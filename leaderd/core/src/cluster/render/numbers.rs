//! Indexes: who has which, and who had it. A node's inner addresses follow from its index, and so do the names that routes, tunnels,
//! probes and logs know it by: one that was somebody's is given to another only when all others have been used too.

use std::collections::{BTreeMap, BTreeSet};

use super::before::Before;
use crate::cluster::view::ClusterView;
use crate::ids::NodeName;

/// The highest that there is.
const LAST: u16 = 4094;

#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub indexes: BTreeMap<NodeName, u16>,
    /// Of nodes that were in the mesh, and whose index is nobody's now: the longest ago first.
    pub given_up: Vec<(String, u16)>,
}

impl Numbers {
    /// An index stays with its node, and waits for it when that has left the mesh. New nodes get the lowest that nobody ever had,
    /// by name; then those that were given up the longest ago, of nodes that are no longer in the cluster.
    pub fn of<'a>(
        nodes: impl Iterator<Item = &'a NodeName>,
        view: &ClusterView,
        before: &Before,
    ) -> Self {
        let nodes: Vec<&NodeName> = nodes.collect();
        let here: BTreeSet<&str> = nodes.iter().map(|n| n.as_str()).collect();
        let had = before.indexes().map(|(n, i)| (n.to_owned(), i));
        let had = before.given_up.iter().cloned().chain(had);
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
                // One too many is said by the mesh file's own check.
                None => old().map_or(LAST + 1, |at| waiting.remove(at).1),
            };
            indexes.insert(name.clone(), index);
        }
        Self { indexes, given_up: waiting }
    }
}
