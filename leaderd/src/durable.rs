//! Files that survive a power cut whole: either the new content or the old one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces the file with these bytes, readable by its owner only.
///
/// # Errors
/// Of the file system; the old file is then in place.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // A file left by an earlier try may have other permissions.
    remove(beside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(beside, path)
}

/// Gives a file that is written and synced its final name, durably.
///
/// # Errors
/// Of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory_of(to)
}

/// Removes a file. Returns true if there was one.
///
/// # Errors
/// Of the file system, but for a missing file.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Syncs the directory of a file: until then a power cut may undo its new name.
///
/// # Errors
/// Of the file system.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// True if the disk takes no writes now and may later: it is full, or has gone read-only. It is no mistake of the operator.
pub fn is_disk_trouble(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
    ) || error.raw_os_error() == Some(nix::libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_even_if_an_earlier_try_left_a_half_written_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view.json");
        let left = dir.path().join("view.json.new");
        fs::write(&left, "half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        for text in ["first", "second"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!left.exists());
        }
    }
}
