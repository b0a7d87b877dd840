//! A handle to the kernel of this network namespace.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wgctl_plan::{Change, InterfaceName, Network, WgPublicKey, diff};

use super::encode::*;
use super::netlink::*;
use super::observe::{self, Scope};
use super::sysctl;
use super::untracked::Untracked;
use crate::wireguard::{
    Backend, Holder, Missing, PeerStats, PrivateKey, Program, Settings, choose, holder,
    missing_for_userspace, wanted,
};

/// Plans of so few changes, all netlink, are applied in place: tens of microseconds, less than a change of threads.
const INLINE_CHANGES: usize = 16;

/// How long a WireGuard process may take to open its port after its link came up, and how often it is looked for. It takes
/// about a millisecond on an idle machine.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(500);
const LISTEN_POLL: Duration = Duration::from_millis(2);

/// Observes and changes the network. Cheap to clone; operations take turns.
#[derive(Debug, Clone)]
pub struct Kernel {
    inner: Arc<Mutex<Inner>>,
    backend: Backend,
}

#[derive(Debug)]
struct Inner {
    netlink: Netlink,
    untracked: Untracked,
    backend: Backend,
}

/// Why the network cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("cannot {operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

/// A change that failed.
#[derive(Debug)]
pub struct Failure {
    pub change: Change,
    /// With the kernel's own words where it has some.
    pub why: String,
    pub errno: Option<i32>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.change, self.why)
    }
}

/// Some changes of a plan failed; all others were made. In the order of the plan, never empty.
#[derive(Debug)]
pub struct ApplyError {
    pub failures: Vec<Failure>,
}

impl ApplyError {
    /// Leaves of the plan that was applied what was made.
    pub fn retain_made(&self, plan: &mut Vec<Change>) {
        // Both are in the same order, so that once through is enough.
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

impl Kernel {
    /// Opens the kernel and finds out who does WireGuard. Says what is missing if nobody can.
    pub fn open() -> Result<Self, OpenError> {
        let io = |operation| move |source| OpenError::Io { operation, source };
        let mut netlink = Netlink::open().map_err(io("open a netlink socket"))?;
        let backend = detect(&mut netlink)?;
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner {
                netlink,
                untracked: Untracked::default(),
                backend,
            })),
            backend,
        })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// What of ours is there. See [`Scope`].
    pub async fn observe(&self, scope: &Scope) -> io::Result<Network> {
        let scope = scope.clone();
        self.blocking(move |inner| inner.observe(&scope)).await
    }

    /// Carries out the changes in order. One that fails does not keep the rest from being made.
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

    /// Why the kernel tracks transit although it is not to, if so. That is no failure of a plan: all else works.
    pub fn untracked_refused(&self) -> Option<String> {
        self.lock().untracked.refused().map(str::to_owned)
    }

    /// The same, and so lately that it is not worth trying again.
    pub(super) fn untracked_is_put_off(&self) -> bool {
        self.lock().untracked.is_put_off()
    }

    /// Counters of every peer of our WireGuard interfaces.
    pub async fn wireguard_stats(
        &self,
        links: impl IntoIterator<Item = InterfaceName>,
    ) -> io::Result<BTreeMap<(InterfaceName, WgPublicKey), PeerStats>> {
        let links: Vec<InterfaceName> = links.into_iter().collect();
        // Not under the lock: counters are never worth delaying a failover for.
        let backend = self.backend;
        spawn(move || {
            let mut all = BTreeMap::new();
            for name in links {
                // One that does not answer says nothing, and all others do.
                let seen = backend.read(&name).unwrap_or_else(|error| {
                    tracing::warn!(interface.name = %name, %error, "WireGuard does not answer");
                    None
                });
                let stats = seen.map(|seen| seen.stats).unwrap_or_default();
                all.extend(stats.into_iter().map(|(key, stats)| ((name.clone(), key), stats)));
            }
            Ok(all)
        })
        .await
    }

    /// Removes everything that is ours; tells what it removed.
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

/// Why not everything could be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot read the network: {0}")]
    Observe(#[from] io::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Tries a WireGuard link of the kernel, which answers for privileges too; then who else there is.
fn detect(netlink: &mut Netlink) -> Result<Backend, OpenError> {
    const TRIAL: &str = "wgltrial";
    let io = |source| OpenError::Io { operation: "try a WireGuard interface", source };
    let name: InterfaceName = TRIAL.parse().expect("a short word is an interface name");
    let wanted = wanted()?;
    let results = netlink.request(&[add_link(&name, "wireguard", None)]).map_err(io)?;
    let kernel = match results.first() {
        Some(Ok(())) => {
            if let Ok(message) = delete_link(&name) {
                netlink.request(&[message]).map_err(io)?;
            }
            true
        }
        Some(Err(failed)) if failed.errno == nix::errno::Errno::EPERM as i32 => {
            return Err(Missing::Privilege.into());
        }
        Some(Err(failed)) => failed.errno == nix::errno::Errno::EEXIST as i32,
        None => false,
    };
    let backend = choose(wanted, kernel, Program::is_there)?;
    match missing_for_userspace().filter(|_| backend != Backend::Kernel) {
        None => Ok(backend),
        Some(missing) => Err(missing.into()),
    }
}

impl Inner {
    fn observe(&mut self, scope: &Scope) -> io::Result<Network> {
        let backend = self.backend;
        let untracked = self.untracked.observe();
        let mut network = observe::observe(&mut self.netlink, scope, |link| {
            match (backend, link.kind.as_str()) {
                (Backend::Kernel, "wireguard") | (Backend::Userspace(_), "tun") => {
                    match backend.read(&link.name) {
                        Ok(seen) => seen.map(|mut s| {
                            s.interface.up = listens(backend, &link.name, s.interface.listen_port);
                            s.interface
                        }),
                        // A stuck process is as good as none: it is replaced.
                        Err(error) => {
                            tracing::warn!(interface.name = %link.name, %error, "WireGuard does not answer");
                            None
                        }
                    }
                }
                _ => None,
            }
        })?;
        *network.untracked = untracked;
        Ok(network)
    }

    fn apply(&mut self, changes: &[Change], key: &PrivateKey) -> Result<(), ApplyError> {
        let mut failures = Vec::new();
        let mut batch: Vec<(&Change, Message)> = Vec::new();
        for change in changes {
            tracing::debug!(change = %change, "apply");
            if batch.len() == MAX_BATCH {
                self.flush(&mut batch, &mut failures);
            }
            match encode(change) {
                Ok(Some(message)) if self.must_listen(change) => {
                    self.flush(&mut batch, &mut failures);
                    if let Err(e) = self.bring_up(change, message) {
                        failures.push(Failure {
                            change: change.clone(),
                            why: e.to_string(),
                            errno: e.raw_os_error(),
                        });
                    }
                }
                Ok(Some(message)) => batch.push((change, message)),
                Ok(None) => {
                    self.flush(&mut batch, &mut failures);
                    if let Err(e) = self.special(change, key) {
                        failures.push(Failure {
                            change: change.clone(),
                            why: e.to_string(),
                            errno: e.raw_os_error(),
                        });
                    }
                }
                Err(e) => {
                    self.flush(&mut batch, &mut failures);
                    failures.push(Failure {
                        change: change.clone(),
                        why: e.to_string(),
                        errno: e.raw_os_error(),
                    });
                }
            }
        }
        self.flush(&mut batch, &mut failures);
        if failures.is_empty() { Ok(()) } else { Err(ApplyError { failures }) }
    }

    fn flush(&mut self, batch: &mut Vec<(&Change, Message)>, failures: &mut Vec<Failure>) {
        if batch.is_empty() {
            return;
        }
        let (changes, messages): (Vec<&Change>, Vec<Message>) = batch.drain(..).unzip();
        match self.netlink.request(&messages) {
            Ok(results) => {
                for (change, result) in changes.into_iter().zip(results) {
                    if let Err(failed) = result
                        && !already_so(change, failed.errno)
                    {
                        let why = failed.to_string();
                        failures.push(Failure {
                            change: change.clone(),
                            why,
                            errno: Some(failed.errno),
                        });
                    }
                }
            }
            Err(e) => failures.extend(changes.into_iter().map(|change| Failure {
                change: change.clone(),
                why: e.to_string(),
                errno: e.raw_os_error(),
            })),
        }
    }

    fn one(&mut self, message: Message) -> io::Result<()> {
        match self.netlink.request(&[message])?.pop() {
            Some(Err(failed)) => Err(match &failed.message {
                Some(_) => io::Error::other(failed),
                None => failed.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Changes that are not one netlink message.
    fn special(&mut self, change: &Change, key: &PrivateKey) -> io::Result<()> {
        match change {
            Change::SetSysctl { path, value } => sysctl::write(path, value),
            Change::AddWireguard { name, mtu } => self.add_wireguard(name, *mtu),
            Change::AddVxlan { name, vxlan } => {
                self.one(add_vxlan(name, vxlan))?;
                self.one(set_alias(name)?)
            }
            Change::DeleteLink { name } => self.delete(name),
            Change::SetWireguard { name, public_key, listen_port } => {
                if let Some(wanted) = public_key
                    && *wanted != key.public()
                {
                    let why = "the key that the plan names is not the key of this node";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                let key = public_key.map(|_| key);
                let set = self.backend.set(name, &Settings { key, listen_port: *listen_port });
                match (set, listen_port) {
                    (Err(e), Some(port)) if e.kind() == io::ErrorKind::AddrInUse => {
                        Err(port_taken(*port))
                    }
                    (Ok(()), Some(port)) => self.opened(name, *port),
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
            Backend::Kernel => self.one(add_link(name, "wireguard", Some(mtu)))?,
            Backend::Userspace(_) => {
                // A device of ours that nobody answers for: its process is stuck, and ends with its device.
                if observe::links(&mut self.netlink)?.iter().any(|l| l.name == *name && l.ours) {
                    self.delete(name)?;
                }
                self.backend.start(name)?;
                if let Some(message) = encode(&Change::SetMtu { name: name.clone(), mtu })? {
                    self.one(message)?;
                }
            }
        }
        self.one(set_alias(name)?)
    }

    /// A process that has not yet heard that its link is up takes a port without opening it, and finds out later that it is taken.
    fn opened(&mut self, name: &InterfaceName, port: u16) -> io::Result<()> {
        if self.backend == Backend::Kernel || port == 0 {
            return Ok(());
        }
        let up = observe::links(&mut self.netlink)?.iter().any(|l| l.name == *name && l.up);
        if up { must_open(name, port) } else { Ok(()) }
    }

    /// True for what makes a userspace process open its port.
    fn must_listen(&self, change: &Change) -> bool {
        self.backend != Backend::Kernel && matches!(change, Change::SetUp { up: true, .. })
    }

    /// Brings up a link, and waits until its process listens if it has one: it says nothing when its port is taken (see
    /// [`holder`]). A link that is up without anybody listening goes down first, else nothing would happen.
    fn bring_up(&mut self, change: &Change, message: Message) -> io::Result<()> {
        let Change::SetUp { name, .. } = change else { return Ok(()) };
        let link = observe::links(&mut self.netlink)?.into_iter().find(|l| l.name == *name);
        let Some(link) = link.filter(|l| l.kind == "tun") else { return self.one(message) };
        let Some(seen) = self.backend.read(name)? else { return self.one(message) };
        let port = seen.interface.listen_port;
        if port == 0 {
            // A new process: its port comes with the next change, and is looked after then.
            return self.one(message);
        }
        if link.up {
            if wait_listening(name, port)? {
                return Ok(());
            }
            if let Some(down) = encode(&Change::SetUp { name: name.clone(), up: false })? {
                self.one(down)?;
            }
        }
        if holder(name, port)? == Holder::Other {
            return Err(port_taken(port));
        }
        self.one(message)?;
        must_open(name, port)
    }

    /// Devices of ours that are not the present backend's, as who cleans up may not know what made them, or whose process is stuck.
    fn delete_our_links(&mut self) -> io::Result<Vec<Change>> {
        let ours = observe::links(&mut self.netlink)?.into_iter().filter(|l| l.ours);
        ours.map(|l| self.delete(&l.name).map(|()| Change::DeleteLink { name: l.name })).collect()
    }

    /// A userspace process ends when its device goes.
    fn delete(&mut self, name: &InterfaceName) -> io::Result<()> {
        match delete_link(name) {
            Ok(message) => self.one(message),
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// False if a process certainly does not listen on its port.
fn listens(backend: Backend, name: &InterfaceName, port: u16) -> bool {
    match backend {
        // The kernel refuses to bring up a link whose port is taken.
        Backend::Kernel => true,
        Backend::Userspace(_) => !matches!(holder(name, port), Ok(Holder::Nobody | Holder::Other)),
    }
}

fn port_taken(port: u16) -> io::Error {
    let why = format!(
        "UDP port {port} of WireGuard is taken by another program (see `ss -lunp 'sport = :{port}'`); stop it, or choose \
         another base_port in the mesh file of all nodes"
    );
    io::Error::new(io::ErrorKind::AddrInUse, why)
}

/// Fails if a process whose link is up does not come to listen on its port.
fn must_open(name: &InterfaceName, port: u16) -> io::Result<()> {
    match wait_listening(name, port)? {
        true => Ok(()),
        false if holder(name, port)? == Holder::Other => Err(port_taken(port)),
        false => Err(io::Error::other(format!(
            "the WireGuard process of {name} does not listen on UDP port {port}"
        ))),
    }
}

/// Waits a little for a process to open its port: it does so when the kernel tells it that its link is up.
fn wait_listening(name: &InterfaceName, port: u16) -> io::Result<bool> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    loop {
        if matches!(holder(name, port)?, Holder::Itself | Holder::Unknown) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(LISTEN_POLL);
    }
}

/// Removing what has gone by itself meanwhile is no failure.
fn already_so(change: &Change, errno: i32) -> bool {
    use nix::errno::Errno;
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
