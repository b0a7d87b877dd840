//! The real Kilo agent, `kg`, on every node: for whoever has it (`KILO_KG=/path/to/kg make test-kilo`).
//!
//! One process for each node in the node's namespaces, with a `/var/lib/kilo` of its own. The lab makes `kilo0`, as the machine's kernel need not
//! have WireGuard. Kilo chooses a node's endpoint among the addresses of the device with the default route, so gateways have that on `wan0`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wgctl_lab::{LabNode, World};

use super::agents::{Applied, locked};
use super::control_plane::{ControlPlane, User};
use super::rules::{DEVICE, PORT};
use crate::lab::overlay;

/// How long an agent may take to clean up after SIGTERM. It asks the API server, which may be away.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// What an agent logs when it replaces the peers of `kilo0` (`applyTopology`, pkg/mesh/mesh.go at `944dff57`).
const REPLACED: &str = "WireGuard configurations are different";

/// What it logs each time it finds that the node does not lead, and takes `kilo0` down.
const FOLLOWS: &str = "local node is not the leader";

/// All agents, until it is dropped.
#[derive(Debug)]
pub struct RealKilo {
    program: PathBuf,
    world: Arc<World>,
    running: Mutex<BTreeMap<usize, Child>>,
}

impl RealKilo {
    pub fn start(program: &Path, world: &Arc<World>, control: &ControlPlane) -> Result<Self> {
        let this = Self {
            program: program.to_owned(),
            world: Arc::clone(world),
            running: Mutex::default(),
        };
        for (n, node) in world.nodes.iter().enumerate() {
            let dir = directory(node);
            fs::create_dir_all(&dir)?;
            control.write_kubeconfig(User::Kilo, &dir.join("kubeconfig"))?;
            let device = if node.node.wan().is_some() { "wan0" } else { "eth0" };
            node.ns.ip(&format!("route add default dev {device} metric 4000\n"))?;
            boot_tunnel(node)?;
            this.run(n)?;
        }
        Ok(this)
    }

    fn run(&self, n: usize) -> Result<()> {
        let node = &self.world.nodes[n];
        let dir = directory(node);
        let log = fs::OpenOptions::new().create(true).append(true).open(log_file(node))?;
        let script =
            "mkdir -p /var/lib/kilo && mount --bind \"$1\" /var/lib/kilo && shift && exec \"$@\"";
        let child = node
            .ns
            .command("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(&dir)
            .arg(&self.program)
            .arg(format!("--kubeconfig={}", dir.join("kubeconfig").display()))
            .arg(format!("--hostname={}", node.node.name))
            .args(["--mesh-granularity=location", "--compatibility=flannel", "--log-level=debug"])
            .args(["--cni=false", "--local=false", "--create-interface=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        locked(&self.running).insert(n, child);
        Ok(())
    }

    pub fn launch(&self, node: usize) -> Result<()> {
        self.run(node)
    }

    pub fn kill(&self, node: usize) {
        if let Some(mut child) = locked(&self.running).remove(&node) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and what the agent does then.
    pub fn terminate(&self, node: usize) -> Result<()> {
        let Some(mut child) = locked(&self.running).remove(&node) else { return Ok(()) };
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
        let deadline = Instant::now() + ENDS_WITHIN;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                ensure!(false, "kg of node {node} did not end within {ENDS_WITHIN:?}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    pub fn boot(&self, node: usize) -> Result<()> {
        self.kill(node);
        let n = &self.world.nodes[node];
        let _ = n.ns.ip("route flush proto static\n");
        boot_tunnel(n)?;
        self.run(node)
    }

    /// By what the agents logged: each replacement of peers, and when a node that led does so no more.
    pub fn applied_since(&self, since: u64) -> Result<Vec<Applied>> {
        let mut all = Vec::new();
        for (node, n) in self.world.nodes.iter().enumerate() {
            let Ok(file) = fs::File::open(log_file(n)) else { continue };
            let mut led = None;
            for line in BufReader::new(file).lines() {
                let Ok(Value::Object(line)) = serde_json::from_str(&line?) else { continue };
                let leads = match line.get("msg").and_then(Value::as_str) {
                    Some(REPLACED) => true,
                    Some(FOLLOWS) if led != Some(false) => false,
                    _ => continue,
                };
                led = Some(leads);
                let at = line.get("ts").and_then(Value::as_str).context("a line without time")?;
                let at = micros(at)?;
                if at >= since {
                    all.push(Applied { at, node, leads });
                }
            }
        }
        all.sort_by_key(|a| a.at);
        Ok(all)
    }

    pub fn save_logs(&self, to: &Path) -> Result<()> {
        for n in &self.world.nodes {
            fs::copy(log_file(n), to.join(format!("{}.kg.log", n.node.name)))?;
        }
        Ok(())
    }
}

impl Drop for RealKilo {
    fn drop(&mut self) {
        for child in locked(&self.running).values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn directory(node: &LabNode) -> PathBuf {
    node.dir.join("kilo")
}

fn log_file(node: &LabNode) -> PathBuf {
    node.dir.join("kg.log")
}

/// The device, without a peer. Kilo gives it its key.
fn boot_tunnel(node: &LabNode) -> Result<()> {
    overlay::start_tunnel(node, DEVICE, &format!("[Interface]\nListenPort = {PORT}\n"))
}

fn micros(time: &str) -> Result<u64> {
    let at: SystemTime = humantime::parse_rfc3339(time).with_context(|| time.to_owned())?;
    Ok(at.duration_since(UNIX_EPOCH)?.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_kilos_log_are_read() {
        assert_eq!(micros("1970-01-01T00:00:01.000002345Z").unwrap(), 1_000_002);
        assert!(micros("soon").is_err());
    }
}
