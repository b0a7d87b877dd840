//! Relay pairs at one node: whom it believes, what it programs, whom it tells.

use super::*;
use crate::io::{HeldAddress, OverriddenRoute, RouteCheck};
use crate::observe::outward::tested;
use crate::relay_pair::{Detour, Relays, TunnelRow, TunnelState};
use crate::status::{RelayChangeKind, RelayPairStatus};
use crate::verdict::{EvidenceRow, ProbeClass};

fn row(states: &[(u8, TunnelState)]) -> TunnelRow {
    states.iter().fold(TunnelRow::UNKNOWN, |row, (slot, state)| row.with(Slot(*slot), *state))
}

fn tunnels(location: &str, row: TunnelRow, heard: &[(u8, TunnelRow)]) -> Frame {
    let heard = heard.iter().map(|(slot, row)| (Slot(*slot), *row)).collect();
    Frame::Tunnels { location: location.parse().unwrap(), row, heard }
}

fn detours(near: u8, far: u8) -> Frame {
    let location = "cloud".parse().unwrap();
    Frame::Detours(vec![Detour { location, near: Slot(near), far: Slot(far) }])
}

/// Nodes with workloads and addresses of their own.
fn with_workloads(mesh: Mesh) -> Mesh {
    mesh.with(|m| {
        for (n, node) in m.nodes.values_mut().enumerate() {
            node.address = format!("10.0.0.{}", n + 1).parse().unwrap();
            node.prefixes = vec![format!("10.64.{n}.0/24").parse().unwrap()];
            node.device = Some("eth0".parse().unwrap());
        }
    })
}

/// `home-0`, the one candidate of `home`.
fn candidate() -> Bench {
    let mesh = mesh(2, 1, 0).with(|m| {
        m.nodes.get_mut(&name("home-1")).unwrap().slot = None;
        m.nodes.get_mut(&name("home-2")).unwrap().slot = None;
    });
    Bench::of("home-0", with_workloads(mesh))
}

/// A member `home-2`, connected with both candidates of `home`.
fn member() -> Bench {
    let mesh = mesh(2, 1, 0).with(|m| m.nodes.get_mut(&name("home-2")).unwrap().slot = None);
    let mut bench = Bench::of("home-2", with_workloads(mesh));
    for node in ["home-0", "home-1"] {
        bench.feed(Input::PeerUp { node: name(node), rtt_micros: 200 });
    }
    bench
}

impl Bench {
    fn relays(&self) -> Option<&Relays> {
        self.node.relays.exceptions().get(&"cloud".parse().unwrap())
    }

    fn pair(&self) -> RelayPairStatus {
        let status = self.node.status(self.now);
        let cloud = "cloud".parse().unwrap();
        status.relay_pairs.into_iter().find(|p| p.location == cloud).expect("a relay pair")
    }
}

fn relays(near: u8, far: u8) -> Relays {
    Relays { near: vec![Slot(near)], far: vec![Slot(far)] }
}

fn sent(effects: &[Effect], kind: &str) -> Vec<(NodeName, Frame)> {
    let sent = effects.iter().filter_map(|e| match e {
        Effect::SendFrame { to, frame } if frame.kind() == kind => {
            Some((to.clone(), (**frame).clone()))
        }
        _ => None,
    });
    sent.collect()
}

#[test]
fn the_far_ends_word_moves_the_relay_pair_at_once_and_is_passed_on() {
    let mut bench = candidate();
    assert_eq!(bench.relays(), None);
    // It cannot get through this node: the only candidate here. The lower location, cloud, keeps its leader if that helps.
    let effects = bench.frame("cloud-0", tunnels("home", row(&[(0, TunnelState::Bad)]), &[]));
    assert_eq!(programs(&effects), 1);
    assert_eq!(bench.relays(), Some(&relays(0, 1)));
    let told = sent(&effects, "tunnels");
    let to: Vec<&str> = told.iter().map(|(to, _)| to.as_str()).collect();
    assert!(to.contains(&"cloud-0") && to.contains(&"cloud-1"), "{to:?}");
    assert_eq!(to.iter().filter(|n| n.starts_with("home")).count(), 2, "the voters: {to:?}");
    let detours = sent(&effects, "detours");
    let expected = [("home-1", 0, 1), ("home-2", 0, 1)].map(|(node, near, far)| {
        let location = "cloud".parse().unwrap();
        let detour = Detour { location, near: Slot(near), far: Slot(far) };
        (name(node), Frame::Detours(vec![detour]))
    });
    assert_eq!(detours, expected);
    let shown = bench.pair();
    assert!(shown.detour && !shown.cut_off);
    assert_eq!(shown.far, [name("cloud-1")]);
    let why = "the tunnel home-0–cloud-0 is bad, as cloud-0 sees it";
    assert_eq!(shown.why.as_deref(), Some(why));
    // What is known changes nothing.
    let again = bench.frame("cloud-0", tunnels("home", row(&[(0, TunnelState::Bad)]), &[]));
    assert!(sent(&again, "tunnels").is_empty() && programs(&again) == 0);
}

#[test]
fn a_word_that_is_not_repeated_ends_and_the_leaders_carry_again() {
    let mut bench = candidate();
    bench.frame("cloud-0", tunnels("home", row(&[(0, TunnelState::Bad)]), &[]));
    let repeated = bench.later(Duration::from_millis(1100));
    assert!(!sent(&repeated, "tunnels").is_empty(), "trouble is told again");
    bench.later(Duration::from_millis(2500));
    assert_eq!(bench.relays(), None);
    assert!(!bench.pair().detour);
    let kinds: Vec<RelayChangeKind> = bench.node.relay_changes().iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [RelayChangeKind::Detour, RelayChangeKind::DetourEnded]);
    (0..10).for_each(|_| drop(bench.later(Duration::from_millis(100))));
    let calm = bench.later(Duration::from_millis(1100));
    let calm = [calm, bench.later(Duration::from_millis(1100))].concat();
    assert!(sent(&calm, "tunnels").is_empty(), "in a calm mesh nothing is told");
}

#[test]
fn a_new_decision_moves_nothing_into_a_tunnel_that_is_bad() {
    let mut bench = candidate();
    bench.frame("cloud-0", announce(1, 0));
    bench.frame("cloud-1", tunnels("home", row(&[(0, TunnelState::Bad)]), &[]));
    assert_eq!(bench.relays(), None, "the standby's tunnel is of no concern");
    bench.frame("cloud-0", announce(2, 1));
    assert_eq!(bench.relays(), Some(&relays(0, 0)));
}

#[test]
fn while_all_tunnels_are_bad_the_leaders_stay_and_that_is_an_error_after_some_seconds() {
    let mut bench = candidate();
    let all_bad = || row(&[(0, TunnelState::Bad)]);
    let mut effects = Vec::new();
    for _ in 0..5 {
        for node in ["cloud-0", "cloud-1"] {
            effects.extend(bench.frame(node, tunnels("home", all_bad(), &[])));
        }
        effects.extend(bench.later(Duration::from_secs(1)));
    }
    assert_eq!(bench.relays(), None);
    assert!(bench.pair().cut_off);
    let errors = effects.iter().filter(|e| {
        matches!(e, Effect::Log { level: LogLevel::Error, message, .. } if message.contains("cut off"))
    });
    assert_eq!(errors.count(), 1);
    let good = row(&[(0, TunnelState::Good)]);
    bench.frame("cloud-1", tunnels("home", good, &[]));
    assert!(!bench.pair().cut_off);
}

#[test]
fn a_detour_of_fifteen_minutes_is_an_error() {
    let mut bench = member();
    let mut effects = bench.frame("home-0", detours(1, 1));
    for _ in 0..15 * 60 + 2 {
        bench.frame("home-0", detours(1, 1));
        effects.extend(bench.later(Duration::from_secs(1)));
    }
    assert!(bench.pair().long);
    let errors = effects.iter().filter(|e| {
        matches!(e, Effect::Log { level: LogLevel::Error, message, .. } if message.contains("15 minutes"))
    });
    assert_eq!(errors.count(), 1);
}

#[test]
fn a_member_goes_by_its_leaders_word_and_by_the_next_candidates_if_that_is_silent() {
    let mut bench = member();
    bench.frame("home-1", detours(1, 1));
    bench.frame("home-0", Frame::Detours(vec![]));
    assert_eq!(bench.relays(), None, "a standby attracts nobody");
    let effects = bench.frame("home-0", detours(1, 1));
    assert_eq!((bench.relays(), programs(&effects)), (Some(&relays(1, 1)), 1));
    bench.frame("home-0", Frame::Detours(vec![]));
    assert_eq!(bench.relays(), None);
    bench.frame("home-1", detours(0, 1));
    bench.feed(Input::PeerDown { node: name("home-0") });
    bench.later(Duration::from_millis(1100));
    assert_eq!(bench.relays(), Some(&relays(0, 1)));
    bench.later(Duration::from_secs(4));
    assert_eq!(bench.relays(), None, "nobody is heard");
}

#[test]
fn a_standby_speaks_for_no_candidate_elsewhere_that_this_node_is_connected_with() {
    let mut bench = Bench::of("home-0", with_workloads(mesh(2, 1, 0)));
    let claim = || tunnels("cloud", TunnelRow::UNKNOWN, &[(0, row(&[(0, TunnelState::Bad)]))]);
    bench.feed(Input::PeerUp { node: name("cloud-0"), rtt_micros: 20_000 });
    bench.frame("home-1", claim());
    assert_eq!(bench.relays(), None);
    bench.feed(Input::PeerUp { node: name("home-1"), rtt_micros: 200 });
    bench.feed(Input::PeerDown { node: name("cloud-0") });
    bench.frame("home-1", claim());
    assert_eq!(bench.relays(), Some(&relays(1, 0)));
}

#[test]
fn a_standby_that_is_not_there_is_no_detour_while_nobody_says_that_its_tunnel_is_good() {
    let mut bench = Bench::of("home-0", with_workloads(mesh(2, 1, 0)));
    let bad = || tunnels("home", row(&[(0, TunnelState::Bad)]), &[]);
    bench.frame("cloud-0", bad());
    bench.frame("cloud-1", bad());
    assert_eq!(bench.relays(), None);
    bench.feed(Input::PeerUp { node: name("home-1"), rtt_micros: 200 });
    bench.later(Duration::from_millis(1100));
    assert_eq!(bench.relays(), Some(&relays(1, 0)));
    bench.feed(Input::PeerDown { node: name("home-1") });
    bench.later(Duration::from_millis(1100));
    assert_eq!(bench.relays(), None);
    let vouched = row(&[(0, TunnelState::Bad), (1, TunnelState::Good)]);
    bench.frame("cloud-0", tunnels("home", vouched, &[]));
    assert_eq!(bench.relays(), Some(&relays(1, 0)), "the other end vouches for it");
}

#[test]
fn what_changed_is_told_again_some_times_as_a_frame_may_get_lost() {
    let mut bench = candidate();
    for node in ["home-1", "home-2"] {
        bench.feed(Input::PeerUp { node: name(node), rtt_micros: 200 });
    }
    bench.frame("cloud-0", tunnels("home", row(&[(0, TunnelState::Bad)]), &[]));
    let times = (0..9).filter(|_| {
        let effects = bench.later(Duration::from_millis(100));
        sent(&effects, "tunnels").iter().any(|(to, _)| to.as_str() == "cloud-0")
            && sent(&effects, "detours").len() >= 2
    });
    assert_eq!(times.count(), 4);
}

#[test]
fn words_of_nodes_that_have_no_say_are_counted_and_change_nothing() {
    let mut bench = candidate();
    let bad = || row(&[(0, TunnelState::Bad), (1, TunnelState::Bad)]);
    for (from, location) in [("home-1", "cloud"), ("member-0", "home"), ("cloud-0", "cloud")] {
        bench.frame(from, tunnels(location, bad(), &[]));
    }
    assert_eq!(bench.counted("ignored.tunnels-of-no-candidate"), 3);
    bench.frame("cloud-0", detours(0, 1));
    assert_eq!(bench.counted("ignored.detours-of-no-candidate"), 1);
    assert_eq!(bench.relays(), None);
    let mut bench = member();
    bench.frame("cloud-0", detours(0, 1));
    assert_eq!(bench.counted("ignored.detours-of-no-candidate"), 1);
    // Slots that no candidate has.
    bench.frame("home-0", detours(9, 9));
    assert_eq!(bench.relays(), None);
}

#[test]
fn a_relay_whose_routes_are_overridden_is_gone_around_where_another_is_well() {
    let cloud: LocationName = "cloud".parse().unwrap();
    let mut bench = Bench::of("home-0", with_workloads(mesh(2, 1, 0)));
    bench.feed(Input::PeerUp { node: name("home-1"), rtt_micros: 200 });
    let check = |iif: Option<&str>| RouteCheck {
        location: cloud.clone(),
        source: "10.64.3.1".parse().unwrap(),
        target: "10.64.1.1".parse().unwrap(),
        iif: iif.map(|dev| dev.parse().unwrap()),
    };
    let overridden =
        |iif| vec![OverriddenRoute { check: check(iif), found: "it leaves by tun0".into() }];
    // What a node sends itself is no matter of relays.
    let effects = bench.feed(Input::Overridden(overridden(None)));
    assert!(sent(&effects, "tunnels").is_empty());
    assert!(bench.notes().iter().any(|n| n.contains("it leaves by tun0")), "{:?}", bench.notes());
    // Transit: the node asks to be avoided. It relays until it knows of a better candidate.
    let effects = bench.feed(Input::Overridden(overridden(Some("eth0"))));
    assert!(!sent(&effects, "tunnels").is_empty());
    assert_eq!(bench.relays(), None);
    // Another one in the same trouble is no way out.
    let good = row(&[(0, TunnelState::Good), (1, TunnelState::Good)]);
    bench.frame("home-1", tunnels("cloud", good.avoiding(true), &[]));
    assert_eq!(bench.relays(), None);
    bench.frame("home-1", tunnels("cloud", good, &[]));
    assert_eq!(bench.relays(), Some(&relays(1, 0)));
    let why = bench.pair().why.unwrap_or_default();
    assert!(why.contains("10.64.3.1") && why.contains("it leaves by tun0"), "{why}");
    bench.feed(Input::Overridden(Vec::new()));
    assert_eq!(bench.relays(), None);
    assert!(!bench.notes().iter().any(|n| n.contains("tun0")));
}

#[test]
fn a_relay_through_which_new_flows_are_lost_is_gone_around_while_its_testers_say_so() {
    let mut bench = Bench::of("home-0", with_workloads(mesh(2, 1, 0)));
    bench.feed(Input::PeerUp { node: name("home-1"), rtt_micros: 200 });
    let good = row(&[(0, TunnelState::Good), (1, TunnelState::Good)]);
    bench.frame("home-1", tunnels("cloud", good, &[]));
    let evidence = EvidenceRow {
        class: ProbeClass::NewFlow,
        target: Some(name("cloud-0")),
        address: None,
        port: None,
        sent: 9,
        lost: 9,
        time_exceeded: 0,
    };
    let report = |observer: &NodeName, slot: u8| {
        let lost = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
        let said = SlotReport::new(Slot(slot), lost, WallTime(1));
        Frame::Report(Report {
            observer: observer.clone(),
            location: "home".parse().unwrap(),
            seq: 1,
            epoch: Epoch(0),
            abstains: true,
            full_rate: false,
            slots: vec![SlotReport { evidence: vec![evidence.clone()], ..said }],
        })
    };
    let mesh = bench.node.mesh().clone();
    let of_home =
        mesh.nodes.keys().filter(|n| n.as_str().starts_with("home") && **n != bench.node.me);
    let (testers, others): (Vec<&NodeName>, Vec<&NodeName>) =
        of_home.partition(|n| tested(&mesh, n).contains(&Slot(0)));
    let tester = testers[0];
    // Of another slot, in another's name, by nodes that do not try this one.
    bench.frame(tester.as_str(), report(tester, 1));
    bench.frame(tester.as_str(), report(&name("home-0"), 0));
    for other in others {
        bench.frame(other.as_str(), report(other, 0));
    }
    assert_eq!(bench.relays(), None);
    bench.frame(tester.as_str(), report(tester, 0));
    assert_eq!(bench.relays(), Some(&relays(1, 0)));
    let why = bench.pair().why.unwrap_or_default();
    assert!(why.contains(tester.as_str()) && why.contains("look at its firewall"), "{why}");
    assert!(bench.notes().iter().any(|n| n.contains("look at its firewall")));
    for _ in 0..5 {
        bench.later(Duration::from_secs(1));
        bench.frame("home-1", tunnels("cloud", good, &[]));
    }
    assert_eq!(bench.relays(), None, "nobody says so any more");
}

#[test]
fn the_kernel_is_asked_for_transit_on_candidates_and_for_own_packets_everywhere() {
    let asked = |me: &str, members: &[&str]| {
        let mesh = mesh(2, 1, 0).with(|m| {
            for member in members {
                m.nodes.get_mut(&name(member)).unwrap().slot = None;
            }
        });
        let mut bench = Bench::of(me, with_workloads(mesh));
        let own = bench.node.mesh().node(&name(me)).unwrap().prefixes[0];
        let address = own.hosts().next().unwrap();
        let held = HeldAddress { device: "pods".parse().unwrap(), address };
        let effects = bench.feed(Input::Addresses(vec![held]));
        let checks = effects.into_iter().find_map(|e| match e {
            Effect::CheckRoutes { checks } => Some(checks),
            _ => None,
        });
        let checks = checks.expect("it asks");
        let own = checks.iter().filter(|c| c.iif.is_none()).count();
        assert!(checks.iter().all(|c| c.iif.is_some() || c.source == address));
        (own, checks.len() - own)
    };
    let (own, transit) = asked("home-0", &["home-2"]);
    assert!(own >= 2 && transit > own, "{own}, {transit}");
    let (own, transit) = asked("home-2", &["home-2"]);
    assert!(own >= 2 && transit == 0, "{own}, {transit}");
}
