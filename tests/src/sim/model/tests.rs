//! Tests of the model: in worlds that are wrong on purpose it must report the violation of that kind.

use std::time::Duration;

use leaderd_core::fault::{Fault as Found, MoveReason};
use leaderd_core::ids::{Epoch, LocationName, NodeName, Slot};
use leaderd_core::io::{Input, LogLevel};
use leaderd_core::mesh::Policy;
use leaderd_core::proof::{Proof, Signed, Signer, Statement, VoterSet};
use leaderd_core::state::Decision;
use leaderd_core::wire::Frame;
use wgctl_plan::{MAIN_TABLE, Network, RouteKey, RouteVia};

use super::Model;
use crate::sim::hostile::HostileBehaviour;
use crate::sim::meshes::{Site, mesh_of};
use crate::sim::rollout::Change;
use crate::sim::world::LogLine;
use crate::sim::{Fault, World, WorldConfig};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// A world in which all is well, and its model.
fn calm() -> (World, Model) {
    calm_of(&[Site::new("cloud", 2, 1), Site::new("home", 3, 0)])
}

fn calm_of(sites: &[Site]) -> (World, Model) {
    let (mesh, secrets) = mesh_of(sites, Policy::default());
    let mut world = World::new(mesh, &secrets, WorldConfig::default());
    let mut model = Model::default();
    model.run(&mut world, secs(30));
    model.check_convergence(&world, secs(5));
    model.check_generations(&world);
    assert_eq!(model.violations, Vec::<String>::new());
    (world, model)
}

fn reports(model: &Model, kind: &str) {
    let said = model.violations.iter().any(|v| v.starts_with(kind));
    assert!(said, "not {kind:?} but {:#?}", model.violations);
}

/// `cloud-0` announces a decision that was never taken. All voters signed it: nodes believe no other.
fn announce(
    world: &mut World,
    model: &mut Model,
    to: &str,
    epoch: u64,
    slot: u8,
    cause: MoveReason,
) {
    let location: LocationName = "cloud".parse().expect("a name");
    let at = world.now().wall;
    let decision = Decision { location, epoch: Epoch(epoch), leaders: vec![Slot(slot)], cause, at };
    let set = VoterSet::of(&world.mesh, &decision.location);
    let statement = Statement::decision(&world.mesh.name, &decision, &set);
    let signed = |voter: &NodeName| {
        let signature = Signer::new(&world.nodes[voter].secret).sign(&statement);
        Signed { voter: voter.clone(), set: set.id(), signature }
    };
    let signed: Vec<Signed> = set.voters().map(signed).collect();
    let proof = Proof::of(&world.mesh.name, &decision, &[&set], signed.iter());
    let proof = proof.expect("all have signed");
    let frame = Box::new(Frame::Announce { decision, proof, event: None });
    world.input(&name(to), Input::Frame { from: name("cloud-0"), frame });
    // The input went past the model's own stepping.
    model.after_step(world);
}

#[test]
fn two_decisions_in_one_epoch_are_reported() {
    let (mut world, mut model) = calm();
    announce(&mut world, &mut model, "home-0", 50, 0, MoveReason::Promoted);
    announce(&mut world, &mut model, "home-1", 50, 1, MoveReason::Promoted);
    reports(&model, "two decisions in one epoch");
}

#[test]
fn a_node_that_goes_back_to_a_lower_epoch_is_reported() {
    let (mut world, mut model) = calm();
    announce(&mut world, &mut model, "home-0", 50, 0, MoveReason::Promoted);
    assert_eq!(model.violations, Vec::<String>::new());
    // It loses its memory without a restart that the model knows of.
    let incarnation = world.incarnation(&name("home-0"));
    world.kill_daemon(&name("home-0"));
    world.lose_disk(&name("home-0"));
    world.start_daemon(&name("home-0"));
    world.nodes.get_mut(&name("home-0")).expect("a node").incarnation = incarnation;
    announce(&mut world, &mut model, "home-0", 3, 0, MoveReason::Promoted);
    reports(&model, "lower epoch");
}

#[test]
fn a_command_without_the_right_is_reported() {
    let strangers = [("home-0", false), ("home-1", true), ("cloud-1", false)];
    for (who, stranger) in strangers {
        let sites = [Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)];
        let (mut world, mut model) = calm_of(&sites);
        let behaviour = HostileBehaviour { seed: 1, every_ms: 60_000, works: true, raft: false };
        world.fault(&name(who), &Fault::Hostile(behaviour), true);
        announce(&mut world, &mut model, "home-2", 50, 1, MoveReason::Promoted);
        match stranger {
            true => reports(&model, "obeyed a command without the right"),
            false => assert_eq!(model.violations, Vec::<String>::new(), "{who}"),
        }
    }
}

#[test]
fn a_hostile_node_gives_many_commands_and_only_where_it_has_no_right() {
    let sites = [Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)];
    for (who, commands) in [("home-0", false), ("home-1", true)] {
        let (mut world, mut model) = calm_of(&sites);
        let behaviour = HostileBehaviour { seed: 1, every_ms: 20, works: true, raft: false };
        world.fault(&name(who), &Fault::Hostile(behaviour), true);
        model.run(&mut world, secs(10));
        let refused = |n: &NodeName| {
            let counters = world.core(n).map(|c| c.counters()).unwrap_or_default();
            counters.get("commands.refused").copied().unwrap_or(0)
        };
        let refused: u64 = world.mesh.nodes.keys().map(refused).sum();
        assert_eq!(refused > 10, commands, "{who}: {refused} were refused");
        assert_eq!(model.violations, Vec::<String>::new());
    }
}

#[test]
fn a_loop_is_reported() {
    let (mut world, mut model) = calm();
    // Members send what is for elsewhere to the leader; now the leader sends it back to the member.
    let leader = name("cloud-0");
    let kernel: &mut Network = world.kernels.get_mut(&leader).expect("a kernel");
    let route_to = |kernel: &Network, prefix: &str| {
        let prefix = prefix.parse().expect("a prefix");
        kernel.routes.iter().find(|(k, _)| k.prefix == prefix).map(|(k, v)| (k.clone(), v.clone()))
    };
    let (_, to_member) = route_to(kernel, "10.1.2.0/24").expect("a route to cloud-2");
    let (elsewhere, _) = route_to(kernel, "10.2.0.0/24").expect("a route to home-0");
    kernel.routes.insert(elsewhere, to_member);
    model.run(&mut world, Duration::from_millis(500));
    reports(&model, "loop");
}

#[test]
fn the_promotion_of_a_broken_candidate_is_reported() {
    let (mut world, mut model) = calm();
    world.fault(&name("cloud-1"), &Fault::ForwardingOff, true);
    model.run(&mut world, secs(5));
    assert_eq!(model.violations, Vec::<String>::new());
    announce(&mut world, &mut model, "home-0", 50, 1, Found::NewFlow.into());
    reports(&model, "promoted a broken candidate");
    reports(&model, "needless failover");
}

#[test]
fn a_candidate_that_broke_just_now_may_be_promoted() {
    let (mut world, mut model) = calm();
    world.fault(&name("cloud-0"), &Fault::ForwardingOff, true);
    world.fault(&name("cloud-1"), &Fault::ForwardingOff, true);
    model.run(&mut world, Duration::from_millis(40));
    announce(&mut world, &mut model, "home-0", 50, 1, Found::NewFlow.into());
    assert_eq!(model.violations, Vec::<String>::new());
}

#[test]
fn nodes_that_disagree_and_decisions_without_end_are_reported() {
    let (mut world, mut model) = calm();
    announce(&mut world, &mut model, "home-0", 50, 0, MoveReason::Promoted);
    model.check_convergence(&world, secs(5));
    reports(&model, "not converged");
    reports(&model, "restless");
}

#[test]
fn traffic_that_does_not_pass_in_the_end_is_reported() {
    let (mut world, mut model) = calm();
    world.fault(&name("home-2"), &Fault::WanCut, true);
    world.fault(&name("home-2"), &Fault::LanCut, true);
    model.check_convergence(&world, secs(5));
    reports(&model, "does not arrive");
}

#[test]
fn a_node_that_stays_in_fallback_is_reported() {
    let (mut world, mut model) = calm();
    for node in ["cloud-1", "cloud-2"] {
        world.fault(&name(node), &Fault::DaemonKill, true);
    }
    model.run(&mut world, secs(60));
    model.check_convergence(&world, secs(5));
    reports(&model, "still in fallback");
}

#[test]
fn an_error_in_a_log_is_reported_unless_a_fault_explains_it() {
    let (mut world, mut model) = calm();
    let line = |world: &World, text: &str| LogLine {
        at: world.now().mono,
        node: name("home-0"),
        level: LogLevel::Error,
        text: text.to_owned(),
    };
    world.fault(&name("home-1"), &Fault::DaemonPause, true);
    world.log.push(line(&world, "no quorum: following this node's own ranking"));
    model.run(&mut world, Duration::from_millis(100));
    assert_eq!(model.violations, Vec::<String>::new());
    world.log.push(line(&world, "the core's parts keep each other busy"));
    model.run(&mut world, Duration::from_millis(100));
    reports(&model, "unexpected error");
}

#[test]
fn a_mesh_file_that_never_reaches_a_node_is_reported() {
    let (mut world, mut model) = calm();
    let mesh = world.change_mesh(&Change::HoldDown(7), secs(0)).expect("a change");
    for node in mesh.nodes.keys().filter(|n| n.as_str() != "home-1") {
        world.deliver(node, &mesh);
    }
    model.run(&mut world, secs(5));
    model.check_generations(&world);
    reports(&model, "half rolled out");
    assert_eq!(model.violations.len(), 1, "only the one: {:?}", model.violations);
}

#[test]
fn a_crash_between_a_write_and_its_acknowledgement_happens_there() {
    let (mut world, mut model) = calm();
    let node = name("home-0");
    let disk = |world: &World| format!("{:?}", world.nodes[&name("home-0")].store);
    let before = disk(&world);
    world.fault(&node, &Fault::DiskCrash, true);
    announce(&mut world, &mut model, "home-0", 50, 0, MoveReason::Promoted);
    world.run_for(Duration::from_millis(10));
    assert!(world.faults[&node].crashed, "it crashed");
    assert_ne!(disk(&world), before, "after the write");
    world.fault(&node, &Fault::DiskCrash, false);
    let decision = world.core(&node).and_then(|c| c.decision(&"cloud".parse().expect("a name")));
    assert_eq!(decision.map(|d| d.epoch), Some(Epoch(50)), "it is back with what it wrote");
}

/// `cloud-2` sends what is for `home` by `cloud-1`, which does not lead.
fn by_the_standby(world: &mut World, prefix: &str) {
    let kernel = world.kernels.get_mut(&name("cloud-2")).expect("a kernel");
    let to = |prefix: &str| prefix.parse().expect("a prefix");
    let via = kernel.routes.iter().find(|(k, _)| k.prefix == to("10.1.1.0/24"));
    let via = via.map(|(_, via)| via.clone()).expect("a route to cloud-1");
    let key = RouteKey { table: MAIN_TABLE, prefix: to(prefix), metric: 1 };
    kernel.routes.insert(key, via);
}

#[test]
fn a_pair_that_does_not_get_through_is_reported() {
    let (mut world, mut model) = calm();
    assert_eq!(model.unkept.through, Vec::<String>::new());
    let kernel: &mut Network = world.kernels.get_mut(&name("cloud-2")).expect("a kernel");
    let nowhere = RouteVia::Device { dev: "nowhere".parse().expect("a name"), source: None };
    let prefix = "10.2.1.0/25".parse().expect("a prefix");
    kernel.routes.insert(RouteKey { table: MAIN_TABLE, prefix, metric: 1 }, nowhere);
    model.run(&mut world, Duration::from_millis(500));
    let told = &model.unkept.through;
    assert!(told.iter().all(|t| t.starts_with("does not get through: cloud-2 and home-1")));
    assert!(!told.is_empty());
    assert_eq!(model.violations, Vec::<String>::new());
}

#[test]
fn a_pair_without_a_way_is_not_reported() {
    let (mut world, mut model) = calm();
    for candidate in ["cloud-0", "cloud-1"] {
        for far in ["home-0", "home-1", "home-2"] {
            world.fault(&name(candidate), &Fault::PairCut(name(far)), true);
        }
    }
    model.run(&mut world, secs(20));
    assert!(!world.delivers(&name("cloud-2"), &name("home-2")));
    assert_eq!(model.unkept.through, Vec::<String>::new());
}

#[test]
fn a_pair_whose_directions_stay_apart_is_reported() {
    let (mut world, mut model) = calm();
    let of = |model: &Model| {
        let pair = "not mirrored: cloud-2 and home-1 (V4): there cloud-2 cloud-1 ";
        model.unkept.mirror.iter().filter(|m| m.starts_with(pair)).count()
    };
    model.unkept.mirror.clear();
    by_the_standby(&mut world, "10.2.1.0/25");
    model.run(&mut world, Duration::from_millis(900));
    assert_eq!(of(&model), 0, "not at once: {:#?}", model.unkept.mirror);
    model.run(&mut world, Duration::from_millis(1_200));
    assert!(of(&model) > 0, "{:#?}", model.unkept.mirror);
    assert_eq!(model.unkept.through, Vec::<String>::new());
}

#[test]
fn a_pair_whose_node_has_no_daemon_need_not_be_mirrored() {
    let (mut world, mut model) = calm();
    by_the_standby(&mut world, "10.2.1.0/25");
    world.fault(&name("cloud-1"), &Fault::DaemonPause, true);
    model.unkept.mirror.clear();
    model.run(&mut world, secs(3));
    let mut told = model.unkept.mirror.iter();
    assert!(told.all(|m| !m.contains("cloud-1")), "{:#?}", model.unkept.mirror);
}
