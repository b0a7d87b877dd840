//! Probes on real sockets, and the reflectors that answer them.
//!
//! All sockets sit in one epoll set, which the engine's task waits for: a probe costs a handful of system calls, and
//! neither a task nor a timer. A fresh flow has a socket of its own, closed by `ForgetProbe`; a pinned flow keeps its
//! socket, and the STAMP sequence number in a reply says which probe it answers.
//!
//! Nothing here judges: replies, ICMP errors from the error queue, and refusals of the local kernel become inputs.

mod http;
mod receive;
mod reflector;
mod socket;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use leaderd_core::ids::Slot;
use leaderd_core::io::{Flow, Input, ProbeError, ProbeId, ProbeKind, ProbeSend};
use leaderd_core::mesh::HttpRequest;
use leaderd_core::probe::stamp::SenderPacket;
use leaderd_core::verdict::ProbeClass;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use reflector::BindError;
use reflector::Reflectors;

use crate::counters::Counters;

/// Most fresh flows open at once: at 1,000 probes a second (the default budget) that is a second of silence.
/// The oldest is closed for a new one; its probe then counts as lost.
pub const MAX_FRESH: usize = 1024;

/// Most pinned flows. The one unused longest is closed for a new one.
pub const MAX_PINNED: usize = 1024;

/// Most HTTP requests under way. What is beyond is refused, as by a kernel without room: it then says nothing.
const MAX_REQUESTS: usize = 256;

/// Probes of one pinned flow that may still be answered.
const MAX_OUTSTANDING: usize = 64;

/// Longest datagram taken, in bytes: a jumbo frame's worth.
pub const MAX_DATAGRAM: usize = 9216;

/// Sockets served per wake-up, so that a flood cannot keep the engine from its timers.
const MAX_READY: usize = 64;

/// Datagrams taken from one socket per wake-up.
const MAX_PER_SOCKET: usize = 16;

type Token = u64;

/// Tokens of reflectors start here; those of probes count up from 0.
const REFLECTOR_TOKEN: Token = 1 << 63;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PinnedKey {
    flow: u32,
    via: Option<Slot>,
    source: IpAddr,
    target: SocketAddr,
}

/// What a UDP probe sends.
#[derive(Clone, Copy)]
struct Udp<'a> {
    packet: &'a [u8],
    dont_fragment: bool,
}

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Fresh(ProbeId),
    /// A TCP connect under way.
    Service(ProbeId),
    /// Probes without a reply, by their sequence numbers.
    Pinned {
        key: PinnedKey,
        outstanding: VecDeque<(u32, ProbeId)>,
        used: u64,
    },
}

/// All probe sockets of the daemon.
#[derive(Debug)]
pub struct Probes {
    epoll: AsyncFd<EpollFd>,
    open: BTreeMap<Token, Open>,
    by_probe: BTreeMap<ProbeId, Token>,
    pinned: BTreeMap<PinnedKey, Token>,
    /// Fresh and service sockets in the order in which they were opened; may name some that are closed.
    order: VecDeque<Token>,
    fresh: usize,
    next: Token,
    /// Requests to services, and where their tasks put what came of them.
    requests: BTreeMap<ProbeId, AbortHandle>,
    answers: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    reflectors: Reflectors,
    counters: Counters,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct EpollFd(Epoll);

impl AsRawFd for EpollFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.0.as_raw_fd()
    }
}
impl AsFd for EpollFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl Probes {
    /// Binds a reflector to every port. Must be called within a tokio runtime.
    pub fn bind(ports: &[u16], counters: Counters) -> Result<Self, BindError> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| BindError::System(e.into()))?;
        // SAFETY: `EpollFd` owns its descriptor and always gives the same one, until the `AsyncFd` is dropped with it.
        let epoll = unsafe { AsyncFd::register(EpollFd(epoll)) }
            .map_err(|e| BindError::System(e.into_parts().1))?;
        let mut probes = Self {
            epoll,
            open: BTreeMap::new(),
            by_probe: BTreeMap::new(),
            pinned: BTreeMap::new(),
            order: VecDeque::new(),
            fresh: 0,
            next: 0,
            requests: BTreeMap::new(),
            answers: mpsc::channel(MAX_REQUESTS),
            reflectors: Reflectors::default(),
            counters,
            buffer: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        };
        probes.set_ports(ports)?;
        Ok(probes)
    }

    /// Changes the reflectors' ports; those that stay are not touched. On an error all are as they were.
    pub fn set_ports(&mut self, ports: &[u16]) -> Result<(), BindError> {
        self.reflectors.set_ports(ports, &self.epoll.get_ref().0)
    }

    /// Sends one probe. What the local kernel refuses comes back as an input at once.
    pub fn send(&mut self, probe: &ProbeSend) -> Option<Input> {
        let sent = match &probe.kind {
            ProbeKind::Stamp { packet, flow, dont_fragment } => {
                let udp = Udp { packet, dont_fragment: *dont_fragment };
                match flow {
                    Flow::Fresh => self.send_fresh(probe, udp),
                    Flow::Pinned(flow) => self.send_pinned(probe, udp, *flow),
                }
            }
            ProbeKind::TcpConnect => self.connect(probe),
            ProbeKind::Http(request) => self.send_request(probe, request),
        };
        match sent {
            Ok(()) => {
                self.counters.count(sent_counter(probe.class));
                None
            }
            Err(error) => {
                self.counters.count("probes_refused_locally");
                self.forget(probe.probe);
                let error = match error.raw_os_error() {
                    Some(nix::libc::EMSGSIZE) => ProbeError::TooBig { mtu: None, from: None },
                    errno => ProbeError::Local { errno: errno.unwrap_or(nix::libc::EIO) },
                };
                Some(Input::ProbeError { probe: probe.probe, error })
            }
        }
    }

    /// Nothing more is expected for this probe.
    pub fn forget(&mut self, probe: ProbeId) {
        if let Some(task) = self.requests.remove(&probe) {
            task.abort();
        }
        let Some(token) = self.by_probe.remove(&probe) else { return };
        match self.open.get_mut(&token) {
            Some(Open { kind: Kind::Pinned { outstanding, .. }, .. }) => {
                outstanding.retain(|(_, p)| *p != probe)
            }
            Some(_) => self.close(token),
            None => {}
        }
    }

    /// Closes the sockets of all other long-lived flows: their targets are gone.
    pub fn keep_pinned(&mut self, flows: &BTreeSet<u32>) {
        let gone = self.pinned.iter().filter(|(key, _)| !flows.contains(&key.flow));
        for token in gone.map(|(_, token)| *token).collect::<Vec<_>>() {
            self.close(token);
        }
    }

    /// Answers a request from exactly this local address and port. `via`: through the plane of this slot, else by the routes.
    pub fn reflect(&self, via: Option<Slot>, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        match self.reflectors.send(via, from, to, bytes) {
            Ok(()) => self.counters.count("reflections_sent"),
            Err(error) => {
                self.counters.count("reflections_failed");
                tracing::debug!(%from, %to, %error, "cannot reflect");
            }
        }
    }

    /// Waits until a socket has something, and gives what came in. Cancel-safe: nothing is taken before it returns.
    pub async fn ready(&mut self) -> Vec<Input> {
        loop {
            let events = {
                let guard = tokio::select! {
                    biased;
                    guard = self.epoll.readable() => guard,
                    // Never closed: one sender is ours.
                    Some(input) = self.answers.1.recv() => return vec![input],
                };
                let Ok(mut guard) = guard else {
                    // Only when the runtime shuts down.
                    return std::future::pending().await;
                };
                let mut events = [EpollEvent::empty(); MAX_READY];
                let count = guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
                if count == 0 {
                    guard.clear_ready();
                    continue;
                }
                events[..count].iter().map(|e| (e.data(), e.events())).collect::<Vec<_>>()
            };
            let mut inputs = Vec::new();
            for (token, flags) in events {
                if token >= REFLECTOR_TOKEN {
                    self.reflectors.receive(token, &mut self.buffer, &self.counters, &mut inputs);
                } else {
                    self.receive(token, flags, &mut inputs);
                }
            }
            if !inputs.is_empty() {
                return inputs;
            }
            // Events without inputs (strangers' datagrams) must not starve the timers.
            tokio::task::yield_now().await;
        }
    }

    pub fn open_sockets(&self) -> usize {
        self.open.len() + self.requests.len()
    }

    fn send_fresh(&mut self, probe: &ProbeSend, udp: Udp<'_>) -> io::Result<()> {
        self.make_room();
        let fd = socket::open(probe, udp.dont_fragment)?;
        socket::send(fd.as_fd(), udp.packet)?;
        self.keep_until_answered(probe.probe, fd, Kind::Fresh(probe.probe), EpollFlags::EPOLLIN)
    }

    fn connect(&mut self, probe: &ProbeSend) -> io::Result<()> {
        self.make_room();
        let fd = socket::connect_tcp(probe)?;
        self.keep_until_answered(probe.probe, fd, Kind::Service(probe.probe), EpollFlags::EPOLLOUT)
    }

    /// Closes the oldest sockets of single probes while there are too many.
    fn make_room(&mut self) {
        while self.fresh >= MAX_FRESH {
            let Some(oldest) = self.order.pop_front() else { break };
            if self.open.contains_key(&oldest) {
                self.counters.count("probe_sockets_evicted");
                self.close(oldest);
            }
        }
    }

    /// Keeps the socket of a single probe.
    fn keep_until_answered(
        &mut self,
        probe: ProbeId,
        fd: OwnedFd,
        kind: Kind,
        interest: EpollFlags,
    ) -> io::Result<()> {
        let token = self.add(fd, kind, interest)?;
        self.fresh += 1;
        self.order.push_back(token);
        // Closed ones linger in the order until they come to the front: keep that bounded too.
        if self.order.len() > 2 * MAX_FRESH {
            let open = &self.open;
            self.order.retain(|t| open.contains_key(t));
        }
        self.by_probe.insert(probe, token);
        Ok(())
    }

    fn send_request(&mut self, probe: &ProbeSend, request: &HttpRequest) -> io::Result<()> {
        self.requests.retain(|_, task| !task.is_finished());
        if self.requests.len() >= MAX_REQUESTS {
            self.counters.count("service_requests_refused");
            return Err(io::Error::from_raw_os_error(nix::libc::EAGAIN));
        }
        let fd = socket::connect_tcp(probe)?;
        let answers = self.answers.0.clone();
        let task =
            tokio::spawn(http::request(fd, probe.probe, probe.target, request.clone(), answers));
        self.requests.insert(probe.probe, task.abort_handle());
        Ok(())
    }

    fn send_pinned(&mut self, probe: &ProbeSend, udp: Udp<'_>, flow: u32) -> io::Result<()> {
        let key = PinnedKey { flow, via: probe.via, source: probe.source, target: probe.target };
        let token = match self.pinned.get(&key) {
            Some(token) => *token,
            None => {
                if self.pinned.len() >= MAX_PINNED {
                    let unused =
                        self.pinned.values().copied().min_by_key(|t| match self.open.get(t) {
                            Some(Open { kind: Kind::Pinned { used, .. }, .. }) => *used,
                            _ => 0,
                        });
                    if let Some(unused) = unused {
                        self.close(unused);
                    }
                }
                let fd = socket::open(probe, udp.dont_fragment)?;
                let kind = Kind::Pinned { key: key.clone(), outstanding: VecDeque::new(), used: 0 };
                let token = self.add(fd, kind, EpollFlags::EPOLLIN)?;
                self.pinned.insert(key, token);
                token
            }
        };
        let now = self.next;
        self.next += 1;
        let Some(Open { fd, kind: Kind::Pinned { outstanding, used, .. } }) =
            self.open.get_mut(&token)
        else {
            return Err(io::ErrorKind::NotFound.into());
        };
        *used = now;
        if outstanding.len() >= MAX_OUTSTANDING
            && let Some((_, old)) = outstanding.pop_front()
        {
            self.by_probe.remove(&old);
        }
        // Before it is entered anywhere: what fails here leaves nothing behind.
        socket::set_dont_fragment(fd.as_fd(), probe.target.is_ipv4(), udp.dont_fragment)?;
        let seq = SenderPacket::claimed_seq(udp.packet).unwrap_or_default();
        outstanding.push_back((seq, probe.probe));
        self.by_probe.insert(probe.probe, token);
        let sent = socket::send(fd.as_fd(), udp.packet);
        let errno = sent.as_ref().err().and_then(io::Error::raw_os_error);
        if let Some(nix::libc::ENODEV | nix::libc::ENXIO | nix::libc::EINVAL) = errno {
            // The interface went and came back under another index: the next probe gets a new socket.
            self.close(token);
        }
        sent
    }

    fn add(&mut self, fd: OwnedFd, kind: Kind, interest: EpollFlags) -> io::Result<Token> {
        let token = self.next;
        self.next += 1;
        self.epoll.get_ref().0.add(&fd, EpollEvent::new(interest, token))?;
        self.open.insert(token, Open { fd, kind });
        Ok(token)
    }

    /// Closing the descriptor takes it out of the epoll set.
    fn close(&mut self, token: Token) {
        let Some(open) = self.open.remove(&token) else { return };
        match open.kind {
            Kind::Fresh(probe) | Kind::Service(probe) => {
                self.fresh -= 1;
                self.by_probe.remove(&probe);
            }
            Kind::Pinned { key, outstanding, .. } => {
                self.pinned.remove(&key);
                for (_, probe) in outstanding {
                    self.by_probe.remove(&probe);
                }
            }
        }
    }
}

/// Returns what counts the sent probes of a class.
const fn sent_counter(class: ProbeClass) -> &'static str {
    match class {
        ProbeClass::Relay => "probes_sent_relay",
        ProbeClass::NewFlow => "probes_sent_new-flow",
        ProbeClass::PinnedFlow => "probes_sent_pinned-flow",
        ProbeClass::FullSize => "probes_sent_full-size",
        ProbeClass::AsWorkload => "probes_sent_as-workload",
        ProbeClass::Service => "probes_sent_service",
    }
}
