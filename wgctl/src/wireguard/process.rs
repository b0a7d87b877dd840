//! One process for each userspace interface, in a session of its own, so that forwarding outlives the program that started it.

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

use super::uapi;
use super::{BACKEND_VARIABLE, Program};

/// How long a started process may take to answer. It needs some 10 ms on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(5);

/// Bytes kept of what a starting process writes to standard error.
const MAX_STARTUP_OUTPUT: usize = 4096;

/// WireGuard is not available. The message says what is missing and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
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
    AnyProgram,
    #[error(
        "{BACKEND_VARIABLE}=kernel, but the kernel has no WireGuard module: `modprobe wireguard`"
    )]
    Module,
    #[error(
        "{BACKEND_VARIABLE}={0}, but there is no {0} in PATH: `apt install {0}`, or leave the choice open"
    )]
    Requested(&'static str),
    #[error("{BACKEND_VARIABLE}={0} is no WireGuard backend: use kernel, wireguard-go or leaderd")]
    UnknownBackend(String),
}

/// Returns what userspace WireGuard needs and this node does not have.
pub fn unavailable_userspace() -> Option<Unavailable> {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => None,
        Err(e) => Some(Unavailable::Tun(e.to_string())),
    }
}

/// Adopts the process that serves the interface, or starts one and waits for its socket.
pub(super) fn start(name: &InterfaceName, program: Program) -> io::Result<()> {
    if uapi::connect(name)?.is_some() {
        return Ok(());
    }
    let unavailable =
        |missing: Unavailable| io::Error::new(io::ErrorKind::Unsupported, missing.to_string());
    let file = program.find().ok_or_else(|| unavailable(Unavailable::Requested(program.name())))?;
    if let Some(missing) = unavailable_userspace() {
        return Err(unavailable(missing));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(uapi::DIRECTORY)?;
    let mut command = Command::new(file);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let output = match program {
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
            // A grandchild is reaped by init, so it leaves no zombie with a daemon that runs for months.
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
            let output = child.stderr.take();
            child.wait()?;
            output.map(StartupOutput::new).transpose()?
        }
    };
    wait_for_socket(name, program, output)
}

fn wait_for_socket(
    name: &InterfaceName,
    program: Program,
    mut output: Option<StartupOutput>,
) -> io::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while uapi::connect(name)?.is_none() {
        let ended = output.as_mut().is_some_and(StartupOutput::has_ended);
        // It also closes standard error when it serves: then its socket is there.
        if ended && uapi::connect(name)?.is_none() {
            let said = output.map(StartupOutput::last_line).unwrap_or_default();
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

/// What a process writes to standard error while it starts.
struct StartupOutput {
    from: ChildStderr,
    bytes: Vec<u8>,
}

impl StartupOutput {
    fn new(from: ChildStderr) -> io::Result<Self> {
        fcntl(from.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { from, bytes: Vec::new() })
    }

    /// Reads what there is; true once it is closed.
    fn has_ended(&mut self) -> bool {
        let mut chunk = [0; 512];
        loop {
            match self.from.read(&mut chunk) {
                Ok(0) => return true,
                Ok(n) if self.bytes.len() < MAX_STARTUP_OUTPUT => self.bytes.extend(&chunk[..n]),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Returns the last line: the error, after what was logged.
    fn last_line(self) -> String {
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        text.trim_end().lines().last().unwrap_or("it printed nothing").to_owned()
    }
}
