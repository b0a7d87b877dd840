//! A stand-in of Kilo's agent on every node, against the real API server. **Not Kilo**, which could not be had (see [`super`]); its source
//! was read, and what is played was checked against it (which file and commit: in [`rules`], and here).
//!
//! | what an agent does | read in |
//! |---|---|
//! | takes one Node after the other, as they are listed and as they change, and applies after each that is news; a check-in alone is none | `syncNodes`, `nodesAreEqual`, pkg/mesh/mesh.go at `4c62b206` |
//! | checks in, and looks at the clock, every 30 s since it started, so another's old check-in is noticed then or with other news | `Run`, `checkIn` |
//! | writes its annotations when its Node says otherwise; `endpoint` and `internal-ip` stay as they are found | `handleLocal`; `Set`, pkg/k8s/backend.go at `ffa0dcd7` |
//! | counts as ready itself only by check-ins that the API server took: cut off for 60 s it changes nothing any more | `checkIn`, `applyTopology` |
//! | replaces the peers of kilo0 whole where its configuration differs (`ReplacePeers`), so sessions are lost | `applyTopology`; pkg/wireguard/conf.go at `08eea4f3` |
//! | on SIGTERM removes its routes (kilo0 stays, with its peers), then its annotations but `leader` and `location` | `cleanUp`, mesh.go; `CleanUp`, backend.go; flags in cmd/kg/main.go at `01b8500c` |
//!
//! So an agent that starts on a leader drops the peers of kilo0 and takes them back one location after the other, also after a crash that
//! changed nothing; in which order Nodes are listed to it is by chance there, and here by name, another one first each time.
//!
//! A change is applied 20 to 50 ms after it was made, as was measured with real Kilo. Patches are merge patches here, strategic ones
//! there, and JSON's on SIGTERM: the same to annotations.
//!
//! kilo0 is down where a node does not lead. The kernel closes its socket then, so the first handshake after a change may meet none, and
//! traffic waits 5 s for WireGuard's next try, as was measured with real Kilo in most moves. `wireguard-go` keeps its socket open, so
//! this cannot show with it: `make test-kilo-kernel` has the kernel's. Real Kilo's change of leader takes longer than what is measured here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wgctl_lab::World;

use super::agents::{Applied, locked};
use super::api::{Api, Change};
use super::cluster::{NODES, annotate};
use super::control_plane::{ControlPlane, User};
use super::device::Device;
use super::rules::{self, CHECK_IN, KiloNode, PORT, names};

/// Wait before the next request to an API server that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// All agents, until it is dropped.
#[derive(Debug)]
pub struct StandIn {
    world: Arc<World>,
    /// Of each node, whether its agent runs or not.
    devices: Vec<Arc<Mutex<Device>>>,
    running: Mutex<BTreeMap<usize, Running>>,
    /// Changes that were applied, over all nodes.
    applied: Arc<Mutex<Vec<Applied>>>,
}

#[derive(Debug)]
struct Running {
    /// For the watch, which only sees it when it next hears something.
    stop: Arc<AtomicBool>,
    words: Sender<Word>,
    agent: JoinHandle<()>,
}

#[derive(Debug)]
enum Word {
    All(Vec<KiloNode>),
    Set(KiloNode),
    Gone(String),
    Kill,
    Terminate,
}

impl StandIn {
    /// An agent on every node.
    pub fn start(world: &Arc<World>, control: &ControlPlane) -> Result<Self> {
        let devices: Result<Vec<Device>> = world.nodes.iter().map(Device::create).collect();
        let this = Self {
            world: Arc::clone(world),
            devices: devices?.into_iter().map(|d| Arc::new(Mutex::new(d))).collect(),
            running: Mutex::default(),
            applied: Arc::default(),
        };
        for node in 0..world.nodes.len() {
            // Agents have nothing to do with each other: they started at some time before.
            this.run(node, control, CHECK_IN.mul_f64(rules::phase(node, 0)))?;
        }
        Ok(this)
    }

    /// Starts an agent where none runs.
    pub fn launch(&self, node: usize, control: &ControlPlane) -> Result<()> {
        locked(&self.devices[node]).restart();
        self.run(node, control, CHECK_IN)
    }

    fn run(&self, node: usize, control: &ControlPlane, first_timer: Duration) -> Result<()> {
        // Its own connections: a shared one would be of another node's network.
        let api = control.api(User::Kilo)?;
        let (words, heard) = channel();
        let agent = Agent {
            world: Arc::clone(&self.world),
            node,
            key: locked(&self.devices[node]).public.clone(),
            api: api.clone(),
            nodes: BTreeMap::new(),
            device: Arc::clone(&self.devices[node]),
            applied: Arc::clone(&self.applied),
            changes: 0,
        };
        let (ns, stop) =
            (self.world.nodes[node].ns.net_handle()?, Arc::new(AtomicBool::new(false)));
        let (to, stopped) = (words.clone(), Arc::clone(&stop));
        spawn("kilo-watch", move || {
            if ns.enter().is_ok() {
                watch(&api, &to, &stopped);
            }
        })?;
        let ns = self.world.nodes[node].ns.net_handle()?;
        let agent = spawn("kilo", move || {
            if ns.enter().is_ok() {
                agent.run(&heard, first_timer);
            }
        })?;
        locked(&self.running).insert(node, Running { stop, words, agent });
        Ok(())
    }

    /// The agent dies at once; the kernel stays as it is.
    pub fn kill(&self, node: usize) {
        self.end(node, Word::Kill);
    }

    /// SIGTERM: the agent cleans up and ends.
    pub fn terminate(&self, node: usize) {
        self.end(node, Word::Terminate);
    }

    fn end(&self, node: usize, how: Word) {
        let Some(running) = locked(&self.running).remove(&node) else { return };
        running.stop.store(true, Ordering::Relaxed);
        if running.words.send(how).is_ok() {
            let _ = running.agent.join();
        }
    }

    /// After a crash of the node: the device anew, and an agent.
    pub fn boot(&self, node: usize, control: &ControlPlane) -> Result<()> {
        self.kill(node);
        locked(&self.devices[node]).boot(&self.world.nodes[node])?;
        self.launch(node, control)
    }

    pub fn applied_since(&self, at: u64) -> Vec<Applied> {
        locked(&self.applied).iter().filter(|a| a.at >= at).cloned().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // The lab's end does not wait for them.
        for running in locked(&self.running).values() {
            running.stop.store(true, Ordering::Relaxed);
            let _ = running.words.send(Word::Kill);
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work).context("thread")
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn watch(api: &Api, to: &Sender<Word>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let followed = api.follow(NODES, |change| {
            let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().into();
            let word = match change {
                Change::All(all) => Word::All(all.iter().map(KiloNode::of).collect()),
                Change::Set(node) => Word::Set(KiloNode::of(&node)),
                Change::Gone(node) => Word::Gone(name(&node)),
            };
            match to.send(word).is_err() || stop.load(Ordering::Relaxed) {
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
    /// As of the last news of each; of its own, as it was written last.
    nodes: BTreeMap<String, KiloNode>,
    device: Arc<Mutex<Device>>,
    applied: Arc<Mutex<Vec<Applied>>>,
    /// Each has another delay: which end of a new tunnel is there first is chance.
    changes: u32,
}

impl Agent {
    fn run(mut self, words: &Receiver<Word>, first_timer: Duration) {
        let mut timer = Instant::now() + first_timer;
        loop {
            match words.recv_timeout(timer.saturating_duration_since(Instant::now())) {
                Ok(Word::All(all)) => self.take_all(all),
                Ok(Word::Set(node)) => self.take(node),
                Ok(Word::Gone(name)) => {
                    if self.nodes.remove(&name).is_some() {
                        self.apply_soon();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    timer += CHECK_IN;
                    self.check_in();
                    self.apply();
                }
                Ok(Word::Terminate) => return self.clean_up(),
                Ok(Word::Kill) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn name(&self) -> &str {
        &self.world.nodes[self.node].node.name
    }

    fn take_all(&mut self, mut all: Vec<KiloNode>) {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let first = (rules::phase(self.node, now() as u32 % 97) * all.len() as f64) as usize;
        all.rotate_left(first);
        let gone: Vec<String> =
            self.nodes.keys().filter(|k| all.iter().all(|n| n.name != **k)).cloned().collect();
        all.into_iter().for_each(|n| self.take(n));
        if !gone.is_empty() {
            self.nodes.retain(|k, _| !gone.contains(k));
            self.apply_soon();
        }
    }

    fn take(&mut self, node: KiloNode) {
        if node.name == self.name() {
            return self.take_own(node);
        }
        let before = self.nodes.insert(node.name.clone(), node.clone());
        if before.is_none_or(|b| !b.is_as(&node, now())) {
            self.apply_soon();
        }
    }

    /// What a Node does not say of its own agent is written there.
    fn take_own(&mut self, found: KiloNode) {
        let node = &self.world.nodes[self.node].node;
        let public = format!("{}:{PORT}", node.wan().unwrap_or(node.lan()));
        let own = KiloNode {
            endpoint: found.endpoint.or_else(|| public.parse().ok()),
            internal: found.internal.or_else(|| (!found.no_internal).then(|| node.lan())),
            key: Some(self.key.clone()),
            last_seen: now(),
            ..found.clone()
        };
        if !own.is_as(&found, now()) && !self.write(&own) {
            return;
        }
        if self.nodes.get(&own.name).is_none_or(|n| !n.is_as(&own, now())) {
            self.nodes.insert(own.name.clone(), own);
            self.apply_soon();
        }
    }

    /// A request that an API server does not answer is sent again next time.
    fn check_in(&mut self) {
        let Some(own) = self.nodes.get(self.name()) else { return };
        let own = KiloNode { last_seen: now(), ..own.clone() };
        if self.write(&own) {
            self.nodes.insert(own.name.clone(), own);
        }
    }

    /// Writes the node's annotations. False if the API server does not take them.
    fn write(&self, own: &KiloNode) -> bool {
        let tunnel = rules::wanted(&self.nodes, &own.name, now()).and_then(|w| w.tunnel);
        let annotations = json!({
            names::ENDPOINT: own.endpoint.map_or(String::new(), |e| e.to_string()),
            names::INTERNAL_IP: own.internal.map_or(String::new(), |i| format!("{i}/24")),
            names::KEY: own.key,
            names::LAST_SEEN: own.last_seen.to_string(),
            names::WIREGUARD_IP: tunnel.map_or(String::new(), |t| format!("{t}/16")),
            names::DISCOVERED_ENDPOINTS: "{}",
            names::GRANULARITY: "location",
        });
        let written = annotate(&self.api, &own.name, annotations);
        if let Err(e) = &written {
            eprintln!("  {}: Kilo's stand-in cannot check in: {e:#}", own.name);
        }
        written.is_ok()
    }

    fn apply_soon(&mut self) {
        std::thread::sleep(rules::slowness(self.node, self.changes));
        self.changes += 1;
        self.apply();
    }

    fn apply(&mut self) {
        let n = &self.world.nodes[self.node];
        let Some(wanted) = rules::wanted(&self.nodes, &n.node.name, now()) else { return };
        match locked(&self.device).apply(n, &wanted) {
            Ok(false) => {}
            Ok(true) => {
                let at = wgctl_lab::wall_micros();
                let leads = wanted.tunnel.is_some();
                locked(&self.applied).push(Applied { at, node: self.node, leads });
            }
            Err(e) => eprintln!("  {}: Kilo's stand-in: {e:#}", n.node.name),
        }
    }

    fn clean_up(&self) {
        let n = &self.world.nodes[self.node];
        let routes = locked(&self.device).clean_up(n);
        let ours = [
            names::ENDPOINT,
            names::INTERNAL_IP,
            names::KEY,
            names::LAST_SEEN,
            names::WIREGUARD_IP,
            names::DISCOVERED_ENDPOINTS,
            names::GRANULARITY,
        ];
        let none: serde_json::Map<String, Value> =
            ours.map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
        for done in [routes, annotate(&self.api, &n.node.name, Value::Object(none))] {
            if let Err(e) = done {
                eprintln!("  {}: Kilo's stand-in cannot clean up: {e:#}", n.node.name);
            }
        }
    }
}
