//! Where the core comes in: everything else in this crate says `crate::node::Node`.

pub use leaderd_core::mesh::parse as parse_mesh;
pub use leaderd_core::node::{Node, NodeConfig, NodeError, Peer, PeerAddress};
pub use leaderd_core::probe::keys::ProbeKeys;
