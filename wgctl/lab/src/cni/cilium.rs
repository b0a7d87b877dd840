//! Cilium in tunnel mode. A second namespace of each node stands in for its BPF programs.
//!
//! ```text
//!  pod ── lxc ─┐
//!              BPF namespace ── cilium_vxlan, whose outer packets are the node's: LAN_i → LAN_j, UDP 8472
//!  node ── cilium_host/cilium_net
//! ```
//!
//! Pods hang on the BPF namespace and never ask the node's routes for other pods: what goes to a pod of any node of the cluster, in
//! whatever location, is encapsulated to that node's own address. The node holds a router address in its pod CIDR, taken at random
//! (here: scattered by its index), another one after each start of Cilium's daemon at worst. A foreign destination that the node
//! sends to `cilium_host` is dropped.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

use crate::ns::Namespace;
use crate::topology::{CLUSTER_CIDR, Node, Topology, Vxlan};
use crate::world::LabNode;

const DEVICE: &str = Vxlan::CILIUM.device;
/// Tables of the BPF namespace, asked after its main one: pods to the world, and everything else.
const TO_WORLD: u32 = 33_000;
const UNROUTABLE: u32 = 33_001;
/// Pods' gateway. Cilium answers for whatever address they ask.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A node's second namespace.
#[derive(Debug)]
pub struct Datapath {
    bpf: Namespace,
    /// How often Cilium's daemon has started anew.
    restarts: AtomicU16,
}

fn mac(kind: u8, node: &Node) -> String {
    format!("02:c{kind}:00:00:00:{:02x}", node.index)
}

/// The node's own address in its pod CIDR: never the first host, never the pod's.
pub fn router(node: &Node, restarts: u16) -> Ipv4Addr {
    let [a, b, c, _] = node.pod().octets();
    let scattered = (u32::from(node.index) * 73 + u32::from(restarts) * 101) % 230;
    Ipv4Addr::new(a, b, c, 20 + scattered as u8)
}

/// Nodes whose pods are in the same cluster.
fn cluster(topology: &Topology) -> impl Iterator<Item = &Node> {
    topology.nodes.iter().filter(|n| topology.locations[n.location].cni == super::Cni::Cilium)
}

impl Datapath {
    pub(super) fn build(
        topology: &Topology,
        me: &Node,
        ns: &Namespace,
        pod: &Namespace,
    ) -> Result<Self> {
        let bpf = Namespace::create(false)?;
        for ns in [ns, &bpf] {
            for (setting, value) in [("rp_filter", "0"), ("send_redirects", "0")] {
                for conf in ["all", "default"] {
                    ns.sysctl(&format!("ipv4/conf/{conf}/{setting}"), value)?;
                }
            }
            ns.sysctl("ipv4/ip_forward", "1")?;
        }
        let location = &topology.locations[me.location];
        let (lan_mtu, pod_mtu) = (location.lan_mtu, topology.pod_mtu(me.location));
        let (host_mac, path) = (mac(1, me), bpf.net_path()?);
        // Made in the node, and moved: the outer packets stay the node's.
        ns.ip(&format!(
            "link add cilium_host address {host_mac} mtu {lan_mtu} type veth peer name cilium_net address {host_mac} mtu {lan_mtu} netns {path}\n\
             link set cilium_host arp off up\n\
             link add {DEVICE} address {} mtu {lan_mtu} type vxlan external dstport {} nolearning\n\
             link set {DEVICE} netns {path}\n",
            mac(2, me),
            Vxlan::CILIUM.port
        ))
        .context("Cilium's devices")?;
        let mut lines = format!(
            "link set lo up\nlink set cilium_net arp off up\nlink set {DEVICE} up\n\
             link add lxc address {} mtu {pod_mtu} type veth peer name eth0 address {} mtu {pod_mtu} netns {}\nlink set lxc up\n\
             neigh replace {pod} lladdr {1} dev lxc nud permanent\nroute add {pod} dev lxc\n\
             route add default dev cilium_net table {TO_WORLD}\nroute add blackhole default table {UNROUTABLE}\n\
             rule add pref {TO_WORLD} from {} lookup {TO_WORLD}\nrule add pref {UNROUTABLE} lookup {UNROUTABLE}\n",
            mac(3, me),
            mac(4, me),
            pod.net_path()?,
            me.prefix(),
            pod = me.pod(),
        );
        for other in cluster(topology).filter(|o| o.index != me.index) {
            let (lan, prefix) = (other.lan(), other.prefix());
            writeln!(
                lines,
                "neigh replace {lan} lladdr {} dev {DEVICE} nud permanent",
                mac(2, other)
            )?;
            writeln!(
                lines,
                "route add {prefix} encap ip id 2 dst {lan} via {lan} dev {DEVICE} onlink"
            )?;
        }
        bpf.ip(&lines).context("Cilium's datapath")?;
        pod.ip(&format!(
            "link set lo up\nlink set eth0 up\naddr add {}/32 dev eth0\n\
             neigh replace {GATEWAY} lladdr {} dev eth0 nud permanent\nroute add default via {GATEWAY} dev eth0 onlink\n",
            me.pod(),
            mac(3, me)
        ))?;
        let datapath = Self { bpf, restarts: AtomicU16::new(0) };
        datapath.hold(topology, me, ns, router(me, 0), None)?;
        Ok(datapath)
    }

    /// The node holds this router address, and the one before no longer. The new one is there before the old one goes, so that a packet
    /// that is lost is not the CNI's doing.
    fn hold(
        &self,
        topology: &Topology,
        me: &Node,
        ns: &Namespace,
        router: Ipv4Addr,
        before: Option<Ipv4Addr>,
    ) -> Result<()> {
        self.bpf.ip(&format!("route replace {router} dev cilium_net\n"))?;
        let mut lines = format!("addr replace {router}/32 dev cilium_host\n");
        for node in cluster(topology) {
            writeln!(lines, "route replace {} dev cilium_host src {router}", node.prefix())?;
        }
        ns.ip(&lines)?;
        ns.nft(&masquerade(me, router))?;
        if let Some(before) = before.filter(|before| *before != router) {
            ns.ip(&format!("addr del {before}/32 dev cilium_host\n"))?;
            self.bpf.ip(&format!("route del {before} dev cilium_net\n"))?;
        }
        Ok(())
    }

    /// The node's router address now.
    pub fn router(&self, me: &Node) -> Ipv4Addr {
        router(me, self.restarts.load(Ordering::Relaxed))
    }
}

/// Cilium's source NAT by iptables: what is foreign to the node's pods gets the router address on its way to other nodes' pods, and
/// its pods' packets to the world get the node's address.
pub fn masquerade(me: &Node, router: Ipv4Addr) -> String {
    let own = me.prefix();
    format!(
        "add table ip cilium\ndelete table ip cilium\ntable ip cilium {{\n chain post {{\n  \
         type nat hook postrouting priority srcnat;\n  \
         oifname \"cilium_host\" ip saddr != {own} ip daddr != {own} snat to {router}\n  \
         oifname != \"cilium_*\" ip saddr {own} ip daddr != {CLUSTER_CIDR} masquerade\n }}\n}}\n"
    )
}

/// The daemon starts anew and takes another router address, or (`back`) the one before.
pub fn restart(topology: &Topology, node: &LabNode, back: bool) -> Result<()> {
    let datapath = node.cilium.as_ref().context("no Cilium here")?;
    let before = datapath.router(&node.node);
    let change = |n: u16| Some(if back { n.saturating_sub(1) } else { n + 1 });
    let _ = datapath.restarts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    let router = datapath.router(&node.node);
    datapath.hold(topology, &node.node, &node.ns, router, Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn a_router_address_is_neither_the_first_host_nor_the_pods_and_changes() {
        let text = "title='t'\nlocation='a'\n[locations.a]\ncandidates=99\ncni='cilium'\n[locations.b]\ncandidates=99\n";
        let topology = Topology::of(&Scenario::parse("x", text).unwrap()).unwrap();
        for n in &topology.nodes {
            for restarts in 0..50 {
                let router = router(n, restarts);
                assert_eq!(router.octets()[..3], n.pod().octets()[..3]);
                assert!((20..250).contains(&router.octets()[3]), "{router}");
            }
            assert_ne!(router(n, 0), router(n, 1));
        }
    }
}
