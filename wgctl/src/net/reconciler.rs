//! Keeps the kernel's network as desired: programs a new desired network at once, and repairs drift.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wgctl_plan::{Change, InterfaceName, Network, WgPublicKey, diff, diff_desired};

use super::kernel::{ApplyError, Kernel};
use super::liveness::PeerLiveness;
use super::observe::Scope;
use crate::wireguard::{PeerStats, PrivateKey};

/// How long the end with the greater public key leaves the first handshake to the other end. When both begin at once, each
/// drops its own half for the other's and both answers are lost; WireGuard then waits 5 s (`REKEY_TIMEOUT`), and probes
/// from both ends repeat the collision. Measured: up to 31 s until all tunnels of six nodes were up.
const YIELD: Duration = Duration::from_millis(1500);

/// Programs one node. The first plan starts from what is in the kernel, so a restart interrupts nothing.
#[allow(missing_debug_implementations)]
pub struct Reconciler {
    kernel: Kernel,
    key: PrivateKey,
    /// The network as requested, with every endpoint. Only while some endpoints are withheld.
    requested: Option<Network>,
    /// New peers whose endpoint is withheld, and since when (see [`YIELD`]).
    yielding: BTreeMap<(InterfaceName, WgPublicKey), Instant>,
    yield_for: Duration,
    /// The network as requested, without the endpoints that are withheld.
    desired: Option<Network>,
    /// All of `desired` was programmed. Otherwise only the kernel knows what is there.
    in_place: bool,
    /// While not in place: the last network that was. Endpoints that changed since are set even if the peer roamed.
    last_in_place: Option<Network>,
    liveness: PeerLiveness,
}

/// A comparison with the kernel that failed, or a repair that failed in part.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct RepairError {
    /// The repairs that succeeded.
    pub repaired: Vec<Change>,
    #[source]
    pub why: ProgramError,
}

impl<E: Into<ProgramError>> From<E> for RepairError {
    fn from(why: E) -> Self {
        Self { repaired: Vec::new(), why: why.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot read the network: {0}")]
    Observe(#[from] io::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Reconciler {
    pub fn new(kernel: Kernel, key: PrivateKey) -> Self {
        Self {
            kernel,
            key,
            requested: None,
            yielding: BTreeMap::new(),
            yield_for: YIELD,
            desired: None,
            in_place: false,
            last_in_place: None,
            liveness: PeerLiveness::default(),
        }
    }

    /// Sets how long the first handshake with a new peer is left to the other end; 1.5 s by default.
    pub fn yielding_for(mut self, time: Duration) -> Self {
        self.yield_for = time;
        self
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn desired(&self) -> Option<&Network> {
        self.desired.as_ref()
    }

    /// Makes this the desired network and returns the changes that it took. Does not read the kernel first if all of the
    /// last plan succeeded, so a failover is one message.
    ///
    /// # Errors
    /// If the kernel cannot be read, or if some changes failed: all others are applied then, and `reconcile` tries the failed
    /// ones again.
    pub async fn program(&mut self, requested: Network) -> Result<Vec<Change>, ProgramError> {
        self.yield_to_new_peers(&requested);
        let desired = self.without_yielded(requested);
        // Every difference then is a change that failed before, or one that another program made meanwhile.
        let again = !self.in_place && self.desired.as_ref() == Some(&desired);
        let mut changes = match &self.desired {
            Some(old) if self.in_place => diff_desired(old, &desired),
            _ => diff(&desired, &self.observe(&desired).await?),
        };
        let old = self.desired.replace(desired);
        if std::mem::take(&mut self.in_place) {
            self.last_in_place = old;
        }
        let applied = self.apply(&mut changes).await;
        if again {
            changes
                .iter()
                .for_each(|change| tracing::info!("programmed by trying again: {change}"));
        }
        applied?;
        Ok(changes)
    }

    /// True when withheld endpoints are due to be set: call `reconcile`.
    pub fn is_due(&self) -> bool {
        self.yielding.values().any(|since| since.elapsed() >= self.yield_for)
    }

    /// Records the peers that are new and whose public key is smaller than ours.
    fn yield_to_new_peers(&mut self, requested: &Network) {
        if self.desired.as_ref().is_some_and(|n| n.wireguard.is_same(&requested.wireguard)) {
            return;
        }
        let ours = self.key.public();
        for (name, interface) in &requested.wireguard {
            let known = self.desired.as_ref().and_then(|n| n.wireguard.get(name));
            for key in interface.peers.keys().filter(|key| **key < ours) {
                if known.is_none_or(|i| !i.peers.contains_key(key)) {
                    self.yielding.insert((name.clone(), *key), Instant::now());
                }
            }
        }
    }

    /// Removes the peers whose wait is over without a handshake; the comparison that follows adds them again, with their
    /// endpoint. Setting the endpoint alone is not enough: WireGuard counts the attempts it made without one, and waits 5 s
    /// after each. Returns all peers whose wait is over.
    async fn renew_silent_peers(&mut self) -> BTreeSet<(InterfaceName, WgPublicKey)> {
        let over = self.yielding.iter().filter(|(_, since)| since.elapsed() >= self.yield_for);
        let over: BTreeSet<_> = over.map(|(id, _)| id.clone()).collect();
        if over.is_empty() {
            return over;
        }
        let stats = self.wireguard_stats().await;
        let silent = over
            .iter()
            .filter(|id| stats.get(id).is_some_and(|peer| peer.last_handshake.is_none()));
        let remove: Vec<Change> = silent
            .map(|(name, key)| Change::RemovePeer { name: name.clone(), key: *key })
            .collect();
        // A failure here must not stop the other repairs.
        if let Err(error) = self.kernel.apply(&remove, &self.key).await {
            tracing::warn!(%error, "cannot renew a silent peer");
        }
        over
    }

    /// Returns the network without the endpoints of peers that are still yielded to.
    fn without_yielded(&mut self, requested: Network) -> Network {
        self.yielding.retain(|_, since| since.elapsed() < self.yield_for);
        if self.yielding.is_empty() {
            self.requested = None;
            return requested;
        }
        let mut desired = requested.clone();
        for (name, key) in self.yielding.keys() {
            let peer = desired.wireguard.get_mut(name).and_then(|i| i.peers.get_mut(key));
            if let Some(peer) = peer {
                peer.endpoint = None;
            }
        }
        self.requested = Some(requested);
        desired
    }

    /// Reads the kernel and repairs what differs from the desired network. Returns the repairs, without the endpoints that
    /// it had withheld itself.
    ///
    /// # Errors
    /// If the kernel cannot be read, or if some repairs failed; the error names those that succeeded.
    pub async fn reconcile(&mut self) -> Result<Vec<Change>, RepairError> {
        let put_off = self.renew_silent_peers().await;
        if let Some(requested) = self.requested.take() {
            self.desired = Some(self.without_yielded(requested));
        }
        // Cheap: its parts are shared.
        let Some(desired) = self.desired.clone() else { return Ok(Vec::new()) };
        let mut changes = diff(&desired, &self.observe(&desired).await?);
        let applied = self.apply(&mut changes).await;
        changes.retain(|change| match change {
            Change::SetPeer { name, key, .. } => !put_off.contains(&(name.clone(), *key)),
            _ => true,
        });
        match applied {
            Ok(()) => Ok(changes),
            Err(error) => Err(RepairError { repaired: changes, why: error.into() }),
        }
    }

    /// Applies the changes, and retains only those that were applied.
    async fn apply(&mut self, changes: &mut Vec<Change>) -> Result<(), ApplyError> {
        self.in_place = false;
        let applied = self.kernel.apply(changes, &self.key).await;
        if let Err(error) = &applied {
            error.retain_applied(changes);
        } else {
            self.in_place = true;
            self.last_in_place = None;
        }
        if self.kernel.untracked_refused().is_some() {
            changes.retain(|change| !matches!(change, Change::SetUntracked { .. }));
        }
        applied
    }

    /// Returns what is in the kernel. A peer's endpoint counts as lost, and so is set again, if it differs from the desired one
    /// and one of these holds: the desired one is new, the peer is silent, or our own tunnels carry the address that it
    /// roamed to.
    async fn observe(&mut self, desired: &Network) -> io::Result<Network> {
        let mut observed = self.kernel.observe(&Scope::of(desired)).await?;
        // A table that the kernel refused is not tried again at every comparison.
        if desired.untracked.is_some() && self.kernel.untracked_is_put_off() {
            observed.untracked = desired.untracked.clone();
        }
        let stats = self.kernel.wireguard_stats(observed.wireguard.keys().cloned()).await;
        let now = Instant::now();
        self.liveness.update(&stats, now);
        for (name, interface) in &mut observed.wireguard {
            let of = |network: Option<&Network>, key| {
                network.and_then(|n| n.wireguard.get(name)?.peers.get(key)?.endpoint)
            };
            for (key, peer) in &mut interface.peers {
                let wanted = of(Some(desired), key);
                let new =
                    self.last_in_place.is_some() && of(self.last_in_place.as_ref(), key) != wanted;
                let alive = self.liveness.is_alive(&(name.clone(), *key), now);
                if peer.endpoint != wanted && (new || !alive || carried_by(desired, peer.endpoint))
                {
                    peer.endpoint = None;
                }
            }
        }
        Ok(observed)
    }

    /// Returns the peers that were sent to and have not answered for 15 s, as of the last comparison with the kernel.
    pub fn silent_peers(&self) -> BTreeSet<WgPublicKey> {
        self.liveness.silent(Instant::now())
    }

    /// Returns the counters of every peer of the desired interfaces.
    pub async fn wireguard_stats(&self) -> BTreeMap<(InterfaceName, WgPublicKey), PeerStats> {
        let links = self.desired.iter().flat_map(|d| d.wireguard.keys().cloned());
        self.kernel.wireguard_stats(links.collect::<Vec<_>>()).await
    }
}

/// True if packets to this endpoint would take a route of ours: WireGuard's own packets would then loop through its tunnels.
fn carried_by(network: &Network, endpoint: Option<SocketAddr>) -> bool {
    let Some(address) = endpoint.map(|e| e.ip()) else { return false };
    network.routes.keys().any(|route| route.prefix.contains(&address))
}

#[cfg(test)]
mod tests {
    use wgctl_plan::{RouteKey, RouteVia};

    use super::*;

    #[test]
    fn an_endpoint_that_our_own_routes_lead_to_is_recognised() {
        let mut network = Network::default();
        for prefix in ["10.0.2.0/24", "fd00::/64"] {
            let key = RouteKey { table: 254, prefix: prefix.parse().unwrap(), metric: 50 };
            let via = RouteVia::Device { dev: "wgl0".parse().unwrap(), source: None };
            network.routes.insert(key, via);
        }
        for (endpoint, carried) in [
            (Some("10.0.2.7:51900"), true),
            (Some("[fd00::7]:51901"), true),
            (Some("10.0.3.7:51900"), false),
            (Some("203.0.113.7:51900"), false),
            (None, false),
        ] {
            let endpoint = endpoint.map(|e| e.parse().unwrap());
            assert_eq!(carried_by(&network, endpoint), carried, "{endpoint:?}");
        }
    }
}
