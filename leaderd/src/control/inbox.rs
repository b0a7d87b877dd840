//! Frames that wait for the engine: bounded in bytes for each peer and for all, and taken from each peer in turn.
//!
//! A peer that sends more than the engine takes fills its own part. Its frames on streams then wait, so QUIC's flow control holds it
//! back; its datagrams, which are sent again, are dropped. The frames of the others pass.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use leaderd_core::ids::NodeName;
use leaderd_core::wire::Frame;
use tokio::sync::Notify;

/// Bytes of one peer that may wait, and of all. One frame of each may wait whatever its length.
const MAX_PER_PEER: usize = 1 << 20;
const MAX_ALL: usize = 32 << 20;

/// What a frame takes in memory besides what it had on the wire.
const FRAME_ITSELF: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    by_peer: BTreeMap<NodeName, Peer>,
    /// Peers with frames, in the order in which they are served.
    turn: VecDeque<NodeName>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Peer {
    frames: VecDeque<(usize, Box<Frame>)>,
    bytes: usize,
}

impl Inbox {
    /// Adds a frame of `length` bytes on the wire.
    ///
    /// # Errors
    /// Returns the frame if there is no room for it.
    pub(crate) fn offer(
        &self,
        from: &NodeName,
        length: usize,
        frame: Box<Frame>,
    ) -> Result<(), Box<Frame>> {
        let length = length + FRAME_ITSELF;
        let mut waiting = self.lock();
        let all = waiting.bytes;
        let peer = waiting.by_peer.entry(from.clone()).or_default();
        let fits = peer.bytes + length <= MAX_PER_PEER && all + length <= MAX_ALL;
        if !fits && !peer.frames.is_empty() {
            return Err(frame);
        }
        let first = peer.frames.is_empty();
        peer.bytes += length;
        peer.frames.push_back((length, frame));
        waiting.bytes += length;
        if first {
            waiting.turn.push_back(from.clone());
        }
        drop(waiting);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for room.
    pub(crate) async fn put(&self, from: &NodeName, length: usize, mut frame: Box<Frame>) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // From here on: what is taken meanwhile is not missed.
            emptied.as_mut().enable();
            match self.offer(from, length, frame) {
                Ok(()) => return,
                Err(back) => frame = back,
            }
            emptied.await;
        }
    }

    /// Returns the next frame, of each peer in turn. Cancel-safe.
    pub(crate) async fn next(&self) -> (NodeName, Box<Frame>) {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self) -> Option<(NodeName, Box<Frame>)> {
        let mut waiting = self.lock();
        let from = waiting.turn.pop_front()?;
        let peer = waiting.by_peer.get_mut(&from)?;
        let (length, frame) = peer.frames.pop_front()?;
        peer.bytes -= length;
        if peer.frames.is_empty() {
            waiting.by_peer.remove(&from);
        } else {
            waiting.turn.push_back(from.clone());
        }
        waiting.bytes -= length;
        drop(waiting);
        self.emptied.notify_waiters();
        Some((from, frame))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn frame(size: usize) -> Box<Frame> {
        Box::new(Frame::Raft { location: "cloud".parse().unwrap(), message: vec![7; size] })
    }

    fn name(n: &str) -> NodeName {
        n.parse().unwrap()
    }

    /// Fills a peer's part; how many frames fit.
    fn fill(inbox: &Inbox, peer: &str, size: usize) -> usize {
        (0..).take_while(|_| inbox.offer(&name(peer), size, frame(size)).is_ok()).count()
    }

    #[test]
    fn a_peer_that_floods_fills_its_own_part_and_the_others_have_their_turn() {
        let inbox = Inbox::default();
        let flood = fill(&inbox, "flood", 1000);
        assert!((800..1100).contains(&flood), "{flood}");
        for n in 0..3 {
            assert!(inbox.offer(&name("quiet"), n, frame(n)).is_ok());
        }
        let first: Vec<String> = (0..6).map(|_| inbox.take().unwrap().0.to_string()).collect();
        assert_eq!(first, ["flood", "quiet", "flood", "quiet", "flood", "quiet"]);
        let rest = std::iter::from_fn(|| inbox.take()).count();
        assert_eq!(rest, flood - 3);
        let waiting = inbox.lock();
        assert!(waiting.bytes == 0 && waiting.by_peer.is_empty() && waiting.turn.is_empty());
    }

    #[test]
    fn all_peers_together_have_a_bound_but_each_may_have_one_frame_waiting() {
        let inbox = Inbox::default();
        let size = 512 << 10;
        for peer in 0..200 {
            assert!((1..=2).contains(&fill(&inbox, &format!("peer-{peer}"), size)));
        }
        // Beyond the bound one frame each.
        let waiting = inbox.lock().bytes;
        assert!(waiting <= MAX_ALL + 200 * (size + FRAME_ITSELF), "{waiting}");
        assert_eq!(inbox.lock().by_peer[&name("peer-199")].frames.len(), 1);
        assert_eq!(inbox.lock().by_peer[&name("peer-0")].frames.len(), 1, "with its own size");
    }

    #[tokio::test]
    async fn a_frame_without_room_waits_until_one_is_taken() {
        let inbox = Inbox::default();
        fill(&inbox, "a", 4000);
        let peer = name("a");
        let put = inbox.put(&peer, 4000, frame(4000));
        tokio::pin!(put);
        assert!(timeout(Duration::from_millis(20), put.as_mut()).await.is_err());
        assert_eq!(inbox.next().await.0, name("a"));
        timeout(Duration::from_secs(10), put).await.expect("there is room");
    }
}
