//! `flannel.1` of each node, as flannel's VXLAN backend sets it up: VNI 1, UDP port 8472, the network address of the node's pod CIDR
//! as its own (/32), and for each other node a neighbour, an FDB entry and a route to its pod CIDR by way of that address, `onlink`.
//!
//! Only nodes of the same location are in it: flannel's packets do not cross locations, which Kilo joins. Real flannel has entries for
//! all nodes; those of other locations lead nowhere, and Kilo's routes stand in their place.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use wgctl_lab::{Node, Vxlan, World, feed};

use crate::bench_peers::systems::overlay;

const DEVICE: &str = Vxlan::FLANNEL.device;
/// The LAN's MTU less VXLAN's 50 bytes, as flannel has it.
const MTU: u16 = 1450;

/// A node's address on flannel.1: where its pod CIDR begins.
pub fn address(node: &Node) -> Ipv4Addr {
    let [a, b, c, _] = node.gateway().octets();
    Ipv4Addr::new(a, b, c, 0)
}

/// Sets it up on all nodes, with forwarding.
pub fn set_up(world: &World) -> Result<()> {
    for n in &world.nodes {
        overlay::forwarding(n)?;
        let me = &n.node;
        let mut lines = format!(
            "link add {DEVICE} address {} mtu {MTU} type vxlan id 1 local {} dev eth0 dstport {} nolearning\n\
             addr add {}/32 dev {DEVICE}\nlink set {DEVICE} up\n",
            overlay::mac(me),
            me.lan(),
            Vxlan::FLANNEL.port,
            address(me)
        );
        let mut fdb = String::new();
        for other in overlay::nodes_of(&world.topology, me.location).filter(|o| o.index != me.index)
        {
            let (mac, via) = (overlay::mac(other), address(other));
            writeln!(fdb, "fdb append {mac} dev {DEVICE} dst {} self permanent", other.lan())?;
            writeln!(lines, "neigh replace {via} lladdr {mac} dev {DEVICE} nud permanent")?;
            writeln!(lines, "route add {} via {via} dev {DEVICE} onlink", other.prefix())?;
        }
        n.ns.ip(&lines)?;
        feed(n.ns.command("bridge").args(["-batch", "-"]), &fdb).context("bridge")?;
    }
    Ok(())
}
