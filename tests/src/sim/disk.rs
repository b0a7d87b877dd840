//! Disks that are full, slow, or lose their power between two writes.
//!
//! Writes are done in order, one after the other, as the daemon's store does: one that does not fit waits, and all later ones with it.

use std::collections::VecDeque;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Input, Persist, Ticket};
use leaderd_core::time::Instant;

use super::Faults;
use super::world::{Event, SYNC, SYNCED, World};

/// What a full disk still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullDisk {
    Nothing,
    /// A term and a vote, which replace the ones before.
    HardStates,
}

impl FullDisk {
    fn takes(self, write: &Persist) -> bool {
        let small = write.entries.is_empty() && write.snapshot.is_none();
        self == Self::HardStates && small
    }
}

/// A write that the daemon wants.
pub(super) type Write = (Ticket, LocationName, Box<Persist>);

/// Writes that a node's disk has to do.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Writes that do not fit, the oldest first; and since when the oldest waits.
    waiting: VecDeque<Write>,
    since: Option<Instant>,
    /// When the last write that was begun will be done.
    busy_until: Option<Instant>,
}

impl Queue {
    /// Returns since when a write of this location's Raft group waits for room.
    pub(super) fn stuck_since(&self, location: &LocationName) -> Option<Instant> {
        let raft =
            |w: &Persist| w.hard_state.is_some() || !w.entries.is_empty() || w.snapshot.is_some();
        let waits = self.waiting.iter().any(|(_, l, w)| l == location && raft(w));
        self.since.filter(|_| waits)
    }
}

impl Faults {
    /// Returns whether this node's disk may fail to take a write in time.
    pub fn disk_is_bad(&self) -> bool {
        self.disk_full.is_some() || self.disk_slow >= Duration::from_millis(100)
    }
}

impl World {
    /// Returns the index of the newest snapshot of a location's log on a node's disk.
    pub fn snapshot_index(&self, name: &NodeName, location: &LocationName) -> Option<u64> {
        let stored = self.nodes.get(name)?.store.get(location)?;
        stored.snapshot.as_ref().map(|(index, _)| *index)
    }

    /// Schedules a write of a daemon.
    pub(super) fn write(&mut self, name: &NodeName, write: Write) {
        let slow = self.faults[name].disk_slow;
        let Some(node) = self.nodes.get_mut(name) else { return };
        let mut done = self.now + SYNC + slow;
        if let Some(busy) = node.disk.busy_until {
            done = done.max(busy + slow);
        }
        node.disk.busy_until = Some(done);
        let after = done.since(self.now);
        self.schedule(after, name, Event::Write(write));
    }

    /// Handles a write that has reached the disk.
    pub(super) fn written(&mut self, name: &NodeName, write: Write) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.disk.since.get_or_insert(now);
        node.disk.waiting.push_back(write);
        self.store_what_fits(name);
    }

    pub(super) fn store_what_fits(&mut self, name: &NodeName) {
        loop {
            let full = self.faults[name].disk_full;
            let now = self.now;
            let Some(node) = self.nodes.get_mut(name) else { return };
            let fits = |(_, _, write): &Write| full.is_none_or(|full| full.takes(write));
            if !node.disk.waiting.front().is_some_and(fits) {
                if node.disk.waiting.is_empty() {
                    node.disk.since = None;
                }
                return;
            }
            let (ticket, location, write) = node.disk.waiting.pop_front().expect("seen above");
            node.disk.since = Some(now);
            let stored = node.store.entry(location.clone()).or_default();
            stored.write(&write);
            // The power may fail after any write: each must leave a store that the next start accepts.
            if let Err(error) = stored.check(&location) {
                panic!("{name}'s store of {location} is refused after {write:?}: {error}");
            }
            let f = self.faults.get_mut(name).expect("a node of the mesh");
            let cut = match &mut f.power_cut {
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            };
            if cut || f.disk_crash {
                // It is on disk, and the daemon never learns of it.
                f.power_cut = None;
                self.crash(name, true);
                return;
            }
            self.schedule(SYNCED, name, Event::Input(Input::Persisted { ticket }));
        }
    }
}
