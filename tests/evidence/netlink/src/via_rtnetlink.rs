//! What `wgctl/src/net/encode.rs` and the decoding half of `observe.rs` do, on `rtnetlink` and `netlink-packet-route`. Nexthop objects
//! are missing there: they would stay with a socket and an encoder of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle};
use wgctl_plan::*;

use crate::encode::{ALIAS, index};

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

pub fn add_link(name: &InterfaceName, kind: InfoKind, mtu: Option<u32>) -> LinkMessage {
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    link(0, attributes)
}

pub fn add_vxlan(name: &InterfaceName, vxlan: &Vxlan) -> LinkMessage {
    let local = match vxlan.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let data = vec![
        InfoVxlan::Id(vxlan.vni),
        local,
        InfoVxlan::Learning(false),
        InfoVxlan::Port(vxlan.port),
    ];
    link(
        0,
        vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Mtu(vxlan.mtu),
            LinkAttribute::Address(vxlan.mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ],
    )
}

pub fn set_alias(name: &InterfaceName) -> io::Result<LinkMessage> {
    Ok(link(index(name)?, vec![LinkAttribute::IfAlias(ALIAS.to_owned())]))
}

fn address(name: &InterfaceName, address: &IpNet) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.family = family(Family::of_net(address));
    message.header.prefix_len = address.prefix_len();
    if address.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.header.index = index(name)?;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    Ok(message)
}

fn neighbour(
    family: AddressFamily,
    dev: &InterfaceName,
    flags: NeighbourFlags,
    attributes: Vec<NeighbourAttribute>,
) -> io::Result<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index(dev)?;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = flags;
    message.attributes = attributes;
    Ok(message)
}

fn route(key: &RouteKey, via: Option<&RouteVia>) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(Family::of_net(&key.prefix));
    header.destination_prefix_length = key.prefix.prefix_len();
    header.table = u8::try_from(key.table).unwrap_or(0);
    header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    header.scope = match via {
        None => RouteScope::NoWhere,
        Some(RouteVia::Device { .. }) if matches!(key.prefix, IpNet::V4(_)) => RouteScope::Link,
        Some(_) => RouteScope::Universe,
    };
    header.kind = if via.is_some() { RouteType::Unicast } else { RouteType::Unspec };
    if matches!(via, Some(RouteVia::Gateway { onlink: true, .. })) {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(key.prefix.network().into()));
    attributes.push(RouteAttribute::Table(key.table));
    attributes.push(RouteAttribute::Priority(key.metric));
    let source = via.and_then(RouteVia::source);
    attributes.extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    match via {
        None => {}
        Some(RouteVia::Nexthop { id, .. }) => attributes.push(RouteAttribute::NhId(id.0)),
        Some(RouteVia::Device { dev, .. }) => attributes.push(RouteAttribute::Oif(index(dev)?)),
        Some(RouteVia::Gateway { dev, gateway, .. }) => {
            attributes.push(RouteAttribute::Oif(index(dev)?));
            attributes.push(RouteAttribute::Gateway((*gateway).into()));
        }
    }
    Ok(message)
}

fn rule(rule: &Rule) -> RuleMessage {
    let length = |net: &Option<IpNet>| net.map_or(0, |n| n.prefix_len());
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.header.dst_len = length(&rule.to);
    message.header.src_len = length(&rule.from);
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    let attributes = &mut message.attributes;
    attributes.extend(rule.to.map(|p| RuleAttribute::Destination(p.network())));
    attributes.extend(rule.from.map(|p| RuleAttribute::Source(p.network())));
    attributes.extend(rule.iif.as_ref().map(|iif| RuleAttribute::Iifname(iif.to_string())));
    message
}

/// The message of a change and its flags; `None` for what is no message of this library: nexthop objects among others.
pub fn encode(change: &Change) -> io::Result<Option<(RouteNetlinkMessage, u16)>> {
    use RouteNetlinkMessage as M;
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    let ip_neighbour = |dev, address: &IpAddr, mac: Option<&Mac>| {
        let mut attributes = vec![NeighbourAttribute::Destination((*address).into())];
        attributes.extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.0.to_vec())));
        neighbour(family(Family::of(address)), dev, NeighbourFlags::empty(), attributes)
    };
    let fdb = |dev, mac: &Mac, endpoint: Option<&IpAddr>| {
        let mut attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        attributes.extend(endpoint.map(|ip| NeighbourAttribute::Destination((*ip).into())));
        neighbour(AddressFamily::Bridge, dev, NeighbourFlags::Own, attributes)
    };
    Ok(Some(match change {
        Change::SetMtu { name, mtu } => {
            (M::NewLink(link(index(name)?, vec![LinkAttribute::Mtu(*mtu)])), 0)
        }
        Change::SetMac { name, mac } => {
            (M::NewLink(link(index(name)?, vec![LinkAttribute::Address(mac.0.to_vec())])), 0)
        }
        Change::SetUp { name, up } => {
            let mut message = link(index(name)?, Vec::new());
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if *up { LinkFlags::Up } else { LinkFlags::empty() };
            (M::NewLink(message), 0)
        }
        Change::AddAddress { name, address: a } => (M::NewAddress(address(name, a)?), SET),
        Change::RemoveAddress { name, address: a } => (M::DelAddress(address(name, a)?), 0),
        Change::SetNeighbour { dev, address, mac } => {
            (M::NewNeighbour(ip_neighbour(dev, address, Some(mac))?), SET)
        }
        Change::RemoveNeighbour { dev, address } => {
            (M::DelNeighbour(ip_neighbour(dev, address, None)?), 0)
        }
        Change::SetFdb { dev, mac, endpoint } => {
            (M::NewNeighbour(fdb(dev, mac, Some(endpoint))?), SET)
        }
        Change::RemoveFdb { dev, mac } => (M::DelNeighbour(fdb(dev, mac, None)?), 0),
        Change::AddRule { rule: r } => (M::NewRule(rule(r)), NEW),
        Change::RemoveRule { rule: r } => (M::DelRule(rule(r)), 0),
        Change::AddRoute { key, via } => (M::NewRoute(route(key, Some(via))?), NEW),
        Change::ReplaceRoute { key, via } => (M::NewRoute(route(key, Some(via))?), SET),
        Change::RemoveRoute { key } => (M::DelRoute(route(key, None)?), 0),
        _ => return Ok(None),
    }))
}

/// Sends all messages and then waits for the answers, in order: as close to a batch as the library comes.
pub async fn request(
    handle: &Handle,
    messages: Vec<(RouteNetlinkMessage, u16)>,
) -> Result<(), Error> {
    let mut answers = Vec::with_capacity(messages.len());
    for (message, flags) in messages {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        answers.push(handle.clone().request(message)?);
    }
    for mut answer in answers {
        while let Some(message) = answer.next().await {
            if let NetlinkPayload::Error(error) = message.payload
                && error.code.is_some()
            {
                return Err(Error::NetlinkError(error));
            }
        }
    }
    Ok(())
}

async fn dump(
    handle: &Handle,
    message: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answer = handle.clone().request(message)?;
    let mut all = Vec::new();
    while let Some(message) = answer.next().await {
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => all.push(inner),
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok(all)
}

fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// Everything of ours but nexthops, WireGuard, sysctls and nf_tables.
pub async fn observe(handle: &Handle, scope: &BTreeSet<InterfaceName>) -> Result<Network, Error> {
    let mut network = Network::default();
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut names = BTreeMap::new();
    for link in links {
        let (mut name, mut alias, mut mtu, mut mac) = (None, false, 0, None);
        let (mut kind, mut data) = (None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(n) => name = n.parse::<InterfaceName>().ok(),
                LinkAttribute::IfAlias(a) => alias = a == ALIAS,
                LinkAttribute::Mtu(m) => mtu = m,
                LinkAttribute::Address(a) => mac = a.try_into().ok().map(Mac),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(k) => kind = Some(k),
                            LinkInfo::Data(InfoData::Vxlan(d)) => data = Some(d),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let Some(name) = name else { continue };
        names.insert(link.header.index, name.clone());
        if kind != Some(InfoKind::Vxlan) || !(alias || scope.contains(&name)) {
            continue;
        }
        let (mut vni, mut port, mut local) = (None, None, IpAddr::from([0; 4]));
        for info in data.into_iter().flatten() {
            match info {
                InfoVxlan::Id(id) => vni = Some(id),
                InfoVxlan::Port(p) => port = Some(p),
                InfoVxlan::Local(ip) => local = ip.into(),
                InfoVxlan::Local6(ip) => local = ip.into(),
                _ => {}
            }
        }
        let up = link.header.flags.contains(LinkFlags::Up);
        if let (Some(vni), Some(port), Some(mac)) = (vni, port, mac) {
            network.vxlan.insert(name, Vxlan { vni, local, port, mac, mtu, up });
        }
    }
    addresses(handle, &names, &mut network).await?;
    neighbours(handle, &names, &mut network).await?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        routes(handle, family, &names, &mut network).await?;
        rules(handle, family, &mut network).await?;
    }
    Ok(network)
}

type Names = BTreeMap<u32, InterfaceName>;

async fn addresses(handle: &Handle, names: &Names, network: &mut Network) -> Result<(), Error> {
    let mut all = handle.address().get().execute();
    while let Some(message) = all.try_next().await? {
        let (mut local, mut address) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                _ => {}
            }
        }
        let Some(name) = names.get(&message.header.index) else { continue };
        let Some(address) = local.or(address) else { continue };
        // The kernel gives every device a link-local address by itself.
        let automatic = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
        let Ok(net) = IpNet::new(address, message.header.prefix_len) else { continue };
        if network.has_link(name) && !automatic {
            network.addresses.insert((name.clone(), net));
        }
    }
    Ok(())
}

async fn neighbours(handle: &Handle, names: &Names, network: &mut Network) -> Result<(), Error> {
    if network.vxlan.is_empty() {
        return Ok(());
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let mut get = NeighbourMessage::default();
        get.header.family = family;
        for message in dump(handle, RouteNetlinkMessage::GetNeighbour(get)).await? {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { continue };
            let (mut address, mut mac) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                        address = Some(IpAddr::from(ip));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                        address = Some(ip.into());
                    }
                    NeighbourAttribute::LinkLayerAddress(a) => mac = a.try_into().ok().map(Mac),
                    _ => {}
                }
            }
            let Some(name) = names.get(&message.header.ifindex) else { continue };
            let (Some(address), Some(mac)) = (address, mac) else { continue };
            if !network.vxlan.contains_key(name) || message.header.family != family {
                continue;
            }
            if family == AddressFamily::Bridge {
                let seen = network.fdb.entry((name.clone(), mac)).or_insert(address);
                // Several endpoints for one MAC: none of them, so that it is repaired.
                if *seen != address {
                    *seen = IpAddr::from([0, 0, 0, 0]);
                }
            } else if message.header.state == NeighbourState::Permanent {
                network.neighbours.insert((name.clone(), address), mac);
            }
        }
    }
    Ok(())
}

async fn routes(
    handle: &Handle,
    family: AddressFamily,
    names: &Names,
    network: &mut Network,
) -> Result<(), Error> {
    const ELSEWHERE: RouteVia = RouteVia::Nexthop { id: NexthopId(0), source: None };
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    let mut get = RouteMessage::default();
    get.header.address_family = family;
    get.header.protocol = protocol;
    let any = IpAddr::from(if family == AddressFamily::Inet {
        [0; 4].into()
    } else {
        IpAddr::from([0; 16])
    });
    for message in dump(handle, RouteNetlinkMessage::GetRoute(get)).await? {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        if message.header.address_family != family || message.header.protocol != protocol {
            continue;
        }
        let mut table = u32::from(message.header.table);
        let (mut to, mut metric, mut source) = (Some(any), 0, None);
        let (mut id, mut oif, mut gateway, mut multipath) = (None, None, None, false);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(ip) => to = route_ip(ip),
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::Priority(m) => metric = *m,
                RouteAttribute::PrefSource(ip) => source = route_ip(ip),
                RouteAttribute::NhId(n) => id = Some(NexthopId(*n)),
                RouteAttribute::Oif(i) => oif = names.get(i).cloned(),
                RouteAttribute::Gateway(ip) => gateway = route_ip(ip),
                RouteAttribute::MultiPath(_) => multipath = true,
                _ => {}
            }
        }
        let length = message.header.destination_prefix_length;
        let Some(prefix) = to.and_then(|ip| IpNet::new(ip, length).ok()) else { continue };
        let simple = message.header.kind == RouteType::Unicast && !multipath;
        let onlink = message.header.flags.contains(RouteFlags::Onlink);
        let via = match (id, oif.filter(|_| simple), gateway) {
            // First: a route through a blackhole nexthop shows as a blackhole itself.
            (Some(id), ..) => RouteVia::Nexthop { id, source },
            (None, None, _) => ELSEWHERE,
            (None, Some(dev), Some(gateway)) => RouteVia::Gateway { dev, gateway, onlink },
            (None, Some(dev), None) => RouteVia::Device { dev, source },
        };
        network.routes.insert(RouteKey { table, prefix, metric }, via);
    }
    Ok(())
}

async fn rules(handle: &Handle, family: AddressFamily, network: &mut Network) -> Result<(), Error> {
    let mut get = RuleMessage::default();
    get.header.family = family;
    for message in dump(handle, RouteNetlinkMessage::GetRule(get)).await? {
        let RouteNetlinkMessage::NewRule(message) = message else { continue };
        if message.header.family != family {
            continue;
        }
        let mut rule = Rule {
            family: if family == AddressFamily::Inet { Family::V4 } else { Family::V6 },
            priority: 0,
            from: None,
            to: None,
            iif: None,
            table: u32::from(message.header.table),
        };
        let mut ours = false;
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Priority(p) => rule.priority = p,
                RuleAttribute::Source(ip) => {
                    rule.from = IpNet::new(ip, message.header.src_len).ok()
                }
                RuleAttribute::Destination(ip) => {
                    rule.to = IpNet::new(ip, message.header.dst_len).ok();
                }
                RuleAttribute::Iifname(name) => rule.iif = name.parse().ok(),
                RuleAttribute::Table(t) => rule.table = t,
                RuleAttribute::Protocol(p) => ours = p == RouteProtocol::Other(ROUTE_PROTOCOL),
                _ => {}
            }
        }
        if ours {
            network.rules.insert(rule);
        }
    }
    Ok(())
}
