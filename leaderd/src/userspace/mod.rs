//! `leaderd userspace IFACE`: WireGuard for one interface, as a process of its own that outlives the daemon.
//!
//! gotatun has the protocol and its cryptography. This module adds the `tun` device, the `tunnel` with its configuration, and the
//! `server` that takes [`request`]s from `wg` and wgctl. It behaves like the kernel's module where that matters to a mesh: its UDP
//! socket is closed while its link is down, and a request touches only what it changes.

pub mod request;
mod server;
mod tun;
mod tunnel;
mod udp;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use wgctl::net::{LinkState, LinkWatch};
use wgctl::wireguard::socket_of;
use wgctl_plan::InterfaceName;

use crate::cli::UserspaceArgs;
use crate::{hardening, log, supervise};
use server::Server;
use tunnel::Tunnel;

/// gotatun logs an error for each packet to a peer without endpoint, so its log is off by default.
const FILTER: &str = "info,gotatun=off";

/// Encryption and decryption run in parallel; more threads gain nothing with one peer at a time.
const MAX_THREADS: usize = 4;

/// While the link is up and its port cannot be opened, it is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Peers with a keep-alive that gotatun gave up are tried again after this.
const REVIVE: Duration = Duration::from_secs(10);

/// The MTU until the kernel reports it, in bytes.
const FIRST_MTU: u16 = 1420;

pub fn run(args: &UserspaceArgs) -> anyhow::Result<ExitCode> {
    log::init(args.log, FILTER)?;
    hardening::no_core_dumps()?;
    supervise::end_on_panic();
    // The socket is for its owner alone.
    umask(Mode::from_bits_truncate(0o077));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(&args.interface, args.background))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(name: &InterfaceName, background: bool) -> anyhow::Result<()> {
    let (mtu, mtus) = watch::channel(FIRST_MTU);
    let path = socket_of(name);
    let (writer, reader) = tun::open(name, mtus).with_context(|| {
        format!(
            "cannot make the TUN device {name} (it needs CAP_NET_ADMIN, /dev/net/tun, and a name that is not in use)"
        )
    })?;
    let mut link = LinkWatch::open(name).context("cannot follow the link's state")?;
    let tunnel = Arc::new(Tunnel::new(writer, reader).await?);
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = bind(&path, background)?;
    tracing::info!(interface.name = %name, socket = %path.display(), "serving");
    tokio::select! {
        ended = server.serve(&tunnel) => ended.context("cannot accept clients")?,
        ended = follow(&mut link, &tunnel, &mtu) => {
            ended.context("cannot follow the link any more")?;
            tracing::info!(interface.name = %name, "the device is gone");
        }
        () = revive(&tunnel) => {}
        _ = terminate.recv() => tracing::info!("asked to stop"),
        _ = interrupt.recv() => tracing::info!("asked to stop"),
    }
    Ok(())
}

/// Creates the Unix socket. In the background, standard error is closed before the socket exists: our parent stops reading then, and
/// writing to a pipe without a reader would end this process.
fn bind(path: &Path, background: bool) -> anyhow::Result<Server> {
    if !background {
        return Server::bind(path);
    }
    let stderr = nix::unistd::dup(std::io::stderr())?;
    nix::unistd::dup2_stderr(File::open("/dev/null")?)?;
    let bound = Server::bind(path);
    if bound.is_err() {
        nix::unistd::dup2_stderr(stderr)?;
    }
    bound
}

/// Keeps the UDP socket open while the link is up. Ends when the device is gone.
async fn follow(
    link: &mut LinkWatch,
    tunnel: &Tunnel,
    mtu: &watch::Sender<u16>,
) -> std::io::Result<()> {
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<LinkState> = None;
    let mut logged: Option<String> = None;
    loop {
        let state = tokio::select! {
            state = link.next() => match state? {
                Some(state) => state,
                None => return Ok(()),
            },
            // Also retries a port that a request could not open: the client got the error and does not ask again.
            _ = retry.tick(), if last.is_some_and(|state| state.up) => match last {
                Some(state) => state,
                None => continue,
            },
        };
        if last != Some(state) {
            tracing::info!(link.up = state.up, link.mtu = state.mtu, "link");
            mtu.send_replace(u16::try_from(state.mtu).unwrap_or(u16::MAX));
            last = Some(state);
        }
        match tunnel.link(state.up).await {
            Ok(()) => logged = None,
            Err(error) => {
                // Once, not every second.
                let why = error.to_string();
                if logged.as_ref() != Some(&why) {
                    tracing::warn!(%error, "cannot open the UDP socket; trying again every second");
                    logged = Some(why);
                }
            }
        }
    }
}

async fn revive(tunnel: &Tunnel) {
    loop {
        tokio::time::sleep(REVIVE).await;
        tunnel.revive().await;
    }
}
