//! Beside Kilo: who carries, and when that changes. One node gets its inputs from the test; the real reflector answers its probes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::*;
use crate::io::ProbeSend;
use crate::mesh::{Overlay, Steering};
use crate::topology::{OWN_SOURCES_TABLE, RULE_PRIORITY, location_table};
use crate::verdict::ProbeClass;

fn kilo_mesh() -> Mesh {
    let mut mesh = mesh(2, 1, 0);
    for location in mesh.edit().locations.values_mut() {
        location.steering = Steering::Kilo;
        location.overlay = Overlay::Flannel { device: "flannel.1".parse().unwrap() };
    }
    for node in mesh.edit().nodes.values_mut() {
        let i = node.index.0 as u8;
        node.wireguard_key = ProbeKeys::new([i; 32]).public();
        node.prefixes = vec![format!("10.42.{i}.0/24").parse().unwrap()];
        node.probe_addresses = vec![[10, 42, i, 1].into()];
    }
    mesh
}

/// The same with a steering of this location's own.
fn with(mut mesh: Mesh, location: &str, steering: Steering) -> Mesh {
    mesh.edit().locations.get_mut(&location.parse().unwrap()).unwrap().steering = steering;
    mesh.edit().generation.0 += 1;
    mesh
}

/// Which probes come back.
type Passes = fn(&ProbeSend) -> bool;

struct Beside {
    bench: Bench,
    reflectors: BTreeMap<NodeName, Reflector>,
    /// The kernel takes what it is asked for.
    programs: bool,
    /// Of what was sent.
    classes: BTreeSet<ProbeClass>,
}

impl Beside {
    /// The kernel has no rules of ours.
    fn new(mesh: Mesh, me: &str) -> Self {
        let mut beside = Self::without_past(mesh, me);
        beside.bench.feed(Input::Carried(BTreeSet::new()));
        beside
    }

    fn without_past(mesh: Mesh, me: &str) -> Self {
        let shared = Arc::new(mesh.clone());
        let reflectors = mesh.nodes.values().map(|n| {
            let keys = ProbeKeys::new([n.index.0 as u8; 32]);
            (n.name.clone(), Reflector::new(shared.clone(), n.name.clone(), keys))
        });
        let reflectors = reflectors.collect();
        let index = mesh.node(&name(me)).unwrap().index.0 as u8;
        let bench = Bench::with_key(me, mesh, [index; 32]);
        Self { bench, reflectors, programs: true, classes: BTreeSet::new() }
    }

    /// Lets time pass in steps of 5 ms; a probe that passes is answered in the next, and a network is programmed. Returns the
    /// frames that were sent.
    fn run(&mut self, time: Duration, passes: Passes) -> Vec<(NodeName, Frame)> {
        let mut answers = Vec::new();
        let mut frames = Vec::new();
        for _ in 0..time.as_millis() / 5 {
            let mut effects = self.bench.later(Duration::from_millis(5));
            for input in std::mem::take(&mut answers) {
                effects.extend(self.bench.feed(input));
            }
            for effect in effects {
                match effect {
                    Effect::SendProbe(probe) => {
                        self.classes.insert(probe.class);
                        if passes(&probe) {
                            let bytes = self.reflect(&probe);
                            answers.push(Input::ProbeReply { probe: probe.probe, bytes });
                        }
                    }
                    Effect::Program { revision, .. } if self.programs => {
                        answers.push(Input::Programmed { revision, error: None });
                    }
                    Effect::SendFrame { to, frame } => frames.push((to, *frame)),
                    _ => {}
                }
            }
        }
        frames
    }

    fn reflect(&mut self, probe: &ProbeSend) -> Vec<u8> {
        let mesh = self.bench.node.mesh().clone();
        let ip = probe.target.ip();
        let behind = mesh.nodes.values().find(|n| n.prefixes.iter().any(|p| p.contains(&ip)));
        let target = mesh.node_by_address(ip).map(|(n, _)| n).or(behind).unwrap().name.clone();
        let reflector = self.reflectors.get_mut(&target).unwrap();
        let from = SocketAddr::new(probe.source, 40_000);
        let packet = probe.packet().expect("a STAMP packet");
        reflector.handle(self.bench.now, from, probe.target, 62, packet).unwrap()
    }

    fn decided(&mut self, from: &str, location: &str, epoch: u64, slot: u8) {
        let decision = Decision {
            location: location.parse().unwrap(),
            epoch: Epoch(epoch),
            leaders: vec![Slot(slot)],
            cause: Fault::NewFlow.into(),
            at: WallTime(0),
        };
        self.bench
            .frame(from, Frame::Announce { decision, proof: Default::default(), event: None });
    }

    /// A candidate of `home` says where it does not carry, if it knows.
    fn told_by(&mut self, from: &str, uncarried: Option<&[&str]>) {
        let mut mesh_hash = [0; 8];
        mesh_hash.copy_from_slice(&self.bench.node.mesh().hash[..8]);
        self.told_by_file(from, mesh_hash, uncarried);
    }

    fn told_by_file(&mut self, from: &str, mesh_hash: [u8; 8], uncarried: Option<&[&str]>) {
        self.bench.frame(from, hello(from, None));
        if let Some(all) = uncarried {
            let locations = all.iter().map(|l| l.parse().unwrap()).collect();
            self.bench.frame(from, Frame::Uncarried { mesh_hash, locations });
        }
    }

    /// As a newer file than the one before.
    fn take_mesh(&mut self, mut mesh: Mesh) {
        mesh.edit().generation.0 = self.bench.node.mesh().generation.0 + 1;
        self.bench.feed(Input::MeshChanged(Box::new(mesh)));
    }

    fn table(&self) -> u32 {
        location_table(self.bench.node.mesh(), &"cloud".parse().unwrap()).unwrap()
    }

    fn carries(&self) -> bool {
        let rules = &self.bench.node.desired().rules;
        let wanted = |r: &wgctl_plan::Rule| (r.priority, r.table) == (RULE_PRIORITY, self.table());
        assert!(rules.iter().all(wanted), "{rules:?}");
        !rules.is_empty()
    }

    /// Tables with routes to the workload of `cloud`, but for what this node sends itself.
    fn tables(&self) -> BTreeSet<u32> {
        let mesh = self.bench.node.mesh();
        let prefixes = mesh.prefixes_of(&"cloud".parse().unwrap());
        let routes = self.bench.node.desired().routes.keys();
        let tables = routes.filter(|k| prefixes.contains(&k.prefix)).map(|k| k.table);
        tables.filter(|t| *t != OWN_SOURCES_TABLE).collect()
    }
}

const ALL: Passes = |_| true;
const NONE: Passes = |_| false;
const SETTLE: Duration = Duration::from_secs(4);
/// `home` has the greater name, so it steps back later.
const STEP_BACK: Duration = Duration::from_millis(4500);

/// `home-0` leads `home`, `cloud-0` leads `cloud`.
fn settled() -> Beside {
    let mut beside = Beside::new(kilo_mesh(), "home-0");
    beside.run(SETTLE, ALL);
    assert!(!beside.carries(), "nobody leads yet");
    beside.decided("home-1", "home", 1, 0);
    beside.decided("cloud-1", "cloud", 1, 0);
    assert!(beside.carries(), "in the same moment");
    beside
}

fn member_mesh() -> Mesh {
    let mut mesh = kilo_mesh();
    mesh.edit().nodes.get_mut(&name("home-2")).unwrap().slot = None;
    mesh
}

#[test]
fn our_routes_carry_from_the_first_decision_on_through_every_change() {
    let mut beside = settled();
    for epoch in 2..6 {
        beside.decided("cloud-1", "cloud", epoch, (epoch % 2) as u8);
        beside.run(SETTLE, ALL);
        assert!(beside.carries());
    }
    // One candidate forwards, be it the leader or not.
    beside.run(Duration::from_secs(20), |p| p.via != Some(Slot(1)));
    assert!(beside.carries());
    beside.run(Duration::from_secs(20), |p| p.via != Some(Slot(0)));
    assert!(beside.carries());
    assert_eq!(beside.bench.counted("steer.in"), 1);
    assert_eq!(beside.bench.counted("steer.back"), 0);
}

#[test]
fn kilo_carries_while_nothing_gets_through_any_plane_and_our_routes_carry_again_afterwards() {
    let mut beside = settled();
    beside.run(SETTLE, ALL);
    for _ in 0..3 {
        beside.run(STEP_BACK, NONE);
        assert!(beside.carries(), "a failover or a stalled machine is no reason");
        beside.run(Duration::from_secs(2), NONE);
        assert!(!beside.carries());
        beside.run(Duration::from_secs(1), ALL);
        assert!(beside.carries());
    }
    // What is over soon changes nothing.
    for _ in 0..5 {
        beside.run(Duration::from_secs(3), NONE);
        beside.run(Duration::from_secs(1), ALL);
    }
    assert_eq!(beside.bench.counted("steer.back"), 3);
}

#[test]
fn nothing_is_moved_into_a_plane_that_is_not_known_to_forward() {
    let mut beside = Beside::new(kilo_mesh(), "home-0");
    beside.decided("cloud-1", "cloud", 1, 1);
    beside.run(SETTLE, |p| p.via != Some(Slot(1)));
    assert!(!beside.carries());
    beside.run(Duration::from_secs(10), ALL);
    assert!(beside.carries());
}

#[test]
fn a_member_follows_its_leader_whatever_becomes_of_its_own_probes() {
    let mut beside = Beside::new(member_mesh(), "home-2");
    beside.decided("home-0", "home", 1, 0);
    beside.run(SETTLE, NONE);
    assert!(!beside.carries(), "its leader was not heard");
    beside.told_by("home-0", None);
    beside.told_by("home-1", Some(&[]));
    assert!(!beside.carries(), "its leader has programmed nothing yet");
    beside.told_by("home-0", Some(&["cloud"]));
    assert!(!beside.carries());
    beside.told_by("home-0", Some(&[]));
    assert!(beside.carries());
    beside.told_by("home-1", Some(&["cloud"]));
    assert!(beside.carries(), "that is not its leader");
    beside.told_by("home-0", None);
    beside.run(Duration::from_secs(60), NONE);
    assert!(beside.carries(), "its leader starts again, or is silent");
    beside.told_by("home-1", Some(&["cloud"]));
    beside.decided("home-0", "home", 2, 1);
    assert!(!beside.carries(), "this leader has Kilo carry");
    beside.told_by_file("home-1", [9; 8], Some(&[]));
    assert!(!beside.carries(), "by another mesh file, in which Kilo may not steer that location");
    beside.told_by("home-1", Some(&[]));
    assert!(beside.carries());
    beside.told_by_file("home-1", [9; 8], Some(&["cloud"]));
    assert!(!beside.carries(), "whatever the file, Kilo carries there");
}

#[test]
fn members_hear_where_a_candidate_carries_once_that_is_in_its_kernel() {
    let mut beside = Beside::without_past(member_mesh(), "home-0");
    for node in ["home-1", "home-2", "cloud-0"] {
        beside.bench.feed(Input::PeerUp { node: name(node), rtt_micros: 1000 });
    }
    // What the member heard last.
    let told = |frames: Vec<(NodeName, Frame)>| {
        let mut last = None;
        for (to, frame) in frames {
            let Frame::Uncarried { locations, .. } = frame else { continue };
            assert_eq!(to, name("home-2"), "nobody else follows");
            last = Some(locations.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        last
    };
    assert_eq!(told(beside.run(SETTLE, ALL)), None, "nothing is programmed");
    beside.bench.feed(Input::Carried(BTreeSet::new()));
    assert_eq!(told(beside.run(SETTLE, ALL)), None, "what was asked for then is not done yet");
    beside.decided("cloud-1", "cloud", 1, 0);
    beside.run(Duration::from_millis(300), ALL);
    let done = |beside: &mut Beside| {
        let revision = beside.bench.node.revision;
        beside.bench.feed(Input::Programmed { revision, error: None });
        told(beside.run(Duration::from_millis(10), ALL))
    };
    assert_eq!(done(&mut beside), Some(vec![]), "at once");
    let cloud = Some(vec!["cloud".to_owned()]);
    assert_eq!(told(beside.run(STEP_BACK * 2, NONE)), cloud);
    beside.programs = false;
    assert_eq!(told(beside.run(SETTLE, ALL)), cloud, "asked for, and not done");
    assert!(beside.carries());
    assert_eq!(done(&mut beside), Some(vec![]));
}

#[test]
fn a_restarted_daemon_programs_nothing_before_it_knows_who_carries_and_then_leaves_it_so() {
    for (me, carried) in [("home-0", false), ("home-0", true), ("home-2", false), ("home-2", true)]
    {
        let mut beside = Beside::without_past(member_mesh(), me);
        beside.run(Duration::from_secs(1), ALL);
        assert_eq!(*beside.bench.node.desired(), Network::default());
        let rules = if carried { ["cloud".parse().unwrap()].into() } else { BTreeSet::new() };
        let effects = beside.bench.feed(Input::Carried(rules));
        assert!(programs(&effects) > 0);
        assert_eq!(beside.carries(), carried, "before a decision is known");
        beside.run(Duration::from_secs(2), NONE);
        assert_eq!(beside.carries(), carried, "not measured yet");
    }
}

#[test]
fn an_observed_location_has_no_route_and_is_measured_all_the_same() {
    for (home, cloud) in [
        (Steering::Observe, Steering::Observe),
        (Steering::Observe, Steering::Native),
        (Steering::Kilo, Steering::Observe),
    ] {
        let mesh = with(with(kilo_mesh(), "home", home), "cloud", cloud);
        let mut beside = Beside::new(mesh, "home-0");
        beside.decided("home-1", "home", 1, 0);
        beside.decided("cloud-1", "cloud", 1, 0);
        beside.run(SETTLE, ALL);
        assert!(!beside.carries());
        assert_eq!(beside.tables(), BTreeSet::new());
        let cloud = "cloud".parse().unwrap();
        assert!(beside.bench.node.observer.as_ref().unwrap().forwards(&cloud, Slot(0)));
        assert!(!beside.classes.contains(&ProbeClass::AsWorkload), "they say nothing here");
        let status = beside.bench.node.status(beside.bench.now);
        let shown = status.locations.iter().find(|l| l.name == cloud).unwrap();
        assert_eq!(shown.carried, Some(false));
        assert!(shown.notes.iter().any(|n| n.contains("observe")), "{:?}", shown.notes);
    }
}

#[test]
fn a_change_of_steering_moves_traffic_only_to_a_working_path() {
    let observed = || with(kilo_mesh(), "cloud", Steering::Observe);
    // As on a first install.
    let mut beside = Beside::new(observed(), "home-0");
    beside.decided("home-1", "home", 1, 0);
    beside.decided("cloud-1", "cloud", 1, 0);
    beside.run(SETTLE, |p| p.via != Some(Slot(0)));
    beside.take_mesh(kilo_mesh());
    assert!(!beside.carries(), "that plane does not forward");
    beside.run(SETTLE, ALL);
    assert!(beside.carries());
    // Back again: the two ends not in the same moment.
    beside.take_mesh(observed());
    assert!(beside.carries());
    beside.run(Duration::from_millis(1400), ALL);
    assert!(beside.carries());
    beside.run(Duration::from_millis(200), ALL);
    assert!(!beside.carries());
    assert_eq!(beside.tables(), BTreeSet::new());
    // Where the file changes back in the meantime, nothing happens.
    beside.take_mesh(kilo_mesh());
    beside.run(SETTLE, ALL);
    beside.take_mesh(observed());
    beside.take_mesh(kilo_mesh());
    beside.run(SETTLE, ALL);
    assert!(beside.carries());
    // Our own routes carried unasked before.
    let native = || with(kilo_mesh(), "cloud", Steering::Native);
    beside.take_mesh(native());
    assert_eq!(
        beside.tables(),
        [location_table(&native(), &"cloud".parse().unwrap()).unwrap()].into()
    );
    beside.run(Duration::from_secs(1), NONE);
    beside.take_mesh(kilo_mesh());
    assert!(beside.carries());
    assert_eq!(beside.tables(), [beside.table()].into());
}
