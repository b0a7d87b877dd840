//! The Raft log as raft-rs reads it: in memory, written through `Persist` before anything depends on it.
//!
//! The log begins at a snapshot. In a new location that is the *genesis* snapshot (index 1, term 1), the same on every
//! voter: so a node that comes to an old location with an empty store can never mistake its own beginning for the
//! group's, since the group has left index 1 behind as soon as it compacts.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::capability::Unreadable;
use crate::state::{Command, LocationState};
use crate::stored::{StoredError, StoredGroup, StoredLog};

/// Index and term of the genesis snapshot.
const GENESIS: u64 = 1;

/// What a group has on disk when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beginning {
    /// Nothing.
    New,
    /// A log, and no hard state: this node never voted, or it has lost what it knew of that.
    WithoutVote,
    Voter,
}

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
    /// The log as it is on disk, or a new one, and the state at its snapshot.
    pub fn restore(
        stored: &StoredGroup,
        genesis: &LocationState,
        voters: &[u64],
    ) -> Result<(Self, LocationState, Beginning), StoredError> {
        let log = stored.read(&genesis.location)?;
        let beginning = match &log {
            None => Beginning::New,
            Some(log) if log.hard_state.is_none() => Beginning::WithoutVote,
            Some(_) => Beginning::Voter,
        };
        let StoredLog { hard_state, snapshot, state, entries } = log.unwrap_or_else(|| StoredLog {
            hard_state: None,
            snapshot: genesis_snapshot(genesis, voters),
            state: genesis.clone(),
            entries: Vec::new(),
        });
        let meta = snapshot.get_metadata();
        let base = (meta.index, meta.term);
        let conf = meta.get_conf_state().clone();
        let mut hard_state = hard_state.unwrap_or_default();
        hard_state.commit = hard_state.commit.max(base.0);
        // One without a vote has no term on disk, and is at least in that of its log.
        hard_state.term = hard_state.term.max(entries.last().map_or(base.1, |e| e.term));
        Ok((Self { hard_state, conf, snapshot, entries, base }, state, beginning))
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

    /// Bytes of the entries after the first index, up to the second.
    pub fn bytes(&self, after: u64, to: u64) -> usize {
        let held = self.entries.iter().filter(|e| e.index > after && e.index <= to);
        held.map(|e| e.data.len()).sum()
    }

    /// Makes a snapshot of the state at `index`, and drops entries but the last `keep` before it, of which it keeps as many as have
    /// room in `keep_bytes`.
    pub fn compact(&mut self, index: u64, state: &LocationState, keep: u64, keep_bytes: usize) {
        let Ok(term) = self.term(index) else { return };
        self.snapshot = snapshot_of(state, index, term, self.conf.clone());
        let mut to = index.saturating_sub(keep).max(self.base.0);
        while to < index && self.bytes(to, index) > keep_bytes {
            to += 1;
        }
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
