//! Which addresses this host holds, on which devices, and when that changes: whoever gave them, and not as planned.

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
/// Not usable: another host may have it.
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An address that packets to this host can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub device: InterfaceName,
    pub address: IpAddr,
}

/// Every usable address of every device that is up, in order.
pub fn held_addresses() -> io::Result<Vec<Held>> {
    let mut netlink = Netlink::open()?;
    let up: BTreeMap<u32, InterfaceName> =
        links(&mut netlink)?.into_iter().filter(|l| l.up).map(|l| (l.index, l.name)).collect();
    let all = netlink.dump(Message::new(RTM_GETADDR, 0, &[0; 8]))?;
    let mut held: Vec<Held> = all.iter().filter_map(|m| held_by(m, &up)).collect();
    held.sort();
    held.dedup();
    Ok(held)
}

fn held_by(message: &Received, up: &BTreeMap<u32, InterfaceName>) -> Option<Held> {
    let attrs = message.attrs(8);
    let flags = attrs.u32(IFA_FLAGS).unwrap_or(u32::from(*message.payload.get(2)?));
    if flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE) != 0 {
        return None;
    }
    let device = up.get(&u32_at(&message.payload, 4)?)?.clone();
    let address = attrs.get(IFA_LOCAL).or_else(|| attrs.get(IFA_ADDRESS)).and_then(ip)?;
    Some(Held { device, address })
}

/// Tells when what [`held_addresses`] finds may be another.
#[derive(Debug)]
pub struct AddressNews {
    fd: AsyncFd<Socket>,
}

/// RTNLGRP_LINK, IPV4_IFADDR, IPV6_IFADDR.
const NEWS: [u32; 3] = [1, 5, 9];

impl AddressNews {
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

    /// Drops the news that have come meanwhile: whoever looks now sees what they tell of.
    pub fn drain(&self) {
        while self.fd.get_ref().recv_from_full().is_ok() {}
    }

    /// Waits for news. What is lost (a full buffer) is news as well. Losing the future loses none.
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
