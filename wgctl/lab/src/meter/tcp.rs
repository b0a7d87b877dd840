//! TCP between two ends, both ways: new connections (*connect*), and one that is kept (*transfer*). The server looks where they come from.
//!
//! A new connection counts as lost when it does not open in time: the SYN has arrived, the SYN-ACK has, and so has the server's first word.
//! The kernel sends a lost SYN again after a second, so it may open later all the same.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::linger;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::ends::{End, Known, Lane, Rewritten};
use super::{Stream, Tally, lock, longest_outage, wall_micros};

/// A new connection is begun so often, and the kept one asks something so often.
pub const ANEW: Duration = Duration::from_millis(25);
const KEPT: Duration = Duration::from_millis(50);
/// A new connection opens within this time, or is lost: less than the second after which a lost SYN is sent again.
pub const IN_TIME: Duration = Duration::from_millis(900);
/// How long a new connection may take to open at all: the kernel sends a lost SYN again after 1 s and after 3 s.
const OPENS_WITHIN: Duration = Duration::from_millis(3500);
/// How long an answer on the kept connection may take.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often a blocked reader looks whether all is over.
const POLL: Duration = Duration::from_millis(100);
const ACCEPT_POLL: Duration = Duration::from_millis(5);
const MESSAGE: usize = 16;

/// What both directions saw in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpSeen {
    /// New connections that opened, and that did not at all.
    pub opened: u64,
    pub failed: u64,
    /// New connections begun, and those that did not open in time.
    pub connect: TcpConnect,
    /// Answers on kept connections, and how often one broke or had no answer for long.
    pub answers: u64,
    pub broken: u64,
    /// The longest time without an answer on a kept connection, in milliseconds.
    pub stall_ms: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpConnect {
    pub begun: u64,
    pub late: u64,
    /// From the last connection that opened in time before a loss to the first one after it, in milliseconds.
    pub out_ms: f64,
    /// It lasts beyond what was measured.
    pub unfinished: bool,
}

impl fmt::Display for TcpSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { opened, failed, connect, answers, broken, stall_ms } = self;
        write!(
            f,
            "TCP: {opened} connections opened, {failed} failed, {} of {} not in time, out for {:.0} ms; {answers} answers on those kept, \
             {broken} broke, still for {stall_ms:.0} ms",
            connect.late, connect.begun, connect.out_ms
        )
    }
}

/// What became of a connection that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Not known yet.
    Waits,
    /// Microseconds that it took.
    Opened(u64),
    Failed,
}

/// One direction. Times in microseconds since the Unix epoch.
#[derive(Debug, Default)]
struct Record {
    begun: Vec<(u64, Fate)>,
    answered: Vec<u64>,
    broken: Vec<u64>,
}

impl Record {
    /// New connections as packets: begun is sent, opened in time is arrived.
    fn stream(&self) -> Stream {
        let in_time =
            |fate: &Fate| matches!(fate, Fate::Opened(took) if *took <= IN_TIME.as_micros() as u64);
        Stream {
            sent: self.begun.iter().map(|(at, _)| *at).collect(),
            arrived: self.begun.iter().map(|(_, fate)| in_time(fate)).collect(),
        }
    }

    /// The longest time without an answer within the span, in microseconds.
    fn stall(&self, since: u64, until: u64) -> u64 {
        let inside = self.answered.iter().copied().filter(|at| (since..=until).contains(at));
        let points: Vec<u64> = std::iter::once(since).chain(inside).chain([until]).collect();
        points.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    records: [Mutex<Record>; 2],
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
        for (direction, (own, peer)) in [(a, b), (b, a)].into_iter().enumerate() {
            let to = SocketAddr::new(peer.address, lane.tcp());
            running.spawn(own, move |shared| open_anew(to, shared, direction))?;
            running.spawn(own, move |shared| keep(to, shared, direction))?;
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

    /// What was seen of connections begun, and of answers, in a span of time. The last [`IN_TIME`] of it is not judged for new
    /// connections, as they may still open.
    pub fn seen(&self, since: u64, until: u64) -> TcpSeen {
        let mut all = TcpSeen::default();
        let judged = until.saturating_sub(IN_TIME.as_micros() as u64);
        for record in &self.shared.records {
            let record = lock(record);
            for (_, fate) in record.begun.iter().filter(|(at, _)| (since..=until).contains(at)) {
                all.opened += u64::from(matches!(fate, Fate::Opened(_)));
                all.failed += u64::from(*fate == Fate::Failed);
            }
            let stream = record.stream();
            let t = Tally::of(&stream, since, judged);
            let out = longest_outage(&stream, since, judged);
            all.connect.begun += t.sent;
            all.connect.late += t.lost;
            all.connect.out_ms = all.connect.out_ms.max(out.length as f64 / 1e3);
            all.connect.unfinished |= out.unfinished;
            let within = |times: &[u64]| {
                times.iter().filter(|at| (since..=until).contains(*at)).count() as u64
            };
            all.answers += within(&record.answered);
            all.broken += within(&record.broken);
            all.stall_ms = all.stall_ms.max(record.stall(since, until) as f64 / 1e3);
        }
        all
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
            thread::spawn(move || drop(greet_and_echo(stream, &shared)));
        }
        thread::sleep(ACCEPT_POLL);
    }
}

fn greet_and_echo(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    stream.write_all(&message)?;
    while read_message(&mut stream, &mut message, shared, None)? {
        stream.write_all(&message)?;
    }
    Ok(())
}

/// Reads a whole message; false when the other side is done, or all is over. With a patience, its end is an error.
fn read_message(
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

/// A connection under way.
struct Attempt {
    stream: TcpStream,
    number: usize,
    began: Instant,
}

/// Begins a connection every [`ANEW`], whatever became of those before.
fn open_anew(to: SocketAddr, shared: &Shared, direction: usize) {
    let record = &shared.records[direction];
    let mut waiting: Vec<Attempt> = Vec::new();
    let mut next = Instant::now();
    while !shared.over() {
        if next <= Instant::now() {
            let number = {
                let mut r = lock(record);
                r.begun.push((wall_micros(), Fate::Waits));
                r.begun.len() - 1
            };
            let began = Instant::now();
            match begin(to) {
                Ok(stream) => waiting.push(Attempt { stream, number, began }),
                Err(_) => lock(record).begun[number].1 = Fate::Failed,
            }
            // What a machine that stood still missed is not made up for.
            next = (next + ANEW).max(Instant::now());
        }
        let patience = next.saturating_duration_since(Instant::now());
        let ready = wait(&waiting, patience);
        let mut i = 0;
        waiting.retain_mut(|attempt| {
            let is_ready = ready.get(i).copied().unwrap_or(false);
            i += 1;
            let fate = attempt.fate(is_ready);
            if fate != Fate::Waits {
                lock(record).begun[attempt.number].1 = fate;
            }
            fate == Fate::Waits
        });
    }
}

/// Returns which of them have news.
fn wait(waiting: &[Attempt], patience: Duration) -> Vec<bool> {
    let fd = |a| PollFd::new(Attempt::fd(a), PollFlags::POLLIN);
    let mut fds: Vec<PollFd<'_>> = waiting.iter().map(fd).collect();
    if ppoll(&mut fds, Some(TimeSpec::from_duration(patience)), None).is_err() {
        return Vec::new();
    }
    fds.iter().map(|f| f.any().unwrap_or(false)).collect()
}

impl Attempt {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn fate(&mut self, ready: bool) -> Fate {
        let took = self.began.elapsed();
        if ready {
            return match self.stream.read(&mut [0; MESSAGE]) {
                Ok(n) if n > 0 => Fate::Opened(took.as_micros() as u64),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Fate::Waits,
                _ => Fate::Failed,
            };
        }
        if took > OPENS_WITHIN { Fate::Failed } else { Fate::Waits }
    }
}

/// Sends a SYN. The connection ends by a reset, which leaves no state behind.
fn begin(to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let s = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&s, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    match connect(s.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(s)),
        Err(e) => Err(e.into()),
    }
}

fn open_kept(to: SocketAddr, shared: &Shared) -> std::io::Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    let greeted = read_message(&mut stream, &mut [0; MESSAGE], shared, Some(PATIENCE))?;
    Ok(greeted.then_some(stream))
}

/// One message there and back.
fn ask(stream: &mut TcpStream, shared: &Shared) -> std::io::Result<bool> {
    let mut message = [0x4c; MESSAGE];
    stream.write_all(&message)?;
    read_message(stream, &mut message, shared, Some(PATIENCE))
}

fn keep(to: SocketAddr, shared: &Shared, direction: usize) {
    let record = &shared.records[direction];
    while !shared.over() {
        // The connections opened anew show when none opens.
        let Ok(opened) = open_kept(to, shared) else {
            thread::sleep(KEPT);
            continue;
        };
        let Some(mut stream) = opened else { return };
        loop {
            match ask(&mut stream, shared) {
                Ok(true) => lock(record).answered.push(wall_micros()),
                Ok(false) => return,
                Err(_) => {
                    lock(record).broken.push(wall_micros());
                    break;
                }
            }
            if shared.over() {
                return;
            }
            thread::sleep(KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_opens_late_is_lost_and_one_that_opens_in_time_is_not() {
        let late = IN_TIME.as_micros() as u64 + 1;
        let fates =
            [Fate::Opened(20_000), Fate::Opened(late), Fate::Failed, Fate::Waits, Fate::Opened(9)];
        let begun = (0..5).zip(fates).map(|(i, fate)| (i * 25_000, fate)).collect();
        let record = Record { begun, ..Record::default() };
        assert_eq!(record.stream().arrived, [true, false, false, false, true]);
    }

    #[test]
    fn a_stall_is_the_longest_time_without_an_answer_up_to_the_end() {
        let record = Record { answered: vec![100, 150, 450, 500], ..Record::default() };
        assert_eq!(record.stall(100, 520), 300);
        assert_eq!(record.stall(400, 520), 50);
        assert_eq!(record.stall(400, 900), 400, "the last answer is long ago");
        assert_eq!(Record::default().stall(5, 25), 20, "no answer at all");
    }
}
