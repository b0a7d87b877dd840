//! Plays cases with one system in a fresh world, one after another, until one of them has changed it.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use wgctl_lab::{
    LabDir, Meter, Meters, System, TICK, Users, WanSpec, World, longest_outage, run_inside_as,
    wall_micros,
};

use ::tests::lab::counters::Cost;
use ::tests::lab::flows::{Blackout, TRANSIT, steady, steady_within};
use ::tests::lab::gateways::{GatewayChange, GatewayWatch, count_moves};

use super::cases::{Case, Deed, scenario};
use super::stalls::Stalls;
use super::systems::Contender;

const POLL: Duration = Duration::from_millis(100);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The meters must be steady within this time before a case, ...
const STEADY_WITHIN: Duration = Duration::from_secs(30);
/// ... and within this time after it, for another case in the same world.
const MENDED_WITHIN: Duration = Duration::from_secs(8);
/// A case ends this long after traffic flows again by another way, unless it is played to the end.
const CALM: Duration = Duration::from_secs(2);
/// More packets than are in flight at any time: if this many are missing, they are lost.
const BAD: u64 = 200;

/// What one case did to one system, once. Milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub who: Contender,
    pub case: Case,
    /// Until traffic first left the gateway in question, by either way. `None`: it never did.
    pub moved: Option<f64>,
    /// New flows, established flow.
    pub blackout: [Blackout; 2],
    /// New flows, established flow; both directions.
    pub lost: [u64; 2],
    pub sent: [u64; 2],
    /// Times that traffic left a gateway that nothing was wrong with.
    pub wrong_failovers: u64,
    /// How long it was watched.
    pub watched: f64,
    /// The longest that a thread of the benchmark was kept waiting for a processor.
    pub stall: f64,
}

/// What a system costs while nothing happens and no meter runs, of the whole mesh.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    pub who: Contender,
    /// Packets a second.
    pub wan: f64,
    pub lan: f64,
    /// Percent of one core.
    pub daemons: f64,
    pub tunnels: f64,
}

/// What came of one world.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Played {
    pub idle: Option<Idle>,
    pub outcomes: Vec<Outcome>,
}

/// One world: at least the first of these cases is played in it, unless there is none. `idle`: how long to measure that first.
pub fn world(
    who: Contender,
    run: u32,
    cases: &[Case],
    idle: Option<Duration>,
    leaderd: &Path,
    logs: Option<&Path>,
) -> Result<Played> {
    let dir = LabDir::create(&format!("peers-{}-{}", who.key(), std::process::id()))?;
    let (cases, leaderd, logs) = (cases.to_vec(), leaderd.to_owned(), logs.map(Path::to_owned));
    let (code, out) = run_inside_as(Users::Hosts, &dir, move |dir, mut pipe| {
        let leaderd = (who == Contender::Leaderd).then_some(leaderd);
        let world = Arc::new(World::build(&scenario(128)?, dir, leaderd)?);
        let mut player = Player { who, system: who.system(run), world };
        let played = player.play(&cases, idle);
        if let Some(logs) = logs {
            player.save_logs(&logs)?;
        }
        let played = played?;
        pipe.write_all(&serde_json::to_vec(&played)?)?;
        Ok(0)
    })?;
    if code != 0 {
        bail!("{}: the lab ended with code {code}", who.key());
    }
    serde_json::from_slice(&out).context("the lab gave no result")
}

struct Player {
    who: Contender,
    system: Box<dyn System>,
    world: Arc<World>,
}

impl Player {
    fn play(&mut self, cases: &[Case], idle: Option<Duration>) -> Result<Played> {
        self.system.start(&self.world).with_context(|| self.who.name())?;
        let deadline = Instant::now() + READY_WITHIN;
        while let Some(why) = self.system.not_ready(&self.world) {
            if Instant::now() > deadline {
                bail!("{} is not ready: {why}", self.who.name());
            }
            std::thread::sleep(POLL);
        }
        let mut played = Played::default();
        if let Some(time) = idle {
            // What happens once, at the start, is over.
            std::thread::sleep(Duration::from_secs(3));
            played.idle = Some(self.idle(time)?);
        }
        let gateways = GatewayWatch::start(&self.world, TICK)?;
        let stalls = Stalls::watch();
        for case in cases {
            let meters = self.meters(*case)?;
            if !steady_within(&meters, STEADY_WITHIN) {
                let now = wall_micros();
                let lost = [Meter::NewFlows, Meter::Established].map(|m| meters.tally(m, 0, now));
                if played.outcomes.is_empty() {
                    bail!("{}: the meters never ran steadily: {lost:?}", self.who.name());
                }
                break;
            }
            std::thread::sleep(case.peace());
            let (outcome, undo) = self.case(*case, &meters, &gateways, &stalls)?;
            eprintln!("  {}", outcome.line());
            let stayed = outcome.moved.is_none() && outcome.wrong_failovers == 0;
            played.outcomes.push(outcome);
            if !(stayed && undo.is_some_and(|fault| self.undo(fault).is_ok())) {
                break;
            }
            if !steady_within(&meters, MENDED_WITHIN) {
                break;
            }
        }
        Ok(played)
    }

    fn idle(&self, time: Duration) -> Result<Idle> {
        let (start, before) = (Instant::now(), Cost::of(&self.world)?);
        std::thread::sleep(time);
        let cost = Cost::of(&self.world)?.since(before);
        let seconds = start.elapsed().as_secs_f64();
        let percent = |nanoseconds: u64| nanoseconds as f64 / 1e9 / seconds * 100.0;
        Ok(Idle {
            who: self.who,
            wan: cost.wan as f64 / seconds,
            lan: cost.lan as f64 / seconds,
            daemons: percent(cost.daemons),
            tunnels: percent(cost.tunnels),
        })
    }

    fn meters(&self, case: Case) -> Result<Meters> {
        let (from, to) = self.world.topology.metered(&self.world.scenario)?;
        let (a, b) = (&self.world.nodes[from], &self.world.nodes[to]);
        let (a, b) = ((&a.pod, a.pod_address(false)), (&b.pod, b.pod_address(false)));
        Meters::start(a, b, case.size(), TICK)
    }

    /// Plays a case. Also the fault that can be undone, if there is one.
    fn case(
        &mut self,
        case: Case,
        meters: &Meters,
        gateways: &GatewayWatch,
        stalls: &Stalls,
    ) -> Result<(Outcome, Option<(usize, &'static str)>)> {
        let tested = self.world.topology.location(&self.world.scenario.location)?;
        let target = gateways.leader(tested).context("no gateway carries the traffic")?;
        let others = (0..self.world.nodes.len()).filter(|n| {
            let node = &self.world.nodes[*n].node;
            node.location == tested && node.slot.is_some() && *n != target
        });
        let other = others.min().context("there is no other gateway")?;
        stalls.longest();
        let (start, since) = (Instant::now(), wall_micros());
        let mut undo = None;
        match case.deed() {
            Deed::Fault(name, arg) => {
                self.world.inject(target, name, arg)?;
                undo = (case != Case::NodeCrash).then_some((target, name));
            }
            Deed::Everywhere(loss) => {
                let spec = WanSpec { loss, ..self.world.scenario.wan.clone() };
                self.world.wan.set(&spec);
            }
            Deed::HandOver => self.system.hand_over(&self.world, target, other)?,
        }
        let left = |c: &GatewayChange| c.from == target && c.location == tested;
        loop {
            std::thread::sleep(POLL);
            let moved = gateways.changes_since(since).iter().any(left);
            // Mended in its place: it was bad, and is not any more.
            let was_bad = || {
                let all = [Meter::NewFlows, Meter::Established];
                all.iter().any(|m| meters.tally(*m, since, u64::MAX).lost > BAD)
            };
            let calm = !case.to_the_end()
                && start.elapsed() >= CALM + TRANSIT
                && (moved || was_bad())
                && steady(meters, CALM);
            if calm || start.elapsed() >= case.window(self.who) {
                break;
            }
        }
        let until = wall_micros();
        std::thread::sleep(TRANSIT);
        let changes = gateways.changes_since(since);
        let first = changes.iter().filter(|c| left(c)).map(|c| c.at).min();
        let wrong = changes.iter().filter(|c| case.must_not_move() || !left(c));
        let outage = |m: Meter| {
            let both = meters.streams(m).map(|s| longest_outage(&s, since, until));
            let ms = both.iter().map(|o| o.length).max().unwrap_or(0) as f64 / 1e3;
            Blackout { ms, unfinished: both.iter().any(|o| o.unfinished) }
        };
        let all = [Meter::NewFlows, Meter::Established];
        let tallies = all.map(|m| meters.tally(m, since, until));
        let outcome = Outcome {
            who: self.who,
            case,
            moved: first.map(|at| (at - since) as f64 / 1e3),
            blackout: all.map(outage),
            lost: tallies.map(|t| t.lost),
            sent: tallies.map(|t| t.sent),
            wrong_failovers: count_moves(wrong),
            watched: (until - since) as f64 / 1e3,
            stall: stalls.longest(),
        };
        Ok((outcome, undo))
    }

    /// What the programs of each node wrote.
    fn save_logs(&self, to: &Path) -> Result<()> {
        for n in &self.world.nodes {
            let to = to.join(format!("{}-{}", self.who.key(), n.node.name));
            std::fs::create_dir_all(&to)?;
            for entry in std::fs::read_dir(&n.dir)?.flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().ends_with(".log") {
                    std::fs::copy(entry.path(), to.join(name))?;
                }
            }
            // FRR's are in the node's own `/run`.
            for daemon in ["bgpd", "bfdd", "zebra"] {
                if let Ok(text) = n.ns.output("cat", &[&format!("/run/frr/{daemon}.log")]) {
                    std::fs::write(to.join(format!("{daemon}.log")), text)?;
                }
            }
        }
        Ok(())
    }

    fn undo(&self, (node, fault): (usize, &str)) -> Result<()> {
        self.world.undo(node, fault)
    }
}

impl Outcome {
    /// Moved away, or mended where it was.
    pub fn recovered(&self) -> bool {
        self.blackout.iter().all(|b| !b.unfinished)
    }

    fn line(&self) -> String {
        let [new, old] = self
            .blackout
            .map(|b| format!("{:.0}{} ms", b.ms, if b.unfinished { ", not ended" } else { "" }));
        format!(
            "{:<9} {:<16} moved {:<9} blackout new {new}; old {old}; lost {}/{} new, {}/{} old; wrong failovers {}; {:.1} s; stall {:.0} ms",
            self.who.key(),
            self.case.key(),
            self.moved.map_or_else(|| "never".into(), |ms| format!("{ms:.0} ms")),
            self.lost[0],
            self.sent[0],
            self.lost[1],
            self.sent[1],
            self.wrong_failovers,
            self.watched / 1e3,
            self.stall,
        )
    }
}
