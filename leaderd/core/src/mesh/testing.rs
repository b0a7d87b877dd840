//! Meshes for tests and simulations, made and changed without a file. Nothing is checked here: the caller keeps the rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wgctl_plan::WgPublicKey;

use super::index::CachedIndex;
use super::inner::InnerRange;
use super::model::{Mesh, MeshSpec};
use super::node::{ControlPublicKey, Node};
use crate::ids::{Generation, LocationName, NodeIndex, NodeName};

impl Mesh {
    pub fn unchecked(spec: MeshSpec) -> Self {
        Self::new(spec)
    }

    pub fn edit(&mut self) -> &mut MeshSpec {
        self.index = CachedIndex::default();
        &mut self.spec
    }

    pub fn with(mut self, change: impl FnOnce(&mut MeshSpec)) -> Self {
        change(self.edit());
        self
    }
}

impl MeshSpec {
    /// A mesh without locations and nodes; the rest as a mesh file has it that says nothing.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            generation: Generation(1),
            hash: [7; 32],
            inner: InnerRange { v4: "100.127.0.0/16".parse().expect("a prefix"), v6: None },
            base_port: 51_900,
            control_port: 7946,
            probe_ports: vec![8620, 8621, 8622],
            mtu: 1420,
            keepalive: 10,
            policy: Default::default(),
            commands: Default::default(),
            proof: Default::default(),
            locations: BTreeMap::new(),
            nodes: BTreeMap::new(),
        }
    }
}

impl Node {
    /// A member without prefixes, whose keys follow from its index.
    pub fn member(name: NodeName, index: u16, location: LocationName, address: IpAddr) -> Self {
        let key = [index as u8; 32];
        Self {
            name,
            index: NodeIndex(index),
            location,
            slot: None,
            priority: 100,
            endpoint: None,
            address,
            device: None,
            prefixes: Vec::new(),
            probe_addresses: Vec::new(),
            probe_addresses_written: false,
            wireguard_key: WgPublicKey(key),
            control_key: ControlPublicKey(key),
        }
    }
}
