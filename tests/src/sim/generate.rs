//! Makes worlds and faults from seeds.
//!
//! A seed means the same world for ever, so new sorts of trouble get a range of seeds of their own: a [`Kind`].

use std::ops::Range;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::mesh::{Mesh, Node, Overlay, Policy};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wgctl_plan::Family;

use super::case::{Case, PlannedFault};
use super::hostile::HostileBehaviour;
use super::link::uniform;
use super::meshes::{Site, mesh_of};
use super::path::LAN_DEVICE;
use super::rollout::{Change, RollOut};
use super::{Fault, Foreign, ForeignKind, Link, Loss, Weather, WorldConfig};

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
    /// What is broken between two candidates, one way or both: cuts, bad weather, planes and families that are not forwarded.
    Paths,
    /// What happens to a host besides that: it stands still, its LAN is silent, links lose their carrier, other tools have rules and
    /// routes.
    Hosts,
    /// What breaks a part of the traffic through a relay: packets of some sizes, a share of all packets, new flows in one direction.
    Parts,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::Richer,
        Self::Disks,
        Self::RollOuts,
        Self::Hostile,
        Self::Everything,
        Self::Paths,
        Self::Hosts,
        Self::Parts,
    ];

    /// Returns the kind's seeds.
    pub const fn seeds(self) -> Range<u64> {
        const MILLION: u64 = 1_000_000;
        match self {
            Self::Plain => 1..MILLION,
            Self::Richer => MILLION..2 * MILLION,
            Self::Disks => 2 * MILLION..3 * MILLION,
            Self::RollOuts => 3 * MILLION..4 * MILLION,
            Self::Hostile => 4 * MILLION..5 * MILLION,
            Self::Everything => 5 * MILLION..6 * MILLION,
            Self::Paths => 6 * MILLION..7 * MILLION,
            Self::Hosts => 7 * MILLION..8 * MILLION,
            Self::Parts => 8 * MILLION..u64::MAX,
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
            Self::Paths => "paths",
            Self::Hosts => "hosts",
            Self::Parts => "parts",
        }
    }
}

impl Case {
    /// Makes the case of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let kind = Kind::of_seed(seed);
        let sites = match kind {
            Kind::RollOuts => voting_sites(rng),
            Kind::Paths | Kind::Hosts | Kind::Parts => richer_sites(rng),
            _ => sites(rng),
        };
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
            Kind::Paths => case.break_paths(rng, &mesh),
            Kind::Hosts => case.trouble_hosts(rng, &mesh),
            Kind::Parts => case.break_parts(rng, &mesh),
        }
        case
    }

    /// Breaks paths between candidates. One fault of another sort may come as well.
    fn break_paths(&mut self, rng: &mut ChaCha8Rng, mesh: &Mesh) {
        self.faults.truncate(pick(rng, 2));
        for _ in 0..1 + pick(rng, 3) {
            let (node, far) = two_candidates(rng, mesh);
            let to = far.name.clone();
            let slot = far.slot.expect("a candidate").0;
            let fault = match pick(rng, 10) {
                0..=2 => Fault::PairCut(to),
                3 | 4 => Fault::OneWay(to),
                5 | 6 => Fault::Weather(to, weather(rng)),
                7 | 8 => Fault::PlaneOff(slot),
                _ => Fault::FamilyOff([Family::V4, Family::V6][pick(rng, 2)]),
            };
            self.plan(rng, node.name.clone(), fault);
        }
    }

    /// Does to hosts what else happens to them.
    fn trouble_hosts(&mut self, rng: &mut ChaCha8Rng, mesh: &Mesh) {
        self.faults.truncate(pick(rng, 2));
        for _ in 0..1 + pick(rng, 3) {
            let nodes: Vec<&Node> = mesh.nodes.values().collect();
            let node = nodes[pick(rng, nodes.len())];
            let fault = match pick(rng, 10) {
                0 | 1 => Fault::MachinePause,
                2 => Fault::LanControlCut,
                3 => Fault::LanPacketsCut,
                4..=6 => {
                    let lan = node.slot.is_none() || pick(rng, 2) == 0;
                    let dev = if lan { LAN_DEVICE } else { ["wgl0", "wgl1"][pick(rng, 2)] };
                    Fault::LinkDown(dev.parse().expect("a name"))
                }
                _ => Fault::Foreign(foreign(rng, mesh, node)),
            };
            self.plan(rng, node.name.clone(), fault);
        }
    }

    /// Breaks a part of what relays carry.
    fn break_parts(&mut self, rng: &mut ChaCha8Rng, mesh: &Mesh) {
        self.faults.truncate(pick(rng, 2));
        for _ in 0..1 + pick(rng, 3) {
            let (node, _) = two_candidates(rng, mesh);
            let fault = match pick(rng, 4) {
                0 | 1 => {
                    let from = 100 + (rng.next_u32() % 900) as u16;
                    Fault::SizeWindow(from, from + 100 + (rng.next_u32() % 600) as u16)
                }
                2 => Fault::OutwardNewFlows,
                _ => Fault::WanLoss(0.05 + 0.3 * uniform(rng)),
            };
            self.plan(rng, node.name.clone(), fault);
        }
    }

    fn plan(&mut self, rng: &mut ChaCha8Rng, node: NodeName, fault: Fault) {
        self.faults.push(PlannedFault {
            at_ms: rng.next_u32() % TROUBLED_MS,
            // A link that flaps, a machine that is moved, up to faults that stay.
            for_ms: [50, 300, 2_000, 20_000, 40_000][pick(rng, 5)] + rng.next_u32() % 1000,
            node,
            fault,
        });
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

/// Two candidates of different locations, mostly those that lead after a quiet start.
fn two_candidates<'m>(rng: &mut ChaCha8Rng, mesh: &'m Mesh) -> (&'m Node, &'m Node) {
    let all: Vec<&Node> = mesh.nodes.values().filter(|n| n.slot.is_some()).collect();
    let node = match pick(rng, 2) {
        0 => all[pick(rng, all.len())],
        _ => first_candidate(mesh, &any_location(rng, mesh)),
    };
    let others: Vec<&Node> = all.into_iter().filter(|n| n.location != node.location).collect();
    let far = others[pick(rng, others.len())];
    let far = if pick(rng, 2) == 0 { far } else { first_candidate(mesh, &far.location) };
    (node, far)
}

fn first_candidate<'m>(mesh: &'m Mesh, location: &LocationName) -> &'m Node {
    mesh.candidates_of(location).into_values().next().expect("a candidate")
}

fn weather(rng: &mut ChaCha8Rng) -> Weather {
    let (slower_ms, jitter_ms) = [(0, 0), (100 + rng.next_u32() % 100, 0), (0, 20)][pick(rng, 3)];
    let loss = match pick(rng, 4) {
        0 => Loss::NONE,
        1 => Loss::Independent(0.05 + 0.6 * uniform(rng)),
        2 => Loss::Independent(0.95 + 0.05 * uniform(rng)),
        _ => Loss::Bursty { to_bad: 0.01, to_good: 0.1, bad_loss: 0.8 },
    };
    Weather { loss, slower_ms, jitter_ms }
}

/// A rule or route of another tool on a node, for the prefix of a node elsewhere.
fn foreign(rng: &mut ChaCha8Rng, mesh: &Mesh, node: &Node) -> Foreign {
    let elsewhere: Vec<&Node> =
        mesh.nodes.values().filter(|n| n.location != node.location).collect();
    let to = elsewhere[pick(rng, elsewhere.len())].prefixes[0];
    let kind = match pick(rng, 3) {
        0 => ForeignKind::Route { metric: 50 },
        // Before leaderd's rules, and behind them.
        n => ForeignKind::Rule([10, 5270][n - 1]),
    };
    let lan = mesh.locations[&node.location].overlay == Overlay::Direct;
    let iif = (lan && pick(rng, 2) == 0).then(|| LAN_DEVICE.parse().expect("a name"));
    Foreign { to, from: None, iif, kind }
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

/// The ordinary sites, some with IPv6, some without VXLAN.
fn richer_sites(rng: &mut ChaCha8Rng) -> Vec<Site> {
    let ipv6 = pick(rng, 3);
    let mut sites = sites(rng);
    for (n, site) in sites.iter_mut().enumerate() {
        // On all, or on all but the first. Where next hops are LAN addresses, which are IPv4 here, IPv6 has none.
        site.ipv6 = ipv6 == 0 || (ipv6 == 1 && n > 0);
        site.direct = !site.ipv6 && pick(rng, 3) == 0;
    }
    sites
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
