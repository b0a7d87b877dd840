//! One `wireguard-go` for each interface, in a session of its own, so that forwarding outlives whoever started it.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wgctl_plan::InterfaceName;

use super::uapi;

const PROGRAM: &str = "wireguard-go";

/// How long a started process may take to answer. It needs some 10 ms on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(5);

/// Something that WireGuard needs is not there. Says what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "no permission to change the network (CAP_NET_ADMIN): run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN"
    )]
    Privilege,
    #[error(
        "/dev/net/tun cannot be opened ({0}): load it with `modprobe tun`, or pass the device into the container"
    )]
    Tun(String),
    #[error(
        "the kernel has no WireGuard module and there is no {PROGRAM} in PATH: install the module, or `apt install wireguard-go`"
    )]
    Program,
}

fn program() -> Option<PathBuf> {
    let path =
        std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin"));
    std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|file| file.is_file())
}

/// The first thing that userspace WireGuard lacks on this node.
pub fn missing_for_userspace() -> Option<Missing> {
    if program().is_none() {
        return Some(Missing::Program);
    }
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => None,
        Err(e) => Some(Missing::Tun(e.to_string())),
    }
}

/// Adopts the process that serves the interface, else starts one and waits for its socket.
pub(super) fn start(name: &InterfaceName) -> io::Result<()> {
    if uapi::connect(name)?.is_some() {
        return Ok(());
    }
    let unavailable =
        |missing: Missing| io::Error::new(io::ErrorKind::Unsupported, missing.to_string());
    let program = program().ok_or_else(|| unavailable(Missing::Program))?;
    if let Some(missing) = missing_for_userspace() {
        return Err(unavailable(missing));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(uapi::DIRECTORY)?;
    let mut command = Command::new(program);
    command
        .arg(name.as_str())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    // The program itself goes to the background: what we wait for is its short-lived first half.
    let status = command.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("{PROGRAM} {name} failed to start ({status})")));
    }
    let deadline = Instant::now() + START_TIMEOUT;
    while uapi::connect(name)?.is_none() {
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{PROGRAM} {name} opened no socket"),
            ));
        }
        std::thread::sleep(START_POLL);
    }
    Ok(())
}
