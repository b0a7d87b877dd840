//! Accepts connections: one UDP socket on all addresses, and bounds on handshakes under way.
//!
//! Clients that have not proved their address (QUIC Retry) share a few places; while those are taken, a client must prove its
//! address, which costs us neither memory nor a key exchange. A proved address has a few places of its own, so that no address
//! shuts out the others. A handshake that fails keeps its place for a while, so places bound the rate as well.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Shared, link, tls, transport};
use crate::supervise;

/// Most handshakes under way of proved addresses. More are refused: a real peer tries again.
const MAX_HANDSHAKES: usize = 64;

/// Most of those of one address. A peer has one, or two after a restart.
const MAX_PER_SOURCE: usize = 4;

/// Most handshakes under way of all unproved addresses.
const MAX_UNPROVED: usize = 16;

/// How long a failed handshake keeps its place, from its beginning: each costs us a key exchange.
const PENALTY: Duration = Duration::from_secs(1);

/// Bytes that may wait at the socket. In a flood the kernel drops what does not fit, peers' packets as well as the others.
const RECEIVE_BUFFER: usize = 2 << 20;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "UDP port {port} of the control channel is taken by another program (see `ss -lunp 'sport = :{port}'`); stop it, \
         or choose another control_port in the mesh file of all nodes"
    )]
    Busy { port: u16 },
    #[error("UDP port {port} of the control channel: {source}")]
    Port { port: u16, source: io::Error },
    #[error("control key: {0}")]
    Key(#[from] rustls::Error),
}

pub(super) fn start(port: u16, shared: Arc<Shared>) -> Result<JoinHandle<()>, ListenError> {
    let mut config =
        ServerConfig::with_crypto(Arc::new(shared.identity.server(shared.known.clone())?));
    config
        .transport_config(transport(Duration::from_millis(100)))
        .max_incoming(MAX_UNPROVED + MAX_HANDSHAKES)
        .migration(false);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Busy { port },
        _ => ListenError::Port { port, source },
    };
    let socket = bind_all(port).map_err(failed)?;
    // Beyond what unprivileged programs may have; without CAP_NET_ADMIN as much as they.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
    let endpoint =
        Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
            .map_err(failed)?;
    let accepts = accept(endpoint, shared);
    Ok(tokio::spawn(supervise::never_ends("control channel's accept loop", accepts)))
}

fn bind_all(port: u16) -> io::Result<std::net::UdpSocket> {
    let v6 = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).and_then(|socket| {
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        Ok(socket.into())
    });
    match v6 {
        // A kernel without IPv6.
        Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
            std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        other => other,
    }
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    let unproved = Arc::new(Semaphore::new(MAX_UNPROVED));
    let proved = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let sources = Sources::default();
    while let Some(incoming) = endpoint.accept().await {
        let ip = incoming.remote_address().ip();
        let permit = if incoming.remote_address_validated() {
            let source = sources.take_place(ip);
            let permit = source.is_some().then(|| proved.clone().try_acquire_owned().ok());
            permit.flatten().map(|permit| (permit, source))
        } else {
            unproved.clone().try_acquire_owned().ok().map(|permit| (permit, None))
        };
        let Some(permit) = permit else {
            if incoming.may_retry() {
                shared.counters.count("handshakes_retried");
                let _ = incoming.retry();
            } else {
                shared.counters.count("handshakes_refused_by_load");
                incoming.refuse();
            }
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let accepted = handshake(incoming, &shared).await;
            if accepted.is_none() {
                sleep_until(began + PENALTY).await;
            }
            drop(permit);
            if let Some((node, key, connection)) = accepted {
                link::run(node, key, connection, shared).await;
            }
        });
    }
}

/// Handshakes under way by proved address. It has at most as many entries as there are handshakes.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One of them, until it is dropped.
struct Place {
    sources: Sources,
    ip: IpAddr,
}

impl Sources {
    /// Returns `None` if the address has all its places taken.
    fn take_place(&self, ip: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= MAX_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Place { sources: self.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

async fn handshake(
    incoming: Incoming,
    shared: &Shared,
) -> Option<(leaderd_core::ids::NodeName, leaderd_core::mesh::ControlPublicKey, quinn::Connection)>
{
    let from = incoming.remote_address().ip().to_canonical();
    let connection = match timeout(HANDSHAKE_TIMEOUT, async { incoming.accept()?.await }).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            shared.refuse(from, "handshakes_refused", &error);
            return None;
        }
        Err(_) => {
            shared.refuse(from, "handshakes_timed_out", &"handshake not finished in time");
            return None;
        }
    };
    let key = tls::peer_key(&connection)?;
    // The mesh may have changed since the key was verified.
    let node = shared.known.node(&key)?;
    // Two machines with the same key would replace each other for ever: the first one stays.
    let old = shared.lock_links().get(&node).cloned();
    if old.is_some_and(|old| old.alive_elsewhere(connection.remote_address().ip())) {
        connection.close(quinn::VarInt::from_u32(0), b"these keys are in use on another machine");
        let why = format!(
            "the keys of {node} are in use on another machine: give each node its own keys"
        );
        shared.refuse(from, "connections_refused_double", &why);
        return None;
    }
    // In TLS 1.3 a client takes the connection for made before the server has seen its key: an empty stream confirms it.
    let mut greeting = connection.open_uni().await.ok()?;
    greeting.finish().ok()?;
    Some((node, key, connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_few_handshakes_under_way_and_gets_its_places_back() {
        let sources = Sources::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        let mut places: Vec<Place> =
            (0..MAX_PER_SOURCE).map(|_| sources.take_place(one).unwrap()).collect();
        assert!(sources.take_place(one).is_none());
        assert!(sources.take_place(other).is_some(), "others are not shut out");
        places.pop();
        drop(sources.take_place(one).unwrap());
        drop(places);
        assert!(sources.0.lock().unwrap().is_empty());
    }
}
