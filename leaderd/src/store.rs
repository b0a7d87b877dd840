//! What must survive a crash: per location the Raft hard state, log and snapshot, in a redb file.
//!
//! One thread owns the file. It takes every write that waits, puts all of them into one transaction, syncs, and answers
//! with the last ticket. A write that fails (full disk) is tried again until it succeeds: nothing is acknowledged before it is on
//! disk, and the daemon goes on forwarding meanwhile. The directory is locked, so that two daemons never share it.

mod file;
mod lock;
#[cfg(test)]
mod power;
#[cfg(test)]
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

pub use file::{Identity, StoreError, reset};
pub use writer::{Store, Writer};
