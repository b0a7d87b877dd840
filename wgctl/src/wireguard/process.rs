//! One process for each userspace interface, in a session of its own, so that forwarding outlives whoever started it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{ForkResult, fork, setsid};
use wgctl_plan::InterfaceName;

use super::choice::{BACKEND_VARIABLE, Program};
use super::uapi;

/// How long a started process may take to answer. It needs some 10 ms on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(5);

/// What a process that does not start may say about it, in bytes.
const MAX_WORDS: usize = 4096;

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
        "the kernel has no WireGuard module, there is no wireguard-go in PATH, and no leaderd beside this program or in PATH: \
         install one of them"
    )]
    Program,
    #[error(
        "{BACKEND_VARIABLE}=kernel, but the kernel has no WireGuard module: `modprobe wireguard`"
    )]
    Module,
    #[error(
        "{BACKEND_VARIABLE}={0}, but there is no {0} in PATH: `apt install {0}`, or leave the choice open"
    )]
    Asked(&'static str),
    #[error("{BACKEND_VARIABLE}={0} is nobody who does WireGuard: kernel, wireguard-go or leaderd")]
    Choice(String),
}

/// What all userspace WireGuard needs and this node has not.
pub fn missing_for_userspace() -> Option<Missing> {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => None,
        Err(e) => Some(Missing::Tun(e.to_string())),
    }
}

/// Adopts the process that serves the interface, else starts one and waits for its socket.
pub(super) fn start(name: &InterfaceName, program: Program) -> io::Result<()> {
    if uapi::connect(name)?.is_some() {
        return Ok(());
    }
    let unavailable =
        |missing: Missing| io::Error::new(io::ErrorKind::Unsupported, missing.to_string());
    let file = program.find().ok_or_else(|| unavailable(Missing::Asked(program.name())))?;
    if let Some(missing) = missing_for_userspace() {
        return Err(unavailable(missing));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(uapi::DIRECTORY)?;
    let mut command = Command::new(file);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let words = match program {
        Program::WireguardGo => {
            command.arg(name.as_str()).stderr(Stdio::null());
            // SAFETY: setsid is async-signal-safe and allocates nothing.
            unsafe { command.pre_exec(|| setsid().map(drop).map_err(io::Error::from)) };
            // The program itself goes to the background: what we wait for is its short-lived first half.
            let status = command.status()?;
            if !status.success() {
                let why = format!("{} {name} failed to start ({status})", program.name());
                return Err(io::Error::other(why));
            }
            None
        }
        Program::Leaderd => {
            command.args(["userspace", name.as_str(), "--background"]).stderr(Stdio::piped());
            // Nobody waits for a grandchild but init: it leaves no zombie with a daemon that runs for months.
            // SAFETY: setsid, fork and _exit are async-signal-safe and allocate nothing.
            unsafe {
                command.pre_exec(|| {
                    setsid()?;
                    match fork()? {
                        ForkResult::Parent { .. } => nix::libc::_exit(0),
                        ForkResult::Child => Ok(()),
                    }
                });
            }
            let mut child = command.spawn()?;
            let words = child.stderr.take();
            child.wait()?;
            words.map(Words::new).transpose()?
        }
    };
    wait_for_socket(name, program, words)
}

fn wait_for_socket(
    name: &InterfaceName,
    program: Program,
    mut words: Option<Words>,
) -> io::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while uapi::connect(name)?.is_none() {
        let ended = words.as_mut().is_some_and(Words::ended);
        // It closes its standard error when it serves, too: its socket is there then.
        if ended && uapi::connect(name)?.is_none() {
            let said = words.map(Words::text).unwrap_or_default();
            return Err(io::Error::other(format!(
                "{} userspace {name} failed: {said}",
                program.name()
            )));
        }
        if Instant::now() > deadline {
            let why = format!("{} for {name} opened no socket", program.name());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(START_POLL);
    }
    Ok(())
}

/// What a process says on standard error while it starts.
struct Words {
    from: ChildStderr,
    said: Vec<u8>,
}

impl Words {
    fn new(from: ChildStderr) -> io::Result<Self> {
        fcntl(from.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { from, said: Vec::new() })
    }

    /// Takes what there is; true once there will be no more.
    fn ended(&mut self) -> bool {
        let mut bytes = [0; 512];
        loop {
            match self.from.read(&mut bytes) {
                Ok(0) => return true,
                Ok(n) if self.said.len() < MAX_WORDS => self.said.extend(&bytes[..n]),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// The last line: the error, after what was logged.
    fn text(self) -> String {
        let text = String::from_utf8_lossy(&self.said).into_owned();
        text.trim_end().lines().last().unwrap_or("it said nothing").to_owned()
    }
}
