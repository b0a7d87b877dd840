//! The lab's own user, network, mount and PID namespaces.
//!
//! ```text
//! wgctl lab run        waits, cleans up
//!  └ keeper            unshared; dies with its parent
//!     └ lab (pid 1)    dies with the keeper; with it, by the kernel's rule for pid 1, everything in the lab
//! ```
//!
//! All files lie in a tmpfs of the lab's mount namespace. The host sees one directory with the control socket, and
//! the next start removes those whose lab is gone.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, geteuid, getppid, getuid};

/// Where a lab of a name has its control socket and, in its own mount namespace, its files.
#[derive(Debug, Clone)]
pub struct LabDir {
    path: PathBuf,
}

impl LabDir {
    /// `/tmp/leaderd-lab-UID`: not below `/run`, which is private to each node of a lab.
    fn base() -> PathBuf {
        PathBuf::from(format!("/tmp/leaderd-lab-{}", getuid()))
    }

    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// A tmpfs inside the lab, an empty directory outside.
    pub fn world(&self) -> PathBuf {
        self.path.join("w")
    }

    /// Creates the directory of a new lab, and removes what dead labs left.
    ///
    /// # Errors
    /// A lab of that name runs, or the directory is not safe.
    pub fn create(name: &str) -> Result<Self> {
        let base = Self::base();
        match fs::DirBuilder::new().mode(0o700).create(&base) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot create {}", base.display()));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(&base)
            .with_context(|| format!("cannot read {}", base.display()))?;
        if !meta.is_dir() || meta.uid() != getuid().as_raw() || meta.mode() & 0o022 != 0 {
            bail!(
                "{} is not a directory that belongs to this user and that no other user can write",
                base.display()
            );
        }
        for dir in Self::all()?.iter().filter(|d| !d.alive() && !d.starting()) {
            dir.remove_own();
        }
        let dir = Self { path: base.join(name) };
        fs::create_dir(&dir.path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("a lab named {name} is running; `wgctl lab down` stops it, --name gives this one another")
            }
            _ => anyhow::Error::new(e).context(format!("cannot create {}", dir.path.display())),
        })?;
        fs::create_dir(dir.world())?;
        fs::write(dir.path.join("pid"), std::process::id().to_string())?;
        Ok(dir)
    }

    /// Returns all lab directories of this user.
    pub fn all() -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(Self::base()) else { return Ok(Vec::new()) };
        let mut all: Vec<Self> =
            entries.filter_map(|e| Some(Self { path: e.ok()?.path() })).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    pub fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub fn alive(&self) -> bool {
        UnixStream::connect(self.control_socket()).is_ok()
    }

    /// Its starter lives, so it may not listen yet. A zombie does not.
    fn starting(&self) -> bool {
        let Ok(pid) = fs::read_to_string(self.path.join("pid")) else { return false };
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| !s.is_empty() && !s.starts_with(['Z', 'X']))
    }

    /// Returns the running lab of that name, or the only one.
    ///
    /// # Errors
    /// None runs, or several do and no name is given.
    pub fn running(name: Option<&str>) -> Result<Self> {
        let alive: Vec<Self> = Self::all()?.into_iter().filter(Self::alive).collect();
        match (name, alive.as_slice()) {
            (Some(name), all) => all
                .iter()
                .find(|d| d.name() == name)
                .cloned()
                .with_context(|| format!("no lab named {name} is running")),
            (None, [one]) => Ok(one.clone()),
            (None, []) => bail!("no lab is running; `wgctl lab up SCENARIO` starts one"),
            (None, many) => {
                let names: Vec<String> = many.iter().map(Self::name).collect();
                bail!("several labs are running ({}); say which with --name", names.join(", "))
            }
        }
    }

    pub fn remove(&self) {
        self.remove_own();
        let _ = fs::remove_dir(Self::base());
    }

    fn remove_own(&self) {
        let _ = fs::remove_dir(self.world());
        let _ = fs::remove_file(self.control_socket());
        let _ = fs::remove_file(self.path.join("pid"));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Who the processes of a lab may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// A user namespace in which there is root alone: what leaderd needs, and no privilege outside.
    RootAlone,
    /// The host's, so that a program can give up root for a user of its own, as FRR insists on. Needs root.
    Hosts,
}

/// Runs `inside` as pid 1 of fresh namespaces and returns its exit code and what it wrote to the pipe.
/// Must be called from a process with one thread.
pub fn run_inside(
    dir: &LabDir,
    inside: impl FnOnce(&LabDir, fs::File) -> Result<u8>,
) -> Result<(u8, Vec<u8>)> {
    run_inside_as(Users::RootAlone, dir, inside)
}

/// `run_inside`, where others than root may be needed.
pub fn run_inside_as(
    users: Users,
    dir: &LabDir,
    inside: impl FnOnce(&LabDir, fs::File) -> Result<u8>,
) -> Result<(u8, Vec<u8>)> {
    let (reader, writer) = nix::unistd::pipe().context("pipe")?;
    let mut caught = SigSet::empty();
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        caught.add(s);
    }
    caught.thread_block().context("sigprocmask")?;
    // SAFETY: this process has a single thread, so the child may go on as an ordinary program.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let _ = caught.thread_unblock();
            let code = keeper(users, dir, writer, inside).unwrap_or_else(|e| {
                eprintln!("wgctl lab: {e:#}");
                1
            });
            std::process::exit(i32::from(code));
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let drain = std::thread::spawn(move || {
                let mut out = Vec::new();
                let _ = fs::File::from(reader).read_to_end(&mut out);
                out
            });
            let code = loop {
                match caught.wait().context("sigwait")? {
                    Signal::SIGCHLD => match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
                        WaitStatus::Exited(_, code) => break code as u8,
                        WaitStatus::Signaled(..) => break 1,
                        _ => {}
                    },
                    _ => {
                        let _ = kill(child, Signal::SIGKILL);
                        let _ = waitpid(child, None);
                        break 130;
                    }
                }
            };
            let out = drain.join().unwrap_or_default();
            dir.remove();
            let _ = caught.thread_unblock();
            Ok((code, out))
        }
    }
}

fn keeper(
    users: Users,
    dir: &LabDir,
    pipe: OwnedFd,
    inside: impl FnOnce(&LabDir, fs::File) -> Result<u8>,
) -> Result<u8> {
    die_with_parent(true)?;
    let (uid, gid) = (getuid(), nix::unistd::getgid());
    unshare_all(users, uid, gid)?;
    // SAFETY: still a single thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            // The parent is in another PID namespace and shows as 0.
            die_with_parent(false)?;
            let code =
                mounts(dir).and_then(|()| inside(dir, fs::File::from(pipe))).unwrap_or_else(|e| {
                    eprintln!("wgctl lab: {e:#}");
                    1
                });
            std::process::exit(i32::from(code));
        }
        ForkResult::Parent { child } => {
            drop(pipe);
            loop {
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => return Ok(code as u8),
                    Ok(WaitStatus::Signaled(..)) => return Ok(1),
                    Err(Errno::EINTR) | Ok(_) => {}
                    Err(e) => return Err(e).context("waitpid"),
                }
            }
        }
    }
}

fn die_with_parent(parent_is_visible: bool) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    if parent_is_visible && getppid() == Pid::from_raw(1) && std::process::id() != 1 {
        // The parent may have died before the call; pid 1 as a true parent is not worth telling apart: go on.
    }
    Ok(())
}

fn unshare_all(users: Users, uid: Uid, gid: Gid) -> Result<()> {
    let rest = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let made = match users {
        Users::RootAlone => unshare(CloneFlags::CLONE_NEWUSER),
        Users::Hosts if geteuid().is_root() => Err(Errno::EPERM),
        Users::Hosts => bail!("this needs root: programs in it become other users"),
    };
    match made {
        Ok(()) => {
            write_proc("/proc/self/setgroups", "deny")?;
            write_proc("/proc/self/uid_map", &format!("0 {uid} 1"))?;
            write_proc("/proc/self/gid_map", &format!("0 {gid} 1"))?;
        }
        Err(_) if geteuid().is_root() => {}
        Err(e) => bail!(
            "user namespaces are not allowed here ({e}): run as root, or allow them \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        ),
    }
    unshare(rest).context(
        "cannot make network, mount and PID namespaces (root or user namespaces are needed)",
    )
}

fn write_proc(path: &str, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {path}"))
}

fn mounts(dir: &LabDir) -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("make mounts private")?;
    // Where a container hides parts of /proc, a fresh one is refused; the outer one does as well, with other pids.
    let _ =
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NONE);
    mount_tmpfs(&dir.world())
}

/// Mounts an empty tmpfs in the present mount namespace.
pub fn mount_tmpfs(at: &Path) -> Result<()> {
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )
    .with_context(|| format!("cannot mount a tmpfs at {}", at.display()))
}

/// A path that names an open file of this process to other processes in the lab.
pub fn fd_path(fd: &impl AsRawFd) -> Result<String> {
    let me = fs::read_link("/proc/self").context("cannot read /proc/self")?;
    Ok(format!("/proc/{}/fd/{}", me.display(), fd.as_raw_fd()))
}
