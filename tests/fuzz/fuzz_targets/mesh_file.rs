//! Any text as a mesh file: no panic; every mistake has a place in the text; a good mesh has a network for every node.

#![no_main]

use std::collections::BTreeMap;

use leaderd_core::mesh;
use leaderd_core::topology::{TopologyInput, desired};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match mesh::parse(text) {
        Ok(mesh) => {
            let (leaders, resolved) = (BTreeMap::new(), BTreeMap::new());
            for me in mesh.nodes.keys().take(8) {
                desired(&TopologyInput { mesh: &mesh, me, leaders: &leaders, resolved: &resolved, lan_device: None });
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let lines = text.bytes().filter(|b| *b == b'\n').count() + 1;
            assert!(mistakes.iter().all(|m| (1..=lines).contains(&m.line)));
        }
    }
});
