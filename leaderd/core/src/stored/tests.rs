//! What writes leave, and what is refused.

use super::*;
use raft::eraftpb::ConfState;

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn bytes(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap()
}

fn snapshot(index: u64, term: u64, tail: Tail) -> Persist {
    let state = LocationState::new(cloud());
    let mut snapshot = Snapshot { data: state.encode().into(), ..Snapshot::default() };
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    let voters = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    snapshot.mut_metadata().set_conf_state(voters);
    let write = SnapshotWrite { index, bytes: bytes(&snapshot), tail };
    Persist { snapshot: Some(write), ..Persist::default() }
}

/// (index, term) each.
fn entries(all: &[(u64, u64)]) -> Persist {
    let entry = |&(index, term)| (index, bytes(&Entry { index, term, ..Entry::default() }));
    Persist { entries: all.iter().map(entry).collect(), ..Persist::default() }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> Persist {
    let hard_state = HardState { term, vote, commit, ..HardState::default() };
    Persist { hard_state: Some(bytes(&hard_state)), ..Persist::default() }
}

fn after(writes: &[Persist]) -> StoredGroup {
    let mut stored = StoredGroup::default();
    writes.iter().for_each(|write| stored.write(write));
    stored
}

/// (index, term) of the snapshot and of what follows it.
fn log(writes: &[Persist]) -> Result<Vec<(u64, u64)>, StoredError> {
    let log = after(writes).read(&cloud())?.expect("something was written");
    let meta = log.snapshot.get_metadata();
    let entries = log.entries.iter().map(|e| (e.index, e.term));
    Ok(std::iter::once((meta.index, meta.term)).chain(entries).collect())
}

fn first() -> Persist {
    snapshot(1, 1, Tail::Dropped)
}

#[test]
fn entries_replace_those_from_their_first_index_on() {
    let written = log(&[first(), entries(&[(2, 1), (3, 1), (4, 1)]), entries(&[(3, 2)])]);
    assert_eq!(written.unwrap(), [(1, 1), (2, 1), (3, 2)]);
}

#[test]
fn a_snapshot_of_ones_own_keeps_the_tail_and_one_from_the_raft_leader_drops_it() {
    let before = [first(), entries(&[(2, 2), (3, 2), (4, 2)])];
    let with = |write: Persist| log(&[&before[..], &[write]].concat()).unwrap();
    assert_eq!(with(snapshot(3, 2, Tail::Kept)), [(3, 2), (4, 2)]);
    assert_eq!(with(snapshot(3, 2, Tail::Dropped)), [(3, 2)]);
    // One write may bring the snapshot and what follows it.
    let mut both = snapshot(2, 3, Tail::Dropped);
    both.entries = entries(&[(3, 3)]).entries;
    assert_eq!(with(both), [(2, 3), (3, 3)]);
}

#[test]
fn a_decision_alone_is_no_log() {
    let decision = Persist { decision: Some(vec![1]), ..Persist::default() };
    let stored = after(&[decision]);
    assert!(!stored.has_log());
    assert!(stored.read(&cloud()).unwrap().is_none());
}

#[test]
fn a_log_without_its_beginning_is_refused() {
    for write in [entries(&[(2, 1)]), hard_state(1, 0, 0)] {
        assert_eq!(log(&[write]).unwrap_err(), StoredError::NoSnapshot);
    }
}

#[test]
fn a_gap_a_falling_term_and_a_hard_state_that_does_not_fit_are_refused() {
    let refused = |writes: &[Persist]| log(&[&[first()], writes].concat()).unwrap_err();
    assert_eq!(refused(&[entries(&[(3, 1)])]), StoredError::Gap { found: 3, expected: 2 });
    assert_eq!(
        refused(&[entries(&[(2, 3), (3, 2)])]),
        StoredError::TermFalls { index: 3, before: 3, term: 2 }
    );
    let written = entries(&[(2, 4)]);
    assert_eq!(
        refused(&[written.clone(), hard_state(4, 1, 3)]),
        StoredError::CommitBeyondLog { commit: 3, last: 2 }
    );
    assert_eq!(
        refused(&[written.clone(), hard_state(3, 1, 2)]),
        StoredError::OldTerm { term: 3, last: 4 }
    );
    for (term, vote) in [(u64::MAX, 1), (4, MAX_NUMBER)] {
        assert_eq!(refused(&[written.clone(), hard_state(term, vote, 2)]), StoredError::OutOfRange);
    }
    assert!(log(&[first(), written, hard_state(4, 1, 2)]).is_ok());
    assert_eq!(refused(&[entries(&[(2, u64::MAX)])]), StoredError::OutOfRange);
}

#[test]
fn rows_of_another_kind_index_or_location_are_refused() {
    let mut stored = after(&[first()]);
    let other = "home".parse().unwrap();
    assert_eq!(stored.check(&other).unwrap_err(), StoredError::WrongLocation(cloud()));
    stored.snapshot.as_mut().unwrap().0 = 2;
    assert_eq!(stored.check(&cloud()), Err(StoredError::SnapshotIndex { index: 2, says: 1 }));
    stored.snapshot = Some((1, vec![0xff; 5]));
    assert_eq!(stored.check(&cloud()), Err(StoredError::Undecodable("snapshot")));
    let mut stored = after(&[first(), entries(&[(2, 1)])]);
    stored.entries.insert(2, bytes(&Entry { index: 7, term: 1, ..Entry::default() }));
    assert_eq!(stored.check(&cloud()), Err(StoredError::Gap { found: 7, expected: 2 }));
}

/// As earlier daemons left it: the snapshot came from the raft leader, and the tail stayed on disk.
#[test]
fn a_tail_that_is_older_than_its_snapshot_is_left_out() {
    let stale = [first(), entries(&[(2, 1), (3, 2), (4, 2), (5, 9)]), snapshot(3, 5, Tail::Kept)];
    assert_eq!(log(&stale).unwrap(), [(3, 5)]);
    // What is committed must be there all the same.
    let committed = log(&[&stale[..], &[hard_state(5, 1, 4)]].concat());
    assert_eq!(committed.unwrap_err(), StoredError::CommitBeyondLog { commit: 4, last: 3 });
    // The next entries take its place.
    assert_eq!(log(&[&stale[..], &[entries(&[(4, 6)])]].concat()).unwrap(), [(3, 5), (4, 6)]);
}
