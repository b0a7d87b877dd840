//! The mesh of these tests, its names and who gives the commands.

use std::collections::BTreeMap;

use crate::admin::Author;
use crate::ids::{Generation, NodeIndex, NodeName, Slot};
use crate::mesh::{ControlPublicKey, InnerRange, Location, Mesh, Node, Overlay, Policy};

pub fn name(s: &str) -> NodeName {
    s.parse().unwrap()
}

/// Who gives all commands here.
pub fn author() -> Author {
    Author::new(name("cloud-0"), None)
}

/// Location `cloud` with these candidates, members and witnesses, and location `home` whose candidates observe it.
pub fn mesh(candidates: u8, members: u8, witnesses: u8) -> Mesh {
    let location = |n: &str, witnesses| Location {
        witnesses,
        ..Location::new(n.parse().unwrap(), Overlay::External)
    };
    let mut nodes = BTreeMap::new();
    let mut add = |n: String, location: &str, index: u16, slot: Option<Slot>| {
        let node = Node {
            name: name(&n),
            index: NodeIndex(index),
            location: location.parse().unwrap(),
            slot,
            priority: 100,
            endpoint: None,
            address: "10.0.0.1".parse().unwrap(),
            device: None,
            prefixes: Vec::new(),
            probe_addresses: Vec::new(),
            probe_addresses_written: false,
            wireguard_key: wgctl_plan::WgPublicKey([index as u8; 32]),
            control_key: ControlPublicKey([index as u8; 32]),
        };
        nodes.insert(node.name.clone(), node);
    };
    for i in 0..candidates {
        add(format!("cloud-{i}"), "cloud", 1 + u16::from(i), Some(Slot(i)));
    }
    for i in 0..members {
        add(format!("member-{i}"), "cloud", 20 + u16::from(i), None);
    }
    for i in 0..3 {
        add(format!("home-{i}"), "home", 40 + u16::from(i), Some(Slot(i)));
    }
    let witnesses = (0..witnesses).map(|i| name(&format!("home-{i}"))).collect();
    Mesh {
        name: "test".into(),
        generation: Generation(1),
        hash: [0; 32],
        index: Default::default(),
        inner: InnerRange { v4: "100.127.0.0/16".parse().unwrap(), v6: None },
        base_port: 51900,
        control_port: 7946,
        probe_ports: vec![8620],
        mtu: 1420,
        keepalive: 10,
        commands: Default::default(),
        proof: Default::default(),
        policy: Policy::default(),
        locations: [location("cloud", witnesses), location("home", vec![])]
            .into_iter()
            .map(|l| (l.name.clone(), l))
            .collect(),
        nodes,
    }
}
