//! Recordings: all inputs of the core with the effects that came of them, in a file that `leaderd replay` runs again.
//!
//! A file is one line of text with the format's version, then a gzip stream of records: each a little-endian `u32`
//! length and that many bytes of postcard. First a [`Header`], all that the node was made from; then [`Record`]s, one for
//! each input with the effects that came of it; last [`Record::Ended`], missing where the daemon was killed.
//!
//! **No secret is in it.** The only secrets that the core holds are the keys of the probes, and all that it does with them
//! is sign and verify. So the tag of each packet is taken out, and what is kept instead is whether it was right
//! (`docs/decisions/0005`).

mod builder;
mod read;
mod write;

use std::collections::BTreeMap;
use std::net::IpAddr;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Effect, Input, StoredGroup};
use leaderd_core::mesh::Mesh;
use leaderd_core::time::Now;
use serde::{Deserialize, Serialize};

pub use builder::RecordBuilder;
pub use read::{ReadError, Reader, Records, Tail};
pub use write::{FileWriter, Recorder};

/// Version of the format. Postcard names no fields: raise it with every change of what a record holds, which is all of
/// `leaderd_core::io`, and make the fixtures again (`make recording`).
pub const VERSION: u32 = 5;

/// What a recording begins with; the version and a newline follow.
const MAGIC: &str = "leaderd recording ";

/// Longest record, in bytes: a network of 4,094 nodes, or a store with its snapshot, is some MiB.
const MAX_RECORD: u32 = 64 << 20;

/// All that the node was made from except its keys.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of the leaderd that recorded.
    pub leaderd: String,
    pub mesh: Mesh,
    pub me: NodeName,
    /// What the store held.
    pub restored: BTreeMap<LocationName, StoredGroup>,
    pub seed: u64,
    /// DNS names of endpoints.
    pub resolved: BTreeMap<String, IpAddr>,
    pub now: Now,
}

/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// What the node wanted done before its first input.
    Started { effects: Vec<Effect> },
    /// An input, and all effects that came of it, in order.
    Input { now: Now, input: Box<Input>, effects: Vec<Effect> },
    /// Nothing was recorded after this.
    Ended(Ended),
}

/// Why a recording ends.
///
/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The daemon was stopped.
    Stopped,
    /// More waited for the disk than may: the rest is missing, and the daemon went on.
    DiskTooSlow,
    /// The file has the most bytes that it may have; the daemon went on.
    Full,
    /// The daemon panicked at the last input.
    Panicked,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "the daemon was stopped",
            Self::DiskTooSlow => "the disk was too slow, and the daemon went on without recording",
            Self::Panicked => "the daemon panicked at the last input",
            Self::Full => "the file was full, and the daemon went on without recording",
        })
    }
}
