//! A failover's whole way through one daemon: a decision is heard, the core asks for another network, the network thread
//! programs it, and the core hears that it is in the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use leaderd::counters::Counters;
use leaderd::network::{self, KernelReconciler};
use leaderd::secrets::{Keys, Secret};
use leaderd_core::fault::Fault;
use leaderd_core::ids::{Epoch, NodeName, Slot};
use leaderd_core::io::{Effect, Input, LanDevice};
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::state::Decision;
use leaderd_core::time::{Instant as Mono, Now, WallTime};
use leaderd_core::wire::Frame;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use wgctl::net::{Kernel, Reconciler};
use wgctl::wireguard::PrivateKey;
use wgctl_plan::Network;

use super::{median, millis};
use ::tests::sim::meshes::{Site, mesh_of};

/// Failovers; the median is reported.
const MOVES: u64 = 21;
/// Between two of them: the kernel's news of the one is looked into before the next.
const PAUSE: Duration = Duration::from_millis(400);
/// New peers' endpoints may be held back for 1.5 s; then the network is quiet.
const SETTLE: Duration = Duration::from_secs(3);

/// Medians, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Took {
    /// From the decision to the wanted network.
    pub core: f64,
    /// From the decision to the kernel's acknowledgement, back in the daemon's loop.
    pub whole: f64,
}

/// Fails over a remote location with this many prefixes, again and again, in this network namespace.
pub async fn failovers(prefixes: u32) -> Result<Took> {
    let mut core = Core::new(prefixes)?;
    let keys = Keys { wireguard: Secret::new(core.secret), control: Secret::new([1; 32]) };
    let (programs, newest) = watch::channel(None);
    let (_checks, no_checks) = watch::channel(Vec::new());
    let (inputs, mut told) = mpsc::channel(64);
    let make = move || async move { KernelReconciler::open(&keys).await };
    let (silent, counters) = (watch::channel(Default::default()).0, Counters::default());
    let orders = network::Orders { programs: newest, checks: no_checks };
    network::start(make, orders, network::Outputs { inputs, silent, counters }).await?;
    let first = core.program().context("nothing is wanted at the start")?;
    programs.send_replace(Some(first));
    programmed(&mut told, 1).await?;
    tokio::time::sleep(SETTLE).await;
    let (mut cores, mut wholes) = (Vec::new(), Vec::new());
    for epoch in 1..=MOVES {
        while told.try_recv().is_ok() {}
        let began = Instant::now();
        let program = core.decide(epoch).context("the core asks for nothing")?;
        cores.push(millis(began.elapsed()));
        let revision = program.0;
        programs.send_replace(Some(program));
        programmed(&mut told, revision).await?;
        wholes.push(millis(began.elapsed()));
        tokio::time::sleep(PAUSE).await;
    }
    drop(programs);
    network::cleanup().await?;
    Ok(Took { core: median(&mut cores), whole: median(&mut wholes) })
}

/// The same this many times in one thread and without a pause, to count instructions.
pub async fn alone(prefixes: u32, times: u64) -> Result<()> {
    let mut core = Core::new(prefixes)?;
    let reconciler = Reconciler::new(Kernel::open()?, PrivateKey::from_bytes(core.secret));
    let mut reconciler = reconciler.yielding_for(Duration::ZERO);
    let (_, first) = core.program().context("nothing is wanted at the start")?;
    reconciler.program(*first).await?;
    for epoch in 1..=times {
        let (_, network) = core.decide(epoch).context("the core asks for nothing")?;
        let changes = reconciler.program(*network).await?;
        ensure!(changes.len() == 1, "a failover is one change: {:?}", changes);
    }
    reconciler.kernel().cleanup().await?;
    Ok(())
}

/// Instructions of this program for one failover, from the decision to the kernel's acknowledgement, by callgrind: what a busy machine
/// does not change. The kernel's own are not counted.
pub fn instructions(prefixes: u32) -> Result<f64> {
    const TIMES: [u64; 2] = [2, 42];
    let mut counts = [0.0; 2];
    for (count, times) in counts.iter_mut().zip(TIMES) {
        let out = Command::new("unshare")
            .args(["-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc", "valgrind"])
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe()?)
            .args(["inside", "failovers", &prefixes.to_string(), &times.to_string()])
            .output()
            .context("valgrind and unshare (util-linux)")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "counting instructions failed: {said}");
        let collected = said.lines().find_map(|line| line.split_once("Collected :"));
        *count = collected.context("valgrind gives no count")?.1.trim().parse()?;
    }
    Ok((counts[1] - counts[0]) / (TIMES[1] - TIMES[0]) as f64)
}

async fn programmed(told: &mut mpsc::Receiver<Input>, wanted: u64) -> Result<()> {
    while let Some(input) = told.recv().await {
        if let Input::Programmed { revision, error } = input {
            ensure!(error.is_none(), "not programmed: {error:?}");
            if revision == wanted {
                return Ok(());
            }
        }
    }
    anyhow::bail!("the network thread is gone")
}

/// The core of `home-0`, in a mesh with one other location of two candidates and this many prefixes.
#[derive(Debug)]
pub struct Core {
    node: Node,
    from: NodeName,
    pub secret: [u8; 32],
}

impl Core {
    pub fn new(prefixes: u32) -> Result<Self> {
        let sites = [Site::new("home", 2, 0), Site::new("cloud", 2, 0)];
        let (mesh, secrets) = mesh_of(&sites, Policy::default());
        let me: NodeName = "home-0".parse()?;
        let secret = secrets[&me];
        let config = NodeConfig {
            mesh: Arc::new(with_prefixes(mesh, prefixes)?),
            me,
            keys: ProbeKeys::new(secret),
            restored: Default::default(),
            seed: 1,
            resolved: Default::default(),
        };
        let mut node = Node::new(config, now(0))?;
        node.handle_input(now(0), Input::LanDevice(LanDevice::default()));
        Ok(Self { node, from: "cloud-1".parse()?, secret })
    }

    /// Returns the wanted network; the core's other effects are dropped.
    fn program(&mut self) -> Option<(u64, Box<Network>)> {
        let mut last = None;
        while let Some(effect) = self.node.poll_effect() {
            if let Effect::Program { revision, network } = effect {
                last = Some((revision, network));
            }
        }
        last
    }

    /// Hears that the other slot leads the other location.
    pub fn decide(&mut self, epoch: u64) -> Option<(u64, Box<Network>)> {
        let decision = Decision {
            location: "cloud".parse().expect("a name"),
            epoch: Epoch(epoch),
            leaders: vec![Slot((epoch % 2) as u8)],
            cause: Fault::NewFlow.into(),
            at: WallTime(0),
        };
        let frame = Box::new(Frame::Announce { decision, proof: Default::default(), event: None });
        self.node.handle_input(now(epoch), Input::Frame { from: self.from.clone(), frame });
        self.program()
    }
}

/// The core's time is not what is measured: it stands nearly still, so that no timer comes in between.
fn now(step: u64) -> Now {
    Now { mono: Mono(1_000_000 + step), wall: WallTime(1_700_000_000_000_000 + step) }
}

fn with_prefixes(mut mesh: Mesh, prefixes: u32) -> Result<Mesh> {
    let node =
        mesh.edit().nodes.get_mut(&"cloud-0".parse::<NodeName>()?).context("no such node")?;
    node.prefixes = (0..prefixes)
        .map(|n| Ok(Ipv4Net::new(Ipv4Addr::from(0x0a40_0000 + (n << 8)), 24)?.into()))
        .collect::<Result<_>>()?;
    node.probe_addresses = vec![IpAddr::V4(Ipv4Addr::new(10, 64, 0, 1))];
    Ok(mesh)
}
