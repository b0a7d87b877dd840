//! A handle to the kernel of this network namespace: reads the network and applies changes to it.

mod apply;
mod listen;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use wgctl_plan::{Change, InterfaceName, Network, WgPublicKey, diff};

use super::encode::{add_link, delete_link};
use super::netlink::Netlink;
use super::observe::{self, Scope};
use super::untracked::UntrackedTable;
use crate::wireguard::{
    Backend, PeerStats, PrivateKey, Program, Unavailable, requested, select, unavailable_userspace,
};

pub use apply::{ApplyError, FailedChange};

/// Up to this many changes that are all netlink messages are applied on the caller's thread: that takes tens of
/// microseconds, less than a change of threads.
const INLINE_CHANGES: usize = 16;

/// Observes and changes the network. Cheap to clone; operations take turns.
#[derive(Debug, Clone)]
pub struct Kernel {
    inner: Arc<Mutex<Inner>>,
    backend: Backend,
}

#[derive(Debug)]
struct Inner {
    netlink: Netlink,
    untracked: UntrackedTable,
    backend: Backend,
}

/// Why the kernel's network cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("cannot {operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

/// Why not everything could be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot read the network: {0}")]
    Observe(#[from] io::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Kernel {
    /// Opens the kernel and selects the WireGuard backend.
    ///
    /// # Errors
    /// If there is no netlink socket, no privilege or no WireGuard; says what to do about it.
    pub fn open() -> Result<Self, OpenError> {
        let mut netlink = Netlink::open()
            .map_err(|source| OpenError::Io { operation: "open a netlink socket", source })?;
        let backend = detect_backend(&mut netlink)?;
        let inner = Inner { netlink, untracked: UntrackedTable::default(), backend };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), backend })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Returns what is there of ours, within `scope`.
    ///
    /// # Errors
    /// If a netlink dump fails.
    pub async fn observe(&self, scope: &Scope) -> io::Result<Network> {
        let scope = scope.clone();
        self.blocking(move |inner| inner.observe(&scope)).await
    }

    /// Applies the changes in order. A change that fails does not stop those after it.
    ///
    /// # Errors
    /// If some changes failed.
    pub async fn apply(&self, changes: &[Change], key: &PrivateKey) -> Result<(), ApplyError> {
        if changes.is_empty() {
            return Ok(());
        }
        let quick = |change: &Change| {
            matches!(change, Change::SetNexthop { .. } | Change::ReplaceRoute { .. })
        };
        if changes.len() <= INLINE_CHANGES && changes.iter().all(quick) {
            return self.lock().apply(changes, key);
        }
        let (changes, key) = (changes.to_vec(), key.clone());
        self.blocking(move |inner| inner.apply(&changes, &key)).await
    }

    /// Why the kernel refused the table of untracked transit, if it did. That fails no plan: everything else works.
    pub fn untracked_refused(&self) -> Option<String> {
        self.lock().untracked.refused().map(str::to_owned)
    }

    /// True if the kernel refused that table too recently to try again.
    pub(super) fn untracked_is_put_off(&self) -> bool {
        self.lock().untracked.is_put_off()
    }

    /// Returns the counters of every peer of these WireGuard interfaces. An interface that does not answer has none.
    pub async fn wireguard_stats(
        &self,
        links: impl IntoIterator<Item = InterfaceName>,
    ) -> BTreeMap<(InterfaceName, WgPublicKey), PeerStats> {
        let links: Vec<InterfaceName> = links.into_iter().collect();
        // Not under the lock: a failover must not wait for counters.
        let backend = self.backend;
        spawn(move || {
            let mut all = BTreeMap::new();
            for name in links {
                let observed = backend.read(&name).unwrap_or_else(|error| {
                    tracing::warn!(interface.name = %name, %error, "WireGuard does not answer");
                    None
                });
                let stats = observed.map(|o| o.stats).unwrap_or_default();
                all.extend(stats.into_iter().map(|(key, stats)| ((name.clone(), key), stats)));
            }
            all
        })
        .await
    }

    /// Removes everything that is ours. Returns what it removed.
    ///
    /// # Errors
    /// If the network cannot be read, or something cannot be removed.
    pub async fn cleanup(&self) -> Result<Vec<Change>, CleanupError> {
        let observed = self.observe(&Scope::default()).await?;
        let mut changes = diff(&Network::default(), &observed);
        // Nothing is created, so no key is used.
        self.apply(&changes, &PrivateKey::from_bytes([0; 32])).await?;
        changes.extend(self.blocking(Inner::delete_our_links).await?);
        Ok(changes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> T + Send + 'static,
    ) -> T {
        let this = self.clone();
        spawn(move || work(&mut this.lock())).await
    }
}

async fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// Selects the backend. Creates a WireGuard link of the kernel to find out whether it can, which tests the privileges too.
fn detect_backend(netlink: &mut Netlink) -> Result<Backend, OpenError> {
    const TRIAL: &str = "wgltrial";
    let io = |source| OpenError::Io { operation: "try a WireGuard interface", source };
    let name: InterfaceName = TRIAL.parse().expect("a short word is an interface name");
    let requested = requested()?;
    let results = netlink.request(&[add_link(&name, "wireguard", None)]).map_err(io)?;
    let kernel = match results.first() {
        Some(Ok(())) => {
            if let Ok(message) = delete_link(&name) {
                netlink.request(&[message]).map_err(io)?;
            }
            true
        }
        Some(Err(error)) if error.errno == Errno::EPERM as i32 => {
            return Err(Unavailable::Privilege.into());
        }
        Some(Err(error)) => error.errno == Errno::EEXIST as i32,
        None => false,
    };
    let backend = select(requested, kernel, Program::is_there)?;
    match unavailable_userspace().filter(|_| backend != Backend::Kernel) {
        None => Ok(backend),
        Some(unavailable) => Err(unavailable.into()),
    }
}

impl Inner {
    fn observe(&mut self, scope: &Scope) -> io::Result<Network> {
        let backend = self.backend;
        let untracked = self.untracked.observe();
        let mut network = observe::observe(&mut self.netlink, scope, |link| {
            let of_backend = match backend {
                Backend::Kernel => link.kind == "wireguard",
                Backend::Userspace(_) => link.kind == "tun",
            };
            if !of_backend {
                return None;
            }
            match backend.read(&link.name) {
                Ok(observed) => observed.map(|o| {
                    let port = o.interface.listen_port;
                    let up = listen::may_listen(backend, &link.name, port);
                    wgctl_plan::WgInterface { up, ..o.interface }
                }),
                // Without an answer the interface counts as absent, so its process is replaced.
                Err(error) => {
                    tracing::warn!(interface.name = %link.name, %error, "WireGuard does not answer");
                    None
                }
            }
        })?;
        *network.untracked = untracked;
        Ok(network)
    }

    /// Deletes our links that `observe` did not report: another backend made them, or their process is stuck.
    fn delete_our_links(&mut self) -> io::Result<Vec<Change>> {
        let ours = observe::links(&mut self.netlink)?.into_iter().filter(|l| l.ours);
        ours.map(|l| self.delete_link(&l.name).map(|()| Change::DeleteLink { name: l.name }))
            .collect()
    }
}
