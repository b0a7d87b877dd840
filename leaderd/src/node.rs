//! Where the core comes in: everything else in this crate says `crate::node::Node`.
//!
//! Until `leaderd_core::node` and `leaderd_core::mesh::parse` are there this holds a node of the same shape that decides nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use leaderd_core::ids::{LocationName, NodeName, Slot};
use leaderd_core::io::{Effect, Input, Restored};
use leaderd_core::mesh::{ControlPublicKey, Mesh};
use leaderd_core::state::Event;
use leaderd_core::status::Status;
use leaderd_core::time::{Instant, Now};
use wgctl_plan::{InterfaceName, Network};

#[derive(Debug)]
pub struct ProbeKeys(());
impl ProbeKeys {
    pub fn new(_private: [u8; 32]) -> Self {
        Self(())
    }
}

#[derive(Debug)]
pub struct NodeConfig {
    pub mesh: Arc<Mesh>,
    pub me: NodeName,
    pub keys: ProbeKeys,
    pub restored: BTreeMap<LocationName, Restored>,
    pub seed: u64,
    pub resolved: BTreeMap<String, IpAddr>,
    pub lan_device: Option<InterfaceName>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeError(String);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    pub name: NodeName,
    pub addresses: Vec<(Option<Slot>, SocketAddr)>,
    pub control_key: ControlPublicKey,
}

#[derive(Debug)]
pub struct Node {
    mesh: Arc<Mesh>,
    me: NodeName,
    desired: Network,
}

impl Node {
    pub fn new(config: NodeConfig, _now: Now) -> Result<Self, NodeError> {
        Ok(Self { mesh: config.mesh, me: config.me, desired: Network::default() })
    }
    pub fn handle_input(&mut self, _now: Now, input: Input) {
        if let Input::MeshChanged(mesh) = input {
            self.mesh = Arc::new(*mesh);
        }
    }
    pub fn poll_effect(&mut self) -> Option<Effect> {
        None
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    pub fn status(&self, _now: Now) -> Status {
        let me = self.mesh.node(&self.me).expect("this node is in the mesh");
        Status {
            mesh: self.mesh.name.clone(),
            node: self.me.clone(),
            location: me.location.clone(),
            generation: self.mesh.generation,
            mesh_hash: String::new(),
            other_generations: BTreeMap::new(),
            backend: String::new(),
            locations: vec![],
        }
    }
    pub fn events(&self) -> Vec<Event> {
        vec![]
    }
    pub fn peers(&self) -> Vec<Peer> {
        vec![]
    }
    pub fn counters(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }
    pub fn desired(&self) -> &Network {
        &self.desired
    }
}

/// A mistake in a mesh file.
pub type Diagnostic = String;

pub fn parse_mesh(_text: &str) -> Result<Mesh, Vec<Diagnostic>> {
    Err(vec!["this build cannot read mesh files".to_owned()])
}
