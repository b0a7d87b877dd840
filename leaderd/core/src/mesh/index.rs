//! Which nodes a location has, and whose an address is: computed once for a mesh, as every probe and every frame asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::OnceLock;

use super::node::{Host, Node};
use crate::ids::{LocationName, NodeIndex, NodeName};

/// An [`Index`] that is computed when it is first needed. It is no part of what a mesh says: a clone starts without it, and all are
/// equal.
#[derive(Default)]
pub(super) struct CachedIndex(OnceLock<Index>);

impl CachedIndex {
    pub(super) fn of(&self, nodes: &BTreeMap<NodeName, Node>) -> &Index {
        self.0.get_or_init(|| Index::of(nodes))
    }
}

impl Clone for CachedIndex {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for CachedIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for CachedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CachedIndex")
    }
}

/// Names of nodes by what they are looked up by.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_location: BTreeMap<LocationName, Vec<NodeName>>,
    by_index: BTreeMap<NodeIndex, NodeName>,
    by_probe_address: BTreeMap<IpAddr, NodeName>,
    /// Nodes of different locations may have the same one.
    by_address: BTreeMap<IpAddr, Vec<NodeName>>,
    endpoints: BTreeSet<IpAddr>,
}

impl Index {
    fn of(nodes: &BTreeMap<NodeName, Node>) -> Self {
        let mut index = Self::default();
        for node in nodes.values() {
            let name = || node.name.clone();
            index.by_address.entry(node.address).or_default().push(name());
            if let Some(Host::Ip(ip)) = node.endpoint {
                index.endpoints.insert(ip);
            }
            index.by_location.entry(node.location.clone()).or_default().push(name());
            index.by_index.insert(node.index, name());
            for address in &node.probe_addresses {
                index.by_probe_address.entry(*address).or_insert_with(name);
            }
        }
        index
    }

    /// Returns the nodes of a location, by name.
    pub(super) fn location(&self, location: &LocationName) -> &[NodeName] {
        self.by_location.get(location).map_or(&[], Vec::as_slice)
    }

    pub(super) fn node(&self, index: NodeIndex) -> Option<&NodeName> {
        self.by_index.get(&index)
    }

    /// Returns the nodes with this LAN address.
    pub(super) fn at_address(&self, address: IpAddr) -> &[NodeName] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Whether a candidate's endpoint is written as this address.
    pub(super) fn is_endpoint(&self, address: IpAddr) -> bool {
        self.endpoints.contains(&address)
    }

    /// Returns the node that answers probes at this address.
    pub(super) fn probed(&self, address: IpAddr) -> Option<&NodeName> {
        self.by_probe_address.get(&address)
    }
}
