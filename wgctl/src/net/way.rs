//! Which way packets would take: the kernel's own answer, all rules and tables considered.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use wgctl_plan::{Family, InterfaceName, Network, Rule};

use super::encode::*;
use super::netlink::*;
use super::observe::rules;

const RTA_MARK: u16 = 16;

/// The first hop of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub dev: InterfaceName,
    /// `None`: straight out of the device.
    pub gateway: Option<IpAddr>,
}

/// Asks the kernel.
#[derive(Debug)]
pub struct Ways {
    netlink: Netlink,
}

impl Ways {
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// IPv4 rules with our protocol number, whoever made them.
    pub fn our_rules(&mut self) -> io::Result<BTreeSet<Rule>> {
        let mut network = Network::default();
        rules(&mut self.netlink, AF_INET, &mut network)?;
        Ok(network.rules.into_inner())
    }

    /// The way of a packet to this address with this firewall mark (0: none); `None` if it has none.
    pub fn to(&mut self, ip: IpAddr, mark: u32) -> io::Result<Option<Way>> {
        let of = Family::of(&ip);
        let bits = match of {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let mut header = [0; 12];
        (header[0], header[1]) = (family(of), bits);
        let message = Message::new(RTM_GETROUTE, 0, &header)
            .attr(RTA_DST, &address_bytes(&ip))
            .attr_u32(RTA_MARK, mark);
        let route = match self.netlink.get(message) {
            Ok(route) => route,
            Err(Failed { errno, .. }) if NOWHERE.contains(&errno) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let attrs = route.attrs(12);
        let Some(oif) = attrs.u32(RTA_OIF) else { return Ok(None) };
        let name = nix::net::if_::if_indextoname(oif)?;
        let dev = name.to_string_lossy().parse().map_err(io::Error::other)?;
        Ok(Some(Way { dev, gateway: attrs.get(RTA_GATEWAY).and_then(address) }))
    }
}

/// ENETUNREACH, EHOSTUNREACH, ESRCH, and EINVAL and EACCES of blackhole and prohibit routes.
const NOWHERE: [i32; 5] = {
    use nix::errno::Errno;
    [
        Errno::ENETUNREACH as i32,
        Errno::EHOSTUNREACH as i32,
        Errno::ESRCH as i32,
        Errno::EINVAL as i32,
        Errno::EACCES as i32,
    ]
};

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_device() {
        let mut ways = Ways::open().unwrap();
        for ip in ["127.0.0.1", "127.9.9.9"] {
            let way = ways.to(ip.parse().unwrap(), 0x4c45).unwrap().unwrap();
            assert_eq!((way.dev.as_str(), way.gateway), ("lo", None));
        }
    }
}
