//! What the lab reads from a daemon's admin socket: HTTP/1.1 with JSON over a Unix socket.
//!
//! Only the fields the lab needs; it shares no types with leaderd, so it cannot be wrong in the same way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is never longer than this.
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub backend: String,
    pub locations: Vec<LocationStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct LocationStatus {
    pub name: String,
    pub leaders: Vec<String>,
    pub epoch: u64,
    #[serde(default)]
    pub raft_leader: Option<String>,
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    #[serde(default)]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Candidate {
    pub name: String,
    /// `"forwarding"` or `{"degraded": {…}}`.
    pub verdict: Value,
}

impl Candidate {
    pub fn forwards(&self) -> bool {
        self.verdict == "forwarding"
    }
}

impl Status {
    pub fn location(&self, name: &str) -> Option<&LocationStatus> {
        self.locations.iter().find(|l| l.name == name)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    pub seq: u64,
    pub location: String,
    pub kind: String,
    #[serde(default)]
    pub epoch: u64,
    pub cause: Option<String>,
    #[serde(default)]
    pub leaders_after: Vec<String>,
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub times: Times,
}

/// Microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Times {
    pub first_loss: Option<u64>,
    pub suspected: Option<u64>,
    pub condemned: Option<u64>,
    pub committed: Option<u64>,
    pub programmed: Option<u64>,
    pub verified: Option<u64>,
}

pub fn status(socket: &Path) -> Result<Status> {
    let (_, body) = request(socket, "GET", "/v1/status", None)?;
    serde_json::from_slice(&body).context("unexpected answer to /v1/status")
}

pub fn events(socket: &Path) -> Result<Vec<Event>> {
    let (_, body) = request(socket, "GET", "/v1/events", None)?;
    serde_json::from_slice(&body).context("unexpected answer to /v1/events")
}

/// Posts a command; an error carries what the daemon answered.
pub fn command(socket: &Path, body: &Value) -> Result<()> {
    let (code, answer) = request(socket, "POST", "/v1/command", Some(body))?;
    if code != 200 {
        bail!("{code}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).context("no whole answer")?;
    parse_answer(&answer)
}

fn parse_answer(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no HTTP answer")?;
    let head =
        std::str::from_utf8(&answer[..split]).context("no HTTP answer")?.to_ascii_lowercase();
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).context("no HTTP status")?;
    let body = &answer[split + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return Ok((code, body.to_vec()));
    }
    let (mut rest, mut out) = (body, Vec::new());
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").context("bad chunk")?;
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let size = size.context("bad chunk size")?;
        if size == 0 {
            return Ok((code, out));
        }
        out.extend_from_slice(rest.get(end + 2..end + 2 + size).context("short chunk")?);
        rest = rest.get(end + 2 + size + 2..).context("short chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_and_without_chunks() {
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
        assert_eq!(parse_answer(plain).unwrap(), (200, b"[]".to_vec()));
        let chunked =
            b"HTTP/1.1 409 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse_answer(chunked).unwrap(), (409, b"abcd".to_vec()));
        assert!(parse_answer(b"nonsense").is_err());
    }
}
