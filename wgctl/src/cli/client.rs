//! The daemon's admin API, from the operator's side: HTTP over a Unix socket, one request per connection.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use leaderd_core::admin::{AdminRequest, AdminResponse, CLIENT_DEADLINE};
use leaderd_core::state::Event;
use leaderd_core::status::{RelayChanges, Status};
use leaderd_core::text::printable;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wgctl_plan::Network;

/// Longest answer that is read. 1,000 locations with 256 events each stay below it.
const MAX_ANSWER: usize = 256 << 20;

/// Time until an answer, at most. The daemon answers a command within half of this.
const TIMEOUT: Duration = CLIENT_DEADLINE.saturating_mul(2);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no leaderd here: there is no socket {0}\n  \
         Start the daemon (`systemctl start leaderd`), or name its socket with --admin or LEADERD_ADMIN."
    )]
    NoSocket(PathBuf),
    #[error(
        "leaderd does not run: nothing listens on {0}\n  \
         It has stopped or crashed (forwarding goes on without it). See `journalctl -u leaderd`, then \
         `systemctl start leaderd`."
    )]
    Refused(PathBuf),
    #[error("no permission to open {0}\n  Run wgctl as root, or as the user that leaderd runs as.")]
    Forbidden(PathBuf),
    #[error("cannot connect to {0}")]
    Connect(PathBuf, #[source] io::Error),
    #[error("leaderd on {0} did not answer within {TIMEOUT:?}\n  See `journalctl -u leaderd`.")]
    TimedOut(PathBuf),
    #[error("no HTTP from {0}; is it leaderd's admin socket?")]
    Http(PathBuf, #[source] hyper::Error),
    #[error("leaderd's answer on {0} is longer than {MAX_ANSWER} bytes")]
    TooLong(PathBuf),
    #[error("leaderd on {socket} answered {status}: {text}")]
    Status { socket: PathBuf, status: StatusCode, text: String },
    #[error(
        "this wgctl does not understand the answer of leaderd on {0}; are both of one version?"
    )]
    NotUnderstood(PathBuf, #[source] serde_json::Error),
}

/// A client of this node's daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Returns the status of the mesh, as this node knows it.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// Returns the events of every location, oldest first.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn events(&self) -> Result<Vec<Event>, ClientError> {
        self.get("/v1/events")
    }

    /// Returns the changes of relay pairs that this node has seen; `None` from an older daemon, which tells of none.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn relay_changes(&self) -> Result<Option<RelayChanges>, ClientError> {
        let (status, answer) = self.exchange(Method::GET, "/v1/relay-changes", Vec::new())?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => self.parse(&answer).map(Some),
            status => Err(self.unexpected(status, &answer)),
        }
    }

    /// Asks which relays carry between two locations or nodes. The answer is a [`RelayExplanation`](leaderd_core::status::RelayExplanation),
    /// or why this node cannot say.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn explain_relays<T: DeserializeOwned>(
        &self,
        a: &str,
        b: &str,
    ) -> Result<Result<T, String>, ClientError> {
        let path = format!("/v1/relays/{a}/{b}");
        let (status, answer) = self.exchange(Method::GET, &path, Vec::new())?;
        if status.is_success() {
            return self.parse(&answer).map(Ok);
        }
        match self.parse(&answer) {
            Ok(AdminResponse::Refused { message }) if status == StatusCode::CONFLICT => {
                Ok(Err(message))
            }
            _ => Err(self.unexpected(status, &answer)),
        }
    }

    /// Returns the answer as plain JSON: for `--json`, so that fields of a newer daemon are kept.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn value(&self, path: &str) -> Result<Value, ClientError> {
        self.get(path)
    }

    /// Returns the network that the daemon wants on this node.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn network(&self) -> anyhow::Result<Network> {
        Ok(self.get("/v1/network")?)
    }

    /// Sends a command. A refusal is an answer, not an error.
    ///
    /// # Errors
    /// If the daemon does not answer as it should.
    pub fn command(&self, request: &AdminRequest) -> Result<AdminResponse, ClientError> {
        let body = serde_json::to_vec(request).expect("a request is plain data");
        let (status, answer) = self.exchange(Method::POST, "/v1/command", body)?;
        if status.is_success() || status == StatusCode::CONFLICT {
            self.parse(&answer)
        } else {
            Err(self.unexpected(status, &answer))
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (status, answer) = self.exchange(Method::GET, path, Vec::new())?;
        if status.is_success() {
            self.parse(&answer)
        } else {
            Err(self.unexpected(status, &answer))
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, ClientError> {
        read(answer).map_err(|e| ClientError::NotUnderstood(self.socket.clone(), e))
    }

    fn unexpected(&self, status: StatusCode, answer: &[u8]) -> ClientError {
        /// Bytes of an unknown answer that are shown: enough to recognise it.
        const SHOWN: usize = 400;
        let text = String::from_utf8_lossy(&answer[..answer.len().min(SHOWN)]);
        let text = printable(text.trim()).into_owned();
        ClientError::Status { socket: self.socket.clone(), status, text }
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ClientError::Connect(self.socket.clone(), e))?;
        runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, self.exchange_async(method, path, body))
                .await
                .unwrap_or_else(|_| Err(ClientError::TimedOut(self.socket.clone())))
        })
    }

    async fn exchange_async(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let socket = || self.socket.clone();
        let http = |e| ClientError::Http(socket(), e);
        let stream =
            tokio::net::UnixStream::connect(&self.socket).await.map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => ClientError::NoSocket(socket()),
                io::ErrorKind::ConnectionRefused => ClientError::Refused(socket()),
                io::ErrorKind::PermissionDenied => ClientError::Forbidden(socket()),
                _ => ClientError::Connect(socket(), e),
            })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        // Ends by itself when `sender` is dropped or the daemon hangs up; its error reaches us through the request.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "leaderd")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts of a request are fixed");
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| {
            if e.is::<LengthLimitError>() {
                ClientError::TooLong(socket())
            } else {
                match e.downcast::<hyper::Error>() {
                    Ok(e) => ClientError::Http(socket(), *e),
                    Err(e) => ClientError::Connect(socket(), io::Error::other(e)),
                }
            }
        })?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }
}

/// Reads an answer with all its texts made printable: some are other nodes' words, and end up on a terminal.
fn read<T: DeserializeOwned>(answer: &[u8]) -> serde_json::Result<T> {
    let mut value: Value = serde_json::from_slice(answer)?;
    make_printable(&mut value);
    serde_json::from_value(value)
}

fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(shown) = printable(text) {
                *text = shown;
            }
        }
        Value::Array(all) => all.iter_mut().for_each(make_printable),
        Value::Object(all) => all.values_mut().for_each(make_printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_node_says_reaches_the_terminal_as_text() {
        let mut event = super::super::fixture::failover();
        let evil = "\x1b]0;owned\x07 all is \u{9b}2J well\n2026-11-27 WARN a false line \u{202e}";
        event.summary = evil.to_owned();
        event.blocked_by.values_mut().flatten().for_each(|why| *why = evil.to_owned());
        let said = serde_json::to_vec(&[&event]).unwrap();
        let events: Vec<Event> = read(&said).unwrap();
        let value: Value = read(&said).unwrap();
        let shown = events[0].summary.clone();
        assert_eq!(shown, printable(evil));
        assert!(!format!("{events:?}{value}").contains(['\x1b', '\x07', '\u{9b}', '\u{202e}']));
        assert!(!shown.contains('\n'));
    }
}
