//! What raft-rs has ready: send, write, apply, compact, in the order that Raft demands.

use raft::eraftpb::{Entry, EntryType, Message, Snapshot};

use super::{
    AwaitingSync, EntryId, KEEP_BEHIND, KEEP_BYTES, LogEvent, RaftNode, SNAPSHOT_BYTES,
    SNAPSHOT_EVERY, encode,
};
use crate::consensus::storage::unreadable;
use crate::io::Persist;
use crate::state::{Command, LocationState};
use crate::stored::{SnapshotWrite, Tail};

impl RaftNode {
    pub fn handle_persisted(&mut self, ticket: u64) {
        self.persisted = self.persisted.max(ticket);
        self.release();
        self.advance_apply();
        self.pump();
    }

    fn release(&mut self) {
        while self.awaiting_sync.front().is_some_and(|h| h.ticket <= self.persisted) {
            let held = self.awaiting_sync.pop_front().expect("there is a front");
            self.raw.on_persist_ready(held.number);
            held.messages.iter().for_each(|m| self.send(m));
        }
    }

    pub(super) fn persist(&mut self, write: Persist) -> u64 {
        self.last_ticket += 1;
        self.events.push_back(LogEvent::Persist { ticket: self.last_ticket, write });
        self.last_ticket
    }

    pub(super) fn send(&mut self, m: &Message) {
        self.events.push_back(LogEvent::Send { to: m.to, message: encode(m) });
    }

    /// Runs raft-rs until it has nothing more to say. Each round commits, applies, writes or sends something, and new
    /// work comes only from inputs, so it ends.
    pub(super) fn pump(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            for m in ready.take_messages() {
                self.send(&m);
            }
            let mut write = Persist::default();
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                write.snapshot = Some(snapshot_write(&snapshot, Tail::Dropped));
                self.install(snapshot);
            }
            write.entries = ready.entries().iter().map(|e| (e.index, encode(e))).collect();
            self.raw.mut_store().append(ready.entries());
            if let Some(hs) = ready.hs() {
                let bytes = encode(hs);
                self.raw.mut_store().set_hard_state(hs.clone());
                write.hard_state = self.non_voting.is_none().then_some(bytes);
            }
            let must_wait = ready.must_sync();
            let messages = ready.take_persisted_messages();
            let committed = ready.take_committed_entries();
            let number = ready.number();
            if write != Persist::default() {
                let before = self.last_ticket;
                let ticket = self.persist(write);
                self.awaiting_sync.push_back(AwaitingSync {
                    number,
                    ticket: if must_wait { ticket } else { before },
                    messages,
                });
            } else {
                let ticket = self.awaiting_sync.back().map_or(self.persisted, |h| h.ticket);
                self.awaiting_sync.push_back(AwaitingSync { number, ticket, messages });
            }
            self.raw.advance_append_async(ready);
            for entry in committed {
                self.apply(entry);
            }
            self.release();
            self.advance_apply();
            self.maybe_compact();
        }
    }

    /// Reports to raft-rs what is applied. A snapshot is applied at once, but reported only when it is on disk.
    fn advance_apply(&mut self) {
        let log = &self.raw.raft.raft_log;
        if self.applied > log.applied() && self.applied <= log.committed.min(log.persisted) {
            self.raw.advance_apply_to(self.applied);
        }
    }

    fn install(&mut self, snapshot: Snapshot) {
        if let Ok(state) = LocationState::decode(&snapshot.data) {
            self.state = state;
        }
        self.applied = snapshot.get_metadata().index;
        self.raw.mut_store().install(snapshot);
        self.events.push_back(LogEvent::Restored);
        self.events.push_back(LogEvent::Voters(self.voters()));
    }

    fn apply(&mut self, entry: Entry) {
        if self.stopped.is_some() {
            return;
        }
        if let Some(why) = unreadable(&entry) {
            self.stop(entry.index, why);
            return;
        }
        self.applied = entry.index;
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => {}
            EntryType::EntryNormal => {
                let Ok(command) = Command::decode(&entry.data) else { return };
                let applied = self.state.apply(&command);
                self.events.push_back(LogEvent::Applied {
                    entry: EntryId { index: entry.index, term: entry.term },
                    applied,
                });
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                self.apply_change(&entry);
            }
        }
    }

    fn maybe_compact(&mut self) {
        let (store, applied) = (self.raw.store(), self.applied);
        let last = store.snapshot_index();
        if applied >= last + SNAPSHOT_EVERY || store.bytes(last, applied) >= SNAPSHOT_BYTES {
            self.compact(KEEP_BEHIND);
        }
    }

    pub(super) fn compact(&mut self, keep: u64) {
        let (applied, state) = (self.applied, &self.state);
        self.raw.mut_store().compact(applied, state, keep, KEEP_BYTES);
        let snapshot = self.raw.store().current_snapshot().clone();
        self.persist_snapshot(&snapshot, Tail::Kept);
    }

    pub(super) fn persist_snapshot(&mut self, snapshot: &Snapshot, tail: Tail) {
        let snapshot = Some(snapshot_write(snapshot, tail));
        self.persist(Persist { snapshot, ..Persist::default() });
    }
}

fn snapshot_write(snapshot: &Snapshot, tail: Tail) -> SnapshotWrite {
    SnapshotWrite { index: snapshot.get_metadata().index, bytes: encode(snapshot), tail }
}
