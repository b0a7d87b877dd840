//! A real service on a workload: HTTP/1.1 on a TCP port, answered by one thread, as simple as can be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ns::Namespace;

/// How long a client may take, and how often it is looked whether the service is to be up.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);
/// Longest request head.
const MAX_HEAD: usize = 8192;
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

/// A running service; while it is down its port is closed.
#[derive(Debug)]
pub struct LabService {
    /// Index of the node that it is behind.
    pub node: usize,
    up: Arc<AtomicBool>,
}

impl LabService {
    /// Starts it in a workload's namespace. The thread ends with the lab.
    pub fn start(pod: &Namespace, node: usize, address: SocketAddr) -> Result<Self> {
        let up = Arc::new(AtomicBool::new(true));
        let ns = pod.net_handle()?;
        let first = pod.run(|| listen(address))?;
        let wanted = Arc::clone(&up);
        let work = move || {
            if ns.enter().is_ok() {
                serve(first, address, &wanted);
            }
        };
        thread::Builder::new().name("service".into()).spawn(work).context("service thread")?;
        Ok(Self { node, up })
    }

    pub fn switch(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(first: TcpListener, address: SocketAddr, up: &AtomicBool) {
    let mut listener = Some(first);
    loop {
        match (&listener, up.load(Ordering::Relaxed)) {
            (Some(open), true) => {
                while let Ok((stream, _)) = open.accept() {
                    // A connect without a request just ends; a client that is cut off must not hold up the others.
                    thread::spawn(move || drop(answer(stream)));
                }
            }
            (Some(_), false) => listener = None,
            (None, true) => listener = listen(address).ok(),
            (None, false) => {}
        }
        thread::sleep(POLL);
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut got = Vec::new();
    let mut chunk = [0; 4096];
    let (head, length) = loop {
        let n = stream.read(&mut chunk)?;
        got.extend_from_slice(&chunk[..n]);
        if let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            break (end + 4, content_length(&got[..end]));
        }
        if n == 0 || got.len() > MAX_HEAD {
            return Ok(());
        }
    };
    let mut rest = (head + length).saturating_sub(got.len());
    while rest > 0 {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => rest = rest.saturating_sub(n),
        }
    }
    stream.write_all(ANSWER.as_bytes())
}

fn content_length(head: &[u8]) -> usize {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let line = text.lines().find_map(|l| l.strip_prefix("content-length:"));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_once_its_whole_body_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0));
        write!(client, "POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345").unwrap();
        client.write_all(b"67890").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, ANSWER);
        server.join().unwrap().unwrap();
    }
}
