//! Metrics in the OpenMetrics text format, health and readiness over HTTP.
//!
//! `/healthz`: the engine answers, and no other thread hangs. `/readyz`: the network was programmed as well.

mod counted;
mod registry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use crate::admin::Asker;
use crate::engine::Request;
use crate::supervise;
use registry::registry;

/// Most connections at once. Anyone who reaches the port may connect, and probes need descriptors as well.
const MAX_CONNECTIONS: usize = 32;

/// Longest times for a request to arrive, and for the whole connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A scrape within this time of another gets the same text, as each new one costs the engine time.
const FRESH: Duration = Duration::from_secs(1);

/// The text of the last scrape. Concurrent scrapes wait for one text.
#[derive(Clone, Debug, Default)]
struct LastText(Arc<Mutex<Option<(Instant, String)>>>);

/// Serves metrics, health and readiness over TCP until the runtime ends.
pub async fn serve(address: SocketAddr, asker: Asker) -> anyhow::Result<()> {
    let listener = bind(address).await?;
    let served = serve_on(listener, routes().with_state(asker));
    tokio::spawn(supervise::never_ends("metrics address", served));
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve metrics on {address}; use another --metrics"))
}

/// Serves one request per connection, on few connections for a short time each. Others wait in the kernel's queue.
async fn serve_on(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that hangs up or sends no HTTP is not worth a log line.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

/// Serves health and readiness while the daemon waits for its first mesh: it is alive, and not ready.
#[cfg(feature = "kubernetes")]
#[derive(Debug)]
pub struct Waiting(Option<tokio::task::JoinHandle<()>>);

#[cfg(feature = "kubernetes")]
impl Waiting {
    pub async fn serve(address: Option<SocketAddr>) -> anyhow::Result<Self> {
        let Some(address) = address else { return Ok(Self(None)) };
        let routes = Router::new().route("/healthz", get(|| async { "ok\n" })).fallback(|| async {
            (StatusCode::SERVICE_UNAVAILABLE, "this node is in no mesh yet: see the log\n")
        });
        Ok(Self(Some(tokio::spawn(serve_on(bind(address).await?, routes)))))
    }

    /// Stops serving and frees the address.
    pub async fn end(self) {
        if let Some(task) = self.0 {
            task.abort();
            let _ = task.await;
        }
    }
}

pub(crate) fn routes() -> Router<Asker> {
    let last = LastText::default();
    Router::new()
        .route("/metrics", get(move |State(asker): State<Asker>| metrics(asker, last)))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
}

async fn metrics(asker: Asker, last: LastText) -> Response {
    let mut last = last.0.lock().await;
    let text = match &*last {
        Some((at, text)) if at.elapsed() < FRESH => text.clone(),
        _ => {
            let Some(snapshot) = asker.lookup(Request::Snapshot).await else { return busy() };
            let mut text = String::new();
            if let Err(error) = encode(&mut text, &registry(&snapshot)) {
                return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
            }
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn health(State(asker): State<Asker>) -> Response {
    if let Some(name) = supervise::stalled() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("thread {name} hangs\n")).into_response();
    }
    match asker.lookup(Request::Beat).await {
        Some(_) => "ok\n".into_response(),
        None => busy(),
    }
}

async fn ready(State(asker): State<Asker>) -> Response {
    match asker.lookup(Request::Beat).await {
        Some(true) => "ok\n".into_response(),
        Some(false) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the network is not programmed yet\n").into_response()
        }
        None => busy(),
    }
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n").into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::registry::tests::snapshot;
    use super::*;

    /// Serves from an engine that counts what it is asked.
    async fn served() -> (SocketAddr, Arc<std::sync::Mutex<Vec<&'static str>>>) {
        let (tx, mut rx) = tokio::sync::mpsc::channel(8);
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Some(request) = rx.recv().await {
                log.lock().unwrap().push(match request {
                    Request::Beat(to) => to.send(true).map_or("gone", |()| "beat"),
                    Request::Snapshot(to) => to.send(snapshot()).map_or("gone", |()| "snapshot"),
                    _ => "another",
                });
            }
        });
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_on(listener, routes().with_state(Asker(tx))));
        (address, asked)
    }

    async fn get_path(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: leaderd\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The connection ends with the answer.
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_asks_for_a_beat_and_many_scrapes_for_one_snapshot() {
        let (address, asked) = served().await;
        for path in ["/healthz", "/readyz"] {
            assert!(get_path(address, path).await.ends_with("ok\n"));
        }
        assert_eq!(*asked.lock().unwrap(), ["beat", "beat"]);
        asked.lock().unwrap().clear();
        let began = Instant::now();
        for _ in 0..20 {
            assert!(get_path(address, "/metrics").await.contains("leaderd_leader{"));
        }
        let most = 1 + began.elapsed().as_secs() as usize;
        assert!(asked.lock().unwrap().len() <= most, "{:?} in {most} s", asked.lock().unwrap());
    }

    #[tokio::test]
    async fn silent_connections_have_few_places_and_lose_them() {
        let (address, _) = served().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metr").await.unwrap();
            silent.push(stream);
        }
        // All places are taken, until the silent ones are closed; then it is this one's turn.
        let answer = timeout(Duration::from_secs(60), get_path(address, "/healthz")).await;
        assert!(answer.expect("a place became free").ends_with("ok\n"));
        for mut stream in silent {
            let mut rest = Vec::new();
            let ended = timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "a silent connection stays");
        }
    }
}
