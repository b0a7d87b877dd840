//! flannel's VXLAN backend: VNI 1, UDP port 8472, the network address of the node's pod CIDR as its own (/32) on `flannel.1`, and for
//! each other node a neighbour, an FDB entry and a route of metric 0 to its pod CIDR by way of that address, `onlink`.
//!
//! With it come the rules of `--ip-masq`, which are in flannel's manifest, k3s and Talos.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::ns::{Namespace, feed};
use crate::topology::{CLUSTER_CIDR, Node, Topology, VXLAN_OVERHEAD, Vxlan};

const DEVICE: &str = Vxlan::FLANNEL.device;
/// The bridge plugin's bridge; in the lab the end of the one pod's cable.
pub const PODS_DEVICE: &str = "cni0";

/// The nodes that flannel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the node's location. Kilo joins locations, and its routes stand in the place of flannel's to the others.
    Location,
    /// All, as flannel has it.
    Cluster,
}

/// A node's address on `flannel.1`: where its pod CIDR begins.
pub fn address(node: &Node) -> Ipv4Addr {
    let [a, b, c, _] = node.pod().octets();
    Ipv4Addr::new(a, b, c, 0)
}

fn others<'t>(topology: &'t Topology, me: &Node, reach: Reach) -> impl Iterator<Item = &'t Node> {
    let (index, location) = (me.index, me.location);
    let spans = |n: &Node| topology.locations[n.location].cni.vxlan() == Some(Vxlan::FLANNEL);
    topology.nodes.iter().filter(move |n| {
        n.index != index && (n.location == location || (reach == Reach::Cluster && spans(n)))
    })
}

/// Sets up the device of a node and its ways to the others.
pub fn set_up(topology: &Topology, me: &Node, ns: &Namespace, reach: Reach) -> Result<()> {
    let mtu = topology.locations[me.location].lan_mtu - VXLAN_OVERHEAD;
    let mut lines = format!(
        "link add {DEVICE} address {} mtu {mtu} type vxlan id 1 local {} dev eth0 dstport {} nolearning\n\
         addr add {}/32 dev {DEVICE}\nlink set {DEVICE} up\n",
        me.mac(),
        me.lan(),
        Vxlan::FLANNEL.port,
        address(me)
    );
    let mut fdb = String::new();
    for other in others(topology, me, reach) {
        writeln!(
            fdb,
            "fdb append {} dev {DEVICE} dst {} self permanent",
            other.mac(),
            other.lan()
        )?;
    }
    lines += &routes(topology, me, reach);
    ns.sysctl("ipv4/ip_forward", "1")?;
    ns.ip(&lines)?;
    feed(ns.command("bridge").args(["-batch", "-"]), &fdb).context("bridge")
}

/// Neighbours and routes, as flannel writes them when it starts, and over again when it starts anew.
pub fn routes(topology: &Topology, me: &Node, reach: Reach) -> String {
    let mut lines = String::new();
    for other in others(topology, me, reach) {
        let (mac, via) = (other.mac(), address(other));
        let _ = writeln!(lines, "neigh replace {via} lladdr {mac} dev {DEVICE} nud permanent");
        let _ = writeln!(lines, "route replace {} via {via} dev {DEVICE} onlink", other.prefix());
    }
    lines
}

/// The rules of `--ip-masq`. What is neither from nor to the node's own pods is masqueraded on its way into the cluster with iptables
/// (the third rule lets only the own pods' packets through), and left alone with nftables.
pub fn masquerade(me: &Node, nftables: bool) -> String {
    let own = me.prefix();
    let third = if nftables {
        format!("ip saddr != {own} ip daddr {CLUSTER_CIDR} return")
    } else {
        format!("ip saddr != {CLUSTER_CIDR} ip daddr {own} return")
    };
    format!(
        "add table ip flannel\ndelete table ip flannel\ntable ip flannel {{\n chain postrtg {{\n  \
         type nat hook postrouting priority srcnat;\n  \
         meta mark 0x4000 return\n  \
         ip saddr {own} ip daddr {CLUSTER_CIDR} return\n  \
         ip saddr {CLUSTER_CIDR} ip daddr {own} return\n  \
         {third}\n  \
         ip saddr {CLUSTER_CIDR} ip daddr != 224.0.0.0/4 masquerade fully-random\n  \
         ip saddr != {CLUSTER_CIDR} ip daddr {CLUSTER_CIDR} masquerade fully-random\n }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    const TWO: &str =
        "title='t'\nlocation='a'\n[locations.a]\ncni='flannel'\n[locations.b]\ncni='flannel'\n";

    #[test]
    fn it_has_routes_to_all_nodes_of_the_cluster_or_to_those_of_its_location() {
        let topology = Topology::of(&Scenario::parse("x", TWO).unwrap()).unwrap();
        let count = |reach| {
            let lines = routes(&topology, &topology.nodes[0], reach);
            lines.lines().filter(|l| l.starts_with("route")).count()
        };
        assert_eq!((count(Reach::Location), count(Reach::Cluster)), (1, 3));
    }

    #[test]
    fn only_the_third_rule_tells_the_variants_apart() {
        let topology = Topology::of(&Scenario::parse("x", TWO).unwrap()).unwrap();
        let rules = [false, true].map(|nft| masquerade(&topology.nodes[1], nft));
        let [iptables, nftables] = [&rules[0], &rules[1]].map(|r| r.lines().collect::<Vec<_>>());
        let other: Vec<usize> =
            (0..iptables.len()).filter(|i| iptables[*i] != nftables[*i]).collect();
        assert_eq!(other.len(), 1);
        assert_eq!(
            iptables[other[0]].trim(),
            "ip saddr != 10.42.0.0/16 ip daddr 10.42.2.0/24 return"
        );
        assert_eq!(
            nftables[other[0]].trim(),
            "ip saddr != 10.42.2.0/24 ip daddr 10.42.0.0/16 return"
        );
    }
}
