//! The store's file: opening, checking, reading, and one transaction of writes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Persist, Restored};
use nix::fcntl::{Flock, FlockArg};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::supervise;

const FILE: &str = "leaderd.redb";
const LOCK: &str = "lock";

/// Set when the layout below changes incompatibly.
const FORMAT: &str = "3";

const IDENTITY: TableDefinition<'_, &str, &str> = TableDefinition::new("identity");
const HARD_STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("hard-state");
const ENTRIES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("entries");
const DECISION: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("decision");
const SNAPSHOT: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("snapshot");

/// Whom a store belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub mesh: String,
    pub location: LocationName,
    pub node: NodeName,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("state directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("another leaderd runs with this state ({}), pid {pid}", path.display())]
    Locked { path: PathBuf, pid: String },
    #[error(
        "the store {} is damaged ({what}); `leaderd reset --state {}` forgets it, and this node then rejoins its location as new",
        path.display(), dir.display()
    )]
    Damaged { path: PathBuf, dir: PathBuf, what: String },
    #[error(
        "the store {} belongs to {found}, not to {expected}; use another --state, or `leaderd reset --state {}` to forget it",
        path.display(), dir.display()
    )]
    Foreign { path: PathBuf, dir: PathBuf, found: String, expected: String },
    #[error("store {}: {source}", path.display())]
    Io { path: PathBuf, source: redb::Error },
}

/// The open file with the directory's lock.
pub(super) struct StoreFile {
    dir: PathBuf,
    database: Option<Database>,
    _lock: Flock<File>,
}

impl StoreFile {
    /// Opens or makes the store of `dir`, and reads what it holds.
    pub(super) fn open(
        dir: &Path,
        identity: &Identity,
    ) -> Result<(Self, BTreeMap<LocationName, Restored>), StoreError> {
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let damaged =
            |what: String| StoreError::Damaged { path: path.clone(), dir: dir.to_owned(), what };
        // redb checks sums, but a file of any bytes may still trip an assertion in it: that is damage as well.
        let opened = supervise::caught(|| -> Result<_, StoreError> {
            let mut database =
                Database::create(&path).map_err(|e| classify(&path, dir, e.into()))?;
            database.check_integrity().map_err(|e| classify(&path, dir, e.into()))?;
            let restored = load(&database, &path, dir, identity)?;
            Ok((database, restored))
        });
        let (database, restored) = opened.map_err(|_| damaged("reading it fails".to_owned()))??;
        Ok((Self { dir: dir.to_owned(), database: Some(database), _lock: lock }, restored))
    }

    /// Writes all in order in one transaction and syncs.
    pub(super) fn write(
        &mut self,
        writes: &[(LocationName, Box<Persist>)],
    ) -> Result<(), StoreError> {
        let path = self.dir.join(FILE);
        let failed = |source: redb::Error| StoreError::Io { path: path.clone(), source };
        let database = match self.database.take() {
            Some(database) => database,
            // redb refuses all work after an I/O error until it is opened again.
            None => Database::open(&path).map_err(|e| failed(e.into()))?,
        };
        transaction(&database, writes).map_err(failed)?;
        self.database = Some(database);
        Ok(())
    }
}

/// Forgets the store of a directory. True if there was one.
pub fn reset(dir: &Path) -> Result<bool, StoreError> {
    let _lock = lock(dir)?;
    match fs::remove_file(dir.join(FILE)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::Directory { path: dir.to_owned(), source }),
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let failed = |source| StoreError::Directory { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK))
        .map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written = lock
                .set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| writeln!(lock, "{}", std::process::id()));
            if let Err(error) = written {
                // The lock holds without the pid in it (full disk); only the message to a second daemon is poorer.
                tracing::warn!(%error, "cannot write our pid to the state's lock");
            }
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let pid =
                if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            Err(StoreError::Locked { path: dir.to_owned(), pid })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn classify(path: &Path, dir: &Path, error: redb::Error) -> StoreError {
    let damaged =
        |what: String| StoreError::Damaged { path: path.to_owned(), dir: dir.to_owned(), what };
    match error {
        redb::Error::Io(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            damaged(e.to_string())
        }
        redb::Error::Io(_) => StoreError::Io { path: path.to_owned(), source: error },
        other => damaged(other.to_string()),
    }
}

fn load(
    database: &Database,
    path: &Path,
    dir: &Path,
    identity: &Identity,
) -> Result<BTreeMap<LocationName, Restored>, StoreError> {
    let result =
        (|| -> Result<Result<BTreeMap<LocationName, Restored>, StoreError>, redb::Error> {
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(IDENTITY)?;
                let wanted = [
                    ("format", FORMAT),
                    ("mesh", identity.mesh.as_str()),
                    ("location", identity.location.as_str()),
                    ("node", identity.node.as_str()),
                ];
                for (key, value) in wanted {
                    let found = table.get(key)?.map(|v| v.value().to_owned());
                    match found {
                        Some(found) if found != value => {
                            return Ok(Err(StoreError::Foreign {
                                path: path.to_owned(),
                                dir: dir.to_owned(),
                                found: format!("{key} {found}"),
                                expected: format!("{key} {value}"),
                            }));
                        }
                        Some(_) => {}
                        None => {
                            table.insert(key, value)?;
                        }
                    }
                }
                write.open_table(HARD_STATE)?;
                write.open_table(ENTRIES)?;
                write.open_table(SNAPSHOT)?;
                write.open_table(DECISION)?;
            }
            write.commit()?;
            read_all(database).map(|all| {
                all.map_err(|what| StoreError::Damaged {
                    path: path.to_owned(),
                    dir: dir.to_owned(),
                    what,
                })
            })
        })();
    result.map_err(|e| classify(path, dir, e))?
}

/// The inner error says what is wrong with what was read.
fn read_all(
    database: &Database,
) -> Result<Result<BTreeMap<LocationName, Restored>, String>, redb::Error> {
    let read = database.begin_read()?;
    let mut all: BTreeMap<String, Restored> = BTreeMap::new();
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
        let restored = all.entry(location.to_owned()).or_default();
        let base = restored.snapshot.as_ref().map_or(0, |(i, _)| *i);
        if index <= base {
            continue;
        }
        let expected = restored.entries.last().map_or(base, |(i, _)| *i) + 1;
        if index != expected {
            return Ok(Err(format!(
                "the log of {location} has entry {index} where {expected} belongs"
            )));
        }
        restored.entries.push((index, value.value().to_owned()));
    }
    let parsed = all.into_iter().map(|(name, r)| match LocationName::try_from(name) {
        Ok(name) => Ok((name, r)),
        Err(e) => Err(e.to_string()),
    });
    Ok(parsed.collect())
}

fn transaction(
    database: &Database,
    writes: &[(LocationName, Box<Persist>)],
) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut hard_states = write.open_table(HARD_STATE)?;
        let mut entries = write.open_table(ENTRIES)?;
        let mut snapshots = write.open_table(SNAPSHOT)?;
        let mut decisions = write.open_table(DECISION)?;
        for (location, persist) in writes {
            let location = location.as_str();
            if let Some((index, bytes)) = &persist.snapshot {
                snapshots.insert(location, (*index, bytes.as_slice()))?;
                entries.retain_in((location, 0)..=(location, *index), |_, _| false)?;
            }
            if let Some((first, _)) = persist.entries.first() {
                entries.retain_in((location, *first)..=(location, u64::MAX), |_, _| false)?;
            }
            for (index, bytes) in &persist.entries {
                entries.insert((location, *index), bytes.as_slice())?;
            }
            if let Some(bytes) = &persist.hard_state {
                hard_states.insert(location, bytes.as_slice())?;
            }
            if let Some(bytes) = &persist.decision {
                decisions.insert(location, bytes.as_slice())?;
            }
        }
    }
    write.commit()?; // `Durability::Immediate` is redb's default: synced when this returns.
    Ok(())
}
