//! The power goes between any two operations of the store on its file.
//!
//! The disk here is the hardest that redb must stand: what was not synced may be there or not, whole or torn, in any order. What
//! is then read must be the rows after some of the transactions, in order, and after all that were acknowledged. What rows those
//! are says [`StoredGroup`], as it does for the simulator.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use leaderd_core::ids::LocationName;
use leaderd_core::io::{Persist, StoredGroup};
use leaderd_core::stored::Tail;
use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};

use super::Identity;
use super::rows::{entry, first, hard_state, snapshot};
use super::tables::{self, Rows};

/// The smallest piece that a disk writes whole, in bytes.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Operation {
    Write(usize, Vec<u8>),
    SetLength(usize),
    Sync,
}

/// A file in memory that notes what is done to it. It outlives the database on it.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<Operation>)>>);

impl Disk {
    fn operations(&self) -> usize {
        self.0.lock().unwrap().1.len()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let disk = self.0.lock().unwrap();
        let found = disk.0.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Operation::SetLength(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Operation::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Operation::Write(offset as usize, data.to_owned()));
        Ok(())
    }
}

impl Disk {
    fn note(&self, operation: Operation) {
        let mut disk = self.0.lock().unwrap();
        apply(&mut disk.0, &operation);
        disk.1.push(operation);
    }
}

fn apply(file: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, data) => {
            if file.len() < offset + data.len() {
                file.resize(offset + data.len(), 0);
            }
            file[*offset..offset + data.len()].copy_from_slice(data);
        }
        Operation::SetLength(length) => file.resize(*length, 0),
        Operation::Sync => {}
    }
}

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// What is in the file after a cut at this operation: all that was synced, and of the rest whatever the disk liked.
fn after_a_cut(operations: &[Operation], cut: usize, random: &mut Random) -> Vec<u8> {
    let done = &operations[..cut];
    let synced = done.iter().rposition(|o| matches!(o, Operation::Sync)).map_or(0, |i| i + 1);
    let mut file = Vec::new();
    done[..synced].iter().for_each(|operation| apply(&mut file, operation));
    // It kept nothing, or all, or some.
    let kept = random.below(4);
    for operation in &done[synced..] {
        match (operation, if kept < 2 { kept } else { random.below(3) }) {
            (_, 0) => {}
            (Operation::Write(offset, data), 2) => {
                for (i, sector) in data.chunks(SECTOR).enumerate() {
                    if random.below(2) == 0 {
                        let piece = Operation::Write(offset + i * SECTOR, sector.to_owned());
                        apply(&mut file, &piece);
                    }
                }
            }
            (operation, _) => apply(&mut file, operation),
        }
    }
    file
}

/// Writes as a group makes them: what each leaves is accepted, which the test holds against the rule as well.
struct Group {
    term: u64,
    /// Index and term of the snapshot, and the terms of the entries after it.
    base: (u64, u64),
    terms: Vec<u64>,
    commit: u64,
}

impl Group {
    fn new() -> (Self, Persist) {
        (Self { term: 1, base: (1, 1), terms: Vec::new(), commit: 1 }, first())
    }

    fn last(&self) -> u64 {
        self.base.0 + self.terms.len() as u64
    }

    fn term_at(&self, index: u64) -> u64 {
        match index - self.base.0 {
            0 => self.base.1,
            n => self.terms[n as usize - 1],
        }
    }

    fn next(&mut self, random: &mut Random) -> Persist {
        match random.below(10) {
            // A vote.
            0 => {
                self.term += 1;
                hard_state(self.term, random.below(4) as u64, self.commit)
            }
            // Our own snapshot.
            1 => {
                let index = self.commit;
                let term = self.term_at(index);
                self.terms.drain(..(index - self.base.0) as usize);
                self.base = (index, term);
                snapshot(index, term, Tail::Kept)
            }
            // The raft leader's.
            2 => {
                self.term += 1;
                let index = self.commit + 1 + random.below(8) as u64;
                (self.base, self.commit) = ((index, self.term), index);
                self.terms.clear();
                let mut write = snapshot(index, self.term, Tail::Dropped);
                write.hard_state = hard_state(self.term, 0, index).hard_state;
                write
            }
            3 => {
                Persist { decision: Some(vec![random.below(256) as u8; 40]), ..Persist::default() }
            }
            // Entries, in place of some that were not committed, and with what is committed by now.
            _ => {
                let open = self.last() - self.commit;
                let from = self.last() + 1 - random.below(open as usize + 1) as u64;
                if from <= self.last() {
                    self.term += 1;
                }
                self.terms.truncate((from - self.base.0 - 1) as usize);
                let mut write = Persist::default();
                for index in from..=from + random.below(3) as u64 {
                    write.entries.push(entry(self.term, index, random.below(3000)));
                    self.terms.push(self.term);
                }
                self.commit += random.below((self.last() - self.commit) as usize + 1) as u64;
                write.hard_state = hard_state(self.term, 1, self.commit).hard_state;
                write
            }
        }
    }
}

fn identity() -> Identity {
    Identity {
        mesh: "home".into(),
        location: "cloud".parse().unwrap(),
        node: "cloud-0".parse().unwrap(),
    }
}

fn read(database: &Database) -> Rows {
    tables::prepare(database, &identity()).unwrap().unwrap();
    tables::read(database).unwrap().unwrap_or_else(|why| panic!("{why:?}"))
}

/// Some transactions, with a daemon that stops and starts again between some of them. Gives the rows after each, and how many
/// operations had been done when it was acknowledged.
fn work(disk: &Disk, random: &mut Random) -> Vec<(Rows, usize)> {
    let location: LocationName = "cloud".parse().unwrap();
    let open = || Database::builder().create_with_backend(disk.clone()).unwrap();
    let mut database = open();
    let mut rows: Rows = BTreeMap::new();
    assert_eq!(read(&database), rows);
    let mut history = vec![(rows.clone(), disk.operations())];
    let (mut group, first) = Group::new();
    let mut next = Some(first);
    for _ in 0..12 {
        let mut writes = Persist::default();
        for _ in 0..1 + random.below(4) {
            let write = next.take().unwrap_or_else(|| group.next(random));
            let stored: &mut StoredGroup = rows.entry(location.clone()).or_default();
            stored.write(&write);
            stored.check(&location).expect("the rule accepts what the group makes");
            writes.then(write);
        }
        tables::write(&database, &[(location.clone(), writes)].into()).unwrap();
        history.push((rows.clone(), disk.operations()));
        if random.below(4) == 0 {
            drop(database);
            database = open();
            assert_eq!(read(&database), rows, "what redb holds is what the rule says");
        }
    }
    history
}

fn in_memory(file: &[u8]) -> Database {
    let memory = InMemoryBackend::new();
    memory.set_len(file.len() as u64).and_then(|()| memory.write(0, file)).unwrap();
    let mut database = Database::builder().create_with_backend(memory).unwrap();
    database.check_integrity().unwrap();
    database
}

#[test]
fn writes_that_wait_together_leave_what_they_leave_one_by_one() {
    for seed in 1..=300 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let (mut group, first) = Group::new();
        let mut one_by_one = StoredGroup::default();
        one_by_one.write(&first);
        let mut together = one_by_one.clone();
        for _ in 0..20 {
            let mut all = Persist::default();
            for _ in 0..1 + random.below(12) {
                let write = group.next(&mut random);
                one_by_one.write(&write);
                all.then(write);
            }
            together.write(&all);
            assert_eq!(together, one_by_one, "seed {seed}: {all:?}");
            // It does the same when it is done again, as after a failure of which nobody knows what it left.
            together.write(&all);
            assert_eq!(together, one_by_one, "seed {seed}, again: {all:?}");
        }
    }
}

#[test]
fn a_power_cut_between_any_two_operations_loses_nothing_that_was_acknowledged() {
    let (mut cuts, mut between) = (0, 0);
    for seed in 1..=12 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let disk = Disk::default();
        let history = work(&disk, &mut random);
        let operations = disk.0.lock().unwrap().1.clone();
        // Before the first: a new store has another name until it is whole.
        for cut in history[0].1..=operations.len() {
            if random.below(2) != 0 {
                continue;
            }
            let file = after_a_cut(&operations, cut, &mut random);
            let found = read(&in_memory(&file));
            let acknowledged = history.iter().rposition(|(_, end)| *end <= cut).unwrap();
            let possible = &history[acknowledged..(acknowledged + 2).min(history.len())];
            let which = possible.iter().position(|(rows, _)| *rows == found);
            assert!(
                which.is_some(),
                "seed {seed}, cut at operation {cut} of {}, {acknowledged} transactions acknowledged: {found:?}",
                operations.len()
            );
            between += usize::from(which == Some(1));
            cuts += 1;
        }
    }
    // Some cuts must fall between the last sync and the acknowledgement, or nothing was tried.
    assert!(
        cuts > 400 && between > 20,
        "{cuts} cuts, {between} of them in a transaction that is there all the same"
    );
}
