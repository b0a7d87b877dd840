//! Which nodes a location has, and whose an address is: found once for a mesh, as every probe and every frame asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::OnceLock;

use super::model::{Host, Mesh, Node};
use crate::ids::{LocationName, NodeIndex, NodeName};

/// Made when first asked. It is no part of what a mesh says: clones start without it, and all are equal. Whoever changes the
/// nodes of a mesh (a test) does so before anybody asks, or changes a clone.
#[derive(Default)]
pub struct Index(OnceLock<Found>);

#[derive(Debug)]
struct Found {
    by_location: BTreeMap<LocationName, Vec<NodeName>>,
    by_index: BTreeMap<NodeIndex, NodeName>,
    by_probe_address: BTreeMap<IpAddr, NodeName>,
    /// Nodes of different locations may have the same one.
    by_address: BTreeMap<IpAddr, Vec<NodeName>>,
    endpoints: BTreeSet<IpAddr>,
}

impl Clone for Index {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Index {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Index")
    }
}

impl Index {
    fn of<'a>(&'a self, mesh: &Mesh) -> &'a Found {
        self.0.get_or_init(|| {
            let mut by_location: BTreeMap<LocationName, Vec<NodeName>> = BTreeMap::new();
            let (mut by_index, mut by_probe_address) = (BTreeMap::new(), BTreeMap::new());
            let mut by_address: BTreeMap<IpAddr, Vec<NodeName>> = BTreeMap::new();
            let mut endpoints = BTreeSet::new();
            for node in mesh.nodes.values() {
                by_address.entry(node.address).or_default().push(node.name.clone());
                if let Some(Host::Ip(ip)) = node.endpoint {
                    endpoints.insert(ip);
                }
                by_location.entry(node.location.clone()).or_default().push(node.name.clone());
                by_index.insert(node.index, node.name.clone());
                for address in &node.probe_addresses {
                    by_probe_address.entry(*address).or_insert_with(|| node.name.clone());
                }
            }
            Found { by_location, by_index, by_probe_address, by_address, endpoints }
        })
    }

    pub(super) fn location<'a>(
        &'a self,
        mesh: &'a Mesh,
        location: &LocationName,
    ) -> &'a [NodeName] {
        self.of(mesh).by_location.get(location).map_or(&[], Vec::as_slice)
    }

    pub(super) fn node<'a>(&'a self, mesh: &'a Mesh, index: NodeIndex) -> Option<&'a Node> {
        mesh.nodes.get(self.of(mesh).by_index.get(&index)?)
    }

    /// The nodes with this LAN address.
    pub(super) fn at_address<'a>(
        &'a self,
        mesh: &'a Mesh,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Node> {
        let found = self.of(mesh).by_address.get(&address).map_or(&[][..], Vec::as_slice);
        found.iter().filter_map(|n| mesh.nodes.get(n))
    }

    /// Whether a candidate's endpoint is written as this address.
    pub(super) fn is_endpoint(&self, mesh: &Mesh, address: IpAddr) -> bool {
        self.of(mesh).endpoints.contains(&address)
    }

    pub(super) fn probed<'a>(&'a self, mesh: &'a Mesh, address: IpAddr) -> Option<&'a Node> {
        mesh.nodes.get(self.of(mesh).by_probe_address.get(&address)?)
    }
}
