//! One live connection: sends and receives frames, and ends when the peer is silent.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leaderd_core::ids::NodeName;
use leaderd_core::io::Input;
use leaderd_core::mesh::ControlPublicKey;
use leaderd_core::wire::Frame;
use quinn::{Connection, VarInt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, interval, timeout};

use super::receive::{MAX_TRANSFER, Receiver};
use super::{MAX_QUEUED, MAX_QUEUED_BYTES, Shared};
use crate::counters::Counters;

/// A connection that is silent for this long is dead, on a short path.
const MIN_SILENCE: Duration = Duration::from_secs(3);

/// A peer that was heard within this time is alive: twice the keep-alive, and the interval between two checks.
const ALIVE: Duration = Duration::from_millis(2500);

/// How often to check for silence.
const CHECK: Duration = Duration::from_millis(500);

/// How often the core gets the round trip again.
const REFRESH_RTT: Duration = Duration::from_secs(3);

/// Frames longer than this (snapshots) let shorter ones pass.
const LONG_FRAME: usize = 16 * 1024;

/// Frames that are written at once: a quarter of the streams that a peer allows, and so few that not many wait at a peer that takes
/// none.
const MAX_WRITING: usize = 16;

/// How long a connection may stay silent: at least ten round trips.
pub(super) fn silence(rtt: Duration) -> Duration {
    MIN_SILENCE.max(rtt * 10)
}

#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    key: ControlPublicKey,
    queue: Mutex<Queue>,
    wake: Notify,
    /// When the peer was last heard.
    heard: Mutex<Instant>,
}

impl Link {
    /// True if the peer speaks on this connection from another address than `from`: two machines use its key. A peer that
    /// moved does not speak on the old connection any more.
    pub(super) fn alive_elsewhere(&self, from: IpAddr) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.connection.close_reason().is_none();
        open && self.connection.remote_address().ip() != from && heard.elapsed() < ALIVE
    }

    pub(super) fn key(&self) -> ControlPublicKey {
        self.key
    }

    pub(super) fn close(&self, why: &str) {
        self.connection.close(VarInt::from_u32(0), why.as_bytes());
    }

    /// Never blocks.
    pub(super) fn send(&self, frame: &Frame, counters: &Counters) {
        let bytes = frame.encode();
        if bytes.len() > Frame::limit([bytes[0], bytes[1]]) {
            counters.count("frames_too_long");
            tracing::error!(
                frame.kind = frame.kind(),
                frame.bytes = bytes.len(),
                "a frame of our own is too long"
            );
            return;
        }
        counters.count(sent_counter(frame));
        let urgent = match frame {
            Frame::Report(_)
            | Frame::Announce { .. }
            | Frame::Ack { .. }
            | Frame::Verified { .. }
            | Frame::Relayed { .. }
            | Frame::Hello(_)
            | Frame::Addresses(_)
            | Frame::Uncarried { .. }
            | Frame::Tunnels { .. }
            | Frame::Detours(_) => true,
            Frame::Raft { .. }
            | Frame::Signed { .. }
            | Frame::Forward { .. }
            | Frame::Forwarded { .. } => false,
        };
        if urgent && self.connection.max_datagram_size().is_some_and(|max| bytes.len() <= max) {
            if self.connection.send_datagram(bytes.into()).is_err() {
                counters.count("frames_dropped");
            }
            return;
        }
        let dropped = self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        counters.add("frames_dropped", dropped);
        self.wake.notify_one();
    }

    /// Sends what no leaderd sends.
    #[cfg(test)]
    pub(super) fn push_raw(&self, bytes: Vec<u8>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.wake.notify_one();
    }

    /// Writes what is queued, each frame on a stream of its own, several at once. Ends with the connection.
    async fn write(&self) {
        let mut writing = FuturesUnordered::new();
        loop {
            let next = if writing.len() < MAX_WRITING { self.pop() } else { None };
            match next {
                Some(bytes) => {
                    writing.push(timeout(MAX_TRANSFER, write_frame(&self.connection, bytes)))
                }
                None => tokio::select! {
                    Some(_) = writing.next() => {}
                    () = self.wake.notified() => {}
                    _ = self.connection.closed() => return,
                },
            }
        }
    }

    fn pop(&self) -> Option<Vec<u8>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Frames that wait to be written, the oldest first.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    /// Adds a frame, and returns the number of older ones that were dropped for it.
    fn push(&mut self, frame: Vec<u8>) -> u64 {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        let mut dropped = 0;
        while self.frames.len() > 1
            && (self.frames.len() > MAX_QUEUED || self.bytes > MAX_QUEUED_BYTES)
        {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

async fn write_frame(connection: &Connection, bytes: Vec<u8>) -> Option<()> {
    let mut stream = connection.open_uni().await.ok()?;
    if bytes.len() > LONG_FRAME {
        let _ = stream.set_priority(-1);
    }
    stream.write_all(&bytes).await.ok()?;
    stream.finish().ok()
}

/// Runs a connection with an authenticated node until it ends.
pub(super) async fn run(
    node: NodeName,
    key: ControlPublicKey,
    connection: Connection,
    shared: Arc<Shared>,
) {
    let link = Arc::new(Link {
        connection: connection.clone(),
        key,
        queue: Mutex::default(),
        wake: Notify::new(),
        heard: Mutex::new(Instant::now()),
    });
    if let Some(old) = shared.lock_links().insert(node.clone(), link.clone()) {
        old.close("replaced by a newer connection");
    }
    tracing::info!(peer.node = %node, peer.address = %connection.remote_address(), "connected");
    let up =
        |rtt: Duration| Input::PeerUp { node: node.clone(), rtt_micros: rtt.as_micros() as u64 };
    let _ = shared.inputs.send(up(connection.rtt())).await;

    let receiver = Receiver::new(&node, &connection, &shared);
    let why = tokio::select! {
        () = link.write() => connection.closed().await.to_string(),
        () = receiver.streams() => connection.closed().await.to_string(),
        () = receiver.datagrams() => connection.closed().await.to_string(),
        why = watch(&link, &shared.inputs, up) => why,
    };
    link.close(&why);
    let current = {
        let mut links = shared.lock_links();
        let current = links.get(&node).is_some_and(|l| Arc::ptr_eq(l, &link));
        if current {
            links.remove(&node);
        }
        // Gone from the table without a successor: the mesh file no longer has it.
        current || !links.contains_key(&node)
    };
    if current {
        tracing::info!(peer.node = %node, reason = why, "disconnected");
        let _ = shared.inputs.send(Input::PeerDown { node }).await;
    }
}

/// Ends, with the reason, when the connection has been silent for too long.
async fn watch(
    link: &Link,
    inputs: &mpsc::Sender<Input>,
    up: impl Fn(Duration) -> Input,
) -> String {
    let connection = &link.connection;
    let mut ticks = interval(CHECK);
    let (mut heard, mut at, mut reported) = (0, Instant::now(), Instant::now());
    loop {
        ticks.tick().await;
        let received = connection.stats().udp_rx.datagrams;
        if received != heard {
            (heard, at) = (received, Instant::now());
            *link.heard.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
        let rtt = connection.rtt();
        if at.elapsed() > silence(rtt) {
            return format!("silent for {:?}", at.elapsed());
        }
        if reported.elapsed() > REFRESH_RTT && inputs.try_send(up(rtt)).is_ok() {
            reported = Instant::now();
        }
    }
}

macro_rules! counter_by_kind {
    ($name:ident, $prefix:literal) => {
        pub(super) fn $name(frame: &Frame) -> &'static str {
            match frame {
                Frame::Raft { .. } => concat!($prefix, "raft"),
                Frame::Report(_) => concat!($prefix, "report"),
                Frame::Announce { .. } => concat!($prefix, "announce"),
                Frame::Ack { .. } => concat!($prefix, "ack"),
                Frame::Verified { .. } => concat!($prefix, "verified"),
                Frame::Relayed { .. } => concat!($prefix, "relayed"),
                Frame::Hello(_) => concat!($prefix, "hello"),
                Frame::Forward { .. } => concat!($prefix, "forward"),
                Frame::Forwarded { .. } => concat!($prefix, "forwarded"),
                Frame::Addresses(_) => concat!($prefix, "addresses"),
                Frame::Uncarried { .. } => concat!($prefix, "uncarried"),
                Frame::Signed { .. } => concat!($prefix, "signed"),
                Frame::Tunnels { .. } => concat!($prefix, "tunnels"),
                Frame::Detours(_) => concat!($prefix, "detours"),
            }
        }
    };
}
counter_by_kind!(sent_counter, "frames_out_");
counter_by_kind!(received_counter, "frames_in_");
