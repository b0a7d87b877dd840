//! A cluster in the lab, built for one test and gone with it.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use wgctl_lab::{
    End, LabDir, Lane, Meter, Meters, Scenario, TICK, Tally, Users, World, longest_outage,
    run_inside_as, wall_micros,
};

use super::agents::Agents;
use super::api::Api;
use super::beside;
use super::cluster;
use super::control_plane::{ControlPlane, User};
use super::flannel;
use super::programs::Programs;
use crate::lab::flows::{Blackout, TRANSIT, steady_within};
use crate::lab::gateways::GatewayWatch;

/// Two locations of two gateways, which have a public endpoint, and a member, which has none. Meters run between the members.
pub const TWO_LOCATIONS: &str = "title = \"Kilo\"\nlocation = \"cloud\"\n[locations.onprem]\noverlay = \"flannel\"\ncandidates = 2\nmembers = 1\n\
     [locations.cloud]\noverlay = \"flannel\"\ncandidates = 2\nmembers = 1\n";
/// Bytes of the meters' packets.
const SIZE: u16 = 128;
/// What is metered besides the Pods, from the location that is not under test to the one that is and back.
const NODES: [&str; 3] = ["pods with nodes", "nodes with pods", "nodes with nodes"];
/// Time between two packets of these.
const NODES_EVERY: Duration = Duration::from_millis(20);
/// Until traffic flows without loss.
const FLOWS_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for anything in a test. Generous: the machine is shared.
pub const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// What a run may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time between two packets of each meter in each direction. A slow processor cannot send 4,000 packets a second.
    pub meter_every: Duration,
    /// How often Kilo's stand-in alone moves on request, one after the other.
    pub moves: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { meter_every: TICK, moves: 1 }
    }
}

impl Options {
    /// From arguments: `--meter-every=5ms`, `--moves=6`. Other arguments are ignored.
    pub fn of(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for arg in args {
            if let Some(time) = arg.strip_prefix("--meter-every=") {
                options.meter_every = humantime::parse_duration(time).context("--meter-every")?;
                ensure!(!options.meter_every.is_zero(), "a meter needs time between its packets");
            } else if let Some(count) = arg.strip_prefix("--moves=") {
                options.moves = count.parse().context("--moves")?;
                ensure!(options.moves > 0, "--moves=0 tests nothing");
            }
        }
        Ok(options)
    }

    /// Packets that a meter sends in this time, both directions added up.
    pub fn packets_in(&self, time: Duration) -> u64 {
        2 * (time.as_nanos() / self.meter_every.as_nanos()) as u64
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct Rig {
    pub options: Options,
    pub world: Arc<World>,
    pub control: ControlPlane,
    pub kilo: Agents,
    /// As administrator, from outside of all nodes.
    pub api: Api,
    pub programs: Programs,
}

/// Who runs beside Kilo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    Nobody,
    /// leaderd's chart is installed, and no daemon runs.
    Chart,
    Leaderd,
    /// leaderd only observes.
    Watching,
}

/// Builds it in a sandbox of its own and runs `test` there, whose line about what it saw comes back. Logs are kept in `logs`, which is
/// made anew. Must be called from a process with one thread.
pub fn in_lab(
    name: &str,
    beside: Beside,
    programs: &Programs,
    options: Options,
    logs: &Path,
    test: fn(&mut Rig) -> Result<String>,
) -> Result<String> {
    let dir = LabDir::create(&format!("kilo-{name}-{}", std::process::id()))?;
    let _ = std::fs::remove_dir_all(logs);
    std::fs::create_dir_all(logs).with_context(|| logs.display().to_string())?;
    let (code, out) = run_inside_as(Users::RootAlone, &dir, |dir, mut pipe| {
        let said = Rig::build(beside, programs, options, dir).and_then(|mut rig| {
            // A panic must not leave the sandbox: whoever called us runs in another process.
            let tried = std::panic::AssertUnwindSafe(|| test(&mut rig));
            let said = std::panic::catch_unwind(tried)
                .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see above")));
            rig.save_logs(logs)?;
            said
        });
        let said = said.map_err(|e| format!("{e:#}"));
        pipe.write_all(&serde_json::to_vec(&said)?)?;
        Ok(0)
    })?;
    ensure!(code == 0, "the lab ended with code {code}");
    let said: Result<String, String> = serde_json::from_slice(&out).context("no result")?;
    said.map_err(|why| anyhow::anyhow!("{why}\nlogs: {}", logs.display()))
}

impl Rig {
    fn build(beside: Beside, programs: &Programs, options: Options, dir: &LabDir) -> Result<Self> {
        let scenario = Scenario::parse("kilo", TWO_LOCATIONS)?;
        let daemons = matches!(beside, Beside::Leaderd | Beside::Watching);
        let leaderd = daemons.then(|| programs.leaderd.clone());
        let mut world = World::build(&scenario, dir, leaderd)?;
        world.manage()?;
        let control = ControlPlane::start(programs, &world.dir.join("cluster"))?;
        control.kubectl(&["apply", "-f", "-"], include_str!("kilo-rbac.yaml"))?;
        let api = control.api(User::Admin)?;
        cluster::create_nodes(&api, &world)?;
        flannel::set_up(&world)?;
        if beside != Beside::Nobody {
            let steering = if beside == Beside::Watching { "observe" } else { "kilo" };
            beside::prepare(&mut world, &control, programs, steering)?;
        }
        let world = Arc::new(world);
        let kilo = Agents::start(programs.kg.as_deref(), &world, &control)?;
        if daemons {
            world.start_daemons()?;
        }
        Ok(Self { options, world, control, kilo, api, programs: programs.clone() })
    }

    pub fn node(&self, name: &str) -> usize {
        self.world.topology.node(name).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Starts the meters between the members' workloads, and waits until next to nothing is lost.
    pub fn traffic(&self) -> Result<Traffic> {
        let (from, to) = self.world.topology.metered(&self.world.scenario)?;
        let (a, b) = (&self.world.nodes[from], &self.world.nodes[to]);
        let far = b.pod_address(false).to_string();
        wait_for("a ping from workload to workload", String::new, || {
            // One end begins: of two in the same moment each drops the other's handshake, and with steady traffic both ways they
            // try again in the same moment, every 5 s.
            Ok(a.pod.output("ping", &["-q", "-c", "1", "-W", "1", &far]).is_ok())
        })?;
        let lane = |n| Lane::new(n, 1 + NODES.len());
        let pods = [a, b].map(|n| End::of(&n.pod, n.pod_address(false)));
        let nodes = [a, b].map(|n| End::of(&n.ns, n.node.lan().into()));
        let ends = [[&pods[0], &nodes[1]], [&nodes[0], &pods[1]], [&nodes[0], &nodes[1]]];
        let every = NODES_EVERY.max(self.options.meter_every);
        let beside = ends.into_iter().enumerate();
        let beside = beside.map(|(i, ends)| Meters::start_in(lane(1 + i), ends, SIZE, every));
        let every = self.options.meter_every;
        let traffic = Traffic {
            meters: Meters::start_in(lane(0), [&pods[0], &pods[1]], SIZE, every)?,
            nodes: beside.collect::<Result<_>>()?,
            gateways: GatewayWatch::start(&self.world, self.options.meter_every)?,
        };
        traffic.wait_steady("at the start")?;
        Ok(traffic)
    }

    fn save_logs(&self, to: &Path) -> Result<()> {
        self.control.save_logs(to)?;
        let shown =
            "ip -br addr; ip rule; ip route show table all; wg show; bridge fdb; nft list ruleset";
        for n in &self.world.nodes {
            let text = n.ns.output("sh", &["-c", shown]).unwrap_or_else(|e| format!("{e:#}"));
            std::fs::write(to.join(format!("{}.network", n.node.name)), text)?;
        }
        let objects =
            self.control.kubectl(&["get", "nodes,locationpools,events", "-A", "-o", "yaml"], "");
        let nodes = || self.control.kubectl(&["get", "nodes", "-o", "yaml"], "");
        let text = objects.or_else(|_| nodes()).unwrap_or_else(|e| format!("{e:#}"));
        std::fs::write(to.join("objects.yaml"), text)?;
        self.kilo.save_logs(to)?;
        self.world.save_logs(to)
    }
}

/// Waits until it holds. The error says what did not, and `story`.
pub fn wait_for(
    what: &str,
    story: impl Fn() -> String,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds().with_context(|| what.to_owned())? {
        if Instant::now() > deadline {
            bail!("not within {LIMIT:?}: {what}; {}", story());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Running meters, and a watch on who carries what they send.
#[derive(Debug)]
pub struct Traffic {
    meters: Meters,
    /// In the order of [`NODES`].
    nodes: Vec<Meters>,
    pub gateways: GatewayWatch,
}

/// What the meters saw: new flows, established flow; the worse direction of a blackout, both directions of counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account {
    pub blackout: [Blackout; 2],
    pub lost: [u64; 2],
    pub sent: [u64; 2],
    /// The same two of nodes, added up.
    pub nodes: [Tally; 3],
}

impl Account {
    /// Of Pods and nodes.
    pub fn nothing_lost(&self) -> Result<()> {
        let nodes = self.nodes.iter().all(|t| t.lost == 0 && t.sent > 0);
        ensure!(self.lost == [0, 0] && nodes, "packets were lost: {self}");
        Ok(())
    }
}

impl Traffic {
    /// Waits until next to nothing is lost for a second.
    pub fn wait_steady(&self, when: &str) -> Result<()> {
        ensure!(
            steady_within(&self.meters, FLOWS_WITHIN),
            "traffic does not flow {when} within {FLOWS_WITHIN:?}"
        );
        Ok(())
    }

    /// New flows' packets that were lost since then, those under way left out.
    pub fn lost(&self, since: u64) -> u64 {
        let until = wall_micros().saturating_sub(TRANSIT.as_micros() as u64);
        self.meters.tally(Meter::NewFlows, since, until).lost
    }

    /// Of what was sent from `since` (microseconds since the Unix epoch) until now. Waits for what is under way.
    pub fn account(&self, since: u64) -> Account {
        let until = wall_micros();
        std::thread::sleep(TRANSIT);
        let all = [Meter::NewFlows, Meter::Established];
        let blackout = all.map(|m| {
            let both = self.meters.streams(m).map(|s| longest_outage(&s, since, until));
            let ms = both.iter().map(|o| o.length).max().unwrap_or(0) as f64 / 1e3;
            Blackout { ms, unfinished: both.iter().any(|o| o.unfinished) }
        });
        let tallies = all.map(|m| self.meters.tally(m, since, until));
        let mut nodes = [Tally::default(); 3];
        for (sum, meters) in nodes.iter_mut().zip(&self.nodes) {
            for t in all.map(|m| meters.tally(m, since, until)) {
                (sum.sent, sum.lost) = (sum.sent + t.sent, sum.lost + t.lost);
            }
        }
        Account { blackout, lost: tallies.map(|t| t.lost), sent: tallies.map(|t| t.sent), nodes }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in ["new flows", "established flow"].into_iter().enumerate() {
            let b = self.blackout[i];
            let end = if b.unfinished { ", not ended" } else { "" };
            let comma = if i > 0 { "; " } else { "" };
            let (lost, sent) = (self.lost[i], self.sent[i]);
            write!(f, "{comma}{name}: blackout {:.0} ms{end}, {lost} of {sent} lost", b.ms)?;
        }
        for (name, Tally { sent, lost }) in NODES.into_iter().zip(self.nodes) {
            write!(f, ", {name} {lost} of {sent}")?;
        }
        Ok(())
    }
}
