//! What is on disk of one location: which rows a write changes, and which rows are valid when they are read.
//!
//! A [`Persist`] is one write. It reaches the disk whole or not at all, and writes reach it in order, so a power cut leaves the
//! outcome of the first few. The store does [`Persist::changes`] to its tables, and
//! [`StoredGroup`] does the same in memory, for the simulator and for tests. Both read back through `StoredGroup::read`.
//!
//! **Invariants**, after any number of writes of one daemon or of several, one after the other:
//! * Raft has nothing on disk, or it has a snapshot. The first write of a group holds its first snapshot, so a log never
//!   lacks its beginning, and the voters that it began with are known whatever the mesh file says later.
//! * The entries follow the snapshot without a gap, and terms never fall.
//! * A hard state commits nothing beyond the log, and its term is not older than the log's. A group without one has no
//!   vote yet (`consensus::raft_node`: non-voting).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use serde::{Deserialize, Serialize};

use crate::capability::Unreadable;
use crate::ids::LocationName;
use crate::state::LocationState;

/// Terms, indexes and votes stay below this, so that adding to them cannot overflow. No group gets that far.
pub(crate) const MAX_NUMBER: u64 = 1 << 62;

/// One write of a location's group. It is on disk whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Persist {
    /// Written before the entries.
    pub snapshot: Option<SnapshotWrite>,
    /// (index, protobuf `Entry`), contiguous. They replace all entries from the first index on.
    pub entries: Vec<(u64, Vec<u8>)>,
    /// Protobuf `HardState`.
    pub hard_state: Option<Vec<u8>>,
    /// The last decision known of this location, so that a restart changes no route.
    pub decision: Option<Vec<u8>>,
}

/// A snapshot replaces the one before, and the entries that it covers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotWrite {
    pub index: u64,
    /// Protobuf `Snapshot`.
    pub bytes: Vec<u8>,
    pub tail: Tail,
}

/// What happens to the entries after a snapshot.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Tail {
    /// The snapshot is of this node's own state: they follow from it.
    Kept,
    /// The snapshot is a group's first, or came from the raft leader, whose log may differ after it.
    Dropped,
}

/// A change of one kind of row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    DropEntries(RangeInclusive<u64>),
    Snapshot(u64, &'a [u8]),
    Entry(u64, &'a [u8]),
    HardState(&'a [u8]),
    Decision(&'a [u8]),
}

impl Persist {
    /// Adds a later write. The two as one leave on disk what they leave one after the other.
    pub fn then(&mut self, later: Self) {
        if let Some(mut snapshot) = later.snapshot {
            let had_entries = !self.entries.is_empty();
            match snapshot.tail {
                Tail::Dropped => self.entries.clear(),
                Tail::Kept => self.entries.retain(|(index, _)| *index > snapshot.index),
            }
            // What our entries had replaced, or our snapshot dropped, is not in the tail that is kept.
            let dropped = self.snapshot.as_ref().is_some_and(|s| s.tail == Tail::Dropped);
            if dropped || (had_entries && self.entries.is_empty()) {
                snapshot.tail = Tail::Dropped;
            }
            self.snapshot = Some(snapshot);
        }
        if let Some((first, _)) = later.entries.first() {
            self.entries.retain(|(index, _)| index < first);
            self.entries.extend(later.entries);
        }
        self.hard_state = later.hard_state.or(self.hard_state.take());
        self.decision = later.decision.or(self.decision.take());
    }

    /// What the write does to the rows, in order.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let snapshot = self.snapshot.iter().flat_map(|s| {
            let last = match s.tail {
                Tail::Kept => s.index,
                Tail::Dropped => u64::MAX,
            };
            [Change::DropEntries(0..=last), Change::Snapshot(s.index, &s.bytes)]
        });
        let replaced =
            self.entries.first().map(|(first, _)| Change::DropEntries(*first..=u64::MAX));
        let entries = self.entries.iter().map(|(index, bytes)| Change::Entry(*index, bytes));
        let hard_state = self.hard_state.iter().map(|bytes| Change::HardState(bytes));
        let decision = self.decision.iter().map(|bytes| Change::Decision(bytes));
        snapshot.chain(replaced).chain(entries).chain(hard_state).chain(decision)
    }
}

/// The rows of one location.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StoredGroup {
    pub hard_state: Option<Vec<u8>>,
    pub entries: BTreeMap<u64, Vec<u8>>,
    pub snapshot: Option<(u64, Vec<u8>)>,
    pub decision: Option<Vec<u8>>,
}

/// Why rows cannot be what this daemon wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    #[error("the {0} cannot be decoded")]
    Undecodable(&'static str),
    #[error("a term, an index or a vote is out of range")]
    OutOfRange,
    #[error("the log has no snapshot to begin with")]
    NoSnapshot,
    #[error("the snapshot at index {index} says that it is of index {says}")]
    SnapshotIndex { index: u64, says: u64 },
    #[error("the log has entry {found} where {expected} belongs")]
    Gap { found: u64, expected: u64 },
    #[error("the term falls from {before} to {term} at entry {index}")]
    TermFalls { index: u64, before: u64, term: u64 },
    #[error("entry {commit} is committed and the log ends at {last}")]
    CommitBeyondLog { commit: u64, last: u64 },
    #[error("the hard state is of term {term} and the log of term {last}")]
    OldTerm { term: u64, last: u64 },
    #[error("a newer version of leaderd wrote the store")]
    Newer,
    #[error("it is of location {0}")]
    WrongLocation(LocationName),
}

/// The rows of Raft, decoded and checked.
#[derive(Debug)]
pub(crate) struct StoredLog {
    /// `None`: the group has no vote yet.
    pub hard_state: Option<HardState>,
    pub snapshot: Snapshot,
    /// The state in the snapshot.
    pub state: LocationState,
    /// They follow the snapshot.
    pub entries: Vec<Entry>,
}

impl StoredGroup {
    /// Carries out one write.
    pub fn write(&mut self, write: &Persist) {
        for change in write.changes() {
            match change {
                Change::DropEntries(range) => self.entries.retain(|i, _| !range.contains(i)),
                Change::Snapshot(index, bytes) => self.snapshot = Some((index, bytes.to_owned())),
                Change::Entry(index, bytes) => drop(self.entries.insert(index, bytes.to_owned())),
                Change::HardState(bytes) => self.hard_state = Some(bytes.to_owned()),
                Change::Decision(bytes) => self.decision = Some(bytes.to_owned()),
            }
        }
    }

    /// True if a group has written something here, not only the location's decision.
    pub fn has_log(&self) -> bool {
        self.hard_state.is_some() || self.snapshot.is_some() || !self.entries.is_empty()
    }

    /// Checks that a group of this location can begin with these rows.
    ///
    /// # Errors
    /// The first row that no daemon could have written.
    pub fn check(&self, location: &LocationName) -> Result<(), StoredError> {
        self.read(location).map(drop)
    }

    /// `None` if Raft has written nothing.
    ///
    /// One mistake is mended: earlier daemons left entries on disk that a snapshot from the raft leader had replaced. Where
    /// the first of them has an older term than the snapshot, it and what follows it is left out. None of them counts: what is
    /// committed at the snapshot's index has the snapshot's term, terms never fall along a log, so no log that has this
    /// snapshot in it has such an entry after it, and an entry in no such log was never committed.
    pub(crate) fn read(&self, location: &LocationName) -> Result<Option<StoredLog>, StoredError> {
        if !self.has_log() {
            return Ok(None);
        }
        let (at, bytes) = self.snapshot.as_ref().ok_or(StoredError::NoSnapshot)?;
        let snapshot: Snapshot = decode(bytes, "snapshot")?;
        let meta = snapshot.get_metadata();
        if meta.index != *at {
            return Err(StoredError::SnapshotIndex { index: *at, says: meta.index });
        }
        let base = (number(meta.index)?, number(meta.term)?);
        let state = LocationState::decode(&snapshot.data).map_err(|e| match e {
            Unreadable::Newer => StoredError::Newer,
            Unreadable::Malformed => StoredError::Undecodable("state in the snapshot"),
        })?;
        if state.location != *location {
            return Err(StoredError::WrongLocation(state.location));
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut last = base;
        for (&index, bytes) in self.entries.range(base.0 + 1..) {
            if index != last.0 + 1 {
                return Err(StoredError::Gap { found: index, expected: last.0 + 1 });
            }
            let entry: Entry = decode(bytes, "log entry")?;
            if entry.index != index {
                return Err(StoredError::Gap { found: entry.index, expected: index });
            }
            if entry.term < last.1 {
                if entries.is_empty() {
                    break;
                }
                return Err(StoredError::TermFalls { index, before: last.1, term: entry.term });
            }
            last = (index, number(entry.term)?);
            entries.push(entry);
        }
        let hard_state = match &self.hard_state {
            None => None,
            Some(bytes) => {
                let hard_state: HardState = decode(bytes, "hard state")?;
                let HardState { term, vote, commit, .. } = hard_state;
                if term >= MAX_NUMBER || vote >= MAX_NUMBER {
                    return Err(StoredError::OutOfRange);
                }
                if commit > last.0 {
                    return Err(StoredError::CommitBeyondLog { commit, last: last.0 });
                }
                if term < last.1 {
                    return Err(StoredError::OldTerm { term, last: last.1 });
                }
                Some(hard_state)
            }
        };
        Ok(Some(StoredLog { hard_state, snapshot, state, entries }))
    }
}

fn decode<M: Message>(bytes: &[u8], what: &'static str) -> Result<M, StoredError> {
    M::parse_from_bytes(bytes).map_err(|_| StoredError::Undecodable(what))
}

/// A term or an index: from 1 on.
fn number(n: u64) -> Result<u64, StoredError> {
    if (1..MAX_NUMBER).contains(&n) { Ok(n) } else { Err(StoredError::OutOfRange) }
}

#[cfg(test)]
mod tests;
