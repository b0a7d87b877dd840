//! The core's whole interface with the world: an [`Input`] is all that it learns, an [`Effect`] all that it wants done.
//!
//! A shell carries out effects and reports inputs, and decides nothing for the core. So a recording of both is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use wgctl_plan::{InterfaceName, Network};

use crate::admin::{AdminRequest, AdminResponse};
use crate::fault::Fault;
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{ControlPublicKey, HttpRequest, Mesh};
use crate::proof::{Signature, Statement};
pub use crate::stored::{Persist, StoredGroup};
use crate::verdict::ProbeClass;
use crate::wire::Frame;

/// Names one probe of this daemon's lifetime.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProbeId(pub u64);

/// Names one write to the store; counts up from each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// What happened. Plain data, so that a daemon can record it and `leaderd replay` run it again.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// The time that `poll_timeout` named has come.
    Timeout,
    /// A datagram on the socket of a probe: bytes of a reflected STAMP packet.
    ProbeReply {
        probe: ProbeId,
        bytes: Vec<u8>,
    },
    /// An ICMP error (from the socket's error queue) or a local error for a probe.
    ProbeError {
        probe: ProbeId,
        error: ProbeError,
    },
    /// A STAMP request on reflector port `local`, from `from`, with this IP TTL or hop limit.
    ProbeRequest {
        from: SocketAddr,
        local: SocketAddr,
        ttl: u8,
        bytes: Vec<u8>,
    },
    /// A frame from an authenticated node.
    Frame {
        from: NodeName,
        frame: Box<Frame>,
    },
    /// The control channel to a node is up, with its smoothed round trip; or down.
    PeerUp {
        node: NodeName,
        rtt_micros: u64,
    },
    PeerDown {
        node: NodeName,
    },
    /// Everything up to this ticket is on disk.
    Persisted {
        ticket: Ticket,
    },
    /// The network described by the last `Effect::Program` with this revision is in the kernel (or why it is not).
    Programmed {
        revision: u64,
        error: Option<String>,
    },
    /// Whether this node can relay, as the shell sees it; sent when it changes.
    Local(LocalFacts),
    /// A request from the local admin socket, and its user as far as known.
    Admin {
        id: u64,
        user: Option<String>,
        request: AdminRequest,
    },
    /// DNS names of endpoints and the addresses they have now.
    Resolved(BTreeMap<String, IpAddr>),
    /// Another mesh file was read, and has no mistakes.
    MeshChanged(Box<Mesh>),
    /// Remote locations with a rule of ours in the kernel: where a daemon before this one carried beside Kilo. Sent once,
    /// at the start; a mesh that Kilo steers is not programmed before.
    Carried(BTreeSet<LocationName>),
    /// The TCP connect of a probe with an HTTP request succeeded; the answer is awaited.
    ServiceConnected {
        probe: ProbeId,
    },
    /// The addresses within this node's workload prefixes that this host holds. Sent once at the start, and when they change.
    Addresses(Vec<HeldAddress>),
    /// This node's LAN device is this one now. Sent once at the start, before which nothing is programmed, and when it changes.
    LanDevice(LanDevice),
    /// What on this host keeps part of the mesh from working, for a person to read: all notes of this part of the shell, whenever
    /// they change.
    HostNotes {
        part: String,
        notes: Vec<String>,
    },
    /// The signature that `Effect::Sign` with this number asked for.
    Signed {
        id: u64,
        signature: Signature,
    },
    /// A service answered: with an HTTP body of this many bytes, or by taking a TCP connection.
    ServiceReply {
        probe: ProbeId,
        body: Option<u32>,
    },
    /// The packets of the last `Effect::CheckRoutes` that the kernel sends another way than the programmed network does: all of them,
    /// whenever they change.
    Overridden(Vec<OverriddenRoute>),
}

/// A packet whose way the kernel is asked for, as `ip route get` does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RouteCheck {
    /// The other location that it comes from or goes to.
    pub location: LocationName,
    pub source: IpAddr,
    pub target: IpAddr,
    /// The device that it comes in by; `None`: this node sends it.
    pub iif: Option<InterfaceName>,
}

/// A rule, a route or a setting of another program comes before our routes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OverriddenRoute {
    pub check: RouteCheck,
    /// What the kernel does with the packet, as a clause.
    pub found: String,
}

/// The device that holds this node's LAN address.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LanDevice {
    /// `None` if no device holds the address.
    pub name: Option<InterfaceName>,
    /// Its MTU in bytes, as far as the kernel has said one.
    pub mtu: Option<u32>,
}

/// An address that this host answers at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct HeldAddress {
    pub device: InterfaceName,
    pub address: IpAddr,
}

/// Why a probe failed at once.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProbeError {
    /// ICMP time exceeded, from this router: a loop.
    TimeExceeded { from: Option<IpAddr> },
    /// ICMP fragmentation needed or packet too big, naming the next hop's MTU; or EMSGSIZE with the local one.
    TooBig { mtu: Option<u16>, from: Option<IpAddr> },
    /// ICMP unreachable of some kind.
    Unreachable { from: Option<IpAddr> },
    /// The local kernel refused to send (no route, interface down).
    Local { errno: i32 },
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LocalFacts {
    /// Set when this node knows that it cannot relay, with the reason.
    pub broken: Option<(Fault, String)>,
    /// The implementation of WireGuard: `kernel`, `wireguard-go` or `leaderd`.
    pub backend: String,
}

/// What the core wants done.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Effect {
    SendProbe(Box<ProbeSend>),
    /// Close the socket of a probe, if it is still open: nothing more is expected.
    ForgetProbe {
        probe: ProbeId,
    },
    /// Answer a STAMP request from `from` (exactly this local address and port) to `to`.
    Reflect {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Send a frame. It is lost silently without a connection: the core repeats what matters.
    SendFrame {
        to: NodeName,
        frame: Box<Frame>,
    },
    /// Write to disk in this order, sync, then answer with `Input::Persisted`. Later tickets imply earlier ones.
    Persist {
        ticket: Ticket,
        location: LocationName,
        write: Box<Persist>,
    },
    /// Make the kernel look like this, and try again until it does. A later one supersedes an earlier one.
    Program {
        revision: u64,
        network: Box<Network>,
    },
    AdminReply {
        id: u64,
        response: AdminResponse,
    },
    /// Sign with this node's control key, and answer at once with `Input::Signed`.
    Sign {
        id: u64,
        statement: Statement,
    },
    /// For the log.
    Log {
        level: LogLevel,
        message: String,
        fields: Vec<(String, String)>,
    },
    /// Hold control connections with exactly these nodes. Comes at the start and when they change; connections that still fit stay.
    SetPeers {
        peers: Vec<Peer>,
    },
    /// Reflect probes on exactly these UDP ports. Comes at the start and with each new mesh file.
    ListenProbes {
        ports: Vec<u16>,
    },
    /// Close the sockets of all pinned flows but these: the targets of the others are gone.
    KeepFlows {
        flows: BTreeSet<u32>,
    },
    /// Ask the kernel for the ways of these packets, again and again, and compare them with the programmed network.
    CheckRoutes {
        checks: Vec<RouteCheck>,
    },
    /// Answer a STAMP request as `Reflect` does, but through the plane of this slot, whatever the routes say.
    ReflectThrough {
        via: Slot,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
}

/// A node to hold a control connection with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub name: NodeName,
    pub control_key: ControlPublicKey,
    /// In the order in which to try them.
    pub addresses: Vec<PeerAddress>,
    /// True on the side that dials: the node with the lower index.
    pub dial: bool,
}

/// Where a node's control port is, and where from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerAddress {
    /// Through this plane; `None`: by the ordinary routes.
    pub plane: Option<Slot>,
    /// Local address to dial from, where it matters.
    pub source: Option<IpAddr>,
    pub to: SocketAddr,
}

/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// One probe to send.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProbeSend {
    pub probe: ProbeId,
    pub class: ProbeClass,
    /// Bind to `wgl{slot}` (SO_BINDTODEVICE); `None`: the ordinary routes.
    pub via: Option<Slot>,
    pub source: IpAddr,
    pub target: SocketAddr,
    pub kind: ProbeKind,
}

impl ProbeSend {
    /// The STAMP packet, if it is one that is sent.
    pub fn packet(&self) -> Option<&[u8]> {
        match &self.kind {
            ProbeKind::Stamp { packet, .. } => Some(packet),
            ProbeKind::TcpConnect | ProbeKind::Http(_) => None,
        }
    }
}

/// How a probe is sent.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProbeKind {
    /// A STAMP packet over UDP.
    Stamp {
        /// The UDP payload.
        packet: Vec<u8>,
        flow: Flow,
        /// Set DF (IP_PMTUDISC_PROBE): send whole or not at all.
        dont_fragment: bool,
    },
    /// A TCP connect that is closed at once.
    TcpConnect,
    /// A TCP connect, and then this request.
    Http(HttpRequest),
}

/// Which source port a probe uses.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Flow {
    /// A socket of its own, closed afterwards.
    Fresh,
    /// The long-lived socket with this number; made when first used, for this source, target and plane.
    Pinned(u32),
}
