//! Which messages may reach raft-rs. It panics on some that cannot come from a correct peer (a commit index beyond its
//! log, terms that do not fit, configurations that make no sense), so each is checked first; nothing is caught later.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use raft::{Raft, StateRole, Storage};

use super::raft_bytes;
use super::raft_node::{MAX_VOTERS, is_ours};
use super::storage::unreadable;
use crate::capability::Unreadable;
use crate::state::{Command, LocationState, MAX_COMMAND};
use crate::stored::MAX_NUMBER;

/// No correct peer is this far ahead of a voter. Without a limit one message could use up all terms and indexes.
const MAX_JUMP: u64 = 1 << 40;
/// Most entries in one message.
const MAX_ENTRIES: usize = 4096;

/// Why a voter that is too old for its group takes nothing from the raft leader.
const NEWER_ENTRY: &str = "an entry that only a newer leaderd can read";
const NEWER_SNAPSHOT: &str = "a snapshot that only a newer leaderd can read";

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Checked {
    Step(Box<Message>),
    /// A heartbeat that believes we have entries that we lack (our disk was lost): step it with a commit that we can
    /// follow, and reply with the real length of our log.
    StepAndReject(Box<Message>, Box<Message>),
    Ignore(&'static str),
}

/// Parses and checks the bytes of a message that `from` (its raft id) sent to us.
pub(super) fn check<S: Storage>(
    raft: &Raft<S>,
    from: u64,
    bytes: &[u8],
    state: &LocationState,
) -> Checked {
    if !raft_bytes::are_plausible(bytes, MAX_ENTRIES) {
        return Checked::Ignore("malformed");
    }
    let Ok(mut m) = Message::parse_from_bytes(bytes) else { return Checked::Ignore("malformed") };
    if m.from != from || m.to != raft.id {
        return Checked::Ignore("wrong sender");
    }
    let last = raft.raft_log.last_index();
    let numbers = [m.index, m.commit, m.log_term, m.commit_term, m.reject_hint];
    let far = m.term.saturating_sub(raft.term) > MAX_JUMP;
    if m.term == 0 || far || m.term >= MAX_NUMBER || numbers.iter().any(|n| *n >= MAX_NUMBER) {
        return Checked::Ignore("number out of range");
    }
    if m.request_snapshot != 0 || m.entries.len() > MAX_ENTRIES {
        return Checked::Ignore("number out of range");
    }
    match m.get_msg_type() {
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
            if m.term == raft.term && raft.state == StateRole::Leader =>
        {
            return Checked::Ignore("two raft leaders in a term");
        }
        MessageType::MsgAppend => {
            // Beyond its log raft-rs knows 'term 0', which would match.
            if (m.index == 0) != (m.log_term == 0) {
                return Checked::Ignore("number out of range");
            }
            if m.entries.iter().any(|e| e.data.len() > MAX_COMMAND) {
                return Checked::Ignore("an entry that is too long");
            }
            if !contiguous(&m.entries, m.index, m.log_term, m.term) {
                return Checked::Ignore("bad entries");
            }
            // What is not acknowledged is not committed but by a majority of others, who can read it.
            match m.entries.iter().find_map(unreadable) {
                Some(Unreadable::Newer) => return Checked::Ignore(NEWER_ENTRY),
                Some(Unreadable::Malformed) => return Checked::Ignore("bad entries"),
                None if m.entries.iter().any(makes_no_sense) => {
                    return Checked::Ignore("entries that make no sense");
                }
                None => {}
            }
        }
        MessageType::MsgSnapshot => {
            let meta = m.get_snapshot().get_metadata();
            let numbers =
                meta.index > 0 && meta.index < MAX_NUMBER && meta.term > 0 && meta.term <= m.term;
            let numbers = numbers && meta.index.saturating_sub(last) <= MAX_JUMP;
            if !numbers || !sound(meta.get_conf_state()) {
                return Checked::Ignore("bad snapshot");
            }
            match LocationState::decode(&m.get_snapshot().data) {
                Ok(new) if new.location == state.location && new.check().is_ok() => {}
                Err(Unreadable::Newer) => return Checked::Ignore(NEWER_SNAPSHOT),
                _ => return Checked::Ignore("bad snapshot"),
            }
        }
        MessageType::MsgHeartbeat => {
            m.context.clear();
            if m.commit > last && m.term >= raft.term {
                let mut reply = Message::default();
                reply.set_msg_type(MessageType::MsgAppendResponse);
                reply.from = raft.id;
                reply.to = m.from;
                reply.term = m.term;
                reply.index = m.commit;
                reply.reject = true;
                reply.reject_hint = last;
                reply.log_term = raft.raft_log.last_term();
                reply.commit = raft.raft_log.committed;
                m.commit = raft.raft_log.committed;
                return Checked::StepAndReject(Box::new(m), Box::new(reply));
            }
        }
        MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
            m.context.clear();
            let beyond = m.index > last && !m.reject || m.commit > last;
            if m.term == raft.term && raft.state == StateRole::Leader && beyond {
                return Checked::Ignore("answer about entries that we never sent");
            }
        }
        MessageType::MsgTimeoutNow if m.term != raft.term || raft.leader_id != m.from => {
            return Checked::Ignore("not from the raft leader");
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            if m.log_term > m.term {
                return Checked::Ignore("number out of range");
            }
        }
        MessageType::MsgTimeoutNow
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse => {}
        // Local to a node, or forwarding that we do not use.
        _ => return Checked::Ignore("kind of message"),
    }
    Checked::Step(Box::new(m))
}

/// A command with values that our own never have.
fn makes_no_sense(entry: &Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal
        && Command::decode(&entry.data).is_ok_and(|command| command.check().is_err())
}

fn contiguous(entries: &[Entry], prev_index: u64, prev_term: u64, term: u64) -> bool {
    let mut before = (prev_index, prev_term);
    prev_term <= term
        && entries.iter().all(|e| {
            let fits =
                e.index == before.0 + 1 && e.term >= before.1 && e.term <= term && e.term > 0;
            before = (e.index, e.term);
            let known = match e.get_entry_type() {
                EntryType::EntryNormal => true,
                EntryType::EntryConfChange => false,
                EntryType::EntryConfChangeV2 => is_ours(&e.data),
            };
            fits && known
        })
}

/// Voters only, each once, and never one that ends by itself: what our own configuration changes make.
fn sound(conf: &ConfState) -> bool {
    let distinct = |ids: &[u64]| {
        let set: std::collections::BTreeSet<_> = ids.iter().collect();
        set.len() == ids.len() && !set.contains(&0)
    };
    !conf.voters.is_empty()
        && conf.voters.len() <= MAX_VOTERS
        && conf.voters_outgoing.len() <= MAX_VOTERS
        && !conf.auto_leave
        && conf.learners.is_empty()
        && conf.learners_next.is_empty()
        && distinct(&conf.voters)
        && distinct(&conf.voters_outgoing)
}
