//! Makes worlds and faults from seeds.
//!
//! A seed means the same world for ever, so new sorts of trouble get a range of seeds of their own: a [`Kind`].

use std::ops::Range;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::mesh::{Mesh, Policy};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::case::{Case, PlannedFault};
use super::hostile::HostileBehaviour;
use super::link::uniform;
use super::meshes::{Site, mesh_of};
use super::rollout::{Change, RollOut};
use super::{Fault, Link, Loss, WorldConfig};

/// Faults begin within this.
const TROUBLED_MS: u32 = 40_000;

/// What a seed's world has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// What breaks forwarding and daemons.
    Plain,
    /// Changes of the mesh file that reach some nodes late, crashes between a write and its acknowledgement, slower WANs,
    /// other MTUs, a LAN that duplicates and reorders.
    Richer,
    /// Full and slow disks, and power cuts between any two writes.
    Disks,
    /// The mesh file changes within seconds of a failover, and takes votes.
    RollOuts,
    /// One hostile node.
    Hostile,
    /// All of these at once.
    Everything,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Richer, Self::Disks, Self::RollOuts, Self::Hostile, Self::Everything];

    /// Returns the kind's seeds.
    pub const fn seeds(self) -> Range<u64> {
        const MILLION: u64 = 1_000_000;
        match self {
            Self::Plain => 1..MILLION,
            Self::Richer => MILLION..2 * MILLION,
            Self::Disks => 2 * MILLION..3 * MILLION,
            Self::RollOuts => 3 * MILLION..4 * MILLION,
            Self::Hostile => 4 * MILLION..5 * MILLION,
            Self::Everything => 5 * MILLION..u64::MAX,
        }
    }

    pub fn of_seed(seed: u64) -> Self {
        Self::ALL.into_iter().find(|k| k.seeds().contains(&seed)).unwrap_or(Self::Plain)
    }

    /// Returns the name in records and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Richer => "richer",
            Self::Disks => "disks",
            Self::RollOuts => "roll-outs",
            Self::Hostile => "hostile",
            Self::Everything => "everything",
        }
    }
}

impl Case {
    /// Makes the case of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let kind = Kind::of_seed(seed);
        let sites = if kind == Kind::RollOuts { voting_sites(rng) } else { sites(rng) };
        let ms = |n: u32| Duration::from_millis(n.into());
        let mut wan = Link::of(ms([1, 10, 10, 40, 150][pick(rng, 5)]));
        wan.jitter = wan.latency.mul_f64([0.0, 0.1, 0.3][pick(rng, 3)]);
        wan.loss = match pick(rng, 4) {
            0 | 1 => Loss::NONE,
            2 => Loss::Independent(0.03 * uniform(rng)),
            _ => Loss::Bursty { to_bad: 0.002, to_good: 0.1, bad_loss: 0.5 },
        };
        (wan.duplicate, wan.reorder) = [(0.0, 0.0), (0.01, 0.02)][pick(rng, 2)];
        let config = WorldConfig { seed, wan, ..WorldConfig::default() };
        let (mesh, _) = mesh_of(&sites, Policy::default());
        let names: Vec<&NodeName> = mesh.nodes.keys().collect();
        let faults = (0..1 + pick(rng, 5))
            .map(|_| {
                let node = names[pick(rng, names.len())].clone();
                let others: Vec<&&NodeName> = names.iter().filter(|n| ***n != node).collect();
                let other = (**others[pick(rng, others.len())]).clone();
                PlannedFault {
                    at_ms: rng.next_u32() % TROUBLED_MS,
                    for_ms: [200, 2_000, 8_000, 20_000, 40_000][pick(rng, 5)]
                        + rng.next_u32() % 1000,
                    node,
                    fault: fault(rng, other),
                }
            })
            .collect();
        let mut case = Self { sites, config, faults, roll_outs: Vec::new() };
        match kind {
            Kind::Plain => {}
            Kind::Richer => case.add_mesh_changes(rng, &names),
            Kind::Disks => case.break_disks(rng, &mesh),
            Kind::RollOuts => case.roll_out_amid_failovers(rng, &mesh),
            Kind::Hostile => case.add_hostile_node(rng, &names),
            Kind::Everything => {
                case.add_mesh_changes(rng, &names);
                case.break_disks(rng, &mesh);
                case.roll_out_amid_failovers(rng, &mesh);
                case.add_hostile_node(rng, &names);
            }
        }
        case
    }

    fn add_mesh_changes(&mut self, rng: &mut ChaCha8Rng, names: &[&NodeName]) {
        (self.config.lan.duplicate, self.config.lan.reorder) =
            [(0.0, 0.0), (0.01, 0.02)][pick(rng, 2)];
        for planned in &mut self.faults {
            match pick(rng, 8) {
                0 | 1 => planned.fault = Fault::DiskCrash,
                2 => planned.fault = Fault::WanLatency(20 + rng.next_u32() % 180),
                3 => planned.fault = Fault::MtuBlackhole(600 + (rng.next_u32() % 800) as u16),
                _ => {}
            }
        }
        for _ in 0..1 + pick(rng, 2) {
            let name = names[pick(rng, names.len())].clone();
            let site = &self.sites[pick(rng, self.sites.len())];
            let location = site.name.parse().expect("a name");
            let change = match pick(rng, 6) {
                0 => Change::AddMember(location),
                1 => Change::AddCandidate(location),
                2 => match site.members {
                    0 => Change::AddCandidate(location),
                    _ => {
                        let member = format!("{}-{}", site.name, site.candidates);
                        Change::GiveSlot(member.parse().expect("a name"))
                    }
                },
                3 | 4 => Change::RotateKey(name),
                _ => match pick(rng, 2) {
                    0 => Change::ProbeInterval(50 + rng.next_u32() % 400),
                    _ => Change::HoldDown(rng.next_u32() % 20),
                },
            };
            let late = names.iter().filter_map(|n| {
                let most = [0, 300, 3_000, 20_000][pick(rng, 4)];
                (most > 0).then(|| ((*n).clone(), rng.next_u32() % most))
            });
            let late_ms = late.collect();
            self.roll_outs.push(RollOut { at_ms: rng.next_u32() % TROUBLED_MS, change, late_ms });
        }
    }

    /// Adds a voter whose disk fills, hangs or loses its power. In most cases the location's leader breaks within seconds of that.
    fn break_disks(&mut self, rng: &mut ChaCha8Rng, mesh: &Mesh) {
        self.faults.truncate(1);
        let location = any_location(rng, mesh);
        let voters = mesh.voters_of(&location);
        let at_ms = rng.next_u32() % 30_000;
        // With two bad disks of three the model expects no failover, only that all is well again afterwards.
        let disks = if pick(rng, 4) == 0 { 2 } else { 1 };
        for _ in 0..disks {
            let fault = match pick(rng, 8) {
                0..=3 => Fault::DiskFull { hard_states_fit: pick(rng, 2) == 0 },
                4 => Fault::DiskSlow([20, 100, 400, 2_000][pick(rng, 4)]),
                _ => Fault::PowerCut(rng.next_u32() % 12),
            };
            self.faults.push(PlannedFault {
                at_ms: at_ms + rng.next_u32() % 2_000,
                for_ms: [2_000, 15_000, 30_000][pick(rng, 3)] + rng.next_u32() % 1000,
                node: voters[pick(rng, voters.len())].clone(),
                fault,
            });
        }
        if pick(rng, 4) > 0 {
            let after = rng.next_u32() % [200, 6_000][pick(rng, 2)];
            let for_ms = 20_000 + rng.next_u32() % 10_000;
            self.break_leader(rng, mesh, &location, at_ms + after, for_ms);
        }
    }

    /// Breaks a candidate. Shortly before or after that a new mesh file comes, which in most cases takes a vote.
    fn roll_out_amid_failovers(&mut self, rng: &mut ChaCha8Rng, mesh: &Mesh) {
        self.faults.truncate(1);
        for _ in 0..1 + pick(rng, 2) {
            let takes_votes = |l: &&LocationName| {
                let witnesses = !mesh.locations[*l].witnesses.is_empty();
                witnesses || mesh.nodes_of(l).any(|n| n.slot.is_none())
            };
            let location = match mesh.locations.keys().find(takes_votes) {
                Some(location) if pick(rng, 4) > 0 => location.clone(),
                _ => any_location(rng, mesh),
            };
            let candidates = mesh.candidates_of(&location);
            let members: Vec<&NodeName> =
                mesh.nodes_of(&location).filter(|n| n.slot.is_none()).map(|n| &n.name).collect();
            let at_ms = 2_000 + rng.next_u32() % (TROUBLED_MS - 2_000);
            let for_ms = 5_000 + rng.next_u32() % 20_000;
            self.break_leader(rng, mesh, &location, at_ms, for_ms);
            let witnesses = !mesh.locations[&location].witnesses.is_empty();
            let change = match (pick(rng, 8), members.as_slice()) {
                (0..=3, _) if witnesses => Change::DropWitnesses(location),
                (4, [member, ..]) => Change::GiveSlot((*member).clone()),
                (5, _) if candidates.len() > 2 => {
                    let last = candidates.values().next_back().expect("a candidate");
                    Change::TakeSlot(last.name.clone())
                }
                (6, _) => Change::AddMember(location),
                // Takes the vote of a member where there is one.
                _ => Change::AddCandidate(location),
            };
            // Mostly while the failover is under way, else within two seconds before the fault and four after it.
            let roll_out_at = match pick(rng, 4) {
                0 => (at_ms - 2_000) + rng.next_u32() % 6_000,
                1 => at_ms + rng.next_u32() % 800,
                // When it is seen and decided.
                _ => at_ms + 80 + rng.next_u32() % 300,
            };
            let slowest = [0, 200, 2_000][pick(rng, 3)];
            let late = mesh.nodes.keys().filter_map(|n| {
                let late = slowest > 0 && pick(rng, 2) == 0;
                late.then(|| (n.clone(), rng.next_u32() % slowest))
            });
            let late_ms = late.collect();
            self.roll_outs.push(RollOut { at_ms: roll_out_at, change, late_ms });
        }
    }

    /// Breaks the candidate that leads after a quiet start.
    fn break_leader(
        &mut self,
        rng: &mut ChaCha8Rng,
        mesh: &Mesh,
        location: &LocationName,
        at_ms: u32,
        for_ms: u32,
    ) {
        let candidates = mesh.candidates_of(location);
        let node = candidates.values().next().expect("a candidate").name.clone();
        let fault = match pick(rng, 4) {
            0 => Fault::VxlanNewFlows,
            1 => Fault::ForwardingOff,
            2 => Fault::DaemonKill,
            _ => Fault::NodeCrash,
        };
        self.faults.push(PlannedFault { at_ms, for_ms, node, fault });
    }

    /// Adds a hostile node. At most one other thing is broken, or the sound nodes would be the minority.
    fn add_hostile_node(&mut self, rng: &mut ChaCha8Rng, names: &[&NodeName]) {
        self.faults.truncate(1);
        let node = names[pick(rng, names.len())].clone();
        self.faults.retain(|f| f.node != node);
        let behaviour = HostileBehaviour {
            seed: rng.next_u32(),
            every_ms: [20, 50, 200][pick(rng, 3)],
            works: pick(rng, 3) > 0,
            raft: pick(rng, 3) == 0,
        };
        self.faults.push(PlannedFault {
            at_ms: rng.next_u32() % 10_000,
            for_ms: 20_000 + rng.next_u32() % 20_000,
            node,
            fault: Fault::Hostile(behaviour),
        });
    }
}

fn any_location(rng: &mut ChaCha8Rng, mesh: &Mesh) -> LocationName {
    let n = pick(rng, mesh.locations.len());
    mesh.locations.keys().nth(n).expect("it is one of them").clone()
}

/// Locations with voters that a new mesh file may take the vote of.
fn voting_sites(rng: &mut ChaCha8Rng) -> Vec<Site> {
    match pick(rng, 4) {
        0 | 1 => vec![Site::new("cloud", 2, 1), Site::new("home", 3, 0)],
        2 => vec![Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)],
        _ => vec![Site::new("cloud", 4, 1), Site::new("home", 2, 1)],
    }
}

fn sites(rng: &mut ChaCha8Rng) -> Vec<Site> {
    match pick(rng, 6) {
        0 | 1 => vec![Site::new("cloud", 3, 0), Site::new("home", 3, 0)],
        2 => vec![Site::new("cloud", 2, 1), Site::new("home", 3, 0)],
        3 => vec![Site::new("cloud", 2, 0).witness("home-0"), Site::new("home", 3, 0)],
        4 => vec![Site::new("cloud", 3, 1), Site::new("home", 2, 1), Site::new("lab", 2, 1)],
        _ => vec![
            Site::new("cloud", 2, 0).witness("lab-0"),
            Site::new("home", 3, 0),
            Site::new("lab", 3, 0),
        ],
    }
}

fn fault(rng: &mut ChaCha8Rng, other: NodeName) -> Fault {
    match pick(rng, 16) {
        0 => Fault::NodeCrash,
        1 => Fault::DiskLoss,
        2 | 3 => Fault::VxlanNewFlows,
        4 => Fault::VxlanAll,
        5 => Fault::FdbGhost(other),
        6 => Fault::ForwardingOff,
        7 => Fault::MtuBlackhole(1300),
        8 => Fault::RouteLoop,
        9 => Fault::WireguardDown,
        10 => Fault::WanCut,
        11 => Fault::WanLoss(0.05 + 0.6 * uniform(rng)),
        12 => Fault::LanCut,
        13 => Fault::OneWay(other),
        14 => Fault::DaemonKill,
        _ => Fault::DaemonPause,
    }
}

fn pick(rng: &mut ChaCha8Rng, of: usize) -> usize {
    rng.next_u32() as usize % of
}
