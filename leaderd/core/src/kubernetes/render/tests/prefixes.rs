//! Where prefixes are known from.

use ipnet::IpNet;

use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn of(view: &ClusterView, source: &str, node: &str) -> Vec<String> {
    let r =
        render(view, &format!("[kubernetes]\noverlay = \"external\"\nprefixes = \"{source}\"\n"));
    let mesh = r.mesh.unwrap_or_else(|| panic!("{:#?}", r.problems));
    mesh.nodes[&node.parse::<NodeName>().unwrap()].prefixes.iter().map(IpNet::to_string).collect()
}

fn named(pairs: &[(&str, &[&str])]) -> Option<std::collections::BTreeMap<String, Vec<IpNet>>> {
    Some(pairs.iter().map(|(n, list)| ((*n).to_owned(), nets(list))).collect())
}

#[test]
fn prefixes_come_from_the_cni_if_it_names_them() {
    let view = two_locations();
    assert_eq!(of(&view, "auto", "home-0"), ["10.42.1.0/24"]);
    let calico = with(&view, |v| {
        v.cni.calico = named(&[
            ("home-0", &["192.168.1.64/26", "192.168.1.0/26"]),
            ("home-1", &["192.168.2.0/26"]),
        ]);
    });
    assert_eq!(of(&calico, "auto", "home-0"), ["192.168.1.0/26", "192.168.1.64/26"]);
    let cilium = with(&calico, |v| {
        v.cni.cilium = named(&[
            ("home-0", &["10.200.1.0/24", "10.200.1.128/25"]),
            ("home-1", &["10.200.2.0/24"]),
        ]);
    });
    assert_eq!(of(&cilium, "auto", "home-0"), ["10.200.1.0/24"]);
    assert_eq!(of(&cilium, "calico", "home-1"), ["192.168.2.0/26"]);
    assert_eq!(of(&cilium, "node", "home-0"), ["10.42.1.0/24"]);
    // A node that its CNI has given nothing yet does not take what the CNI does not use.
    assert_eq!(of(&cilium, "auto", "home-2"), [""; 0]);
    // Objects that name nothing are no source: Cilium with another IPAM, Calico with host-local.
    let empty = with(&view, |v| {
        v.cni.cilium = named(&[("home-0", &[])]);
        v.cni.calico = Some(Default::default());
    });
    assert_eq!(of(&empty, "auto", "home-0"), ["10.42.1.0/24"]);
    // The settings ask for objects that do not exist: a problem.
    let r = render(&view, "[kubernetes]\noverlay = \"external\"\nprefixes = \"cilium\"\n");
    assert!(
        r.problems.iter().any(|p| p.message.contains("no such") || p.message.contains("has none")),
        "{:?}",
        r.problems
    );
}

#[test]
fn an_annotation_overrides_all_and_an_invalid_one_is_ignored() {
    let annotated = |text: &str| {
        with(&two_locations(), |v| {
            v.cni.cilium = named(&[("home-0", &["10.200.1.0/24"])]);
            annotate(v.nodes.get_mut("home-0").unwrap(), names::PREFIXES, text);
        })
    };
    for source in ["auto", "node", "cilium", "annotation"] {
        assert_eq!(
            of(&annotated("10.9.1.0/24, 10.9.3.7/24"), source, "home-0"),
            ["10.9.1.0/24", "10.9.3.0/24"]
        );
        assert_eq!(of(&annotated(""), source, "home-0"), [""; 0]);
    }
    let bad = annotated("10.9.1.0/24 and more");
    assert_eq!(of(&bad, "auto", "home-0"), ["10.200.1.0/24"]);
    let found = problems(&bad);
    assert!(found.iter().any(|p| p.contains("is ignored")), "{found:?}");
    assert_eq!(of(&bad, "annotation", "home-0"), [""; 0]);
}

#[test]
fn a_block_that_moves_belongs_to_its_new_node_at_once() {
    let settings = "[kubernetes]\noverlay = \"external\"\n";
    let mut view = two_locations();
    view.cni.calico = named(&[("home-0", &["192.168.1.0/26"]), ("home-1", &["192.168.2.0/26"])]);
    let text = render(&view, settings).text.unwrap();
    view.mesh = Some(MeshObject { resource_version: "1".into(), text: text.into() });
    view.cni.calico = named(&[("home-1", &["192.168.1.0/26", "192.168.2.0/26"])]);
    assert_eq!(of(&view, "auto", "home-0"), [""; 0]);
    assert_eq!(of(&view, "auto", "home-1"), ["192.168.1.0/26", "192.168.2.0/26"]);
    // A node keeps its prefix while no other node has it.
    view.cni.calico = named(&[("home-1", &["192.168.2.0/26"])]);
    assert_eq!(of(&view, "auto", "home-0"), ["192.168.1.0/26"]);
}

#[test]
fn a_daemon_that_does_not_see_the_cnis_objects_yet_leaves_the_mesh_to_others() {
    let settings =
        |source: &str| format!("[kubernetes]\noverlay = \"external\"\nprefixes = \"{source}\"\n");
    let seeing = with(&two_locations(), |v| {
        v.cni.cilium = named(&[("home-0", &["10.200.1.0/24"])]);
    });
    let text = render(&seeing, &settings("auto")).text.unwrap();
    assert!(text.contains("# Prefixes from cilium\n"), "{text}");
    let mesh = Some(MeshObject { resource_version: "1".into(), text: text.into() });
    let seeing = with(&seeing, |v| v.mesh.clone_from(&mesh));
    let behind = with(&two_locations(), |v| v.mesh.clone_from(&mesh));
    assert!(render(&behind, &settings("auto")).outdated);
    assert!(!render(&seeing, &settings("auto")).outdated);
    // A daemon writes if it knows that the objects name nothing (any more), or has another source.
    let emptied = with(&behind, |v| v.cni.cilium = Some(Default::default()));
    assert!(!render(&emptied, &settings("auto")).outdated);
    assert!(!render(&behind, &settings("node")).outdated);
    // Once it is from the Nodes, whoever sees objects may write.
    let text = render(&emptied, &settings("auto")).text.unwrap();
    assert!(!text.contains("# Prefixes from"), "{text}");
    let after = with(&seeing, |v| {
        v.mesh = Some(MeshObject { resource_version: "2".into(), text: text.into() });
    });
    assert!(!render(&after, &settings("auto")).outdated);
}
