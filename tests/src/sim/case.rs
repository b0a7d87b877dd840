//! One whole run: what is broken and when, its outcome, and how a run that fails is made small.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::time::Instant;
use serde::{Deserialize, Serialize};

use super::meshes::{Site, mesh_of};
use super::model::{Model, Unkept};
use super::rollout::RollOut;
use super::{Fault, Link, Loss, World, WorldConfig};

/// Nothing is broken before this, so that the first decisions are undisturbed.
const START_UP: Duration = Duration::from_secs(15);
/// Time to converge after the last fault ended.
const CONVERGE_WITHIN: Duration = Duration::from_secs(45);
/// At the end of that no leader may have changed for this long.
const CALM: Duration = Duration::from_secs(10);
/// Making a failure small may take this many runs.
const MAX_SHRINKS: u32 = 200;

/// One whole run, as a file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub sites: Vec<Site>,
    pub config: WorldConfig,
    pub faults: Vec<PlannedFault>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roll_outs: Vec<RollOut>,
}

/// A fault, when it comes and how long it stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedFault {
    pub at_ms: u32,
    pub for_ms: u32,
    pub node: NodeName,
    pub fault: Fault,
}

/// Something that a case does to the world; for a fault, whether it begins.
#[derive(Debug)]
enum Step<'a> {
    Fault(&'a PlannedFault, bool),
    RollOut(&'a RollOut),
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violations: Vec<String>,
    /// Broken promises to pairs of workloads.
    pub unkept: Unkept,
    /// Number and hash of all inputs.
    pub digest: (u64, u64),
    /// What happened, in order: `***` faults that begin and end, `===` what the model knows, all else the daemons' logs.
    pub story: Vec<String>,
}

impl Outcome {
    /// Returns the kind of the first violation.
    pub fn kind(&self) -> Option<&str> {
        self.violations.first().and_then(|v| v.split(':').next())
    }
}

impl Case {
    /// Runs the case. A core that panics breaks a promise too.
    pub fn run(&self) -> Outcome {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.play())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let what = format!("panic: {}", text.unwrap_or_default());
            let (violations, story) = (vec![what.clone()], vec![what]);
            Outcome { violations, unkept: Unkept::default(), digest: (0, 0), story }
        })
    }

    fn play(&self) -> Outcome {
        let (mesh, secrets) = mesh_of(&self.sites, Policy::default());
        let mut world = World::new(mesh, &secrets, self.config.clone());
        let mut model = Model::default();
        let mut story = Vec::new();
        let mut steps: Vec<(u32, Step<'_>)> = Vec::new();
        for planned in &self.faults {
            steps.push((planned.at_ms, Step::Fault(planned, true)));
            steps.push((planned.at_ms + planned.for_ms, Step::Fault(planned, false)));
        }
        steps.extend(self.roll_outs.iter().map(|r| (r.at_ms, Step::RollOut(r))));
        // At the same time, what ends comes before what begins.
        steps.sort_by_key(|(at, what)| (*at, !matches!(what, Step::Fault(_, false))));
        let mut files: Vec<(u32, NodeName, Arc<Mesh>)> = Vec::new();
        model.run(&mut world, START_UP);
        let mut so_far = 0;
        let mut steps = steps.into_iter().peekable();
        loop {
            files.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            let file = files.last().map(|(at, ..)| *at);
            let Some(at) = file.into_iter().chain(steps.peek().map(|(at, _)| *at)).min() else {
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
            let (_, step) = steps.next().expect("it is the next");
            match step {
                Step::Fault(planned, on) => {
                    let begins = if on { "begins" } else { "ends" };
                    let what = format!("*** {} {:?} {begins}", planned.node, planned.fault);
                    story.push((world.now().mono, what));
                    world.fault(&planned.node, &planned.fault, on);
                }
                Step::RollOut(r) => {
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
        // Faults of one kind may have overlapped on one node: now all end.
        for planned in &self.faults {
            world.fault(&planned.node, &planned.fault, false);
        }
        model.run(&mut world, CONVERGE_WITHIN);
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
            unkept: model.unkept,
            digest: world.input_digest(),
            story: story.into_iter().map(line).collect(),
        }
    }

    /// Returns the smallest case found that fails in the same way.
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

    /// Returns simpler cases, the simplest first.
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

fn for_shorter(planned: &PlannedFault, mut with: impl FnMut(PlannedFault)) {
    if planned.for_ms > 400 {
        with(PlannedFault { for_ms: planned.for_ms / 2, ..planned.clone() });
    }
    if planned.at_ms > 400 {
        with(PlannedFault { at_ms: planned.at_ms / 2, ..planned.clone() });
    }
}
