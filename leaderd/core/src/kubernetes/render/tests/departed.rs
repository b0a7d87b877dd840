//! Candidates whose Node object is gone.

use super::*;

#[test]
fn a_candidate_without_a_node_object_stays_for_now_and_a_member_leaves() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let was = text_of(&view);
    for candidate in ["home-0", "home-1", "cloud-0", "cloud-1"] {
        let gone = with(&view, |v| drop(v.nodes.remove(candidate)));
        assert_eq!(text_of(&gone), was, "{candidate}");
        assert!(problems(&gone).iter().any(|p| p.contains(candidate)), "{:?}", problems(&gone));
    }
    view.nodes.remove("home-2");
    assert!(!mesh_of(&view).nodes.contains_key(&"home-2".parse::<NodeName>().unwrap()));
}

#[test]
fn a_replacement_takes_a_departed_candidates_place_at_once() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let old = view.nodes.remove("cloud-0").unwrap();
    // Only the prefix was given to another: that one has it, and the departed one leads on.
    let new = with(&view, |v| {
        let mut n = node(50, "cloud", "new");
        n.pod_cidrs = old.pod_cidrs.clone();
        v.nodes.insert(n.name.clone(), n);
    });
    let r = render(&new, "[kubernetes]\noverlay = \"external\"\n");
    let mesh = r.mesh.unwrap_or_else(|| panic!("{:#?}", r.problems));
    let of = |name: &str| mesh.nodes[&name.parse::<NodeName>().unwrap()].clone();
    assert_eq!((of("new").prefixes, of("cloud-0").prefixes), (old.pod_cidrs.clone(), vec![]));
    assert!(of("new").slot.is_some() && of("cloud-0").slot.is_some());
    // The same machine under another name.
    let renamed = with(&view, |v| {
        let n = ClusterNode { name: "renamed".into(), ..old.clone() };
        v.nodes.insert(n.name.clone(), n);
    });
    let mesh = mesh_of(&renamed);
    assert!(!mesh.nodes.contains_key(&"cloud-0".parse::<NodeName>().unwrap()));
    assert!(mesh.nodes.contains_key(&"renamed".parse::<NodeName>().unwrap()));
}

#[test]
fn a_departed_candidate_takes_no_place() {
    let mut view = two_locations();
    view.pools.get_mut("home").unwrap().spec.candidates =
        crate::kubernetes::CandidateRule { max: Some(1), ..Default::default() };
    store_mesh(&mut view);
    assert_eq!(slots(&mesh_of(&view), "home"), [(0, "home-0".to_owned())]);
    view.nodes.remove("home-0");
    assert_eq!(
        slots(&mesh_of(&view), "home"),
        [(0, "home-0".to_owned()), (1, "home-1".to_owned())]
    );
}

#[test]
fn location_prefixes_stay_as_long_as_the_departed_candidate() {
    let mut view = two_locations();
    let says = view.nodes.get_mut("home-1").unwrap();
    annotate(says, names::KILO_ALLOWED_LOCATION_IPS, "192.168.7.0/24");
    store_mesh(&mut view);
    let was = text_of(&view);
    let of = |mesh: &Mesh| mesh.locations[&"home".parse().unwrap()].prefixes.clone();
    assert_eq!(of(&mesh_of(&view)).len(), 1);
    let bare = ClusterNode { name: "home-1".into(), ..ClusterNode::default() };
    let bare = with(&view, |v| drop(v.nodes.insert("home-1".into(), bare)));
    assert_eq!(text_of(&bare), was, "made again bare");
    view.nodes.remove("home-1");
    assert_eq!(text_of(&view), was);
    leave(&mut view, "home-1");
    assert!(of(&mesh_of(&view)).is_empty());
}
