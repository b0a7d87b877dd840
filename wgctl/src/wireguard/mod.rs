//! WireGuard interfaces, in the kernel or as a process of their own.
//!
//! The kernel's are programmed through `wireguard-control`; processes through their text protocol (`uapi`), because
//! that crate starts a process by itself when a socket is missing, waits for answers without limit, and prints to standard
//! output (`docs/decisions/0002`).

mod choice;
mod kernel;
mod key;
mod listening;
mod process;
mod uapi;

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

pub use choice::{BACKEND_VARIABLE, Program};
pub(crate) use choice::{choose, wanted};
pub use key::{InvalidKey, PrivateKey};
pub(crate) use listening::{Holder, holder};
pub use process::Missing;
pub(crate) use process::missing_for_userspace;
pub use uapi::socket as socket_of;
use wgctl_plan::{InterfaceName, WgInterface, WgPeer, WgPublicKey};

/// Who does WireGuard on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's module.
    Kernel,
    /// A process of this program for each interface.
    Userspace(Program),
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace(program) => program.name(),
        })
    }
}

/// Counters of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStats {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub last_handshake: Option<SystemTime>,
}

/// A WireGuard interface as it tells of itself; `mtu` and `up` are not filled in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub interface: WgInterface,
    pub stats: Vec<(WgPublicKey, PeerStats)>,
}

/// What to set on an interface; the rest stays.
#[derive(Default)]
pub(crate) struct Settings<'a> {
    pub key: Option<&'a PrivateKey>,
    pub listen_port: Option<u16>,
}

/// The peers of an interface that need not be ours, whoever serves it. `None` if nobody does.
pub fn peers(name: &InterfaceName) -> io::Result<Option<BTreeMap<WgPublicKey, WgPeer>>> {
    let seen = match uapi::read(name)? {
        Some(seen) => Some(seen),
        None => kernel::read(name)?,
    };
    Ok(seen.map(|s| s.interface.peers))
}

impl Backend {
    /// Reads an interface; `None` if there is nobody to answer for it.
    pub(crate) fn read(self, name: &InterfaceName) -> io::Result<Option<Seen>> {
        match self {
            Self::Kernel => kernel::read(name),
            Self::Userspace(_) => uapi::read(name),
        }
    }

    pub(crate) fn set(self, name: &InterfaceName, settings: &Settings<'_>) -> io::Result<()> {
        match self {
            Self::Kernel => kernel::set(name, settings),
            Self::Userspace(_) => uapi::set(name, settings),
        }
    }

    pub(crate) fn set_peer(
        self,
        name: &InterfaceName,
        key: &WgPublicKey,
        peer: &WgPeer,
    ) -> io::Result<()> {
        match self {
            Self::Kernel => kernel::set_peer(name, key, peer),
            Self::Userspace(_) => uapi::set_peer(name, key, peer),
        }
    }

    pub(crate) fn remove_peer(self, name: &InterfaceName, key: &WgPublicKey) -> io::Result<()> {
        match self {
            Self::Kernel => kernel::remove_peer(name, key),
            Self::Userspace(_) => uapi::remove_peer(name, key),
        }
    }

    /// Makes sure that a process serves the interface (userspace only; the kernel's is made as a link).
    pub(crate) fn start(self, name: &InterfaceName) -> io::Result<()> {
        match self {
            Self::Kernel => Ok(()),
            Self::Userspace(program) => process::start(name, program),
        }
    }
}
