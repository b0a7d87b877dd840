//! A mesh that runs for a day of virtual time, with trouble every hour: what its cores hold in memory stays the same.
//!
//! `make test` runs a shorter share of it, `make soak` all (`SOAK_HOURS=24`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::Policy;
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::{Fault, World, WorldConfig};

/// Bytes in use. One test in this program, so all of it is that test's.
static LIVE: AtomicI64 = AtomicI64::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HOUR: Duration = Duration::from_secs(3600);

/// The hour without and with trouble in it; what is broken stays broken for half a minute, so that all has moved and settled.
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

/// Bytes that each core holds after so long, and how many decisions the mesh has taken.
fn weigh_after(time: Duration) -> (BTreeMap<NodeName, i64>, u64) {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 1, 0)];
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let names: Vec<NodeName> = mesh.nodes.keys().cloned().collect();
    let cloud = "cloud".parse().expect("a name");
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
    let weights = names
        .iter()
        .map(|name| {
            let before = LIVE.load(Ordering::Relaxed);
            world.kill_daemon(name);
            (name.clone(), before - LIVE.load(Ordering::Relaxed))
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
    for (name, before) in &early {
        let after = late[name];
        assert!(after <= before + before / 20, "{name} grew from {before} to {after} bytes");
    }
}

/// Hours after which a core has everything that it ever holds.
const EARLY: u32 = 2;
/// Hours that `make test` runs.
const SHARE: u32 = 4;
