//! The running lab's control socket: `lab exec`, `fault`, `status` and `down` from another shell.
//!
//! One request a connection: a line of JSON, for `exec` with the caller's standard streams attached (SCM_RIGHTS), so
//! the caller needs no entry to the lab's namespaces. One line of JSON comes back.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::sandbox::LabDir;
use crate::world::World;

/// A request is never longer than this.
const MAX_REQUEST: usize = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    Exec { node: String, pod: bool, command: Vec<String> },
    Fault { node: String, fault: String, arg: Option<String>, off: bool },
    Status,
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Done,
    Exit(i32),
    Failed(String),
    Status(Vec<NodeLine>),
    /// None: the lab ended before it answered. Never sent.
    #[serde(skip)]
    Gone,
}

/// A row of `lab status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeLine {
    pub node: String,
    pub location: String,
    /// `candidate`, `member`.
    pub role: String,
    pub daemon: String,
    pub leads: bool,
    pub lan: String,
    pub wan: String,
    pub pod: String,
    pub faults: Vec<String>,
}

/// Sends a request to a running lab; for `exec` with our standard streams.
///
/// # Errors
/// The lab is gone or refuses.
pub fn ask(dir: &LabDir, request: &Request) -> Result<Reply> {
    let stream = UnixStream::connect(dir.control_socket()).context("cannot reach the lab")?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let fds: [RawFd; 3] = [0, 1, 2];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&line)], &rights, MsgFlags::empty(), None)
        .context("sendmsg")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Ok(match request {
            // It ends the lab before it can answer.
            Request::Down => Reply::Done,
            _ => Reply::Gone,
        });
    }
    serde_json::from_str(&answer).context("unexpected answer from the lab")
}

/// Answers requests until the lab ends. Each connection has a thread: an `exec` may last.
pub fn serve(listener: UnixListener, world: Arc<World>) {
    for stream in listener.incoming().flatten() {
        let world = Arc::clone(&world);
        std::thread::spawn(move || {
            let reply =
                handle(&stream, &world).unwrap_or_else(|e| Some(Reply::Failed(format!("{e:#}"))));
            if let Some(mut line) = reply.and_then(|r| serde_json::to_vec(&r).ok()) {
                line.push(b'\n');
                let _ = (&stream).write_all(&line);
            }
        });
    }
}

fn receive(stream: &UnixStream) -> Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut buffer = vec![0u8; MAX_REQUEST];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut fds = Vec::new();
    let n = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel just made these descriptors ours.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        got.bytes
    };
    if n == 0 {
        // Somebody looked whether we are alive.
        return Ok(None);
    }
    buffer.truncate(n);
    while !buffer.ends_with(b"\n") && buffer.len() < MAX_REQUEST {
        let mut more = [0u8; 4096];
        match (&mut &*stream).read(&mut more)? {
            0 => break,
            n => buffer.extend_from_slice(&more[..n]),
        }
    }
    Ok(Some((serde_json::from_slice(&buffer).context("bad request")?, fds)))
}

fn handle(stream: &UnixStream, world: &World) -> Result<Option<Reply>> {
    let Some((request, fds)) = receive(stream)? else { return Ok(None) };
    Ok(Some(match request {
        Request::Exec { node, pod, command } => {
            let n = &world.nodes[world.topology.node(&node)?];
            let ns = if pod { &n.pod } else { &n.ns };
            let (program, args) = command.split_first().context("no command given")?;
            let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds)
                .map_err(|_| anyhow::anyhow!("standard streams are missing"))?;
            let child = ns
                .command(program)
                .args(args)
                .env("LEADERD_ADMIN", n.admin())
                .stdin(Stdio::from(stdin))
                .stdout(Stdio::from(File::from(stdout)))
                .stderr(Stdio::from(File::from(stderr)))
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            Reply::Exit(wait_with_caller(child, stream)?)
        }
        Request::Fault { node, fault, arg, off } => {
            let n = world.topology.node(&node)?;
            if off {
                world.undo(n, &fault)?
            } else {
                world.inject(n, &fault, arg.as_deref())?
            }
            Reply::Done
        }
        Request::Status => Reply::Status(lines(world)),
        Request::Down => std::process::exit(0),
    }))
}

/// Waits for the command, and kills it when its caller goes away.
fn wait_with_caller(mut child: Child, stream: &UnixStream) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt;
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut gone = [0u8; 1];
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if matches!((&mut &*stream).read(&mut gone), Ok(0)) {
            child.kill()?;
            child.wait()?;
            bail!("the caller went away");
        }
    }
}

/// What `lab status` shows.
pub fn lines(world: &World) -> Vec<NodeLine> {
    let faults = world.active_faults();
    let leaders: Vec<String> = (0..world.topology.locations.len())
        .filter_map(|l| {
            let status = world.status_in(l)?;
            status.location(&world.topology.locations[l].name)?.leaders.first().cloned()
        })
        .collect();
    world
        .nodes
        .iter()
        .enumerate()
        .map(|(i, n)| NodeLine {
            node: n.node.name.clone(),
            location: world.topology.locations[n.node.location].name.clone(),
            role: if n.node.slot.is_some() { "candidate".into() } else { "member".into() },
            daemon: match world.daemon_pid(i) {
                None => "down".into(),
                Some(pid) if world.daemon_paused(pid) => "paused".into(),
                Some(_) => "up".into(),
            },
            leads: leaders.contains(&n.node.name),
            lan: n.node.lan().to_string(),
            wan: n.node.wan().map_or_else(|| "-".into(), |a| a.to_string()),
            pod: n.node.pod().to_string(),
            faults: faults
                .iter()
                .filter(|(on, _)| *on == n.node.name)
                .map(|(_, f)| f.clone())
                .collect(),
        })
        .collect()
}
