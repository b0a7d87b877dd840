//! Finds the gateway that relays the meters' traffic: of each location, the one whose WAN device most packets leave by, and the one
//! they come in by. Reads the kernel's counters every 50 ms, so this does not depend on what a system says of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wgctl_lab::{World, wall_micros};

use super::counters::{Devices, Packets};

const EVERY: Duration = Duration::from_millis(50);
/// A gateway relays the traffic if at least this share of what the meters send in one direction passed it in [`EVERY`].
const SHARE: f64 = 0.5;
/// Meters between the same two workloads.
const METERS: u32 = 2;
/// Changes closer than this are one move: not every node changes its routes in the same instant.
const ONE_MOVE: u64 = 500_000;

/// In or out of a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    In,
    Out,
}

/// Traffic went from one gateway of its location to another. Indexes of nodes; microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayChange {
    pub at: u64,
    pub location: usize,
    pub direction: Direction,
    pub from: usize,
    pub to: usize,
}

/// A running watch over a world.
#[derive(Debug)]
pub struct GatewayWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    traffic: Mutex<Traffic>,
}

/// The gateways so far.
#[derive(Debug, Default)]
struct Traffic {
    /// Packets in [`EVERY`] that mark a gateway.
    threshold: u64,
    /// `[in, out]` by location.
    now: Vec<[Option<usize>; 2]>,
    changes: Vec<GatewayChange>,
}

impl Traffic {
    fn of(locations: usize, tick: Duration) -> Self {
        let sent = (EVERY * METERS).as_secs_f64() / tick.as_secs_f64();
        Self {
            threshold: (sent * SHARE).ceil() as u64,
            now: vec![[None; 2]; locations],
            changes: Vec::new(),
        }
    }

    /// `counted`: node, location, and packets since the last call.
    fn record(&mut self, at: u64, counted: &[(usize, usize, Packets)]) {
        for (location, now) in self.now.iter_mut().enumerate() {
            for (direction, now) in [Direction::In, Direction::Out].into_iter().zip(now) {
                let of = |p: Packets| if direction == Direction::In { p.received } else { p.sent };
                let here = counted.iter().filter(|(_, l, _)| *l == location);
                let most = here.map(|(n, _, p)| (of(*p), *n)).max_by_key(|(count, _)| *count);
                let Some((_, to)) = most.filter(|(count, _)| *count >= self.threshold) else {
                    continue;
                };
                if let Some(from) = now.filter(|from| *from != to) {
                    self.changes.push(GatewayChange { at, location, direction, from, to });
                }
                *now = Some(to);
            }
        }
    }
}

impl GatewayWatch {
    /// Starts to watch a world whose meters send a packet every `tick`.
    ///
    /// # Errors
    /// A node's counters cannot be read.
    pub fn start(world: &World, tick: Duration) -> Result<Self> {
        let mut gateways = Vec::new();
        for (i, n) in world.nodes.iter().enumerate().filter(|(_, n)| n.node.slot.is_some()) {
            gateways.push((i, n.node.location, Devices::of(&n.ns)?));
        }
        let shared = Arc::new(Shared::default());
        *lock(&shared) = Traffic::of(world.topology.locations.len(), tick);
        let theirs = Arc::clone(&shared);
        let work = move || {
            let mut before: Vec<Packets> = gateways.iter().map(|(_, _, d)| wan(d)).collect();
            while !theirs.stop.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                let mut counted = Vec::new();
                for ((node, location, devices), before) in gateways.iter().zip(&mut before) {
                    let now = wan(devices);
                    let since = Packets {
                        received: now.received.saturating_sub(before.received),
                        sent: now.sent.saturating_sub(before.sent),
                    };
                    *before = now;
                    counted.push((*node, *location, since));
                }
                lock(&theirs).record(wall_micros(), &counted);
            }
        };
        let thread =
            std::thread::Builder::new().name("gateways".into()).spawn(work).context("thread")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns the gateway by which a location's traffic leaves now.
    pub fn leader(&self, location: usize) -> Option<usize> {
        lock(&self.shared).now.get(location).and_then(|[_, out]| *out)
    }

    pub fn changes_since(&self, at: u64) -> Vec<GatewayChange> {
        lock(&self.shared).changes.iter().filter(|c| c.at >= at).copied().collect()
    }
}

impl Drop for GatewayWatch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Traffic> {
    shared.traffic.lock().unwrap_or_else(|e| e.into_inner())
}

fn wan(devices: &Devices) -> Packets {
    devices.read().ok().and_then(|all| all.get("wan0").copied()).unwrap_or_default()
}

/// Returns the number of moves in these changes: changes of one location that are close in time are one.
pub fn count_moves<'c>(changes: impl Iterator<Item = &'c GatewayChange>) -> u64 {
    let mut sorted: Vec<&GatewayChange> = changes.collect();
    sorted.sort_by_key(|c| (c.location, c.at));
    let new = sorted.iter().enumerate().filter(|(i, c)| {
        let before = i.checked_sub(1).map(|b| sorted[b]);
        before.is_none_or(|b| b.location != c.location || c.at - b.at > ONE_MOVE)
    });
    new.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgctl_lab::TICK;

    fn packets(received: u64, sent: u64) -> Packets {
        Packets { received, sent }
    }

    #[test]
    fn the_gateway_is_the_one_with_most_packets_and_silence_changes_nothing() {
        let mut traffic = Traffic::of(1, TICK);
        assert_eq!(traffic.threshold, 50);
        traffic.record(1, &[(0, 0, packets(100, 100)), (1, 0, packets(3, 3))]);
        traffic.record(2, &[(0, 0, packets(0, 2)), (1, 0, packets(1, 1))]);
        assert!(traffic.changes.is_empty() && traffic.now[0] == [Some(0); 2]);
        traffic.record(3, &[(0, 0, packets(100, 5)), (1, 0, packets(5, 100))]);
        let one = GatewayChange { at: 3, location: 0, direction: Direction::Out, from: 0, to: 1 };
        assert_eq!(traffic.changes, [one]);
    }

    #[test]
    fn slower_meters_need_fewer_packets_to_mark_the_gateway() {
        let mut traffic = Traffic::of(1, 5 * TICK);
        traffic.record(1, &[(0, 0, packets(9, 20)), (1, 0, packets(8, 7))]);
        assert_eq!(traffic.now, [[None, Some(0)]]);
    }

    #[test]
    fn changes_within_half_a_second_are_one_move_and_the_return_is_another() {
        let change =
            |at, location, direction| GatewayChange { at, location, direction, from: 0, to: 1 };
        let all = [
            change(1_000_000, 0, Direction::In),
            change(1_200_000, 1, Direction::Out),
            change(1_400_000, 0, Direction::Out),
            change(5_000_000, 0, Direction::In),
        ];
        assert_eq!(count_moves(all.iter()), 3);
        assert_eq!(count_moves([].iter()), 0);
    }
}
