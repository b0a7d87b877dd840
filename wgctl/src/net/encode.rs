//! Encodes changes as netlink messages.
//!
//! Numbers are those of the kernel's `include/uapi/linux/{rtnetlink,if_link,nexthop,neighbour,fib_rules}.h`.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::{
    Change, Family, InterfaceName, Nexthop, ROUTE_PROTOCOL, RouteKey, RouteVia, Rule, Vxlan,
};

use super::netlink::*;

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWNEIGH: u16 = 28;
pub const RTM_DELNEIGH: u16 = 29;
pub const RTM_GETNEIGH: u16 = 30;
pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
pub const RTM_GETRULE: u16 = 34;
pub const RTM_NEWNETCONF: u16 = 80;
pub const RTM_NEWNEXTHOP: u16 = 104;
pub const RTM_DELNEXTHOP: u16 = 105;
pub const RTM_GETNEXTHOP: u16 = 106;

pub const AF_INET: u8 = 2;
pub const AF_BRIDGE: u8 = 7;
pub const AF_INET6: u8 = 10;

pub const IFF_UP: u32 = 1;
pub const IFF_RUNNING: u32 = 0x40;
pub const IFF_LOWER_UP: u32 = 0x1_0000;
pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_IFNAME: u16 = 3;
pub const IFLA_MTU: u16 = 4;
pub const IFLA_LINKINFO: u16 = 18;
pub const IFLA_IFALIAS: u16 = 20;
pub const IFLA_INFO_KIND: u16 = 1;
pub const IFLA_INFO_DATA: u16 = 2;
pub const IFLA_VXLAN_ID: u16 = 1;
pub const IFLA_VXLAN_LOCAL: u16 = 4;
pub const IFLA_VXLAN_LEARNING: u16 = 7;
pub const IFLA_VXLAN_PORT: u16 = 15;
pub const IFLA_VXLAN_LOCAL6: u16 = 17;
pub const IFA_ADDRESS: u16 = 1;
pub const IFA_LOCAL: u16 = 2;
pub const IFA_F_NODAD: u8 = 2;
pub const RTA_DST: u16 = 1;
pub const RTA_OIF: u16 = 4;
pub const RTA_GATEWAY: u16 = 5;
pub const RTA_PRIORITY: u16 = 6;
pub const RTA_PREFSRC: u16 = 7;
pub const RTA_MULTIPATH: u16 = 9;
pub const RTA_TABLE: u16 = 15;
pub const RTA_NH_ID: u16 = 30;
pub const RTNH_F_ONLINK: u32 = 4;
pub const RTN_UNICAST: u8 = 1;
pub const NHA_ID: u16 = 1;
pub const NHA_GROUP: u16 = 2;
pub const NHA_BLACKHOLE: u16 = 4;
pub const NHA_OIF: u16 = 5;
pub const NHA_GATEWAY: u16 = 6;
pub const NDA_DST: u16 = 1;
pub const NDA_LLADDR: u16 = 2;
pub const NUD_PERMANENT: u16 = 0x80;
pub const NTF_SELF: u8 = 2;
pub const FRA_DST: u16 = 1;
pub const FRA_SRC: u16 = 2;
pub const FRA_IIFNAME: u16 = 3;
pub const FRA_PRIORITY: u16 = 6;
pub const FRA_FWMARK: u16 = 10;
pub const FRA_TABLE: u16 = 15;
pub const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const RT_SCOPE_NOWHERE: u8 = 255;
const RT_SCOPE_LINK: u8 = 253;

/// Marks our devices, so that they are recognised after a restart.
pub const ALIAS: &str = "leaderd";

pub fn address_bytes(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub fn family(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// Returns the kernel's index of a device.
///
/// # Errors
/// `ENODEV` if there is none.
pub fn index(name: &InterfaceName) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name.as_str()).map_err(io::Error::from)
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for word in [index, flags, change] {
        header.extend_from_slice(&word.to_ne_bytes());
    }
    header
}

pub fn add_link(name: &InterfaceName, kind: &str, mtu: Option<u32>) -> Message {
    let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name.as_str())
        .nested(IFLA_LINKINFO, |m| m.attr(IFLA_INFO_KIND, kind.as_bytes()));
    match mtu {
        Some(mtu) => message.attr_u32(IFLA_MTU, mtu),
        None => message,
    }
}

pub fn add_vxlan(name: &InterfaceName, vxlan: &Vxlan) -> Message {
    Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name.as_str())
        .attr_u32(IFLA_MTU, vxlan.mtu)
        .attr(IFLA_ADDRESS, &vxlan.mac.0)
        .nested(IFLA_LINKINFO, |m| {
            m.attr(IFLA_INFO_KIND, b"vxlan").nested(IFLA_INFO_DATA, |m| {
                let local =
                    if vxlan.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                m.attr_u32(IFLA_VXLAN_ID, vxlan.vni)
                    .attr(local, &address_bytes(&vxlan.local))
                    .attr(IFLA_VXLAN_LEARNING, &[0])
                    .attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes())
            })
        })
}

pub fn set_alias(name: &InterfaceName) -> io::Result<Message> {
    Ok(Message::new(RTM_NEWLINK, 0, &link_header(index(name)?, 0, 0))
        .attr(IFLA_IFALIAS, ALIAS.as_bytes()))
}

pub fn delete_link(name: &InterfaceName) -> io::Result<Message> {
    Ok(Message::new(RTM_DELLINK, 0, &link_header(index(name)?, 0, 0)))
}

fn address(kind: u16, flags: u16, name: &InterfaceName, address: &IpNet) -> io::Result<Message> {
    let nodad = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut header = vec![family(Family::of_net(address)), address.prefix_len(), nodad, 0];
    header.extend_from_slice(&index(name)?.to_ne_bytes());
    let ip = address_bytes(&address.addr());
    Ok(Message::new(kind, flags, &header).attr(IFA_LOCAL, &ip).attr(IFA_ADDRESS, &ip))
}

fn neighbour_header(family: u8, dev: &InterfaceName, flags: u8) -> io::Result<Vec<u8>> {
    let mut header = vec![family, 0, 0, 0];
    header.extend_from_slice(&index(dev)?.to_ne_bytes());
    header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[flags, 0]);
    Ok(header)
}

fn nexthop(id: u32, nexthop: &Nexthop) -> io::Result<Message> {
    let (fam, onlink) = match nexthop {
        Nexthop::Device { family: f, .. } | Nexthop::Blackhole { family: f } => (family(*f), false),
        Nexthop::Gateway { gateway, onlink, .. } => (family(Family::of(gateway)), *onlink),
        Nexthop::Group { .. } => (0, false),
    };
    let mut header = vec![fam, 0, ROUTE_PROTOCOL, 0];
    header.extend_from_slice(&(if onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    let message =
        Message::new(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE, &header).attr_u32(NHA_ID, id);
    Ok(match nexthop {
        Nexthop::Device { dev, .. } => message.attr_u32(NHA_OIF, index(dev)?),
        Nexthop::Gateway { dev, gateway, .. } => {
            message.attr_u32(NHA_OIF, index(dev)?).attr(NHA_GATEWAY, &address_bytes(gateway))
        }
        Nexthop::Blackhole { .. } => message.attr(NHA_BLACKHOLE, &[]),
        Nexthop::Group { members } => {
            let mut entries = Vec::new();
            for member in members {
                entries.extend_from_slice(&member.0.to_ne_bytes());
                // Weight less one, and reserved.
                entries.extend_from_slice(&[0; 4]);
            }
            message.attr(NHA_GROUP, &entries)
        }
    })
}

fn route(kind: u16, flags: u16, key: &RouteKey, via: Option<&RouteVia>) -> io::Result<Message> {
    let table = u8::try_from(key.table).unwrap_or(0);
    let scope = match via {
        None => RT_SCOPE_NOWHERE,
        Some(RouteVia::Device { .. }) if matches!(key.prefix, IpNet::V4(_)) => RT_SCOPE_LINK,
        Some(_) => 0,
    };
    let route_type = if via.is_some() { RTN_UNICAST } else { 0 };
    let onlink = matches!(via, Some(RouteVia::Gateway { onlink: true, .. }));
    let mut header = vec![
        family(Family::of_net(&key.prefix)),
        key.prefix.prefix_len(),
        0,
        0,
        table,
        ROUTE_PROTOCOL,
        scope,
        route_type,
    ];
    header.extend_from_slice(&(if onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    let mut message = Message::new(kind, flags, &header)
        .attr(RTA_DST, &address_bytes(&key.prefix.network()))
        .attr_u32(RTA_TABLE, key.table)
        .attr_u32(RTA_PRIORITY, key.metric);
    if let Some(source) = via.and_then(RouteVia::source) {
        message = message.attr(RTA_PREFSRC, &address_bytes(&source));
    }
    Ok(match via {
        None => message,
        Some(RouteVia::Nexthop { id, .. }) => message.attr_u32(RTA_NH_ID, id.0),
        Some(RouteVia::Device { dev, .. }) => message.attr_u32(RTA_OIF, index(dev)?),
        Some(RouteVia::Gateway { dev, gateway, .. }) => {
            message.attr_u32(RTA_OIF, index(dev)?).attr(RTA_GATEWAY, &address_bytes(gateway))
        }
    })
}

fn rule(kind: u16, flags: u16, rule: &Rule) -> Message {
    let length = |net: &Option<IpNet>| net.map_or(0, |n| n.prefix_len());
    let table = u8::try_from(rule.table).unwrap_or(0);
    let mut header = vec![
        family(rule.family),
        length(&rule.to),
        length(&rule.from),
        0,
        table,
        0,
        0,
        FR_ACT_TO_TBL,
    ];
    header.extend_from_slice(&[0; 4]);
    let mut message = Message::new(kind, flags, &header)
        .attr_u32(FRA_PRIORITY, rule.priority)
        .attr_u32(FRA_TABLE, rule.table)
        .attr(FRA_PROTOCOL, &[ROUTE_PROTOCOL]);
    if let Some(to) = rule.to {
        message = message.attr(FRA_DST, &address_bytes(&to.network()));
    }
    if let Some(from) = rule.from {
        message = message.attr(FRA_SRC, &address_bytes(&from.network()));
    }
    match &rule.iif {
        Some(iif) => message.attr_str(FRA_IIFNAME, iif.as_str()),
        None => message,
    }
}

/// Returns the message of a change; `None` for changes that are not one message: sysctls, WireGuard, new devices, nf_tables.
///
/// # Errors
/// `ENODEV` if a device does not exist.
pub fn encode(change: &Change) -> io::Result<Option<Message>> {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    Ok(Some(match change {
        Change::SetMtu { name, mtu } => {
            Message::new(RTM_NEWLINK, 0, &link_header(index(name)?, 0, 0)).attr_u32(IFLA_MTU, *mtu)
        }
        Change::SetMac { name, mac } => {
            Message::new(RTM_NEWLINK, 0, &link_header(index(name)?, 0, 0))
                .attr(IFLA_ADDRESS, &mac.0)
        }
        Change::SetUp { name, up } => Message::new(
            RTM_NEWLINK,
            0,
            &link_header(index(name)?, if *up { IFF_UP } else { 0 }, IFF_UP),
        ),
        Change::AddAddress { name, address: a } => address(RTM_NEWADDR, SET, name, a)?,
        Change::RemoveAddress { name, address: a } => address(RTM_DELADDR, 0, name, a)?,
        Change::SetNeighbour { dev, address, mac } => {
            Message::new(RTM_NEWNEIGH, SET, &neighbour_header(family(Family::of(address)), dev, 0)?)
                .attr(NDA_DST, &address_bytes(address))
                .attr(NDA_LLADDR, &mac.0)
        }
        Change::RemoveNeighbour { dev, address } => {
            Message::new(RTM_DELNEIGH, 0, &neighbour_header(family(Family::of(address)), dev, 0)?)
                .attr(NDA_DST, &address_bytes(address))
        }
        Change::SetFdb { dev, mac, endpoint } => {
            Message::new(RTM_NEWNEIGH, SET, &neighbour_header(AF_BRIDGE, dev, NTF_SELF)?)
                .attr(NDA_LLADDR, &mac.0)
                .attr(NDA_DST, &address_bytes(endpoint))
        }
        Change::RemoveFdb { dev, mac } => {
            Message::new(RTM_DELNEIGH, 0, &neighbour_header(AF_BRIDGE, dev, NTF_SELF)?)
                .attr(NDA_LLADDR, &mac.0)
        }
        Change::SetNexthop { id, nexthop: n } => nexthop(id.0, n)?,
        Change::RemoveNexthop { id } => {
            Message::new(RTM_DELNEXTHOP, 0, &[0; 8]).attr_u32(NHA_ID, id.0)
        }
        Change::AddRule { rule: r } => rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, r),
        Change::RemoveRule { rule: r } => rule(RTM_DELRULE, 0, r),
        Change::AddRoute { key, via } => {
            route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, key, Some(via))?
        }
        Change::ReplaceRoute { key, via } => route(RTM_NEWROUTE, SET, key, Some(via))?,
        Change::RemoveRoute { key } => route(RTM_DELROUTE, 0, key, None)?,
        Change::SetSysctl { .. }
        | Change::AddWireguard { .. }
        | Change::AddVxlan { .. }
        | Change::DeleteLink { .. }
        | Change::SetWireguard { .. }
        | Change::SetPeer { .. }
        | Change::RemovePeer { .. }
        | Change::SetUntracked { .. }
        | Change::RemoveUntracked => return Ok(None),
    }))
}
