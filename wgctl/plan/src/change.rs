//! One step from the observed to the desired network. A step is one kernel operation, which succeeds or fails as a whole, and
//! which needs nothing else of the plan.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::*;
use crate::transit::Transit;

/// One operation on the kernel. See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// Writes a file below `/proc/sys`.
    SetSysctl {
        path: String,
        value: String,
    },
    /// Creates a WireGuard interface, down, without key, port and peers.
    AddWireguard {
        name: InterfaceName,
        mtu: u32,
    },
    /// Creates a VXLAN device, down.
    AddVxlan {
        name: InterfaceName,
        vxlan: Vxlan,
    },
    /// Deletes a device of ours, and with it all that depends on it.
    DeleteLink {
        name: InterfaceName,
    },
    SetMtu {
        name: InterfaceName,
        mtu: u32,
    },
    SetMac {
        name: InterfaceName,
        mac: Mac,
    },
    SetUp {
        name: InterfaceName,
        up: bool,
    },
    /// Sets what is given and leaves the rest. The key is named by its public half.
    SetWireguard {
        name: InterfaceName,
        public_key: Option<WgPublicKey>,
        listen_port: Option<u16>,
    },
    /// Adds a peer or changes it; `peer.endpoint` of `None` leaves the endpoint as it is. The allowed-IPs are the
    /// whole set, and are taken from any other peer that has them.
    SetPeer {
        name: InterfaceName,
        key: WgPublicKey,
        peer: WgPeer,
    },
    RemovePeer {
        name: InterfaceName,
        key: WgPublicKey,
    },
    AddAddress {
        name: InterfaceName,
        address: IpNet,
    },
    RemoveAddress {
        name: InterfaceName,
        address: IpNet,
    },
    SetNeighbour {
        dev: InterfaceName,
        address: IpAddr,
        mac: Mac,
    },
    RemoveNeighbour {
        dev: InterfaceName,
        address: IpAddr,
    },
    SetFdb {
        dev: InterfaceName,
        mac: Mac,
        endpoint: IpAddr,
    },
    RemoveFdb {
        dev: InterfaceName,
        mac: Mac,
    },
    /// Adds or replaces a nexthop object. A single one never replaces a group, nor the reverse.
    SetNexthop {
        id: NexthopId,
        nexthop: Nexthop,
    },
    RemoveNexthop {
        id: NexthopId,
    },
    AddRule {
        rule: Rule,
    },
    RemoveRule {
        rule: Rule,
    },
    /// Adds a route; refused if any route, ours or not, has the same key.
    AddRoute {
        key: RouteKey,
        via: RouteVia,
    },
    /// Replaces our route of this key in one step.
    ReplaceRoute {
        key: RouteKey,
        via: RouteVia,
    },
    RemoveRoute {
        key: RouteKey,
    },
    /// Keeps this transit, and no other, out of connection tracking: replaces the present table in one step.
    SetUntracked {
        transit: Transit,
    },
    RemoveUntracked,
}

impl fmt::Display for WgPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for NexthopId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if owns_nexthop(*self) {
            write!(f, "L{:04x}", self.0 & 0xffff)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { dev, family } => write!(f, "dev {dev} ({family})"),
            Self::Gateway { dev, gateway, onlink } => {
                write!(f, "via {gateway} dev {dev}{}", if *onlink { " onlink" } else { "" })
            }
            Self::Group { members } => {
                f.write_str("group")?;
                members.iter().try_for_each(|m| write!(f, " {m}"))
            }
            Self::Blackhole { family } => write!(f, "blackhole ({family})"),
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table {} metric {}", self.prefix, self.table, self.metric)
    }
}

impl fmt::Display for RouteVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nexthop { id, source: None } => write!(f, "nexthop {id}"),
            Self::Nexthop { id, source: Some(source) } => write!(f, "nexthop {id} src {source}"),
            Self::Device { dev, source: None } => write!(f, "dev {dev}"),
            Self::Device { dev, source: Some(source) } => write!(f, "dev {dev} src {source}"),
            Self::Gateway { dev, gateway, onlink } => {
                write!(f, "via {gateway} dev {dev}{}", if *onlink { " onlink" } else { "" })
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.priority, self.family)?;
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

impl Change {
    /// Returns the object that it changes. Changes of the same object return the same text.
    pub fn object(&self) -> String {
        match self {
            Self::SetSysctl { path, .. } => format!("sysctl {path}"),
            Self::AddWireguard { name, .. }
            | Self::AddVxlan { name, .. }
            | Self::DeleteLink { name }
            | Self::SetMtu { name, .. }
            | Self::SetMac { name, .. }
            | Self::SetUp { name, .. }
            | Self::SetWireguard { name, .. } => format!("link {name}"),
            Self::SetPeer { name, key, .. } | Self::RemovePeer { name, key } => {
                format!("peer {key} of {name}")
            }
            Self::AddAddress { name, address } | Self::RemoveAddress { name, address } => {
                format!("address {address} dev {name}")
            }
            Self::SetNeighbour { dev, address, .. } | Self::RemoveNeighbour { dev, address } => {
                format!("neighbour {address} dev {dev}")
            }
            Self::SetFdb { dev, mac, .. } | Self::RemoveFdb { dev, mac } => {
                format!("fdb {mac} dev {dev}")
            }
            Self::SetNexthop { id, .. } | Self::RemoveNexthop { id } => format!("nexthop {id}"),
            Self::AddRule { rule } | Self::RemoveRule { rule } => format!("rule {rule}"),
            Self::AddRoute { key, .. }
            | Self::ReplaceRoute { key, .. }
            | Self::RemoveRoute { key } => format!("route {key}"),
            Self::SetUntracked { .. } | Self::RemoveUntracked => "untracked transit".to_owned(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { path, value } => write!(f, "set sysctl {path} = {value}"),
            Self::AddWireguard { name, mtu } => write!(f, "add wireguard {name} mtu {mtu}"),
            Self::AddVxlan { name, vxlan: v } => {
                write!(
                    f,
                    "add vxlan {name} vni {} local {} port {} mac {} mtu {}",
                    v.vni, v.local, v.port, v.mac, v.mtu
                )
            }
            Self::DeleteLink { name } => write!(f, "delete link {name}"),
            Self::SetMtu { name, mtu } => write!(f, "set link {name} mtu {mtu}"),
            Self::SetMac { name, mac } => write!(f, "set link {name} mac {mac}"),
            Self::SetUp { name, up } => {
                write!(f, "set link {name} {}", if *up { "up" } else { "down" })
            }
            Self::SetWireguard { name, public_key, listen_port } => {
                write!(f, "set wireguard {name}")?;
                if let Some(key) = public_key {
                    write!(f, " key {key}")?;
                }
                if let Some(port) = listen_port {
                    write!(f, " port {port}")?;
                }
                Ok(())
            }
            Self::SetPeer { name, key, peer } => {
                write!(f, "set peer {key} of {name} with {} allowed-ips", peer.allowed_ips.len())?;
                match peer.endpoint {
                    Some(endpoint) => write!(f, " endpoint {endpoint}"),
                    None => Ok(()),
                }
            }
            Self::RemovePeer { name, key } => write!(f, "remove peer {key} of {name}"),
            Self::AddAddress { name, address } => write!(f, "add address {address} dev {name}"),
            Self::RemoveAddress { name, address } => {
                write!(f, "remove address {address} dev {name}")
            }
            Self::SetNeighbour { dev, address, mac } => {
                write!(f, "set neighbour {address} is {mac} dev {dev}")
            }
            Self::RemoveNeighbour { dev, address } => {
                write!(f, "remove neighbour {address} dev {dev}")
            }
            Self::SetFdb { dev, mac, endpoint } => {
                write!(f, "set fdb {mac} at {endpoint} dev {dev}")
            }
            Self::RemoveFdb { dev, mac } => write!(f, "remove fdb {mac} dev {dev}"),
            Self::SetNexthop { id, nexthop } => write!(f, "set nexthop {id} {nexthop}"),
            Self::RemoveNexthop { id } => write!(f, "remove nexthop {id}"),
            Self::AddRule { rule } => write!(f, "add rule {rule}"),
            Self::RemoveRule { rule } => write!(f, "remove rule {rule}"),
            Self::AddRoute { key, via } => write!(f, "add route {key} {via}"),
            Self::ReplaceRoute { key, via } => write!(f, "replace route {key} {via}"),
            Self::RemoveRoute { key } => write!(f, "remove route {key}"),
            Self::SetUntracked { transit } => write!(f, "set untracked {transit}"),
            Self::RemoveUntracked => f.write_str("remove untracked transit"),
        }
    }
}
