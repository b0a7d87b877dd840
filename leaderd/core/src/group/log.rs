//! The Raft log as raft-rs reads it: in memory, written through `Persist` before anything depends on it.
//!
//! The log begins at a snapshot. In a new location that is the *genesis* snapshot (index 1, term 1), the same on every
//! voter: so a node that comes to an old location with an empty store can never mistake its own beginning for the
//! group's, since the group has left index 1 behind as soon as it compacts.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::GroupError;
use crate::capability::Unreadable;
use crate::io::Restored;
use crate::state::{Command, LocationState};

/// Index and term of the genesis snapshot.
const GENESIS: u64 = 1;

/// Everything that Raft has written, the newest snapshot first.
pub(super) struct LogStore {
    hard_state: HardState,
    conf: ConfState,
    /// With the state at its index as data.
    snapshot: Snapshot,
    /// Contiguous. May begin at or before the snapshot's index: a tail kept for slow followers.
    entries: Vec<Entry>,
    /// (index, term) of the entry before the first one.
    base: (u64, u64),
}

impl LogStore {
    /// The store and the state at its snapshot. `empty` in the result: nothing that binds this node was on disk.
    pub fn restore(
        restored: Restored,
        genesis: &LocationState,
        voters: &[u64],
    ) -> Result<(Self, LocationState, bool), GroupError> {
        let empty = restored.hard_state.is_none();
        let snapshot = match restored.snapshot {
            Some((index, bytes)) => {
                let snapshot = Snapshot::parse_from_bytes(&bytes)
                    .map_err(|_| GroupError::Damaged("snapshot"))?;
                if snapshot.get_metadata().index != index {
                    return Err(GroupError::Damaged("snapshot index"));
                }
                snapshot
            }
            None => genesis_snapshot(genesis, voters),
        };
        let state = LocationState::decode(&snapshot.data).map_err(|e| match e {
            Unreadable::Newer => GroupError::Newer,
            Unreadable::Malformed => GroupError::Damaged("state in the snapshot"),
        })?;
        if state.location != genesis.location {
            return Err(GroupError::WrongLocation(state.location));
        }
        let meta = snapshot.get_metadata();
        let base = (meta.index, meta.term);
        let mut entries = Vec::new();
        for (index, bytes) in restored.entries {
            if index <= base.0 {
                continue;
            }
            let entry =
                Entry::parse_from_bytes(&bytes).map_err(|_| GroupError::Damaged("log entry"))?;
            if entry.index != index || index != base.0 + 1 + entries.len() as u64 {
                return Err(GroupError::Damaged("log index"));
            }
            entries.push(entry);
        }
        let last = entries.last().map_or(base.0, |e| e.index);
        let mut hard_state = match restored.hard_state {
            Some(bytes) => HardState::parse_from_bytes(&bytes)
                .map_err(|_| GroupError::Damaged("hard state"))?,
            None => HardState::default(),
        };
        if hard_state.commit > last {
            return Err(GroupError::Damaged("commit index beyond the log"));
        }
        hard_state.commit = hard_state.commit.max(base.0);
        // Rejecting a pre-vote at term 0 panics in raft-rs.
        hard_state.term = hard_state.term.max(meta.term).max(1);
        let conf = meta.get_conf_state().clone();
        Ok((Self { hard_state, conf, snapshot, entries, base }, state, empty))
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn conf(&self) -> &ConfState {
        &self.conf
    }

    pub fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    pub fn current_snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A snapshot from the raft leader replaces everything.
    pub fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.base = (meta.index, meta.term);
        self.conf = meta.get_conf_state().clone();
        self.entries.clear();
        self.hard_state.commit = self.hard_state.commit.max(meta.index);
        self.snapshot = snapshot;
    }

    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        debug_assert!(
            first.index > self.base.0 && first.index <= self.base.0 + 1 + self.entries.len() as u64
        );
        self.entries.truncate((first.index - self.base.0 - 1) as usize);
        self.entries.extend_from_slice(entries);
    }

    /// Makes a snapshot of the state at `index`, and drops entries but the last `keep` before it.
    pub fn compact(&mut self, index: u64, state: &LocationState, keep: u64) {
        let Ok(term) = self.term(index) else { return };
        self.snapshot = snapshot_of(state, index, term, self.conf.clone());
        let to = index.saturating_sub(keep);
        if to > self.base.0 {
            let term = self.term(to).unwrap_or(term);
            self.entries.drain(..(to - self.base.0) as usize);
            self.base = (to, term);
        }
    }

    /// The first entry with a command that this version cannot read.
    pub fn first_unreadable(&self) -> Option<(u64, Unreadable)> {
        self.entries.iter().find_map(|e| Some((e.index, unreadable(e)?)))
    }

    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }
}

/// Why the command in an entry cannot be read, if it cannot.
pub(super) fn unreadable(entry: &Entry) -> Option<Unreadable> {
    let is_command = entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
    if is_command { Command::decode(&entry.data).err() } else { None }
}

fn genesis_snapshot(state: &LocationState, voters: &[u64]) -> Snapshot {
    let conf = ConfState { voters: voters.to_vec(), ..Default::default() };
    snapshot_of(state, GENESIS, GENESIS, conf)
}

fn snapshot_of(state: &LocationState, index: u64, term: u64, conf: ConfState) -> Snapshot {
    let data = state.encode().into();
    let mut snapshot = Snapshot { data, ..Default::default() };
    let meta = snapshot.mut_metadata();
    meta.index = index;
    meta.term = term;
    meta.set_conf_state(conf);
    snapshot
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let from = (low - self.base.0 - 1) as usize;
        let to = (high - self.base.0 - 1) as usize;
        let mut entries = self.entries[from..to].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index == self.snapshot_index() {
            return Ok(self.snapshot.get_metadata().term);
        }
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.base.0 - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot_index() < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
