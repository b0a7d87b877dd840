//! Makes sure that userspace WireGuard listens on its port.
//!
//! A process opens its port when its link comes up, and reports no error if the port is taken. So the port's owner is looked
//! up afterwards ([`port_owner`]).

use std::io;
use std::time::{Duration, Instant};

use wgctl_plan::{Change, InterfaceName};

use super::super::encode::encode;
use super::super::netlink::Message;
use super::super::observe;
use super::Inner;
use crate::wireguard::{Backend, PortOwner, port_owner};

/// How long a WireGuard process may take to open its port after its link came up. It takes about a millisecond on an idle
/// machine.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(500);

/// Time between two looks at the port's owner.
const LISTEN_POLL: Duration = Duration::from_millis(2);

impl Inner {
    /// Checks a port that was set on a userspace interface whose link is up. A process that has not yet noticed its link
    /// coming up accepts a port without opening it.
    pub(super) fn check_port(&mut self, name: &InterfaceName, port: u16) -> io::Result<()> {
        if self.backend == Backend::Kernel || port == 0 {
            return Ok(());
        }
        let up = observe::links(&mut self.netlink)?.iter().any(|l| l.name == *name && l.up);
        if up { expect_listening(name, port) } else { Ok(()) }
    }

    /// True for a change that makes a userspace process open its port.
    pub(super) fn must_listen(&self, change: &Change) -> bool {
        self.backend != Backend::Kernel && matches!(change, Change::SetUp { up: true, .. })
    }

    /// Brings up a link with `message` and waits until its process, if it has one, listens. A link that is up while its process
    /// does not listen goes down first, because only coming up makes the process open its port.
    pub(super) fn bring_up(&mut self, change: &Change, message: Message) -> io::Result<()> {
        let Change::SetUp { name, .. } = change else { return Ok(()) };
        let link = observe::links(&mut self.netlink)?.into_iter().find(|l| l.name == *name);
        let Some(link) = link.filter(|l| l.kind == "tun") else { return self.send(message) };
        let Some(observed) = self.backend.read(name)? else { return self.send(message) };
        let port = observed.interface.listen_port;
        if port == 0 {
            // A new process: the next change sets its port and checks it.
            return self.send(message);
        }
        if link.up {
            if wait_listening(name, port)? {
                return Ok(());
            }
            if let Some(down) = encode(&Change::SetUp { name: name.clone(), up: false })? {
                self.send(down)?;
            }
        }
        if port_owner(name, port)? == PortOwner::Other {
            return Err(port_taken(port));
        }
        self.send(message)?;
        expect_listening(name, port)
    }
}

/// False if the interface certainly does not listen on its port.
pub(super) fn may_listen(backend: Backend, name: &InterfaceName, port: u16) -> bool {
    match backend {
        // The kernel refuses to bring up a link whose port is taken.
        Backend::Kernel => true,
        Backend::Userspace(_) => {
            !matches!(port_owner(name, port), Ok(PortOwner::None | PortOwner::Other))
        }
    }
}

pub(super) fn port_taken(port: u16) -> io::Error {
    let why = format!(
        "UDP port {port} of WireGuard is taken by another program (see `ss -lunp 'sport = :{port}'`); stop it, or choose \
         another base_port in the mesh file of all nodes"
    );
    io::Error::new(io::ErrorKind::AddrInUse, why)
}

/// Waits for the process of a link that is up to listen on its port.
fn expect_listening(name: &InterfaceName, port: u16) -> io::Result<()> {
    match wait_listening(name, port)? {
        true => Ok(()),
        false if port_owner(name, port)? == PortOwner::Other => Err(port_taken(port)),
        false => Err(io::Error::other(format!(
            "the WireGuard process of {name} does not listen on UDP port {port}"
        ))),
    }
}

/// Waits up to [`LISTEN_TIMEOUT`] for a process to open its port. Returns whether it did, as far as that can be seen.
fn wait_listening(name: &InterfaceName, port: u16) -> io::Result<bool> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    loop {
        if matches!(port_owner(name, port)?, PortOwner::Interface | PortOwner::Unknown) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(LISTEN_POLL);
    }
}
