//! The thread that writes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leaderd_core::ids::LocationName;
use leaderd_core::io::{Persist, StoredGroup, Ticket};

use super::file::{Identity, StoreError, StoreFile};
use super::tables::Writes;
use crate::counters::Counters;
use crate::supervise;

/// Time between two tries after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Time between two log lines about the same failure.
const REPEAT_LOG: Duration = Duration::from_secs(60);

/// An open store, before its thread runs.
pub struct Store {
    file: StoreFile,
    pub restored: BTreeMap<LocationName, StoredGroup>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("restored", &self.restored.keys()).finish_non_exhaustive()
    }
}

/// Writes that wait, merged by location: however long the disk fails, they hold no more than the location's log and snapshot.
#[derive(Default)]
struct Waiting {
    batch: Batch,
    closed: bool,
}

/// What goes to disk in one transaction, and the last ticket in it.
#[derive(Default)]
struct Batch {
    writes: Writes,
    last: Option<Ticket>,
}

/// Hands writes to the thread; never blocks. Dropping it waits for what is under way.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<(Mutex<Waiting>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "writes of {} locations wait", self.batch.writes.len())
    }
}

impl Store {
    /// Opens or makes the store in `dir`, and reads what it holds.
    pub fn open(dir: &Path, identity: &Identity) -> Result<Self, StoreError> {
        let (file, restored) = StoreFile::open(dir, identity)?;
        Ok(Self { file, restored })
    }

    /// Starts the thread. `persisted` is called there with the last ticket of each synced batch.
    pub fn start(
        self,
        counters: Counters,
        persisted: impl Fn(Ticket) + Send + 'static,
    ) -> std::io::Result<Writer> {
        let shared = Arc::new((Mutex::new(Waiting::default()), Condvar::new()));
        let theirs = shared.clone();
        let mut file = self.file;
        if file.is_closed() {
            counters.count("persist_errors");
        }
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            let _essential = supervise::essential("store");
            while let Some((writes, last)) = next_batch(&theirs) {
                if !write_until_done(&mut file, &writes, &theirs, &counters) {
                    // A later, smaller write might succeed: the log would have a gap, and the next start would fail.
                    return;
                }
                persisted(last);
            }
        })?;
        Ok(Writer { shared, thread: Some(thread) })
    }
}

impl Writer {
    pub fn persist(&self, ticket: Ticket, location: LocationName, write: Persist) {
        let (waiting, wake) = &*self.shared;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.batch.last = Some(ticket);
        match waiting.batch.writes.entry(location) {
            Entry::Vacant(none) => drop(none.insert(write)),
            Entry::Occupied(mut earlier) => earlier.get_mut().then(write),
        }
        wake.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn next_batch(shared: &(Mutex<Waiting>, Condvar)) -> Option<(Writes, Ticket)> {
    let (waiting, wake) = shared;
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Batch { writes, last: Some(last) } = std::mem::take(&mut waiting.batch) {
            return Some((writes, last));
        }
        if waiting.closed {
            return None;
        }
        waiting = wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
    }
}

/// False if the daemon stopped before the write succeeded.
fn write_until_done(
    file: &mut StoreFile,
    writes: &Writes,
    shared: &(Mutex<Waiting>, Condvar),
    counters: &Counters,
) -> bool {
    let mut logged: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let Err(error) = file.write(writes) else {
            counters.set("persist_latency_micros", began.elapsed().as_micros() as u64);
            counters.count("persist_batches");
            if logged.is_some() {
                tracing::info!("the store takes writes again");
            }
            return true;
        };
        counters.count("persist_errors");
        if logged.is_none_or(|at| at.elapsed() > REPEAT_LOG) {
            logged = Some(Instant::now());
            tracing::error!(%error, "cannot write to the store: trying again; forwarding goes on, voting does not");
        }
        let waiting = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return false;
        }
        drop(shared.1.wait_timeout(waiting, RETRY));
    }
}
