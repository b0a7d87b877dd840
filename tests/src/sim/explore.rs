//! Worlds and faults drawn from seeds; what fails is made small and kept as a file.

use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::time::Instant;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::link::draw;
use super::meshes::{Site, mesh_of};
use super::model::Model;
use super::rollout::{Change, RollOut};
use super::{Fault, Link, Loss, World, WorldConfig};

/// Nothing is broken before: the first decisions are taken in peace.
const PEACE: Duration = Duration::from_secs(15);
/// Time to converge after the last fault was mended, and how long nothing may have moved by then.
const SETTLE: Duration = Duration::from_secs(45);
const CALM: Duration = Duration::from_secs(10);
/// Faults begin within this.
const TROUBLED_MS: u32 = 40_000;
/// Seeds from here on draw more: changes of the mesh file that reach some nodes late, crashes between a write and its
/// acknowledgement, slower WANs, other MTUs, a LAN that duplicates and reorders. The worlds of smaller seeds stay as they
/// are, so that their numbers go on naming what they named.
pub const RICHER: u64 = 1_000_000;
/// Runs that making a failure small may cost.
const MAX_SHRINKS: u32 = 200;

/// One whole run, as a file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub sites: Vec<Site>,
    pub config: WorldConfig,
    pub faults: Vec<Planned>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roll_outs: Vec<RollOut>,
}

/// A fault, when it comes and how long it stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub at_ms: u32,
    pub for_ms: u32,
    pub node: NodeName,
    pub fault: Fault,
}

/// Something that a case does to the world.
#[derive(Debug)]
enum Moment<'a> {
    Fault(&'a Planned, bool),
    RollOut(&'a RollOut),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violations: Vec<String>,
    /// Number and hash of all inputs.
    pub digest: (u64, u64),
    /// What happened, in order: `***` what was broken and mended, `===` what the model knows, and what the daemons log.
    pub story: Vec<String>,
}

impl Outcome {
    /// The kind of the first violation.
    pub fn kind(&self) -> Option<&str> {
        self.violations.first().and_then(|v| v.split(':').next())
    }
}

impl Case {
    /// The case that a seed stands for.
    pub fn of_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let sites = sites(rng);
        let ms = |n: u32| Duration::from_millis(n.into());
        let mut wan = Link::of(ms([1, 10, 10, 40, 150][pick(rng, 5)]));
        wan.jitter = wan.latency.mul_f64([0.0, 0.1, 0.3][pick(rng, 3)]);
        wan.loss = match pick(rng, 4) {
            0 | 1 => Loss::NONE,
            2 => Loss::Independent(0.03 * draw(rng)),
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
                Planned {
                    at_ms: rng.next_u32() % TROUBLED_MS,
                    for_ms: [200, 2_000, 8_000, 20_000, 40_000][pick(rng, 5)]
                        + rng.next_u32() % 1000,
                    node,
                    fault: fault(rng, other),
                }
            })
            .collect();
        let mut case = Self { sites, config, faults, roll_outs: Vec::new() };
        if seed >= RICHER {
            case.enrich(rng, &names);
        }
        case
    }

    fn enrich(&mut self, rng: &mut ChaCha8Rng, names: &[&NodeName]) {
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

    pub fn run(&self) -> Outcome {
        let (mesh, secrets) = mesh_of(&self.sites, Policy::default());
        let mut world = World::new(mesh, &secrets, self.config.clone());
        let mut model = Model::default();
        let mut story = Vec::new();
        let mut moments: Vec<(u32, Moment<'_>)> = Vec::new();
        for planned in &self.faults {
            moments.push((planned.at_ms, Moment::Fault(planned, true)));
            moments.push((planned.at_ms + planned.for_ms, Moment::Fault(planned, false)));
        }
        moments.extend(self.roll_outs.iter().map(|r| (r.at_ms, Moment::RollOut(r))));
        // What ends at a time is done before what begins.
        moments.sort_by_key(|(at, what)| (*at, !matches!(what, Moment::Fault(_, false))));
        let mut files: Vec<(u32, NodeName, Arc<Mesh>)> = Vec::new();
        model.run(&mut world, PEACE);
        let mut so_far = 0;
        let mut moments = moments.into_iter().peekable();
        loop {
            files.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            let file = files.last().map(|(at, ..)| *at);
            let Some(at) = file.into_iter().chain(moments.peek().map(|(at, _)| *at)).min() else {
                break;
            };
            model.run(&mut world, Duration::from_millis(u64::from(at - so_far)));
            so_far = at;
            if file == Some(at) {
                let (_, name, mesh) = files.pop().expect("it is the next");
                story.push((world.now().mono, format!("*** {name} gets {:?}", mesh.generation)));
                world.deliver(&name, &mesh);
                continue;
            }
            let (_, moment) = moments.next().expect("it is the next");
            match moment {
                Moment::Fault(planned, on) => {
                    let begins = if on { "begins" } else { "ends" };
                    let what = format!("*** {} {:?} {begins}", planned.node, planned.fault);
                    story.push((world.now().mono, what));
                    world.fault(&planned.node, &planned.fault, on);
                }
                Moment::RollOut(r) => {
                    story.push((world.now().mono, format!("*** {:?}", r.change)));
                    let last = r.late_ms.values().max().copied().unwrap_or(0);
                    let last = Duration::from_millis(last.into());
                    let Some(mesh) = world.change_mesh(&r.change, last) else { continue };
                    files.extend(mesh.nodes.keys().map(|n| {
                        (at + r.late_ms.get(n).copied().unwrap_or(0), n.clone(), mesh.clone())
                    }));
                }
            }
        }
        // Faults of one kind may have overlapped on one node: now all is mended.
        for planned in &self.faults {
            world.fault(&planned.node, &planned.fault, false);
        }
        model.run(&mut world, SETTLE);
        model.check_convergence(&world, CALM);
        model.check_generations(&world);
        for line in &world.log {
            story.push((line.at, format!("{} {:?} {}", line.node, line.level, line.text)));
        }
        story.extend(model.notes.into_iter().map(|(at, what)| (at, format!("=== {what}"))));
        story.sort_by_key(|(at, _)| *at);
        let line = |(at, text): (Instant, String)| format!("{:10.3} {text}", at.0 as f64 / 1e6);
        Outcome {
            violations: model.violations,
            digest: world.input_digest(),
            story: story.into_iter().map(line).collect(),
        }
    }

    /// The smallest case found that fails in the same way.
    pub fn shrink(&self, kind: &str) -> Self {
        let mut best = self.clone();
        let mut runs = 0;
        loop {
            let found = best.smaller().into_iter().find(|case| {
                runs += 1;
                runs <= MAX_SHRINKS && case.run().kind() == Some(kind)
            });
            match found {
                Some(case) => best = case,
                None => return best,
            }
        }
    }

    /// Simpler cases, the simplest first.
    fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for n in 0..self.faults.len() {
            let mut case = self.clone();
            case.faults.remove(n);
            all.push(case);
        }
        for n in 0..self.roll_outs.len() {
            let mut case = self.clone();
            case.roll_outs.remove(n);
            all.push(case);
            if !self.roll_outs[n].late_ms.is_empty() {
                let mut case = self.clone();
                case.roll_outs[n].late_ms.clear();
                all.push(case);
            }
        }
        let lan = WorldConfig::default().lan;
        if self.config.lan != lan {
            all.push(Self { config: WorldConfig { lan, ..self.config.clone() }, ..self.clone() });
        }
        let plain = Link::of(Duration::from_millis(10));
        if self.config.wan != plain {
            all.push(Self {
                config: WorldConfig { wan: plain, ..self.config.clone() },
                ..self.clone()
            });
            let wan = Link { loss: Loss::NONE, ..self.config.wan };
            if wan != self.config.wan {
                all.push(Self {
                    config: WorldConfig { wan, ..self.config.clone() },
                    ..self.clone()
                });
            }
        }
        for n in 0..self.faults.len() {
            for_shorter(&self.faults[n], |planned| {
                let mut case = self.clone();
                case.faults[n] = planned;
                all.push(case);
            });
        }
        all
    }
}

fn for_shorter(planned: &Planned, mut with: impl FnMut(Planned)) {
    if planned.for_ms > 400 {
        with(Planned { for_ms: planned.for_ms / 2, ..planned.clone() });
    }
    if planned.at_ms > 400 {
        with(Planned { at_ms: planned.at_ms / 2, ..planned.clone() });
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
        11 => Fault::WanLoss(0.05 + 0.6 * draw(rng)),
        12 => Fault::LanCut,
        13 => Fault::OneWay(other),
        14 => Fault::DaemonKill,
        _ => Fault::DaemonPause,
    }
}

fn pick(rng: &mut ChaCha8Rng, of: usize) -> usize {
    rng.next_u32() as usize % of
}
