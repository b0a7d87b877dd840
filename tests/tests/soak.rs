//! A mesh that runs for a day of virtual time, with trouble every hour: what its cores hold in memory stays the same.
//!
//! `make test` runs a shorter share of it, `make soak` all (`SOAK_HOURS=24`).

use std::collections::BTreeMap;
use std::time::Duration;

use leaderd_core::admin::AdminRequest;
use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::Policy;
use leaderd_core::state::MAX_EVENTS;
use tests::memory::{Counting, in_use};
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::{Fault, World, WorldConfig};

// One test in this program, so all that is counted is that test's.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Hours after which a core has everything that it ever holds, and how many `make test` runs.
const EARLY: u32 = 2;
const SHARE: u32 = 4;

const HOUR: Duration = Duration::from_secs(3600);

/// What is broken stays broken for so long: all has moved and settled by then.
const BROKEN: Duration = Duration::from_secs(30);

/// One after the other, in every hour. None ends a daemon: a core that starts anew would be light again.
fn troubles() -> Vec<(&'static str, Fault)> {
    vec![
        ("cloud-0", Fault::VxlanNewFlows),
        ("cloud-1", Fault::ForwardingOff),
        ("home-0", Fault::WanLoss(0.05)),
        ("cloud-0", Fault::WanCut),
        ("cloud-1", Fault::MtuBlackhole(1000)),
        ("cloud-2", Fault::LanCut),
        ("cloud-0", Fault::DaemonPause),
        ("cloud-1", Fault::WanLatency(100)),
    ]
}

/// Promotions by hand before the cores are weighed: more than they remember events (`MAX_EVENTS`), and enough for their logs to be
/// compacted. Else they would weigh more later only because more has happened that they are to remember.
const PROMOTIONS: u64 = 300;

/// Moves leadership there and back until the whole memory of the cores is of such moves.
fn fill_the_history(world: &mut World, cloud: &LocationName) {
    let epoch = |w: &World| {
        let core = w.core(&"cloud-0".parse().expect("a name")).expect("it runs");
        core.decision(cloud).map_or(0, |d| d.epoch.0)
    };
    let before = epoch(world);
    for id in 0..PROMOTIONS {
        let node: NodeName = format!("cloud-{}", id % 2).parse().expect("a name");
        let request = AdminRequest::Promote { node: node.clone(), force: true };
        world.input(&node, Input::Admin { id, user: None, request });
        world.run_for(Duration::from_secs(1));
    }
    let moved = epoch(world) - before;
    assert!(moved as usize > MAX_EVENTS, "only {moved} of the promotions took place");
    // Until probes, reports and verifications of the last one are over.
    world.run_for(Duration::from_secs(60));
}

/// Bytes that each core holds after so long, and how many decisions the mesh has taken.
fn weigh_after(time: Duration) -> (BTreeMap<NodeName, i64>, u64) {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 1, 0)];
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let names: Vec<NodeName> = mesh.nodes.keys().cloned().collect();
    let cloud: LocationName = "cloud".parse().expect("a name");
    let mut world = World::new(mesh, &secrets, WorldConfig::default());
    let hours = u32::try_from(time.as_secs() / HOUR.as_secs()).expect("days at most");
    let troubles = troubles();
    let calm = HOUR / troubles.len() as u32 - BROKEN;
    for _ in 0..hours {
        for (node, fault) in &troubles {
            let node: NodeName = node.parse().expect("a name");
            world.fault(&node, fault, true);
            world.run_for(BROKEN);
            world.fault(&node, fault, false);
            world.run_for(calm);
            // Log lines are the world's, not the cores'.
            world.log.clear();
        }
    }
    let epoch = world.core(&names[0]).and_then(|c| c.decision(&cloud)).map_or(0, |d| d.epoch.0);
    fill_the_history(&mut world, &cloud);
    let weights = names
        .iter()
        .map(|name| {
            let before = in_use();
            world.kill_daemon(name);
            (name.clone(), before - in_use())
        })
        .collect();
    (weights, epoch)
}

#[test]
fn a_day_of_trouble_leaves_the_cores_as_light_as_two_hours_of_it() {
    let hours: u32 = match std::env::var("SOAK_HOURS") {
        Ok(n) => n.parse().expect("SOAK_HOURS is a number of hours"),
        Err(_) => SHARE,
    };
    let (early, first) = weigh_after(HOUR * EARLY);
    let (late, last) = weigh_after(HOUR * hours);
    println!("decisions in cloud: {first} after {EARLY} h, {last} after {hours} h");
    for (name, before) in &early {
        println!("{name}: {before} bytes after {EARLY} h, {} after {hours} h", late[name]);
    }
    assert!(last > first && first > u64::from(EARLY), "leaders were replaced: {first}, {last}");
    // All together: who leads a Raft group holds more than who follows, and that is not always the same one.
    let [before, after] = [&early, &late].map(|all| all.values().sum::<i64>());
    println!("all: {before} bytes, {after}: {:.3} times as much", after as f64 / before as f64);
    assert!(after <= before + before / 20, "the cores grew from {before} to {after} bytes");
}
