//! Keeps the network as desired: at once when the wish changes, and again whenever the kernel has drifted from it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wgctl_plan::{Change, InterfaceName, Network, WgPublicKey, diff, diff_desired};

use super::heard::Heard;
use super::kernel::{ApplyError, Kernel};
use super::observe::Scope;
use crate::wireguard::{PeerStats, PrivateKey};

/// How long the side with the greater public key leaves the first handshake to the other. When both begin at once, each
/// drops its own half for the other's and both answers are lost; WireGuard then waits 5 s (`REKEY_TIMEOUT`), and probes
/// from both sides make it happen again and again. Measured: up to 31 s until all tunnels of six nodes were up.
const YIELD: Duration = Duration::from_millis(1500);

/// Programs one node. The first plan starts from what the kernel has, so that a restart interrupts nothing.
#[allow(missing_debug_implementations)]
pub struct Steward {
    kernel: Kernel,
    key: PrivateKey,
    /// As asked for, with every endpoint; only while some are held back.
    wanted: Option<Network>,
    /// New peers whose endpoint is held back, and since when (see [`YIELD`]).
    yielding: BTreeMap<(InterfaceName, WgPublicKey), Instant>,
    yield_for: Duration,
    /// As asked for, without the endpoints that are held back.
    desired: Option<Network>,
    /// Whether all of `desired` was programmed. If not, only the kernel knows what is there.
    in_place: bool,
    /// While not in place: the last network that was. Endpoints that changed since must be set, roaming or not.
    last_in_place: Option<Network>,
    heard: Heard,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub changes: Vec<Change>,
}

/// A comparison that found out nothing, or a repair that failed in part.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct RepairError {
    /// What was repaired all the same.
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

impl Steward {
    pub fn new(kernel: Kernel, key: PrivateKey) -> Self {
        Self {
            kernel,
            key,
            wanted: None,
            yielding: BTreeMap::new(),
            yield_for: YIELD,
            desired: None,
            in_place: false,
            last_in_place: None,
            heard: Heard::default(),
        }
    }

    /// Leaves the first handshake with a new peer to the other side for so long, in place of 1.5 s.
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

    /// Makes this the desired network, without asking the kernel first if the last plan succeeded: a failover is one
    /// message. If a change fails the others are made all the same, and `reconcile` tries it again.
    pub async fn program(&mut self, wanted: Network) -> Result<Report, ProgramError> {
        self.yield_to_new_peers(&wanted);
        let desired = self.without_yielded(wanted);
        // Then all that differs is of no new wish: it failed before, or somebody changed it meanwhile.
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
        Ok(Report { changes })
    }

    /// True when endpoints that were held back are to be set: call `reconcile`.
    pub fn is_due(&self) -> bool {
        self.yielding.values().any(|since| since.elapsed() >= self.yield_for)
    }

    /// Notes the peers that are new and whose public key is smaller than ours.
    fn yield_to_new_peers(&mut self, wanted: &Network) {
        if self.desired.as_ref().is_some_and(|n| n.wireguard.is_same(&wanted.wireguard)) {
            return;
        }
        let ours = self.key.public();
        for (name, interface) in &wanted.wireguard {
            let known = self.desired.as_ref().and_then(|n| n.wireguard.get(name));
            for key in interface.peers.keys().filter(|key| **key < ours) {
                if known.is_none_or(|i| !i.peers.contains_key(key)) {
                    self.yielding.insert((name.clone(), *key), Instant::now());
                }
            }
        }
    }

    /// Removes the peers that have waited long enough for the other side in vain; the comparison that follows makes them
    /// anew, with their endpoint. Merely setting it would not do: WireGuard counts the attempts it made without one, and
    /// waits 5 s after each. Gives all peers whose wait is over.
    async fn renew_silent_peers(
        &mut self,
    ) -> Result<BTreeSet<(InterfaceName, WgPublicKey)>, ProgramError> {
        let over = self.yielding.iter().filter(|(_, since)| since.elapsed() >= self.yield_for);
        let over: BTreeSet<_> = over.map(|(id, _)| id.clone()).collect();
        if over.is_empty() {
            return Ok(over);
        }
        let stats = self.wireguard_stats().await?;
        let silent = over
            .iter()
            .filter(|id| stats.get(id).is_some_and(|peer| peer.last_handshake.is_none()));
        let remove: Vec<Change> = silent
            .map(|(name, key)| Change::RemovePeer { name: name.clone(), key: *key })
            .collect();
        // One that cannot be removed must not keep the rest from being repaired.
        if let Err(error) = self.kernel.apply(&remove, &self.key).await {
            tracing::warn!(%error, "a silent peer is not renewed");
        }
        Ok(over)
    }

    fn without_yielded(&mut self, wanted: Network) -> Network {
        self.yielding.retain(|_, since| since.elapsed() < self.yield_for);
        if self.yielding.is_empty() {
            self.wanted = None;
            return wanted;
        }
        let mut desired = wanted.clone();
        for (name, key) in self.yielding.keys() {
            let peer = desired.wireguard.get_mut(name).and_then(|i| i.peers.get_mut(key));
            if let Some(peer) = peer {
                peer.endpoint = None;
            }
        }
        self.wanted = Some(wanted);
        desired
    }

    /// Looks at the kernel and repairs what differs from the desired network. Tells what it repaired, which is not what it
    /// had put off itself.
    ///
    /// # Errors
    /// If the kernel cannot be read, or if some repairs failed; the others are made, and told with the error.
    pub async fn reconcile(&mut self) -> Result<Vec<Change>, RepairError> {
        let put_off = self.renew_silent_peers().await?;
        if let Some(wanted) = self.wanted.take() {
            self.desired = Some(self.without_yielded(wanted));
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

    /// Leaves of the changes what was made.
    async fn apply(&mut self, changes: &mut Vec<Change>) -> Result<(), ApplyError> {
        self.in_place = false;
        let applied = self.kernel.apply(changes, &self.key).await;
        if let Err(error) = &applied {
            error.retain_made(changes);
        } else {
            self.in_place = true;
            self.last_in_place = None;
        }
        if self.kernel.untracked_refused().is_some() {
            changes.retain(|change| !matches!(change, Change::SetUntracked { .. }));
        }
        applied
    }

    /// What is there. A peer's endpoint counts as lost (and is set again) if it is not the desired one although the desired
    /// one is new, although nobody has been heard there for long, or although our own tunnels carry the address that it roamed to.
    async fn observe(&mut self, desired: &Network) -> io::Result<Network> {
        let mut observed = self.kernel.observe(&Scope::of(desired)).await?;
        // What the kernel refuses is not tried with every look.
        if desired.untracked.is_some() && self.kernel.untracked_is_put_off() {
            observed.untracked = desired.untracked.clone();
        }
        let stats = self
            .kernel
            .wireguard_stats(observed.wireguard.keys().cloned().collect::<Vec<_>>())
            .await?;
        let now = Instant::now();
        self.heard.note(&stats, now);
        for (name, interface) in &mut observed.wireguard {
            let of = |network: Option<&Network>, key| {
                network.and_then(|n| n.wireguard.get(name)?.peers.get(key)?.endpoint)
            };
            for (key, peer) in &mut interface.peers {
                let wanted = of(Some(desired), key);
                let new =
                    self.last_in_place.is_some() && of(self.last_in_place.as_ref(), key) != wanted;
                let alive = self.heard.is_alive(&(name.clone(), *key), now);
                if peer.endpoint != wanted && (new || !alive || carried_by(desired, peer.endpoint))
                {
                    peer.endpoint = None;
                }
            }
        }
        Ok(observed)
    }

    /// Peers that were sent to and have not been heard for 15 s, by the last comparison with the kernel.
    pub fn silent_peers(&self) -> BTreeSet<WgPublicKey> {
        self.heard.silent(Instant::now())
    }

    /// Counters of every peer of the desired interfaces.
    pub async fn wireguard_stats(
        &self,
    ) -> io::Result<BTreeMap<(InterfaceName, WgPublicKey), PeerStats>> {
        let links = self.desired.iter().flat_map(|d| d.wireguard.keys().cloned());
        self.kernel.wireguard_stats(links.collect::<Vec<_>>()).await
    }
}

/// Whether packets to this endpoint would take a route of ours: WireGuard's own would run through its tunnels, for ever.
fn carried_by(network: &Network, endpoint: Option<SocketAddr>) -> bool {
    let Some(address) = endpoint.map(|e| e.ip()) else { return false };
    network.routes.keys().any(|route| route.prefix.contains(&address))
}

#[cfg(test)]
mod tests {
    use wgctl_plan::{RouteKey, RouteVia};

    use super::*;

    #[test]
    fn an_endpoint_that_our_own_routes_lead_to_is_no_place_for_a_peer() {
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
