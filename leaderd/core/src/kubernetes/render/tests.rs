mod addresses;
mod departed;
mod inner;
mod nonsense;
mod prefixes;
mod random;
mod revisions;
mod slots;

use super::super::view::{MeshObject, names};
use super::*;
use crate::kubernetes::fixture::*;

fn text_of(view: &ClusterView) -> String {
    let r = render(view, SETTINGS);
    r.text.unwrap_or_else(|| panic!("{:#?}", r.problems))
}

fn mesh_of(view: &ClusterView) -> Mesh {
    Arc::unwrap_or_clone(render(view, SETTINGS).mesh.expect("the cluster has a mesh"))
}

fn problems(view: &ClusterView) -> Vec<String> {
    let show = |p: &Problem| format!("{:?}: {}", p.subject, p.message);
    render(view, SETTINGS).problems.iter().map(show).collect()
}

fn with(view: &ClusterView, change: impl FnOnce(&mut ClusterView)) -> ClusterView {
    let mut view = view.clone();
    change(&mut view);
    view
}

/// The Node object goes, and what is in the mesh of it leaves that.
fn leave(view: &mut ClusterView, name: &str) {
    view.nodes.remove(name);
    let text = render_without(view, SETTINGS, &[name.parse().unwrap()].into()).text.unwrap();
    view.mesh.as_mut().unwrap().text = text.into();
}

fn slots(mesh: &Mesh, location: &str) -> Vec<(u8, String)> {
    let location = location.parse().unwrap();
    mesh.candidates_of(&location).iter().map(|(s, n)| (s.0, n.name.to_string())).collect()
}

#[test]
fn a_cluster_renders_to_a_mesh_file() {
    let view = two_locations();
    assert_eq!(problems(&view), [""; 0]);
    insta::assert_snapshot!("mesh", text_of(&view));
    let r = render(&view, SETTINGS);
    let pool = &r.pools["home"];
    let candidates: Vec<_> =
        pool.candidates.iter().map(|c| (c.slot.0, c.node.as_str(), c.priority)).collect();
    assert_eq!(candidates, [(0, "home-1", 10), (1, "home-0", 20)]);
    assert_eq!(mesh::parse(&r.text.unwrap()).unwrap(), *r.mesh.unwrap());
}

#[test]
fn the_text_stays_byte_for_byte_until_its_meaning_changes() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let first = text_of(&view);
    assert_eq!(first, view.mesh.as_ref().unwrap().text.as_str());
    // What the mesh file does not say changes nothing.
    view.nodes.get_mut("home-0").unwrap().labels.insert("x".into(), "y".into());
    assert_eq!(text_of(&view), first);
    // Nor does another way of writing the same.
    let other = first.replace("[mesh]", "# a comment\n[mesh]");
    view.mesh.as_mut().unwrap().text = other.clone().into();
    assert_eq!(text_of(&view), other);
    let more = with(&view, |v| {
        let n = node(9, "home", "home-9");
        v.nodes.insert(n.name.clone(), n);
    });
    assert_eq!(mesh_of(&more).generation.0, 2);
    assert_eq!(
        mesh_of(&more).hash,
        <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(text_of(&more)))
    );
}

#[test]
fn an_unchanged_mesh_is_not_parsed_again() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let parsed = view.mesh.as_ref().unwrap().text.mesh().unwrap().clone();
    let later = view.clone();
    assert!(Arc::ptr_eq(&parsed, &render(&later, SETTINGS).mesh.unwrap()));
}

#[test]
fn a_node_that_loses_annotations_stays_in_the_mesh_as_it_was() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let was = text_of(&view);
    let n = view.nodes.get_mut("home-1").unwrap();
    n.annotations.clear();
    n.internal.clear();
    n.pod_cidrs.clear();
    assert_eq!(text_of(&view), was);
    assert!(
        problems(&view)[0].contains("home-1\"): it names no location any more"),
        "{:?}",
        problems(&view)
    );
    // A new node with as few values is left out.
    let empty = ClusterNode { name: "new".into(), ..ClusterNode::default() };
    view.nodes.insert("new".into(), empty);
    assert_eq!(text_of(&view), was);
}

use super::super::view::ClusterNode;

#[test]
fn a_candidate_without_a_public_endpoint_is_refused_and_never_annotated_for_kilo() {
    for (annotation, value, why) in [
        (names::KILO_FORCE_ENDPOINT, "10.1.2.3:51820", "is private"),
        (names::KILO_ENDPOINT, "192.168.7.7:51820", "is private"),
        (names::KILO_ENDPOINT, "[fd00::7]:51820", "is private"),
        (names::KILO_ENDPOINT, "[fe80::7]:51820", "is private"),
        (names::KILO_ENDPOINT, "203.0.113.7", "write a host and a port"),
        (names::KILO_ENDPOINT, "2001:db8::7:51820:x", "write a host and a port"),
    ] {
        let view = with(&two_locations(), |v| {
            annotate(v.nodes.get_mut("home-1").unwrap(), annotation, value)
        });
        let r = render(&view, SETTINGS);
        let pool = &r.pools["home"];
        assert_eq!(pool.refused.len(), 1, "{value}");
        assert!(
            pool.refused[0].node == "home-1" && pool.refused[0].reason.contains(why),
            "{:?}",
            pool.refused
        );
        assert_eq!(slots(&r.mesh.unwrap(), "home"), [(0, "home-0".to_owned())]);
        assert!(r.problems.iter().any(|p| p.subject == Subject::Pool("home".into())));
    }
    let none = with(&two_locations(), |v| v.nodes.get_mut("home-1").unwrap().external.clear());
    assert!(render(&none, SETTINGS).pools["home"].refused[0].reason.contains("it has no endpoint"));
}

#[test]
fn kilos_endpoints_go_first_and_the_external_address_last() {
    let endpoint = |annotations: &[(&str, &str)]| {
        let view = with(&two_locations(), |v| {
            for (k, a) in annotations {
                annotate(v.nodes.get_mut("home-1").unwrap(), k, a);
            }
        });
        mesh_of(&view).nodes[&"home-1".parse::<NodeName>().unwrap()].endpoint.clone().unwrap()
    };
    let ip = |t: &str| mesh::Host::Ip(t.parse().unwrap());
    let (force, kilo) = (names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT);
    assert_eq!(endpoint(&[]), ip("203.0.113.2"));
    assert_eq!(endpoint(&[(kilo, "198.51.100.1:51820")]), ip("198.51.100.1"));
    assert_eq!(
        endpoint(&[(kilo, "198.51.100.1:1"), (force, "[2001:db8::1]:2")]),
        ip("2001:db8::1")
    );
    assert_eq!(endpoint(&[(kilo, "198.51.100.1:1"), (force, "198.51.100.2")]), ip("198.51.100.1"));
    assert_eq!(
        endpoint(&[(force, "Relay.Example.NET:51820")]),
        mesh::Host::Name("relay.example.net".into())
    );
}

#[test]
fn kilos_addresses_and_locations_go_first() {
    let view = with(&two_locations(), |v| {
        let n = v.nodes.get_mut("home-2").unwrap();
        annotate(n, names::KILO_INTERNAL_IP, "10.0.4.77/24");
        n.annotations.remove(names::KILO_LOCATION);
        n.labels.insert(names::REGION.into(), "home".into());
    });
    let mesh = mesh_of(&view);
    let n = &mesh.nodes[&"home-2".parse::<NodeName>().unwrap()];
    assert_eq!((n.address.to_string(), n.location.as_str()), ("10.0.4.77".to_owned(), "home"));
}

#[test]
fn what_kilos_agent_discovered_stays_while_it_restarts() {
    let kilo = [names::KILO_ENDPOINT, names::KILO_INTERNAL_IP];
    let mut view = two_locations();
    let n = view.nodes.get_mut("home-1").unwrap();
    n.external.clear();
    for (name, value) in kilo.into_iter().zip(["198.51.100.1:51820", "10.0.4.77/24"]) {
        annotate(n, name, value);
    }
    let cleaned_up = |view: &ClusterView| {
        with(view, |v| {
            let n = v.nodes.get_mut("home-1").unwrap();
            kilo.into_iter().for_each(|k| drop(n.annotations.remove(k)));
        })
    };
    // Where Kilo does not steer, it is the annotations that count, and in the end their absence.
    let mut native = view.clone();
    store_mesh(&mut native);
    let node = |v: &ClusterView| mesh_of(v).nodes[&"home-1".parse::<NodeName>().unwrap()].clone();
    assert_eq!(node(&native).endpoint, Some(mesh::Host::Ip("198.51.100.1".parse().unwrap())));
    let bare = cleaned_up(&native);
    assert_eq!(
        (node(&bare).slot, node(&bare).endpoint),
        (node(&native).slot, node(&native).endpoint)
    );
    let departed = render(&bare, SETTINGS).departed;
    assert_eq!(departed, ["home-1".parse().unwrap()].into());
    let left = render_without(&bare, SETTINGS, &departed).mesh.unwrap();
    assert_eq!(left.nodes[&"home-1".parse::<NodeName>().unwrap()].slot, None);
    view.pools.get_mut("home").unwrap().spec.steering = Steering::Kilo;
    store_mesh(&mut view);
    assert_eq!(text_of(&cleaned_up(&view)), text_of(&view));
    assert!(problems(&cleaned_up(&view)).is_empty(), "{:?}", problems(&cleaned_up(&view)));
}

#[test]
fn a_node_without_an_internal_address_for_kilo_is_left_out() {
    let (said, forced) = (names::KILO_INTERNAL_IP, names::KILO_FORCE_INTERNAL_IP);
    let of = |view: &ClusterView, annotations: &[(&str, &str)]| {
        let view = with(view, |v| {
            let n = v.nodes.get_mut("home-2").unwrap();
            annotations.iter().for_each(|(k, a)| annotate(n, k, a));
        });
        let node = mesh_of(&view).nodes.get(&"home-2".parse::<NodeName>().unwrap()).cloned();
        (node.map(|n| n.address.to_string()), problems(&view).join("\n"))
    };
    let new = two_locations();
    assert_eq!(
        of(&new, &[(said, "10.0.4.7/24"), (forced, "10.0.4.9/24")]).0,
        Some("10.0.4.9".into())
    );
    let (address, why) = of(&new, &[(said, "10.0.4.7/24"), (forced, "10.0.4.9")]);
    assert_eq!(address, Some("10.0.4.7".into()), "as Kilo does, with a problem:");
    assert!(why.contains("with its prefix length"), "{why}");
    let mut old = new.clone();
    store_mesh(&mut old);
    for none in [vec![(forced, "-")], vec![(forced, ""), (said, "10.0.4.7/24")], vec![(said, "")]] {
        let (address, why) = of(&new, &none);
        assert!(address.is_none() && why.contains("a location of its own"), "{none:?}: {why}");
        assert!(of(&old, &none).0.is_some(), "one that is in the mesh stays");
    }
}

#[test]
fn a_conflicting_new_node_is_left_out_and_an_old_one_stays_as_it_was() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let was = text_of(&view);
    let mut clash = node(30, "home", "clash");
    clash.internal = view.nodes["home-0"].internal.clone();
    let fine = node(31, "home", "fine");
    view.nodes.insert("clash".into(), clash);
    view.nodes.insert("fine".into(), fine);
    let r = render(&view, SETTINGS);
    let mesh = r.mesh.expect("it goes on without the one");
    assert!(
        mesh.nodes.keys().any(|n| n.as_str() == "fine")
            && mesh.nodes.keys().all(|n| n.as_str() != "clash")
    );
    assert!(
        r.problems
            .iter()
            .any(|p| p.subject == Subject::Node("clash".into()) && p.message.contains("left out")),
        "{:?}",
        r.problems
    );
    view.nodes.remove("clash");
    view.nodes.remove("fine");
    assert_eq!(text_of(&view), was);
    // Now two of the mesh in force.
    view.nodes.get_mut("home-2").unwrap().internal = view.nodes["home-0"].internal.clone();
    let r = render(&view, SETTINGS);
    assert_eq!(r.text, Some(was));
    assert!(matches!(&r.problems[0].subject, Subject::Node(_)), "{:?}", r.problems);
}

#[test]
fn a_location_without_an_able_node_keeps_its_candidates_and_a_new_one_is_left_out() {
    let mut view = two_locations();
    store_mesh(&mut view);
    for n in ["home-0", "home-1", "home-2"] {
        view.nodes.get_mut(n).unwrap().external.clear();
    }
    assert_eq!(
        slots(&mesh_of(&view), "home"),
        [(0, "home-1".to_owned()), (1, "home-0".to_owned())]
    );
    let mut alone = node(40, "attic", "attic-0");
    alone.external.clear();
    view.nodes.insert("attic-0".into(), alone);
    let r = render(&view, SETTINGS);
    assert!(r.mesh.unwrap().locations.keys().all(|l| l.as_str() != "attic"));
    let about = |p: &&Problem| p.subject == Subject::Location("attic".into());
    assert!(r.problems.iter().find(about).unwrap().message.contains("left out of the mesh"));
}

#[test]
fn two_voters_get_a_witness_that_stays_while_it_can() {
    let mut view = two_locations();
    view.nodes.remove("home-2");
    let witness = |v: &ClusterView| {
        mesh_of(v).locations[&"home".parse::<LocationName>().unwrap()].witnesses.clone()
    };
    store_mesh(&mut view);
    let first = witness(&view);
    assert_eq!(first.len(), 1);
    for n in 0..6 {
        let other = node(60 + n, "cloud", &format!("cloud-{n}-b"));
        view.nodes.insert(other.name.clone(), other);
        store_mesh(&mut view);
        assert_eq!(witness(&view), first);
    }
    leave(&mut view, first[0].as_str());
    assert!(witness(&view).len() == 1 && witness(&view) != first);
    // A pool's value goes first.
    let named =
        with(&view, |v| v.pools.get_mut("home").unwrap().spec.witnesses = vec!["cloud-1".into()]);
    assert_eq!(witness(&named), ["cloud-1".parse().unwrap()]);
}

#[test]
fn a_pools_policy_applies_to_its_location_and_an_invalid_one_is_ignored() {
    use std::time::Duration;
    let home: LocationName = "home".parse().unwrap();
    let view = with(&two_locations(), |v| {
        let p = &mut v.pools.get_mut("home").unwrap().spec.policy;
        (p.fail_back, p.probe_interval) = (Some(true), Some(Duration::from_millis(250)));
    });
    let mesh = mesh_of(&view);
    assert!(mesh.policy_of(&home).fail_back && !mesh.policy.fail_back);
    assert_eq!(mesh.policy_of(&home).probe_interval, Duration::from_millis(250));
    let bad =
        with(&view, |v| v.pools.get_mut("home").unwrap().spec.policy.loss_threshold = Some(7.0));
    assert_eq!(mesh_of(&bad).policy_of(&home), &mesh.policy);
    assert!(
        problems(&bad)[0].starts_with(
            "Pool(\"home\"): `locations.home.policy.loss_threshold`: 7 is out of range"
        ),
        "{:?}",
        problems(&bad)
    );
}

#[test]
fn with_kilo_or_flannel_there_is_one_leader_and_no_ipv6() {
    let home: LocationName = "home".parse().unwrap();
    let view = with(&two_locations(), |v| {
        let p = v.pools.get_mut("home").unwrap();
        (p.spec.steering, p.spec.policy.leaders) = (Steering::Kilo, Some(2));
        v.nodes.get_mut("home-0").unwrap().pod_cidrs.push("fd42::/64".parse().unwrap());
    });
    for overlay in ["flannel", "external"] {
        let settings = format!("[policy]\nleaders = 3\n[kubernetes]\noverlay = \"{overlay}\"\n");
        let r = render(&view, &settings);
        let mesh = r.mesh.unwrap_or_else(|| panic!("{:#?}", r.problems));
        assert_eq!(
            (mesh.locations[&home].steering, mesh.policy_of(&home).leaders),
            (Steering::Kilo, 1)
        );
        assert_eq!(mesh.policy.leaders, 3);
        assert!(mesh.prefixes_of(&home).iter().all(|p| p.addr().is_ipv4()));
        let about: Vec<&Subject> = r.problems.iter().map(|p| &p.subject).collect();
        assert_eq!(about, [&Subject::Pool("home".into()), &Subject::Location("home".into())]);
    }
    // What carries both keeps both.
    let native = with(&view, |v| {
        v.pools.clear();
        v.nodes.values_mut().for_each(|n| n.internal.truncate(1));
    });
    let mut native = native;
    for (n, node) in native.nodes.values_mut().enumerate() {
        node.internal = vec![format!("fd10::{}", n + 1).parse().unwrap()];
        node.pod_cidrs = vec![format!("fd42:{n}::/64").parse().unwrap()];
    }
    let mesh = render(&native, "[kubernetes]\noverlay = \"direct\"\n").mesh.unwrap();
    assert!(mesh.inner.v6.is_some() && mesh.prefixes_of(&home).iter().all(|p| p.addr().is_ipv6()));
}

/// Kilo's annotation, and prefixes that are not carried for another reason.
#[test]
fn location_prefixes_are_carried_unless_they_conflict() {
    let home: LocationName = "home".parse().unwrap();
    let with_prefixes = |value: &[(&str, &str)]| {
        with(&two_locations(), |v| {
            for (node, value) in value {
                annotate(v.nodes.get_mut(*node).unwrap(), names::KILO_ALLOWED_LOCATION_IPS, value);
            }
        })
    };
    let got = |view: &ClusterView| -> (Vec<String>, Vec<String>) {
        let mesh = mesh_of(view);
        assert_eq!(mesh.nodes.len(), 6, "no node is left out for it");
        let prefixes = mesh.locations[&home].prefixes.iter().map(ToString::to_string).collect();
        (prefixes, problems(view))
    };
    let good =
        with_prefixes(&[("home-0", "192.168.7.9/24, 172.16.0.0/12"), ("home-2", "192.168.7.0/24")]);
    assert_eq!(got(&good), (vec!["172.16.0.0/12".into(), "192.168.7.0/24".into()], vec![]));
    for (value, why) in [
        ("192.168.7.0", "write prefixes with commas between"),
        ("0.0.0.0/0", "write prefixes with commas between"),
        ("10.42.0.0/16", "overlaps pod CIDR 10.42."),
        ("203.0.113.0/24", "overlaps endpoint 203.0.113."),
        ("10.0.5.0/24", "overlaps address 10.0.5."),
        ("169.254.0.0/17", "is ignored there"),
    ] {
        let (prefixes, problems) = got(&with_prefixes(&[("home-0", value)]));
        assert_eq!(prefixes, [""; 0], "{value}");
        assert!(matches!(&problems[..], [one] if one.contains(why)), "{value}: {problems:?}");
    }
    // The location's own LAN is no obstacle; what two locations say both have is the first one's.
    assert_eq!(got(&with_prefixes(&[("home-0", "10.0.4.0/24")])).0, ["10.0.4.0/24"]);
    let both = with_prefixes(&[("home-0", "192.168.7.0/24"), ("cloud-0", "192.168.0.0/16")]);
    let (prefixes, problems) = got(&both);
    assert_eq!(prefixes, [""; 0]);
    assert!(matches!(&problems[..], [one] if one.contains("location cloud")), "{problems:?}");
}

#[test]
fn node_addresses_are_carried_unless_disabled_and_equal_ones_are_reported() {
    let carried = |view: &ClusterView, settings| {
        let mesh = render(view, settings).mesh.unwrap();
        mesh.nodes.values().filter(|n| mesh.carried_address(n).is_some()).count()
    };
    let view = two_locations();
    assert_eq!(carried(&view, SETTINGS), 6);
    assert_eq!(carried(&view, "[kubernetes]\nnode_addresses = false\n"), 0);
    let equal = with(&view, |v| {
        let address = v.nodes["home-0"].internal.clone();
        v.nodes.get_mut("cloud-0").unwrap().internal = address;
    });
    assert_eq!(carried(&equal, SETTINGS), 4);
    let found = problems(&equal);
    assert!(
        found.len() == 2 && found[0].contains("give the locations' LANs different ranges"),
        "{found:?}"
    );
}

#[test]
fn every_mistake_names_its_pool_and_says_what_to_do() {
    let good = two_locations();
    let edit = |f: &dyn Fn(&mut crate::kubernetes::PoolSpec)| {
        with(&good, |v| f(&mut v.pools.get_mut("home").unwrap().spec))
    };
    let table: Vec<(&str, ClusterView)> = vec![
        ("location", edit(&|s| s.location = "hoem".into())),
        ("a node that is not there", edit(&|s| s.candidates.names.push("home-7".into()))),
        ("a node of elsewhere", edit(&|s| s.candidates.names.push("cloud-0".into()))),
        ("fewer than named", edit(&|s| s.candidates.max = Some(1))),
        ("no candidate at all", edit(&|s| s.candidates.max = Some(0))),
        (
            "labels of nobody",
            edit(&|s| s.candidates.match_labels = [("a".into(), "b".into())].into()),
        ),
        ("priority of nobody", edit(&|s| s.candidates.priorities = [("home-2".into(), 5)].into())),
        ("drained nobody", edit(&|s| s.drained = ["home-2".into()].into())),
        ("a witness of its own", edit(&|s| s.witnesses = vec!["home-2".into()])),
        ("a witness twice", edit(&|s| s.witnesses = vec!["cloud-0".into(), "cloud-0".into()])),
        (
            "two pools",
            with(&good, |v| {
                v.pools.insert("other".into(), pool("other", "home", &[]));
            }),
        ),
        (
            "no keys yet",
            with(&good, |v| {
                v.nodes.get_mut("home-1").unwrap().annotations.remove(names::CONTROL_KEY);
            }),
        ),
        (
            "a bad key",
            with(&good, |v| {
                annotate(v.nodes.get_mut("home-2").unwrap(), names::CONTROL_KEY, "AAAA")
            }),
        ),
        (
            "no location",
            with(&good, |v| {
                v.nodes.get_mut("home-2").unwrap().annotations.remove(names::KILO_LOCATION);
            }),
        ),
        (
            "a location that is no name",
            with(&good, |v| {
                annotate(v.nodes.get_mut("home-2").unwrap(), names::KILO_LOCATION, "My Home")
            }),
        ),
        (
            "a bad internal IP",
            with(&good, |v| {
                annotate(v.nodes.get_mut("home-2").unwrap(), names::KILO_INTERNAL_IP, "here")
            }),
        ),
        (
            "one endpoint for two",
            with(&good, |v| {
                v.nodes.get_mut("home-0").unwrap().external = vec!["203.0.113.2".parse().unwrap()]
            }),
        ),
        (
            "a damaged mesh file",
            with(&good, |v| {
                v.mesh = Some(MeshObject {
                    resource_version: "1".into(),
                    text: "[mesh]\ngeneration = 8\n[nodes.home-0]\nindex = 40\n".into(),
                })
            }),
        ),
    ];
    let mut shown = String::new();
    for (what, view) in table {
        shown += &format!("{what}\n  {}\n\n", problems(&view).join("\n  "));
        assert!(render(&view, SETTINGS).mesh.is_some(), "{what}");
    }
    insta::assert_snapshot!("problems", shown);
}

#[test]
fn indexes_and_slots_of_a_damaged_mesh_file_are_kept() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let text = text_of(&view)
        .replace("base_port", "base_prot")
        .replace("[mesh]", "[mesh]\nfrobnicate = 1");
    view.mesh.as_mut().unwrap().text = text.replace("generation = 1", "generation = 41").into();
    let numbers = |mesh: &Mesh| -> Vec<_> {
        mesh.nodes.values().map(|n| (n.name.clone(), n.index, n.slot)).collect()
    };
    let was = numbers(&mesh_of(&with(&view, |v| v.mesh = None)));
    let mesh = mesh_of(&view);
    assert_eq!(mesh.generation.0, 42);
    assert_eq!(numbers(&mesh), was);
}

#[test]
fn mistakes_in_the_settings_leave_the_mesh_in_force() {
    let view = two_locations();
    let good = "[mesh]\nname = \"prod\"\nmtu = 1380\n[policy]\nwatchers = 2\n[kubernetes]\noverlay = \"external\"\n";
    let mesh = render(&view, good).mesh.unwrap();
    assert_eq!((mesh.name.as_str(), mesh.mtu, mesh.policy.watchers), ("prod", 1380, 2));
    let mut shown = String::new();
    for bad in [
        "[mesh]\ngeneration = 3\n",
        "[mesh]\nmtu = 5\n",
        "[mesh]\nmtuu = 5\n",
        "[policy]\nwatchers = \"many\"\n",
        "[locations.home]\noverlay = \"direct\"\n",
        "[nodes.x]\n",
        "[kubernetes]\noverlay = \"vlan\"\n",
        "[kubernetes]\nnode_addresses = \"yes\"\n",
        "[kubernetes]\nsteering = \"both\"\n",
        "[kubernetes]\nfoo = 1\n",
        "[kubernetes]\nprefixes = \"kilo\"\n",
        "[kubernetes]\nrevision = \"two\"\n",
        "[surprise]\n",
        "mesh = 3\n",
        "[mesh\n",
    ] {
        let settings = if bad.contains("[kubernetes]") || bad == "[mesh\n" {
            bad.to_owned()
        } else {
            format!("{bad}{SETTINGS}")
        };
        let r = render(&view, &settings);
        assert_eq!(r.text, None, "{bad}");
        let all: Vec<_> = r
            .problems
            .iter()
            .filter(|p| p.subject == Subject::Settings)
            .map(|p| p.message.as_str())
            .collect();
        assert!(!all.is_empty(), "{bad}: {:?}", r.problems);
        shown += &format!("{bad:?}\n  {}\n", all.join("\n  "));
    }
    insta::assert_snapshot!("settings", shown);
}
