//! TCP between two ends, both ways: connections opened anew, and one that is kept. The server looks where they come from.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::ends::{End, Known, Lane, Rewritten};
use super::lock;

/// A new connection is opened so often, and the kept one says something so often.
const ANEW: Duration = Duration::from_millis(100);
const KEPT: Duration = Duration::from_millis(50);
/// How long opening or an answer may take. The kernel sends a lost SYN again after 1 s and after 3 s.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often a blocked reader looks whether all is over.
const POLL: Duration = Duration::from_millis(100);
const ACCEPT_POLL: Duration = Duration::from_millis(5);
const MESSAGE: usize = 16;

/// Both directions added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTally {
    /// Connections opened anew that were answered, and that were not.
    pub opened: u64,
    pub failed: u64,
    /// Answers on kept connections, and how often one broke or had no answer for long.
    pub answers: u64,
    pub broken: u64,
}

impl TcpTally {
    /// What is more than in an earlier count of the same.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            opened: self.opened - earlier.opened,
            failed: self.failed - earlier.failed,
            answers: self.answers - earlier.answers,
            broken: self.broken - earlier.broken,
        }
    }
}

impl fmt::Display for TcpTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { opened, failed, answers, broken } = self;
        write!(
            f,
            "TCP: {opened} connections opened, {failed} failed; {answers} answers on those kept, {broken} broke"
        )
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
    failed: AtomicU64,
    answers: AtomicU64,
    broken: AtomicU64,
    rewritten: Mutex<Rewritten>,
}

impl Shared {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    pub fn start(lane: Lane, ends: [&End<'_>; 2]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut running = Self { shared, threads: Vec::new() };
        let [a, b] = ends;
        for (own, peer) in [(a, b), (b, a)] {
            let listener = own.ns.run(|| {
                let at = SocketAddr::new(own.address, lane.tcp());
                let listener =
                    TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })?;
            let known = peer.known.clone();
            running.spawn(own, move |shared| serve(&listener, &known, shared))?;
        }
        for (own, peer) in [(a, b), (b, a)] {
            let to = SocketAddr::new(peer.address, lane.tcp());
            running.spawn(own, move |shared| open_anew(to, shared))?;
            running.spawn(own, move |shared| keep(to, shared))?;
        }
        Ok(running)
    }

    fn spawn(
        &mut self,
        end: &End<'_>,
        work: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<()> {
        let (ns, shared) = (end.ns.net_handle()?, Arc::clone(&self.shared));
        let inside = move || {
            if ns.enter().is_ok() {
                work(&shared);
            }
        };
        let thread = thread::Builder::new().name("meter-tcp".into()).spawn(inside);
        self.threads.push(thread.context("meter thread")?);
        Ok(())
    }

    pub fn tally(&self) -> TcpTally {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let s = &self.shared;
        TcpTally {
            opened: of(&s.opened),
            failed: of(&s.failed),
            answers: of(&s.answers),
            broken: of(&s.broken),
        }
    }

    pub fn rewritten(&self) -> Rewritten {
        lock(&self.shared.rewritten).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn serve(listener: &TcpListener, known: &Known, shared: &Arc<Shared>) {
    while !shared.over() {
        while let Ok((stream, from)) = listener.accept() {
            if !known.has(from.ip()) {
                lock(&shared.rewritten).count(from.ip());
            }
            let shared = Arc::clone(shared);
            thread::spawn(move || drop(echo(stream, &shared)));
        }
        thread::sleep(ACCEPT_POLL);
    }
}

fn echo(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut message = [0; MESSAGE];
    while exchange_in(&mut stream, &mut message, shared, None)? {
        stream.write_all(&message)?;
    }
    Ok(())
}

/// Reads a whole message; false when the other side is done, or all is over. With a patience, its end is an error.
fn exchange_in(
    stream: &mut TcpStream,
    message: &mut [u8; MESSAGE],
    shared: &Shared,
    patience: Option<Duration>,
) -> std::io::Result<bool> {
    use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    stream.set_read_timeout(Some(POLL))?;
    let (began, mut got) = (Instant::now(), 0);
    while got < MESSAGE {
        match stream.read(&mut message[got..]) {
            Ok(0) if patience.is_some() => return Err(UnexpectedEof.into()),
            Ok(0) => return Ok(false),
            Ok(n) => got += n,
            Err(_) if shared.over() => return Ok(false),
            Err(e) if matches!(e.kind(), TimedOut | WouldBlock) => {
                if patience.is_some_and(|p| began.elapsed() > p) {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One message there and back.
fn ask(stream: &mut TcpStream, shared: &Shared) -> std::io::Result<bool> {
    let mut message = [0x4c; MESSAGE];
    stream.write_all(&message)?;
    exchange_in(stream, &mut message, shared, Some(PATIENCE))
}

fn open_anew(to: SocketAddr, shared: &Shared) {
    while !shared.over() {
        let began = Instant::now();
        let asked = connect(to).and_then(|mut stream| {
            let answered = ask(&mut stream, shared);
            let _ = stream.shutdown(Shutdown::Both);
            answered
        });
        match asked {
            Ok(true) => shared.opened.fetch_add(1, Ordering::Relaxed),
            Ok(false) => break,
            Err(_) => shared.failed.fetch_add(1, Ordering::Relaxed),
        };
        thread::sleep(ANEW.saturating_sub(began.elapsed()));
    }
}

fn keep(to: SocketAddr, shared: &Shared) {
    while !shared.over() {
        // The connections opened anew show when none opens.
        let Ok(mut stream) = connect(to) else {
            thread::sleep(ANEW);
            continue;
        };
        loop {
            match ask(&mut stream, shared) {
                Ok(true) => shared.answers.fetch_add(1, Ordering::Relaxed),
                Ok(false) => return,
                Err(_) => {
                    shared.broken.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            };
            if shared.over() {
                return;
            }
            thread::sleep(KEPT);
        }
    }
}
