//! What a node tells of relay pairs: `wgctl explain A B`, and where to ask if it does not know.

use super::*;
use crate::mesh::{Location, Overlay};
use crate::relay_pair::{TunnelRow, TunnelState};
use crate::status::{NextRelays, RelayExplanation};

fn names(all: &[&str]) -> Vec<NodeName> {
    all.iter().map(|n| name(n)).collect()
}

/// A candidate of `cloud` says of each slot of `home` that its tunnel is in this state.
fn says(bench: &mut Bench, from: &str, states: &[(u8, TunnelState)], avoid: bool) {
    let row = states.iter().fold(TunnelRow::UNKNOWN, |row, (s, state)| row.with(Slot(*s), *state));
    let location = "home".parse().unwrap();
    let row = row.avoiding(avoid);
    bench.frame(from, Frame::Tunnels { location, row, heard: vec![] });
}

fn explain(bench: &Bench, a: &str, b: &str) -> Result<RelayExplanation, String> {
    bench.node.explain_relays(bench.now, a, b)
}

#[test]
fn a_detour_is_explained_with_who_would_be_next_and_the_way_of_two_nodes() {
    let mut bench = Bench::new();
    let calm = explain(&bench, "cloud", "home").unwrap();
    assert!(!calm.pair.detour);
    assert_eq!((calm.pair.near, calm.pair.far), (names(&["home-0"]), names(&["cloud-0"])));
    assert_eq!(calm.pair.tunnels.len(), 6);
    assert_eq!((calm.way, calm.carried), (vec![], None));

    use TunnelState::{Bad, Good};
    says(&mut bench, "cloud-0", &[(0, Bad), (1, Good), (2, Bad)], false);
    says(&mut bench, "cloud-1", &[(0, Bad), (1, Bad), (2, Good)], true);
    let e = explain(&bench, "home-2", "member-0").unwrap();
    assert_eq!((&e.node, e.location.as_str()), (&name("home-0"), "home"));
    assert!(e.pair.detour && !e.pair.cut_off);
    assert_eq!((e.pair.near, e.pair.far), (names(&["home-1"]), names(&["cloud-0"])));
    assert_eq!((e.near_leaders, e.far_leaders), (names(&["home-0"]), names(&["cloud-0"])));
    let why = "the tunnel home-0–cloud-0 is bad, as cloud-0 sees it";
    assert_eq!(e.pair.why.as_deref(), Some(why));
    let (near, far) = (name("home-2"), name("cloud-1"));
    assert_eq!(e.next, Some(NextRelays { near, far, state: Good }));
    assert_eq!(e.avoided, names(&["cloud-1"]));
    assert_eq!(e.way, names(&["home-2", "home-1", "cloud-0", "member-0"]));
    let back = explain(&bench, "cloud-0", "home-1").unwrap();
    assert_eq!(back.way, names(&["cloud-0", "home-1"]), "relays themselves");
    let status = bench.node.status(bench.now);
    assert_eq!(status.relay_pairs[0].tunnels, e.pair.tunnels);
    let seen = bench.node.seen_relay_changes();
    assert_eq!((seen.node, seen.location.as_str()), (name("home-0"), "home"));
    assert_eq!(seen.changes, bench.node.relay_changes());
    assert_eq!(seen.changes.len(), 1);

    // The last good tunnel fails, and the rest is known to be bad.
    says(&mut bench, "cloud-0", &[(0, Bad), (1, Bad), (2, Bad)], false);
    let e = explain(&bench, "cloud", "home").unwrap();
    assert_eq!((e.pair.near, e.pair.far), (names(&["home-2"]), names(&["cloud-1"])));
    assert_eq!(e.next, None, "all others are bad");
    assert_eq!(e.accused, []);
}

#[test]
fn who_would_be_next_follows_the_same_rule_as_who_carries() {
    use TunnelState::{Bad, Good};
    let mut bench = Bench::new();
    says(&mut bench, "cloud-0", &[(0, Bad), (1, Good), (2, Good)], false);
    let next = |bench: &Bench| explain(bench, "cloud", "home").unwrap().next.unwrap().near;
    assert_eq!(next(&bench), name("home-2"), "the lower location keeps its leader");
    // home-2 answers cloud-1 and relays nothing: somebody else is next.
    let row = TunnelRow::UNKNOWN.with(Slot(2), Bad).accusing(Slot(2)).with(Slot(0), Good);
    let location = "home".parse().unwrap();
    bench.frame("cloud-1", Frame::Tunnels { location, row, heard: vec![] });
    let e = explain(&bench, "cloud", "home").unwrap();
    assert_eq!(e.accused, names(&["home-2"]));
    assert_eq!(next(&bench), name("home-0"), "by cloud-1");
}

#[test]
fn who_does_not_know_says_whom_to_ask() {
    let mut mesh = mesh(2, 1, 0);
    let edge = Location::new("edge".parse().unwrap(), Overlay::External);
    mesh.edit().locations.insert(edge.name.clone(), edge);
    let bench = Bench::of("home-0", mesh);
    let said = |a, b| explain(&bench, a, b).unwrap_err();
    assert_eq!(said("home", "home-1"), "both are in home: nothing is relayed between them");
    let unknown = "the mesh has no location and no node hoem: its locations are cloud, edge, home";
    assert_eq!(said("hoem", "cloud"), unknown);
    assert_eq!(
        said("cloud", "edge"),
        "home-0 is in home and knows nothing of the tunnels between cloud and edge: ask cloud-0 or cloud-1"
    );
    assert_eq!(said("home", "edge"), "one of home and edge has no candidate");
    let member = Bench::with_members("home-1");
    assert_eq!(
        explain(&member, "cloud", "home").unwrap_err(),
        "home-1 is a plain member and knows nothing of tunnels: ask home-0, cloud-0 or cloud-1"
    );
}
