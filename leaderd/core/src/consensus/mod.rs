//! A location's Raft log on one of its voters: raft-rs without its clock, its randomness and its disk.
//!
//! [`RaftNode`] takes messages, finished writes and time, and gives [`LogEvent`]s: what to send, what to write, what was
//! applied. It knows nothing of evidence: who should lead the location is decided in `election`.

mod check;
mod raft_bytes;
mod raft_node;
mod storage;

pub(crate) use raft_node::{EntryId, LogEvent, RaftNode, StartError};
