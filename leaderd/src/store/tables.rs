//! The rows of the store in redb's tables. `leaderd_core::stored` defines which rows a write changes, and which are valid.

use std::collections::BTreeMap;

use leaderd_core::ids::LocationName;
use leaderd_core::io::{Persist, StoredGroup};
use leaderd_core::stored::{Change, StoredError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::Identity;

/// Set when the layout below changes incompatibly.
const FORMAT: &str = "3";

const IDENTITY: TableDefinition<'_, &str, &str> = TableDefinition::new("identity");
const HARD_STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("hard-state");
const ENTRIES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("entries");
const DECISION: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("decision");
const SNAPSHOT: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("snapshot");

/// What the store holds, by location.
pub(super) type Rows = BTreeMap<LocationName, StoredGroup>;

/// The store belongs to another node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub found: String,
    pub expected: String,
}

/// What is written, by location.
pub(super) type Writes = BTreeMap<LocationName, Persist>;

/// Why the rows cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Damaged(String),
    Newer,
}

/// Makes the tables and the identity of a new store; checks the identity of an existing one.
pub(super) fn prepare(
    database: &Database,
    identity: &Identity,
) -> Result<Result<(), Foreign>, redb::Error> {
    let wanted = [
        ("format", FORMAT),
        ("mesh", identity.mesh.as_str()),
        ("location", identity.location.as_str()),
        ("node", identity.node.as_str()),
    ];
    match database.begin_read()?.open_table(IDENTITY) {
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(table) => {
            for (key, expected) in wanted {
                let found = table.get(key)?;
                let found = found.as_ref().map_or("", |v| v.value());
                if found != expected {
                    let (found, expected) = (format!("{key} {found}"), format!("{key} {expected}"));
                    return Ok(Err(Foreign { found, expected }));
                }
            }
            return Ok(Ok(()));
        }
    }
    let write = database.begin_write()?;
    {
        let mut table = write.open_table(IDENTITY)?;
        for (key, value) in wanted {
            table.insert(key, value)?;
        }
        write.open_table(HARD_STATE)?;
        write.open_table(ENTRIES)?;
        write.open_table(SNAPSHOT)?;
        write.open_table(DECISION)?;
    }
    write.commit()?;
    Ok(Ok(()))
}

/// All rows.
pub(super) fn read(database: &Database) -> Result<Result<Rows, Refused>, redb::Error> {
    let read = database.begin_read()?;
    let mut all: BTreeMap<String, StoredGroup> = BTreeMap::new();
    for row in read.open_table(HARD_STATE)?.iter()? {
        let (key, value) = row?;
        all.entry(key.value().to_owned()).or_default().hard_state = Some(value.value().to_owned());
    }
    for row in read.open_table(DECISION)?.iter()? {
        let (key, value) = row?;
        all.entry(key.value().to_owned()).or_default().decision = Some(value.value().to_owned());
    }
    for row in read.open_table(SNAPSHOT)?.iter()? {
        let (key, value) = row?;
        let (index, bytes) = value.value();
        all.entry(key.value().to_owned()).or_default().snapshot = Some((index, bytes.to_owned()));
    }
    for row in read.open_table(ENTRIES)?.iter()? {
        let (key, value) = row?;
        let (location, index) = key.value();
        let stored = all.entry(location.to_owned()).or_default();
        stored.entries.insert(index, value.value().to_owned());
    }
    let checked = all.into_iter().map(|(name, stored)| {
        let location: LocationName = name.parse().map_err(|e| Refused::Damaged(format!("{e}")))?;
        match stored.check(&location) {
            Ok(()) => Ok((location, stored)),
            Err(StoredError::Newer) => Err(Refused::Newer),
            Err(error) => Err(Refused::Damaged(format!("location {location}: {error}"))),
        }
    });
    Ok(checked.collect())
}

/// Carries out all writes in one transaction, and syncs.
pub(super) fn write(database: &Database, writes: &Writes) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut hard_states = write.open_table(HARD_STATE)?;
        let mut entries = write.open_table(ENTRIES)?;
        let mut snapshots = write.open_table(SNAPSHOT)?;
        let mut decisions = write.open_table(DECISION)?;
        for (location, persist) in writes {
            let location = location.as_str();
            for change in persist.changes() {
                match change {
                    Change::DropEntries(range) => {
                        let range = (location, *range.start())..=(location, *range.end());
                        entries.retain_in(range, |_, _| false)?;
                    }
                    Change::Snapshot(index, bytes) => {
                        snapshots.insert(location, (index, bytes))?;
                    }
                    Change::Entry(index, bytes) => {
                        entries.insert((location, index), bytes)?;
                    }
                    Change::HardState(bytes) => {
                        hard_states.insert(location, bytes)?;
                    }
                    Change::Decision(bytes) => {
                        decisions.insert(location, bytes)?;
                    }
                }
            }
        }
    }
    write.commit()?; // `Durability::Immediate` is redb's default: synced when this returns.
    Ok(())
}
