//! Reports when the kernel's network changed, so that the caller compares it.
//!
//! A notification only says *that* something of ours may have changed; a full comparison finds out what. So notifications may be
//! merged, and lost ones (a full buffer) are one more reason to compare. Our own changes are reported too: a comparison that
//! finds no difference is cheap.
//!
//! A link that comes up is reported at once. While it had no carrier the kernel deleted the nexthop objects on it, their groups, and every
//! route that used them, without a notification and for good; only plain routes come back by themselves.

use std::collections::BTreeMap;
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
    /// A route or a rule of another program: it may come before ours.
    pub foreign: bool,
    /// A link has come up: it was set up, or has its carrier again.
    pub came_up: bool,
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
}

/// Which links work: set up, and with a carrier.
#[derive(Debug, Default)]
struct Running(BTreeMap<u32, bool>);

impl Running {
    /// Takes a message about a link. Returns whether the link has come up; one that was not heard of before counts as new.
    fn came_up(&mut self, message: &Received) -> bool {
        // The family is AF_BRIDGE when the device joins or leaves a bridge.
        if message.payload.first() != Some(&0) {
            return false;
        }
        let Some(index) = u32_at(&message.payload, 4) else { return false };
        if message.kind == RTM_DELLINK {
            self.0.remove(&index);
            return false;
        }
        let runs = u32_at(&message.payload, 8).is_some_and(|flags| flags & WORKS == WORKS);
        self.0.insert(index, runs) != Some(true) && runs
    }
}

const WORKS: u32 = IFF_UP | IFF_RUNNING | IFF_LOWER_UP;

/// RTN_LOCAL, BROADCAST, ANYCAST, MULTICAST.
const OF_TABLE_LOCAL: std::ops::RangeInclusive<u8> = 2..=5;

impl Drift {
    /// True if something that we made may have changed.
    pub fn concerns_ours(&self) -> bool {
        *self != Self { foreign: self.foreign, ..Self::default() }
    }

    fn record(&mut self, message: &Received, running: &mut Running) {
        let ours = |at: usize| message.payload.get(at) == Some(&ROUTE_PROTOCOL);
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => {
                self.links = true;
                self.came_up |= running.came_up(message);
            }
            RTM_NEWADDR | RTM_DELADDR => self.addresses = true,
            // Dynamic neighbours come and go all the time.
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let permanent = u16_at(&message.payload, 8).is_some_and(|s| s & NUD_PERMANENT != 0);
                let fdb = message.payload.first() == Some(&AF_BRIDGE);
                self.neighbours |= permanent || fdb || message.kind == RTM_DELNEIGH;
            }
            RTM_NEWROUTE | RTM_DELROUTE if ours(5) => self.routes = true,
            // Those of table `local` come and go with addresses.
            RTM_NEWROUTE | RTM_DELROUTE => {
                let kind = message.payload.get(7);
                self.foreign |= kind.is_some_and(|kind| !OF_TABLE_LOCAL.contains(kind));
            }
            RTM_NEWRULE | RTM_DELRULE => {
                let ours = message.attrs(12).get(FRA_PROTOCOL) == Some(&[ROUTE_PROTOCOL]);
                self.rules |= ours;
                self.foreign |= !ours;
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
    running: Running,
}

/// Returns a stream with an item whenever something that may concern us has changed and then nothing for 50 ms, or at once when a link has
/// come up. The stream ends only with an error of the socket.
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
    let watcher =
        Watcher { fd: unsafe { AsyncFd::register(socket)? }, running: Running::default() };
    Ok(stream::unfold(watcher, |mut watcher| async move {
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
    async fn next(&mut self) -> io::Result<Drift> {
        let mut drift = Drift::default();
        while drift == Drift::default() {
            self.read(&mut drift).await?;
        }
        let deadline = tokio::time::Instant::now() + MAX_WAIT;
        while !drift.came_up {
            let quiet = tokio::time::Instant::now() + QUIET;
            match tokio::time::timeout_at(quiet.min(deadline), self.read(&mut drift)).await {
                Ok(result) => result?,
                Err(_) => break,
            }
        }
        Ok(drift)
    }

    /// Waits for the next datagram.
    async fn read(&mut self, drift: &mut Drift) -> io::Result<()> {
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
            drift.record(&message, &mut self.running);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_comes_up_when_it_gets_its_carrier_and_not_again_while_it_has_it() {
        const NO_CARRIER: u32 = IFF_UP;
        let mut running = Running::default();
        let mut heard = |kind, family: u8, index: u32, flags: u32| {
            let mut payload = vec![family, 0, 0, 0];
            payload.extend(index.to_ne_bytes());
            payload.extend(flags.to_ne_bytes());
            running.came_up(&Received { kind, payload })
        };
        assert!(heard(RTM_NEWLINK, 0, 7, WORKS), "it is not known yet");
        assert!(!heard(RTM_NEWLINK, 0, 7, WORKS), "its MTU, say");
        assert!(!heard(RTM_NEWLINK, 0, 7, NO_CARRIER));
        assert!(!heard(RTM_NEWLINK, AF_BRIDGE, 7, WORKS), "of its bridge");
        assert!(!heard(RTM_NEWLINK, 0, 7, IFF_RUNNING | IFF_LOWER_UP), "set down");
        assert!(heard(RTM_NEWLINK, 0, 7, WORKS));
        assert!(!heard(RTM_DELLINK, 0, 7, WORKS));
        assert!(heard(RTM_NEWLINK, 0, 7, WORKS), "another one with that index");
    }
}
