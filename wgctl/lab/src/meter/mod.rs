//! Two meters between two ends (workloads or nodes), each in both directions, 1,000 packets a second each unless the scenario says
//! otherwise; and TCP (`tcp`), where the scenario wants it.
//!
//! `new flows` sends every packet from a fresh source port, so each is a flow of its own (only these die in Kilo issue
//! #489); `established` keeps one flow. Every packet carries its stream and number; the receiver ticks it off.
//! All that is reported is computed from which numbers arrived and when they were sent. The kernel chooses the address that a packet
//! leaves with, as for most programs; the receiver looks whether what it sees is one of the sender's.

mod ends;
mod outage;
mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, sendto, setsockopt, socket, sockopt,
};

use crate::ns::Namespace;
pub use ends::{End, Lane, Rewritten};
pub use outage::{Outage, longest_outage};
pub use tcp::{ANEW as NEW_CONNECTION_EVERY, IN_TIME as CONNECTS_IN_TIME, TcpSeen};

/// Time between two packets of a meter in one direction, unless the scenario says otherwise.
pub const TICK: Duration = Duration::from_millis(1);
const MAGIC: u32 = 0x6c61_626d;
/// Ticks made up for at most after the machine stood still.
const MAX_CATCH_UP: u32 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    NewFlows = 0,
    Established = 1,
}

/// One meter in one direction. Times in microseconds since the Unix epoch.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    pub sent: Vec<u64>,
    pub arrived: Vec<bool>,
}

/// Sent and lost packets.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Tally {
    pub sent: u64,
    pub lost: u64,
}

impl Tally {
    fn of(s: &Stream, since: u64, until: u64) -> Self {
        let from = s.sent.partition_point(|at| *at < since);
        // A time that ends before it begins has no packets.
        let to = s.sent.partition_point(|at| *at <= until).max(from);
        let lost = s.arrived[from..to].iter().filter(|a| !**a).count() as u64;
        Self { sent: (to - from) as u64, lost }
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// `[meter][direction]`.
    streams: [[Mutex<Stream>; 2]; 2],
    /// UDP packets whose source was none of the sender's.
    rewritten: Mutex<Rewritten>,
}

/// Running meters.
#[derive(Debug)]
pub struct Meters {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tcp: Option<tcp::Running>,
}

pub fn wall_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Meters {
    /// Starts between two workloads. `size` is that of the IP packets, in bytes; one leaves `every` so long, for each meter
    /// and direction.
    pub fn start(
        a: (&Namespace, IpAddr),
        b: (&Namespace, IpAddr),
        size: u16,
        every: Duration,
    ) -> Result<Self> {
        let [a, b] = [a, b].map(|(ns, address)| End::of(ns, address));
        Self::start_in(Lane::ALONE, [&a, &b], size, every)
    }

    /// `start`, where several run at once.
    pub fn start_in(lane: Lane, ends: [&End<'_>; 2], size: u16, every: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            streams: Default::default(),
            rewritten: Mutex::default(),
        });
        let [a, b] = ends;
        let headers = if a.address.is_ipv4() { 28 } else { 48 };
        let payload = usize::from(size).saturating_sub(headers).max(16);
        let mut threads = Vec::new();
        for (direction, (own, peer)) in [(a, b), (b, a)].into_iter().enumerate() {
            let sockets = own.ns.run(|| Sockets::open(lane, own.address, peer))?;
            let shared = Arc::clone(&shared);
            let ns = own.ns.net_handle()?;
            let work = move || {
                if ns.enter().is_ok() {
                    sockets.work(&shared, direction, payload, every);
                }
            };
            threads.push(
                thread::Builder::new().name("meter".into()).spawn(work).context("meter thread")?,
            );
        }
        Ok(Self { shared, threads, tcp: None })
    }

    /// TCP as well, between the same ends.
    pub fn with_tcp(mut self, lane: Lane, ends: [&End<'_>; 2]) -> Result<Self> {
        self.tcp = Some(tcp::Running::start(lane, ends)?);
        Ok(self)
    }

    /// What came from none of its sender's addresses, all told.
    pub fn rewritten(&self) -> Rewritten {
        let mut all = lock(&self.shared.rewritten).clone();
        if let Some(tcp) = &self.tcp {
            all.add(&tcp.rewritten());
        }
        all
    }

    /// What TCP saw in a span of time, if it is metered.
    pub fn tcp(&self, since: u64, until: u64) -> Option<TcpSeen> {
        self.tcp.as_ref().map(|tcp| tcp.seen(since, until))
    }

    /// A copy of a meter's two directions.
    pub fn streams(&self, meter: Meter) -> [Stream; 2] {
        let [x, y] = &self.shared.streams[meter as usize];
        [lock(x).clone(), lock(y).clone()]
    }

    /// Sent and arrived since a time, both directions, leaving out what was sent after `until`.
    pub fn tally(&self, meter: Meter, since: u64, until: u64) -> Tally {
        let mut t = Tally::default();
        for s in &self.shared.streams[meter as usize] {
            let one = Tally::of(&lock(s), since, until);
            t.sent += one.sent;
            t.lost += one.lost;
        }
        t
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What one end needs: it sends its direction and receives the other.
#[derive(Debug)]
struct Sockets {
    lane: Lane,
    peer: IpAddr,
    known: ends::Known,
    one_flow: UdpSocket,
    inbox: [UdpSocket; 2],
}

/// Any address of this family: the kernel chooses one for each packet.
fn any(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

impl Sockets {
    fn open(lane: Lane, own: IpAddr, peer: &End<'_>) -> Result<Self> {
        let inbox = |port| -> Result<UdpSocket> {
            let s = UdpSocket::bind((own, port))
                .with_context(|| format!("meter: cannot bind {own}:{port}"))?;
            s.set_nonblocking(true)?;
            // Room for a second of packets, should the thread be late.
            let _ = setsockopt(&s, sockopt::RcvBuf, &(1 << 21));
            Ok(s)
        };
        let one_flow = UdpSocket::bind((any(own), lane.source_of_one_flow()))?;
        one_flow.set_nonblocking(true)?;
        let inbox = [inbox(lane.port(Meter::NewFlows))?, inbox(lane.port(Meter::Established))?];
        Ok(Self { lane, peer: peer.address, known: peer.known.clone(), one_flow, inbox })
    }

    fn work(&self, shared: &Shared, direction: usize, payload: usize, every: Duration) {
        let _ = nix::sys::prctl::set_timerslack(1);
        let mut packet = vec![0u8; payload];
        let mut next = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            let mut behind = 0;
            while next <= Instant::now() && behind < MAX_CATCH_UP {
                self.send(shared, direction, &mut packet);
                next += every;
                behind += 1;
            }
            if behind == MAX_CATCH_UP {
                next = Instant::now() + every;
            }
            self.receive(shared, 1 - direction);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn send(&self, shared: &Shared, direction: usize, packet: &mut [u8]) {
        for meter in [Meter::NewFlows, Meter::Established] {
            let number = {
                let mut s = lock(&shared.streams[meter as usize][direction]);
                s.sent.push(wall_micros());
                s.arrived.push(false);
                s.sent.len() as u64 - 1
            };
            packet[0..4].copy_from_slice(&MAGIC.to_be_bytes());
            packet[4] = meter as u8;
            packet[8..16].copy_from_slice(&number.to_be_bytes());
            let to = SocketAddr::new(self.peer, self.lane.port(meter));
            // A send that fails is a lost packet (no route, link down): exactly what is measured.
            let _ = match meter {
                Meter::NewFlows => self.send_from_fresh_port(number, to, packet),
                Meter::Established => {
                    self.one_flow.send_to(packet, to).map(drop).map_err(Into::into)
                }
            };
        }
    }

    fn send_from_fresh_port(&self, number: u64, to: SocketAddr, packet: &[u8]) -> Result<()> {
        let family = if self.peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let s = socket(
            family,
            SockType::Datagram,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let port = self.lane.fresh_source(number);
        use std::os::fd::AsRawFd as _;
        bind(s.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any(self.peer), port)))?;
        sendto(
            s.as_raw_fd(),
            packet,
            &SockaddrStorage::from(to),
            nix::sys::socket::MsgFlags::empty(),
        )?;
        Ok(())
    }

    fn receive(&self, shared: &Shared, direction: usize) {
        let mut buffer = [0u8; 2048];
        for inbox in &self.inbox {
            while let Ok((n, from)) = inbox.recv_from(&mut buffer) {
                if n < 16 || buffer[0..4] != MAGIC.to_be_bytes() || buffer[4] > 1 {
                    continue;
                }
                if !self.known.has(from.ip()) {
                    lock(&shared.rewritten).count(from.ip());
                }
                let number =
                    u64::from_be_bytes(buffer[8..16].try_into().unwrap_or_default()) as usize;
                let mut s = lock(&shared.streams[usize::from(buffer[4])][direction]);
                if let Some(a) = s.arrived.get_mut(number) {
                    *a = true;
                }
            }
        }
    }
}
