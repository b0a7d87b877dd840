//! Power and cables of a node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::World;
use crate::topology::VXLAN_DEVICE;

impl World {
    /// Cuts the power: links first (nothing says goodbye), then every process of the node.
    pub fn crash(&self, node: usize) -> Result<()> {
        self.wan.change_uplink(node, |u| u.cut = true);
        self.lan_link(node, false)?;
        self.management_link(node, false)?;
        self.kill_processes(node)?;
        self.kill_daemon(node)
    }

    /// Boots a crashed node: the kernel's state is fresh, the disk is as it was.
    pub fn boot(&self, node: usize) -> Result<()> {
        let n = &self.nodes[node];
        let mut lines = format!(
            "link del {VXLAN_DEVICE}\nroute flush proto 76\nrule flush proto 76\nnexthop flush proto 76\n"
        );
        for plane in self.planes_of(node)? {
            lines += &format!("link del {plane}\n");
        }
        // What is not there cannot be deleted; `ip` says so, and that is fine.
        let _ = n.ns.ip(&lines);
        let _ = n.ns.output("sh", &["-c", "rm -rf /run/* /var/run/wireguard"]);
        self.wan.change_uplink(node, |u| u.cut = false);
        self.lan_link(node, true)?;
        self.management_link(node, true)?;
        self.start_daemon(node)
    }

    /// Plugs or pulls the node's LAN cable, at the fabric.
    pub fn lan_link(&self, node: usize, plugged: bool) -> Result<()> {
        let n = &self.nodes[node].node;
        self.fabrics[n.location].link(n, plugged)
    }

    /// Process ids of everything that runs on a node: whose network namespace is the node's.
    pub fn processes(&self, node: usize) -> Result<Vec<i32>> {
        let inode = self.nodes[node].ns.net_inode()?;
        let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            // Zombies have no namespace any more, so they do not count.
            let theirs = fs::metadata(entry.path().join("ns/net")).is_ok_and(|m| m.ino() == inode);
            (theirs && pid != 1).then_some(pid)
        });
        Ok(all.collect())
    }

    /// SIGKILL to every process whose network namespace is the node's.
    fn kill_processes(&self, node: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes(node)?;
            for pid in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("processes of {} do not die", self.nodes[node].node.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
