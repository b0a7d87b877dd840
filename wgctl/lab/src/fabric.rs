//! What joins the nodes of a location: a switch, or a cloud's fabric that delivers packets between node addresses only.
//!
//! ```text
//! routed: no switch. Each node's cable ends in a router's namespace, which answers every ARP request itself (proxy ARP), has a /32 for each
//!         node, and drops what does not carry the sending node's own address as its source, and protocols 4 and 47 (Azure).
//! ```
//!
//! So a next hop that a node chose by itself means nothing there: the fabric looks at the destination (Azure, GCP, Hetzner Cloud,
//! DigitalOcean). What it does not know it drops without a word.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::ns::{Namespace, feed};
use crate::topology::Node;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricKind {
    /// A switch: frames go by MAC address.
    #[default]
    Switch,
    /// A cloud's fabric: packets go by destination address, and have to come from the port's own.
    Routed,
}

/// The running fabric of a location.
#[derive(Debug)]
pub enum Fabric {
    /// Name of the bridge in the lab's own network namespace.
    Switch(String),
    Routed(Namespace),
}

impl Fabric {
    pub fn build(kind: FabricKind, location: usize) -> Result<Self> {
        if kind == FabricKind::Switch {
            let name = format!("lan{location}");
            let lines = format!("link add {name} type bridge\nlink set {name} up\n");
            feed(Command::new("ip").args(["-batch", "-"]), &lines).context("switch")?;
            return Ok(Self::Switch(name));
        }
        let router = Namespace::create(false)?;
        for (conf, value) in [("rp_filter", "0"), ("send_redirects", "0")] {
            for of in ["all", "default"] {
                router.sysctl(&format!("ipv4/conf/{of}/{conf}"), value)?;
            }
        }
        router.sysctl("ipv4/ip_forward", "1")?;
        // Silent: no ICMP from a cloud's fabric.
        router.ip("link set lo up\nroute add blackhole default\n")?;
        router.nft(
            "table ip fabric {\n set ports { type ifname . ipv4_addr; }\n chain ports_only {\n  \
             type filter hook prerouting priority raw;\n  notrack\n  ip protocol { 4, 47 } drop\n  \
             iifname . ip saddr != @ports drop\n }\n}\n",
        )?;
        Ok(Self::Routed(router))
    }

    /// Lays the cable of a node: `eth0` there, and the fabric's end.
    pub fn plug(&self, node: &Node, ns: &Namespace, mtu: u16) -> Result<()> {
        let (port, path) = (port(node), ns.net_path()?);
        let cable =
            format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {path}\n");
        match self {
            Self::Switch(bridge) => feed(
                Command::new("ip").args(["-batch", "-"]),
                &format!("{cable}link set {port} master {bridge} up\n"),
            ),
            Self::Routed(router) => {
                router.ip(&cable)?;
                router.sysctl(&format!("ipv4/conf/{port}/proxy_arp"), "1")?;
                router.sysctl(&format!("ipv4/neigh/{port}/proxy_delay"), "0")?;
                router.nft(&format!(
                    "add element ip fabric ports {{ \"{port}\" . {} }}\n",
                    node.lan()
                ))?;
                router.ip(&port_up(node)?)
            }
        }
    }

    /// Plugs or pulls a cable, at the fabric's end.
    pub fn link(&self, node: &Node, plugged: bool) -> Result<()> {
        let port = port(node);
        let state = if plugged { "up" } else { "down" };
        let line = format!("link set {port} {state}\n");
        match self {
            Self::Switch(_) => feed(Command::new("ip").args(["-batch", "-"]), &line),
            // The kernel drops a device's routes when it goes down.
            Self::Routed(router) if plugged => router.ip(&port_up(node)?),
            Self::Routed(router) => router.ip(&line),
        }
    }
}

/// Name of the fabric's end of a node's LAN cable.
fn port(node: &Node) -> String {
    format!("lan-n{}", node.index)
}

fn port_up(node: &Node) -> Result<String> {
    let mut lines = String::new();
    writeln!(lines, "link set {} up", port(node))?;
    writeln!(lines, "route replace {} dev {} scope link", node.lan(), port(node))?;
    Ok(lines)
}
