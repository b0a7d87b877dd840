//! Reports when the kernel's network changed, so that the caller compares it.
//!
//! A notification only says *that* something of ours may have changed; a full comparison finds out what. So notifications may be
//! merged, and lost ones (a full buffer) are one more reason to compare. Our own changes are reported too: a comparison that
//! finds no difference is cheap.

use std::io;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use super::encode::*;
use super::netlink::*;
use wgctl_plan::{NexthopId, ROUTE_PROTOCOL, owns_nexthop};

/// Changes come in bursts (the kernel removes a device's routes with it): wait until there was none for this long.
const QUIET: Duration = Duration::from_millis(50);

/// While changes keep coming, report at least this often.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF,
/// IPV6_NETCONF, NEXTHOP.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];

/// The kinds of objects that changed since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drift {
    pub links: bool,
    pub addresses: bool,
    pub neighbours: bool,
    pub nexthops: bool,
    pub routes: bool,
    pub rules: bool,
    pub sysctls: bool,
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
}

impl Drift {
    fn record(&mut self, message: &Received) {
        let ours = |at: usize| message.payload.get(at) == Some(&ROUTE_PROTOCOL);
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => self.links = true,
            RTM_NEWADDR | RTM_DELADDR => self.addresses = true,
            // Dynamic neighbours come and go all the time.
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let permanent = u16_at(&message.payload, 8).is_some_and(|s| s & NUD_PERMANENT != 0);
                let fdb = message.payload.first() == Some(&AF_BRIDGE);
                self.neighbours |= permanent || fdb || message.kind == RTM_DELNEIGH;
            }
            RTM_NEWROUTE | RTM_DELROUTE => self.routes |= ours(5),
            RTM_NEWRULE | RTM_DELRULE => {
                self.rules |= message.attrs(12).get(FRA_PROTOCOL) == Some(&[ROUTE_PROTOCOL]);
            }
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => {
                self.nexthops |=
                    message.attrs(8).u32(NHA_ID).is_some_and(|id| owns_nexthop(NexthopId(id)));
            }
            RTM_NEWNETCONF => self.sysctls = true,
            _ => {}
        }
    }
}

struct Watcher {
    fd: AsyncFd<Socket>,
}

/// Returns a stream with an item whenever something that may concern us has changed and then nothing for 50 ms. The
/// stream ends only with an error of the socket.
///
/// # Errors
/// If the netlink socket cannot be opened.
pub async fn watch() -> io::Result<impl Stream<Item = Drift> + Send> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    let _ = socket.set_rx_buf_sz(1u32 << 20);
    // SAFETY: the socket owns its descriptor, gives out the same one always, and closes it when the watcher drops it.
    let watcher = Watcher { fd: unsafe { AsyncFd::register(socket)? } };
    Ok(stream::unfold(watcher, |watcher| async move {
        match watcher.next().await {
            Ok(drift) => Some((drift, watcher)),
            Err(error) => {
                tracing::error!(%error, "no more notifications of network changes");
                None
            }
        }
    }))
}

impl Watcher {
    async fn next(&self) -> io::Result<Drift> {
        let mut drift = Drift::default();
        while drift == Drift::default() {
            self.read(&mut drift).await?;
        }
        let deadline = tokio::time::Instant::now() + MAX_WAIT;
        loop {
            let quiet = tokio::time::Instant::now() + QUIET;
            match tokio::time::timeout_at(quiet.min(deadline), self.read(&mut drift)).await {
                Ok(result) => result?,
                Err(_) => return Ok(drift),
            }
        }
    }

    /// Waits for the next datagram.
    async fn read(&self, drift: &mut Drift) -> io::Result<()> {
        let bytes = loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| fd.get_ref().recv_from_full()) {
                Ok(Ok((bytes, _))) => break bytes,
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    drift.lost = true;
                    return Ok(());
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        };
        for (_, message) in split(&bytes) {
            drift.record(&message);
        }
        Ok(())
    }
}
