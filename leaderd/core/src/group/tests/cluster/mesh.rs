//! The mesh of these tests, its names and who gives the commands.

use std::collections::BTreeMap;

use crate::admin::Author;
use crate::ids::{NodeName, Slot};
use crate::mesh::{Location, Mesh, MeshSpec, Node, Overlay};

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
        let (location, address) = (location.parse().unwrap(), "10.0.0.1".parse().unwrap());
        let node = Node { slot, ..Node::member(name(&n), index, location, address) };
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
    let locations = [location("cloud", witnesses), location("home", vec![])];
    let locations = locations.into_iter().map(|l| (l.name.clone(), l)).collect();
    Mesh::unchecked(MeshSpec { locations, nodes, ..MeshSpec::named("test") })
}
