//! A stand-in of Kilo's agent on every node, against the real API server. **Not Kilo**, which could not be had (see [`super`]).
//!
//! As Kilo's agent does, it reads Nodes by a watch, through its node's own connection to the API server; every 30 s it checks in,
//! writing its annotations with a merge patch, and looks at the clock, so an old check-in of another is noticed then and not before;
//! a change is applied 20 to 50 ms after it was made, as was measured with real Kilo. What follows from annotations is [`rules`]'.
//! A new set of peers replaces the old one whole (`wg setconf`, as wgctrl's `ReplacePeers`), so sessions are lost.
//!
//! kilo0 is down where a node does not lead. The kernel closes its socket then, so the first handshake after a change may meet none, and
//! traffic waits 5 s for WireGuard's next try, as was measured with real Kilo in most moves. `wireguard-go` keeps its socket open, so
//! this does not show with it: `make test-kilo-kernel` has the kernel's.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wgctl_lab::{Node, World};

use super::api::{Api, Change};
use super::cluster::{NODES, annotate};
use super::control_plane::{ControlPlane, User};
use super::device::Device;
use super::rules::{self, CHECK_IN, KiloNode, PORT, names};

/// Before an API server that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

type Nodes = Mutex<BTreeMap<String, KiloNode>>;

/// All agents, until it is dropped.
#[derive(Debug)]
pub struct StandIn {
    stop: Arc<AtomicBool>,
    /// Changes that were applied, over all nodes.
    applied: Arc<Mutex<Vec<Applied>>>,
}

/// A node was reprogrammed.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Microseconds since the Unix epoch.
    pub at: u64,
    pub node: usize,
    pub leads: bool,
}

impl StandIn {
    /// An agent on every node.
    pub fn start(world: &Arc<World>, control: &ControlPlane) -> Result<Self> {
        let this = Self { stop: Arc::default(), applied: Arc::default() };
        for (i, n) in world.nodes.iter().enumerate() {
            let (device, key) = Device::create(n)?;
            // Its own connections: a shared one would be of another node's network.
            let api = control.api(User::Kilo)?;
            let nodes = Arc::new(Nodes::default());
            let (sender, changes) = channel();
            let agent = Agent {
                world: Arc::clone(world),
                node: i,
                key,
                api: api.clone(),
                nodes: Arc::clone(&nodes),
                device,
                stop: Arc::clone(&this.stop),
                applied: Arc::clone(&this.applied),
            };
            let (ns, stop) = (n.ns.net_handle()?, Arc::clone(&this.stop));
            spawn("kilo-watch", move || {
                if ns.enter().is_ok() {
                    watch(&api, &nodes, &sender, &stop);
                }
            })?;
            let ns = n.ns.net_handle()?;
            spawn("kilo", move || {
                if ns.enter().is_ok() {
                    agent.run(&changes);
                }
            })?;
        }
        Ok(this)
    }

    pub fn applied_since(&self, at: u64) -> Vec<Applied> {
        let all = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|a| a.at >= at).cloned().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Threads see it when they next wake; the lab's end does not wait for them.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.context("thread").map(drop)
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn watch(api: &Api, nodes: &Nodes, changed: &Sender<()>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let followed = api.follow(NODES, |change| {
            let mut nodes = nodes.lock().unwrap_or_else(PoisonError::into_inner);
            match change {
                Change::All(all) => {
                    *nodes = all.iter().map(KiloNode::of).map(|n| (n.name.clone(), n)).collect();
                }
                Change::Set(node) => {
                    let node = KiloNode::of(&node);
                    nodes.insert(node.name.clone(), node);
                }
                Change::Gone(node) => {
                    nodes.remove(node["metadata"]["name"].as_str().unwrap_or_default());
                }
            }
            match changed.send(()).is_err() || stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        // An API server that is away is an everyday matter, and what was seen last goes on being true.
        if followed.is_err() {
            std::thread::sleep(AGAIN);
        }
    }
}

struct Agent {
    world: Arc<World>,
    node: usize,
    key: String,
    api: Api,
    nodes: Arc<Nodes>,
    device: Device,
    stop: Arc<AtomicBool>,
    applied: Arc<Mutex<Vec<Applied>>>,
}

impl Agent {
    fn run(mut self, changes: &Receiver<()>) {
        // Another delay each time, as in Kilo: which end of a new tunnel is there first is chance.
        let mut change = 0;
        self.check_in();
        // Timers stand anywhere; the first period is a part of one.
        let mut timer = Instant::now() + CHECK_IN.mul_f64(rules::phase(self.node, 0));
        while !self.stop.load(Ordering::Relaxed) {
            match changes.recv_timeout(timer.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    std::thread::sleep(rules::slowness(self.node, change));
                    change += 1;
                    while changes.try_recv().is_ok() {}
                }
                Err(RecvTimeoutError::Timeout) => {
                    timer += CHECK_IN;
                    self.check_in();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.apply();
        }
    }

    /// Writes the node's annotations. An API server that is away is asked again next time.
    fn check_in(&self) {
        let node = &self.world.nodes[self.node].node;
        if let Err(e) = annotate(&self.api, &node.name, self.annotations(node)) {
            eprintln!("  {}: Kilo's stand-in cannot check in: {e:#}", node.name);
        }
    }

    fn annotations(&self, node: &Node) -> Value {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let tunnel = rules::wanted(&nodes, &node.name, now()).and_then(|w| w.tunnel);
        json!({
            names::ENDPOINT: format!("{}:{PORT}", node.wan().unwrap_or(node.lan())),
            names::INTERNAL_IP: format!("{}/24", node.lan()),
            names::KEY: self.key,
            names::LAST_SEEN: now().to_string(),
            names::WIREGUARD_IP: tunnel.map_or(String::new(), |t| format!("{t}/16")),
            names::GRANULARITY: "location",
        })
    }

    fn apply(&mut self) {
        let n = &self.world.nodes[self.node];
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(wanted) = rules::wanted(&nodes, &n.node.name, now()) else { return };
        match self.device.apply(n, &wanted) {
            Ok(false) => {}
            Ok(true) => {
                let at = wgctl_lab::wall_micros();
                let leads = wanted.tunnel.is_some();
                let mut all = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Applied { at, node: self.node, leads });
            }
            Err(e) => eprintln!("  {}: Kilo's stand-in: {e:#}", n.node.name),
        }
    }
}
