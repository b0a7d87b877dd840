//! What leaderd owns on a node, as data: one type for the desired and for the observed network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::shared::Shared;
use crate::transit::Transit;

/// Route protocol number (rtnetlink `RTPROT_*`) that marks routes and nexthops as ours.
/// Below 128 numbers are registered in the kernel; 76 ('L') is unused by it and by FRR, BIRD and Kilo.
pub const ROUTE_PROTOCOL: u8 = 76;

/// Nexthop object ids we own: `NEXTHOP_ID_BASE ..= NEXTHOP_ID_BASE + 0xffff`. FRR counts up from 1.
pub const NEXTHOP_ID_BASE: u32 = 0x4c45_0000;

/// True if the nexthop object id lies in our range.
pub const fn owns_nexthop(id: NexthopId) -> bool {
    id.0 & 0xffff_0000 == NEXTHOP_ID_BASE
}

/// Name of a network interface: 1 to 15 bytes (kernel `IFNAMSIZ` less the NUL), no '/' and no white space.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Why a string is no interface name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidInterfaceName(pub String);

impl fmt::Display for InvalidInterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no interface name (1 to 15 bytes, no '/' and no spaces)", self.0)
    }
}
impl std::error::Error for InvalidInterfaceName {}

impl InterfaceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        let ok = (1..=15).contains(&s.len())
            && s != "."
            && s != ".."
            && !s.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if ok { Ok(Self(s)) } else { Err(InvalidInterfaceName(s)) }
    }
}
impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.to_owned().try_into()
    }
}
impl From<InterfaceName> for String {
    fn from(n: InterfaceName) -> Self {
        n.0
    }
}
impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A WireGuard public key (Curve25519, 32 bytes). Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WgPublicKey(pub [u8; 32]);

impl fmt::Debug for WgPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..4] {
            write!(f, "{b:02x}")?;
        }
        f.write_str("…")
    }
}

/// Id of a nexthop object (`ip nexthop … id N`). Ours: see [`owns_nexthop`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct NexthopId(pub u32);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything that leaderd owns on one node. An empty network means that nothing of ours is there.
///
/// Candidate `home-0` with one plane and one remote location, `cloud`, behind it:
///
/// ```yaml
/// wireguard:
///   wgl0: { listen_port: 51900, mtu: 1420, up, peers: { cloud-0: at 198.51.100.1:51900, allowed-ips 10.42.1.0/24 } }
/// addresses:
///   wgl0: 100.127.0.1/32
/// nexthops:
///   L0000: dev wgl0 (IPv4)
///   L1000: group L0000              # to cloud, through the planes of its leaders
/// routes:
///   10.42.1.0/24 table 254 metric 76: nexthop L1000
/// sysctls:
///   net/ipv4/ip_forward: 1
/// ```
///
/// A second plane `wgl1` (nexthop `L0001`) leads to candidate `cloud-1`. A failover from `cloud-0` to `cloud-1` is another network,
/// and the difference of the two is one change, whatever the number of routes:
///
/// ```
/// use wgctl_plan::*;
///
/// let id = |n| NexthopId(NEXTHOP_ID_BASE + n);
/// let plane = |dev: &str| Nexthop::Device { dev: dev.parse().unwrap(), family: Family::V4 };
/// let group = |member| Nexthop::Group { members: [id(member)].into() };
/// let to_cloud = RouteKey { table: MAIN_TABLE, prefix: "10.42.1.0/24".parse().unwrap(), metric: 76 };
/// let before = Network {
///     nexthops: [(id(0), plane("wgl0")), (id(1), plane("wgl1")), (id(0x1000), group(0))].into(),
///     routes: [(to_cloud, RouteVia::Nexthop { id: id(0x1000), source: None })].into(),
///     ..Network::default()
/// };
/// let mut after = before.clone();
/// after.nexthops.insert(id(0x1000), group(1));
///
/// let changes: Vec<String> = diff(&after, &before).iter().map(ToString::to_string).collect();
/// assert_eq!(changes, ["set nexthop L1000 group L0001"]);
/// ```
///
/// Copies share every part that none of them has changed ([`Shared`]). So to copy a network, and to compare it with a copy, costs
/// the same whatever its size, except for the parts in which the two differ.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Network {
    /// WireGuard interfaces, kernel or userspace.
    pub wireguard: Shared<BTreeMap<InterfaceName, WgInterface>>,
    /// VXLAN devices.
    pub vxlan: Shared<BTreeMap<InterfaceName, Vxlan>>,
    /// Addresses on our own interfaces (those in `wireguard` and `vxlan`).
    pub addresses: Shared<BTreeSet<(InterfaceName, IpNet)>>,
    /// Forwarding-database entries of our VXLAN devices: (device, MAC) → tunnel endpoint. One endpoint per MAC.
    #[serde(with = "crate::pairs::shared")]
    pub fdb: Shared<BTreeMap<(InterfaceName, Mac), IpAddr>>,
    /// Permanent neighbour entries on our VXLAN devices: (device, address) → MAC.
    #[serde(with = "crate::pairs::shared")]
    pub neighbours: Shared<BTreeMap<(InterfaceName, IpAddr), Mac>>,
    /// Nexthop objects and groups, all with ids that [`owns_nexthop`].
    pub nexthops: Shared<BTreeMap<NexthopId, Nexthop>>,
    /// Routes with protocol [`ROUTE_PROTOCOL`]. One per (table, prefix, metric).
    #[serde(with = "crate::pairs::shared")]
    pub routes: Shared<BTreeMap<RouteKey, RouteVia>>,
    /// Policy rules with protocol [`ROUTE_PROTOCOL`].
    pub rules: Shared<BTreeSet<Rule>>,
    /// Sysctls we need, as path below `/proc/sys` with '/' separators → value, such as `net/ipv4/ip_forward` → `1`.
    /// Interface names may hold dots, so this is a path, not the dotted form. A difference never removes a sysctl.
    pub sysctls: Shared<BTreeMap<String, String>>,
    /// Transit that stays out of connection tracking, if any: one nftables table of ours.
    #[serde(default)]
    pub untracked: Shared<Option<Transit>>,
}

impl Network {
    /// Shares with `other` the parts that are equal in both, so that later comparisons of the two, or of their copies, skip them.
    pub fn share(&mut self, other: &Self) {
        self.wireguard.share(&other.wireguard);
        self.vxlan.share(&other.vxlan);
        self.addresses.share(&other.addresses);
        self.fdb.share(&other.fdb);
        self.neighbours.share(&other.neighbours);
        self.nexthops.share(&other.nexthops);
        self.routes.share(&other.routes);
        self.rules.share(&other.rules);
        self.sysctls.share(&other.sysctls);
        self.untracked.share(&other.untracked);
    }
}

/// A WireGuard interface. The private key is not part of the plan: it is named by its public key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WgInterface {
    /// Public half of the private key that the interface holds; `None` when observed without a key.
    pub public_key: Option<WgPublicKey>,
    /// UDP port it listens on.
    pub listen_port: u16,
    /// Bytes, of the interface (inner packets).
    pub mtu: u32,
    pub up: bool,
    #[serde(with = "crate::pairs")]
    pub peers: BTreeMap<WgPublicKey, WgPeer>,
}

/// A peer of a WireGuard interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WgPeer {
    /// Where to send first. Not compared when observed, as endpoints roam: a difference is only made when the peer is
    /// new or the *desired* endpoint changed since we last set it (see `diff`).
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

/// A VXLAN device (RFC 7348) without learning.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vxlan {
    /// 24 bits.
    pub vni: u32,
    /// Source address of outer packets: this node's address in the location.
    pub local: IpAddr,
    /// UDP destination port.
    pub port: u16,
    pub mac: Mac,
    /// Bytes, of inner packets.
    pub mtu: u32,
    pub up: bool,
}

/// A nexthop object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Nexthop {
    /// Out of a device, for routes of one family (a nexthop without gateway has a family all the same).
    Device { dev: InterfaceName, family: Family },
    /// Through a gateway on a device; `onlink` because VXLAN gateways are in no connected subnet.
    Gateway { dev: InterfaceName, gateway: IpAddr, onlink: bool },
    /// An ECMP group of single nexthops, each with weight 1. Never empty.
    Group { members: BTreeSet<NexthopId> },
    /// Drops the traffic.
    Blackhole { family: Family },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
    pub const fn of_net(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// Identifies a route.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RouteKey {
    /// 254 is `main`.
    pub table: u32,
    /// Without host bits (see [`IpNet::trunc`]).
    pub prefix: IpNet,
    /// Kernel 'priority'. IPv6 turns 0 into 1024, so it is always given.
    pub metric: u32,
}

/// Where a route leads. `source` is the source address of packets that this node sends, unless their socket has another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RouteVia {
    Nexthop { id: NexthopId, source: Option<IpAddr> },
    Device { dev: InterfaceName, source: Option<IpAddr> },
    Gateway { dev: InterfaceName, gateway: IpAddr, onlink: bool },
}

/// A policy routing rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Rule {
    pub family: Family,
    pub priority: u32,
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    pub iif: Option<InterfaceName>,
    pub table: u32,
}
