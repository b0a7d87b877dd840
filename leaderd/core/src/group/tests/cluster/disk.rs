//! Disks that are slow, hang, fill up, or lose power.

use std::collections::VecDeque;

use super::{Cluster, Due, MS};
use crate::ids::NodeName;
use crate::io::{Persist, StoredGroup};

/// An entry of the last term at the end of the log on a disk.
pub fn append(disk: &mut StoredGroup, data: Vec<u8>) {
    use protobuf::Message as _;
    let log = disk.read(&"cloud".parse().unwrap()).unwrap().unwrap();
    let meta = log.snapshot.get_metadata();
    let (term, index) = log.entries.last().map_or((meta.term, meta.index), |e| (e.term, e.index));
    let index = index + 1;
    let entry = raft::eraftpb::Entry { term, index, data: data.into(), ..Default::default() };
    let entries = vec![(index, entry.write_to_bytes().unwrap())];
    disk.write(&Persist { entries, ..Persist::default() });
}

impl Cluster {
    /// A disk that hangs takes its oldest write after all; false if none waits.
    pub fn write_one(&mut self, node: &NodeName) -> bool {
        let Some((ticket, write)) = self.hung.get_mut(node).and_then(VecDeque::pop_front) else {
            return false;
        };
        let life = self.lives[node];
        self.stuck_since.insert(node.clone(), self.time);
        if self.is_written(node) {
            self.happen(Due::Persisted { node: node.clone(), ticket, write, life });
        } else {
            // What was given to the disk before it hung goes first.
            self.write_later(node, ticket, write, life);
        }
        true
    }

    /// A disk that hung or was full takes all that waits for it.
    pub fn thaw(&mut self, node: &NodeName) {
        self.full.remove(node);
        self.stuck_since.remove(node);
        let life = self.lives[node];
        for (ticket, write) in self.hung.remove(node).unwrap_or_default() {
            self.write_later(node, ticket, write, life);
        }
    }

    pub(super) fn write_later(&mut self, node: &NodeName, ticket: u64, write: Persist, life: u64) {
        let (min, max) = self.disk_ms;
        let after = min * MS + self.random((max - min + 1) * MS);
        // Writes are in order: nothing overtakes an earlier one.
        let last = self.queue.iter().filter_map(|((t, _), d)| match d {
            Due::Persisted { node: n, life: l, .. } if n == node && *l == life => Some(*t),
            _ => None,
        });
        let at = last.max().unwrap_or(0).max(self.time + after);
        self.push(at - self.time, Due::Persisted { node: node.clone(), ticket, write, life });
    }

    /// Whatever comes next, a start from this disk must succeed.
    pub(super) fn write(&mut self, node: &NodeName, write: &Persist) {
        let disk = self.disks.get_mut(node).unwrap();
        disk.write(write);
        if let Err(error) = disk.check(&"cloud".parse().unwrap()) {
            panic!("the disk of {node} after {write:?}: {error}");
        }
    }

    pub(super) fn power_goes(&mut self, node: &NodeName) -> bool {
        let Some(left) = self.power.get_mut(node) else { return false };
        *left -= 1;
        let goes = *left == 0;
        if goes {
            self.power.remove(node);
        }
        goes
    }

    /// No write of this node is under way.
    pub fn is_written(&self, node: &NodeName) -> bool {
        let life = self.lives[node];
        !self.queue.values().any(
            |due| matches!(due, Due::Persisted { node: n, life: l, .. } if n == node && *l == life),
        )
    }
}
