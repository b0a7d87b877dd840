//! Which way packets would take: the kernel's own answer, all rules and tables considered.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;
use wgctl_plan::{Family, InterfaceName, Network, ROUTE_PROTOCOL, Rule};

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

/// Tells when the way of packets may be another: others' routes and addresses came or went, or a link went up or down (the kernel
/// does not tell of the IPv4 routes that go with a link).
#[derive(Debug)]
pub struct WayNews {
    fd: AsyncFd<Socket>,
}

impl WayNews {
    /// Within a runtime with I/O.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in NEWS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, gives out the same one always, and closes it when `Self` drops it.
        Ok(Self { fd: unsafe { AsyncFd::register(socket)? } })
    }

    /// Waits for news. What is lost (a full buffer) is news as well. Losing the future loses none.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| fd.get_ref().recv_from_full()) {
                Ok(Ok((bytes, _))) => {
                    if split(&bytes).any(|(_, m)| is_news(&m)) {
                        return Ok(());
                    }
                }
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    return Ok(());
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}

/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE.
const NEWS: [u32; 3] = [1, 5, 7];

/// Our own routes are none: what is asked here is what would be without them.
fn is_news(message: &Received) -> bool {
    match message.kind {
        RTM_NEWROUTE | RTM_DELROUTE => message.payload.get(5) != Some(&ROUTE_PROTOCOL),
        RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => true,
        _ => false,
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
