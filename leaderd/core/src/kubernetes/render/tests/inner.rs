//! The ranges of leaderd's own addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::super::node_spec::is_public;
use super::*;
use crate::mesh::{NEW_INNER, OTHER_INNER, UNSAID_INNER};

fn range(view: &ClusterView) -> String {
    mesh_of(view).inner.v4.to_string()
}

/// Kilo's `isPublic` and `isLocal` (pkg/mesh/ip.go), by which it finds endpoints.
fn kilo(ip: IpAddr) -> (bool, bool) {
    let (public, local) = match ip {
        IpAddr::V4(v4) => (!v4.is_private(), v4.is_link_local()),
        IpAddr::V6(v6) => (v6.octets()[..2] != [0xfd, 0x00], v6.is_unicast_link_local()),
    };
    (public, local || ip.is_loopback())
}

proptest! {
    /// What counts as an endpoint here, Kilo takes for public too, so that a node that may lead may do so for Kilo.
    #[test]
    fn addresses_public_here_are_public_to_kilo(four: [u8; 4], six: [u8; 16], narrow in 0..8usize) {
        let four = match narrow {
            0 => [10, four[1], four[2], four[3]],
            1 => [172, four[1], four[2], four[3]],
            2 => [192, 168, four[2], four[3]],
            3 => [169, 254, four[2], four[3]],
            _ => four,
        };
        let mut six = six;
        six[0] = [six[0], 0xfd, 0xfc, 0xfe][narrow % 4];
        for ip in [IpAddr::from(four), IpAddr::from(six)] {
            prop_assert!(!is_public(ip) || kilo(ip) == (true, false), "{ip}");
        }
    }

    /// Kilo looks at all addresses of all interfaces, and passes over those of a new mesh, for an endpoint and for an internal address.
    #[test]
    fn kilo_never_uses_an_address_of_a_new_mesh(host: u16) {
        let inner: ipnet::Ipv4Net = NEW_INNER.parse().unwrap();
        let ip = IpAddr::from((u32::from(inner.network()) + u32::from(host)).to_be_bytes());
        prop_assert!(kilo(ip).1 && !is_public(ip));
    }
}

#[test]
fn a_new_cluster_takes_a_range_that_it_does_not_use_and_keeps_it() {
    let mut view = two_locations();
    assert_eq!(range(&view), NEW_INNER);
    store_mesh(&mut view);
    // Discovered later: it is a problem, and the mesh keeps its range.
    view.services = vec!["169.254.32.0/20".parse().unwrap()];
    assert_eq!(range(&view), NEW_INNER);
    assert!(problems(&view)[0].contains("Service range 169.254.32.0/20"), "{:?}", problems(&view));
    let mut used: Vec<IpNet> = Vec::new();
    for (next, taken) in
        OTHER_INNER.into_iter().zip(["169.254.1.0/24", "172.16.0.0/12", "10.0.0.0/8"])
    {
        used.push(taken.parse().unwrap());
        let new = with(&two_locations(), |v| v.services.clone_from(&used));
        assert_eq!(range(&new), next);
    }
    let pods = with(&two_locations(), |v| {
        v.nodes.get_mut("home-2").unwrap().pod_cidrs.push("169.254.1.0/24".parse().unwrap());
    });
    assert_eq!(range(&pods), OTHER_INNER[0]);
    let cni = with(&two_locations(), |v| {
        let all = v.nodes.values().map(|n| (n.name.clone(), n.pod_cidrs.clone()));
        let mut all: std::collections::BTreeMap<_, _> = all.collect();
        all.insert("gone".into(), vec!["169.254.1.0/24".parse().unwrap()]);
        v.cni.cilium = Some(all);
    });
    assert_eq!(range(&cni), OTHER_INNER[0]);
    let lan = with(&two_locations(), |v| {
        v.nodes.get_mut("home-2").unwrap().internal.push("169.254.9.9".parse().unwrap());
    });
    assert_eq!(range(&lan), OTHER_INNER[0]);
}

#[test]
fn a_mesh_keeps_its_range_and_one_without_a_range_keeps_the_default() {
    let mut view = two_locations();
    store_mesh(&mut view);
    let said = view.mesh.as_ref().unwrap().text.clone();
    let line = format!("inner_cidr = \"{NEW_INNER}\"\n");
    assert!(said.contains(&line));
    let old = said.replace(&line, "");
    view.mesh.as_mut().unwrap().text = old.clone().into();
    assert_eq!(text_of(&view), old, "an upgrade alone changes nothing");
    let more = with(&view, |v| drop(v.nodes.insert("x".into(), node(77, "home", "x"))));
    assert_eq!(range(&more), UNSAID_INNER);
    assert!(text_of(&more).contains(&format!("inner_cidr = \"{UNSAID_INNER}\"")));
    // Damaged, it is still known.
    let damaged = with(&more, |v| {
        v.mesh.as_mut().unwrap().text =
            said.replace(NEW_INNER, "10.213.0.0/16").replace("[mesh]", "[mesh]\nx = 1").into();
    });
    assert_eq!(range(&damaged), "10.213.0.0/16");
    // Even if it is no TOML.
    let garbled = with(&more, |v| {
        v.mesh.as_mut().unwrap().text =
            said.replace(NEW_INNER, "10.213.0.0/16").replace("[mesh]", "[mesh").into();
    });
    assert_eq!(range(&garbled), "10.213.0.0/16");
    // Settings go before.
    let r = render(&more, "[mesh]\ninner_cidr = \"10.9.0.0/16\"\n");
    assert_eq!(r.mesh.unwrap().inner.v4.to_string(), "10.9.0.0/16");
}

#[test]
fn a_prefix_in_the_range_is_left_out_and_reported() {
    let view = with(&two_locations(), |v| {
        v.nodes.get_mut("home-0").unwrap().pod_cidrs.push("169.254.7.0/24".parse().unwrap());
    });
    let r = render(&view, "[mesh]\ninner_cidr = \"169.254.0.0/16\"\n");
    let mesh = r.mesh.unwrap_or_else(|| panic!("{:#?}", r.problems));
    let prefixes = &mesh.nodes[&"home-0".parse::<NodeName>().unwrap()].prefixes;
    assert_eq!(prefixes, &["10.42.1.0/24".parse::<IpNet>().unwrap()]);
    let told = r.problems.iter().find(|p| p.subject == Subject::Node("home-0".into())).unwrap();
    assert!(told.message.contains("`inner_cidr`"), "{}", told.message);
}

#[test]
fn the_slot_of_the_metadata_address_stays_unused() {
    let nodes = (1..=16).map(|n| node(n, "home", &format!("n{n:02}"))).collect();
    let mut home = pool("home", "home", &[]);
    home.spec.candidates.max = Some(15);
    let view = super::super::super::fixture::view(nodes, vec![home]);
    let used: Vec<u8> = slots(&mesh_of(&view), "home").into_iter().map(|(s, _)| s).collect();
    assert_eq!(used, (0..=14).filter(|s| *s != 10).collect::<Vec<u8>>());
}
