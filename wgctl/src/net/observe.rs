//! Reads our part of the network from the kernel.
//!
//! Ours are devices that the desired network names or that carry our alias, their addresses and entries, nexthops in our range of ids,
//! routes and rules with our protocol number, and the table of `nft`. Everything else is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::*;

use super::encode::*;
use super::netlink::*;

/// What to read besides the objects that are marked as ours.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub links: BTreeSet<InterfaceName>,
    /// Paths below `/proc/sys`.
    pub sysctls: BTreeSet<String>,
}

impl Scope {
    /// Returns the names in a desired network.
    pub fn of(desired: &Network) -> Self {
        Self {
            links: desired.wireguard.keys().chain(desired.vxlan.keys()).cloned().collect(),
            sysctls: desired.sysctls.keys().cloned().collect(),
        }
    }
}

/// Stands for a route of ours with contents that no plan has (another program changed it): never desired, so always repaired.
const ELSEWHERE: RouteVia = RouteVia::Nexthop { id: NexthopId(0), source: None };

/// A device as dumped.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub index: u32,
    pub name: InterfaceName,
    pub kind: String,
    pub ours: bool,
    pub(super) up: bool,
    pub(super) mtu: u32,
    mac: Option<Mac>,
    data: Vec<u8>,
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}

fn family_of(number: u8) -> Option<Family> {
    match number {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let all = netlink.dump(Message::new(RTM_GETLINK, 0, &[0; 16]))?;
    Ok(all.iter().filter_map(link).collect())
}

fn link(message: &Received) -> Option<Link> {
    let attrs = message.attrs(16);
    let info = Attrs::of(attrs.get(IFLA_LINKINFO).unwrap_or_default());
    Some(Link {
        index: u32_at(&message.payload, 4)?,
        name: attrs.str(IFLA_IFNAME)?.parse().ok()?,
        kind: info.str(IFLA_INFO_KIND).unwrap_or_default().to_owned(),
        ours: attrs.str(IFLA_IFALIAS) == Some(ALIAS),
        up: u32_at(&message.payload, 8)? & IFF_UP != 0,
        mtu: attrs.u32(IFLA_MTU)?,
        mac: attrs.get(IFLA_ADDRESS).and_then(mac),
        data: info.get(IFLA_INFO_DATA).unwrap_or_default().to_vec(),
    })
}

/// Reads everything except nf_tables. `wireguard` returns WireGuard's own view of a device, or `None` if it is no WireGuard device or
/// does not answer.
pub(super) fn observe(
    netlink: &mut Netlink,
    scope: &Scope,
    mut wireguard: impl FnMut(&Link) -> Option<WgInterface>,
) -> io::Result<Network> {
    let mut network = Network::default();
    let links = links(netlink)?;
    let by_index: BTreeMap<u32, InterfaceName> =
        links.iter().map(|l| (l.index, l.name.clone())).collect();
    for link in links.iter().filter(|l| l.ours || scope.links.contains(&l.name)) {
        if link.kind == "vxlan" {
            if let Some(vxlan) = vxlan(link) {
                network.vxlan.insert(link.name.clone(), vxlan);
            }
        } else if let Some(seen) = wireguard(link) {
            network.wireguard.insert(
                link.name.clone(),
                WgInterface { mtu: link.mtu, up: link.up && seen.up, ..seen },
            );
        }
    }
    addresses(netlink, &by_index, &mut network)?;
    neighbours(netlink, &by_index, &mut network)?;
    nexthops(netlink, &by_index, &mut network)?;
    for family in [AF_INET, AF_INET6] {
        routes(netlink, family, &by_index, &mut network)?;
        rules(netlink, family, &mut network)?;
    }
    for path in &scope.sysctls {
        match super::sysctl::read(path) {
            Ok(value) => drop(network.sysctls.insert(path.clone(), value)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(network)
}

fn vxlan(link: &Link) -> Option<Vxlan> {
    let data = Attrs::of(&link.data);
    let port = data.get(IFLA_VXLAN_PORT)?;
    let any = IpAddr::from([0, 0, 0, 0]);
    Some(Vxlan {
        vni: data.u32(IFLA_VXLAN_ID)?,
        local: data
            .get(IFLA_VXLAN_LOCAL)
            .or_else(|| data.get(IFLA_VXLAN_LOCAL6))
            .and_then(ip)
            .unwrap_or(any),
        port: u16::from_be_bytes(port.try_into().ok()?),
        mac: link.mac?,
        mtu: link.mtu,
        up: link.up,
    })
}

fn addresses(
    netlink: &mut Netlink,
    names: &BTreeMap<u32, InterfaceName>,
    network: &mut Network,
) -> io::Result<()> {
    for message in netlink.dump(Message::new(RTM_GETADDR, 0, &[0; 8]))? {
        let attrs = message.attrs(8);
        let found = (|| {
            let name = names.get(&u32_at(&message.payload, 4)?)?;
            let address = attrs.get(IFA_LOCAL).or_else(|| attrs.get(IFA_ADDRESS)).and_then(ip)?;
            // The kernel gives every device a link-local address by itself.
            let automatic = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
            let net = IpNet::new(address, *message.payload.get(1)?).ok()?;
            (network.has_link(name) && !automatic).then(|| (name.clone(), net))
        })();
        network.addresses.extend(found);
    }
    Ok(())
}

fn neighbours(
    netlink: &mut Netlink,
    names: &BTreeMap<u32, InterfaceName>,
    network: &mut Network,
) -> io::Result<()> {
    if network.vxlan.is_empty() {
        return Ok(());
    }
    for family in [AF_INET, AF_INET6, AF_BRIDGE] {
        let mut header = [0; 12];
        header[0] = family;
        for message in netlink.dump(Message::new(RTM_GETNEIGH, 0, &header))? {
            let attrs = message.attrs(12);
            let (Some(name), Some(state)) = (
                u32_at(&message.payload, 4).and_then(|i| names.get(&i)),
                u16_at(&message.payload, 8),
            ) else {
                continue;
            };
            let target = (attrs.get(NDA_DST).and_then(ip), attrs.get(NDA_LLADDR).and_then(mac));
            let (Some(address), Some(mac)) = target else { continue };
            if !network.vxlan.contains_key(name) || message.payload.first() != Some(&family) {
                continue;
            }
            if family == AF_BRIDGE {
                let seen = network.fdb.entry((name.clone(), mac)).or_insert(address);
                // Several endpoints for one MAC: an invalid one, so that it is repaired.
                if *seen != address {
                    *seen = IpAddr::from([0, 0, 0, 0]);
                }
            } else if state & NUD_PERMANENT != 0 {
                network.neighbours.insert((name.clone(), address), mac);
            }
        }
    }
    Ok(())
}

fn nexthops(
    netlink: &mut Netlink,
    names: &BTreeMap<u32, InterfaceName>,
    network: &mut Network,
) -> io::Result<()> {
    for message in netlink.dump(Message::new(RTM_GETNEXTHOP, 0, &[0; 8]))? {
        let attrs = message.attrs(8);
        let Some(id) = attrs.u32(NHA_ID).map(NexthopId).filter(|id| owns_nexthop(*id)) else {
            continue;
        };
        let nexthop = (|| {
            if let Some(group) = attrs.get(NHA_GROUP) {
                let entries = || group.chunks_exact(8);
                // A weight that we do not set: a group without members, so that it is repaired.
                if entries().any(|e| e[4] != 0) {
                    return Some(Nexthop::Group { members: BTreeSet::new() });
                }
                return Some(Nexthop::Group {
                    members: entries().filter_map(|e| u32_at(e, 0)).map(NexthopId).collect(),
                });
            }
            let family = family_of(*message.payload.first()?)?;
            if attrs.get(NHA_BLACKHOLE).is_some() {
                return Some(Nexthop::Blackhole { family });
            }
            let dev = names.get(&attrs.u32(NHA_OIF)?)?.clone();
            Some(match attrs.get(NHA_GATEWAY).and_then(ip) {
                Some(gateway) => {
                    let onlink = u32_at(&message.payload, 4)? & RTNH_F_ONLINK != 0;
                    Nexthop::Gateway { dev, gateway, onlink }
                }
                None => Nexthop::Device { dev, family },
            })
        })();
        network.nexthops.extend(nexthop.map(|n| (id, n)));
    }
    Ok(())
}

fn prefix(family: u8, bytes: Option<&[u8]>, length: u8) -> Option<IpNet> {
    let any = match family_of(family)? {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    IpNet::new(bytes.map_or(Some(any), ip)?, length).ok()
}

fn routes(
    netlink: &mut Netlink,
    family: u8,
    names: &BTreeMap<u32, InterfaceName>,
    network: &mut Network,
) -> io::Result<()> {
    let mut header = [0; 12];
    header[0] = family;
    header[5] = ROUTE_PROTOCOL;
    for message in netlink.dump(Message::new(RTM_GETROUTE, 0, &header))? {
        let attrs = message.attrs(12);
        let bytes = &message.payload;
        if bytes.len() < 12 || bytes[0] != family || bytes[5] != ROUTE_PROTOCOL {
            continue;
        }
        let Some(prefix) = prefix(family, attrs.get(RTA_DST), bytes[1]) else { continue };
        let table = attrs.u32(RTA_TABLE).unwrap_or(u32::from(bytes[4]));
        let key = RouteKey { table, prefix, metric: attrs.u32(RTA_PRIORITY).unwrap_or(0) };
        let via = (|| {
            // First: a route through a blackhole nexthop shows as a blackhole itself.
            let source = attrs.get(RTA_PREFSRC).and_then(ip);
            if let Some(id) = attrs.u32(RTA_NH_ID) {
                return Some(RouteVia::Nexthop { id: NexthopId(id), source });
            }
            if bytes[7] != RTN_UNICAST || attrs.get(RTA_MULTIPATH).is_some() {
                return None;
            }
            let dev = names.get(&attrs.u32(RTA_OIF)?)?.clone();
            Some(match attrs.get(RTA_GATEWAY).and_then(ip) {
                Some(gateway) => RouteVia::Gateway {
                    dev,
                    gateway,
                    onlink: u32_at(bytes, 8)? & RTNH_F_ONLINK != 0,
                },
                None => RouteVia::Device { dev, source },
            })
        })();
        network.routes.insert(key, via.unwrap_or(ELSEWHERE));
    }
    Ok(())
}

/// Returns the IPv4 rules with our protocol number.
///
/// # Errors
/// If the dump fails.
pub fn our_rules() -> io::Result<BTreeSet<Rule>> {
    let mut network = Network::default();
    rules(&mut Netlink::open()?, AF_INET, &mut network)?;
    Ok(network.rules.into_inner())
}

/// Returns the rules of others, of both families, the kernel's own included; without those for marked packets.
///
/// # Errors
/// If the dump fails.
pub fn foreign_rules() -> io::Result<Vec<Rule>> {
    let mut netlink = Netlink::open()?;
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let rules = all_rules(&mut netlink, family)?.into_iter();
        all.extend(rules.filter(|r| !r.ours && !r.marked).map(|r| r.rule));
    }
    all.sort();
    Ok(all)
}

fn rules(netlink: &mut Netlink, family: u8, network: &mut Network) -> io::Result<()> {
    let ours = all_rules(netlink, family)?.into_iter().filter(|r| r.ours);
    network.rules.extend(ours.map(|r| r.rule));
    Ok(())
}

struct Found {
    rule: Rule,
    ours: bool,
    /// It applies only to packets with a certain mark.
    marked: bool,
}

fn all_rules(netlink: &mut Netlink, family: u8) -> io::Result<Vec<Found>> {
    let mut header = [0; 12];
    header[0] = family;
    let mut found = Vec::new();
    for message in netlink.dump(Message::new(RTM_GETRULE, 0, &header))? {
        let attrs = message.attrs(12);
        let bytes = &message.payload;
        if bytes.len() < 12 || bytes[0] != family {
            continue;
        }
        let Some(of) = family_of(family) else { continue };
        let rule = Rule {
            family: of,
            priority: attrs.u32(FRA_PRIORITY).unwrap_or(0),
            from: attrs.get(FRA_SRC).and_then(|b| prefix(family, Some(b), bytes[2])),
            to: attrs.get(FRA_DST).and_then(|b| prefix(family, Some(b), bytes[1])),
            iif: attrs.str(FRA_IIFNAME).and_then(|n| n.parse().ok()),
            table: attrs.u32(FRA_TABLE).unwrap_or(u32::from(bytes[4])),
        };
        let ours = attrs.get(FRA_PROTOCOL) == Some(&[ROUTE_PROTOCOL]);
        let marked = attrs.u32(FRA_FWMARK).is_some_and(|mark| mark != 0);
        found.push(Found { rule, ours, marked });
    }
    Ok(found)
}
