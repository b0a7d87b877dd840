//! The store's file: opening, checking, reading and writing it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use leaderd_core::ids::{LocationName, NodeName};
use nix::fcntl::Flock;
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, StorageBackend as _};

use super::lock::lock;
use super::tables::{self, Foreign, Refused, Rows, Writes};
use crate::{durable, supervise};

const FILE: &str = "leaderd.redb";
/// While it is made.
const NEW_FILE: &str = "leaderd.redb.new";

/// The node that a store belongs to.
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
        "a newer version of leaderd wrote the store {}: start that version; or `leaderd reset --state {}` forgets it, and this node then rejoins its location as new",
        path.display(), dir.display()
    )]
    Newer { path: PathBuf, dir: PathBuf },
    #[error(
        "the store {} belongs to {found}, not to {expected}; use another --state, or `leaderd reset --state {}` to forget it",
        path.display(), dir.display()
    )]
    Foreign { path: PathBuf, dir: PathBuf, found: String, expected: String },
    #[error("store {}: {source}", path.display())]
    Io { path: PathBuf, source: redb::Error },
}

/// The file with the directory's lock.
pub(super) struct StoreFile {
    dir: PathBuf,
    identity: Identity,
    /// `None`: it must be opened (again) before it can be written.
    database: Option<Database>,
    _lock: Flock<File>,
}

impl StoreFile {
    /// Opens or makes the store of `dir`, and reads what it holds.
    ///
    /// redb writes when it opens a file, so a disk that is full, or has gone read-only, would keep the daemon from starting: then
    /// the file is read in memory, and stays closed until there is something to write.
    pub(super) fn open(dir: &Path, identity: &Identity) -> Result<(Self, Rows), StoreError> {
        let lock = lock(dir)?;
        let mut file =
            Self { dir: dir.to_owned(), identity: identity.clone(), database: None, _lock: lock };
        let rows = match file.open_to_write() {
            Ok((database, rows)) => {
                file.database = Some(database);
                rows
            }
            Err(StoreError::Io { source: redb::Error::Io(error), .. })
                if durable::is_disk_trouble(&error) =>
            {
                let rows = file.read_in_memory()?;
                tracing::error!(
                    store = %file.path().display(), %error,
                    "cannot write to the store: starting from what it holds; forwarding and probing go on, voting does not"
                );
                rows
            }
            Err(error) => return Err(error),
        };
        Ok((file, rows))
    }

    /// True if it was read, and nothing can be written to it yet.
    pub(super) fn is_closed(&self) -> bool {
        self.database.is_none()
    }

    /// Writes all in one transaction and syncs. A write that failed may be repeated: its outcome is the same.
    pub(super) fn write(&mut self, writes: &Writes) -> Result<(), StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            // redb refuses all work after an I/O error until it is opened again.
            None => self.open_to_write()?.0,
        };
        tables::write(&database, writes)
            .map_err(|source| StoreError::Io { path: self.path(), source })?;
        self.database = Some(database);
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn open_to_write(&self) -> Result<(Database, Rows), StoreError> {
        let path = self.path();
        if is_empty(&path) {
            create(&self.dir, &self.identity).map_err(|e| classify(&path, &self.dir, e))?;
        }
        self.read_with(|| Database::open(&path))
    }

    fn read_in_memory(&self) -> Result<Rows, StoreError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(classify(&path, &self.dir, redb::Error::Io(e))),
        };
        let memory = InMemoryBackend::new();
        let filled = memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes));
        filled.map_err(|e| classify(&path, &self.dir, redb::Error::Io(e)))?;
        Ok(self.read_with(|| Database::builder().create_with_backend(memory))?.1)
    }

    fn read_with(
        &self,
        open: impl FnOnce() -> Result<Database, DatabaseError>,
    ) -> Result<(Database, Rows), StoreError> {
        let path = self.path();
        let failed = |e: redb::Error| classify(&path, &self.dir, e);
        let damaged =
            |what| StoreError::Damaged { path: path.clone(), dir: self.dir.clone(), what };
        // redb verifies checksums, but a file of arbitrary bytes may still fail an assertion in it: that is damage as well.
        let read = supervise::caught(|| {
            let mut database = open().map_err(|e| failed(e.into()))?;
            database.check_integrity().map_err(|e| failed(e.into()))?;
            let (path, dir) = (path.clone(), self.dir.clone());
            if let Err(Foreign { found, expected }) =
                tables::prepare(&database, &self.identity).map_err(failed)?
            {
                return Err(StoreError::Foreign { path, dir, found, expected });
            }
            match tables::read(&database).map_err(failed)? {
                Ok(rows) => Ok((database, rows)),
                Err(Refused::Damaged(what)) => Err(damaged(what)),
                Err(Refused::Newer) => Err(StoreError::Newer { path, dir }),
            }
        });
        read.unwrap_or_else(|_| Err(damaged("reading it fails".to_owned())))
    }
}

/// True if there is no store, or the file system has lost its content: this node is then new, and votes when it has caught up.
fn is_empty(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) if found.len() == 0 => {
            tracing::warn!(store = %path.display(), "the store is an empty file: this node begins as new");
            true
        }
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Makes a store under another name first, so that a power cut leaves a whole one or none.
fn create(dir: &Path, identity: &Identity) -> Result<(), redb::Error> {
    let beside = dir.join(NEW_FILE);
    durable::remove(&beside).map_err(redb::Error::Io)?;
    let database = Database::create(&beside)?;
    let _is_new = tables::prepare(&database, identity)?;
    drop(database);
    let named = File::open(&beside)
        .and_then(|file| file.sync_all())
        .and_then(|()| durable::rename(&beside, &dir.join(FILE)));
    named.map_err(redb::Error::Io)
}

/// Forgets the store of a directory. True if there was one.
pub fn reset(dir: &Path) -> Result<bool, StoreError> {
    let _lock = lock(dir)?;
    let removed = durable::remove(&dir.join(NEW_FILE)).and_then(|_| {
        let was = durable::remove(&dir.join(FILE))?;
        durable::sync_directory_of(&dir.join(FILE))?;
        Ok(was)
    });
    removed.map_err(|source| StoreError::Directory { path: dir.to_owned(), source })
}

fn classify(path: &Path, dir: &Path, error: redb::Error) -> StoreError {
    let damaged =
        |what: String| StoreError::Damaged { path: path.to_owned(), dir: dir.to_owned(), what };
    match error {
        redb::Error::Io(e)
            if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            damaged(e.to_string())
        }
        redb::Error::Io(_) | redb::Error::PreviousIo => {
            StoreError::Io { path: path.to_owned(), source: error }
        }
        other => damaged(other.to_string()),
    }
}
