//! Receives the frames of one peer, within the limits of their kinds and at the peer's rate, and puts them into the inbox.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leaderd_core::ids::NodeName;
use leaderd_core::wire::limits::MAX_MESSAGE;
use leaderd_core::wire::{Frame, FrameError};
use quinn::{Connection, RecvStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::link::received_counter;
use super::rate::Rate;
use super::{MAX_STREAMS, Shared};

/// A frame that takes longer than this to arrive is given up.
pub(super) const MAX_TRANSFER: Duration = Duration::from_secs(30);

/// Frames longer than [`MAX_MESSAGE`] that are read at once: snapshots, of which a raft leader sends one at a time.
const MAX_LONG: usize = 2;

/// Frames longer than this are decoded on another thread: the engine shares this one.
const DECODE_HERE: usize = 16 << 10;

/// The receiving half of a connection.
pub(super) struct Receiver<'a> {
    pub(super) node: &'a NodeName,
    pub(super) connection: &'a Connection,
    pub(super) shared: &'a Shared,
    rate: Mutex<Rate>,
}

#[derive(Debug)]
enum Unread {
    TooLong,
    /// The stream or the connection ended first.
    Incomplete,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(node: &'a NodeName, connection: &'a Connection, shared: &'a Shared) -> Self {
        Self { node, connection, shared, rate: Mutex::new(Rate::new(Instant::now())) }
    }

    /// Ends with the connection.
    pub(super) async fn streams(&self) {
        let mut reading = FuturesUnordered::new();
        let long = Arc::new(Semaphore::new(MAX_LONG));
        loop {
            tokio::select! {
                stream = self.connection.accept_uni(), if reading.len() < MAX_STREAMS as usize => match stream {
                    Ok(stream) => reading.push(timeout(MAX_TRANSFER, read(stream, long.clone()))),
                    Err(_) => return,
                },
                Some(read) = reading.next() => match read {
                    // The acceptor's greeting.
                    Ok(Ok(bytes)) if bytes.is_empty() => {}
                    // Waiting here holds back the peer by QUIC's flow control.
                    Ok(Ok(bytes)) => self.take(bytes).await,
                    Ok(Err(Unread::TooLong)) => self.refuse("frames_refused_too_long", &"too long"),
                    Ok(Err(Unread::Incomplete)) | Err(_) => {
                        self.shared.counters.count("frames_incomplete");
                    }
                },
            }
        }
    }

    async fn take(&self, bytes: Vec<u8>) {
        let length = bytes.len();
        let wait = self.rate().debt(Instant::now(), length);
        if wait > Duration::ZERO {
            self.shared.counters.count("frames_held_back_by_rate");
            sleep(wait).await;
        }
        let decoded = if length <= DECODE_HERE {
            Ok(Frame::decode(&bytes))
        } else {
            tokio::task::spawn_blocking(move || Frame::decode(&bytes)).await
        };
        let Ok(decoded) = decoded else { return };
        if let Some(frame) = self.decoded(decoded) {
            self.shared.inbox.put(self.node, length, frame).await;
        }
    }

    /// Drops what does not fit: all that comes in datagrams is sent again. Ends with the connection.
    pub(super) async fn datagrams(&self) {
        while let Ok(bytes) = self.connection.read_datagram().await {
            if !self.rate().allows(Instant::now(), bytes.len()) {
                self.shared.counters.count("frames_dropped_by_rate");
                continue;
            }
            if let Some(frame) = self.decoded(Frame::decode(&bytes))
                && self.shared.inbox.offer(self.node, bytes.len(), frame).is_err()
            {
                self.shared.counters.count("frames_dropped_by_full_engine");
            }
        }
    }

    fn rate(&self) -> std::sync::MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decoded(&self, frame: Result<Frame, FrameError>) -> Option<Box<Frame>> {
        match frame {
            Ok(frame) => {
                self.shared.counters.count(received_counter(&frame));
                return Some(Box::new(frame));
            }
            Err(FrameError::UnknownKind(_)) => {
                self.shared.counters.count("frames_skipped_unknown_kind");
            }
            Err(error @ FrameError::TooLong(..)) => self.refuse("frames_refused_too_long", &error),
            Err(error) => self.refuse("frames_refused_malformed", &error),
        }
        None
    }

    fn refuse(&self, kind: &'static str, why: &dyn std::fmt::Display) {
        let from = self.connection.remote_address().ip();
        self.shared.refuse(from, kind, &format_args!("frame of {}: {why}", self.node));
    }
}

/// A whole frame. Once its kind is known no more than that kind's longest is read.
async fn read(mut stream: RecvStream, long: Arc<Semaphore>) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    let mut place = None;
    while let Some(chunk) =
        stream.read_chunk(MAX_MESSAGE, true).await.map_err(|_| Unread::Incomplete)?
    {
        bytes.extend_from_slice(&chunk.bytes);
        let most = match bytes[..] {
            [version, kind, ..] => Frame::limit([version, kind]),
            _ => MAX_MESSAGE,
        };
        if bytes.len() > most {
            let _ = stream.stop(VarInt::from_u32(0));
            return Err(Unread::TooLong);
        }
        if bytes.len() > MAX_MESSAGE && place.is_none() {
            place = long.clone().acquire_owned().await.ok();
        }
    }
    Ok(bytes)
}
