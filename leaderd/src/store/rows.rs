//! What Raft writes, made by hand for tests.

use leaderd_core::io::Persist;
use leaderd_core::state::LocationState;
use leaderd_core::stored::{SnapshotWrite, Tail};

/// Protobuf: numbers by field.
fn numbers(fields: &[(u8, u64)]) -> Vec<u8> {
    fields.iter().flat_map(|&(field, n)| [vec![field << 3], varint(n)].concat()).collect()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// Protobuf: a field of bytes.
fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(content.len() as u64), content].concat()
}

/// `Entry`, with this much data.
pub fn entry(term: u64, index: u64, data: usize) -> (u64, Vec<u8>) {
    (index, [numbers(&[(2, term), (3, index)]), bytes(4, &vec![7; data])].concat())
}

pub fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Persist {
    Persist { entries: range.map(|i| entry(term, i, 0)).collect(), ..Persist::default() }
}

/// `Snapshot` of location `cloud` with the voters 1, 2 and 3.
pub fn snapshot(index: u64, term: u64, tail: Tail) -> Persist {
    let state = LocationState::new("cloud".parse().expect("a name"));
    let data = state.encode();
    let conf = bytes(1, &numbers(&[(1, 1), (1, 2), (1, 3)]));
    let meta = [conf, numbers(&[(2, index), (3, term)])].concat();
    let write = SnapshotWrite { index, bytes: [bytes(1, &data), bytes(2, &meta)].concat(), tail };
    Persist { snapshot: Some(write), ..Persist::default() }
}

pub fn hard_state(term: u64, vote: u64, commit: u64) -> Persist {
    let hard_state = numbers(&[(1, term), (2, vote), (3, commit)]);
    Persist { hard_state: Some(hard_state), ..Persist::default() }
}

/// The first write of a group.
pub fn first() -> Persist {
    snapshot(1, 1, Tail::Dropped)
}
