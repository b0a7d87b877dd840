//! A network of its own for what manages the nodes, as an API server is reached in a cluster.
//!
//! ```text
//! mgmt, a bridge in the lab's own network namespace: 172.31.254.254 ── mgmt0 of each node: 172.31.254.{index}
//! ```
//!
//! No fault of the data path cuts it. It goes with the power of a node, and where a test says so.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use super::World;
use crate::ns::feed;
use crate::topology::Node;

/// Where servers for all nodes listen. A private address: what Kilo takes for public it may announce as a node's endpoint. In the lab's own network namespace.
pub const MANAGER: Ipv4Addr = Ipv4Addr::new(172, 31, 254, 254);
const BRIDGE: &str = "mgmt";
const DEVICE: &str = "mgmt0";

impl World {
    /// Builds the network, once.
    pub fn manage(&self) -> Result<()> {
        let mut switch = format!(
            "link add {BRIDGE} type bridge\naddr add {MANAGER}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n"
        );
        for n in &self.nodes {
            let (port, ns) = (port(&n.node), n.ns.net_path()?);
            writeln!(switch, "link add {port} type veth peer name {DEVICE} netns {ns}")?;
            writeln!(switch, "link set {port} master {BRIDGE} up")?;
        }
        feed(Command::new("ip").args(["-batch", "-"]), &switch).context("management network")?;
        for n in &self.nodes {
            let address = n.node.management();
            n.ns.ip(&format!("addr add {address}/24 dev {DEVICE}\nlink set {DEVICE} up\n"))?;
        }
        self.managed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Plugs or pulls a node's cable to it, at the switch. Nothing where there is no such network.
    pub fn management_link(&self, node: usize, plugged: bool) -> Result<()> {
        if !self.managed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let state = if plugged { "up" } else { "down" };
        let line = format!("link set {} {state}\n", port(&self.nodes[node].node));
        feed(Command::new("ip").args(["-batch", "-"]), &line)
    }
}

/// Name of the switch's end.
fn port(node: &Node) -> String {
    format!("mgmt-n{}", node.index)
}
