//! One Node with nonsense in it, by mistake or with intent: all others go on, and get their changes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

/// home and cloud, and a location of one candidate and one member; with something besides its nodes in home.
fn three_locations() -> ClusterView {
    let mut view = two_locations();
    let mut member = node(8, "attic", "attic-1");
    member.external.clear();
    for n in [node(7, "attic", "attic-0"), member] {
        view.nodes.insert(n.name.clone(), n);
    }
    let says = view.nodes.get_mut("home-2").unwrap();
    annotate(says, names::KILO_ALLOWED_LOCATION_IPS, "192.168.7.0/24");
    store_mesh(&mut view);
    store_mesh(&mut view);
    view
}

/// Some nodes change as nodes do.
fn move_on(view: &mut ClusterView, but: &str) {
    let mut change = |name: &str, f: &dyn Fn(&mut ClusterNode)| {
        if name != but {
            f(view.nodes.get_mut(name).unwrap());
        }
    };
    change("home-0", &|n| n.external = vec!["198.51.100.40".parse().unwrap()]);
    change("home-2", &|n| n.internal = vec!["10.0.4.200".parse().unwrap()]);
    change("cloud-2", &|n| n.pod_cidrs = vec!["10.42.201.0/24".parse().unwrap()]);
    change("cloud-1", &|n| annotate(n, names::KILO_ALLOWED_LOCATION_IPS, "192.168.50.0/24"));
    for (n, location) in [(101, "home"), (102, "attic")] {
        let new = node(n, location, &format!("{location}-new"));
        view.nodes.insert(new.name.clone(), new);
    }
    view.pools.get_mut("home").unwrap().spec.policy.fail_back = Some(true);
}

#[derive(Clone, Debug)]
enum Nonsense {
    Annotation(usize, String),
    NoAnnotation(usize),
    Internal(Vec<String>),
    External(Vec<String>),
    Pods(Vec<String>),
}

const ANNOTATIONS: [&str; 13] = [
    names::WIREGUARD_KEY,
    names::CONTROL_KEY,
    names::KILO_LOCATION,
    names::KILO_ENDPOINT,
    names::KILO_FORCE_ENDPOINT,
    names::KILO_INTERNAL_IP,
    names::KILO_FORCE_INTERNAL_IP,
    names::KILO_ALLOWED_LOCATION_IPS,
    names::PREFIXES,
    names::KEY_PROOF,
    names::ACCEPT_KEY,
    names::EPOCH,
    names::PROBE_ADDRESS,
];

/// What a node of the cluster has, or all of them have together.
fn value() -> impl Strategy<Value = String> {
    let n = || 1..9u8;
    prop_oneof![
        n().prop_map(|n| STANDARD.encode([n; 32])),
        n().prop_map(|n| STANDARD.encode([n ^ 0x80; 32])),
        n().prop_map(|n| format!("203.0.113.{n}:51820")),
        (4..6u8, n()).prop_map(|(l, n)| format!("10.0.{l}.{n}/24")),
        n().prop_map(|n| format!("203.0.113.{n}/24")),
        n().prop_map(|n| format!("10.42.{n}.0/24")),
        (4..6u8, n()).prop_map(|(l, n)| format!("10.0.{l}.{n}/32")),
        "home|cloud|attic|elsewhere|Not A Name",
        "0\\.0\\.0\\.0/0|10\\.0\\.0\\.0/8|10\\.0\\.0\\.0/16|::/0|203\\.0\\.113\\.0/24|192\\.168\\.0\\.0/16",
        "|-|true|0|99999999999999999999|,,,|1\\.2\\.3\\.4|fd00::1/64|\\[::1\\]:1",
        "[ -~]{0,20}",
    ]
}

fn addresses() -> impl Strategy<Value = Vec<String>> {
    let one = prop_oneof![
        (4..6u8, 1..9u8).prop_map(|(l, n)| format!("10.0.{l}.{n}")),
        (1..9u8).prop_map(|n| format!("203.0.113.{n}")),
        Just("fd00::1".to_owned()),
        Just("127.0.0.1".to_owned()),
        Just("192.168.7.7".to_owned()),
    ];
    prop::collection::vec(one, 0..3)
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    let nets = || {
        prop::collection::vec(
            prop_oneof![
                (1..9u8).prop_map(|n| format!("10.42.{n}.0/24")),
                (4..6u8).prop_map(|l| format!("10.0.{l}.0/24")),
                Just("0.0.0.0/0".to_owned()),
                Just("10.0.0.0/8".to_owned()),
                Just("203.0.113.0/24".to_owned()),
                Just("192.168.0.0/16".to_owned()),
                Just("fd42::/64".to_owned()),
                Just("::/0".to_owned()),
            ],
            0..3,
        )
    };
    prop_oneof![
        6 => (0..ANNOTATIONS.len(), value()).prop_map(|(k, v)| Nonsense::Annotation(k, v)),
        1 => (0..ANNOTATIONS.len()).prop_map(Nonsense::NoAnnotation),
        1 => addresses().prop_map(Nonsense::Internal),
        1 => addresses().prop_map(Nonsense::External),
        1 => nets().prop_map(Nonsense::Pods),
    ]
}

fn say(node: &mut ClusterNode, nonsense: &Nonsense) {
    fn list<T: std::str::FromStr>(all: &[String]) -> Vec<T> {
        all.iter().filter_map(|a| a.parse().ok()).collect()
    }
    match nonsense {
        Nonsense::Annotation(k, v) => annotate(node, ANNOTATIONS[*k], v),
        Nonsense::NoAnnotation(k) => drop(node.annotations.remove(ANNOTATIONS[*k])),
        Nonsense::Internal(all) => node.internal = list(all),
        Nonsense::External(all) => node.external = list(all),
        Nonsense::Pods(all) => node.pod_cidrs = list(all),
    }
}

const WHO: [&str; 9] = [
    "home-0",
    "home-1",
    "home-2",
    "cloud-0",
    "cloud-1",
    "cloud-2",
    "attic-0",
    "attic-1",
    "aa-stranger",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn one_node_with_nonsense_blocks_no_change_of_the_others(
        who in 0..WHO.len(),
        all in prop::collection::vec(nonsense(), 1..6),
        kilo in any::<bool>(),
    ) {
        let who = WHO[who];
        let mut view = three_locations();
        if kilo {
            view.pools.get_mut("home").unwrap().spec.steering = Steering::Kilo;
            store_mesh(&mut view);
        }
        // What is wanted: the others' changes, with the one as it was.
        move_on(&mut view, who);
        let wanted = mesh_of(&view);
        let mut bad = view.nodes.get(who).cloned().unwrap_or_else(|| node(60, "home", who));
        for n in &all {
            say(&mut bad, n);
        }
        view.nodes.insert(who.to_owned(), bad);
        let r = render(&view, SETTINGS);
        let Some(mesh) = r.mesh else { panic!("{:#?}", r.problems) };
        for node in wanted.nodes.values().filter(|n| n.name.as_str() != who) {
            let is = mesh.node(&node.name);
            prop_assert!(is.is_some(), "{} is left out: {:#?}", node.name, r.problems);
            let is = is.unwrap();
            prop_assert_eq!((&is.location, is.address), (&node.location, node.address));
            prop_assert_eq!((&is.prefixes, is.wireguard_key, is.control_key), (&node.prefixes, node.wireguard_key, node.control_key));
            if node.slot.is_some() {
                prop_assert_eq!((is.slot.is_some(), &is.endpoint), (true, &node.endpoint), "{}: {:#?}", node.name, r.problems);
            }
            // A stranger with an address that is another's already makes that one ambiguous, as a LAN does that overlaps.
            if who != "aa-stranger" && wanted.carried_address(node).is_some() {
                prop_assert!(mesh.carried_address(is).is_some(), "{} is not carried: {:#?}", node.name, r.problems);
            }
        }
        for (name, location) in &wanted.locations {
            let is = &mesh.locations[name];
            prop_assert_eq!((&is.overlay, is.steering, &is.policy), (&location.overlay, location.steering, &location.policy));
            let by_others = |p: &ipnet::IpNet| who != "home-2" || !p.to_string().starts_with("192.168.7.");
            let missing = location.prefixes.iter().filter(|p| by_others(p)).find(|p| !is.prefixes.contains(p));
            prop_assert!(missing.is_none() || who == "aa-stranger", "{:?} of {}: {:#?}", missing, name, r.problems);
        }
        // Only that node is reported, if any, and the rendered text stays.
        prop_assert!(r.refusals.keys().all(|n| n == who), "{:?}", r.refusals);
        view.mesh = Some(MeshObject { resource_version: "9".into(), text: r.text.unwrap().into() });
        let second = render(&view, SETTINGS).text.expect("as good as the first");
        view.mesh = Some(MeshObject { resource_version: "10".into(), text: second.clone().into() });
        prop_assert_eq!(render(&view, SETTINGS).text, Some(second));
    }
}

/// Cases found by review, each with the node that is reported.
#[test]
fn a_conflicting_node_of_the_mesh_stays_as_it_was_and_is_reported() {
    let wide = |n: &mut ClusterNode| annotate(n, names::PREFIXES, "10.0.0.0/8");
    type Clash<'a> = (&'a str, &'a str, &'a dyn Fn(&mut ClusterNode));
    let table: Vec<Clash<'_>> = vec![
        ("another's WireGuard key", "cloud-0", &|n| {
            annotate(n, names::WIREGUARD_KEY, &STANDARD.encode([1; 32]));
        }),
        ("another's address", "home-0", &|n| {
            annotate(n, names::KILO_FORCE_INTERNAL_IP, "10.0.4.3/24");
        }),
        ("an address of elsewhere, which then nobody reaches", "home-2", &|n| {
            annotate(n, names::KILO_FORCE_INTERNAL_IP, "10.0.5.4/24");
        }),
        ("another's endpoint", "attic-0", &|n| {
            annotate(n, names::KILO_FORCE_ENDPOINT, "203.0.113.4:1");
        }),
        ("all addresses as its Pods'", "cloud-1", &wide),
        ("the LAN's addresses as its Pods'", "attic-1", &|n| {
            annotate(n, names::PREFIXES, "10.0.4.0/24");
        }),
        ("a location that loses its one candidate", "attic-0", &|n| {
            annotate(n, names::KILO_LOCATION, "home");
        }),
    ];
    let mut shown = String::new();
    for (what, who, change) in table {
        let mut view = three_locations();
        let was = mesh_of(&view).nodes[&who.parse::<NodeName>().unwrap()].clone();
        change(view.nodes.get_mut(who).unwrap());
        let r = render(&view, SETTINGS);
        let mesh = r.mesh.unwrap_or_else(|| panic!("{what}: {:#?}", r.problems));
        assert_eq!(mesh.nodes[&was.name], was, "{what}");
        let refused: Vec<_> = r.refusals.iter().collect();
        let [(name, refusal)] = refused[..] else { panic!("{what}: {refused:?}") };
        assert_eq!(name, who, "{what}");
        assert!(r.problems.iter().any(|p| p.subject == Subject::Node(who.into())), "{what}");
        shown += &format!("{what}\n  {who}, {}: {}\n", refusal.why.as_str(), refusal.message);
    }
    insta::assert_snapshot!("nonsense", shown);
}

#[test]
fn many_bad_nodes_at_once_are_left_out_one_by_one() {
    let mut view = three_locations();
    for n in 0..40u8 {
        let mut new = node(10 + n, "home", &format!("many-{n}"));
        if n % 2 == 0 {
            new.internal = view.nodes["home-0"].internal.clone();
        }
        view.nodes.insert(new.name.clone(), new);
    }
    let r = render(&view, SETTINGS);
    let mesh = r.mesh.unwrap();
    let there = |n: u8| mesh.nodes.contains_key(&format!("many-{n}").parse::<NodeName>().unwrap());
    assert!((0..40).all(|n| there(n) == (n % 2 == 1)));
    assert_eq!(r.refusals.len(), 20);
}
