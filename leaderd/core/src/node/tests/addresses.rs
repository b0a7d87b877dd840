//! Where nodes are probed: which held address counts, who hears of it from whom, and who is believed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::io::HeldAddress;

/// Each has the prefix 10.42.INDEX.0/24; no node holds its first host, which is the default.
fn routed() -> Mesh {
    routed_of(mesh(2, 1, 1))
}

fn routed_of(mut mesh: Mesh) -> Mesh {
    for node in mesh.edit().nodes.values_mut() {
        let i = node.index.0 as u8;
        node.prefixes = vec![format!("10.42.{i}.0/24").parse().unwrap()];
        node.probe_addresses = vec![[10, 42, i, 1].into()];
    }
    mesh
}

fn held(all: &[(&str, &str)]) -> Input {
    let held = all.iter().map(|(device, address)| HeldAddress {
        device: device.parse().unwrap(),
        address: address.parse().unwrap(),
    });
    Input::Addresses(held.collect())
}

fn says(all: &[(&str, &str)]) -> Frame {
    let list = |text: &str| text.split_whitespace().map(|a| a.parse().unwrap()).collect();
    Frame::Addresses(all.iter().map(|(node, text)| (name(node), list(text))).collect())
}

fn probed(bench: &Bench, node: &str) -> String {
    let all = &bench.node.mesh().node(&name(node)).unwrap().probe_addresses;
    all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}

/// The addresses that were sent, by receiver.
fn told(effects: &[Effect], to: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for effect in effects {
        let Effect::SendFrame { to: receiver, frame } = effect else { continue };
        let Frame::Addresses(list) = &**frame else { continue };
        for (node, addresses) in list.iter().filter(|_| *receiver == name(to)) {
            let text: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            all.insert(node.to_string(), text.join(" "));
        }
    }
    all
}

fn pairs(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

impl Bench {
    fn up(&mut self, node: &str) -> Vec<Effect> {
        self.frame(node, hello(node, None));
        self.feed(Input::PeerUp { node: name(node), rtt_micros: 500 })
    }

    /// Lets time pass until reports are applied.
    fn settle(&mut self) -> Vec<Effect> {
        self.later(Duration::from_millis(150))
    }

    fn targets(&mut self) -> BTreeSet<IpAddr> {
        let mut targets = BTreeSet::new();
        for _ in 0..200 {
            for effect in self.later(Duration::from_millis(20)) {
                let Effect::SendProbe(probe) = effect else { continue };
                targets.insert(probe.target.ip());
            }
        }
        targets.retain(|ip| {
            !self.node.mesh().inner.v4.contains(&match ip {
                IpAddr::V4(ip) => *ip,
                IpAddr::V6(_) => return true,
            })
        });
        targets
    }
}

#[test]
fn the_address_of_the_first_device_counts_and_stays_while_it_is_held() {
    let mut mesh = routed();
    let me = mesh.edit().nodes.get_mut(&name("home-0")).unwrap();
    me.prefixes.push("fd42::/64".parse().unwrap());
    let mut bench = Bench::of("home-0", mesh);
    let mut after = |all: &[(&str, &str)]| {
        bench.feed(held(all));
        bench.settle();
        probed(&bench, "home-0")
    };
    let flannel = ("flannel.1", "10.42.40.0");
    assert_eq!(after(&[flannel, ("eth0", "10.42.40.9")]), "10.42.40.0", "its network address");
    assert_eq!(after(&[flannel, ("cni0", "10.42.40.1")]), "10.42.40.0", "it stays");
    assert_eq!(after(&[("cni0", "10.42.40.1"), ("kube-bridge", "10.42.40.2")]), "10.42.40.1");
    assert_eq!(
        after(&[("kube-bridge", "10.42.40.2"), ("cilium_host", "10.42.40.77")]),
        "10.42.40.77"
    );
    assert_eq!(after(&[("lo", "10.42.40.5"), ("eth0", "10.42.40.9")]), "10.42.40.9", "by name");
    // Ours, and another node's.
    let others = [("wgl0", "10.42.40.3"), ("lvx0", "10.42.40.4"), ("eth0", "10.42.41.1")];
    assert_eq!(after(&others), "");
    assert_eq!(after(&[("eth0", "fd42::7"), ("a", "10.42.40.8")]), "10.42.40.8 fd42::7");
}

#[test]
fn a_node_that_holds_no_address_warns_once() {
    let mut bench = Bench::of("home-0", routed());
    assert_eq!(probed(&bench, "home-0"), "10.42.40.1", "nothing is known yet");
    let warned = |effects: &[Effect]| {
        let is = |e: &&Effect| matches!(e, Effect::Log { level: LogLevel::Warn, .. });
        effects.iter().filter(is).count()
    };
    let effects = bench.feed(held(&[]));
    assert_eq!(warned(&effects), 1, "{effects:?}");
    assert_eq!(warned(&bench.feed(held(&[("eth0", "192.0.2.1")]))), 0, "the same");
    bench.settle();
    let status = bench.node.status(bench.now);
    assert_eq!(status.probe_addresses, [] as [IpAddr; 0]);
    let home = status.locations.iter().find(|l| l.name.as_str() == "home").unwrap();
    let note = "no address to probe, as they hold none within their prefixes: home-0";
    assert!(home.notes.iter().any(|n| n == note), "{:?}", home.notes);
    assert_eq!(told(&bench.up("cloud-0"), "cloud-0"), pairs(&[("home-0", "")]), "others are told");

    bench.feed(held(&[("cilium_host", "10.42.40.77")]));
    bench.settle();
    assert_eq!(
        bench.node.status(bench.now).probe_addresses,
        ["10.42.40.77".parse::<IpAddr>().unwrap()]
    );
}

#[test]
fn an_address_in_the_mesh_file_takes_precedence_and_a_warning_says_where_it_is_not_held() {
    let mut mesh = routed();
    for node in mesh.edit().nodes.values_mut() {
        node.probe_addresses_written = true;
    }
    let mut bench = Bench::of("home-0", mesh);
    let effects = bench.feed(held(&[("cilium_host", "10.42.40.77")]));
    let missed = |e: &Effect| matches!(e, Effect::Log { level: LogLevel::Warn, fields, .. } if fields[0].1 == "10.42.40.1");
    assert!(effects.iter().any(missed), "{effects:?}");
    bench.frame("cloud-0", says(&[("cloud-0", "10.42.1.77")]));
    bench.settle();
    assert_eq!(
        (probed(&bench, "home-0"), probed(&bench, "cloud-0")),
        ("10.42.40.1".into(), "10.42.1.1".into())
    );
    assert_eq!(told(&bench.up("cloud-0"), "cloud-0"), pairs(&[]));
    let status = bench.node.status(bench.now);
    assert_eq!(status.probe_addresses, [] as [IpAddr; 0]);
    let home = status.locations.iter().find(|l| l.name.as_str() == "home").unwrap();
    assert!(home.notes.iter().any(|n| n == "this node does not hold its probe address 10.42.40.1"));
    bench.feed(held(&[("lo", "10.42.40.1")]));
    assert_eq!(bench.node.status(bench.now).probe_addresses.len(), 1);
}

#[test]
fn an_observer_probes_reported_addresses_and_the_default_of_nodes_that_never_reported_one() {
    let mut bench = Bench::of("home-0", routed());
    let ips = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    assert_eq!(bench.targets(), ips(&["10.42.1.1", "10.42.2.1", "10.42.20.1"]));
    // A candidate of its location passes on a member's address.
    bench.frame("cloud-0", says(&[("cloud-0", "10.42.1.77"), ("member-0", "10.42.20.0")]));
    bench.settle();
    assert_eq!(bench.targets(), ips(&["10.42.1.77", "10.42.2.1", "10.42.20.0"]));
    let source = Input::ProbeRequest {
        from: "10.42.1.1:5000".parse().unwrap(),
        local: "10.42.40.1:8620".parse().unwrap(),
        ttl: 64,
        bytes: vec![0; 112],
    };
    bench.feed(source);
    assert_eq!(bench.counted("probes.rejected.unknown-source"), 1, "the reflector follows");
    bench.frame("cloud-1", says(&[("cloud-1", "")]));
    bench.settle();
    assert_eq!(bench.targets(), ips(&["10.42.1.77", "10.42.20.0"]), "it holds none");
    // With a new mesh file nothing is forgotten that still lies within the prefixes.
    let mut next = routed();
    next.edit().generation.0 += 1;
    next.edit().nodes.get_mut(&name("cloud-0")).unwrap().prefixes =
        vec!["10.43.0.0/24".parse().unwrap()];
    bench.feed(Input::MeshChanged(Box::new(next)));
    assert_eq!(bench.targets(), ips(&["10.42.20.0"]));
}

#[test]
fn no_address_is_guessed_at_the_start_while_nodes_may_still_report_theirs() {
    let mut bench = Bench::of("home-0", routed());
    bench.feed(held(&[("cni0", "10.42.40.1")]));
    bench.frame("cloud-1", says(&[("cloud-1", "10.42.2.77")]));
    bench.settle();
    let ips = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    assert_eq!(bench.targets(), ips(&["10.42.2.77"]), "four seconds");
    bench.later(Duration::from_secs(1));
    assert_eq!(
        bench.targets(),
        ips(&["10.42.1.1", "10.42.2.77", "10.42.20.1"]),
        "daemons of before"
    );
}

#[test]
fn addresses_of_another_locations_nodes_or_outside_their_prefixes_are_refused() {
    let mut bench = Bench::of("home-0", routed());
    bench.frame("cloud-0", says(&[("home-1", "10.42.41.9"), ("nobody", "10.42.41.9")]));
    assert_eq!(bench.counted("ignored.addresses-of-another-location"), 1);
    for bad in ["10.42.20.5", "10.42.1.5 10.42.1.6", "192.0.2.1"] {
        bench.frame("cloud-0", says(&[("cloud-0", bad)]));
    }
    assert_eq!(bench.counted("ignored.addresses-outside"), 3);
    bench.frame("cloud-0", says(&[("home-0", "10.42.40.9")]));
    // What a node says itself goes before what others say, while it is heard.
    bench.frame("cloud-1", hello("cloud-1", None));
    bench.frame("cloud-1", says(&[("cloud-1", "10.42.2.7")]));
    bench.frame("cloud-0", says(&[("cloud-1", "10.42.2.8")]));
    bench.settle();
    for (node, address) in [
        ("home-0", "10.42.40.1"),
        ("home-1", "10.42.41.1"),
        ("cloud-0", "10.42.1.1"),
        ("cloud-1", "10.42.2.7"),
    ] {
        assert_eq!(probed(&bench, node), address, "{node}");
    }
    bench.later(Duration::from_secs(60));
    bench.frame("cloud-0", says(&[("cloud-1", "10.42.2.8")]));
    bench.settle();
    assert_eq!(probed(&bench, "cloud-1"), "10.42.2.8", "it is silent");
}

#[test]
fn candidates_pass_on_addresses_of_their_location_and_leaders_pass_those_of_others_to_members() {
    let mut bench = Bench::of("cloud-0", routed());
    bench.feed(held(&[("cni0", "10.42.1.9")]));
    for node in ["member-0", "cloud-1", "home-0"] {
        assert_eq!(told(&bench.up(node), node), pairs(&[("cloud-0", "10.42.1.9")]), "{node}");
    }
    bench.frame("member-0", says(&[("member-0", "10.42.20.9")]));
    bench.frame("home-0", says(&[("home-0", "10.42.40.9")]));
    let second = |bench: &mut Bench| {
        let mut effects = Vec::new();
        for node in ["member-0", "cloud-1", "home-0"] {
            bench.frame(node, hello(node, None));
        }
        for _ in 0..10 {
            effects.extend(bench.later(Duration::from_millis(100)));
        }
        effects
    };
    let effects = second(&mut bench);
    assert_eq!(told(&effects, "home-0"), pairs(&[("member-0", "10.42.20.9")]));
    assert_eq!(told(&effects, "cloud-1"), pairs(&[]), "it hears them itself");
    assert_eq!(told(&effects, "member-0"), pairs(&[]), "this node does not lead");
    assert_eq!(told(&second(&mut bench), "home-0"), pairs(&[]), "nothing new");
    // A decision: it leads. All is sent again now and then, as frames get lost.
    bench.frame("cloud-1", announce(1, 0));
    let mut effects = Vec::new();
    for _ in 0..12 {
        effects.extend(second(&mut bench));
    }
    assert_eq!(
        told(&effects, "member-0"),
        pairs(&[("cloud-0", "10.42.1.9"), ("home-0", "10.42.40.9")])
    );
    assert_eq!(
        told(&effects, "home-0"),
        pairs(&[("cloud-0", "10.42.1.9"), ("member-0", "10.42.20.9")])
    );
    // The member takes it from its leader, and finds its witness by it.
    let mut member = Bench::of("member-0", routed_of(mesh(3, 1, 1)));
    member.frame("cloud-0", says(&[("home-0", "10.42.40.9")]));
    member.settle();
    let witness =
        member.node.wanted_peers().into_iter().find(|p| p.name == name("home-0")).unwrap();
    assert_eq!(witness.addresses[0].to.ip().to_string(), "10.42.40.9");
}

#[test]
fn addresses_of_a_location_of_any_size_are_sent_in_frames_that_fit_a_datagram() {
    let mut mesh = mesh(2, 1, 0);
    let member = mesh.nodes.values().find(|n| n.location.as_str() == "cloud" && n.slot.is_none());
    let member = member.unwrap().clone();
    for i in 0..499u16 {
        let name: NodeName = format!("cloud-m{i}").parse().unwrap();
        let index = crate::ids::NodeIndex(100 + i);
        mesh.edit().nodes.insert(name.clone(), crate::mesh::Node { name, index, ..member.clone() });
    }
    for node in mesh.edit().nodes.values_mut() {
        node.index.0 += 100;
        let (a, b) = (node.index.0 / 256, node.index.0 % 256);
        node.prefixes = vec![format!("10.{}.{b}.0/24", 42 + a).parse().unwrap()];
    }
    let members: Vec<(String, String)> = mesh
        .nodes
        .values()
        .filter(|n| n.slot.is_none())
        .map(|n| (n.name.to_string(), n.prefixes[0].addr().to_string()))
        .collect();
    let mut bench = Bench::of("cloud-0", mesh);
    bench.up("home-0");
    for (node, address) in &members {
        bench.frame(node, hello(node, None));
        bench.frame(node, says(&[(node, address)]));
    }
    let mut known = BTreeMap::new();
    for _ in 0..20 {
        for (node, _) in &members {
            bench.frame(node, hello(node, None));
        }
        let effects = bench.later(Duration::from_secs(1));
        for effect in &effects {
            let Effect::SendFrame { frame, .. } = effect else { continue };
            assert!(!matches!(**frame, Frame::Addresses(_)) || frame.encode().len() < 1200);
        }
        known.extend(told(&effects, "home-0"));
    }
    assert_eq!(known.len(), 500, "all within twenty seconds, 32 in each");
}
