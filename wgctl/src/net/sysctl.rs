//! Sysctls as files below `/proc/sys`, or below what `LEADERD_PROC_SYS` names.
//!
//! A container has `/proc/sys` read-only unless it is privileged, and its runtime refuses to mount anything inside `/proc`. The
//! host's `/proc/sys/net`, mounted elsewhere, stays writable: `LEADERD_PROC_SYS` is the directory that holds it as `net`.

use std::io;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/proc/sys";
const ROOT_VARIABLE: &str = "LEADERD_PROC_SYS";

fn root() -> PathBuf {
    std::env::var_os(ROOT_VARIABLE)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(ROOT), PathBuf::from)
}

fn file(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(root().join(relative))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no path of a sysctl")))
    }
}

pub fn read(path: &str) -> io::Result<String> {
    std::fs::read_to_string(file(path)?).map(|value| value.trim_end().to_owned())
}

pub fn write(path: &str, value: &str) -> io::Result<()> {
    std::fs::write(file(path)?, value)
}
