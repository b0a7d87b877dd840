//! Stand-ins of the CNIs that people have, as far as they meet what leaderd carries: devices, routes, addresses and source NAT.
//!
//! Each spans all locations that have it: one cluster, as in the field. Facts about the real ones are in their sources; what a
//! stand-in leaves out does not touch the packets between locations (policy, services, DNS).

pub mod cilium;
pub mod flannel;

use anyhow::Result;
use serde::Deserialize;

use crate::ns::Namespace;
use crate::topology::{Node, Topology, VXLAN_OVERHEAD, Vxlan};
use crate::world::LabNode;

/// What carries packets between the pods of a location's nodes, beside leaderd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cni {
    /// Nobody, or leaderd's own overlay.
    #[default]
    None,
    /// Cilium in tunnel mode, with its usual masquerading by iptables.
    Cilium,
    /// flannel's VXLAN backend with its usual masquerading by iptables.
    Flannel,
    /// The same with masquerading by nftables, whose third rule is another.
    FlannelNft,
}

impl Cni {
    /// The VXLAN that it has on each node.
    pub fn vxlan(self) -> Option<Vxlan> {
        match self {
            Self::None => None,
            Self::Cilium => Some(Vxlan::CILIUM),
            Self::Flannel | Self::FlannelNft => Some(Vxlan::FLANNEL),
        }
    }

    /// What the node's end of its pods' network is called, where the pods hang on the node itself.
    pub fn pods_device(self) -> &'static str {
        match self {
            Self::Flannel | Self::FlannelNft => flannel::PODS_DEVICE,
            Self::None | Self::Cilium => "pods",
        }
    }

    /// MTU of pods in a mesh of this one: full packets fit into everything on their way to other locations.
    pub fn pod_mtu(self, mesh_mtu: u16) -> u16 {
        match self {
            // The whole packet of its own VXLAN crosses the mesh.
            Self::Cilium => mesh_mtu - VXLAN_OVERHEAD,
            Self::None | Self::Flannel | Self::FlannelNft => mesh_mtu,
        }
    }

    /// Pods' packets to what is outside of the cluster's pods get an address of their node.
    pub fn masquerades(self) -> bool {
        self != Self::None
    }

    /// Sets it up on a node whose LAN is there, and whose pods are too, unless this is Cilium.
    pub(crate) fn set_up(
        self,
        topology: &Topology,
        node: &Node,
        ns: &Namespace,
        pod: &Namespace,
    ) -> Result<Option<cilium::Datapath>> {
        match self {
            Self::None => Ok(None),
            Self::Cilium => cilium::Datapath::build(topology, node, ns, pod).map(Some),
            Self::Flannel | Self::FlannelNft => {
                flannel::set_up(topology, node, ns, flannel::Reach::Cluster)?;
                ns.nft(&flannel::masquerade(node, self == Self::FlannelNft))?;
                Ok(None)
            }
        }
    }

    /// Its daemon on a node starts anew. `back`: as it was before.
    pub fn restart(self, topology: &Topology, node: &LabNode, back: bool) -> Result<()> {
        match self {
            Self::None => anyhow::bail!("{} has no CNI to start anew", node.node.name),
            Self::Cilium => cilium::restart(topology, node, back),
            Self::Flannel | Self::FlannelNft => {
                node.ns.ip(&flannel::routes(topology, &node.node, flannel::Reach::Cluster))?;
                node.ns.nft(&flannel::masquerade(&node.node, self == Self::FlannelNft))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn full_packets_of_pods_fit_into_what_carries_them() {
        let text =
            "title='t'\nlocation='a'\n[locations.a]\ncni='cilium'\n[locations.b]\nlan_mtu=1450\n";
        let topology = Topology::of(&Scenario::parse("x", text).unwrap()).unwrap();
        assert_eq!(topology.mesh_mtu(), 1400);
        let all: Vec<u16> = (0..2).map(|l| topology.pod_mtu(l)).collect();
        assert_eq!(all, [1350, 1400]);
    }
}
