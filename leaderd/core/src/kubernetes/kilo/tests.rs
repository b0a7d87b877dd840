use proptest::prelude::*;

use super::*;
use crate::kubernetes::fixture::*;
use crate::kubernetes::render;

/// home (steered by Kilo, three candidates) as one daemon knows it: who leads, by which epoch.
fn status(leader: &str, epoch: u64) -> LocationStatus {
    location_status("home", &[leader], epoch)
}

fn cluster() -> ClusterView {
    let mut view = two_locations();
    let pool = view.pools.get_mut("home").unwrap();
    pool.spec.steering = Steering::Kilo;
    pool.spec.candidates.names = ["home-0", "home-1", "home-2"].map(String::from).into();
    store_mesh(&mut view);
    view
}

fn set_by_us(view: &mut ClusterView, node: &str, epoch: &str) {
    let node = view.nodes.get_mut(node).unwrap();
    annotate(node, names::KILO_LEADER, VALUE);
    annotate(node, names::EPOCH, epoch);
}

fn shown(changes: &[NodeChange]) -> Vec<String> {
    let set = |c: &NodeChange| c.annotations.values().any(Option::is_some);
    changes
        .iter()
        .map(|c| format!("{} {}", if set(c) { "set" } else { "remove" }, c.node))
        .collect()
}

#[test]
fn the_elected_node_is_annotated_before_the_others_are_cleared() {
    let mut view = cluster();
    let three = status("home-1", 3);
    let first = changes(&view, &three);
    assert_eq!(shown(&first), ["set home-1"]);
    let want = [
        (names::KILO_LEADER.to_owned(), Some("leaderd".to_owned())),
        (names::EPOCH.to_owned(), Some("3".to_owned())),
        ("leaderd.io/location".to_owned(), Some("home".to_owned())),
    ];
    assert_eq!(first[0].annotations, want.into());
    assert_eq!(first[0].resource_version, view.nodes["home-1"].resource_version);
    set_by_us(&mut view, "home-1", "3");
    assert_eq!(changes(&view, &three), []);
    assert_eq!(kilo_state(&view, &three), KiloState::Done("home-1".parse().unwrap()));
    // The next decision.
    let four = status("home-2", 4);
    assert_eq!(shown(&changes(&view, &four)), ["set home-2"]);
    assert_eq!(kilo_state(&view, &four), KiloState::Pending);
    set_by_us(&mut view, "home-2", "4");
    let last = changes(&view, &four);
    assert_eq!(shown(&last), ["remove home-1"]);
    assert_eq!(
        last[0].annotations,
        [names::KILO_LEADER, names::EPOCH, "leaderd.io/location"]
            .map(|k| (k.to_owned(), None))
            .into()
    );
    // The same leader by a later epoch is signed again.
    assert_eq!(shown(&changes(&view, &status("home-2", 5))), ["set home-2"]);
}

#[test]
fn a_returning_node_with_an_old_annotation_is_cleared() {
    let mut view = cluster();
    set_by_us(&mut view, "home-2", "9");
    set_by_us(&mut view, "home-0", "2");
    set_by_us(&mut view, "home-1", "what?");
    assert_eq!(shown(&changes(&view, &status("home-2", 9))), ["remove home-0", "remove home-1"]);
}

#[test]
fn an_older_decision_changes_nothing() {
    let mut view = cluster();
    set_by_us(&mut view, "home-0", "7");
    for leader in ["home-0", "home-1", "home-2"] {
        assert_eq!(changes(&view, &status(leader, 6)), []);
        assert_eq!(
            kilo_state(&view, &status(leader, 6)),
            KiloState::Newer { node: "home-0".into(), epoch: Epoch(7) }
        );
    }
    // Even if the higher epoch stands alone.
    view.nodes.get_mut("home-0").unwrap().annotations.remove(names::KILO_LEADER);
    assert_eq!(changes(&view, &status("home-1", 6)), []);
}

#[test]
fn annotations_by_hand_stay() {
    let mut view = cluster();
    annotate(view.nodes.get_mut("home-0").unwrap(), names::KILO_LEADER, "true");
    set_by_us(&mut view, "home-1", "2");
    let three = status("home-2", 3);
    assert_eq!(shown(&changes(&view, &three)), ["set home-2"]);
    set_by_us(&mut view, "home-2", "3");
    assert_eq!(shown(&changes(&view, &three)), ["remove home-1"]);
    assert_eq!(kilo_state(&view, &three), KiloState::ByHand(vec!["home-0".into()]));
    // On the elected node it is not signed, and does its work.
    let by_hand = status("home-0", 4);
    assert_eq!(shown(&changes(&view, &by_hand)), ["remove home-1", "remove home-2"]);
}

#[test]
fn nothing_is_annotated_without_a_decision() {
    let view = cluster();
    let undecided = LocationStatus { leaders: Vec::new(), ..status("home-0", 0) };
    let own_ranking = LocationStatus { fallback: true, ..status("home-0", 3) };
    for location in [undecided, own_ranking] {
        assert_eq!(
            (changes(&view, &location), kilo_state(&view, &location)),
            (vec![], KiloState::Undecided)
        );
    }
    let gone = status("home-7", 3);
    assert_eq!(
        (changes(&view, &gone), kilo_state(&view, &gone)),
        (vec![], KiloState::Gone("home-7".parse().unwrap()))
    );
}

#[test]
fn each_candidate_has_its_own_turn_and_members_have_none() {
    let view = cluster();
    let mesh = render(&view, SETTINGS).mesh.unwrap();
    let mut all = mesh_status(&mesh, "home-0");
    all.locations = vec![status("home-1", 3), location_status("cloud", &["cloud-0"], 8)];
    let wait = |me: &str| {
        let tasks = annotation_tasks(&view, &mesh, &all, &me.parse().unwrap());
        assert!(tasks.len() <= 1, "cloud is not steered by Kilo");
        tasks.first().map(|t| t.wait)
    };
    assert_eq!(wait("cloud-2"), None);
    let waits: std::collections::BTreeSet<_> = mesh
        .nodes
        .values()
        .filter(|n| n.slot.is_some())
        .map(|n| wait(n.name.as_str()).expect("a turn"))
        .collect();
    let want = (0..5).map(|n| ANNOTATE_AFTER + turn_order::STEP * n).collect();
    assert_eq!(waits, want);
}

#[test]
fn annotations_wait_until_our_routes_carry_or_for_a_bounded_time() {
    let view = cluster();
    let mesh = render(&view, SETTINGS).mesh.unwrap();
    let mut all = mesh_status(&mesh, "cloud-0");
    let mut wait = |carried| {
        all.locations = vec![LocationStatus { carried, ..status("home-1", 3) }];
        annotation_tasks(&view, &mesh, &all, &"cloud-0".parse().unwrap())[0].wait
    };
    assert!(wait(Some(false)) >= ANNOTATE_AFTER_UNCARRIED);
    assert!(wait(Some(true)) < ANNOTATE_AFTER_UNCARRIED && wait(None) < ANNOTATE_AFTER_UNCARRIED);
}

#[test]
fn nothing_is_annotated_while_any_location_is_only_observed() {
    let mut view = cluster();
    let tasks = |view: &ClusterView| {
        let mesh = render(view, SETTINGS).mesh.unwrap();
        let mut all = mesh_status(&mesh, "home-0");
        all.locations = vec![status("home-1", 3)];
        annotation_tasks(view, &mesh, &all, &"home-0".parse().unwrap()).len()
    };
    assert_eq!(tasks(&view), 1);
    view.pools.insert("cloud".into(), pool("cloud", "cloud", &[]));
    view.pools.get_mut("cloud").unwrap().spec.steering = Steering::Observe;
    assert_eq!(tasks(&view), 0);
    view.pools.remove("cloud");
    view.pools.get_mut("home").unwrap().spec.steering = Steering::Observe;
    assert_eq!(tasks(&view), 0);
}

#[test]
fn uninstall_removes_only_our_annotations() {
    let mut view = cluster();
    set_by_us(&mut view, "home-1", "3");
    annotate(view.nodes.get_mut("home-2").unwrap(), names::KILO_LEADER, "");
    annotate(view.nodes.get_mut("home-2").unwrap(), "kilo.squat.ai/key", "x");
    annotate(view.nodes.get_mut("home-2").unwrap(), names::PREFIXES, "10.9.0.0/24");
    for c in uninstall_changes(&view) {
        let node = view.nodes.get_mut(&c.node).unwrap();
        c.annotations.keys().for_each(|k| drop(node.annotations.remove(k)));
    }
    let left: Vec<String> = view
        .nodes
        .values()
        .flat_map(|n| n.annotations.keys().map(|k| format!("{} {k}", n.name)))
        .collect();
    let locations = view.nodes.keys().map(|n| format!("{n} {}", names::KILO_LOCATION));
    let mut want: Vec<String> = locations
        .chain(
            ["kilo.squat.ai/key", names::KILO_LEADER, names::PREFIXES]
                .map(|k| format!("home-2 {k}")),
        )
        .collect();
    want.sort();
    let mut left = left;
    left.sort();
    assert_eq!(left, want);
    assert_eq!(uninstall_changes(&view), []);
}

/// An API server, and daemons whose views and decisions are of any age.
struct World {
    api: ClusterView,
    version: u64,
    /// (leader, epoch), in order.
    decisions: Vec<(String, u64)>,
    daemons: Vec<(ClusterView, usize)>,
}

#[derive(Clone, Debug)]
enum Step {
    Decide(u8),
    /// A daemon hears of this many further decisions.
    Learn(u8, u8),
    Look(u8),
    /// A daemon makes one of the changes that it finds due.
    Write(u8, u8),
    Person(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let d = || 0..4u8;
    prop_oneof![
        1 => (0..3u8).prop_map(Step::Decide),
        2 => (d(), 1..3u8).prop_map(|(d, n)| Step::Learn(d, n)),
        3 => d().prop_map(Step::Look),
        6 => (d(), 0..3u8).prop_map(|(d, n)| Step::Write(d, n)),
    ]
}

impl World {
    fn new() -> Self {
        let api = cluster();
        let decisions = vec![("home-0".to_owned(), 1)];
        Self { daemons: vec![(api.clone(), 0); 4], api, version: 5000, decisions }
    }

    fn write(&mut self, change: &NodeChange) -> bool {
        let node = self.api.nodes.get_mut(&change.node).expect("no node is ever deleted here");
        if node.resource_version != change.resource_version {
            return false;
        }
        for (key, value) in &change.annotations {
            match value {
                Some(value) => node.annotations.insert(key.clone(), value.clone()),
                None => node.annotations.remove(key),
            };
        }
        self.version += 1;
        node.resource_version = self.version.to_string();
        true
    }

    fn marks(&self) -> BTreeMap<String, LeaderAnnotation> {
        let home = "home".parse().unwrap();
        nodes_of(&self.api, &home).map(|n| (n.name.clone(), leader_annotation(n))).collect()
    }

    fn due(&self, daemon: usize) -> Vec<NodeChange> {
        let (view, known) = &self.daemons[daemon];
        let (leader, epoch) = &self.decisions[*known];
        changes(view, &status(leader, *epoch))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn kilo_always_has_a_leader_and_finally_the_right_one(
        steps in prop::collection::vec(step(), 1..120),
        person in prop::option::of((0..100usize, 0..3u8)),
    ) {
        let mut w = World::new();
        let mut by_hand: Option<String> = None;
        let mut steps = steps;
        if let Some((at, node)) = person {
            steps.insert(at.min(steps.len()), Step::Person(node));
        }
        for step in &steps {
            let before = w.marks();
            match step {
                Step::Decide(n) => {
                    let epoch = w.decisions.last().unwrap().1 + 1;
                    w.decisions.push((format!("home-{n}"), epoch));
                }
                Step::Learn(d, n) => {
                    let last = w.decisions.len() - 1;
                    let known = &mut w.daemons[usize::from(*d)].1;
                    *known = (*known + usize::from(*n)).min(last);
                }
                Step::Look(d) => w.daemons[usize::from(*d)].0 = w.api.clone(),
                Step::Write(d, n) => {
                    let due = w.due(usize::from(*d));
                    let Some(change) = due.get(usize::from(*n) % due.len().max(1)) else { continue };
                    let epoch = w.decisions[w.daemons[usize::from(*d)].1].1;
                    if w.write(change) {
                        // An older decision never undoes a newer one.
                        match before[&change.node] {
                            LeaderAnnotation::Ours(was) => prop_assert!(was.0 <= epoch),
                            LeaderAnnotation::ByHand => prop_assert!(false, "a person's annotation was changed"),
                            LeaderAnnotation::None => {}
                        }
                        let had = before.values().any(|m| *m != LeaderAnnotation::None);
                        prop_assert!(!had || w.marks().values().any(|m| *m != LeaderAnnotation::None), "no leader is left");
                    }
                }
                Step::Person(n) => {
                    let node = w.api.nodes.get_mut(&format!("home-{n}")).unwrap();
                    if leader_annotation(node) == LeaderAnnotation::None {
                        annotate(node, names::KILO_LEADER, "by hand");
                        w.version += 1;
                        node.resource_version = w.version.to_string();
                        by_hand = Some(node.name.clone());
                    }
                }
            }
        }
        // Now one daemon hears all and looks after each write: a few writes and all is as decided.
        w.daemons[0].1 = w.decisions.len() - 1;
        for _ in 0..6 {
            w.daemons[0].0 = w.api.clone();
            if let Some(change) = w.due(0).first().cloned() {
                prop_assert!(w.write(&change));
            }
        }
        let (leader, epoch) = w.decisions.last().unwrap().clone();
        for (node, mark) in w.marks() {
            let want = if by_hand.as_ref() == Some(&node) { LeaderAnnotation::ByHand }
                else if node == leader { LeaderAnnotation::Ours(Epoch(epoch)) } else { LeaderAnnotation::None };
            prop_assert_eq!(mark, want, "{}", node);
        }
    }
}

#[test]
fn epochs_of_different_locations_are_not_compared() {
    let mut view = cluster();
    set_by_us(&mut view, "cloud-0", "40");
    let moved = view.nodes.get_mut("cloud-0").unwrap();
    annotate(moved, "leaderd.io/location", "cloud");
    annotate(moved, names::KILO_LOCATION, "home");
    let carry_out = |view: &mut ClusterView, changes: Vec<NodeChange>| {
        for change in changes {
            let node = view.nodes.get_mut(&change.node).unwrap();
            for (key, value) in change.annotations {
                match value {
                    Some(value) => annotate(node, &key, &value),
                    None => drop(node.annotations.remove(&key)),
                }
            }
        }
    };
    let three = status("home-1", 3);
    let done = KiloState::Done("home-1".parse().unwrap());
    let before = view.clone();
    for want in ["set home-1", "remove cloud-0"] {
        assert_eq!(kilo_state(&view, &three), KiloState::Pending);
        let changes = changes(&view, &three);
        assert_eq!(shown(&changes), [want]);
        carry_out(&mut view, changes);
    }
    assert_eq!(kilo_state(&view, &three), done);
    let left: Vec<&String> = view.nodes["cloud-0"].annotations.keys().collect();
    assert!(left.iter().all(|k| !k.contains("leader") || k.ends_with("-key")), "{left:?}");
    // The location that it left, and that may not know yet, does not take part.
    let left = location_status("cloud", &["cloud-0"], 40);
    for view in [&before, &view] {
        assert_eq!(changes(view, &left), []);
        assert_eq!(kilo_state(view, &left), KiloState::Gone("cloud-0".parse().unwrap()));
    }
    // Elected where it is now, even by a decision of the same number, it is annotated again.
    for epoch in [39, 40] {
        let elected = changes(&before, &status("cloud-0", epoch));
        assert_eq!(shown(&elected), ["set cloud-0"], "{epoch}");
    }
    // As leaderd left it that did not say the location: the message's cure leads out of it.
    let mut old = before;
    old.nodes.get_mut("cloud-0").unwrap().annotations.remove("leaderd.io/location");
    assert_eq!(
        kilo_state(&old, &three),
        KiloState::Newer { node: "cloud-0".into(), epoch: Epoch(40) }
    );
    annotate(old.nodes.get_mut("cloud-0").unwrap(), names::EPOCH, "0");
    for _ in 0..2 {
        let changes = changes(&old, &three);
        carry_out(&mut old, changes);
    }
    assert_eq!(kilo_state(&old, &three), done);
}
