//! The control channel: one QUIC connection per pair of nodes, mutually authenticated by the mesh file's keys.
//!
//! The node with the lower index dials, through each of the peer's addresses in turn, for ever, with a jittered back-off;
//! the other accepts. Urgent frames that fit go as datagrams (the core repeats them), all others each on a stream of
//! its own, so none waits for a lost one. What cannot be sent in time is dropped, oldest first, and counted.
//!
//! A connection is dead when nothing arrived for `link::silence`: a bound that follows its round trip, which QUIC's fixed
//! idle timeout cannot.

mod dial;
mod inbox;
mod link;
mod listen;
mod rate;
mod receive;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::io::{Input, Peer};
use leaderd_core::log_limit::LogLimit;
use leaderd_core::mesh::ControlPublicKey;
use leaderd_core::wire::Frame;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use listen::ListenError;
pub use tls::KnownKeys;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::secrets::Keys;
use inbox::Inbox;
use link::Link;

/// QUIC's own idle timeout: longer than any adaptive one, so it only cleans up.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// Both sides send at least this often, so silence means something.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Streams (so frames) of one peer in flight at once.
const MAX_STREAMS: u32 = 64;

/// Bytes of one peer in flight at once: two of the longest frames.
const RECEIVE_WINDOW: u32 = 2 * leaderd_core::wire::MAX_FRAME as u32;

/// Most frames and bytes that wait to be sent to one peer (a single frame may be longer): more means that the peer is stuck.
const MAX_QUEUED: usize = 256;
const MAX_QUEUED_BYTES: usize = leaderd_core::wire::MAX_FRAME;

/// Shared by all tasks of the control channel.
pub(crate) struct Shared {
    identity: tls::Identity,
    known: KnownKeys,
    links: Mutex<BTreeMap<NodeName, Arc<Link>>>,
    inputs: mpsc::Sender<Input>,
    inbox: Inbox,
    counters: Counters,
    clock: Clock,
    log_limit: Mutex<LogLimit<&'static str>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// One node's end of all its connections.
#[derive(Debug)]
pub struct Control {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
    peers: usize,
    dialers: BTreeMap<NodeName, (Dial, JoinHandle<()>)>,
}

/// All that a dialer needs; a change of it starts another dialer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Dial {
    node: NodeName,
    key: ControlPublicKey,
    /// Where to bind (`None`: anywhere) and where to.
    routes: Vec<(Option<IpAddr>, SocketAddr)>,
}

impl Control {
    /// Listens on `port` of all addresses. Sends to `inputs` who comes and goes; frames wait for [`Self::next_frame`]. Must be
    /// called within a tokio runtime.
    pub fn start(
        port: u16,
        keys: &Keys,
        inputs: mpsc::Sender<Input>,
        counters: Counters,
    ) -> Result<Self, ListenError> {
        let identity = tls::Identity::new(&keys.control, keys.control_public())?;
        let shared = Arc::new(Shared {
            identity,
            known: KnownKeys::default(),
            links: Mutex::default(),
            inputs,
            inbox: Inbox::default(),
            counters,
            clock: Clock::default(),
            log_limit: Mutex::default(),
        });
        let listener = listen::start(port, shared.clone())?;
        Ok(Self { shared, listener, peers: 0, dialers: BTreeMap::new() })
    }

    /// Replaces the peers. Connections and dialers that still fit are left alone.
    pub fn set_peers(&mut self, peers: &[Peer]) {
        self.peers = peers.len();
        let shared = &self.shared;
        shared.known.set(peers.iter().map(|p| (p.control_key, p.name.clone())).collect());
        let keys: BTreeMap<&NodeName, ControlPublicKey> =
            peers.iter().map(|p| (&p.name, p.control_key)).collect();
        shared.lock_links().retain(|name, link| {
            let stays = keys.get(name) == Some(&link.key());
            if !stays {
                link.close("no longer in the mesh");
            }
            stays
        });
        let wanted: BTreeMap<NodeName, Dial> = peers
            .iter()
            .filter(|p| p.dial)
            .map(|p| {
                let routes = p.addresses.iter().map(|a| (a.source, a.to)).collect();
                (p.name.clone(), Dial { node: p.name.clone(), key: p.control_key, routes })
            })
            .collect();
        self.dialers.retain(|name, (dial, task)| {
            let stays = wanted.get(name) == Some(dial);
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, dial) in wanted {
            let shared = &self.shared;
            self.dialers
                .entry(name)
                .or_insert_with(|| (dial.clone(), tokio::spawn(dial::run(dial, shared.clone()))));
        }
    }

    /// Sends a frame, or drops it if there is no connection.
    pub fn send(&self, to: &NodeName, frame: &Frame) {
        let link = self.shared.lock_links().get(to).cloned();
        match link {
            Some(link) => link.send(frame, &self.shared.counters),
            None => self.shared.counters.count("frames_without_connection"),
        }
    }

    /// The next frame that came in, of each peer in turn. May be given up while it waits.
    pub async fn next_frame(&self) -> Input {
        let (from, frame) = self.shared.inbox.next().await;
        Input::Frame { from, frame }
    }

    /// The number of nodes to hold a connection with.
    pub const fn peers(&self) -> usize {
        self.peers
    }

    /// Who is connected.
    pub fn connected(&self) -> Vec<NodeName> {
        self.shared.lock_links().keys().cloned().collect()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.listener.abort();
        for (_, task) in self.dialers.values() {
            task.abort();
        }
        for link in self.shared.lock_links().values() {
            link.close("the daemon stops");
        }
    }
}

impl Shared {
    fn lock_links(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, and logs once per source and minute.
    fn refuse(&self, from: IpAddr, kind: &'static str, why: &dyn std::fmt::Display) {
        self.counters.count(kind);
        let mut limit = self.log_limit.lock().unwrap_or_else(PoisonError::into_inner);
        if limit.allow(self.clock.now().mono, &from.to_string(), kind).is_some() {
            tracing::warn!(peer.address = %from, reason = kind, "control channel: {why}");
        }
    }
}

/// `initial_rtt` decides how long a lost first packet takes (three of them).
fn transport(initial_rtt: Duration) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .stream_receive_window(VarInt::from_u32(leaderd_core::wire::MAX_FRAME as u32))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .datagram_receive_buffer_size(Some(256 * 1024))
        .datagram_send_buffer_size(256 * 1024)
        .max_idle_timeout(IdleTimeout::try_from(MAX_IDLE).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(initial_rtt);
    Arc::new(config)
}
