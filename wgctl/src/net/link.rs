//! Follows one device: whether it is up, its MTU, and its removal.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;
use wgctl_plan::InterfaceName;

use super::encode::*;
use super::netlink::*;
use super::observe;

const RTNLGRP_LINK: u32 = 1;

/// The state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Set up by its administrator (`IFF_UP`).
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
}

/// Follows a device by its index: a new device of the same name is a different one.
#[derive(Debug)]
pub struct LinkWatch {
    fd: AsyncFd<Socket>,
    index: u32,
    /// Read the state from the kernel: it is not known yet, or notifications were lost.
    must_read: bool,
}

impl LinkWatch {
    /// # Errors
    /// `NotFound` if there is no such device.
    pub fn open(name: &InterfaceName) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        let link = observe::links(&mut Netlink::open()?)?.into_iter().find(|l| l.name == *name);
        let Some(link) = link else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {name}")));
        };
        // SAFETY: the socket owns its descriptor, gives out the same one always, and closes it when it is dropped.
        Ok(Self { fd: unsafe { AsyncFd::register(socket)? }, index: link.index, must_read: true })
    }

    /// Returns the present state at first, then the state after every change, and `None` once the device is gone (or in
    /// another network namespace). Consecutive states may be equal. Cancel-safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn next(&mut self) -> io::Result<Option<LinkState>> {
        loop {
            if std::mem::take(&mut self.must_read) {
                let links = observe::links(&mut Netlink::open()?)?;
                let link = links.into_iter().find(|l| l.index == self.index);
                return Ok(link.map(|l| LinkState { up: l.up, mtu: l.mtu }));
            }
            let mut guard = self.fd.readable().await?;
            let bytes = match guard.try_io(|fd| fd.get_ref().recv_from_full()) {
                Ok(Ok((bytes, _))) => bytes,
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    self.must_read = true;
                    continue;
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => continue,
            };
            // A datagram may hold several messages: the last about this device counts.
            match split(&bytes).filter_map(|(_, m)| event_of(&m, self.index)).last() {
                Some(LinkEvent::Gone) => return Ok(None),
                Some(LinkEvent::State(state)) => return Ok(Some(state)),
                None => {}
            }
        }
    }
}

enum LinkEvent {
    Gone,
    State(LinkState),
}

fn event_of(message: &Received, index: u32) -> Option<LinkEvent> {
    // The family is AF_BRIDGE when the device joins or leaves a bridge.
    let plain = message.payload.first() == Some(&0);
    if !plain || u32_at(&message.payload, 4) != Some(index) {
        return None;
    }
    match message.kind {
        RTM_DELLINK => Some(LinkEvent::Gone),
        RTM_NEWLINK => {
            let up = u32_at(&message.payload, 8)? & IFF_UP != 0;
            let mtu = message.attrs(16).u32(IFLA_MTU)?;
            Some(LinkEvent::State(LinkState { up, mtu }))
        }
        _ => None,
    }
}
