//! Two hours of virtual time in which a candidate, a plain member and an observer each send the worst that they may, at the highest
//! rate that a peer is let through: what the cores hold stays within its bounds, and a failover takes no longer than ever.
//!
//! `make test` lets the pairs of a worst peer and a victim take turns; `WORST_PEER=all`, in the nightly tests, lets all of them at once.

use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::Policy;
use tests::memory::{Counting, in_use};
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::{Fault, World, WorldConfig};
use tests::worst_peer::WorstPeer;

// One test in this program, so all that is counted is that test's.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A candidate of the location, a member of it, and one of its observers.
const WORST_PEERS: [&str; 3] = ["cloud-2", "cloud-3", "home-1"];

const HOURS: u64 = 2;
/// Seconds between two turns in `make test`.
const TURN: usize = 6;
/// What eight cores may hold, with the simulator's copy of their disks: of each mostly the state of its location, of 1.25 MiB, as
/// it is and in a snapshot, and a log of 2.5 MiB. Reports that flap fill them with records of 'trouble', one in ten seconds at most:
/// after two hours there is room left, so what is asserted is the bound, and not that nothing grows.
const MOST: i64 = 8 * 2 * (8 << 20);
/// Bytes that a peer may send in a second: `control::rate` of the daemon.
const RATE: usize = 4 << 20;
/// Failovers without them take a third of a second here.
const IN_TIME: Duration = Duration::from_secs(2);

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

struct Attack {
    world: World,
    worst_peers: Vec<WorstPeer>,
    victims: Vec<NodeName>,
    all: bool,
    second: usize,
    bytes: usize,
}

impl Attack {
    fn new() -> Self {
        let sites = [Site::new("cloud", 3, 1), Site::new("home", 3, 1)];
        let (mesh, secrets) = mesh_of(&sites, Policy::default());
        let worst_peers: Vec<WorstPeer> = WORST_PEERS
            .iter()
            .map(|from| WorstPeer::new(name(from), mesh.nodes[&name(from)].location.clone()))
            .collect();
        let victims =
            mesh.nodes.keys().filter(|n| !WORST_PEERS.contains(&n.as_str())).cloned().collect();
        let world = World::new(mesh, &secrets, WorldConfig::default());
        let all = std::env::var_os("WORST_PEER").is_some_and(|v| v == "all");
        Self { world, worst_peers, victims, all, second: 0, bytes: 0 }
    }

    /// A second passes, in which each pair whose turn it is sends as much as it may, in ten portions.
    fn second(&mut self) {
        let pairs: Vec<(usize, usize)> = (0..self.worst_peers.len())
            .flat_map(|l| (0..self.victims.len()).map(move |v| (l, v)))
            .collect();
        let turn: Vec<(usize, usize)> = match self.all {
            true => pairs,
            false if self.second.is_multiple_of(TURN) => {
                vec![pairs[self.second / TURN % pairs.len()]]
            }
            false => Vec::new(),
        };
        self.second += 1;
        for _ in 0..10 {
            for (worst, victim) in &turn {
                let victim = self.victims[*victim].clone();
                let mut portion = 0;
                while portion < RATE / 10 {
                    let from = self.worst_peers[*worst].from.clone();
                    let wall = self.world.now().wall;
                    let known = self
                        .world
                        .core(&victim)
                        .and_then(|c| c.decision(&self.worst_peers[*worst].location))
                        .cloned();
                    for frame in self.worst_peers[*worst].frames(&known, wall) {
                        portion += frame.encode().len();
                        let input = Input::Frame { from: from.clone(), frame: Box::new(frame) };
                        self.world.input(&victim, input);
                    }
                }
                self.bytes += portion;
            }
            self.world.run_for(Duration::from_millis(100));
        }
        // Log lines are the world's, not the cores'.
        self.world.log.clear();
    }

    /// How long the location takes to leave a leader that relays nothing, in the view of those who are honest.
    fn failover(&mut self) -> Duration {
        let cloud: LocationName = "cloud".parse().expect("a name");
        let leader = |world: &World, of: &NodeName| {
            let slot = world.core(of).and_then(|c| c.decision(&cloud)).map(|d| d.leaders[0]);
            slot.expect("a node leads")
        };
        let observers = [name("home-0"), name("home-2")];
        let before = leader(&self.world, &observers[0]);
        let node = name(&format!("cloud-{}", before.0));
        self.world.fault(&node, &Fault::ForwardingOff, true);
        let began = self.world.now().mono;
        let moved = self.world.run_until(Duration::from_secs(60), |world| {
            observers.iter().all(|o| leader(world, o) != before)
        });
        assert!(moved, "no failover of {node} within a minute");
        let took = self.world.now().mono.since(began);
        self.world.fault(&node, &Fault::ForwardingOff, false);
        took
    }
}

#[test]
fn two_hours_of_the_worst_peer_leave_the_cores_within_their_bounds_and_as_fast_as_before() {
    let mut attack = Attack::new();
    attack.world.run_for(Duration::from_secs(10));
    let mut most = 0;
    for second in 0..HOURS * 3600 {
        attack.second();
        most = most.max(in_use());
        if second % 600 == 0 {
            println!("{second} s: {} KiB in use, {} MiB sent", in_use() >> 10, attack.bytes >> 20);
        }
    }
    assert!(attack.bytes > 1 << 30, "only {} bytes were sent", attack.bytes);
    assert!(most <= MOST, "the cores hold {most} bytes");
    for _ in 0..3 {
        let took = attack.failover();
        println!("a failover took {took:?}");
        assert!(took <= IN_TIME, "{took:?}");
        // Until its hold-down is over.
        for _ in 0..120 {
            attack.second();
        }
    }
}
