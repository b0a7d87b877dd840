//! DNS names of endpoints, looked up again and again: their addresses may change, and DNS may be late.
//!
//! An address that was good is cached on disk, and the next start uses it at once: DNS may be slow at a boot, or lie behind the mesh.
//! The core says which of the addresses found are fit, and which is used ([`Addresses`], [`Mesh::unfit_endpoint`]).

mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use leaderd_core::ids::NodeName;
use leaderd_core::mesh::{Addresses, Host, Mesh, Unfit};
use tokio::time::{Instant, timeout};
use wgctl_plan::WgPublicKey;

use crate::clock::Clock;
use cache::AddressCache;

/// How long one look-up may take; the last known address stays in use.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a name that resolves is looked up.
const AGAIN: Duration = Duration::from_secs(60);

/// After the first failure; doubles with each, up to [`AGAIN`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How long a start waits for names that no address is known of.
pub const START: Duration = Duration::from_secs(2);

type Answer = (String, Result<Vec<IpAddr>, String>);
type Lookup = fn(String) -> BoxFuture<'static, Answer>;

/// Addresses in use, by name.
pub type Resolved = BTreeMap<String, IpAddr>;

/// See the module.
#[allow(missing_debug_implementations)]
pub struct Resolver {
    me: NodeName,
    clock: Clock,
    names: BTreeMap<String, Name>,
    lookup: Lookup,
    lookups: FuturesUnordered<BoxFuture<'static, Answer>>,
    cache: AddressCache,
    /// The addresses that were last reported.
    reported: Resolved,
}

struct Name {
    addresses: Addresses,
    keys: BTreeSet<WgPublicKey>,
    /// All nodes with this name are of this node's own location: no tunnel of its own ends there.
    near: bool,
    /// `None` while a look-up is under way.
    due: Option<Instant>,
    failures: u32,
    /// The address that was last called unfit in the log.
    refused: BTreeSet<IpAddr>,
}

impl Resolver {
    /// Begins with the addresses that are cached in `state`. Looks up nothing yet.
    pub fn open(me: NodeName, state: &Path, clock: Clock) -> Self {
        Self::with(me, AddressCache::open(state), clock, |name| Box::pin(look_up(name)))
    }

    fn with(me: NodeName, cache: AddressCache, clock: Clock, lookup: Lookup) -> Self {
        let (names, reported, lookups) =
            (BTreeMap::new(), Resolved::new(), FuturesUnordered::new());
        Self { me, clock, names, lookup, lookups, cache, reported }
    }

    /// Takes the names of this mesh from now on. New ones are looked up by the next call that waits.
    pub fn set_mesh(&mut self, mesh: &Mesh) {
        let mut before = std::mem::take(&mut self.names);
        let home = mesh.node(&self.me).map(|n| &n.location);
        for node in mesh.nodes.values() {
            let Some(Host::Name(text)) = &node.endpoint else { continue };
            let name = self.names.entry(text.clone()).or_insert_with(|| {
                let known =
                    before.remove(text).map(|n| Name { keys: BTreeSet::new(), near: true, ..n });
                known.unwrap_or_else(|| Name {
                    addresses: Addresses::new(self.cache.address(text)),
                    keys: BTreeSet::new(),
                    near: true,
                    due: Some(Instant::now()),
                    failures: 0,
                    refused: BTreeSet::new(),
                })
            });
            name.keys.insert(node.wireguard_key);
            name.near &= home == Some(&node.location);
        }
        for (text, name) in &mut self.names {
            if let Some(address) = name.addresses.in_use()
                && let Some(why) = unfit(mesh, &self.me, name.near, address)
            {
                tracing::warn!(endpoint.name = text, %address, %why, "an endpoint's address is not used any more");
                name.addresses.give_up();
            }
        }
    }

    /// The addresses in use.
    pub fn addresses(&self) -> Resolved {
        let in_use = |(name, n): (&String, &Name)| Some((name.clone(), n.addresses.in_use()?));
        self.names.iter().filter_map(in_use).collect()
    }

    /// Waits until every name has an address or was looked up once, but not longer than `limit`.
    pub async fn first(&mut self, mesh: &Mesh, limit: Duration) -> Resolved {
        let _ = timeout(limit, async {
            while self.names.values().any(|n| n.addresses.in_use().is_none() && n.failures == 0) {
                self.step(mesh).await;
            }
        })
        .await;
        self.reported = self.addresses();
        self.reported.clone()
    }

    /// Waits until other addresses are in use than were last reported, and returns them all. Cancel-safe.
    pub async fn changed(&mut self, mesh: &Mesh) -> Resolved {
        loop {
            let now = self.addresses();
            if now != self.reported {
                self.reported = now.clone();
                return now;
            }
            self.step(mesh).await;
        }
    }

    /// Peers that were sent to and are silent: where a name has several addresses, another one is tried.
    pub fn silent(&mut self, peers: &BTreeSet<WgPublicKey>) {
        let now = self.clock.now().mono;
        for (text, name) in &mut self.names {
            if name.keys.iter().any(|key| !peers.contains(key)) {
                name.addresses.heard();
                continue;
            }
            let before = name.addresses.in_use();
            if name.addresses.silent(now)
                && let (Some(before), Some(address)) = (before, name.addresses.in_use())
            {
                tracing::warn!(endpoint.name = text, %before, %address, "an endpoint is silent: trying the next address of its name");
            }
        }
    }

    /// One answer, or what is due. Cancel-safe.
    async fn step(&mut self, mesh: &Mesh) {
        let now = Instant::now();
        for (text, name) in &mut self.names {
            if name.due.is_some_and(|due| due <= now) {
                name.due = None;
                self.lookups.push((self.lookup)(text.clone()));
            }
        }
        let next = self.names.values().filter_map(|n| n.due).min();
        tokio::select! {
            Some((text, answer)) = self.lookups.next() => self.answered(mesh, &text, answer),
            () = self.cache.written() => {}
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }

    fn answered(&mut self, mesh: &Mesh, text: &str, answer: Result<Vec<IpAddr>, String>) {
        // The mesh may have lost the name meanwhile.
        let Some(name) = self.names.get_mut(text) else { return };
        let found = answer.unwrap_or_else(|error| {
            // One line when it begins to fail, one when that is over.
            if name.failures == 0 {
                tracing::warn!(endpoint.name = text, error, "cannot resolve an endpoint");
            }
            Vec::new()
        });
        let (mut fit, mut refused) = (Vec::new(), BTreeSet::new());
        for address in found {
            match unfit(mesh, &self.me, name.near, address) {
                None => fit.push(address),
                Some(why) => {
                    if !name.refused.contains(&address) {
                        tracing::warn!(endpoint.name = text, %address, %why, "an endpoint's name has an address that cannot be its own: ignored");
                    }
                    refused.insert(address);
                }
            }
        }
        name.refused = refused;
        if fit.is_empty() {
            let wait = FIRST_RETRY.saturating_mul(1 << name.failures.min(8));
            name.failures += 1;
            name.due = Some(Instant::now() + wait.min(AGAIN));
            return;
        }
        if std::mem::take(&mut name.failures) > 0 {
            tracing::info!(endpoint.name = text, "the endpoint resolves again");
        }
        name.due = Some(Instant::now() + AGAIN);
        name.addresses.answered(&fit);
        let in_use = self.addresses();
        self.cache.store(in_use);
    }
}

/// An endpoint in this node's own location is no peer of its own, and may well be its own address.
fn unfit(mesh: &Mesh, me: &NodeName, near: bool, address: IpAddr) -> Option<Unfit> {
    let why = mesh.unfit_endpoint(me, address);
    why.filter(|why| !near || !matches!(why, Unfit::Own | Unfit::Neighbour(_)))
}

async fn look_up(name: String) -> Answer {
    let host = (name.clone(), 0);
    let found = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(host)).await {
        Ok(Ok(addresses)) => Ok(addresses.map(|a| a.ip().to_canonical()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
    };
    (name, found)
}

#[cfg(test)]
mod tests;
