//! Asks the kernel which way it sends a packet, as `ip route get` does. It answers for rules, routes, reverse-path filters and forwarding
//! switches, and knows nothing of firewalls.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use wgctl_plan::{Family, InterfaceName, Network, Packet, Rule};

use super::encode::*;
use super::netlink::*;
use super::observe::{foreign_rules, ip};

const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RT_TABLE_MAIN: u32 = 254;

/// A socket to ask by.
#[derive(Debug)]
pub struct Lookups {
    netlink: Netlink,
}

/// Where the kernel sends a packet.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Out {
        dev: InterfaceName,
        gateway: Option<IpAddr>,
        table: u32,
    },
    /// To this host.
    Here,
    Refused(Errno),
}

impl Lookups {
    /// # Errors
    /// If the kernel gives no socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// Returns where the kernel sends a packet, in words, if that is not where this network sends it. `None` as well if the network has
    /// no route for it, or the kernel cannot say.
    pub fn overridden(&mut self, network: &Network, packet: &Packet<'_>) -> Option<String> {
        let (_, via) = network.route_of(packet)?;
        let wanted = network.ways_out(via);
        if wanted.is_empty() {
            // It is to be dropped.
            return None;
        }
        match self.way(packet).ok()?? {
            Way::Out { dev, gateway, .. } if wanted.contains(&(&dev, gateway)) => None,
            Way::Out { dev, gateway, table } => Some(by(&dev, gateway, table, packet)),
            Way::Here => Some("this host takes it itself".to_owned()),
            Way::Refused(errno) => Some(refused(errno, packet)),
        }
    }

    /// `None`: there is no such device, or it is down.
    fn way(&mut self, packet: &Packet<'_>) -> io::Result<Option<Way>> {
        let length = if packet.target.is_ipv4() { 32 } else { 128 };
        let mut header = [0; 12];
        header[0] = family(Family::of(&packet.target));
        (header[1], header[2]) = (length, length);
        header[8..12].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes());
        let mut message = Message::new(RTM_GETROUTE, 0, &header)
            .attr(RTA_DST, &address_bytes(&packet.target))
            .attr(RTA_SRC, &address_bytes(&packet.source));
        if let Some(iif) = packet.iif {
            let Ok(index) = index(iif) else { return Ok(None) };
            message = message.attr_u32(RTA_IIF, index);
        }
        let answer = match self.netlink.get(message) {
            Ok(answer) => answer,
            Err(error) => {
                let errno = Errno::from_raw(error.errno);
                let unknown = matches!(errno, Errno::ENODEV | Errno::ENETDOWN);
                return Ok((!unknown).then_some(Way::Refused(errno)));
            }
        };
        let attrs = answer.attrs(12);
        if answer.payload.get(7).is_none_or(|kind| *kind != RTN_UNICAST) {
            return Ok(Some(Way::Here));
        }
        let dev = attrs.u32(RTA_OIF).and_then(|index| nix::net::if_::if_indextoname(index).ok());
        let Some(dev) = dev.and_then(|name| name.to_str().ok()?.parse().ok()) else {
            return Ok(None);
        };
        let gateway = attrs.get(RTA_GATEWAY).and_then(ip);
        let table = attrs.u32(RTA_TABLE).unwrap_or(RT_TABLE_MAIN);
        Ok(Some(Way::Out { dev, gateway, table }))
    }
}

/// Names the route, and the rule that led to it.
fn by(dev: &InterfaceName, gateway: Option<IpAddr>, table: u32, packet: &Packet<'_>) -> String {
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    if table == RT_TABLE_MAIN {
        return format!("it leaves by {dev}{via}, by a route in table main");
    }
    let leads = |rule: &&Rule| {
        rule.table == table
            && rule.family == Family::of(&packet.target)
            && rule.from.is_none_or(|p| p.contains(&packet.source))
            && rule.to.is_none_or(|p| p.contains(&packet.target))
            && rule.iif.as_ref().is_none_or(|iif| Some(iif) == packet.iif)
    };
    let rules = foreign_rules().unwrap_or_default();
    let rule = rules.iter().find(leads).map(|rule| format!(" (rule {})", rule.priority));
    format!("it leaves by {dev}{via}, by a route in table {table}{}", rule.unwrap_or_default())
}

fn refused(errno: Errno, packet: &Packet<'_>) -> String {
    let on = packet.iif.map(|iif| format!(" on {iif}")).unwrap_or_default();
    match errno {
        Errno::EHOSTUNREACH if packet.iif.is_some() => {
            format!("it is dropped, as forwarding is off{on} or by a route that says so")
        }
        Errno::EXDEV => format!("it is dropped by the reverse-path filter{on}"),
        Errno::EINVAL if packet.iif.is_some() => {
            format!("it is dropped by the reverse-path filter{on}, or by a blackhole route")
        }
        Errno::ENETUNREACH => "it is dropped, as there is no route".to_owned(),
        other => format!("it is dropped ({other})"),
    }
}
