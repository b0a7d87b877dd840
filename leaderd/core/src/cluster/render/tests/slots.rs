//! Indexes and slots: they stay with their nodes, and change hands late.

use super::*;

#[test]
fn indexes_and_slots_stay_with_their_nodes() {
    let mut view = two_locations();
    settle(&mut view);
    let index =
        |v: &ClusterView, n: &str| mesh_of(v).nodes[&n.parse::<NodeName>().unwrap()].index.0;
    let before = index(&view, "home-2");
    // A name that sorts first takes nobody's number, and nobody's slot.
    let first = node(20, "cloud", "a-new-one");
    view.nodes.insert(first.name.clone(), first);
    settle(&mut view);
    assert_eq!((index(&view, "a-new-one"), index(&view, "home-2")), (7, before));
    assert_eq!(
        slots(&mesh_of(&view), "cloud"),
        [(0, "cloud-0"), (1, "cloud-1"), (2, "a-new-one")].map(|(s, n)| (s, n.to_owned()))
    );
    // With its Node a number goes, and the next new one gets it.
    let gone = index(&view, "cloud-0");
    view.nodes.remove("cloud-0");
    settle(&mut view);
    let last = node(21, "cloud", "z");
    view.nodes.insert(last.name.clone(), last);
    settle(&mut view);
    assert_eq!(index(&view, "z"), gone);
    assert_eq!(
        slots(&mesh_of(&view), "cloud"),
        [(0, "z"), (1, "cloud-1"), (2, "a-new-one")].map(|(s, n)| (s, n.to_owned()))
    );
}

#[test]
fn a_slot_changes_hands_one_generation_after_it_was_given_up() {
    let mut view = two_locations();
    settle(&mut view);
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
    settle(&mut view);
    assert_eq!(home(&view), are(&[(0, "home-2"), (1, "home-0")]));
    settle(&mut view);
    assert_eq!(
        (mesh_of(&view).generation.0, render(&view, SETTINGS).text),
        (3, Some(text_of(&view)))
    );
    // A slot that nobody had is given out at once, and no more slots are used for it.
    let mut view = settled.clone();
    let more = node(9, "home", "home-9");
    view.nodes.insert(more.name.clone(), more);
    candidates(&mut view, &["home-2", "home-0", "home-9"]);
    assert_eq!(home(&view), are(&[(1, "home-0"), (2, "home-2")]));
    settle(&mut view);
    assert_eq!(home(&view), are(&[(0, "home-9"), (1, "home-0"), (2, "home-2")]));
    // Nobody is left to lead in the meantime: then it cannot wait.
    let mut view = settled;
    candidates(&mut view, &["home-2"]);
    assert_eq!(home(&view), are(&[(0, "home-2")]));
}
