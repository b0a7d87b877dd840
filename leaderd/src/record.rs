//! Recording what the core was told, to be run again: a file of records, each a little-endian `u32` length and that
//! many bytes of postcard. The first record is a [`Header`], all others are `(Now, Input)`. No keys are in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Input, Restored};
use leaderd_core::mesh::Mesh;
use leaderd_core::time::Now;
use serde::{Deserialize, Serialize};

/// Version of the format.
pub const VERSION: u32 = 1;

/// Records that wait for the disk. A recording with a hole is worth nothing, so when full it ends.
const MAX_WAITING: usize = 8192;

/// What the node was made from, but for its keys.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
    pub mesh: Mesh,
    pub me: NodeName,
    pub restored: BTreeMap<LocationName, Restored>,
    pub seed: u64,
    pub resolved: BTreeMap<String, IpAddr>,
    pub lan_device: Option<String>,
    pub now: Now,
}

#[derive(Debug)]
pub struct Recorder {
    records: Option<SyncSender<Vec<u8>>>,
}

impl Recorder {
    /// Makes the file and starts the thread that writes it.
    pub fn create(path: &Path, header: &Header) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        write(&mut file, &postcard::to_stdvec(header).map_err(std::io::Error::other)?)?;
        let (tx, rx) = sync_channel(MAX_WAITING);
        std::thread::Builder::new().name("record".into()).spawn(move || run(file, &rx))?;
        Ok(Self { records: Some(tx) })
    }

    pub fn record(&mut self, now: Now, input: &Input) {
        let Some(records) = &self.records else { return };
        let Ok(bytes) = postcard::to_stdvec(&(now, input)) else { return };
        if records.try_send(bytes).is_err() {
            tracing::error!("the recording ends here: its disk is too slow or full");
            self.records = None;
        }
    }
}

fn run(mut file: BufWriter<File>, records: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = records.recv() {
        let mut written = write(&mut file, &bytes);
        for bytes in records.try_iter() {
            written = written.and_then(|()| write(&mut file, &bytes));
        }
        if let Err(error) = written.and_then(|()| file.flush()) {
            tracing::error!(%error, "cannot write the recording");
            return;
        }
    }
}

fn write(file: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(bytes)
}
