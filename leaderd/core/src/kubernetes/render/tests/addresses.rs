//! Which of a node's addresses count: the same while it has them, and never one of leaderd's own.

use std::net::IpAddr;

use super::*;
use crate::mesh::Host;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn of(view: &ClusterView, node: &str) -> (String, Option<Host>) {
    let r = render(view, SETTINGS);
    let mesh = r.mesh.unwrap_or_else(|| panic!("{:#?}", r.problems));
    let n = &mesh.nodes[&node.parse::<NodeName>().unwrap()];
    (n.address.to_string(), n.endpoint.clone())
}

fn about(view: &ClusterView, node: &str) -> String {
    let r = render(view, SETTINGS);
    let of_node = |p: &&Problem| p.subject == Subject::Node(node.into());
    r.problems.iter().filter(of_node).map(|p| p.message.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_order_of_addresses_changes_nothing() {
    let mut view = two_locations();
    let n = view.nodes.get_mut("home-1").unwrap();
    n.internal = ips(&["10.0.4.2", "192.168.7.2", "fd00::2"]);
    n.external = ips(&["203.0.113.2", "203.0.113.99"]);
    store_mesh(&mut view);
    let first = text_of(&view);
    let turned = with(&view, |v| {
        let n = v.nodes.get_mut("home-1").unwrap();
        n.internal.reverse();
        n.external.reverse();
    });
    assert_eq!(text_of(&turned), first);
    // What it no longer has is replaced, by one of the same family if there is one.
    let moved = with(&turned, |v| {
        v.nodes.get_mut("home-1").unwrap().internal = ips(&["fd00::2", "192.168.7.2"]);
        v.nodes.get_mut("home-1").unwrap().external = ips(&["203.0.113.99"]);
    });
    let other = Some(Host::Ip("203.0.113.99".parse().unwrap()));
    assert_eq!(of(&moved, "home-1"), ("192.168.7.2".to_owned(), other));
}

#[test]
fn an_endpoint_in_the_inner_range_is_ignored_and_reported() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let was = text_of(&view);
    let inner = mesh_of(&view).inner.v4.network().to_string();
    let prey = inner.replace(".0.0", ".16.5");
    for annotation in [names::KILO_ENDPOINT, names::KILO_FORCE_ENDPOINT] {
        let taken = with(&view, |v| {
            annotate(v.nodes.get_mut("home-1").unwrap(), annotation, &format!("{prey}:51820"))
        });
        assert_eq!(text_of(&taken), was, "{annotation}");
        let told = about(&taken, "home-1");
        assert!(told.contains(&prey) && told.contains("own addresses"), "{told}");
        // The mesh goes on being made.
        let more = with(&taken, |v| drop(v.nodes.insert("x".into(), node(77, "home", "x"))));
        assert!(mesh_of(&more).nodes.contains_key(&"x".parse::<NodeName>().unwrap()));
    }
}

#[test]
fn an_internal_address_in_the_inner_range_is_ignored_and_reported() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let was = text_of(&view);
    let prey = mesh_of(&view).inner.v4.network().to_string().replace(".0.0", ".16.5");
    let annotated = with(&view, |v| {
        let n = v.nodes.get_mut("home-2").unwrap();
        annotate(n, names::KILO_INTERNAL_IP, &format!("{prey}/20"));
    });
    let listed = with(&view, |v| {
        v.nodes.get_mut("home-2").unwrap().internal.insert(0, prey.parse().unwrap());
    });
    let alone = with(&view, |v| {
        v.nodes.get_mut("home-2").unwrap().internal = ips(&[&prey]);
    });
    for view in [annotated, listed, alone] {
        assert_eq!(text_of(&view), was);
        let told = about(&view, "home-2");
        assert!(told.contains(&prey), "{told}");
    }
}
