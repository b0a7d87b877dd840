//! The thread that moves packets between the TUN devices.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::path::{Dice, Fate, Path};
use super::{Port, State, icmp};

/// Packets taken from one device before the others have their turn.
const BURST: usize = 64;
/// Packets under way at most; more is loss, as a memory bound.
const MAX_IN_FLIGHT: usize = 200_000;
/// Packet buffers kept for reuse.
const MAX_SPARE: usize = 4096;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    due: Instant,
    /// Keeps packets of equal time in order.
    number: u64,
    port: usize,
    packet: Vec<u8>,
}

#[derive(Debug)]
pub struct Forwarder {
    ports: Vec<Port>,
    by_address: BTreeMap<Ipv4Addr, usize>,
    /// From location × to location.
    paths: Vec<Path>,
    /// From port × to port: when the last packet between them leaves.
    last_due: Vec<Instant>,
    locations: usize,
    state: Arc<Mutex<State>>,
    heap: BinaryHeap<Reverse<InFlight>>,
    number: u64,
    spare: Vec<Vec<u8>>,
    dice: Dice,
}

impl Forwarder {
    pub fn new(ports: Vec<Port>, locations: usize, state: Arc<Mutex<State>>) -> Result<Self> {
        let mut seed = [0u8; 8];
        getrandom::fill(&mut seed).context("random bytes")?;
        let now = Instant::now();
        Ok(Self {
            by_address: ports.iter().enumerate().map(|(i, p)| (p.address, i)).collect(),
            paths: (0..locations * locations).map(|_| Path::new(now)).collect(),
            last_due: vec![now; ports.len() * ports.len()],
            ports,
            locations,
            state,
            heap: BinaryHeap::new(),
            number: 0,
            spare: Vec::new(),
            dice: Dice::new(u64::from_le_bytes(seed)),
        })
    }

    pub fn run(&mut self) -> Result<()> {
        // The default timer slack of 50 µs would add to every latency.
        nix::sys::prctl::set_timerslack(1).context("PR_SET_TIMERSLACK")?;
        let mut buffer = vec![0u8; 65_536];
        loop {
            let ready = self.wait()?;
            for port in ready {
                self.read_from(port, &mut buffer)?;
            }
            self.deliver_due()?;
        }
    }

    /// Ports with packets to read, or none when something is due.
    fn wait(&self) -> Result<Vec<usize>> {
        let timeout = self.heap.peek().map_or(Duration::from_secs(1), |Reverse(next)| {
            next.due.saturating_duration_since(Instant::now())
        });
        let mut fds: Vec<PollFd<'_>> =
            self.ports.iter().map(|p| PollFd::new(p.tun.as_fd(), PollFlags::POLLIN)).collect();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("ppoll"),
        }
        let ready = |f: &PollFd<'_>| f.revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
        Ok(fds.iter().enumerate().filter(|(_, f)| ready(f)).map(|(i, _)| i).collect())
    }

    fn read_from(&mut self, port: usize, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..BURST {
            match nix::unistd::read(&self.ports[port].tun, buffer) {
                Ok(n) => self.accept(port, &buffer[..n]),
                Err(Errno::EAGAIN) => return Ok(()),
                // The device is down for now.
                Err(Errno::EIO | Errno::EINTR | Errno::EBADFD) => return Ok(()),
                Err(e) => return Err(e).context("cannot read from a TUN device"),
            }
        }
        Ok(())
    }

    fn accept(&mut self, from: usize, packet: &[u8]) {
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return;
        }
        let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let Some(&to) = self.by_address.get(&to) else { return };
        let (a, b) = (&self.ports[from], &self.ports[to]);
        let now = Instant::now();
        let (fate, mtu) = {
            let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
            if state.cut_locations[a.location] || state.cut_locations[b.location] {
                return;
            }
            let path = &mut self.paths[a.location * self.locations + b.location];
            let last_due = &mut self.last_due[from * self.ports.len() + to];
            let links = state.links(a.node, b.node);
            let (len, dice) = (packet.len(), &mut self.dice);
            (path.fate((now, last_due), len, &state.spec, links, dice), state.spec.mtu)
        };
        match fate {
            Fate::Lost => {}
            Fate::TooBig { icmp: false } => {}
            // A router would send it in fragments; the far end sees the same packet.
            Fate::TooBig { icmp: true } if !icmp::dont_fragment(packet) => {
                self.push(now, to, packet)
            }
            Fate::TooBig { icmp: true } => {
                if let Some(answer) = icmp::fragmentation_needed(packet, mtu) {
                    self.push(now, from, &answer);
                }
            }
            Fate::Deliver { due, again } => {
                self.push(due, to, packet);
                if again {
                    self.push(due, to, packet);
                }
            }
        }
    }

    fn push(&mut self, due: Instant, port: usize, bytes: &[u8]) {
        if self.heap.len() >= MAX_IN_FLIGHT {
            return;
        }
        let mut packet = self.spare.pop().unwrap_or_default();
        packet.clear();
        packet.extend_from_slice(bytes);
        self.number += 1;
        self.heap.push(Reverse(InFlight { due, number: self.number, port, packet }));
    }

    fn deliver_due(&mut self) -> Result<()> {
        let now = Instant::now();
        while self.heap.peek().is_some_and(|Reverse(p)| p.due <= now) {
            let Some(Reverse(p)) = self.heap.pop() else { break };
            match nix::unistd::write(&self.ports[p.port].tun, &p.packet) {
                Ok(_)
                | Err(Errno::EAGAIN | Errno::EIO | Errno::EINTR | Errno::EINVAL | Errno::ENOBUFS) =>
                    {}
                Err(e) => return Err(e).context("cannot write to a TUN device"),
            }
            if self.spare.len() < MAX_SPARE {
                self.spare.push(p.packet);
            }
        }
        Ok(())
    }
}
