//! One device followed: whether it is up, its MTU, and when it goes.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;
use wgctl_plan::InterfaceName;

use super::encode::*;
use super::netlink::*;
use super::observe;

const RTNLGRP_LINK: u32 = 1;

/// What a device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Set up by its administrator (`IFF_UP`).
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
}

/// Follows a device, by its index: a new one of the same name is another.
#[derive(Debug)]
pub struct LinkWatch {
    fd: AsyncFd<Socket>,
    index: u32,
    /// Ask the kernel: nothing is known yet, or notifications were lost.
    ask: bool,
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
        Ok(Self { fd: unsafe { AsyncFd::register(socket)? }, index: link.index, ask: true })
    }

    /// At first how the device is, then again after every change, `None` once it is gone (or in another network
    /// namespace). States that follow each other may be equal. May be given up and called again.
    pub async fn next(&mut self) -> io::Result<Option<LinkState>> {
        loop {
            if std::mem::take(&mut self.ask) {
                let links = observe::links(&mut Netlink::open()?)?;
                let link = links.into_iter().find(|l| l.index == self.index);
                return Ok(link.map(|l| LinkState { up: l.up, mtu: l.mtu }));
            }
            let mut guard = self.fd.readable().await?;
            let bytes = match guard.try_io(|fd| fd.get_ref().recv_from_full()) {
                Ok(Ok((bytes, _))) => bytes,
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    self.ask = true;
                    continue;
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => continue,
            };
            // A datagram may hold several messages: the last about this device counts.
            let mut news = None;
            for (_, message) in split(&bytes) {
                news = about(&message, self.index).or(news);
            }
            match news {
                Some(News::Gone) => return Ok(None),
                Some(News::State(state)) => return Ok(Some(state)),
                None => {}
            }
        }
    }
}

enum News {
    Gone,
    State(LinkState),
}

fn about(message: &Received, index: u32) -> Option<News> {
    // Of family AF_BRIDGE when the device joins or leaves a bridge.
    let plain = message.payload.first() == Some(&0);
    if !plain || u32_at(&message.payload, 4) != Some(index) {
        return None;
    }
    match message.kind {
        RTM_DELLINK => Some(News::Gone),
        RTM_NEWLINK => {
            let up = u32_at(&message.payload, 8)? & IFF_UP != 0;
            let mtu = message.attrs(16).u32(IFLA_MTU)?;
            Some(News::State(LinkState { up, mtu }))
        }
        _ => None,
    }
}
