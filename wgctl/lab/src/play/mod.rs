//! Plays a scenario once in a fresh world: start up, measure, do the steps, wait for what is expected, compare.

mod dead;
mod gauges;
mod observe;
mod result;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::admin::{self, Event};
use crate::control;
use crate::machine::Machine;
use crate::meter::wall_micros;
use crate::report::RunResult;
use crate::sandbox::{LabDir, run_inside};
use crate::scenario::{Scenario, Step};
use crate::world::{World, wait_ready};
pub use gauges::Gauges;

const POLL: Duration = Duration::from_millis(100);
/// Both meters must have been steady for this long before anything is done to the mesh.
const STEADY: Duration = Duration::from_secs(1);
const STEADY_WITHIN: Duration = Duration::from_secs(30);
/// After the last step the measured window ends this long after everything expected has come.
const TAIL: Duration = Duration::from_millis(1500);
/// Waits this long for a failover's `verified` time, which is reported and not required.
const VERIFIED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Played {
    backend: String,
    result: RunResult,
}

/// Plays a scenario in fresh namespaces. Failures of the mesh are in the result.
///
/// # Errors
/// The lab itself fails.
pub fn once(
    scenario: &Scenario,
    leaderd: &Path,
    logs: Option<&Path>,
    record: bool,
) -> Result<(String, RunResult)> {
    let dir = LabDir::create(&format!("{}-{}", scenario.name, std::process::id()))?;
    let (scenario, leaderd, logs) = (scenario.clone(), leaderd.to_owned(), logs.map(PathBuf::from));
    let (code, out) = run_inside(&dir, move |dir, mut pipe| {
        let mut session = Session::start(&scenario, dir, leaderd, record)?;
        let machine = Machine::watch();
        let played = session.play(&machine);
        let mut result = played.unwrap_or_else(|e| RunResult::broken(format!("{e:#}")));
        result.machine = machine.take();
        // It belongs to the reason why a run failed.
        if !result.passed() && result.machine.starved() {
            result.why = format!("{}; {}", result.why, result.machine);
        }
        if let Some(logs) = logs {
            if record {
                // A daemon that stops ends its recording.
                session.world.stop_daemons()?;
            }
            session.world.save_logs(&logs)?;
        }
        let played = Played { backend: session.backend(), result };
        pipe.write_all(&serde_json::to_vec(&played)?)?;
        Ok(0)
    })?;
    if code != 0 {
        bail!("the lab ended with code {code}");
    }
    let played: Played = serde_json::from_slice(&out).context("the lab gave no result")?;
    Ok((played.backend, played.result))
}

/// A world while a scenario is played in it.
#[derive(Debug)]
pub struct Session {
    pub world: Arc<World>,
    /// Index of the location under test.
    tested: usize,
    /// By location and number.
    events: BTreeMap<(String, u64), Event>,
    /// Events up to these numbers were there before the measurement.
    seen_before: BTreeMap<String, u64>,
    /// Node of the latest fault.
    faulty: Option<usize>,
    /// Where each step was done, by its number.
    done_on: BTreeMap<usize, usize>,
    /// Wall clock of the step that times count from, in microseconds.
    injected: Option<u64>,
    backend: Option<String>,
    /// Who led each location before.
    leaders_before: BTreeMap<String, String>,
}

impl Session {
    /// `record`: every daemon records itself.
    pub fn start(
        scenario: &Scenario,
        dir: &LabDir,
        leaderd: PathBuf,
        record: bool,
    ) -> Result<Self> {
        let mut world = World::build(scenario, dir, Some(leaderd))?;
        world.record = record;
        let world = Arc::new(world);
        let listener = UnixListener::bind(dir.control_socket()).context("control socket")?;
        let server = Arc::clone(&world);
        std::thread::spawn(move || control::serve(listener, server));
        let tested = world.topology.location(&scenario.location)?;
        Ok(Self {
            world,
            tested,
            events: BTreeMap::new(),
            seen_before: BTreeMap::new(),
            faulty: None,
            done_on: BTreeMap::new(),
            injected: None,
            backend: None,
            leaders_before: BTreeMap::new(),
        })
    }

    fn backend(&self) -> String {
        self.backend.clone().unwrap_or_default()
    }

    fn play(&mut self, machine: &Machine) -> Result<RunResult> {
        if let Some(words) = self.world.scenario.expect.dead.clone() {
            return self.play_dead(&words);
        }
        let meters = self.settle()?;
        // The time to start up is not measured.
        machine.take();
        let before = meters.account();
        let since = wall_micros();
        let start = Instant::now();
        let steps = self.world.scenario.steps.clone();
        for step in &steps {
            while start.elapsed() < step.at.0 {
                std::thread::sleep(POLL.min(step.at.0.saturating_sub(start.elapsed())));
                self.observe();
            }
            self.step(step)?;
        }
        let until = self.await_outcome(&meters)?;
        self.in_flight();
        self.observe();
        Ok(self.result(&meters, &before, since, until))
    }

    /// Starts daemons and meters, and waits until everything works.
    pub fn settle(&mut self) -> Result<Gauges> {
        let started = Instant::now();
        self.world.start_daemons()?;
        wait_ready(&self.world)?;
        eprintln!("  ready after {:.1} s", started.elapsed().as_secs_f64());
        let meters = self.start_meters()?;
        let deadline = Instant::now() + STEADY_WITHIN;
        loop {
            std::thread::sleep(STEADY + 2 * self.world.scenario.wan.rtt.0);
            self.in_flight();
            if self.steady(&meters, STEADY) {
                break;
            }
            if Instant::now() > deadline {
                bail!("the meters never ran steadily: {}", meters.losses());
            }
        }
        self.remember();
        Ok(meters)
    }

    pub fn start_meters(&self) -> Result<Gauges> {
        Gauges::start(&self.world)
    }

    /// Does a step, and records when.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let before = self.done_on.get(&step.number).copied().filter(|_| step.ends);
        let node = match (before, step.node.as_deref()) {
            (None, Some(name)) => Some(self.resolve(name)?),
            (before, _) => before,
        };
        if let (Some(node), false) = (node, step.ends) {
            self.done_on.insert(step.number, node);
        }
        let on =
            node.map_or_else(String::new, |n| format!(" on {}", self.world.nodes[n].node.name));
        let at = wall_micros();
        if let Some(wan) = &step.wan {
            self.world.wan.set(wan);
            eprintln!("  WAN: rtt {:?}, loss {}", wan.rtt.0, wan.loss);
        } else if let Some(fault) = &step.fault {
            let n = node.with_context(|| format!("fault {fault} needs a node"))?;
            if step.off {
                self.world.undo(n, fault)?;
            } else {
                self.faulty = Some(n);
                self.world.inject(n, fault, step.arg.as_deref())?;
            }
            eprintln!(
                "  {}{fault} {}{on}",
                if step.off { "undone: " } else { "" },
                step.arg.as_deref().unwrap_or("")
            );
        } else if let Some(commands) = &step.run {
            let n = node.context("a step with run needs a node")?;
            if !step.ends {
                self.faulty = Some(n);
            }
            eprintln!("  {}{on}", commands.trim());
            self.world.run_on(n, commands)?;
        } else if let Some(command) = &step.command {
            eprintln!("  {command}{on}");
            self.command(command, node)?;
        }
        if self.injected.is_none() || step.inject {
            self.injected = Some(at);
        }
        Ok(())
    }

    /// An operator's command, sent to a daemon of the location under test that runs.
    fn command(&self, command: &str, node: Option<usize>) -> Result<()> {
        let location = &self.world.scenario.location;
        let name = || {
            node.map(|n| self.world.nodes[n].node.name.clone()).context("the command needs a node")
        };
        let body = match command {
            "promote" => json!({"promote": {"node": name()?, "force": false}}),
            "drain" => json!({"drain": {"node": name()?}}),
            "undrain" => json!({"undrain": {"node": name()?}}),
            "freeze" => json!({"freeze": {"location": location, "duration": null}}),
            "unfreeze" => json!({"unfreeze": {"location": location}}),
            _ => bail!("no command {command:?}"),
        };
        let asked = self
            .world
            .nodes_in(self.tested)
            .find(|n| self.world.status(*n).is_ok())
            .context("no daemon of the location runs")?;
        admin::command(&self.world.nodes[asked].admin(), &body)
            .with_context(|| format!("{command} was refused"))
    }

    /// Resolves a role such as `@leader`, or a name.
    fn resolve(&self, node: &str) -> Result<usize> {
        let Some(role) = node.strip_prefix('@') else { return self.world.topology.node(node) };
        if role == "faulty" {
            return self.faulty.context("no fault was injected yet");
        }
        let location = &self.world.scenario.location;
        let status =
            self.world.status_in(self.tested).context("no daemon of the location answers")?;
        let seen = status.location(location).context("location unknown")?;
        let leader = seen.leaders.first().cloned();
        let name = match role {
            "leader" => leader,
            "standby" => {
                let mut all = self.world.nodes_in(self.tested).map(|n| &self.world.nodes[n].node);
                all.find(|n| n.slot.is_some() && Some(&n.name) != leader.as_ref())
                    .map(|n| n.name.clone())
            }
            "raft-leader" => seen.raft_leader.clone(),
            _ => bail!("no role {node:?}"),
        };
        self.world.topology.node(&name.with_context(|| format!("no node is {node} now"))?)
    }

    /// Waits as long as packets may be in flight.
    fn in_flight(&self) {
        let wan = &self.world.scenario.wan;
        std::thread::sleep(wan.rtt.0 / 2 + wan.jitter.0 + Duration::from_millis(150));
    }
}
