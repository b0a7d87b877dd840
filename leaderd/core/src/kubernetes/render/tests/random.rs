//! Clusters that change at random: numbers stay, and the text settles.

use proptest::prelude::*;

use super::*;

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Step {
    Join {
        n: u8,
        location: u8,
        endpoint: u8,
        keys: bool,
    },
    /// Its Node object goes; or that of one of the mesh comes back with the next `Join`.
    Leave(u8),
    /// Those whose Node objects are gone leave the mesh.
    Depart,
    Pool {
        location: u8,
        names: Vec<u8>,
        max: Option<u8>,
    },
    NoPool(u8),
    Endpoint(u8, u8),
    Move(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..14u8;
    prop_oneof![
        4 => (n(), 0..4u8, 0..6u8, prop::bool::weighted(0.9))
            .prop_map(|(n, location, endpoint, keys)| Step::Join { n, location, endpoint, keys }),
        2 => n().prop_map(Step::Leave),
        1 => Just(Step::Depart),
        2 => (0..4u8, prop::collection::vec(n(), 0..4), prop::option::of(0..5u8))
            .prop_map(|(location, names, max)| Step::Pool { location, names, max }),
        1 => (0..4u8).prop_map(Step::NoPool),
        1 => (n(), 0..6u8).prop_map(|(n, e)| Step::Endpoint(n, e)),
        1 => (n(), 0..4u8).prop_map(|(n, l)| Step::Move(n, l)),
    ]
}

/// Public, private, missing, no endpoint at all, a name, and one that another node has too.
fn set_endpoint(node: &mut ClusterNode, n: u8, kind: u8) {
    node.annotations.remove(names::KILO_FORCE_ENDPOINT);
    node.external.clear();
    match kind {
        0 | 1 => node.external = vec![format!("203.0.113.{}", n + 1).parse().unwrap()],
        2 => annotate(node, names::KILO_FORCE_ENDPOINT, &format!("10.9.9.{n}:51820")),
        3 => {}
        4 => annotate(node, names::KILO_FORCE_ENDPOINT, &format!("n{n}.example.net:51820")),
        _ => annotate(node, names::KILO_FORCE_ENDPOINT, "198.51.100.1:51820"),
    }
}

fn take(view: &mut ClusterView, step: &Step) {
    let location = |l: u8| ["aa", "b", "ccc", "dddd"][usize::from(l)];
    let name = |n: u8| format!("node-{n}");
    match step {
        Step::Join { n, location: l, endpoint, keys } => {
            let mut new = node(n + 1, location(*l), &name(*n));
            set_endpoint(&mut new, *n, *endpoint);
            if !keys {
                new.annotations.remove(names::WIREGUARD_KEY);
            }
            view.nodes.insert(new.name.clone(), new);
        }
        Step::Leave(n) => {
            view.nodes.remove(&name(*n));
        }
        Step::Depart => {
            let departed = render(view, SETTINGS).departed;
            if let (Some(text), Some(mesh)) =
                (render_without(view, SETTINGS, &departed).text, view.mesh.as_mut())
            {
                mesh.text = text.into();
            }
        }
        Step::Pool { location: l, names, max } => {
            let list: Vec<String> = names.iter().map(|n| name(*n)).collect();
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let mut p = pool(location(*l), location(*l), &list);
            p.spec.candidates.max = *max;
            view.pools.insert(p.name.clone(), p);
        }
        Step::NoPool(l) => {
            view.pools.remove(location(*l));
        }
        Step::Endpoint(n, kind) => {
            if let Some(node) = view.nodes.get_mut(&name(*n)) {
                set_endpoint(node, *n, *kind);
            }
        }
        Step::Move(n, l) => {
            if let Some(node) = view.nodes.get_mut(&name(*n)) {
                annotate(node, names::KILO_LOCATION, location(*l));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens to a cluster: what is rendered is a mesh, the same for everybody, settles by the second time, leaves every node
    /// its numbers, and gives no node a slot that another had until now.
    #[test]
    fn indexes_stay_and_the_text_becomes_stable(steps in prop::collection::vec(step(), 1..24)) {
        let mut view = ClusterView::default();
        let mut owners: BTreeMap<u16, NodeName> = BTreeMap::new();
        for step in &steps {
            take(&mut view, step);
            let r = render(&view, SETTINGS);
            prop_assert_eq!(&r, &render(&view.clone(), SETTINGS));
            let Some(text) = r.text else {
                // There is no mesh yet, or none can be made: then there is a problem.
                prop_assert!(!r.problems.is_empty());
                continue;
            };
            let mesh = mesh::parse(&text).expect("what is rendered is a mesh");
            if let Some(before) = view.mesh.as_ref().and_then(|m| mesh::parse(&m.text).ok()) {
                prop_assert!(mesh.generation == before.generation && text == view.mesh.as_ref().unwrap().text.as_str()
                    || mesh.generation.0 == before.generation.0 + 1);
                for location in mesh.locations.keys() {
                    let (was, is) = (before.candidates_of(location), mesh.candidates_of(location));
                    let stays = is.iter().any(|(s, n)| was.get(s).is_some_and(|w| w.name == n.name));
                    for (slot, node) in is.iter().filter(|_| stays) {
                        let other = was.get(slot).filter(|w| w.name != node.name);
                        prop_assert!(other.is_none(), "{} takes the slot of {:?}", node.name, other);
                    }
                }
                for (location, pool) in mesh.locations.keys().filter_map(|l| Some((l, view.pools.get(l.as_str())?))) {
                    let here = mesh.candidates_of(location).into_values().filter(|n| !r.departed.contains(&n.name));
                    let max = usize::from(pool.spec.candidates.max.unwrap_or(3).max(1));
                    prop_assert!(here.count() <= max.max(before.candidates_of(location).len()));
                }
                for node in before.nodes.values().filter(|n| n.slot.is_some()) {
                    let name = node.name.as_str();
                    let stays = mesh.nodes.get(&node.name).is_some_and(|n| n.slot == node.slot);
                    let replaced = view.nodes.values().any(|n| {
                        n.annotations.get(names::KILO_FORCE_ENDPOINT).is_some_and(|e| e.starts_with("198.51.100.1:"))
                    });
                    let replaced = replaced && node.endpoint == Some(mesh::Host::Ip("198.51.100.1".parse().unwrap()));
                    prop_assert!(stays || replaced || view.nodes.contains_key(name), "{name} may be leading");
                }
                for (name, node) in &mesh.nodes {
                    let Some(was) = before.nodes.get(name) else {
                        let kept = before.nodes.values().any(|n| n.index == node.index && view.nodes.contains_key(n.name.as_str()));
                        prop_assert!(!kept, "{} has the index of a node that is still there", name);
                        continue;
                    };
                    prop_assert_eq!(node.index, was.index);
                    if let (Some(now), Some(then), true) = (node.slot, was.slot, node.location == was.location) {
                        prop_assert_eq!(now, then);
                    }
                }
            }
            for (name, node) in &mesh.nodes {
                let owner = owners.entry(node.index.0).or_insert_with(|| name.clone());
                prop_assert_eq!(owner, name, "the index was another's");
            }
            for pool in r.pools.values() {
                for c in &pool.candidates {
                    prop_assert_eq!(mesh.nodes[&c.node].slot, Some(c.slot));
                }
            }
            let put = |view: &mut ClusterView, text: &str| {
                view.mesh = Some(MeshObject { resource_version: "1".into(), text: text.to_owned().into() });
            };
            put(&mut view, &text);
            let second = render(&view, SETTINGS).text.expect("as good as the first");
            put(&mut view, &second);
            prop_assert_eq!(render(&view, SETTINGS).text, Some(second));
        }
    }
}
