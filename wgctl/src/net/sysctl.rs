//! Sysctls as files below `/proc/sys`.

use std::io;
use std::path::{Component, Path, PathBuf};

fn file(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(Path::new("/proc/sys").join(relative))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is no path below /proc/sys"),
        ))
    }
}

pub fn read(path: &str) -> io::Result<String> {
    std::fs::read_to_string(file(path)?).map(|value| value.trim_end().to_owned())
}

pub fn write(path: &str, value: &str) -> io::Result<()> {
    std::fs::write(file(path)?, value)
}
