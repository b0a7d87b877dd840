//! A running mesh: switches, nodes, workloads, WAN, daemons.
//!
//! ```text
//!  pod ns ── veth ── node ns ── eth0 ── bridge of the location (in the lab's own network namespace)
//!  (10.42.i.10)      (10.42.i.1)  └ wan0 (TUN) ── WAN emulator
//! ```
//!
//! A location's bridge may be a cloud's fabric instead (`crate::fabric`), and its pods a CNI's (`crate::cni`).
//!
//! Where something manages the nodes (an API server), it has a network of its own, which faults leave alone: `management`.
//!
//! The lab sets up what a host has before leaderd comes: links, addresses, a default route for the workload. All else
//! (forwarding, tunnels, overlay, routes) is leaderd's to do.

mod daemon;
mod fixed;
mod management;
mod power;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cni::Cni;
use crate::cni::cilium::Datapath;
use crate::fabric::Fabric;
use crate::faults::Fault;
use crate::flows::Flows;
use crate::meter::TICK;
use crate::ns::{Namespace, feed};
use crate::sandbox::LabDir;
use crate::scenario::Scenario;
use crate::service::LabService;
use crate::topology::{Keys, Location, Node, Topology, Vxlan};
use crate::wan::{Port, Wan, open_tun};

pub use daemon::{Instead, find_leaderd, wait_ready, why_not_ready};
pub use management::MANAGER;

#[derive(Debug)]
pub struct World {
    pub scenario: Scenario,
    pub topology: Topology,
    pub nodes: Vec<LabNode>,
    /// By location.
    pub(crate) fabrics: Vec<Fabric>,
    pub wan: Wan,
    pub services: Vec<LabService>,
    pub dir: PathBuf,
    leaderd: Option<PathBuf>,
    /// Daemons that start record themselves.
    pub record: bool,
    /// How daemons are started otherwise than with the world's mesh file: nothing, or one for each node.
    pub instead: Vec<Instead>,
    /// There is a management network.
    managed: AtomicBool,
    /// Faults at work: node and fault.
    active: Mutex<Vec<(usize, String, Fault)>>,
}

#[derive(Debug)]
pub struct LabNode {
    pub node: Node,
    pub ns: Namespace,
    pub pod: Namespace,
    pub dir: PathBuf,
    /// Public key of the node; the secret one is in `keys/wireguard.key` of its directory.
    pub wireguard_key: String,
    /// Where the CNI is Cilium.
    pub cilium: Option<Datapath>,
    daemon: Mutex<Option<Child>>,
}

impl LabNode {
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }
    pub fn log(&self) -> PathBuf {
        self.dir.join("leaderd.log")
    }
    pub fn recording(&self) -> PathBuf {
        self.dir.join("leaderd.recording")
    }
    pub fn pod_address(&self, ipv6: bool) -> IpAddr {
        self.node.pod_address(ipv6)
    }
}

impl World {
    /// Builds the network. No daemon runs yet.
    ///
    /// # Errors
    /// A command of the host fails: a tool or a permission is missing.
    pub fn build(scenario: &Scenario, dir: &LabDir, leaderd: Option<PathBuf>) -> Result<Self> {
        let topology = Topology::of(scenario)?;
        let dir = dir.world();
        feed(std::process::Command::new("ip").args(["-batch", "-"]), "link set lo up\n")?;
        let locations = topology.locations.iter().enumerate();
        let fabrics = locations.map(|(l, spec)| Fabric::build(spec.fabric, l));
        let fabrics = fabrics.collect::<Result<Vec<_>>>().context("cannot build the fabrics")?;
        let mut nodes = Vec::new();
        let mut ports = Vec::new();
        let every = scenario.meter.every.map_or(TICK, |e| e.0);
        for (i, node) in topology.nodes.iter().enumerate() {
            let fabric = &fabrics[node.location];
            let built =
                build_node(&topology, node, fabric, flow_timeout(every), dir.join(&node.name));
            let (built, tun) = built.with_context(|| format!("cannot build node {}", node.name))?;
            nodes.push(built);
            if let (Some(tun), Some(address)) = (tun, node.wan()) {
                ports.push(Port { tun, address, location: node.location, node: i });
            }
        }
        let wan = Wan::start(&scenario.wan, ports, topology.nodes.len(), topology.locations.len())?;
        let keys = topology.nodes.iter().map(|_| Keys::generate()).collect::<Result<Vec<_>>>()?;
        fs::write(dir.join("mesh.toml"), topology.mesh_toml(scenario, &keys)?)?;
        for (n, k) in nodes.iter_mut().zip(&keys) {
            write_keys(n, k)?;
            n.wireguard_key = k.wireguard_public.clone();
        }
        let mut services = Vec::new();
        for (spec, address) in topology.services(scenario)? {
            let node = topology.node(&spec.node)?;
            services.push(LabService::start(&nodes[node].pod, node, address)?);
        }
        let scenario = scenario.clone();
        Ok(Self {
            scenario,
            topology,
            nodes,
            fabrics,
            wan,
            services,
            dir,
            leaderd,
            record: false,
            instead: Vec::new(),
            managed: AtomicBool::new(false),
            active: Mutex::new(Vec::new()),
        })
    }

    /// Breaks something on a node.
    ///
    /// # Errors
    /// The fault or its argument is unknown, or the node cannot have it.
    pub fn inject(&self, node: usize, name: &str, arg: Option<&str>) -> Result<()> {
        let fault = Fault::parse(name, arg)?;
        fault.inject(self, node)?;
        let label = arg.map_or_else(|| name.to_owned(), |a| format!("{name} {a}"));
        self.faults_mut(|all| all.push((node, label, fault)));
        Ok(())
    }

    /// Undoes the faults of that name on the node.
    ///
    /// # Errors
    /// It has none.
    pub fn undo(&self, node: usize, name: &str) -> Result<()> {
        let named = |label: &str| label.split(' ').next() == Some(name);
        let mut found = Vec::new();
        self.faults_mut(|all| {
            found = all.extract_if(.., |(n, label, _)| *n == node && named(label)).collect();
        });
        if found.is_empty() {
            anyhow::bail!("{} has no fault {name}", self.nodes[node].node.name);
        }
        found.iter().try_for_each(|(_, _, fault)| fault.undo(self, node))
    }

    /// Runs commands in a shell on a node, until one fails.
    ///
    /// # Errors
    /// One fails; the error has all of them, the exit status, and what they wrote to standard error.
    pub fn run_on(&self, node: usize, commands: &str) -> Result<()> {
        let n = &self.nodes[node];
        let out = n.ns.command("sh").args(["-e", "-u", "-c", commands]).output();
        let out = out.with_context(|| format!("cannot run a shell on {}", n.node.name))?;
        if !out.status.success() {
            anyhow::bail!(
                "on {}: {}: {}: {}",
                n.node.name,
                commands.trim(),
                out.status,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(())
    }

    /// `(node, fault)` for every fault at work.
    pub fn active_faults(&self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        self.faults_mut(|all| {
            out = all
                .iter()
                .map(|(n, label, _)| (self.nodes[*n].node.name.clone(), label.clone()))
                .collect();
        });
        out
    }

    fn faults_mut(&self, f: impl FnOnce(&mut Vec<(usize, String, Fault)>)) {
        f(&mut self.active.lock().unwrap_or_else(|e| e.into_inner()));
    }

    fn location_of(&self, node: usize) -> &Location {
        &self.topology.locations[self.nodes[node].node.location]
    }

    /// How new VXLAN flows of a node are told from old ones.
    pub fn flows(&self, node: usize) -> Flows {
        flows_of(self.location_of(node))
    }

    pub fn cni(&self, node: usize) -> Cni {
        self.location_of(node).cni
    }

    /// The VXLAN of a node's location; leaderd's own where there is none.
    pub fn vxlan(&self, node: usize) -> Vxlan {
        self.location_of(node).vxlan().unwrap_or(Vxlan::OWN)
    }

    /// Returns the names of the node's `wgl` interfaces.
    pub fn planes_of(&self, node: usize) -> Result<Vec<String>> {
        let shown = self.nodes[node].ns.output("ip", &["-o", "link", "show"])?;
        let name = |line: &str| {
            line.split(": ").nth(1).map(|n| n.split('@').next().unwrap_or(n).to_owned())
        };
        Ok(shown.lines().filter_map(name).filter(|n| n.starts_with("wgl")).collect())
    }
}

fn flows_of(location: &Location) -> Flows {
    let mut ports = location.vxlan_ports();
    if ports.is_empty() {
        ports.push(Vxlan::OWN.port);
    }
    Flows { ports, tracked: location.cni.masquerades() || location.stateful }
}

/// Seconds for which conntrack remembers an outer VXLAN flow without packets. Meters have 1,000 new flows a second on some
/// 28,000 outer ports; if their entries lived longer than 4 s, many a new flow would meet one and pass for an old one. Slower
/// meters leave more time, which slower probes need: an established flow must not be forgotten between two of its packets.
fn flow_timeout(every: Duration) -> u64 {
    /// The kernel's own `nf_conntrack_udp_timeout`.
    const USUAL: u64 = 30;
    (4 * every.as_micros() as u64 / TICK.as_micros() as u64).clamp(4, USUAL)
}

/// A relay that tracks connections and drops what is invalid, and takes up connections that began before it saw them (the kernel's own
/// `nf_conntrack_tcp_loose`): a SYN-ACK whose SYN went by another relay is invalid all the same.
const STATEFUL: &str = "table inet lab_stateful {\n chain forward {\n  type filter hook forward priority 0;\n  \
                        ct state invalid counter drop\n }\n}\n";

/// `flow_timeout`: for how many seconds conntrack is to remember outer flows.
fn build_node(
    topology: &Topology,
    node: &Node,
    fabric: &Fabric,
    flow_timeout: u64,
    dir: PathBuf,
) -> Result<(LabNode, Option<std::os::fd::OwnedFd>)> {
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    let location = &topology.locations[node.location];
    let ns = Namespace::create(true)?;
    let pod = Namespace::create(false)?;
    for ns in [&ns, &pod] {
        // Addresses are ours to give; waiting for duplicates to answer would only delay the start.
        for path in [
            "ipv6/conf/default/accept_dad",
            "ipv6/conf/all/accept_dad",
            "ipv6/conf/default/router_solicitations",
        ] {
            let _ = ns.sysctl(path, "0");
        }
    }
    fabric.plug(node, &ns, location.lan_mtu)?;
    let tun = match node.wan() {
        Some(_) => Some(ns.run(|| open_tun("wan0"))?),
        None => None,
    };
    let mut lines =
        format!("link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n", node.lan());
    if let Some(wan) = node.wan() {
        lines += &format!(
            "link set wan0 txqueuelen 1000 mtu 1500 up\naddr add {wan}/32 dev wan0\nroute add 203.0.113.0/24 dev wan0 src {wan}\n"
        );
    }
    ns.ip(&lines)?;
    if location.cni != Cni::Cilium {
        plug_pod(topology, node, &ns, &pod)?;
    }
    let cilium = location.cni.set_up(topology, node, &ns, &pod)?;
    if location.stateful && node.slot.is_some() {
        ns.nft(STATEFUL)?;
    }
    if !location.vxlan_ports().is_empty() {
        // Needed before the fault to know which flows are old; see `Flows::chain`.
        ns.nft(&flows_of(location).chain(&[]))?;
        ns.sysctl("netfilter/nf_conntrack_acct", "1")?;
    }
    if location.stateful || !location.vxlan_ports().is_empty() {
        for setting in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            ns.sysctl(&format!("netfilter/{setting}"), &flow_timeout.to_string())?;
        }
    }
    let (node, wireguard_key, daemon) = (node.clone(), String::new(), Mutex::new(None));
    Ok((LabNode { node, ns, pod, dir, wireguard_key, cilium, daemon }, tun))
}

/// The cable between a node and its pod.
fn plug_pod(topology: &Topology, node: &Node, ns: &Namespace, pod: &Namespace) -> Result<()> {
    let device = topology.locations[node.location].cni.pods_device();
    let mtu = topology.pod_mtu(node.location);
    let gateway = node.gateway();
    // The other way of CNIs: each node has the same address, of no prefix, on its pods' devices.
    let (own, way) = match node.host {
        Some(_) => (format!("addr add {gateway}/24 dev {device}"), String::new()),
        None => (
            format!("addr add {gateway}/32 dev {device}\nroute add {} dev {device}", node.prefix()),
            format!("route add {gateway} dev eth0\n"),
        ),
    };
    let mut lines = format!(
        "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set {device} up\n{own}\n",
        pod.net_path()?,
    );
    let mut pod_lines = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n{way}route add default via {gateway}\n",
        node.pod(),
    );
    if node.dual_stack {
        lines += &format!("addr add {}/64 dev {device} nodad\n", node.gateway6());
        pod_lines += &format!(
            "addr add {}/64 dev eth0 nodad\nroute add default via {} dev eth0\n",
            node.pod6(),
            node.gateway6()
        );
    }
    ns.ip(&lines)?;
    pod.ip(&pod_lines)
}

fn write_keys(node: &LabNode, keys: &Keys) -> Result<()> {
    let dir = node.dir.join("keys");
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    fs::DirBuilder::new().mode(0o700).create(node.dir.join("state"))?;
    for (file, secret) in
        [("wireguard.key", &keys.wireguard_secret), ("control.key", &keys.control_secret)]
    {
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(file))?;
        std::io::Write::write_all(&mut out, secret.as_bytes())?;
        std::io::Write::write_all(&mut out, b"\n")?;
    }
    Ok(())
}
