//! Hardening of the process before it reads a key: memory that holds keys must not end up in a file.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Most bytes of a core dump: too few for any, so none is written. Not 0: where the system hands core dumps to a program
/// (`core_pattern` with a pipe), the kernel lets a limit of 0 pass and refuses 1 (fs/coredump.c).
pub const CORE_LIMIT: u64 = 1;

/// Switches core dumps off, of this process and of the WireGuard processes that it starts, which hold the key as well.
///
/// The process also stops being dumpable (prctl(2)): another process of the same user can neither attach to it nor read
/// its memory. One with CAP_SYS_PTRACE still can, so that `perf` and a debugger work as root. Being dumpable comes back with
/// `exec`, the limit stays.
///
/// # Errors
/// If one of the two system calls fails, which should never happen.
pub fn no_core_dumps() -> anyhow::Result<()> {
    use anyhow::Context;
    setrlimit(Resource::RLIMIT_CORE, CORE_LIMIT, CORE_LIMIT)
        .or_else(|error| match error {
            // The limit is lower already, and only a privileged process may raise it.
            nix::errno::Errno::EPERM => Ok(()),
            other => Err(other),
        })
        .context("cannot limit core dumps")?;
    prctl::set_dumpable(false).context("cannot switch core dumps off")
}

/// Keeps other users from reading and others from writing the files that this process makes. Never widens the mask that it was started with.
pub fn narrow_umask() {
    use nix::sys::stat::{Mode, umask};
    let others = Mode::S_IRWXO | Mode::S_IWGRP;
    let before = umask(others);
    umask(before | others);
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn neither_this_process_nor_what_it_starts_can_dump_core() {
        no_core_dumps().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        assert!(soft <= CORE_LIMIT && hard <= CORE_LIMIT);
        let child = std::process::Command::new("cat").arg("/proc/self/limits").output().unwrap();
        let limits = String::from_utf8(child.stdout).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
        let fields: Vec<&str> = core.split_ascii_whitespace().collect();
        assert!(fields[4..6].iter().all(|f| ["0", "1"].contains(f)), "{core}");
    }
}
