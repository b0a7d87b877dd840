//! Applies changes: those that are one netlink message in batches, the others one by one.

use std::fmt;
use std::io;

use nix::errno::Errno;
use wgctl_plan::{Change, InterfaceName};

use super::super::encode::{add_link, add_vxlan, delete_link, encode, set_alias};
use super::super::netlink::{MAX_BATCH, Message};
use super::super::{observe, sysctl};
use super::Inner;
use super::listen::port_taken;
use crate::wireguard::{Backend, PrivateKey, Settings};

/// A change that failed.
#[derive(Debug)]
pub struct FailedChange {
    pub change: Change,
    /// The kernel's extended acknowledgement, where it sent one, or the error's text.
    pub why: String,
    pub errno: Option<i32>,
}

impl FailedChange {
    fn new(change: &Change, error: &io::Error) -> Self {
        Self { change: change.clone(), why: error.to_string(), errno: error.raw_os_error() }
    }
}

impl fmt::Display for FailedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.change, self.why)
    }
}

/// Some changes of a plan failed; all others were applied. In the order of the plan, never empty.
#[derive(Debug)]
pub struct ApplyError {
    pub failures: Vec<FailedChange>,
}

impl ApplyError {
    /// Retains in `plan` only the changes that were applied.
    pub fn retain_applied(&self, plan: &mut Vec<Change>) {
        // Both are in the same order, so one pass is enough.
        let mut failed = self.failures.iter().peekable();
        plan.retain(|change| failed.next_if(|failure| failure.change == *change).is_none());
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.failures.first() else { return f.write_str("nothing failed") };
        write!(f, "{first}")?;
        match self.failures.len() - 1 {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}
impl std::error::Error for ApplyError {}

impl Inner {
    pub(super) fn apply(&mut self, changes: &[Change], key: &PrivateKey) -> Result<(), ApplyError> {
        let mut failures = Vec::new();
        let mut batch: Vec<(&Change, Message)> = Vec::new();
        for change in changes {
            tracing::debug!(change = %change, "apply");
            let single = match encode(change) {
                Ok(Some(message)) if self.must_listen(change) => Ok(Some(message)),
                Ok(Some(message)) => {
                    if batch.len() == MAX_BATCH {
                        self.flush(&mut batch, &mut failures);
                    }
                    batch.push((change, message));
                    continue;
                }
                other => other,
            };
            self.flush(&mut batch, &mut failures);
            let result = single.and_then(|message| match message {
                Some(message) => self.bring_up(change, message),
                None => self.apply_other(change, key),
            });
            if let Err(error) = result {
                failures.push(FailedChange::new(change, &error));
            }
        }
        self.flush(&mut batch, &mut failures);
        if failures.is_empty() { Ok(()) } else { Err(ApplyError { failures }) }
    }

    /// Sends the batch.
    fn flush(&mut self, batch: &mut Vec<(&Change, Message)>, failures: &mut Vec<FailedChange>) {
        if batch.is_empty() {
            return;
        }
        let (changes, messages): (Vec<&Change>, Vec<Message>) = batch.drain(..).unzip();
        match self.netlink.request(&messages) {
            Ok(results) => {
                for (change, result) in changes.into_iter().zip(results) {
                    if let Err(error) = result
                        && !is_already_gone(change, error.errno)
                    {
                        failures.push(FailedChange {
                            change: change.clone(),
                            why: error.to_string(),
                            errno: Some(error.errno),
                        });
                    }
                }
            }
            Err(e) => failures.extend(changes.into_iter().map(|c| FailedChange::new(c, &e))),
        }
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: Message) -> io::Result<()> {
        match self.netlink.request(&[message])?.pop() {
            Some(Err(error)) if error.message.is_some() => Err(io::Error::other(error)),
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Applies a change that is not one netlink message.
    fn apply_other(&mut self, change: &Change, key: &PrivateKey) -> io::Result<()> {
        match change {
            Change::SetSysctl { path, value } => sysctl::write(path, value),
            Change::AddWireguard { name, mtu } => self.add_wireguard(name, *mtu),
            Change::AddVxlan { name, vxlan } => {
                self.send(add_vxlan(name, vxlan))?;
                self.send(set_alias(name)?)
            }
            Change::DeleteLink { name } => self.delete_link(name),
            Change::SetWireguard { name, public_key, listen_port } => {
                if public_key.is_some_and(|wanted| wanted != key.public()) {
                    let why = "the key that the plan names is not the key of this node";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                let key = public_key.map(|_| key);
                let set = self.backend.set(name, &Settings { key, listen_port: *listen_port });
                match (set, listen_port) {
                    (Err(e), Some(port)) if e.kind() == io::ErrorKind::AddrInUse => {
                        Err(port_taken(*port))
                    }
                    (Ok(()), Some(port)) => self.check_port(name, *port),
                    (set, _) => set,
                }
            }
            Change::SetPeer { name, key, peer } => self.backend.set_peer(name, key, peer),
            Change::RemovePeer { name, key } => self.backend.remove_peer(name, key),
            Change::SetUntracked { transit } => {
                self.untracked.set(transit);
                Ok(())
            }
            Change::RemoveUntracked => self.untracked.remove(),
            _ => Ok(()),
        }
    }

    fn add_wireguard(&mut self, name: &InterfaceName, mtu: u32) -> io::Result<()> {
        match self.backend {
            Backend::Kernel => self.send(add_link(name, "wireguard", Some(mtu)))?,
            Backend::Userspace(_) => {
                // A device of ours that counts as absent has a stuck process, which ends with its device.
                if observe::links(&mut self.netlink)?.iter().any(|l| l.name == *name && l.ours) {
                    self.delete_link(name)?;
                }
                self.backend.start(name)?;
                if let Some(message) = encode(&Change::SetMtu { name: name.clone(), mtu })? {
                    self.send(message)?;
                }
            }
        }
        self.send(set_alias(name)?)
    }

    /// Deletes a link. The userspace process that serves it ends with it.
    pub(super) fn delete_link(&mut self, name: &InterfaceName) -> io::Result<()> {
        match delete_link(name) {
            Ok(message) => self.send(message),
            Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// True if the error says that what was to be removed is already gone.
fn is_already_gone(change: &Change, errno: i32) -> bool {
    match change {
        Change::RemoveRoute { .. } => errno == Errno::ESRCH as i32,
        Change::RemoveNexthop { .. }
        | Change::RemoveNeighbour { .. }
        | Change::RemoveFdb { .. }
        | Change::RemoveRule { .. } => errno == Errno::ENOENT as i32,
        Change::RemoveAddress { .. } => errno == Errno::EADDRNOTAVAIL as i32,
        _ => false,
    }
}
