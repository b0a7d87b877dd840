//! The addresses that were last in use, cached on disk. No caller waits for that disk.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use super::Resolved;
use crate::durable;

const FILE: &str = "endpoints.json";

/// Longest file, in bytes: a mesh has 4,094 nodes at most, and a DNS name 253 letters.
const MAX_FILE: u64 = 2 << 20;

pub(super) struct AddressCache {
    path: PathBuf,
    on_disk: Resolved,
    /// What belongs on disk, if that is something else.
    wanted: Option<Resolved>,
    writing: Option<(Resolved, JoinHandle<io::Result<()>>)>,
}

impl AddressCache {
    pub fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let on_disk = read(&path).unwrap_or_else(|error| {
            tracing::warn!(file = %path.display(), %error, "the cached addresses of endpoints cannot be read");
            Resolved::new()
        });
        Self { path, on_disk, wanted: None, writing: None }
    }

    pub fn address(&self, name: &str) -> Option<IpAddr> {
        self.on_disk.get(name).copied()
    }

    /// Has these addresses written. A disk that hangs holds up no caller; the newest addresses are written once it answers.
    pub fn store(&mut self, addresses: Resolved) {
        self.wanted = Some(addresses);
        self.begin();
    }

    fn begin(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let Some(wanted) = self.wanted.take().filter(|w| *w != self.on_disk) else { return };
        let (path, addresses) = (self.path.clone(), wanted.clone());
        let task = tokio::task::spawn_blocking(move || {
            durable::replace(&path, &serde_json::to_vec(&addresses)?)
        });
        self.writing = Some((wanted, task));
    }

    /// Waits until a write is done; never if none is under way. Cancel-safe.
    pub async fn written(&mut self) {
        let Some((_, task)) = &mut self.writing else { return std::future::pending().await };
        let done = task.await.map_err(io::Error::other).and_then(|done| done);
        let Some((addresses, _)) = self.writing.take() else { return };
        match done {
            Ok(()) => self.on_disk = addresses,
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "cannot cache the addresses of endpoints");
            }
        }
        self.begin();
    }
}

fn read(path: &Path) -> io::Result<Resolved> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Resolved::new()),
        opened => opened?.take(MAX_FILE).read_to_end(&mut bytes)?,
    };
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}
