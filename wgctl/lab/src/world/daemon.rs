//! The daemons of a world: finding the binary, starting, pausing, killing, waiting until all are ready.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::World;
use crate::admin::{self, Status};

/// Every node must know every leader within this time. Generous: userspace WireGuard and Raft start together on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// A daemon that should stop has this long; then it is killed.
const STOP: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// `$LEADERD_BIN`, else next to this program, else in `$PATH`.
pub fn find_leaderd() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LEADERD_BIN") {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("LEADERD_BIN names {}, which is no file", path.display());
    }
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join("leaderd")));
    if let Some(path) = beside.filter(|p| p.is_file()) {
        return Ok(path);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|d| d.join("leaderd"))
        .find(|p| p.is_file())
        .context("no leaderd binary: set LEADERD_BIN, or build it (`cargo build -p leaderd`)")
}

/// Arguments of a daemon in place of `--mesh FILE`.
#[derive(Debug, Clone, Default)]
pub struct Instead {
    pub arguments: Vec<OsString>,
    pub environment: Vec<(&'static str, OsString)>,
}

impl World {
    pub fn start_daemons(&self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|n| self.start_daemon(n))
    }

    pub fn start_daemon(&self, node: usize) -> Result<()> {
        let Some(leaderd) = &self.leaderd else { return Ok(()) };
        let n = &self.nodes[node];
        let mut running = n.daemon.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(child) = running.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("leaderd on {} is running already", n.node.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(n.log())?;
        let record = self.record.then(|| ["--record".into(), n.recording().into_os_string()]);
        let mesh = || Instead {
            arguments: vec!["--mesh".into(), self.dir.join("mesh.toml").into_os_string()],
            environment: Vec::new(),
        };
        let told = self.instead.get(node).cloned().unwrap_or_else(mesh);
        let child =
            n.ns.command(leaderd)
                .arg("run")
                .args(record.into_iter().flatten())
                .args(told.arguments)
                .envs(told.environment)
                .args(["--node", &n.node.name])
                .arg("--keys")
                .arg(n.dir.join("keys"))
                .arg("--state")
                .arg(n.dir.join("state"))
                .arg("--admin")
                .arg(n.admin())
                .args(["--log", "json"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("cannot start {}", leaderd.display()))?;
        *running = Some(child);
        Ok(())
    }

    /// `None`: no daemon; else its process id.
    pub fn daemon_pid(&self, node: usize) -> Option<u32> {
        let mut running = self.nodes[node].daemon.lock().unwrap_or_else(|e| e.into_inner());
        match running.as_mut()?.try_wait() {
            Ok(None) => running.as_ref().map(std::process::Child::id),
            _ => None,
        }
    }

    pub fn kill_daemon(&self, node: usize) -> Result<()> {
        let mut running = self.nodes[node].daemon.lock().unwrap_or_else(|e| e.into_inner());
        let Some(mut child) = running.take() else { return Ok(()) };
        let _ = child.kill();
        child.wait().context("wait")?;
        Ok(())
    }

    /// Stops all daemons, and waits until they have ended.
    pub fn stop_daemons(&self) -> Result<()> {
        for pid in (0..self.nodes.len()).filter_map(|n| self.daemon_pid(n)) {
            // A paused daemon gets the signal only when it continues.
            for signal in [Signal::SIGTERM, Signal::SIGCONT] {
                kill(Pid::from_raw(pid as i32), signal).context("kill")?;
            }
        }
        let deadline = Instant::now() + STOP;
        let runs = |n: usize| self.daemon_pid(n).is_some();
        while (0..self.nodes.len()).any(runs) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        (0..self.nodes.len()).try_for_each(|n| self.kill_daemon(n))
    }

    pub fn pause_daemon(&self, node: usize, pause: bool) -> Result<()> {
        let pid = self
            .daemon_pid(node)
            .with_context(|| format!("no daemon on {}", self.nodes[node].node.name))?;
        let signal = if pause { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(pid as i32), signal).context("kill")
    }

    /// True if the daemon is stopped by [`Self::pause_daemon`].
    pub fn daemon_paused(&self, pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
    }

    /// Status of a node, or why there is none. Never asks a paused daemon, which would not answer.
    pub fn status(&self, node: usize) -> Result<Status> {
        let pid = self.daemon_pid(node).context("daemon not running")?;
        if self.daemon_paused(pid) {
            bail!("daemon paused");
        }
        admin::status(&self.nodes[node].admin())
    }

    /// The first answer of a node of the location, its candidates first.
    pub fn status_in(&self, location: usize) -> Option<Status> {
        self.nodes_in(location).find_map(|n| self.status(n).ok())
    }

    pub fn nodes_in(&self, location: usize) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(move |n| self.nodes[*n].node.location == location)
    }

    /// The last lines of a node's log.
    pub fn log_tail(&self, node: usize, lines: usize) -> String {
        let text = std::fs::read_to_string(self.nodes[node].log()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Copies all logs and recordings to a directory of the host, and the mesh file (public keys only).
    pub fn save_logs(&self, to: &std::path::Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        std::fs::copy(self.dir.join("mesh.toml"), to.join("mesh.toml"))?;
        for n in &self.nodes {
            let _ = std::fs::copy(n.log(), to.join(format!("{}.log", n.node.name)));
            let _ = std::fs::copy(n.recording(), to.join(format!("{}.recording", n.node.name)));
        }
        Ok(())
    }
}

/// Waits until every node shows a leader for every location that it must know about, and no node reports a candidate that does not forward.
pub fn wait_ready(world: &World) -> Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        let Some((n, why)) = why_not_ready(world) else { return Ok(()) };
        let dead = world.daemon_pid(n).is_none();
        if dead || Instant::now() > deadline {
            bail!(
                "{} is not ready: {why}\n--- end of its log ---\n{}",
                world.nodes[n].node.name,
                world.log_tail(n, 15)
            );
        }
        std::thread::sleep(POLL);
    }
}

/// A node that [`wait_ready`] would go on waiting for, and why.
pub fn why_not_ready(world: &World) -> Option<(usize, String)> {
    (0..world.nodes.len()).find_map(|n| why_node_not_ready(world, n).map(|why| (n, why)))
}

fn why_node_not_ready(world: &World, node: usize) -> Option<String> {
    let status = match world.status(node) {
        Ok(s) => s,
        Err(e) => return Some(format!("{e:#}")),
    };
    let node = &world.nodes[node].node;
    for (index, l) in world.topology.locations.iter().enumerate() {
        let own = node.location == index;
        // A decision goes to the nodes of its location and to the candidates of the others.
        if !own && node.slot.is_none() {
            continue;
        }
        let Some(seen) = status.location(&l.name) else {
            return Some(format!("knows no location {}", l.name));
        };
        if seen.leaders.is_empty() || seen.epoch == 0 {
            return Some(format!("location {} has no leader", l.name));
        }
        // Candidates have evidence of their own about other locations; about its own, the raft leader has the
        // observers' reports. All other nodes know only who leads.
        let knows =
            if own { seen.raft_leader.as_ref() == Some(&node.name) } else { node.slot.is_some() };
        if let Some(c) = seen.candidates.iter().find(|c| knows && !c.forwards()) {
            return Some(format!("{} is {} for it", c.name, c.verdict));
        }
    }
    None
}
