//! The daemons' real cores in a modelled network: what a whole mesh does, second by second, without waiting for it.

use std::time::Duration;

use leaderd_core::ids::{Epoch, LocationName, NodeName};
use leaderd_core::io::LogLevel;
use leaderd_core::mesh::Policy;
use leaderd_core::verdict::Cause;
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::{Link, Loss, World, WorldConfig};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn cloud() -> LocationName {
    "cloud".parse().expect("a name")
}

fn hybrid(config: WorldConfig) -> World {
    let sites = [Site::new("cloud", 3, 0), Site::new("home", 3, 0)];
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    World::new(mesh, &secrets, config)
}

/// A hybrid mesh in which everyone knows and follows the first decision.
fn settled(config: WorldConfig) -> World {
    let mut world = hybrid(config);
    assert!(
        world.run_until(Duration::from_secs(60), everyone_agrees),
        "no first decision: {}",
        story(&world)
    );
    world.run_for(Duration::from_secs(5));
    world
}

fn everyone_agrees(world: &World) -> bool {
    world.mesh.locations.keys().all(|location| {
        let epochs: Vec<Epoch> = world
            .mesh
            .nodes
            .keys()
            .filter_map(|n| world.core(n))
            .map(|core| {
                let status = core.status(world.now());
                status.locations.iter().find(|l| l.name == *location).map_or(Epoch(0), |l| l.epoch)
            })
            .collect();
        epochs[0] > Epoch(0) && epochs.iter().all(|e| *e == epochs[0])
    })
}

fn story(world: &World) -> String {
    let lines = world.log.iter().map(|l| format!("{:?} {} {:?} {}", l.at, l.node, l.level, l.text));
    lines.collect::<Vec<_>>().join("\n")
}

fn leader(world: &World) -> String {
    let status = world.core(&name("home-0")).expect("alive").status(world.now());
    let cloud =
        status.locations.into_iter().find(|l| l.name.as_str() == "cloud").expect("a location");
    cloud.leaders[0].to_string()
}

fn decisions(world: &World) -> Vec<(Epoch, Cause)> {
    let core = world.core(&name("cloud-2")).expect("alive");
    let events = core.events();
    let of_cloud = events.iter().filter(|e| e.location == cloud() && !e.leaders_after.is_empty());
    of_cloud.filter_map(|e| Some((e.epoch, e.cause?))).collect()
}

#[test]
fn everyone_learns_who_leads() {
    let world = settled(WorldConfig::default());
    assert_eq!(leader(&world), "cloud-0");
    for (from, to) in [("home-1", "cloud-2"), ("cloud-1", "home-2")] {
        assert!(world.delivers(&name(from), &name(to)), "{from} to {to}");
    }
    let errors: Vec<_> = world.log.iter().filter(|l| l.level == LogLevel::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_leader_that_drops_new_flows_is_replaced() {
    let mut world = settled(WorldConfig::default());
    let before = world.now().mono;
    world.faults.get_mut(&name("cloud-0")).expect("a node").vxlan_new_flows = true;
    assert!(!world.delivers(&name("home-1"), &name("cloud-2")), "the fault does nothing");
    let moved =
        world.run_until(Duration::from_secs(5), |w| w.delivers(&name("home-1"), &name("cloud-2")));
    assert!(moved, "still down: {}", story(&world));
    let took = world.now().mono.since(before);
    assert!(took < Duration::from_millis(400), "took {took:?} of virtual time\n{}", story(&world));
    world.run_for(Duration::from_secs(3));
    assert_eq!(leader(&world), "cloud-1");
    assert_eq!(
        decisions(&world).last().map(|(_, cause)| *cause),
        Some(Cause::NewFlow),
        "{}",
        story(&world)
    );
}

#[test]
fn a_leader_that_crashes_is_replaced() {
    let mut world = settled(WorldConfig::default());
    let before = world.now().mono;
    world.crash(&name("cloud-0"), true);
    let moved =
        world.run_until(Duration::from_secs(5), |w| w.delivers(&name("home-1"), &name("cloud-2")));
    assert!(moved, "still down: {}", story(&world));
    let took = world.now().mono.since(before);
    assert!(took < Duration::from_millis(400), "took {took:?} of virtual time");
}

#[test]
fn ten_percent_loss_on_every_path_moves_nobody() {
    let mut world = settled(WorldConfig {
        wan: Link { loss: Loss::Independent(0.1), ..Link::of(Duration::from_millis(10)) },
        ..WorldConfig::default()
    });
    world.run_for(Duration::from_secs(300));
    assert_eq!(decisions(&world).len(), 1, "{}", story(&world));
}

#[test]
fn slow_and_jittery_paths_move_nobody() {
    let config = WorldConfig {
        wan: Link { jitter: Duration::from_millis(200), ..Link::of(Duration::from_millis(300)) },
        ..WorldConfig::default()
    };
    let mut world = settled(config);
    world.run_for(Duration::from_secs(300));
    assert_eq!(decisions(&world).len(), 1, "{}", story(&world));
}
