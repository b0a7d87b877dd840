//! The real steward: `wgctl::net`.

use std::pin::Pin;

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use wgctl::net::{self, Drift, Kernel};
use wgctl::wireguard::PrivateKey;
use wgctl_plan::Network;
use zeroize::Zeroizing;

use super::Steward;
use crate::secrets::Keys;

#[allow(missing_debug_implementations)]
pub struct KernelSteward {
    steward: net::Steward,
    backend: String,
    drift: Pin<Box<dyn Stream<Item = Drift> + Send>>,
}

impl KernelSteward {
    /// Finds out who does WireGuard on this machine. The error says what is missing.
    pub async fn open(keys: &Keys) -> anyhow::Result<Self> {
        let kernel = Kernel::open()?;
        let backend = kernel.backend().to_string();
        tracing::info!(backend, "WireGuard");
        let secret = Zeroizing::new(*keys.wireguard.expose());
        let steward = net::Steward::new(kernel, PrivateKey::from_bytes(*secret));
        let drift = Box::pin(net::watch().await.context("cannot watch the network for changes")?);
        Ok(Self { steward, backend, drift })
    }
}

impl Steward for KernelSteward {
    fn backend(&self) -> String {
        self.backend.clone()
    }

    async fn program(&mut self, network: Network) -> Result<(), String> {
        let report = self.steward.program(network).await.map_err(|e| e.to_string())?;
        tracing::debug!(changes = report.changes.len(), "programmed");
        for change in &report.changes {
            tracing::trace!("{change}");
        }
        Ok(())
    }

    async fn reconcile(&mut self) -> Result<Vec<String>, String> {
        let changes = self.steward.reconcile().await.map_err(|e| e.to_string())?;
        Ok(changes.iter().map(ToString::to_string).collect())
    }

    fn is_due(&self) -> bool {
        self.steward.is_due()
    }

    async fn drift(&mut self) {
        if self.drift.next().await.is_none() {
            // The watch has ended and said why; the regular comparison goes on.
            std::future::pending().await
        }
    }
}

/// Removes all that leaderd made in the kernel, and says what that was.
pub async fn cleanup() -> anyhow::Result<Vec<String>> {
    let removed = Kernel::open()?.cleanup().await?;
    Ok(removed.iter().map(ToString::to_string).collect())
}
