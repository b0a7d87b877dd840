//! Dialing one peer, for ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use tokio::time::{Instant, sleep, timeout};

use super::tls::SERVER_NAME;
use super::{Dial, Shared, link, transport};

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// How long one try may take on the LAN, and through a tunnel (which may have to shake hands first, and be slow).
const LAN_TIMEOUT: Duration = Duration::from_secs(2);
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(6);

/// A connection that lasted this long counts as a success, so the next try comes at once.
const STABLE: Duration = Duration::from_secs(5);

pub(super) async fn run(dial: Dial, shared: Arc<Shared>) {
    let mut backoff = MIN_BACKOFF;
    for attempt in 0usize.. {
        let Some((source, to)) = dial.routes.get(attempt % dial.routes.len().max(1)).copied()
        else {
            return;
        };
        let limit = if source.is_some() { TUNNEL_TIMEOUT } else { LAN_TIMEOUT };
        let began = Instant::now();
        match timeout(limit, connect(&dial, source, to, &shared)).await {
            Ok(Ok(connection)) => {
                let up = Instant::now();
                let _given_up = GivenUp(connection.clone());
                // A task of its own: it reports the end of the connection and cleans up, also when this dialer is aborted.
                let run = link::run(dial.node.clone(), dial.key, connection, shared.clone());
                let _ = tokio::spawn(run).await;
                if up.elapsed() > STABLE {
                    backoff = MIN_BACKOFF;
                }
            }
            Ok(Err(why)) => {
                shared.counters.count("dials_failed");
                tracing::debug!(peer.node = %dial.node, peer.address = %to, reason = why, "cannot connect");
            }
            Err(_) => {
                shared.counters.count("dials_failed");
                tracing::debug!(peer.node = %dial.node, peer.address = %to, elapsed = ?began.elapsed(), "no answer");
            }
        }
        sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Closes its connection when the dialer goes, which may be at any await. The peer takes no other connection of ours while
/// it hears this one.
struct GivenUp(Connection);

impl Drop for GivenUp {
    fn drop(&mut self) {
        // Does nothing to a connection that has ended.
        self.0.close(VarInt::from_u32(0), b"its dialer was given up");
    }
}

/// Half to all of it, so that nodes that lost each other at once do not come back at once.
fn jittered(backoff: Duration) -> Duration {
    let mut byte = [128];
    let _ = getrandom::fill(&mut byte);
    backoff.mul_f64(0.5 + f64::from(byte[0]) / 512.0)
}

async fn connect(
    dial: &Dial,
    source: Option<IpAddr>,
    to: SocketAddr,
    shared: &Shared,
) -> Result<Connection, String> {
    let mut config =
        ClientConfig::new(Arc::new(shared.identity.client(dial.key).map_err(|e| e.to_string())?));
    let initial_rtt =
        if source.is_some() { Duration::from_millis(300) } else { Duration::from_millis(50) };
    config.transport_config(transport(initial_rtt));
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // An endpoint per connection: its socket goes with it. It lives on in its driver while the connection does.
    let endpoint = Endpoint::client(SocketAddr::new(source.unwrap_or(any), 0))
        .map_err(|e| format!("binding: {e}"))?;
    let connecting = endpoint.connect_with(config, to, SERVER_NAME).map_err(|e| e.to_string())?;
    let connection = connecting.await.map_err(|e| e.to_string())?;
    // The greeting: the peer has seen our key and accepts it.
    let mut greeting = connection.accept_uni().await.map_err(|e| e.to_string())?;
    greeting.read_to_end(0).await.map_err(|e| e.to_string())?;
    Ok(connection)
}
