//! Indexes and slots: they stay with their nodes, and change hands late.

use super::*;

#[test]
fn indexes_and_slots_stay_with_their_nodes() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let index =
        |v: &ClusterView, n: &str| mesh_of(v).nodes[&n.parse::<NodeName>().unwrap()].index.0;
    let before = index(&view, "home-2");
    // A name that sorts first takes no other node's index or slot.
    let first = node(20, "cloud", "a-new-one");
    view.nodes.insert(first.name.clone(), first);
    store_mesh(&mut view);
    assert_eq!((index(&view, "a-new-one"), index(&view, "home-2")), (7, before));
    assert_eq!(
        slots(&mesh_of(&view), "cloud"),
        [(0, "cloud-0"), (1, "cloud-1"), (2, "a-new-one")].map(|(s, n)| (s, n.to_owned()))
    );
    // Its slot becomes free and goes to the next new candidate; its index stays reserved.
    leave(&mut view, "cloud-0");
    let last = node(21, "cloud", "z");
    view.nodes.insert(last.name.clone(), last);
    store_mesh(&mut view);
    assert_eq!(index(&view, "z"), 8);
    assert_eq!(
        slots(&mesh_of(&view), "cloud"),
        [(0, "z"), (1, "cloud-1"), (2, "a-new-one")].map(|(s, n)| (s, n.to_owned()))
    );
}

#[test]
fn an_index_is_reassigned_only_when_all_others_were_used() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let index =
        |v: &ClusterView, n: &str| mesh_of(v).nodes[&n.parse::<NodeName>().unwrap()].index.0;
    let (member, other) = (index(&view, "home-2"), index(&view, "cloud-2"));
    for gone in ["home-2", "cloud-2"] {
        view.nodes.remove(gone);
        store_mesh(&mut view);
    }
    let new = node(21, "cloud", "a");
    view.nodes.insert(new.name.clone(), new);
    store_mesh(&mut view);
    assert_eq!(index(&view, "a"), 7);
    // The one that had it gets it back.
    let back = node(6, "cloud", "cloud-2");
    view.nodes.insert(back.name.clone(), back);
    store_mesh(&mut view);
    assert_eq!((index(&view, "cloud-2"), index(&view, "a")), (other, 7));
    // All others have been used: then the longest ago, of one that is not in the cluster.
    assert_eq!(used_up(&view, "b", 8..=4094), member);
    let mut left_out = node(3, "home", "home-2");
    left_out.annotations.remove(names::KILO_LOCATION);
    view.nodes.insert(left_out.name.clone(), left_out);
    assert_eq!(used_up(&view, "b", 8..=4094), 8, "home-2 is still there, though in no mesh");
}

/// The index that a new node gets where these were given up, the longest ago first.
fn used_up(view: &ClusterView, name: &str, given_up: std::ops::RangeInclusive<u16>) -> u16 {
    let mut view = view.clone();
    let object = view.mesh.as_mut().unwrap();
    let lines: String = given_up.map(|i| format!("# Given up: gone-{i} {i}\n")).collect();
    object.text = object.text.replace("\n[mesh]", &format!("{lines}\n[mesh]")).into();
    let new = node(99, "cloud", name);
    view.nodes.insert(new.name.clone(), new);
    let mesh = mesh_of(&view);
    assert_eq!(text_of(&view).matches("# Given up: ").count(), 4094 - mesh.nodes.len());
    mesh.nodes[&name.parse::<NodeName>().unwrap()].index.0
}

#[test]
fn a_slot_is_reassigned_one_generation_after_it_was_given_up() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let candidates = |view: &mut ClusterView, names: &[&str]| {
        let list = names.iter().map(|n| (*n).to_owned()).collect();
        view.pools.get_mut("home").unwrap().spec.candidates.names = list;
    };
    let home = |view: &ClusterView| slots(&mesh_of(view), "home");
    let are = |list: &[(u8, &str)]| -> Vec<_> {
        list.iter().map(|(s, n)| (*s, (*n).to_owned())).collect()
    };
    assert_eq!(home(&view), are(&[(0, "home-1"), (1, "home-0")]));
    let settled = view.clone();
    candidates(&mut view, &["home-2", "home-0"]);
    assert_eq!(home(&view), are(&[(1, "home-0")]), "home-2 is no leader by home-1's decision");
    assert!(mesh_of(&view).nodes.contains_key(&"home-2".parse::<NodeName>().unwrap()));
    store_mesh(&mut view);
    assert_eq!(home(&view), are(&[(0, "home-2"), (1, "home-0")]));
    store_mesh(&mut view);
    assert_eq!(
        (mesh_of(&view).generation.0, render(&view, SETTINGS).text),
        (3, Some(text_of(&view)))
    );
    // A slot that was unused is assigned at once, and no more slots are used for it.
    let mut view = settled.clone();
    let more = node(9, "home", "home-9");
    view.nodes.insert(more.name.clone(), more);
    candidates(&mut view, &["home-2", "home-0", "home-9"]);
    assert_eq!(home(&view), are(&[(1, "home-0"), (2, "home-2")]));
    store_mesh(&mut view);
    assert_eq!(home(&view), are(&[(0, "home-9"), (1, "home-0"), (2, "home-2")]));
    // Nobody is left to lead in the meantime: then it cannot wait.
    let mut view = settled;
    candidates(&mut view, &["home-2"]);
    assert_eq!(home(&view), are(&[(0, "home-2")]));
}
