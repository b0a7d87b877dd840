//! WireGuard interfaces, in the kernel or served by a process each.
//!
//! The kernel's are programmed through `wireguard-control`, processes through their text protocol (`uapi`). That crate's own
//! userspace side starts a process by itself when a socket is missing, waits for answers without limit, and prints to standard
//! output (`docs/decisions/0002`).

mod backend;
mod kernel;
mod key;
mod port_owner;
mod process;
mod uapi;

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

pub use backend::{BACKEND_VARIABLE, Backend, Program};
pub(crate) use backend::{requested, select};
pub use key::{InvalidKey, PrivateKey};
pub(crate) use port_owner::{PortOwner, port_owner};
pub use process::Unavailable;
pub(crate) use process::unavailable_userspace;
pub use uapi::socket as socket_of;
use wgctl_plan::{InterfaceName, WgInterface, WgPeer, WgPublicKey};

/// Counters of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStats {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub last_handshake: Option<SystemTime>,
}

/// A WireGuard interface as its backend reports it; `mtu` and `up` are not filled in.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub interface: WgInterface,
    pub stats: Vec<(WgPublicKey, PeerStats)>,
}

/// Settings of an interface; `None` leaves one as it is.
#[derive(Default)]
pub(crate) struct Settings<'a> {
    pub key: Option<&'a PrivateKey>,
    pub listen_port: Option<u16>,
}

/// Returns the peers of any interface, ours or not, whichever backend serves it. `None` if none does.
///
/// # Errors
/// If the backend does not answer.
pub fn peers(name: &InterfaceName) -> io::Result<Option<BTreeMap<WgPublicKey, WgPeer>>> {
    let seen = match uapi::read(name)? {
        Some(seen) => Some(seen),
        None => kernel::read(name)?,
    };
    Ok(seen.map(|s| s.interface.peers))
}

impl Backend {
    /// Reads an interface; `None` if nothing serves it.
    pub(crate) fn read(self, name: &InterfaceName) -> io::Result<Option<Observed>> {
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

    /// Makes sure that a process serves the interface. In the kernel the link is the interface.
    pub(crate) fn start(self, name: &InterfaceName) -> io::Result<()> {
        match self {
            Self::Kernel => Ok(()),
            Self::Userspace(program) => process::start(name, program),
        }
    }
}
