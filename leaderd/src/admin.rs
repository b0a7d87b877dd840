//! The admin API: HTTP and JSON on a Unix socket that only its owner and group may use. See [`leaderd_core::admin`].

use std::future::IntoFuture;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use leaderd_core::admin::{AdminRequest, AdminResponse, CLIENT_DEADLINE};
use leaderd_core::ids::NodeName;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::engine::Request;
use crate::{metrics, supervise};

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// How long the engine may take for what it only has to look up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends requests to the engine and waits for its answers.
#[derive(Clone, Debug)]
pub struct Asker(pub mpsc::Sender<Request>);

impl Asker {
    /// `None`: the engine is overloaded, or gone.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
        limit: Duration,
    ) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        self.0.try_send(request(tx)).ok()?;
        timeout(limit, rx).await.ok()?.ok()
    }

    pub async fn lookup<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Option<T> {
        self.ask(request, LOOKUP_TIMEOUT).await
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("another leaderd answers on {}; stop it first, or use another --admin", .0.display())]
    Alive(PathBuf),
    #[error("{} is in the way and no socket; remove it, or use another --admin", .0.display())]
    InTheWay(PathBuf),
    #[error("admin socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A bound socket, removed when dropped.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl AdminSocket {
    /// Binds, mode 0660. The socket of a dead daemon is removed, that of a live one is an error.
    pub fn bind(path: &std::path::Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(AdminError::InTheWay(path.to_owned()));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(AdminError::Alive(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    /// Serves until the runtime ends.
    pub fn serve(&mut self, asker: Asker) {
        if let Some(listener) = self.listener.take() {
            let service = router(asker).into_make_service_with_connect_info::<User>();
            let served = axum::serve(listener, service).into_future();
            tokio::spawn(supervise::never_ends("admin socket", served));
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The user that has connected, as the kernel knows it.
#[derive(Clone, Debug)]
struct User(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for User {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|cred| cred.uid()))
    }
}

fn router(asker: Asker) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/relay-changes", get(relay_changes))
        .route("/v1/relays/{a}/{b}", get(relays))
        .route("/v1/network", get(network))
        .route("/v1/command", post(command))
        .merge(metrics::routes())
        .fallback(|| async {
            let message = "no such path; there are GET /v1/status, /v1/events, /v1/relay-changes, /v1/relays/A/B, /v1/network, /metrics and POST /v1/command";
            refuse(StatusCode::NOT_FOUND, message.to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(asker)
}

async fn status(State(asker): State<Asker>) -> Response {
    looked_up(asker.lookup(Request::Snapshot).await.map(|s| s.status))
}

async fn events(State(asker): State<Asker>) -> Response {
    looked_up(asker.lookup(Request::Events).await)
}

async fn relay_changes(State(asker): State<Asker>) -> Response {
    looked_up(asker.lookup(Request::RelayChanges).await)
}

async fn relays(State(asker): State<Asker>, Path((a, b)): Path<(NodeName, NodeName)>) -> Response {
    let (a, b) = (a.to_string(), b.to_string());
    match asker.lookup(|tx| Request::ExplainRelays(a, b, tx)).await {
        Some(Err(message)) => refuse(StatusCode::CONFLICT, message),
        answer => looked_up(answer.and_then(Result::ok)),
    }
}

async fn network(State(asker): State<Asker>) -> Response {
    looked_up(asker.lookup(Request::Network).await)
}

async fn command(
    State(asker): State<Asker>,
    ConnectInfo(User(uid)): ConnectInfo<User>,
    body: Bytes,
) -> Response {
    let request: AdminRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("not a command: {error}")),
    };
    let user = uid.map(|uid| format!("uid {uid}"));
    match asker.ask(|tx| Request::Command(request, user, tx), CLIENT_DEADLINE).await {
        Some(response @ AdminResponse::Done { .. }) => json(StatusCode::OK, &response),
        Some(response @ AdminResponse::Refused { .. }) => json(StatusCode::CONFLICT, &response),
        None => json(StatusCode::GATEWAY_TIMEOUT, &AdminResponse::unanswered(None)),
    }
}

fn looked_up<T: Serialize>(answer: Option<T>) -> Response {
    match answer {
        Some(answer) => json(StatusCode::OK, &answer),
        None => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is too busy to answer; try again".to_owned(),
        ),
    }
}

fn refuse(code: StatusCode, message: String) -> Response {
    json(code, &AdminResponse::Refused { message })
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (code, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use leaderd_core::status::RelayChanges;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// An engine that knows no status and answers every command with its text.
    fn served(dir: &std::path::Path) -> (AdminSocket, PathBuf) {
        let path = dir.join("run/admin.sock");
        let mut socket = AdminSocket::bind(&path).unwrap();
        let (tx, mut rx) = mpsc::channel(8);
        socket.serve(Asker(tx));
        tokio::spawn(async move {
            while let Some(request) = rx.recv().await {
                match request {
                    Request::Events(to) => drop(to.send(vec![])),
                    Request::Network(to) => drop(to.send(Box::default())),
                    Request::Command(request, user, to) => {
                        let message = format!("{request:?} of {}", user.unwrap_or_default());
                        let response = match request {
                            AdminRequest::Unfreeze { location } => {
                                AdminResponse::Done { location, epoch: Default::default(), message }
                            }
                            _ => AdminResponse::Refused { message },
                        };
                        drop(to.send(response));
                    }
                    Request::RelayChanges(to) => drop(to.send(no_changes())),
                    Request::ExplainRelays(a, b, to) => {
                        drop(to.send(Err(format!("{a} and {b}: ask another"))));
                    }
                    Request::Snapshot(_) | Request::Beat(_) => {}
                }
            }
        });
        (socket, path)
    }

    fn no_changes() -> RelayChanges {
        RelayChanges {
            node: "home-0".parse().unwrap(),
            location: "home".parse().unwrap(),
            changes: vec![],
        }
    }

    async fn http(path: &std::path::Path, method: &str, uri: &str, body: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let request = format!(
            "{method} {uri} HTTP/1.1\r\nHost: leaderd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // A body that is too long may be refused before it was read.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn commands_are_answered_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (_socket, path) = served(dir.path());
        let ask = |method: &'static str, uri: &'static str, body: String| {
            let path = path.clone();
            async move { http(&path, method, uri, &body).await }
        };
        let done = ask("POST", "/v1/command", r#"{"unfreeze":{"location":"cloud"}}"#.into()).await;
        assert!(
            done.starts_with("HTTP/1.1 200")
                && done.contains(r#"{"done":{"location":"cloud","epoch":0"#),
            "{done}"
        );
        let me = format!("of uid {}", nix::unistd::geteuid());
        assert!(done.contains(&me), "{done}");
        let refused = ask("POST", "/v1/command", r#"{"drain":{"node":"cloud-0"}}"#.into()).await;
        assert!(refused.starts_with("HTTP/1.1 409") && refused.contains("refused"), "{refused}");
        let wrong = ask("POST", "/v1/command", r#"{"promote":{"node":"cloud-0"}}"#.into()).await;
        assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("`force`"), "{wrong}");
        let wrong = ask("POST", "/v1/command", r#"{"drain":{"node":"NO NAME"}}"#.into()).await;
        assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("NO NAME"), "{wrong}");
        let long = ask("POST", "/v1/command", " ".repeat(MAX_BODY + 1)).await;
        assert!(long.starts_with("HTTP/1.1 413"), "{long}");
        assert!(ask("GET", "/v1/events", String::new()).await.ends_with("[]"));
        let changes = ask("GET", "/v1/relay-changes", String::new()).await;
        assert!(changes.ends_with(r#"{"node":"home-0","location":"home","changes":[]}"#));
        let elsewhere = ask("GET", "/v1/relays/cloud/edge-0", String::new()).await;
        assert!(elsewhere.starts_with("HTTP/1.1 409"), "{elsewhere}");
        assert!(elsewhere.contains("cloud and edge-0: ask another"), "{elsewhere}");
        assert!(ask("GET", "/v1/relays/a%20b/c", String::new()).await.starts_with("HTTP/1.1 400"));
        assert!(ask("GET", "/v1/network", String::new()).await.contains("\"routes\""));
        assert!(ask("GET", "/v2", String::new()).await.starts_with("HTTP/1.1 404"));
        // The engine above lets snapshots fall: busy, not stuck.
        assert!(ask("GET", "/v1/status", String::new()).await.starts_with("HTTP/1.1 503"));
    }

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = served(dir.path());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(AdminSocket::bind(&path), Err(AdminError::Alive(_))));
        drop(socket);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left by a daemon that was killed");
        AdminSocket::bind(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(AdminError::InTheWay(_))));
    }
}
