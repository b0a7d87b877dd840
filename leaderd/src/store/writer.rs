//! The thread that writes.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leaderd_core::ids::LocationName;
use leaderd_core::io::{Persist, Restored, Ticket};

use super::file::{Identity, StoreError, StoreFile};
use crate::counters::Counters;
use crate::supervise;

/// Most writes that wait. More means that the disk has refused for long; then the store stops acknowledging, as
/// whatever came after a lost write must not count as durable.
const MAX_WAITING: usize = 4096;

/// Between two tries after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Between two log lines about the same trouble.
const REPEAT_LOG: Duration = Duration::from_secs(60);

/// An open store, before its thread runs.
pub struct Store {
    file: StoreFile,
    pub restored: BTreeMap<LocationName, Restored>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("restored", &self.restored.keys()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Waiting {
    writes: VecDeque<(Ticket, LocationName, Box<Persist>)>,
    closed: bool,
    wedged: bool,
}

/// Hands writes to the thread; never blocks. Dropping it waits for what is under way.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<(Mutex<Waiting>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting", self.writes.len())
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
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            let _essential = supervise::essential("store");
            while let Some(batch) = next_batch(&theirs) {
                let last = batch.last().expect("a batch is never empty").0;
                let writes: Vec<_> =
                    batch.into_iter().map(|(_, location, write)| (location, write)).collect();
                if !write_until_done(&mut file, &writes, &theirs, &counters) {
                    // What came later may be smaller and fit: the log would have a gap, and the next start would be refused.
                    return;
                }
                persisted(last);
            }
        })?;
        Ok(Writer { shared, thread: Some(thread) })
    }
}

impl Writer {
    pub fn persist(&self, ticket: Ticket, location: LocationName, write: Box<Persist>) {
        let (waiting, wake) = &*self.shared;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.writes.len() >= MAX_WAITING && !waiting.wedged {
            waiting.wedged = true;
            tracing::error!(
                "the store has taken no write for too long: this daemon stops voting until it is restarted"
            );
        }
        if !waiting.wedged {
            waiting.writes.push_back((ticket, location, write));
            wake.notify_one();
        }
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

fn next_batch(
    shared: &(Mutex<Waiting>, Condvar),
) -> Option<Vec<(Ticket, LocationName, Box<Persist>)>> {
    let (waiting, wake) = shared;
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if !waiting.writes.is_empty() {
            return Some(waiting.writes.drain(..).collect());
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
    writes: &[(LocationName, Box<Persist>)],
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn identity(node: &str) -> Identity {
        Identity {
            mesh: "home".into(),
            location: "cloud".parse().unwrap(),
            node: node.parse().unwrap(),
        }
    }

    fn entries(range: std::ops::RangeInclusive<u64>, mark: u8) -> Persist {
        Persist { entries: range.map(|i| (i, vec![mark])).collect(), ..Persist::default() }
    }

    /// Writes all, waits until they are on disk, and closes the store as a crash after the sync would.
    fn write(dir: &Path, writes: Vec<Persist>) {
        let (tx, rx) = mpsc::channel();
        let writer = Store::open(dir, &identity("cloud-0"))
            .unwrap()
            .start(Counters::default(), move |ticket| tx.send(ticket).unwrap())
            .unwrap();
        let last = Ticket(writes.len() as u64);
        for (i, write) in writes.into_iter().enumerate() {
            writer.persist(Ticket(i as u64 + 1), "cloud".parse().unwrap(), Box::new(write));
        }
        while rx.recv_timeout(Duration::from_secs(20)).unwrap() < last {}
    }

    fn restored(dir: &Path) -> Restored {
        Store::open(dir, &identity("cloud-0"))
            .unwrap()
            .restored
            .remove(&"cloud".parse().unwrap())
            .unwrap_or_default()
    }

    #[test]
    fn what_was_acknowledged_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let hard =
            Persist { hard_state: Some(vec![9]), decision: Some(vec![8]), ..Persist::default() };
        write(dir.path(), vec![entries(1..=5, 1), hard, entries(4..=6, 2)]);
        let got = restored(dir.path());
        assert_eq!((got.hard_state, got.decision), (Some(vec![9]), Some(vec![8])));
        assert_eq!(
            got.entries.iter().map(|(i, b)| (*i, b[0])).collect::<Vec<_>>(),
            [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
        );
        // A rewrite that is shorter than what it replaces leaves no tail.
        write(dir.path(), vec![entries(3..=3, 3)]);
        assert_eq!(restored(dir.path()).entries.len(), 3);
    }

    #[test]
    fn a_snapshot_replaces_the_log_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = Persist { snapshot: Some((4, vec![7; 100])), ..Persist::default() };
        write(dir.path(), vec![entries(1..=6, 1), snapshot]);
        let got = restored(dir.path());
        assert_eq!(got.snapshot, Some((4, vec![7; 100])));
        assert_eq!(got.entries.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [5, 6]);
    }

    const FULL_DISK: &str =
        "store::writer::tests::nothing_is_written_after_a_write_that_a_full_disk_made_us_give_up";

    #[test]
    fn nothing_is_written_after_a_write_that_a_full_disk_made_us_give_up() {
        // The limit that stands for a full disk is the whole process's: this test again, in one of its own.
        const DIR: &str = "LEADERD_TEST_FULL_DISK";
        if let Some(dir) = std::env::var_os(DIR) {
            return stop_on_a_full_disk(Path::new(&dir));
        }
        let dir = tempfile::tempdir().unwrap();
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", FULL_DISK, "--nocapture"])
            .env(DIR, dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
        let got = restored(dir.path());
        assert_eq!(got.entries.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 2, 3]);
    }

    /// Writes three entries; then many that do not fit, and one that would; and stops.
    fn stop_on_a_full_disk(dir: &Path) {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        use nix::sys::signal::{SigHandler, Signal, signal};
        write(dir, vec![entries(1..=3, 1)]);
        // SAFETY: no handler is installed; a write beyond the limit then fails instead of ending the process.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        let store = Store::open(dir, &identity("cloud-0")).unwrap();
        let size = std::fs::metadata(dir.join("leaderd.redb")).unwrap().len();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, size, hard).unwrap();
        let counters = Counters::default();
        let writer = store.start(counters.clone(), |_| {}).unwrap();
        let big = Persist {
            entries: (4..=5).map(|i| (i, vec![1; size as usize])).collect(),
            ..Persist::default()
        };
        let location: LocationName = "cloud".parse().unwrap();
        writer.persist(Ticket(1), location.clone(), Box::new(big));
        while counters.get("persist_errors") == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        writer.persist(Ticket(2), location, Box::new(entries(6..=6, 1)));
        drop(writer);
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    }

    #[test]
    fn a_second_daemon_with_the_same_state_is_told_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path(), &identity("cloud-0")).unwrap();
        let error = Store::open(dir.path(), &identity("cloud-0")).unwrap_err().to_string();
        assert!(
            error.contains("another leaderd")
                && error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert!(matches!(super::super::reset(dir.path()), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn the_store_of_another_node_is_refused_and_reset_forgets_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), vec![entries(1..=2, 1)]);
        let error = Store::open(dir.path(), &identity("cloud-1")).unwrap_err().to_string();
        assert!(error.contains("node cloud-0") && error.contains("leaderd reset"), "{error}");
        assert!(super::super::reset(dir.path()).unwrap());
        assert!(!super::super::reset(dir.path()).unwrap());
        Store::open(dir.path(), &identity("cloud-1")).unwrap();
    }

    #[test]
    fn a_damaged_store_is_refused_or_read_whole_but_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), vec![entries(1..=40, 1)]);
        let whole = restored(dir.path());
        let path = dir.path().join("leaderd.redb");
        let good = std::fs::read(&path).unwrap();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut refused = 0;
        for round in 0..60 {
            let mut bytes = good.clone();
            match round % 3 {
                0 => bytes.truncate((next() as usize) % good.len()),
                1 => {
                    // Damage where there is something to damage: the first pages.
                    for _ in 0..200 {
                        let at = (next() as usize) % 20_000.min(bytes.len());
                        bytes[at] = next() as u8;
                    }
                }
                _ => bytes = (0..1 + next() % 9000).map(|_| next() as u8).collect(),
            }
            std::fs::write(&path, &bytes).unwrap();
            match Store::open(dir.path(), &identity("cloud-0")) {
                Ok(store) => {
                    let got = store.restored.into_values().next().unwrap_or_default();
                    assert!(bytes.is_empty() || got == whole, "damage was read as something else");
                }
                Err(
                    StoreError::Damaged { .. } | StoreError::Io { .. } | StoreError::Foreign { .. },
                ) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 30, "{refused}");
    }
}
