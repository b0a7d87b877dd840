//! Two meters between the workloads of two nodes, each in both directions, 1,000 packets a second each unless the scenario says
//! otherwise.
//!
//! `new flows` sends every packet from a fresh source port, so each is a flow of its own (only these die in Kilo issue
//! #489); `established` keeps one flow. Every packet carries its stream and number; the receiver ticks it off.
//! All that is reported is computed from which numbers arrived and when they were sent.

mod outage;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, sendto, setsockopt, socket, sockopt,
};

use crate::ns::Namespace;
pub use outage::{Outage, longest_outage};

/// Time between two packets of a meter in one direction, unless the scenario says otherwise.
pub const TICK: Duration = Duration::from_millis(1);
/// Meter packets go to these ports.
const PORT: [u16; 2] = [9001, 9002];
/// Fresh source ports are taken in turn from here, so one comes back after 45 s.
const FIRST_SOURCE: u16 = 15_000;
const SOURCES: u64 = 45_000;
const SOURCE_OF_ONE_FLOW: u16 = 9003;
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

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// `[meter][direction]`.
    streams: [[Mutex<Stream>; 2]; 2],
}

/// Running meters.
#[derive(Debug)]
pub struct Meters {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

pub fn wall_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

fn lock(m: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
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
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), streams: Default::default() });
        let headers = if a.1.is_ipv4() { 28 } else { 48 };
        let payload = usize::from(size).saturating_sub(headers).max(16);
        let mut threads = Vec::new();
        for (direction, (ns, own, peer)) in
            [(a.0, a.1, b.1), (b.0, b.1, a.1)].into_iter().enumerate()
        {
            let sockets = ns.run(|| Sockets::open(own, peer))?;
            let shared = Arc::clone(&shared);
            let ns = ns.net_handle()?;
            let work = move || {
                if ns.enter().is_ok() {
                    sockets.work(&shared, direction, payload, every);
                }
            };
            threads.push(
                thread::Builder::new().name("meter".into()).spawn(work).context("meter thread")?,
            );
        }
        Ok(Self { shared, threads })
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
            let s = lock(s);
            let from = s.sent.partition_point(|at| *at < since);
            // A time that ends before it begins has no packets.
            let to = s.sent.partition_point(|at| *at <= until).max(from);
            t.sent += (to - from) as u64;
            t.lost += s.arrived[from..to].iter().filter(|a| !**a).count() as u64;
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

/// What one workload needs: it sends its direction and receives the other.
#[derive(Debug)]
struct Sockets {
    own: IpAddr,
    peer: IpAddr,
    one_flow: UdpSocket,
    inbox: [UdpSocket; 2],
}

impl Sockets {
    fn open(own: IpAddr, peer: IpAddr) -> Result<Self> {
        let inbox = |port| -> Result<UdpSocket> {
            let s = UdpSocket::bind((own, port))
                .with_context(|| format!("meter: cannot bind {own}:{port}"))?;
            s.set_nonblocking(true)?;
            // Room for a second of packets, should the thread be late.
            let _ = setsockopt(&s, sockopt::RcvBuf, &(1 << 21));
            Ok(s)
        };
        let one_flow = UdpSocket::bind((own, SOURCE_OF_ONE_FLOW))?;
        one_flow.set_nonblocking(true)?;
        Ok(Self { own, peer, one_flow, inbox: [inbox(PORT[0])?, inbox(PORT[1])?] })
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
            let to = SocketAddr::new(self.peer, PORT[meter as usize]);
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
        let family = if self.own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let s = socket(
            family,
            SockType::Datagram,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let port = FIRST_SOURCE + (number % SOURCES) as u16;
        use std::os::fd::AsRawFd as _;
        bind(s.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.own, port)))?;
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
            while let Ok(n) = inbox.recv(&mut buffer) {
                if n < 16 || buffer[0..4] != MAGIC.to_be_bytes() || buffer[4] > 1 {
                    continue;
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
