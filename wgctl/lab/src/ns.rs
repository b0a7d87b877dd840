//! Namespaces of a node: held open by file descriptors, so they need no process and vanish with ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::sandbox::{fd_path, mount_tmpfs};

/// A network namespace and, for nodes, a mount namespace in which `/run` is private.
#[derive(Debug)]
pub struct Namespace {
    net: OwnedFd,
    mnt: Option<OwnedFd>,
}

impl Namespace {
    /// Makes a network namespace, with a private `/run` if wanted: userspace WireGuard has its sockets there, under the same names on
    /// every node.
    ///
    /// # Errors
    /// Namespaces cannot be made here.
    pub fn create(private_run: bool) -> Result<Self> {
        let made = thread::spawn(move || -> Result<Self> {
            let mut flags = CloneFlags::CLONE_NEWNET;
            if private_run {
                flags |= CloneFlags::CLONE_NEWNS;
            }
            unshare(flags).context("cannot make a namespace")?;
            if private_run {
                mount_tmpfs(Path::new("/run"))?;
                if !Path::new("/var/run").is_symlink() {
                    mount_tmpfs(Path::new("/var/run"))?;
                }
                // /sys shows the network of whoever mounted it. Containers may refuse; nothing of ours depends on it.
                let none: Option<&str> = None;
                let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_NOSUID, none);
            }
            let net =
                File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?.into();
            let mnt = match private_run {
                true => Some(
                    File::open("/proc/thread-self/ns/mnt")
                        .context("/proc/thread-self/ns/mnt")?
                        .into(),
                ),
                false => None,
            };
            Ok(Self { net, mnt })
        });
        made.join().map_err(|_| anyhow::anyhow!("namespace thread panicked"))?
    }

    /// Returns a path by which `ip link … netns PATH` finds it.
    pub fn net_path(&self) -> Result<String> {
        fd_path(&self.net)
    }

    /// Returns the inode of the network namespace, to compare with `/proc/PID/ns/net`.
    pub fn net_inode(&self) -> Result<u64> {
        Ok(File::from(self.net.try_clone()?).metadata()?.ino())
    }

    /// A command that will run in here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let net = self.net.as_raw_fd();
        let mnt = self.mnt.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: setns is one system call, allowed between fork and exec; the descriptors outlive every command,
        // since a world is dropped only when the lab ends.
        unsafe {
            command.pre_exec(move || {
                if nix::libc::setns(net, nix::libc::CLONE_NEWNET) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                if let Some(mnt) = mnt
                    && nix::libc::setns(mnt, nix::libc::CLONE_NEWNS) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// Returns the same network namespace for another thread, which may outlive this value.
    pub fn net_handle(&self) -> Result<Self> {
        Ok(Self { net: self.net.try_clone()?, mnt: None })
    }

    /// Runs a function on a thread in this network namespace (not the mount namespace) and waits for it.
    ///
    /// # Errors
    /// The function's, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|s| {
            s.spawn(|| {
                self.enter()?;
                f()
            })
            .join()
            .map_err(|_| anyhow::anyhow!("namespace thread panicked"))?
        })
    }

    /// Moves the calling thread into this network namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET).context("setns")
    }

    /// Runs `ip -batch`: one `ip` command a line.
    ///
    /// # Errors
    /// A command fails; the error names all lines.
    pub fn ip(&self, lines: &str) -> Result<()> {
        feed(self.command("ip").args(["-force", "-batch", "-"]), lines)
            .with_context(|| format!("ip: {lines}"))
    }

    /// Runs `nft -f -`.
    ///
    /// # Errors
    /// A rule is refused; the error names all rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        feed(self.command("nft").args(["-f", "-"]), rules).with_context(|| format!("nft: {rules}"))
    }

    /// Writes below `/proc/sys/net`; `path` as in `ipv4/ip_forward`.
    ///
    /// # Errors
    /// The file is missing, or refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.run(|| {
            let full = format!("/proc/sys/net/{path}");
            std::fs::write(&full, value).with_context(|| format!("cannot write {value} to {full}"))
        })
    }

    /// Returns the standard output of a command in this namespace.
    ///
    /// # Errors
    /// The command fails; the error has its standard error.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self
            .command(program)
            .args(args)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !out.status.success() {
            bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

/// Runs a command with text on its standard input.
///
/// # Errors
/// The command fails; the error has its standard error.
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}; is it installed?", command.get_program()))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let mut errors = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut errors)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{}", errors.trim());
    }
    Ok(())
}
