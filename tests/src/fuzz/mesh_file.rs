use std::collections::BTreeMap;

use leaderd_core::mesh;
use leaderd_core::topology::{TopologyInput, desired};

/// Nodes whose network is computed.
const MAX_NODES: usize = 8;

/// A mesh file: every mistake has a place in the text; a good mesh has a network for every node.
pub fn mesh_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match mesh::parse(&text) {
        Ok(mesh) => {
            let (leaders, resolved) = (BTreeMap::new(), BTreeMap::new());
            for me in mesh.nodes.keys().take(MAX_NODES) {
                desired(&TopologyInput {
                    mesh: &mesh,
                    me,
                    leaders: &leaders,
                    relays: &BTreeMap::new(),
                    resolved: &resolved,
                    lan_device: None,
                    lan_mtu: None,
                    holds_address: true,
                    carried: &Default::default(),
                });
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let lines = text.bytes().filter(|b| *b == b'\n').count() + 1;
            for m in mistakes {
                assert!((1..=lines).contains(&m.line) && m.column >= 1, "{m:?}");
            }
        }
    }
}
