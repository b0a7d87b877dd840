//! The addresses that this host has, ours and others', and when they change.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;
use wgctl_plan::InterfaceName;

use super::encode::*;
use super::netlink::*;
use super::observe::{ip, links};

const IFA_FLAGS: u16 = 8;
/// Addresses with these flags cannot be used: another host may have them.
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// A usable address of this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    pub device: InterfaceName,
    pub address: IpAddr,
}

/// Returns every usable address of every device that is up, in order.
///
/// # Errors
/// If a netlink dump fails.
pub fn local_addresses() -> io::Result<Vec<LocalAddress>> {
    let mut netlink = Netlink::open()?;
    let up: BTreeMap<u32, InterfaceName> =
        links(&mut netlink)?.into_iter().filter(|l| l.up).map(|l| (l.index, l.name)).collect();
    let all = netlink.dump(Message::new(RTM_GETADDR, 0, &[0; 8]))?;
    let mut local: Vec<LocalAddress> = all.iter().filter_map(|m| parse_address(m, &up)).collect();
    local.sort();
    local.dedup();
    Ok(local)
}

fn parse_address(message: &Received, up: &BTreeMap<u32, InterfaceName>) -> Option<LocalAddress> {
    let attrs = message.attrs(8);
    let flags = attrs.u32(IFA_FLAGS).unwrap_or(u32::from(*message.payload.get(2)?));
    if flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE) != 0 {
        return None;
    }
    let device = up.get(&u32_at(&message.payload, 4)?)?.clone();
    let address = attrs.get(IFA_LOCAL).or_else(|| attrs.get(IFA_ADDRESS)).and_then(ip)?;
    Some(LocalAddress { device, address })
}

/// Reports when the result of [`local_addresses`] may have changed.
#[derive(Debug)]
pub struct AddressEvents {
    fd: AsyncFd<Socket>,
}

/// RTNLGRP_LINK, IPV4_IFADDR, IPV6_IFADDR.
const GROUPS: [u32; 3] = [1, 5, 9];

impl AddressEvents {
    /// Opens the netlink socket. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, gives out the same one always, and closes it when `Self` drops it.
        Ok(Self { fd: unsafe { AsyncFd::register(socket)? } })
    }

    /// Drops the events received so far. Call it before reading the addresses.
    pub fn drain(&self) {
        while self.fd.get_ref().recv_from_full().is_ok() {}
    }

    /// Waits for the next event. Lost events (a full buffer) count as one. Cancel-safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| fd.get_ref().recv_from_full()) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    return Ok(());
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
    }
}
