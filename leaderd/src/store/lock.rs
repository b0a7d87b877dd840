//! The lock of a state directory, with the pid of the daemon that has it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

const LOCK: &str = "lock";

/// Locks the directory, so that one state has one daemon.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let failed = |source| StoreError::Directory { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let path = dir.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    // On a disk that has gone read-only the file can still be locked.
    let file = file.or_else(|error| File::open(&path).map_err(|_| error)).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let written = lock
                .set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| writeln!(lock, "{}", std::process::id()));
            if let Err(error) = written {
                // The lock works without the pid (full disk); only the message to a second daemon lacks it.
                tracing::warn!(%error, "cannot write our pid to the state's lock");
            }
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let pid =
                if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            Err(StoreError::Locked { path: dir.to_owned(), pid })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}
