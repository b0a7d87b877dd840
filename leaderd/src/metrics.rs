//! Metrics in the Prometheus text format, made from the node's status, once a second at most; health and readiness.
//!
//! `/healthz`: the engine answers, and no other thread hangs. `/readyz`: the network was programmed as well.

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
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use crate::admin::Asker;
use crate::engine::{Request, Snapshot};
use crate::{counters, supervise};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// Connections at once. Whoever reaches the port may connect, and descriptors are the probes' as well.
const MAX_CONNECTIONS: usize = 32;

/// A request must be there, whole, after this; and answered, and the answer taken, after that.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A scrape within this time of another gets the same text: it is made at the engine's cost.
const FRESH: Duration = Duration::from_secs(1);

/// The last scrape's text. Who scrapes meanwhile waits for the same.
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

/// One request a connection, few connections, and none for long. Those beyond that wait in the kernel's queue.
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
            // Whoever hangs up or sends nonsense did so.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

/// While a daemon waits for its first mesh: it lives, and is not ready.
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

    /// Gives the address back.
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

fn registry(s: &Snapshot) -> Registry {
    let mut registry = Registry::with_prefix("leaderd");
    let mut gauges = |name: &str, help: &str, rows: Vec<(Labels, f64)>| {
        let family = Gauges::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        registry.register(name, help, family);
    };
    let locations = &s.status.locations;
    let label = |name: &dyn std::fmt::Display| vec![("location", name.to_string())];
    let flag = |b: bool| f64::from(u8::from(b));
    gauges(
        "info",
        "This node and its backend",
        vec![(
            vec![
                ("mesh", s.status.mesh.clone()),
                ("node", s.status.node.to_string()),
                ("location", s.status.location.to_string()),
                ("backend", s.status.backend.clone()),
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ],
            1.0,
        )],
    );
    gauges(
        "mesh_generation",
        "Generation of the mesh file in use",
        vec![(vec![], s.status.generation.0 as f64)],
    );
    gauges(
        "probe_addresses",
        "Addresses that this node holds and is probed at; 0: none",
        vec![(vec![], s.status.probe_addresses.len() as f64)],
    );
    gauges("ready", "The network was programmed", vec![(vec![], flag(s.ready))]);
    gauges("peers", "Peers of the control channel", vec![(vec![], s.peers as f64)]);
    gauges("peers_connected", "Peers that are connected", vec![(vec![], s.peers_connected as f64)]);
    gauges(
        "epoch",
        "Epoch in force",
        locations.iter().map(|l| (label(&l.name), l.epoch.0 as f64)).collect(),
    );
    let leaders = locations.iter().flat_map(|l| {
        l.leaders
            .iter()
            .map(|n| (vec![("location", l.name.to_string()), ("node", n.to_string())], 1.0))
    });
    gauges("leader", "1 for the nodes that lead their location", leaders.collect());
    let raft = locations.iter().filter_map(|l| {
        let node = l.raft_leader.as_ref()?;
        Some((vec![("location", l.name.to_string()), ("node", node.to_string())], 1.0))
    });
    gauges("raft_leader", "1 for the raft leader of a location", raft.collect());
    let quorum = locations.iter().filter_map(|l| Some((label(&l.name), flag(l.quorum?))));
    gauges("quorum", "The location has a quorum, as far as known", quorum.collect());
    gauges(
        "disk_stuck",
        "This node's disk confirms no writes of the location's Raft group",
        locations.iter().map(|l| (label(&l.name), flag(l.disk_stuck))).collect(),
    );
    gauges(
        "frozen",
        "No automatic failover",
        locations.iter().map(|l| (label(&l.name), flag(l.frozen.is_some()))).collect(),
    );
    gauges(
        "fallback",
        "The local ranking is in force",
        locations.iter().map(|l| (label(&l.name), flag(l.fallback))).collect(),
    );
    let candidates = || locations.iter().flat_map(|l| l.candidates.iter().map(move |c| (l, c)));
    let of = |l: &leaderd_core::status::LocationStatus,
              c: &leaderd_core::status::CandidateStatus| {
        vec![("location", l.name.to_string()), ("node", c.name.to_string())]
    };
    let verdicts = candidates().map(|(l, c)| {
        use leaderd_core::verdict::Verdict;
        let (verdict, cause) = match &c.verdict {
            Verdict::Unknown => ("unknown", ""),
            Verdict::Forwarding => ("forwarding", ""),
            Verdict::Suspected => ("suspected", ""),
            Verdict::Degraded { cause, .. } => ("degraded", cause.as_str()),
        };
        let mut labels = of(l, c);
        labels.extend([("verdict", verdict.to_owned()), ("cause", cause.to_owned())]);
        (labels, 1.0)
    });
    gauges("verdict", "1 for the verdict on a candidate", verdicts.collect());
    let rtt = candidates().filter_map(|(l, c)| Some((of(l, c), c.rtt_ms? / 1000.0)));
    gauges("rtt_seconds", "Smoothed round trip of probes", rtt.collect());
    gauges(
        "loss_ratio",
        "Share of probes lost lately",
        candidates().filter_map(|(l, c)| Some((of(l, c), f64::from(c.loss?)))).collect(),
    );
    let mtu = candidates().filter_map(|(l, c)| Some((of(l, c), f64::from(c.path_mtu?))));
    gauges("path_mtu_bytes", "Largest packet known to pass", mtu.collect());
    let hidden = locations.iter().flat_map(|l| {
        let through = |h: &leaderd_core::status::HiddenSource| {
            h.through.as_ref().map_or_else(String::new, ToString::to_string)
        };
        l.hidden_sources
            .iter()
            .map(move |h| (vec![("location", l.name.to_string()), ("node", through(h))], 1.0))
    });
    gauges(
        "source_rewritten",
        "1 where sources of probes do not survive the way through a candidate, or without a node that of the workload",
        hidden.collect(),
    );
    for (name, help, count) in [
        ("services_asked", "Services of the mesh file that were asked through a candidate", 1),
        ("services_up", "Those of them that answer through it", 0),
    ] {
        let rows = candidates().filter_map(|(l, c)| {
            let (up, asked) = c.services?;
            Some((of(l, c), f64::from(if count == 0 { up } else { asked })))
        });
        gauges(name, help, rows.collect());
    }
    let blackouts = s.blackouts.iter().map(|(l, seconds)| (label(l), *seconds));
    gauges("blackout_last_seconds", "Measured blackout of the last failover", blackouts.collect());
    let failovers = s.failovers.iter().map(|(l, n)| (label(l), *n as f64));
    gauges(
        "failovers",
        "Failovers since the start, and those that were remembered then",
        failovers.collect(),
    );
    for (prefix, name, value) in s
        .core
        .iter()
        .map(|(n, v)| ("core", n.as_str(), *v))
        .chain(s.shell.iter().map(|(n, v)| ("shell", *n, *v)))
    {
        // A name is a word of ours; anything else in it becomes an underscore.
        let clean: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if prefix == "shell" && counters::GAUGES.contains(&name) {
            let gauge: Gauge<f64, AtomicU64> = Gauge::default();
            gauge.set(value as f64);
            registry.register(format!("{prefix}_{clean}"), "As it is now", gauge);
        } else if clean.ends_with("_micros") {
            let gauge: Gauge<f64, AtomicU64> = Gauge::default();
            gauge.set(value as f64 / 1e6);
            let name = format!("{prefix}_{}_seconds", clean.trim_end_matches("_micros"));
            registry.register(name, "The last one measured", gauge);
        } else {
            registry.register(
                format!("{prefix}_{clean}"),
                "Counted since start",
                ConstCounter::new(value),
            );
        }
    }
    registry
}

#[cfg(test)]
mod tests {
    use leaderd_core::ids::Epoch;
    use leaderd_core::status::{HiddenSource, LocationStatus, Status};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    fn snapshot() -> Snapshot {
        let location = LocationStatus {
            name: "cloud".parse().unwrap(),
            leaders: vec!["cloud-1".parse().unwrap()],
            epoch: Epoch(7),
            since: None,
            cause: None,
            frozen: None,
            raft_leader: Some("cloud-2".parse().unwrap()),
            quorum: Some(true),
            disk_stuck: false,
            fallback: false,
            candidates: vec![],
            next: None,
            carried: None,
            hidden_sources: vec![HiddenSource {
                through: Some("cloud-1".parse().unwrap()),
                target: "cloud-2".parse().unwrap(),
                sent_from: [100, 127, 0, 1].into(),
                arrived_from: [10, 42, 4, 0].into(),
            }],
            notes: vec![],
        };
        let status = Status {
            mesh: "home".into(),
            node: "cloud-0".parse().unwrap(),
            location: "cloud".parse().unwrap(),
            generation: Default::default(),
            mesh_hash: String::new(),
            other_generations: Default::default(),
            backend: "wireguard-go".into(),
            probe_addresses: vec![],
            locations: vec![location],
        };
        Snapshot {
            status,
            core: [("probes.lost".to_owned(), 3)].into(),
            shell: [("persist_latency_micros", 1500), ("network_parts_failing", 2)].into(),
            ready: true,
            peers_connected: 1,
            peers: 2,
            blackouts: [("cloud".to_owned(), 0.25)].into(),
            failovers: [("cloud".to_owned(), 1)].into(),
        }
    }

    #[test]
    fn a_scrape_tells_who_leads_and_what_was_counted() {
        let snapshot = snapshot();
        let mut text = String::new();
        encode(&mut text, &registry(&snapshot)).unwrap();
        for line in [
            r#"leaderd_leader{location="cloud",node="cloud-1"} 1.0"#,
            r#"leaderd_epoch{location="cloud"} 7.0"#,
            r#"leaderd_source_rewritten{location="cloud",node="cloud-1"} 1.0"#,
            r#"leaderd_blackout_last_seconds{location="cloud"} 0.25"#,
            "leaderd_core_probes_lost_total 3",
            "leaderd_shell_persist_latency_seconds 0.0015",
            "leaderd_shell_network_parts_failing 2.0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
