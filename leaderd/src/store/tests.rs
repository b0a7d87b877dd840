//! What is acknowledged is there, what is damaged or another's is refused, and a full disk keeps nobody from starting.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use leaderd_core::ids::LocationName;
use leaderd_core::io::{Persist, StoredGroup, Ticket};
use leaderd_core::stored::Tail;

use super::rows::{entries, entry, first, hard_state, snapshot};
use super::{Identity, Store, StoreError, reset};
use crate::counters::Counters;

fn identity(node: &str) -> Identity {
    Identity {
        mesh: "home".into(),
        location: "cloud".parse().unwrap(),
        node: node.parse().unwrap(),
    }
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
        writer.persist(Ticket(i as u64 + 1), "cloud".parse().unwrap(), write);
    }
    while rx.recv_timeout(Duration::from_secs(20)).unwrap() < last {}
}

fn restored(dir: &Path) -> StoredGroup {
    Store::open(dir, &identity("cloud-0"))
        .unwrap()
        .restored
        .remove(&"cloud".parse().unwrap())
        .unwrap_or_default()
}

fn indexes(stored: &StoredGroup) -> Vec<u64> {
    stored.entries.keys().copied().collect()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = hard_state(2, 1, 4);
    last.decision = Some(vec![8]);
    let writes = vec![first(), entries(2..=5, 1), last.clone(), entries(4..=6, 2)];
    let mut expected = StoredGroup::default();
    writes.iter().for_each(|write| expected.write(write));
    write(dir.path(), writes);
    let got = restored(dir.path());
    assert_eq!(got, expected);
    assert_eq!((indexes(&got), got.decision), (vec![2, 3, 4, 5, 6], last.decision));
    // A rewrite that is shorter than what it replaces leaves no tail.
    write(dir.path(), vec![entries(5..=5, 2)]);
    assert_eq!(indexes(&restored(dir.path())), [2, 3, 4, 5]);
}

#[test]
fn a_snapshot_replaces_the_log_before_it_or_all_of_it() {
    for (tail, left) in [(Tail::Kept, vec![5, 6]), (Tail::Dropped, vec![])] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), vec![first(), entries(2..=6, 1), snapshot(4, 1, tail)]);
        let got = restored(dir.path());
        assert_eq!((got.snapshot.as_ref().unwrap().0, indexes(&got)), (4, left));
    }
}

#[test]
fn a_log_that_makes_no_sense_is_refused_with_what_is_wrong_and_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), vec![first(), entries(2..=3, 2), entries(4..=4, 1)]);
    let error = Store::open(dir.path(), &identity("cloud-0")).unwrap_err().to_string();
    for words in
        ["location cloud", "the term falls from 2 to 1 at entry 4", "leaderd reset --state"]
    {
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
}

#[test]
fn a_store_that_was_never_finished_or_is_an_empty_file_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    for left in ["leaderd.redb", "leaderd.redb.new"] {
        let content = if left.ends_with("new") { "half of a store" } else { "" };
        std::fs::write(dir.path().join(left), content).unwrap();
        assert!(Store::open(dir.path(), &identity("cloud-0")).unwrap().restored.is_empty());
        assert!(!dir.path().join("leaderd.redb.new").exists());
        std::fs::remove_file(dir.path().join("leaderd.redb")).unwrap();
    }
}

/// Runs a part of a test in a process of its own: the limit that stands for a full disk is the whole process's.
fn in_its_own_process(test: &str, part: fn(&Path)) -> Option<tempfile::TempDir> {
    const DIR: &str = "LEADERD_TEST_FULL_DISK";
    if let Some(dir) = std::env::var_os(DIR) {
        part(Path::new(&dir));
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("store::tests::{test}"), "--nocapture"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    Some(dir)
}

/// From here on no file of this process grows beyond this.
fn limit_files(bytes: Option<u64>) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed; a write beyond the limit then fails instead of ending the process.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes.unwrap_or(hard), hard).unwrap();
}

fn wait_for_errors(counters: &Counters, more_than: u64) {
    while counters.get("persist_errors") <= more_than {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_written_after_a_write_that_a_full_disk_made_us_give_up() {
    let test = "nothing_is_written_after_a_write_that_a_full_disk_made_us_give_up";
    if let Some(dir) = in_its_own_process(test, stop_on_a_full_disk) {
        assert_eq!(indexes(&restored(dir.path())), [2, 3]);
    }
}

/// Writes two entries; then many that do not fit, and one that would; and stops.
fn stop_on_a_full_disk(dir: &Path) {
    write(dir, vec![first(), entries(2..=3, 1)]);
    let store = Store::open(dir, &identity("cloud-0")).unwrap();
    let size = std::fs::metadata(dir.join("leaderd.redb")).unwrap().len();
    limit_files(Some(size));
    let counters = Counters::default();
    let writer = store.start(counters.clone(), |_| {}).unwrap();
    let entries_of = |size: u64| (4..=5).map(|i| entry(1, i, size as usize)).collect();
    let big = Persist { entries: entries_of(size), ..Persist::default() };
    let location: LocationName = "cloud".parse().unwrap();
    writer.persist(Ticket(1), location.clone(), big);
    wait_for_errors(&counters, 0);
    writer.persist(Ticket(2), location, entries(6..=6, 1));
    drop(writer);
    limit_files(None);
}

#[test]
fn a_daemon_starts_from_its_store_while_the_disk_is_full_and_writes_once_there_is_room() {
    let test =
        "a_daemon_starts_from_its_store_while_the_disk_is_full_and_writes_once_there_is_room";
    if let Some(dir) = in_its_own_process(test, start_on_a_full_disk) {
        assert_eq!(indexes(&restored(dir.path())), [2, 3, 4]);
    }
}

fn start_on_a_full_disk(dir: &Path) {
    write(dir, vec![first(), entries(2..=3, 1), hard_state(1, 2, 3)]);
    let before = restored(dir);
    // As it is when a daemon is killed: not closed.
    let open = Store::open(dir, &identity("cloud-0")).unwrap();
    let killed = std::fs::read(dir.join("leaderd.redb")).unwrap();
    drop(open);
    for file in [killed, std::fs::read(dir.join("leaderd.redb")).unwrap()] {
        std::fs::write(dir.join("leaderd.redb"), file).unwrap();
        limit_files(Some(0));
        let mut store = Store::open(dir, &identity("cloud-0")).unwrap();
        assert_eq!(store.restored.remove(&"cloud".parse().unwrap()).unwrap(), before);
        drop(store);
        let foreign = Store::open(dir, &identity("cloud-1")).unwrap_err();
        assert!(matches!(foreign, StoreError::Foreign { .. }), "{foreign}");
        limit_files(None);
    }
    limit_files(Some(0));
    let store = Store::open(dir, &identity("cloud-0")).unwrap();
    let (counters, (tx, written)) = (Counters::default(), mpsc::channel());
    let writer = store.start(counters.clone(), move |ticket| tx.send(ticket).unwrap()).unwrap();
    assert_eq!(
        counters.get("persist_errors"),
        1,
        "the metric says so before there is anything to write"
    );
    writer.persist(Ticket(1), "cloud".parse().unwrap(), entries(4..=4, 1));
    wait_for_errors(&counters, 2);
    assert!(written.try_recv().is_err(), "nothing is acknowledged");
    limit_files(None);
    assert_eq!(written.recv_timeout(Duration::from_secs(30)), Ok(Ticket(1)));
}

#[test]
fn a_second_daemon_with_the_same_state_is_told_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path(), &identity("cloud-0")).unwrap();
    let error = Store::open(dir.path(), &identity("cloud-0")).unwrap_err().to_string();
    assert!(
        error.contains("another leaderd") && error.contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
    assert!(matches!(reset(dir.path()), Err(StoreError::Locked { .. })));
}

#[test]
fn the_store_of_another_node_is_refused_and_reset_forgets_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), vec![first(), entries(2..=3, 1)]);
    let error = Store::open(dir.path(), &identity("cloud-1")).unwrap_err().to_string();
    assert!(error.contains("node cloud-0") && error.contains("leaderd reset"), "{error}");
    assert!(reset(dir.path()).unwrap());
    assert!(!reset(dir.path()).unwrap());
    Store::open(dir.path(), &identity("cloud-1")).unwrap();
}

#[test]
fn a_damaged_store_is_refused_or_read_whole_but_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), vec![first(), entries(2..=40, 1)]);
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
