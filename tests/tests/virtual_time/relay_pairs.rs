//! What is broken between two locations, and not at one of them: whoever has any way gets through, both ways by the same relays.
//!
//! Each check runs many worlds and counts those that fail: `tests/known-to-fail` says how many may.

use leaderd_core::ids::Slot;
use leaderd_core::mesh::plane;
use tests::sim::known;
use tests::sim::meter::measure_tcp;
use tests::sim::{Foreign, ForeignKind, Weather};
use wgctl_plan::Family;

use super::*;

/// Faults are in place for this long before the ways are looked at, and as long again after they end: all timeouts are over by then, and
/// the hold of a dead leader.
const SETTLED: Duration = Duration::from_secs(25);

/// Milliseconds. The two ends of a pair learn of a move half of one apart, and no rule can do better; both meters count milliseconds.
const ROUND_TRIP: u32 = 20;

/// What a check found: worlds that fail, by promise.
#[derive(Default)]
struct Found {
    worlds: usize,
    through: Vec<String>,
    mirror: Vec<String>,
    flows: Flows,
}

/// Pairs of workloads that have any way, in all worlds together.
#[derive(Default)]
struct Flows {
    all: usize,
    through: usize,
    mirrored: usize,
}

impl Found {
    /// Takes down what the model found, and how the ways are now. `owed`: pairs of workloads that have a way by the test's own knowledge.
    fn look(&mut self, what: &str, play: &mut Play, owed: impl Fn(&Node, &Node, Family) -> bool) {
        let nodes = || play.world.mesh.nodes.values();
        let (mut lost, mut askew) = (Vec::new(), Vec::new());
        for (a, b) in nodes().flat_map(|a| nodes().map(move |b| (a, b))) {
            for family in [Family::V4, Family::V6] {
                if a.location >= b.location || !owed(a, b, family) {
                    continue;
                }
                let there = play.world.crossed(&a.name, &b.name, family);
                let back = play.world.crossed(&b.name, &a.name, family);
                let (Some(there), Some(back)) = (there, back) else { continue };
                self.flows.all += 1;
                match (there, back) {
                    (Ok(there), Ok(mut back)) => {
                        self.flows.through += 1;
                        back.reverse();
                        if there == back {
                            self.flows.mirrored += 1;
                        } else {
                            askew.push(format!("{} {} {family:?}", a.name, b.name));
                        }
                    }
                    _ => lost.push(format!("{} {} {family:?}", a.name, b.name)),
                }
            }
        }
        // What happened until here belongs to this world, and to no later look at it.
        let unkept = std::mem::take(&mut play.model.unkept);
        lost.extend(unkept.through.into_iter().take(1));
        askew.extend(unkept.mirror.into_iter().take(1));
        self.worlds += 1;
        for (bad, list) in [(lost, &mut self.through), (askew, &mut self.mirror)] {
            if !bad.is_empty() {
                let first: Vec<&str> = bad.iter().take(2).map(String::as_str).collect();
                list.push(format!("{what}: {} bad: {}", bad.len(), first.join("; ")));
            }
        }
    }

    fn judge(&self, check: &str) {
        let Flows { all, through, mirrored } = self.flows;
        let share = |n: usize| n as f64 * 100.0 / all.max(1) as f64;
        println!(
            "{check}: of {all} flows that have a way {:.1}% get through both ways, {:.1}% by the same relays",
            share(through),
            share(mirrored)
        );
        let rows = [format!("{check}: through"), format!("{check}: mirror")];
        known::judge_all(&[
            (&rows[0], self.worlds, &self.through),
            (&rows[1], self.worlds, &self.mirror),
        ]);
    }
}

impl Play {
    fn promote(&mut self, node: &str) {
        let request = AdminRequest::Promote { node: name(node), force: true };
        self.world.input(&name(node), Input::Admin { id: 1, user: None, request });
        self.run(secs(2));
    }
}

fn two_by_two() -> Play {
    let sites = [Site::new("cloud", 2, 1).dual_stack(), Site::new("home", 2, 1).dual_stack()];
    Play::of(&sites, Policy::default(), WorldConfig::default())
}

fn everything(_: &Node, _: &Node, _: Family) -> bool {
    true
}

/// Runs a world with these faults, and looks at it when it has settled; and again after they have ended.
fn with_faults(
    found: &mut Found,
    sites: &[Site],
    faults: &[(&str, Fault)],
    owed: impl Fn(&Node, &Node, Family) -> bool,
) {
    let mut play = Play::of(sites, Policy::default(), WorldConfig::default());
    for (node, fault) in faults {
        play.fault(node, fault.clone(), true);
    }
    play.run(SETTLED);
    let what = format!("{faults:?}");
    found.look(&what, &mut play, owed);
    for (node, fault) in faults {
        play.fault(node, fault.clone(), false);
    }
    play.run(SETTLED);
    found.look(&format!("{what} over"), &mut play, everything);
    play.fine();
}

fn hybrid_sites() -> [Site; 2] {
    [Site::new("cloud", 2, 1), Site::new("home", 2, 1)]
}

#[test]
fn every_state_of_two_by_two_tunnels() {
    let mut found = Found::default();
    // Commanded leaders whose tunnels then die, and commands amid dead tunnels; what Raft decides afterwards is its own affair.
    for (leaders, command_first) in (0..4).flat_map(|l| [(l, true), (l, false)]) {
        for alive in 0..16u32 {
            let mut play = two_by_two();
            let command = |play: &mut Play| {
                for (bit, location) in ["cloud", "home"].into_iter().enumerate() {
                    if leaders >> bit & 1 == 1 {
                        play.promote(&format!("{location}-1"));
                        let led = play.leader_of(location);
                        assert!(!command_first || led.ends_with('1'), "{}", play.story());
                    }
                }
            };
            if command_first {
                command(&mut play);
            }
            for tunnel in (0..4).filter(|t| alive >> t & 1 == 0) {
                let (i, j) = (tunnel >> 1, tunnel & 1);
                let cut = Fault::PairCut(name(&format!("home-{j}")));
                play.fault(&format!("cloud-{i}"), cut, true);
            }
            if !command_first {
                play.run(secs(5));
                command(&mut play);
            }
            play.run(SETTLED);
            if alive == 0 {
                assert!(!play.delivers("cloud-2", "home-2"), "nothing can pass");
            }
            let order = if command_first { "before" } else { "after" };
            let what = format!("leaders {leaders:02b} {order}, tunnels that work {alive:04b}");
            found.look(&what, &mut play, |_, _, _| alive != 0);
            play.fine();
        }
    }
    found.judge("every_state_of_two_by_two_tunnels");
}

#[test]
fn a_dead_pair_of_leaders_among_three_locations() {
    let mut found = Found::default();
    let sites = ["cloud", "home", "lab"].map(|l| Site::new(l, 2, 1));
    for (a, b) in [("cloud-0", "home-0"), ("cloud-0", "lab-0"), ("home-0", "lab-0")] {
        with_faults(&mut found, &sites, &[(a, Fault::PairCut(name(b)))], everything);
    }
    // One leader reaches only the second location, its standby only the third.
    let faults =
        [("cloud-0", Fault::PairCut(name("lab-0"))), ("cloud-1", Fault::PairCut(name("home-0")))];
    with_faults(&mut found, &sites, &faults, everything);
    found.judge("a_dead_pair_of_leaders_among_three_locations");
}

#[test]
fn one_direction_of_a_pair_of_leaders_is_dead() {
    let mut found = Found::default();
    for (from, to) in [("cloud-0", "home-0"), ("home-0", "cloud-0")] {
        let one_way = [(from, Fault::OneWay(name(to)))];
        with_faults(&mut found, &hybrid_sites(), &one_way, everything);
    }
    // The other way of another pair is dead at the same time.
    let both =
        [("cloud-0", Fault::OneWay(name("home-0"))), ("home-0", Fault::OneWay(name("cloud-1")))];
    with_faults(&mut found, &hybrid_sites(), &both, everything);
    found.judge("one_direction_of_a_pair_of_leaders_is_dead");
}

#[test]
fn a_plane_does_not_forward() {
    let mut found = Found::default();
    for node in ["cloud-0", "home-0", "cloud-1", "home-1"] {
        for slot in 0..2 {
            let fault = [(node, Fault::PlaneOff(slot))];
            with_faults(&mut found, &hybrid_sites(), &fault, everything);
        }
    }
    found.judge("a_plane_does_not_forward");
}

#[test]
fn a_relay_forwards_one_family_only() {
    let mut found = Found::default();
    let sites = hybrid_sites().map(Site::dual_stack);
    for node in ["cloud-0", "home-0"] {
        for family in [Family::V4, Family::V6] {
            let fault = [(node, Fault::FamilyOff(family))];
            with_faults(&mut found, &sites, &fault, everything);
        }
    }
    found.judge("a_relay_forwards_one_family_only");
}

#[test]
fn a_path_has_bad_weather() {
    let mut found = Found::default();
    let dead = Weather::lossy(Loss::Independent(0.97));
    let bursts = Loss::Bursty { to_bad: 0.005, to_good: 0.2, bad_loss: 0.5 };
    for weather in
        [dead, Weather::lossy(Loss::Independent(0.3)), Weather::lossy(bursts), Weather::slower(200)]
    {
        for (from, to) in [("cloud-0", "home-0"), ("home-0", "cloud-0")] {
            let fault = [(from, Fault::Weather(name(to), weather))];
            with_faults(&mut found, &hybrid_sites(), &fault, everything);
        }
    }
    found.judge("a_path_has_bad_weather");
}

#[test]
fn a_machine_stands_still() {
    let mut found = Found::default();
    for node in ["cloud-0", "cloud-1", "home-0"] {
        let others = |a: &Node, b: &Node, _| a.name.as_str() != node && b.name.as_str() != node;
        with_faults(&mut found, &hybrid_sites(), &[(node, Fault::MachinePause)], others);
    }
    // Shorter than anything is given up: it goes on late.
    for (node, pause) in [("cloud-0", 150), ("cloud-0", 900), ("home-1", 900), ("cloud-2", 900)] {
        let mut play = Play::of(&hybrid_sites(), Policy::default(), WorldConfig::default());
        play.fault(node, Fault::MachinePause, true);
        play.run(ms(pause));
        play.fault(node, Fault::MachinePause, false);
        play.run(SETTLED);
        found.look(&format!("{node} for {pause} ms"), &mut play, everything);
        play.fine();
    }
    found.judge("a_machine_stands_still");
}

#[test]
fn a_lan_is_silent() {
    let mut found = Found::default();
    for node in ["cloud-0", "cloud-1", "cloud-2"] {
        let fault = [(node, Fault::LanControlCut)];
        with_faults(&mut found, &hybrid_sites(), &fault, everything);
    }
    // The leader tells its member nothing, and the tunnel to the other leader dies.
    let faults = [("cloud-0", Fault::LanControlCut), ("cloud-0", Fault::PairCut(name("home-0")))];
    with_faults(&mut found, &hybrid_sites(), &faults, everything);
    // The reverse: its daemon talks, and no packet passes on its LAN.
    for node in ["cloud-0", "cloud-1"] {
        let others = |a: &Node, b: &Node, _| a.name.as_str() != node && b.name.as_str() != node;
        with_faults(&mut found, &hybrid_sites(), &[(node, Fault::LanPacketsCut)], others);
    }
    found.judge("a_lan_is_silent");
}

#[test]
fn another_tool_has_rules_and_routes() {
    let mut found = Found::default();
    let prefix = |s: &str| s.parse().expect("a prefix");
    let foreign = |to: &str, kind| Foreign { to: prefix(to), from: None, iif: None, kind };
    let (rule, route) = (ForeignKind::Rule(5270), ForeignKind::Route { metric: 50 });
    // On a relay, for what it sends into the tunnel: a member of the other location, all of it by a better metric, a longer prefix.
    let outward = [
        foreign("10.1.2.0/24", rule),
        foreign("10.1.2.0/24", route),
        foreign("10.1.2.0/25", route),
    ];
    // On a relay, for what comes in by one plane only.
    let inward =
        Foreign { iif: Some(plane(Slot(0))), ..foreign("10.1.2.0/24", ForeignKind::Rule(10)) };
    for (node, foreign) in outward.map(|f| ("home-0", f)).into_iter().chain([("cloud-0", inward)]) {
        // The relay's own packets are taken as well.
        let others =
            |a: &Node, b: &Node, _| a.name.as_str() != "home-0" && b.name.as_str() != "home-0";
        with_faults(&mut found, &hybrid_sites(), &[(node, Fault::Foreign(foreign))], others);
    }
    found.judge("another_tool_has_rules_and_routes");
}

#[test]
fn a_link_loses_its_carrier() {
    let mut found = Found::default();
    let dev = |s: &str| Fault::LinkDown(s.parse().expect("a name"));
    let direct = hybrid_sites().map(Site::direct);
    for (node, link) in
        [("cloud-2", "eth0"), ("cloud-0", "eth0"), ("cloud-0", "wgl0"), ("home-0", "wgl0")]
    {
        let others = |a: &Node, b: &Node, _| {
            link != "eth0" || (a.name.as_str() != node && b.name.as_str() != node)
        };
        with_faults(&mut found, &direct, &[(node, dev(link))], others);
    }
    found.judge("a_link_loses_its_carrier");
}

/// While relays drop what connection tracking calls invalid, new connections are out no longer than packets are.
#[test]
fn new_tcp_connections_open_wherever_packets_pass() {
    let mut failed = Vec::new();
    let mut worlds = 0;
    let faults = [
        ("cloud-0", Some(Fault::VxlanNewFlows)),
        ("cloud-0", Some(Fault::NodeCrash)),
        ("cloud-0", Some(Fault::ForwardingOff)),
        ("cloud-0", Some(Fault::PairCut(name("home-0")))),
        ("home-0", Some(Fault::PlaneOff(0))),
        ("cloud-1", None),
    ];
    for (node, fault) in faults {
        for (a, b) in [("home-2", "cloud-2"), ("home-1", "cloud-2"), ("home-2", "cloud-1")] {
            let mut play = Play::of(&hybrid_sites(), Policy::default(), WorldConfig::default());
            match &fault {
                Some(fault) => play.fault(node, fault.clone(), true),
                None => {
                    let request = AdminRequest::Promote { node: name(node), force: false };
                    let input = Input::Admin { id: 1, user: None, request };
                    play.world.input(&name(node), input);
                }
            }
            let reading = measure_tcp(&mut play.world, &name(a), &name(b), secs(6));
            worlds += 1;
            if reading.none_opens > reading.blackout + ROUND_TRIP + 2 || reading.none_opens > 5_000
            {
                failed.push(format!("{node} {fault:?}, {a} and {b}: {reading:?}"));
            }
        }
    }
    known::judge("new_tcp_connections_open_wherever_packets_pass", worlds, &failed);
}

/// `home` with one candidate, `cloud` and `paris` with three, all well.
fn three_locations() -> Play {
    let sites = [Site::new("cloud", 3, 0), Site::new("home", 1, 2), Site::new("paris", 3, 0)];
    let play = Play::of(&sites, Policy::default(), WorldConfig::default());
    assert_eq!(play.leader_of("cloud"), "cloud-0");
    assert!(reaches_cloud(&play, "home-1") && reaches_cloud(&play, "paris-1"));
    play
}

fn reaches_cloud(play: &Play, from: &str) -> bool {
    play.delivers(from, "cloud-2") && play.delivers("cloud-2", from)
}

/// The provider between `home` and the leader has lost a route; all other candidates of the cloud are reached.
#[test]
fn a_location_that_alone_cannot_reach_a_leader_gets_another_way() {
    let mut play = three_locations();
    play.fault("home-0", Fault::PairCut(name("cloud-0")), true);
    play.blackout("home-1", "cloud-2");
    assert!(reaches_cloud(&play, "paris-1"));
    play.fine();
}

/// `paris` misses the leader, `home` misses the first standby, and the second would serve both.
#[test]
fn a_failover_cuts_no_location_off_that_another_standby_would_have_served() {
    let mut play = three_locations();
    play.fault("home-0", Fault::PairCut(name("cloud-1")), true);
    play.run(secs(10));
    for n in 0..3 {
        play.fault(&format!("paris-{n}"), Fault::PairCut(name("cloud-0")), true);
    }
    play.blackout("paris-1", "cloud-2");
    // And it stays so.
    for _ in 0..100 {
        play.run(ms(100));
        assert!(
            reaches_cloud(&play, "home-1") && reaches_cloud(&play, "paris-1"),
            "{}",
            play.story()
        );
    }
    play.fine();
}
