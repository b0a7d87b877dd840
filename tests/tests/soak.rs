//! A mesh that runs for a day of virtual time, with trouble every hour: the memory of its cores stays the same.
//!
//! `make test` runs a part of it, `make soak` all (`SOAK_HOURS=24`).

use std::collections::BTreeMap;
use std::time::Duration;

use leaderd_core::admin::AdminRequest;
use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::Policy;
use leaderd_core::state::{MAX_ASKED, MAX_EVENTS};
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

/// A fault lasts this long: all leaders have changed by then.
const BROKEN: Duration = Duration::from_secs(30);

/// One after the other, in every hour. None ends a daemon: a restarted core would use little memory again.
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

/// Failovers before the memory of the cores is measured: more than the events that they keep ([`MAX_EVENTS`]). Else it would grow
/// only because they keep more events.
const FAILOVERS: usize = MAX_EVENTS + 10;
/// The same for events that an operator causes, which have a limit of their own ([`MAX_ASKED`]).
const PROMOTIONS: usize = MAX_ASKED + 10;
/// More entries than a log takes in between two snapshots.
const TURN: usize = 400;

/// Failovers may follow each other as fast as they are seen.
fn restless() -> Policy {
    let second = Duration::from_secs(1);
    Policy { hold_down: second, hold_down_max: second, ..Policy::default() }
}

struct Filling<'w> {
    world: &'w mut World,
    cloud: LocationName,
    commands: u64,
}

impl Filling<'_> {
    fn leader(&self) -> NodeName {
        let core = self.world.core(&name("cloud-0")).expect("it runs");
        let slot = core.decision(&self.cloud).expect("a node leads").leaders[0];
        name(&format!("cloud-{}", slot.0))
    }

    fn moved(&mut self, from: &NodeName) {
        let (cloud, slot) = (self.cloud.clone(), from.as_str().ends_with('1'));
        let moved = self.world.run_until(Duration::from_secs(60), |world| {
            let decision = world.core(&name("cloud-0")).and_then(|c| c.decision(&cloud));
            decision.is_some_and(|d| (d.leaders[0].0 == 1) != slot)
        });
        assert!(moved, "{from} leads on");
        // Until all that belongs to it is over: the times of its event, and the hold-down.
        self.world.run_for(Duration::from_secs(4));
        self.world.log.clear();
    }

    fn fail_over(&mut self) {
        let leader = self.leader();
        self.world.fault(&leader, &Fault::ForwardingOff, true);
        self.moved(&leader);
        self.world.fault(&leader, &Fault::ForwardingOff, false);
        self.world.run_for(Duration::from_secs(4));
    }

    fn promote(&mut self) {
        let leader = self.leader();
        let other = name(if leader.as_str() == "cloud-0" { "cloud-1" } else { "cloud-0" });
        self.commands += 1;
        let request = AdminRequest::Promote { node: other.clone(), force: true };
        self.world.input(&other, Input::Admin { id: self.commands, user: None, request });
        self.moved(&leader);
    }

    /// Moves leadership there and back until the whole memory of the cores is of such moves.
    fn fill(mut self) {
        for _ in 0..FAILOVERS {
            self.fail_over();
        }
        for _ in 0..PROMOTIONS {
            self.promote();
        }
        let core = self.world.core(&name("cloud-0")).expect("it runs");
        let events = core.events_of(&self.cloud);
        let (asked, other): (Vec<_>, Vec<_>) = events.partition(|e| e.author.is_some());
        assert_eq!((other.len(), asked.len()), (MAX_EVENTS, MAX_ASKED), "not full");
        // A log grows until a snapshot is due, and is cut then: how much a core weighs depends on how far it is. All are weighed
        // where it was just cut.
        let cut = |filling: &Self| {
            let disk = filling.world.snapshot_index(&name("cloud-0"), &filling.cloud);
            disk.expect("it votes")
        };
        let before = cut(&self);
        for turn in 0.. {
            assert!(turn < TURN, "no snapshot");
            self.promote();
            if cut(&self) != before {
                break;
            }
        }
        // Until probes, reports and verifications of the last one are over.
        self.world.run_for(Duration::from_secs(60));
    }
}

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

/// Bytes that each core holds after so long, and how many decisions the mesh has taken.
fn weigh_after(time: Duration) -> (BTreeMap<NodeName, i64>, u64) {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 1, 0)];
    let (mesh, secrets) = mesh_of(&sites, restless());
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
    Filling { world: &mut world, cloud, commands: 0 }.fill();
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
fn a_day_of_trouble_needs_no_more_memory_than_two_hours_of_it() {
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
    assert!(after <= before + before / 50, "the cores grew from {before} to {after} bytes");
}
