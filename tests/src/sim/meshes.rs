//! Meshes for a [`World`](super::World).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use leaderd_core::ids::{LocationName, NodeIndex, NodeName, Slot};
use leaderd_core::mesh::{Host, Location, Mesh, MeshSpec, Node, Overlay, Policy, VxlanDevice};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::proof::Signer;
use serde::{Deserialize, Serialize};

/// A location: name, number of candidates and members, witnesses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub name: String,
    pub candidates: u16,
    pub members: u16,
    pub witnesses: Vec<String>,
    /// Next hops are the nodes' LAN addresses, without VXLAN.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// Workloads have IPv6 addresses too. Not in meshes of 255 sites or more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
}

impl Site {
    pub fn new(name: &str, candidates: u16, members: u16) -> Self {
        let (name, witnesses) = (name.to_owned(), Vec::new());
        Self { name, candidates, members, witnesses, direct: false, ipv6: false }
    }

    pub fn direct(self) -> Self {
        Self { direct: true, ..self }
    }

    pub fn dual_stack(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// Adds a node of another location as a voter.
    pub fn witness(mut self, node: &str) -> Self {
        self.witnesses.push(node.to_owned());
        self
    }
}

/// Returns the mesh of these sites, and each node's secret.
///
/// Nodes are called `{site}-{n}`, candidates first; node n of site s has the workload prefix 10.{s}.{n}.0/24
/// (in meshes of 255 sites or more 10.{i}.0/24, with i the two bytes of its index), and fd00:0:{s}:{n}::/64 with IPv6.
pub fn mesh_of(sites: &[Site], policy: Policy) -> (Mesh, BTreeMap<NodeName, [u8; 32]>) {
    let mut mesh = MeshSpec { policy, ..MeshSpec::named("sim") };
    let mut secrets = BTreeMap::new();
    let mut index: u16 = 0;
    for (site_number, site) in sites.iter().enumerate() {
        let location: LocationName = site.name.parse().expect("a name");
        let witnesses = site.witnesses.iter().map(|w| w.parse().expect("a name")).collect();
        let overlay =
            if site.direct { Overlay::Direct } else { Overlay::Vxlan(VxlanDevice::default()) };
        let new = Location { witnesses, ..Location::new(location.clone(), overlay) };
        mesh.locations.insert(location.clone(), new);
        if site.ipv6 {
            mesh.inner.v6 = Some("fd76::/112".parse().expect("a prefix"));
        }
        for n in 0..site.candidates + site.members {
            index += 1;
            let secret = secret_of(index, 1);
            let slot = (n < site.candidates).then_some(Slot(n as u8));
            // Two bytes that no other node has.
            let (a, b) = if sites.len() < 255 {
                (site_number as u8 + 1, n as u8)
            } else {
                ((index >> 8) as u8, index as u8)
            };
            let mut node = node_of(&location, n.into(), (a, b), NodeIndex(index), slot, secret);
            if site.ipv6 {
                let net = Ipv6Addr::new(0xfd00, 0, a.into(), b.into(), 0, 0, 0, 0);
                node.prefixes.push(IpNet::new(net.into(), 64).expect("64 is a length"));
                node.probe_addresses.push(IpAddr::V6(Ipv6Addr::from(u128::from(net) + 1)));
            }
            let name = node.name.clone();
            mesh.nodes.insert(name.clone(), node);
            secrets.insert(name, secret);
        }
    }
    (Mesh::unchecked(mesh), secrets)
}

/// Node `n` of a site; its addresses follow from two bytes that no other node has, mostly the site's number and its own.
pub(super) fn node_of(
    location: &LocationName,
    n: usize,
    (a, b): (u8, u8),
    index: NodeIndex,
    slot: Option<Slot>,
    secret: [u8; 32],
) -> Node {
    let address = IpAddr::V4(Ipv4Addr::new(192, 168, a, b.wrapping_add(1)));
    let name = format!("{location}-{n}").parse().expect("a name");
    Node {
        slot,
        endpoint: slot.map(|_| endpoint_of(address)),
        prefixes: vec![format!("10.{a}.{b}.0/24").parse().expect("a prefix")],
        probe_addresses: vec![IpAddr::V4(Ipv4Addr::new(10, a, b, 1))],
        wireguard_key: ProbeKeys::new(secret).public(),
        control_key: Signer::new(&secret).public(),
        ..Node::member(name, index.0, location.clone(), address)
    }
}

/// Returns the endpoint of a node with this LAN address.
pub(super) fn endpoint_of(address: IpAddr) -> Host {
    let IpAddr::V4(v4) = address else { unreachable!("the simulator's LANs are IPv4") };
    let [_, _, a, b] = v4.octets();
    Host::Ip(IpAddr::V4(Ipv4Addr::new(203, 0, a, b)))
}

/// Returns the secret of a node: another one for each `time`.
pub(super) fn secret_of(index: u16, time: u8) -> [u8; 32] {
    let mut secret = [0u8; 32];
    secret[..2].copy_from_slice(&index.to_be_bytes());
    secret[2] = time;
    secret
}
