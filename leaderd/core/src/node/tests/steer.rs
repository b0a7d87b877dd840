//! Beside Kilo: who carries, and when that changes. `home-0` is fed by hand; what it sends is answered by the real reflector.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::*;
use crate::io::{KiloFacts, ProbeSend};
use crate::mesh::{Overlay, Steering};
use crate::topology::{RULE_PRIORITY, UNSTEERED_MARK, steered_table};

fn kilo_mesh() -> Mesh {
    let mut mesh = mesh(2, 1, 0);
    for location in mesh.locations.values_mut() {
        location.steering = Steering::Kilo;
        location.overlay = Overlay::Flannel { device: "flannel.1".parse().unwrap() };
    }
    for node in mesh.nodes.values_mut() {
        let i = node.index.0 as u8;
        node.wireguard_key = ProbeKeys::new([i; 32]).public();
        node.prefixes = vec![format!("10.42.{i}.0/24").parse().unwrap()];
        node.probe_addresses = vec![[10, 42, i, 1].into()];
    }
    mesh
}

/// Which probes come back.
type Passes = fn(&ProbeSend) -> bool;

struct Beside {
    bench: Bench,
    reflectors: BTreeMap<NodeName, Reflector>,
}

impl Beside {
    fn new(mesh: Mesh, me: &str) -> Self {
        let shared = Arc::new(mesh.clone());
        let reflectors = mesh.nodes.values().map(|n| {
            let keys = ProbeKeys::new([n.index.0 as u8; 32]);
            (n.name.clone(), Reflector::new(shared.clone(), n.name.clone(), keys))
        });
        let reflectors = reflectors.collect();
        let index = mesh.node(&name(me)).unwrap().index.0 as u8;
        Self { bench: Bench::with_key(me, mesh, [index; 32]), reflectors }
    }

    /// Lets time pass in steps of 5 ms; a probe that passes is answered in the next.
    fn run(&mut self, time: Duration, passes: Passes) {
        let mut answers = Vec::new();
        for _ in 0..time.as_millis() / 5 {
            let mut effects = self.bench.later(Duration::from_millis(5));
            for (probe, bytes) in std::mem::take(&mut answers) {
                effects.extend(self.bench.feed(Input::ProbeReply { probe, bytes }));
            }
            for effect in effects {
                let Effect::SendProbe(probe) = effect else { continue };
                if passes(&probe) {
                    answers.push((probe.probe, self.reflect(&probe)));
                }
            }
        }
    }

    fn reflect(&mut self, probe: &ProbeSend) -> Vec<u8> {
        let mesh = self.bench.node.mesh().clone();
        let ip = probe.target.ip();
        let behind = mesh.nodes.values().find(|n| n.prefixes.iter().any(|p| p.contains(&ip)));
        let target = mesh.node_by_address(ip).map(|(n, _)| n).or(behind).unwrap().name.clone();
        let reflector = self.reflectors.get_mut(&target).unwrap();
        let from = SocketAddr::new(probe.source, 40_000);
        reflector.handle(self.bench.now, from, probe.target, 62, &probe.payload).unwrap()
    }

    fn kilo(&mut self, way: Option<&str>) {
        let ways = way.map(|w| ("cloud".parse().unwrap(), name(w))).into_iter().collect();
        self.bench.feed(Input::Kilo(KiloFacts { ways, rules: BTreeSet::new() }));
    }

    fn decided(&mut self, from: &str, location: &str, epoch: u64, slot: u8) {
        let decision = Decision {
            location: location.parse().unwrap(),
            epoch: Epoch(epoch),
            leaders: vec![Slot(slot)],
            cause: Cause::NewFlow,
            at: WallTime(0),
        };
        self.bench.frame(from, Frame::Announce { decision, event: None });
    }

    fn carries(&self) -> bool {
        let rules = &self.bench.node.desired().rules;
        let table = steered_table(self.bench.node.mesh(), &"cloud".parse().unwrap()).unwrap();
        let wanted = |r: &wgctl_plan::Rule| {
            (r.priority, r.unless_mark, r.table) == (RULE_PRIORITY, Some(UNSTEERED_MARK), table)
        };
        assert!(rules.iter().all(wanted), "{rules:?}");
        !rules.is_empty()
    }
}

const ALL: Passes = |_| true;
const OURS: Passes = |p| !p.unsteered;
const SETTLE: Duration = Duration::from_secs(4);

/// `home-0` leads `home`, `cloud-0` leads `cloud`, and Kilo has followed.
fn settled() -> Beside {
    let mut beside = Beside::new(kilo_mesh(), "home-0");
    beside.decided("home-1", "home", 1, 0);
    beside.decided("cloud-1", "cloud", 1, 0);
    beside.kilo(Some("cloud-0"));
    beside.run(SETTLE, ALL);
    assert!(!beside.carries(), "Kilo is right, and its way passes");
    beside
}

#[test]
fn our_routes_carry_a_change_until_kilo_goes_through_the_new_leader_and_gets_through() {
    let mut beside = settled();
    beside.decided("cloud-1", "cloud", 2, 1);
    assert!(beside.carries(), "in the same moment");
    beside.run(SETTLE, ALL);
    assert!(beside.carries(), "Kilo goes through the old leader still");
    beside.kilo(None);
    beside.run(SETTLE, OURS);
    beside.kilo(Some("cloud-1"));
    beside.run(SETTLE, OURS);
    assert!(beside.carries(), "Kilo's new tunnel waits for its handshake");
    beside.run(SETTLE, ALL);
    assert!(!beside.carries());
    assert_eq!(beside.bench.counted("steer.in"), 2);
    assert_eq!(beside.bench.counted("steer.back"), 2);
}

#[test]
fn our_routes_step_in_when_kilo_goes_elsewhere_or_does_not_get_through_and_a_lost_probe_is_neither()
{
    let mut beside = settled();
    let decided = beside.bench.node.decision(&"cloud".parse().unwrap()).cloned();
    // A person moved the annotation.
    beside.kilo(Some("cloud-1"));
    assert!(beside.carries());
    beside.kilo(Some("cloud-0"));
    beside.run(SETTLE, ALL);
    assert!(!beside.carries());
    // Kilo lost its peers.
    for _ in 0..20 {
        beside.run(Duration::from_millis(80), OURS);
        beside.run(Duration::from_millis(570), ALL);
    }
    assert_eq!(beside.bench.counted("steer.in"), 2, "a probe or two say nothing");
    beside.run(Duration::from_secs(2), OURS);
    assert!(beside.carries());
    assert_eq!(beside.bench.node.decision(&"cloud".parse().unwrap()).cloned(), decided);
}

#[test]
fn nothing_is_moved_into_a_plane_that_is_not_known_to_forward() {
    let mut beside = settled();
    beside.run(SETTLE, |p| p.unsteered || p.via != Some(Slot(1)));
    beside.decided("cloud-1", "cloud", 2, 1);
    assert!(!beside.carries());
    // Once it forwards our routes step in by themselves.
    beside.run(Duration::from_secs(10), ALL);
    assert!(beside.carries());
}

#[test]
fn a_member_follows_its_own_leader_and_sends_no_probes() {
    let mut mesh = kilo_mesh();
    mesh.nodes.get_mut(&name("home-2")).unwrap().slot = None;
    let mut beside = Beside::new(mesh, "home-2");
    beside.decided("home-0", "home", 1, 0);
    beside.kilo(Some("home-0"));
    beside.run(SETTLE, |_| panic!("a probe of a member"));
    assert!(!beside.carries());
    beside.decided("home-0", "home", 2, 1);
    assert!(beside.carries());
    beside.kilo(Some("home-1"));
    beside.run(Duration::from_secs(1), ALL);
    assert!(beside.carries(), "Kilo may change its mind a moment later");
    beside.run(Duration::from_secs(2), ALL);
    assert!(!beside.carries());
}

#[test]
fn a_restarted_daemon_programs_nothing_before_it_knows_who_carries_and_then_leaves_it_so() {
    for carried in [false, true] {
        let mut beside = Beside::new(kilo_mesh(), "home-0");
        beside.run(Duration::from_secs(1), ALL);
        assert_eq!(*beside.bench.node.desired(), Network::default());
        let rules = if carried { ["cloud".parse().unwrap()].into() } else { BTreeSet::new() };
        let ways = [("cloud".parse().unwrap(), name("cloud-1"))].into();
        let effects = beside.bench.feed(Input::Kilo(KiloFacts { ways, rules }));
        assert!(programs(&effects) > 0);
        assert_eq!(beside.carries(), carried, "before a decision is known");
    }
}
