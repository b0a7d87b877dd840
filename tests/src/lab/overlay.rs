//! Sets up what a CNI would: forwarding, and one VXLAN per location with fixed neighbours.
//!
//! ```text
//! lvx0   100.126.{location}.{index}/24, MAC 02:4c:45:00:00:{index}; unknown and broadcast frames go to all of the location
//! ```
//!
//! Same device, port and MTU as leaderd's own, so that faults of the overlay mean the same to every system.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wgctl::wireguard::BACKEND_VARIABLE;
use wgctl_lab::{LabNode, Node, Topology, VXLAN_DEVICE, VXLAN_PORT, World, feed};

/// MTU of WireGuard over a path of 1500 bytes.
pub const TUNNEL_MTU: u16 = 1420;
const TUNNEL_STARTS_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A node's address on its location's overlay.
pub fn address(node: &Node) -> Ipv4Addr {
    Ipv4Addr::new(100, 126, node.location as u8, node.index as u8)
}

pub fn mac(node: &Node) -> String {
    format!("02:4c:45:00:00:{:02x}", node.index)
}

pub fn nodes_of(topology: &Topology, location: usize) -> impl Iterator<Item = &Node> {
    topology.nodes.iter().filter(move |n| n.location == location)
}

/// Candidates of a location, by slot.
pub fn gateways_of(topology: &Topology, location: usize) -> impl Iterator<Item = &Node> {
    nodes_of(topology, location).filter(|n| n.slot.is_some())
}

/// Workload prefixes of all other locations.
pub fn remote_prefixes(topology: &Topology, location: usize) -> Vec<String> {
    let remote = topology.nodes.iter().filter(|n| n.location != location);
    remote.map(Node::prefix).collect()
}

/// A node that forwards.
pub fn forwarding(n: &LabNode) -> Result<()> {
    // Replies may come another way than requests went.
    for conf in ["all", "default", "eth0", "pods"] {
        n.ns.sysctl(&format!("ipv4/conf/{conf}/rp_filter"), "0")?;
        n.ns.sysctl(&format!("ipv4/conf/{conf}/send_redirects"), "0")?;
    }
    n.ns.sysctl("ipv4/ip_forward", "1")
}

/// Sets the overlay up on all nodes. `routes`: and routes to the workloads of the location, as flannel's VXLAN has them.
pub fn set_up(world: &World, routes: bool) -> Result<()> {
    for n in &world.nodes {
        let me = &n.node;
        forwarding(n)?;
        let mut lines = format!(
            "link add {VXLAN_DEVICE} address {} mtu 1450 type vxlan id 7946 local {} dstport {VXLAN_PORT} nolearning\n\
             addr add {}/24 dev {VXLAN_DEVICE}\nlink set {VXLAN_DEVICE} up\n",
            mac(me),
            me.lan(),
            address(me)
        );
        let mut fdb = String::new();
        for other in nodes_of(&world.topology, me.location).filter(|o| o.index != me.index) {
            writeln!(
                fdb,
                "fdb append {} dev {VXLAN_DEVICE} dst {} self permanent",
                mac(other),
                other.lan()
            )?;
            writeln!(
                fdb,
                "fdb append 00:00:00:00:00:00 dev {VXLAN_DEVICE} dst {} self permanent",
                other.lan()
            )?;
            writeln!(
                lines,
                "neigh replace {} lladdr {} dev {VXLAN_DEVICE} nud permanent",
                address(other),
                mac(other)
            )?;
            if routes {
                writeln!(
                    lines,
                    "route add {} via {} dev {VXLAN_DEVICE}",
                    other.prefix(),
                    address(other)
                )?;
            }
        }
        n.ns.ip(&lines)?;
        feed(n.ns.command("bridge").args(["-batch", "-"]), &fdb).context("bridge")?;
    }
    Ok(())
}

/// Makes a WireGuard device, and loads a configuration of `wg setconf`. The device stays down. With `LEADERD_WIREGUARD=kernel`,
/// as for leaderd, it is the kernel's and replaces one of that name; else a `wireguard-go` serves it.
pub fn start_tunnel(node: &LabNode, device: &str, configuration: &str) -> Result<()> {
    if std::env::var_os(BACKEND_VARIABLE).is_some_and(|asked| asked == "kernel") {
        let _ = node.ns.ip(&format!("link del {device}\n"));
        node.ns.ip(&format!("link add {device} type wireguard\n"))?;
    } else {
        node.ns.output("wireguard-go", &[device])?;
    }
    let deadline = Instant::now() + TUNNEL_STARTS_WITHIN;
    while let Err(e) = configure_tunnel(node, device, configuration) {
        if Instant::now() > deadline {
            bail!("{device} on {} does not start: {e:#}", node.node.name);
        }
        std::thread::sleep(POLL);
    }
    node.ns.ip(&format!("link set {device} mtu {TUNNEL_MTU}"))
}

/// `wg setconf`: what is not in the configuration goes.
pub fn configure_tunnel(node: &LabNode, device: &str, configuration: &str) -> Result<()> {
    let file = node.dir.join(format!("{device}.conf"));
    std::fs::write(&file, configuration)?;
    let file = file.to_str().context("a path that is no text")?;
    node.ns.output("wg", &["setconf", device, file]).map(drop)
}

/// A node's secret key, as a line of a configuration has it.
pub fn secret_key(node: &LabNode) -> Result<String> {
    read_trimmed(&node.dir.join("keys/wireguard.key"))
}

fn read_trimmed(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file);
    Ok(text.with_context(|| format!("cannot read {}", file.display()))?.trim().to_owned())
}
