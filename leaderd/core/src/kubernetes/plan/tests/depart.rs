//! Candidates whose Node objects are deleted.

use super::*;

/// home is led by home-1, and home-0 stands by.
fn world() -> World {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    w
}

fn delete(w: &mut World, name: &str) -> crate::kubernetes::ClusterNode {
    w.api().nodes.remove(name).unwrap()
}

fn in_mesh(w: &mut World, name: &str) -> bool {
    let text = w.api().mesh.as_ref().unwrap().text.clone();
    crate::mesh::parse(&text).unwrap().nodes.contains_key(&name.parse::<NodeName>().unwrap())
}

fn leader(w: &World) -> String {
    let status = w.daemons[0].status.as_ref().unwrap();
    let home = status.locations.iter().find(|l| l.name.as_str() == "home").unwrap();
    home.leaders[0].to_string()
}

#[test]
fn a_leader_whose_node_is_recreated_in_time_stays() {
    let mut w = world();
    let node = delete(&mut w, "home-1");
    w.run(Duration::from_secs(55));
    w.api().nodes.insert(node.name.clone(), node);
    w.run(Duration::from_secs(120));
    assert!(w.written("mesh").is_empty() && w.written("depart").is_empty(), "{:?}", w.written);
    assert_eq!((leader(&w), w.written("hand-over").len()), ("home-1".to_owned(), 0));
}

#[test]
fn a_leader_without_a_node_hands_over_before_it_leaves() {
    let mut w = world();
    delete(&mut w, "home-1");
    w.run(Duration::from_secs(59));
    assert!(in_mesh(&mut w, "home-1") && leader(&w) == "home-1", "{:?}", w.written);
    w.run(Duration::from_secs(3));
    assert_eq!(
        (leader(&w).as_str(), w.written("hand-over").len()),
        ("home-0", 1),
        "{:?}",
        w.written
    );
    assert!(in_mesh(&mut w, "home-1"), "packets under way still need it");
    w.run(Duration::from_secs(8));
    assert!(!in_mesh(&mut w, "home-1"), "{:?}", w.written);
    assert_eq!(w.written("depart").len(), 1, "{:?}", w.written);
    assert!(w.written("mesh").is_empty(), "{:?}", w.written);
}

#[test]
fn a_standby_without_a_node_leaves_soon() {
    let mut w = world();
    delete(&mut w, "home-0");
    w.run(Duration::from_secs(10));
    assert!(!in_mesh(&mut w, "home-0"), "{:?}", w.written);
    assert_eq!((leader(&w), w.written("hand-over").len()), ("home-1".to_owned(), 0));
}

#[test]
fn a_leader_without_a_successor_stays() {
    let mut view = two_locations();
    view.pools.get_mut("home").unwrap().spec.candidates.names = vec!["home-1".into()];
    view.nodes.get_mut("home-0").unwrap().external.clear();
    view.nodes.get_mut("home-2").unwrap().external.clear();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    delete(&mut w, "home-1");
    w.run(Duration::from_secs(300));
    assert!(in_mesh(&mut w, "home-1") && leader(&w) == "home-1", "{:?}", w.written);
    // Of a location that is gone as a whole nothing is left.
    delete(&mut w, "home-0");
    delete(&mut w, "home-2");
    w.run(Duration::from_secs(70));
    assert!(!in_mesh(&mut w, "home-1"), "{:?}", w.written);
}

#[test]
fn a_daemon_that_knows_no_leader_removes_no_candidate() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    delete(&mut w, "home-1");
    delete(&mut w, "home-0");
    w.run(Duration::from_secs(200));
    assert!(in_mesh(&mut w, "home-1") && in_mesh(&mut w, "home-0"), "{:?}", w.written);
}

#[test]
fn remote_or_isolated_daemons_wait_before_they_remove_a_candidate() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let mesh = crate::mesh::parse(&view.mesh.as_ref().unwrap().text).unwrap();
    view.nodes.remove("home-1");
    // All have it that home-0 leads.
    let wait = |me: &str, fallback: bool| {
        let mut status = mesh_status(&mesh, me);
        for l in status.locations.iter_mut().filter(|l| l.name.as_str() == "home") {
            l.leaders = vec!["home-0".parse().unwrap()];
            l.fallback = fallback;
        }
        let running = Some(Running { mesh: &mesh, status: &status, events: &[], connected: true });
        let (_, tasks) = plan(&view, "", &status.node, running, WallTime::default());
        tasks.into_iter().find(|t| t.key == "depart/home-1").unwrap().wait
    };
    let (soon, late) = (Duration::from_secs(10), Duration::from_secs(65));
    assert!(wait("home-0", false) < soon);
    assert!(wait("home-0", true) >= late && wait("cloud-0", false) >= late);
}

/// As the kubelet makes it: without annotations, labels and an ExternalIP.
fn bare(name: &str) -> crate::kubernetes::ClusterNode {
    crate::kubernetes::ClusterNode {
        name: name.into(),
        resource_version: "9".into(),
        ..Default::default()
    }
}

#[test]
fn a_leader_whose_node_stays_without_annotations_hands_over() {
    let mut w = world();
    let node = delete(&mut w, "home-1");
    w.run(Duration::from_secs(5));
    w.api().nodes.insert("home-1".into(), bare("home-1"));
    w.run(Duration::from_secs(40));
    assert!(w.written("mesh").is_empty(), "{:?}", w.written);
    w.api().nodes.insert(node.name.clone(), node);
    w.run(Duration::from_secs(70));
    assert!(w.written("mesh").is_empty() && w.written("depart").is_empty(), "{:?}", w.written);
    assert_eq!((leader(&w), w.written("hand-over").len()), ("home-1".to_owned(), 0));
    let mut w = world();
    w.api().nodes.insert("home-1".into(), bare("home-1"));
    w.run(Duration::from_secs(80));
    assert_eq!((leader(&w).as_str(), w.written("hand-over").len()), ("home-0", 1));
    let mesh = crate::mesh::parse(&w.api().mesh.as_ref().unwrap().text).unwrap();
    let of = |n: &str| mesh.nodes[&n.parse::<NodeName>().unwrap()].slot.map(|s| s.0);
    assert_eq!((of("home-1"), of("home-0")), (None, Some(1)), "{:?}", w.written);
    // The daemons take up the new mesh, and there is nothing left to do.
    w.decided("home-0", 2);
    w.run(Duration::from_secs(10));
    let before = w.written.len();
    w.run(Duration::from_secs(30));
    assert_eq!(w.written.len(), before, "{:?}", w.written);
}

#[test]
fn a_leader_without_an_endpoint_and_without_a_successor_stays() {
    let mut view = two_locations();
    for member in ["home-0", "home-2"] {
        view.nodes.get_mut(member).unwrap().external.clear();
    }
    store_mesh(&mut view);
    let mut w = World::new(view, 2);
    w.decided("home-1", 1);
    w.api().nodes.insert("home-1".into(), bare("home-1"));
    w.run(Duration::from_secs(100));
    assert!(w.written("mesh").is_empty() && w.written("depart").is_empty(), "{:?}", w.written);
    assert!(in_mesh(&mut w, "home-1") && leader(&w) == "home-1", "{:?}", w.written);
}
