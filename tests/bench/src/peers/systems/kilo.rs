//! Kilo's own rule, by a small driver of ours: no Kubernetes runs here, and no Kilo.
//!
//! As in `pkg/mesh` of squat/kilo: every node has a timer of 30 s, at which it checks in (writes the time into its annotations)
//! and applies the topology as it sees it. A node whose check-in is 60 s old is not ready. A location's leader is the first by name of
//! its ready nodes, or the one with the annotation `leader`. The leader has one WireGuard peer for each other location, the others
//! send what is remote to their leader. Applying sets links up, and replaces the WireGuard configuration where it differs. A change of an
//! annotation is applied by all nodes, each within 20 to 50 ms; an old check-in is noticed at each node's own timer only.
//!
//! A check-in says that the agent runs and reaches the API server, so no fault of the data path stops it. What the driver uses of the
//! processor says nothing of Kilo.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wgctl_lab::{Node, System, Topology, VXLAN_DEVICE, World};

use ::tests::kilo::rules::{CHECK_IN, NOT_READY_AFTER, phase, slowness};
use ::tests::lab::overlay;

const POLL: Duration = Duration::from_millis(10);
const DEVICE: &str = "wgl0";
const PORT: u16 = 51_820;

#[derive(Debug)]
pub struct Kilo {
    run: u32,
    annotated: Arc<Mutex<Annotated>>,
}

/// Nodes with the annotation, by location, and when it was last changed.
#[derive(Debug, Default)]
struct Annotated {
    leaders: BTreeMap<usize, usize>,
    changed: Option<Instant>,
}

impl Kilo {
    pub fn new(run: u32) -> Self {
        Self { run, annotated: Arc::default() }
    }
}

impl System for Kilo {
    fn start(&mut self, world: &Arc<World>) -> Result<()> {
        overlay::set_up(world, true)?;
        for n in world.nodes.iter().filter(|n| n.node.slot.is_some()) {
            let key = overlay::secret_key(n)?;
            overlay::start_tunnel(n, DEVICE, &format!("[Interface]\nPrivateKey = {key}\n"))?;
            n.ns.ip(&format!("addr add {}/16 dev {DEVICE}", inner(&n.node)))?;
        }
        let now = Instant::now();
        let mut agents: Vec<Agent> =
            (0..world.nodes.len()).map(|i| Agent::new(i, self.run, now)).collect();
        let leaders = leaders(&world.topology, &agents, &BTreeMap::new(), now);
        for a in &mut agents {
            a.apply(world, &leaders)?;
        }
        // The tunnels have long been there when something happens. One end begins: of two in the same moment each drops the
        // other's handshake, and both wait 5 s.
        if let [Some(near), Some(far)] = leaders[..] {
            let far = inner(&world.nodes[far].node);
            world.nodes[near].ns.output("ping", &["-q", "-c", "3", "-W", "1", &far])?;
        }
        let (world, annotated) = (Arc::clone(world), Arc::clone(&self.annotated));
        std::thread::spawn(move || run(&world, &annotated, agents));
        Ok(())
    }

    fn not_ready(&self, _world: &World) -> Option<String> {
        None
    }

    fn hand_over(&mut self, world: &Arc<World>, _from: usize, to: usize) -> Result<()> {
        let mut annotated = self.annotated.lock().unwrap_or_else(|e| e.into_inner());
        annotated.leaders.insert(world.nodes[to].node.location, to);
        annotated.changed = Some(Instant::now());
        Ok(())
    }
}

/// What runs on a node.
#[derive(Debug)]
struct Agent {
    node: usize,
    seen: Instant,
    timer: Instant,
    /// How long it takes to apply a change.
    slow: Duration,
    /// The change of annotations that it applied last.
    applied: Option<Instant>,
    /// WireGuard configuration as it was last set.
    set: String,
}

impl Agent {
    /// Timers of agents have nothing to do with each other: they stand anywhere, and elsewhere in the next run.
    fn new(node: usize, run: u32, now: Instant) -> Self {
        let timer = now + CHECK_IN.mul_f64(phase(node, run));
        let slow = slowness(node, run);
        Self { node, seen: now, timer, slow, applied: None, set: String::new() }
    }

    /// Programs its own node. Does nothing on a node without power.
    fn apply(&mut self, world: &World, leaders: &[Option<usize>]) -> Result<()> {
        let n = &world.nodes[self.node];
        let wanted = Wanted::of(&world.topology, self.node, leaders);
        if n.node.slot.is_some() {
            let mut text = format!(
                "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n",
                overlay::secret_key(n)?
            );
            for far in &wanted.peers {
                let far = &world.nodes[*far];
                let prefixes: Vec<String> = overlay::nodes_of(&world.topology, far.node.location)
                    .map(Node::prefix)
                    .collect();
                write!(
                    text,
                    "\n[Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}/32, {}\n",
                    far.wireguard_key,
                    far.node.wan().context("a leader without a WAN address")?,
                    inner(&far.node),
                    prefixes.join(", ")
                )?;
            }
            if text != self.set {
                overlay::configure_tunnel(n, DEVICE, &text)?;
                self.set = text;
            }
            n.ns.ip(&format!("link set {DEVICE} up"))?;
        }
        n.ns.ip(&wanted.routes.iter().map(|r| format!("route replace {r}\n")).collect::<String>())
    }
}

/// A node's address in the tunnels.
fn inner(node: &Node) -> String {
    format!("100.125.{}.{}", node.location, node.index)
}

/// Who leads each location, as whoever looks now sees it.
fn leaders(
    topology: &Topology,
    agents: &[Agent],
    annotated: &BTreeMap<usize, usize>,
    now: Instant,
) -> Vec<Option<usize>> {
    let ready = |n: usize| now.duration_since(agents[n].seen) < NOT_READY_AFTER;
    let leader = |location: usize| {
        let asked = annotated.get(&location).copied().filter(|n| ready(*n));
        let of = |n: &usize| {
            topology.nodes[*n].location == location && topology.nodes[*n].slot.is_some()
        };
        let first = (0..topology.nodes.len())
            .filter(|n| of(n) && ready(*n))
            .min_by_key(|n| &topology.nodes[*n].name);
        asked.or(first)
    };
    (0..topology.locations.len()).map(leader).collect()
}

/// What a node has to have.
#[derive(Debug, PartialEq)]
struct Wanted {
    /// Nodes that it has a tunnel to.
    peers: Vec<usize>,
    /// As `ip route replace` takes them.
    routes: Vec<String>,
}

impl Wanted {
    fn of(topology: &Topology, node: usize, leaders: &[Option<usize>]) -> Self {
        let location = topology.nodes[node].location;
        let remote = overlay::remote_prefixes(topology, location);
        match leaders[location] {
            Some(leader) if leader == node => Self {
                peers: leaders.iter().flatten().copied().filter(|l| *l != node).collect(),
                routes: remote.iter().map(|p| format!("{p} dev {DEVICE}")).collect(),
            },
            Some(leader) => {
                let via = overlay::address(&topology.nodes[leader]);
                let by = |p: &String| format!("{p} via {via} dev {VXLAN_DEVICE}");
                Self { peers: Vec::new(), routes: remote.iter().map(by).collect() }
            }
            None => Self { peers: Vec::new(), routes: Vec::new() },
        }
    }
}

/// All agents, for as long as the lab lasts.
fn run(world: &World, annotated: &Mutex<Annotated>, mut agents: Vec<Agent>) {
    loop {
        std::thread::sleep(POLL);
        let now = Instant::now();
        let (asked, changed) = {
            let a = annotated.lock().unwrap_or_else(|e| e.into_inner());
            (a.leaders.clone(), a.changed)
        };
        let without_power: Vec<String> = world
            .active_faults()
            .into_iter()
            .filter(|(_, fault)| fault == "node-crash")
            .map(|(node, _)| node)
            .collect();
        let powered = |a: &Agent| !without_power.contains(&world.nodes[a.node].node.name);
        let mut due = Vec::new();
        for a in agents.iter_mut().filter(|a| powered(a)) {
            if now >= a.timer {
                a.timer += CHECK_IN;
                a.seen = now;
                due.push(a.node);
            }
            if changed != a.applied && changed.is_some_and(|at| now >= at + a.slow) {
                a.applied = changed;
                due.push(a.node);
            }
        }
        if due.is_empty() {
            continue;
        }
        let leaders = leaders(&world.topology, &agents, &asked, now);
        due.dedup();
        for node in due {
            if let Err(e) = agents[node].apply(world, &leaders) {
                eprintln!("  Kilo's rule on {}: {e:#}", world.nodes[node].node.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        Topology::of(&crate::peers::cases::scenario(128).unwrap()).unwrap()
    }

    #[test]
    fn the_first_by_name_leads_until_its_check_in_is_a_minute_old() {
        let t = topology();
        let now = Instant::now();
        let mut agents: Vec<Agent> = (0..t.nodes.len()).map(|n| Agent::new(n, 0, now)).collect();
        let cloud = t.location("cloud").unwrap();
        let [first, second] = ["cloud-0", "cloud-1"].map(|n| t.node(n).unwrap());
        let at = |agents: &[Agent], asked: &BTreeMap<usize, usize>, s| {
            leaders(&t, agents, asked, now + Duration::from_secs(s))[cloud]
        };
        assert_eq!(at(&agents, &BTreeMap::new(), 59), Some(first));
        assert_eq!(at(&agents, &BTreeMap::from([(cloud, second)]), 59), Some(second));
        for a in agents.iter_mut().filter(|a| a.node != first) {
            a.seen += Duration::from_secs(30);
        }
        assert_eq!(at(&agents, &BTreeMap::new(), 60), Some(second));
        assert_eq!(at(&agents, &BTreeMap::from([(cloud, first)]), 60), Some(second));
    }

    #[test]
    fn only_leaders_have_tunnels_and_the_others_send_to_them() {
        let t = topology();
        let [here, far, other] = ["cloud-0", "onprem-0", "cloud-1"].map(|n| t.node(n).unwrap());
        let mut leaders = vec![None; 2];
        leaders[t.nodes[here].location] = Some(here);
        leaders[t.nodes[far].location] = Some(far);
        let leader = Wanted::of(&t, here, &leaders);
        assert_eq!(leader.peers, [far]);
        assert!(leader.routes.iter().all(|r| r.ends_with("dev wgl0")), "{leader:?}");
        let standby = Wanted::of(&t, other, &leaders);
        let via = overlay::address(&t.nodes[here]).to_string();
        assert!(standby.peers.is_empty() && standby.routes.len() == 3, "{standby:?}");
        assert!(standby.routes.iter().all(|r| r.contains(&via)), "{standby:?}");
    }
}
