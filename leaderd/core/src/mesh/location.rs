//! A location: what carries its traffic, what it has besides its nodes, and what it sets.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wgctl_plan::{Family, InterfaceName};

use super::policy::Policy;
use crate::ids::{LocationName, NodeName};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Location {
    pub name: LocationName,
    pub overlay: Overlay,
    /// Whether the mesh carries the addresses of its nodes as well: see [`super::Mesh::carried_address`].
    pub node_addresses: bool,
    /// Prefixes of the location that are behind none of its nodes: its leaders forward to them by their other routes.
    pub prefixes: Vec<IpNet>,
    /// Candidates of other locations that vote here and never lead here.
    pub witnesses: Vec<NodeName>,
    /// Real services to probe through every candidate.
    pub services: Vec<Service>,
    /// STAMP or TWAMP Light reflectors of others, at workload addresses. Probes to them are not authenticated.
    pub reflectors: Vec<SocketAddr>,
    pub steering: Steering,
    /// Whether connection tracking sees what this location's candidates relay. `None`: the mesh file does not say, see
    /// [`Location::tracks_transit`].
    pub track_transit: Option<bool>,
    /// The location's own policy, if it sets any: see [`super::Mesh::policy_of`].
    pub policy: Option<Policy>,
}

impl Location {
    /// Returns a location for which the file sets nothing but the overlay.
    pub fn new(name: LocationName, overlay: Overlay) -> Self {
        Self {
            name,
            overlay,
            node_addresses: false,
            prefixes: Vec::new(),
            witnesses: Vec::new(),
            services: Vec::new(),
            reflectors: Vec::new(),
            steering: Steering::default(),
            track_transit: None,
            policy: None,
        }
    }

    /// Returns whether connection tracking sees what its candidates relay, so that source NAT and stateful firewalls apply. By default
    /// not where a CNI carries the location: most CNIs rewrite the source of packets that are neither from nor for their own node.
    pub fn tracks_transit(&self) -> bool {
        self.track_transit.unwrap_or(!self.overlay.is_foreign())
    }
}

/// How a decision about a location reaches the data path.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// leaderd's routes always carry the workload.
    #[default]
    Native,
    /// leaderd's routes carry it beside Kilo. Kilo learns the decision, and its tunnels carry where leaderd's do not get through.
    Kilo,
    /// leaderd changes no routes: it measures, decides, and reports what it would have done.
    Observe,
}

/// A real service behind the candidates that answers TCP connects or HTTP requests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Within a workload prefix of the location.
    pub address: SocketAddr,
    /// The request to send once connected; `None`: the connect is the probe.
    pub http: Option<HttpRequest>,
}

/// An HTTP/1.1 request: `GET` without a body, `POST` with one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpRequest {
    /// As on the request line: `/healthz`.
    pub path: String,
    /// Bytes of the body.
    pub body: u32,
}

/// What carries traffic between the nodes of a location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Overlay {
    /// Next hops are the nodes' addresses on the LAN device (named per node, else found by its address).
    Direct,
    /// A VXLAN device that leaderd owns.
    Vxlan(VxlanDevice),
    /// A CNI carries the location's own prefixes. A VXLAN device that leaderd owns carries remote ones, in both directions.
    Cni(VxlanDevice),
    /// A CNI carries everything: leaderd programs no local routes.
    External,
    /// Flannel's VXLAN backend carries everything: leaderd programs no local routes, and reaches other nodes as flannel does, through
    /// the network address of their first prefix on this device.
    Flannel { device: InterfaceName },
}

/// A VXLAN device that leaderd owns, between the nodes of a location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VxlanDevice {
    pub device: InterfaceName,
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Bytes of an inner packet. `None`: as many as fit into the LAN's packets, see [`VxlanDevice::mtu_on`].
    pub mtu: Option<u16>,
}

impl VxlanDevice {
    /// Returns its MTU where the LAN device has this one: at most what fits, so that no packet is fragmented or lost. An unknown LAN
    /// counts as Ethernet.
    pub fn mtu_on(&self, lan_mtu: Option<u32>, lan: Family) -> u32 {
        let overhead = match lan {
            Family::V4 => 50,
            Family::V6 => 70,
        };
        let configured = self.mtu.map(u32::from);
        match lan_mtu {
            Some(lan_mtu) => {
                let fits = lan_mtu.saturating_sub(overhead);
                configured.map_or(fits, |mtu| mtu.min(fits))
            }
            None => configured.unwrap_or(1450),
        }
    }
}

impl Default for VxlanDevice {
    fn default() -> Self {
        let device = "lvx0".parse().expect("an interface name");
        Self { device, vni: 7946, port: 4790, mtu: None }
    }
}

impl Overlay {
    /// Returns the VXLAN device that leaderd owns in such a location.
    pub const fn vxlan(&self) -> Option<&VxlanDevice> {
        match self {
            Self::Vxlan(vxlan) | Self::Cni(vxlan) => Some(vxlan),
            Self::Direct | Self::External | Self::Flannel { .. } => None,
        }
    }

    /// Returns whether a CNI carries the location's own prefixes. Then leaderd's routes are in tables of their own: a CNI may have
    /// better ones in `main`, have rules before it, or announce what is in it.
    pub const fn is_foreign(&self) -> bool {
        match self {
            Self::Cni(_) | Self::External | Self::Flannel { .. } => true,
            Self::Direct | Self::Vxlan(_) => false,
        }
    }
}
