//! The reconciler of the real kernel, `wgctl::net`.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{self, LocalBoxStream};
use futures_util::{Stream, StreamExt};
use leaderd_core::io::{OverriddenRoute, RouteCheck};
use wgctl::net::{self, Kernel, Lookups, ProgramError};
use wgctl::wireguard::PrivateKey;
use wgctl_plan::{Network, Packet, WgPublicKey};
use zeroize::Zeroizing;

use super::{FailedParts, Reconciler, Repairs};
use crate::secrets::Keys;

/// A watch of the network that ended is opened again after this. It ends when its socket fails, and the cause may last.
const REOPEN: Duration = Duration::from_secs(5);

#[allow(missing_debug_implementations)]
pub struct KernelReconciler {
    reconciler: net::Reconciler,
    backend: String,
    lookups: Lookups,
    drift: LocalBoxStream<'static, bool>,
}

impl KernelReconciler {
    /// Opens the kernel and starts to watch it.
    ///
    /// # Errors
    /// If the kernel's network or WireGuard cannot be used; says what is missing.
    pub async fn open(keys: &Keys) -> anyhow::Result<Self> {
        let kernel = Kernel::open()?;
        let backend = kernel.backend().to_string();
        tracing::info!(backend, "WireGuard");
        let secret = Zeroizing::new(*keys.wireguard.expose());
        let reconciler = net::Reconciler::new(kernel, PrivateKey::from_bytes(*secret));
        let watch = net::watch().await.context("cannot watch the network for changes")?;
        let drift = lasting(watch, REOPEN, net::watch);
        // After a gap in the watch anything may have changed.
        let drift = drift.map(|drift| drift.is_none_or(|d| d.concerns_ours())).boxed_local();
        let lookups = Lookups::open().context("cannot ask the kernel for routes")?;
        Ok(Self { reconciler, backend, lookups, drift })
    }
}

impl Reconciler for KernelReconciler {
    fn backend(&self) -> String {
        self.backend.clone()
    }

    async fn program(&mut self, network: Network) -> Result<FailedParts, String> {
        let changes = match self.reconciler.program(network).await {
            Ok(changes) => changes,
            Err(error) => return failed_parts(&error),
        };
        tracing::debug!(changes = changes.len(), "programmed");
        for change in &changes {
            tracing::trace!("{change}");
        }
        Ok(FailedParts::default())
    }

    async fn reconcile(&mut self) -> Repairs {
        let (repaired, failed) = match self.reconciler.reconcile().await {
            Ok(repaired) => (repaired, Ok(FailedParts::default())),
            Err(error) => (error.repaired, failed_parts(&error.why)),
        };
        Repairs { made: repaired.iter().map(ToString::to_string).collect(), failed }
    }

    fn is_due(&self) -> bool {
        self.reconciler.is_due()
    }

    fn silent(&self) -> BTreeSet<WgPublicKey> {
        self.reconciler.silent_peers()
    }

    fn notes(&self) -> Vec<String> {
        let refused = self.reconciler.kernel().untracked_refused();
        let note = |why| {
            format!(
                "transit is tracked, so source NAT and firewalls of others on this node apply to what it relays: the kernel refused the \
                 nftables table `inet leaderd` ({why}); load nf_tables and nf_conntrack, or set `track_transit = true`"
            )
        };
        refused.map(note).into_iter().collect()
    }

    fn overridden(&mut self, checks: &[RouteCheck]) -> Vec<OverriddenRoute> {
        let Some(network) = self.reconciler.desired() else { return Vec::new() };
        let asked = |check: &RouteCheck| {
            let RouteCheck { source, target, iif, .. } = check;
            let packet = Packet { source: *source, target: *target, iif: iif.as_ref() };
            let found = self.lookups.overridden(network, &packet)?;
            Some(OverriddenRoute { check: check.clone(), found })
        };
        checks.iter().filter_map(asked).collect()
    }

    async fn drift(&mut self) -> bool {
        self.drift.next().await.unwrap_or(true)
    }
}

fn failed_parts(error: &ProgramError) -> Result<FailedParts, String> {
    match error {
        ProgramError::Apply(error) => Ok(error.failures.iter().collect()),
        ProgramError::Observe(_) => Err(error.to_string()),
    }
}

/// Returns the items of one watch after another: when one has ended, which it logs itself, the next is opened `pause` later. Opening
/// is an item too, `None`, since anything may have changed in between. Never ends.
fn lasting<S: Stream>(
    first: S,
    pause: Duration,
    open: impl AsyncFnMut() -> io::Result<S>,
) -> impl Stream<Item = Option<S::Item>> {
    stream::unfold((Box::pin(first), open), move |(mut watch, mut open)| async move {
        if let Some(item) = watch.next().await {
            return Some((Some(item), (watch, open)));
        }
        loop {
            tokio::time::sleep(pause).await;
            match open().await {
                Ok(next) => {
                    tracing::info!("watching the network again");
                    return Some((None, (Box::pin(next), open)));
                }
                Err(error) => tracing::debug!(%error, "cannot watch the network yet"),
            }
        }
    })
}

/// Removes everything that leaderd made in the kernel. Returns a line for each removal.
///
/// # Errors
/// If the kernel cannot be opened, or something cannot be removed.
pub async fn cleanup() -> anyhow::Result<Vec<String>> {
    let removed = Kernel::open()?.cleanup().await?;
    Ok(removed.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// This many items, then the end. Panics if it is polled after its end, as the kernel's watch does.
    fn watch(news: u32) -> impl Stream<Item = u32> {
        stream::unfold(news, |left| async move { left.checked_sub(1).map(|left| (left, left)) })
    }

    #[tokio::test]
    async fn a_watch_that_ends_is_opened_again_until_that_succeeds() {
        let mut opened = 0;
        let news = lasting(watch(0), Duration::from_millis(1), async || {
            opened += 1;
            if opened == 2 { Err(io::Error::other("no memory")) } else { Ok(watch(opened % 2)) }
        });
        let mut news = Box::pin(news);
        // The first future is dropped while there is no watch, as in a `select!`.
        let first = std::pin::pin!(news.next()).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(first, Poll::Pending);
        for expected in [None, Some(0), None, Some(0)] {
            assert_eq!(news.next().await, Some(expected));
        }
        drop(news);
        // Opened (1), its item, failed (2), opened (3), its item.
        assert_eq!(opened, 3);
    }
}
