//! Accepting: one UDP socket on all addresses, and a bound on handshakes under way.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Shared, link, tls, transport};

/// Handshakes under way at once. More are refused: a real peer comes again.
const MAX_HANDSHAKES: usize = 64;

/// From this many on, a stranger must first prove its address (QUIC Retry).
const VALIDATE_FROM: usize = 16;

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
        .max_incoming(MAX_HANDSHAKES)
        .migration(false);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Busy { port },
        _ => ListenError::Port { port, source },
    };
    let socket = bind_all(port).map_err(failed)?;
    let endpoint =
        Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
            .map_err(failed)?;
    Ok(tokio::spawn(accept(endpoint, shared)))
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
    let free = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        let under_way = MAX_HANDSHAKES - free.available_permits();
        if under_way >= VALIDATE_FROM
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            shared.counters.count("handshakes_retried");
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = free.clone().try_acquire_owned() else {
            shared.counters.count("handshakes_refused_by_load");
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let accepted = handshake(incoming, &shared).await;
            drop(permit);
            if let Some((node, key, connection)) = accepted {
                link::run(node, key, connection, shared).await;
            }
        });
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
    // Two machines with the same key would throw each other out for ever: the first one stays.
    let old = shared.lock_links().get(&node).cloned();
    if old.is_some_and(|old| old.alive_elsewhere(connection.remote_address().ip())) {
        connection.close(quinn::VarInt::from_u32(0), b"these keys are in use on another machine");
        let why = format!(
            "the keys of {node} are in use on another machine: give each node its own keys"
        );
        shared.refuse(from, "connections_refused_double", &why);
        return None;
    }
    // In TLS 1.3 a client believes in the connection before the server has seen its key: an empty stream tells it.
    let mut greeting = connection.open_uni().await.ok()?;
    greeting.finish().ok()?;
    Some((node, key, connection))
}
