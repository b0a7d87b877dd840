//! The mesh as it would be without leaderd: fixed relays (slot 0 of each location), plain VXLAN in the place of
//! WireGuard. It proves on real packets that the faults break what they claim to break, and that undoing mends it.

use std::fmt::Write as _;

use anyhow::Result;

use super::World;
use crate::topology::{MESH_MTU, Node, VXLAN_DEVICE, VXLAN_OVERHEAD, VXLAN_PORT};

/// UDP port and device of the stand-in for the tunnel between relays.
const TUNNEL_PORT: u16 = 51900;
const TUNNEL_DEVICE: &str = "wgl0";

impl World {
    /// `again`: what is there already stays, so that a fault's side effects can be mended.
    pub fn program_fixed(&self, again: bool) -> Result<()> {
        for (i, n) in self.nodes.iter().enumerate() {
            n.ns.sysctl("ipv4/ip_forward", "1")?;
            match n.ns.ip(&self.fixed_lines(i)?) {
                Err(e) if !again => return Err(e),
                _ => {}
            }
            let mut fdb = String::new();
            for other in self.nodes.iter().map(|o| &o.node).filter(|o| o.name != n.node.name) {
                if other.location == n.node.location {
                    writeln!(
                        fdb,
                        "fdb replace {} dev {VXLAN_DEVICE} dst {} self permanent",
                        other.mac(),
                        other.lan()
                    )?;
                } else if let (Some(0), Some(0), Some(wan)) = (n.node.slot, other.slot, other.wan())
                {
                    writeln!(
                        fdb,
                        "fdb replace {} dev {TUNNEL_DEVICE} dst {wan} self permanent",
                        other.mac()
                    )?;
                }
            }
            crate::ns::feed(n.ns.command("bridge").args(["-batch", "-"]), &fdb)?;
        }
        Ok(())
    }

    fn fixed_lines(&self, node: usize) -> Result<String> {
        let n = &self.nodes[node].node;
        let relay = n.slot == Some(0);
        let mut out = format!(
            "link add {VXLAN_DEVICE} address {} mtu {} type vxlan id 7946 local {} dstport {VXLAN_PORT} nolearning\n\
             link set {VXLAN_DEVICE} up\naddr add 100.126.0.{}/32 dev {VXLAN_DEVICE}\n",
            n.mac(),
            self.topology.locations[n.location].lan_mtu - VXLAN_OVERHEAD,
            n.lan(),
            n.index
        );
        if let (true, Some(wan)) = (relay, n.wan()) {
            write!(
                out,
                "link add {TUNNEL_DEVICE} address {} mtu {MESH_MTU} type vxlan id 1 local {wan} dstport {TUNNEL_PORT} nolearning\n\
                 link set {TUNNEL_DEVICE} up\n",
                n.mac()
            )?;
        }
        let relay_of = |l: usize| {
            self.nodes.iter().map(|o| &o.node).find(|o| o.location == l && o.slot == Some(0))
        };
        for o in self.nodes.iter().map(|o| &o.node).filter(|o| o.name != n.name) {
            let via = |dev: &str, to: &Node| {
                format!(
                    "neigh replace 100.126.0.{0} lladdr {1} dev {dev} nud permanent\n\
                     route replace {2} via 100.126.0.{0} dev {dev} onlink\n",
                    to.index,
                    to.mac(),
                    o.prefix()
                )
            };
            if o.location == n.location {
                out += &via(VXLAN_DEVICE, o);
            } else if let Some(far) = relay_of(o.location).filter(|_| relay) {
                out += &via(TUNNEL_DEVICE, far);
            } else if let Some(near) = relay_of(n.location) {
                out += &via(VXLAN_DEVICE, near);
            }
        }
        Ok(out)
    }
}
