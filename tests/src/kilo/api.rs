//! HTTPS to the API server: as much of it as the rig asks.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::WithBody;
use ureq::{Agent, RequestBuilder};

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which a connection counts as lost. Longer than a watch lasts ([`WATCH`]), in which nothing may happen.
const SILENCE: Duration = Duration::from_secs(25);
/// The server ends a watch after this time, and the client starts another.
const WATCH: Duration = Duration::from_secs(20);

/// Between two bytes of a request that is held.
const DRIP: Duration = Duration::from_millis(100);

/// The API server ends what takes a minute.
const HELD: Duration = Duration::from_secs(50);

/// Who asks, and whom. A connection is of the network namespace of the thread that first needed it, and clones share them: whoever is
/// in a namespace of their own needs an `Api` of their own.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    server: String,
    token: String,
}

/// What a watch reports.
#[derive(Debug)]
pub enum Change {
    /// Everything, as of a list.
    All(Vec<Value>),
    Set(Value),
    Gone(Value),
}

impl Api {
    /// `server`: `https://HOST:PORT`. `ca`: PEM.
    pub fn new(server: &str, ca: &str, token: &str) -> Result<Self> {
        let ca = Certificate::from_pem(ca.as_bytes()).context("the API server's CA")?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(vec![ca]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Self { agent: config.new_agent(), server: server.to_owned(), token: token.to_owned() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// `path`: as in `/api/v1/nodes`, with its query.
    pub fn get(&self, path: &str) -> Result<Value> {
        let asked = self.agent.get(self.url(path)).header("Authorization", self.bearer());
        answer("GET", path, asked.call())
    }

    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send("POST", path, self.agent.post(self.url(path)), "application/json", object)
    }

    /// RFC 7386.
    pub fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value> {
        let request = self.agent.patch(self.url(path));
        self.send("PATCH", path, request, "application/merge-patch+json", patch)
    }

    /// Server-side apply, as who `manager` names.
    pub fn apply(&self, path: &str, manager: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager={manager}&force=true");
        let request = self.agent.patch(self.url(&path));
        self.send("PATCH", &path, request, "application/apply-patch+yaml", object)
    }

    /// The flow schema (its UID) by which the API server ranks what this one asks.
    pub fn flow_schema(&self, path: &str) -> Result<String> {
        let asked = self.agent.get(self.url(path)).header("Authorization", self.bearer());
        let answer = asked.call().with_context(|| format!("GET {path}"))?;
        let uid =
            answer.headers().get("X-Kubernetes-PF-FlowSchema-UID").context("no flow schema")?;
        Ok(uid.to_str()?.to_owned())
    }

    /// Begins a request whose body hardly ends, and holds it until the handle is dropped: it keeps its seat in the API server's queues,
    /// if it got one. Begun anew before the server gives up on it.
    pub fn hold(self, path: &str) -> Held {
        let (path, end) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let request =
                    self.agent.post(self.url(&path)).header("Authorization", self.bearer());
                let request = request.header("Content-Type", "application/json");
                let body = Endless(ended.clone(), Instant::now() + HELD);
                let _ = request.send(ureq::SendBody::from_owned_reader(body));
            }
        });
        Held { end, thread: Some(thread) }
    }

    pub fn delete(&self, path: &str) -> Result<Value> {
        let asked = self.agent.delete(self.url(path)).header("Authorization", self.bearer());
        answer("DELETE", path, asked.call())
    }

    fn send(
        &self,
        verb: &str,
        path: &str,
        request: RequestBuilder<WithBody>,
        kind: &str,
        body: &Value,
    ) -> Result<Value> {
        let request = request.header("Authorization", self.bearer()).header("Content-Type", kind);
        answer(verb, path, request.send(serde_json::to_vec(body)?))
    }

    /// Lists, then watches until `on` breaks it off or something fails. The server's own end of a watch is not one.
    pub fn follow(&self, path: &str, mut on: impl FnMut(Change) -> ControlFlow<()>) -> Result<()> {
        let list = self.get(path)?;
        let mut version = version_of(&list);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if on(Change::All(items)).is_break() {
            return Ok(());
        }
        loop {
            let watch = format!(
                "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={}",
                WATCH.as_secs()
            );
            let request = self.agent.get(self.url(&watch)).header("Authorization", self.bearer());
            let response = request.call().with_context(|| format!("watch {path}"))?;
            if !response.status().is_success() {
                bail!("watch {path}: {}", response.status());
            }
            for line in BufReader::new(response.into_body().into_reader()).lines() {
                let event: Value = serde_json::from_str(&line?).context("an event of a watch")?;
                let object = event["object"].clone();
                let kind = event["type"].as_str().unwrap_or_default();
                if kind == "ERROR" {
                    // 410: the version is too old. Whoever follows begins anew.
                    bail!("watch {path}: {}", object["message"]);
                }
                version = version_of(&object);
                let change = match kind {
                    "BOOKMARK" => continue,
                    "DELETED" => Change::Gone(object),
                    _ => Change::Set(object),
                };
                if on(change).is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct Held {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Blanks, a few a second.
struct Endless(Arc<AtomicBool>, Instant);

impl Read for Endless {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(DRIP);
        if self.0.load(Ordering::Relaxed) || to.is_empty() || Instant::now() > self.1 {
            return Ok(0);
        }
        to[0] = b' ';
        Ok(1)
    }
}

fn version_of(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

fn answer(
    verb: &str,
    path: &str,
    got: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Value> {
    let mut response = got.with_context(|| format!("{verb} {path}"))?;
    let text = response.body_mut().read_to_string().with_context(|| format!("{verb} {path}"))?;
    if !response.status().is_success() {
        bail!("{verb} {path}: {}: {}", response.status(), text.trim());
    }
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
