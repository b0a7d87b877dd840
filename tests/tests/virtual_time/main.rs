//! The daemons' real cores in a modelled network: what a whole mesh does, second by second, without waiting for it.
//! The reference model watches all of it.

mod hostile;
mod outward;
mod power;
mod relay_pairs;
mod voters;

use std::time::Duration;

use leaderd_core::admin::AdminRequest;
use leaderd_core::fault::{Fault as Found, MoveReason};
use leaderd_core::ids::{Epoch, LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::{Node, Policy};
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::meter::measure;
use tests::sim::model::Model;
use tests::sim::{Fault, Link, Loss, World, WorldConfig};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A world, and the model that checks it.
struct Play {
    world: World,
    model: Model,
}

impl Play {
    /// Starts a mesh in which all nodes know and follow the first decision.
    fn of(sites: &[Site], policy: Policy, config: WorldConfig) -> Self {
        let (mesh, secrets) = mesh_of(sites, policy);
        let mut play = Self { world: World::new(mesh, &secrets, config), model: Model::default() };
        let settled = (0..60).any(|_| {
            play.run(secs(1));
            play.all_agree()
        });
        assert!(settled, "no first decision: {}", play.story());
        play.run(secs(5));
        play
    }

    fn hybrid() -> Self {
        let sites = [Site::new("cloud", 3, 0), Site::new("home", 3, 0)];
        Self::of(&sites, Policy::default(), WorldConfig::default())
    }

    fn with_wan(wan: Link) -> Self {
        let sites = [Site::new("cloud", 3, 0), Site::new("home", 3, 0)];
        Self::of(&sites, Policy::default(), WorldConfig { wan, ..WorldConfig::default() })
    }

    fn run(&mut self, time: Duration) {
        self.model.run(&mut self.world, time);
    }

    fn fault(&mut self, node: &str, fault: Fault, on: bool) {
        self.world.fault(&name(node), &fault, on);
    }

    fn all_agree(&self) -> bool {
        self.world.mesh.locations.keys().all(|location| {
            // Members know nothing of other locations: their leader routes for them.
            let needs = |n: &&Node| n.slot.is_some() || n.location == *location;
            let mut epochs = self.world.mesh.nodes.values().filter(needs).filter_map(|n| {
                let decision = self.world.core(&n.name)?.decision(location);
                Some(decision.map_or(Epoch(0), |d| d.epoch))
            });
            let first = epochs.next().expect("a node is alive");
            first > Epoch(0) && epochs.all(|e| e == first)
        })
    }

    /// Who leads by the latest decision that any core took.
    fn leader_of(&self, location: &str) -> String {
        let location: LocationName = location.parse().expect("a name");
        let decision = self.model.decision(&location).expect("decided");
        let node = self.world.mesh.candidate(&location, decision.leaders[0]).expect("a candidate");
        node.name.to_string()
    }

    /// Causes of the cloud's decisions, the first one left out.
    fn causes(&self) -> Vec<MoveReason> {
        let all = self.model.decisions.iter().filter(|((l, _), _)| l.as_str() == "cloud");
        all.skip(1).map(|(_, (_, d))| d.cause).collect()
    }

    fn story(&self) -> String {
        let log = self.world.log.iter();
        let lines = log.map(|l| format!("{:?} {} {:?} {}", l.at, l.node, l.level, l.text));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn delivers(&self, from: &str, to: &str) -> bool {
        self.world.delivers(&name(from), &name(to))
    }

    /// How long it takes until traffic passes again, both ways.
    fn blackout(&mut self, from: &str, to: &str) -> Duration {
        let start = self.world.now().mono;
        assert!(!self.delivers(from, to) || !self.delivers(to, from), "the fault does nothing");
        while !self.delivers(from, to) || !self.delivers(to, from) {
            self.run(ms(1));
            let took = self.world.now().mono.since(start);
            assert!(took < secs(30), "still down after 30 s: {}", self.story());
        }
        self.world.now().mono.since(start)
    }

    /// Nothing that the model forbids has happened.
    fn fine(&self) {
        let violations = &self.model.violations;
        assert!(violations.is_empty(), "{violations:#?}\n{}", self.story());
    }
}

/// Breaks the leader cloud-0 in this way: gives the time without traffic and the cause that was named.
fn breaks(fault: Fault) -> (Duration, Found) {
    let mut play = Play::hybrid();
    play.fault("cloud-0", fault, true);
    let blackout = play.blackout("home-1", "cloud-2");
    play.run(secs(5));
    assert_eq!(play.leader_of("cloud"), "cloud-1", "{}", play.story());
    assert_eq!(play.causes().len(), 1, "{}", play.story());
    play.fine();
    (blackout, play.causes()[0].fault().expect("left for a fault"))
}

/// Begins these faults, and checks that no leader changes for this long.
fn no_leader_changes(mut play: Play, faults: &[(&str, Fault)], time: Duration) {
    for (node, fault) in faults {
        play.fault(node, fault.clone(), true);
    }
    play.run(time);
    assert_eq!(play.causes(), [], "{}", play.story());
    play.fine();
}

fn drops(share: f64) -> Link {
    Link { loss: Loss::Independent(share), ..Link::of(ms(10)) }
}

#[test]
fn all_nodes_learn_who_leads() {
    let play = Play::hybrid();
    assert_eq!(play.leader_of("cloud"), "cloud-0");
    for (from, to) in [("home-1", "cloud-2"), ("cloud-1", "home-2")] {
        assert!(play.delivers(from, to), "{from} to {to}");
    }
    play.fine();
}

#[test]
fn a_leader_that_drops_new_flows_is_replaced() {
    let (took, cause) = breaks(Fault::VxlanNewFlows);
    assert_eq!(cause, Found::NewFlow);
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_whose_overlay_drops_everything_is_replaced() {
    let (took, cause) = breaks(Fault::VxlanAll);
    assert_eq!(cause, Found::NotForwarding);
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_that_does_not_forward_is_replaced() {
    let (took, cause) = breaks(Fault::ForwardingOff);
    assert_eq!(cause, Found::NotForwarding);
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_that_crashes_is_replaced() {
    let (took, cause) = breaks(Fault::NodeCrash);
    assert!(matches!(cause, Found::TunnelDown | Found::Unreachable), "{cause}");
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_with_a_stale_fdb_entry_is_replaced() {
    let mut play = Play::hybrid();
    play.fault("cloud-0", Fault::FdbGhost(name("cloud-2")), true);
    let took = play.blackout("home-1", "cloud-2");
    play.run(secs(5));
    assert_eq!(play.causes(), [Found::Partial.into()], "{}", play.story());
    assert!(took < secs(2), "took {took:?}");
    play.fine();
}

#[test]
fn a_leader_that_drops_large_packets_is_replaced() {
    let (took, cause) = breaks(Fault::MtuBlackhole(1300));
    assert_eq!(cause, Found::Mtu);
    assert!(took < secs(2), "took {took:?}");
}

#[test]
fn a_leader_with_a_routing_loop_is_replaced() {
    let (took, cause) = breaks(Fault::RouteLoop);
    assert_eq!(cause, Found::Loop);
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_that_has_lost_its_tunnels_reports_it() {
    let (took, cause) = breaks(Fault::WireguardDown);
    assert!(matches!(cause, Found::SelfReported | Found::TunnelDown), "{cause}");
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_without_uplink_is_replaced() {
    let (took, cause) = breaks(Fault::WanCut);
    assert!(matches!(cause, Found::TunnelDown | Found::Unreachable), "{cause}");
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_without_lan_is_replaced() {
    let (took, _) = breaks(Fault::LanCut);
    assert!(took < ms(400), "took {took:?}");
}

#[test]
fn a_leader_with_heavy_loss_is_replaced() {
    let mut play = Play::hybrid();
    play.fault("cloud-0", Fault::WanLoss(0.4), true);
    play.run(secs(20));
    assert_ne!(play.leader_of("cloud"), "cloud-0", "{}", play.story());
    play.fine();
}

#[test]
fn a_leader_that_loses_more_than_its_standby_is_replaced() {
    let mut play = Play::hybrid();
    play.fault("cloud-0", Fault::WanLoss(0.08), true);
    play.run(secs(90));
    assert_eq!(play.causes(), [Found::Loss.into()], "{}", play.story());
    play.fine();
}

#[test]
fn a_leader_that_drops_packets_of_some_sizes_is_replaced() {
    for (from, to) in [(600, 900), (200, 550), (950, 1300)] {
        let (took, cause) = breaks(Fault::SizeWindow(from, to));
        assert_eq!(cause, Found::Loss);
        assert!(took < secs(5), "{from} to {to}: took {took:?}");
    }
}

#[test]
fn a_standby_that_drops_packets_of_some_sizes_moves_no_leader() {
    let window = Fault::SizeWindow(600, 900);
    no_leader_changes(Play::hybrid(), &[("cloud-1", window)], secs(60));
}

#[test]
fn ten_percent_loss_on_every_path_causes_no_failover() {
    no_leader_changes(Play::with_wan(drops(0.1)), &[], secs(300));
}

#[test]
fn bursts_of_loss_on_every_path_cause_no_failover() {
    let loss = Loss::Bursty { to_bad: 0.005, to_good: 0.2, bad_loss: 0.6 };
    no_leader_changes(Play::with_wan(Link { loss, ..Link::of(ms(10)) }), &[], secs(300));
}

#[test]
fn slow_and_jittery_paths_cause_no_failover() {
    // 800 ± 200 ms round trips, 2% lost.
    let wan = Link { jitter: ms(200), loss: Loss::Independent(0.02), ..Link::of(ms(300)) };
    let play = Play::with_wan(wan);
    let before = elections(&play);
    no_leader_changes_and(play, secs(600), |play| {
        assert_eq!(elections(play), before, "{}", play.story());
    });
}

#[test]
fn slow_paths_to_a_witness_cause_no_failover() {
    let wan = Link { jitter: ms(200), loss: Loss::Independent(0.02), ..Link::of(ms(300)) };
    let sites = [Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)];
    let play = Play::of(&sites, Policy::default(), WorldConfig { wan, ..WorldConfig::default() });
    let before = elections(&play);
    no_leader_changes_and(play, secs(600), |play| {
        assert_eq!(elections(play), before, "{}", play.story());
    });
}

fn no_leader_changes_and(mut play: Play, time: Duration, check: impl Fn(&Play)) {
    play.run(time);
    check(&play);
    no_leader_changes(play, &[], secs(1));
}

/// How often anybody saw a raft leader come or go.
fn elections(play: &Play) -> usize {
    play.world.log.iter().filter(|l| l.text.starts_with("raft leader")).count()
}

#[test]
fn a_leader_that_becomes_slower_stays() {
    no_leader_changes(Play::hybrid(), &[("cloud-0", Fault::WanLatency(60))], secs(60));
}

#[test]
fn a_dead_member_causes_no_failover() {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 2, 1)];
    let play = Play::of(&sites, Policy::default(), WorldConfig::default());
    no_leader_changes(play, &[("cloud-2", Fault::NodeCrash)], secs(60));
}

#[test]
fn a_location_that_is_cut_off_has_no_failover() {
    let cut: Vec<(String, Fault)> = (0..3).map(|n| (format!("cloud-{n}"), Fault::WanCut)).collect();
    let faults: Vec<(&str, Fault)> = cut.iter().map(|(n, f)| (n.as_str(), f.clone())).collect();
    no_leader_changes(Play::hybrid(), &faults, secs(60));
}

#[test]
fn an_observer_whose_own_uplink_dies_is_not_believed() {
    no_leader_changes(Play::hybrid(), &[("home-1", Fault::WanCut)], secs(60));
}

#[test]
fn an_observer_that_hears_nothing_back_is_not_believed() {
    let cuts: Vec<Fault> = (0..3).map(|n| Fault::OneWay(name(&format!("home-{n}")))).collect();
    // Only home-1's way to cloud-0 is broken: one of three observers.
    no_leader_changes(Play::hybrid(), &[("cloud-0", cuts[1].clone())], secs(60));
}

#[test]
fn a_standby_that_failed_before_is_not_chosen() {
    let sites = [Site::new("cloud", 3, 1), Site::new("home", 3, 0)];
    let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
    play.fault("cloud-1", Fault::VxlanNewFlows, true);
    play.run(secs(5));
    assert_eq!(play.causes(), [], "{}", play.story());
    play.fault("cloud-0", Fault::VxlanNewFlows, true);
    let took = play.blackout("home-1", "cloud-3");
    play.run(secs(3));
    assert_eq!(play.leader_of("cloud"), "cloud-2", "{}", play.story());
    assert!(took < ms(400), "took {took:?}");
    play.fine();
}

#[test]
fn when_no_candidate_forwards_the_leader_stays_and_the_log_says_so() {
    let mut play = Play::hybrid();
    for node in ["cloud-1", "cloud-2", "cloud-0"] {
        play.fault(node, Fault::ForwardingOff, true);
    }
    play.run(secs(20));
    assert_eq!(play.causes(), [], "{}", play.story());
    assert!(play.story().contains("no standby would be better"), "{}", play.story());
    for node in ["cloud-1", "cloud-2"] {
        play.fault(node, Fault::ForwardingOff, false);
    }
    play.run(secs(10));
    assert_ne!(play.leader_of("cloud"), "cloud-0", "{}", play.story());
    play.fine();
}

#[test]
fn two_nodes_and_a_witness_survive_the_loss_of_the_leader() {
    let sites = [Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)];
    let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
    play.fault("cloud-0", Fault::NodeCrash, true);
    let took = play.blackout("home-1", "cloud-1");
    assert!(took < secs(3), "took {took:?}");
    play.run(secs(20));
    assert_eq!(play.leader_of("cloud"), "cloud-1", "{}", play.story());
    play.fault("cloud-0", Fault::NodeCrash, false);
    play.run(secs(20));
    play.model.check_convergence(&play.world, secs(5));
    play.fine();
}

#[test]
fn without_a_quorum_every_node_follows_its_own_measurements() {
    let policy = Policy { quorum_lost_after: secs(3), ..Policy::default() };
    let cloud = Site::new("cloud", 2, 2).witness("home-0").witness("home-1");
    let sites = [cloud, Site::new("home", 3, 0)];
    let mut play = Play::of(&sites, policy, WorldConfig::default());
    for node in ["cloud-2", "home-0", "home-1"] {
        play.fault(node, Fault::DaemonKill, true);
    }
    play.run(secs(10));
    assert_eq!(play.causes(), [], "{}", play.story());
    assert!(play.delivers("home-2", "cloud-3"), "the kernels forward without daemons");
    play.fault("cloud-0", Fault::VxlanNewFlows, true);
    play.run(secs(10));
    assert!(play.story().contains("no quorum"), "{}", play.story());
    assert!(play.delivers("home-2", "cloud-3"), "{}", play.story());
    for node in ["cloud-2", "home-0", "home-1"] {
        play.fault(node, Fault::DaemonKill, false);
    }
    play.fault("cloud-0", Fault::VxlanNewFlows, false);
    play.run(secs(20));
    // The quorum comes back as the fault goes: whether cloud-0 is condemned before it is well again is a matter of
    // milliseconds, and both are right. All must agree, and it must work.
    assert!(play.delivers("home-2", "cloud-3"), "{}", play.story());
    play.model.check_convergence(&play.world, secs(5));
    play.fine();
}

/// Kills or pauses the leader's daemon: leadership moves calmly and nothing is lost.
fn calm_move(fault: Fault) {
    let mut play = Play::hybrid();
    play.fault("cloud-0", fault.clone(), true);
    let reading = measure_judged(&mut play, "home-1", "cloud-2", secs(15));
    assert_eq!(reading, 0, "{}", play.story());
    assert_eq!(play.causes(), [Found::DaemonDead.into()], "{}", play.story());
    play.fault("cloud-0", fault, false);
    let reading = measure_judged(&mut play, "home-1", "cloud-2", secs(15));
    assert_eq!(reading, 0, "{}", play.story());
    play.model.check_convergence(&play.world, secs(5));
    play.fine();
}

/// Packets lost while time passes, one each way per millisecond.
fn measure_judged(play: &mut Play, a: &str, b: &str, time: Duration) -> u32 {
    let (a, b) = (name(a), name(b));
    let mut lost = 0;
    for _ in 0..time.as_millis() {
        play.run(ms(1));
        lost += u32::from(!play.world.delivers(&a, &b)) + u32::from(!play.world.delivers(&b, &a));
    }
    lost
}

#[test]
fn a_leader_whose_daemon_dies_goes_on_forwarding_and_hands_over_without_loss() {
    calm_move(Fault::DaemonKill);
}

#[test]
fn a_leader_whose_daemon_hangs_goes_on_forwarding_and_hands_over_without_loss() {
    calm_move(Fault::DaemonPause);
}

#[test]
fn a_restarted_daemon_moves_no_route() {
    for node in ["cloud-0", "cloud-1", "home-0"] {
        let mut play = Play::hybrid();
        play.fault("cloud-0", Fault::VxlanNewFlows, true);
        play.run(secs(5));
        play.fault("cloud-0", Fault::VxlanNewFlows, false);
        play.run(secs(10));
        let before = play.causes();
        play.fault(node, Fault::DaemonKill, true);
        play.run(ms(300));
        play.fault(node, Fault::DaemonKill, false);
        let lost = measure_judged(&mut play, "home-1", "cloud-2", secs(15));
        assert_eq!(lost, 0, "{node}: {}", play.story());
        assert_eq!(play.causes(), before, "{node}: {}", play.story());
        play.fine();
    }
}

#[test]
fn a_planned_promotion_loses_nothing() {
    let mut play = Play::hybrid();
    let request = AdminRequest::Promote { node: name("cloud-2"), force: false };
    play.world.input(&name("cloud-1"), Input::Admin { id: 1, user: None, request });
    let reading = measure(&mut play.world, &name("home-1"), &name("cloud-1"), secs(5));
    assert_eq!((reading.sent, reading.lost), (10_000, 0), "{}", play.story());
    play.run(secs(1));
    let leads = play
        .world
        .core(&name("home-2"))
        .and_then(|c| c.decision(&"cloud".parse().expect("a name")).map(|d| d.leaders.clone()));
    assert_eq!(leads.map(|l| l[0].0), Some(2), "{}", play.story());
}

#[test]
fn a_raft_leader_that_crashes_during_a_failover_does_not_stop_it() {
    // At the same moment, while the burst is under way, and right after the decision.
    for after in [0, 60, 120, 160, 200] {
        let sites = [Site::new("cloud", 3, 1), Site::new("home", 3, 0)];
        let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
        let raft_leader = raft_leader(&play);
        assert_ne!(raft_leader, "cloud-0", "Raft leadership keeps off the leader");
        let other = if raft_leader == "cloud-1" { "cloud-2" } else { "cloud-1" };
        play.fault("cloud-0", Fault::VxlanNewFlows, true);
        play.run(ms(after));
        play.fault(&raft_leader, Fault::NodeCrash, true);
        play.run(secs(10));
        assert_eq!(play.leader_of("cloud"), other, "after {after} ms: {}", play.story());
        assert!(play.delivers("home-1", other), "after {after} ms: {}", play.story());
        play.fine();
    }
}

fn raft_leader(play: &Play) -> String {
    let status = play.world.core(&name("cloud-2")).expect("alive").status(play.world.now());
    let cloud = status.locations.into_iter().find(|l| l.name.as_str() == "cloud");
    cloud.and_then(|l| l.raft_leader).expect("a raft leader").to_string()
}

#[test]
fn a_flapping_fault_moves_leadership_ever_more_rarely() {
    let mut play = Play::hybrid();
    let mut at = Vec::new();
    for _ in 0..60 {
        let leader = play.leader_of("cloud");
        let before = play.causes().len();
        play.fault(&leader, Fault::VxlanNewFlows, true);
        play.run(secs(3));
        play.fault(&leader, Fault::VxlanNewFlows, false);
        play.run(secs(3));
        at.extend((play.causes().len() > before).then(|| play.world.now().mono));
    }
    let gaps: Vec<u64> = at.windows(2).map(|w| w[1].since(w[0]).as_secs()).collect();
    assert!(at.len() >= 4 && at.len() <= 10, "{gaps:?}");
    assert!(gaps.last() >= Some(&30), "{gaps:?}");
    play.fine();
}

#[test]
fn three_locations_fail_over_independently() {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 2, 1), Site::new("lab", 2, 1)];
    let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
    play.fault("cloud-0", Fault::VxlanNewFlows, true);
    play.fault("lab-0", Fault::NodeCrash, true);
    let took = play.blackout("home-1", "cloud-2");
    assert!(took < ms(500), "took {took:?}");
    play.run(secs(5));
    let leaders = ["cloud", "home", "lab"].map(|l| play.leader_of(l));
    assert_eq!(leaders, ["cloud-1", "home-0", "lab-1"], "{}", play.story());
    play.fine();
}

#[test]
fn a_leader_fails_over_fast_in_a_mesh_of_many_locations() {
    let names = ["cloud", "a", "b", "c", "d", "e", "f", "g"];
    let sites: Vec<Site> = names.iter().map(|n| Site::new(n, 2, 1)).collect();
    let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
    play.fault("cloud-0", Fault::VxlanNewFlows, true);
    let took = play.blackout("a-1", "cloud-2");
    assert!(took < ms(600), "took {took:?}");
    play.run(secs(5));
    play.fine();
}

#[test]
fn the_model_reports_a_broken_leader_that_stays() {
    let mut play = Play::hybrid();
    let location = "cloud".parse().expect("a name");
    let request = AdminRequest::Freeze { location, duration: None };
    play.world.input(&name("cloud-2"), Input::Admin { id: 1, user: None, request });
    play.run(secs(5));
    play.fault("cloud-0", Fault::ForwardingOff, true);
    play.run(secs(10));
    let violations = &play.model.violations;
    assert!(violations.iter().any(|v| v.starts_with("broken leader kept")), "{violations:?}");
}

#[test]
fn the_model_reports_a_needless_failover() {
    // The model takes the leader for good: it does not look at single links.
    let bad = Link { loss: Loss::Independent(0.6), ..Link::of(ms(10)) };
    let links = (0..3).map(|n| (name(&format!("home-{n}")), name("cloud-0"), bad)).collect();
    let sites = [Site::new("cloud", 3, 0), Site::new("home", 3, 0)];
    let config = WorldConfig { links, ..WorldConfig::default() };
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let mut play = Play { world: World::new(mesh, &secrets, config), model: Model::default() };
    play.run(secs(60));
    let violations = &play.model.violations;
    assert!(violations.iter().any(|v| v.starts_with("needless failover")), "{violations:?}");
}

#[test]
fn relays_that_hide_sources_are_reported_and_kilo_489_ends_through_them() {
    let mut play = Play::hybrid();
    for node in ["cloud-0", "cloud-1", "cloud-2"] {
        play.fault(node, Fault::SourceNat, true);
    }
    play.run(secs(20));
    assert_eq!(play.causes(), [], "no failover: {}", play.story());
    let core = play.world.core(&name("home-0")).expect("it runs");
    let status = core.status(play.world.now());
    let cloud = status.locations.iter().find(|l| l.name.as_str() == "cloud").expect("a location");
    let relays: Vec<&str> =
        cloud.hidden_sources.iter().filter_map(|h| Some(h.through.as_ref()?.as_str())).collect();
    assert_eq!(relays, ["cloud-0", "cloud-1", "cloud-2"], "{}", play.story());
    assert!(cloud.notes.iter().any(|n| n.starts_with("cloud-0 hides sources: ")));
    play.fault("cloud-0", Fault::VxlanNewFlows, true);
    let took = play.blackout("home-1", "cloud-2");
    assert!(took < ms(400), "took {took:?}");
    play.run(secs(5));
    assert_eq!(
        (play.leader_of("cloud"), play.causes()),
        ("cloud-1".into(), vec![Found::NewFlow.into()])
    );
    play.fine();
}
