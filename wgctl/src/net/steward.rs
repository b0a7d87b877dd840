//! Keeps the network as desired: at once when the wish changes, and again whenever the kernel has drifted from it.

use std::collections::BTreeMap;
use std::io;

use wgctl_plan::{Change, InterfaceName, Network, WgPublicKey, diff, diff_desired};

use super::kernel::{ApplyError, Kernel};
use super::observe::Scope;
use crate::wireguard::{PeerStats, PrivateKey};

/// Programs one node. The first plan starts from what the kernel has, so that a restart interrupts nothing.
#[allow(missing_debug_implementations)]
pub struct Steward {
    kernel: Kernel,
    key: PrivateKey,
    /// What was programmed last; `None` before the first plan and after a failure, when only the kernel knows.
    in_place: Option<Network>,
    desired: Option<Network>,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub changes: Vec<Change>,
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
        Self { kernel, key, in_place: None, desired: None }
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn desired(&self) -> Option<&Network> {
        self.desired.as_ref()
    }

    /// Makes this the desired network, without asking the kernel first if the last plan succeeded: a failover is one
    /// message. If a change fails the others are made all the same, and `reconcile` tries it again.
    pub async fn program(&mut self, desired: Network) -> Result<Report, ProgramError> {
        let changes = match self.in_place.take() {
            Some(old) => diff_desired(&old, &desired),
            None => diff(&desired, &self.kernel.observe(&self.scope(&desired)).await?),
        };
        // Endpoints that changed with a plan that was never wholly in place are lost to `diff`, so compare to it too.
        self.desired = Some(desired.clone());
        self.kernel.apply(&changes, &self.key).await?;
        self.in_place = Some(desired);
        Ok(Report { changes })
    }

    /// Looks at the kernel and repairs what differs from the desired network. Tells what it repaired.
    pub async fn reconcile(&mut self) -> Result<Vec<Change>, ProgramError> {
        let Some(desired) = self.desired.clone() else { return Ok(Vec::new()) };
        let observed = self.kernel.observe(&self.scope(&desired)).await?;
        let changes = diff(&desired, &observed);
        self.in_place = None;
        self.kernel.apply(&changes, &self.key).await?;
        self.in_place = Some(desired);
        Ok(changes)
    }

    /// Counters of every peer of the desired interfaces.
    pub async fn wireguard_stats(&self) -> io::Result<BTreeMap<(InterfaceName, WgPublicKey), PeerStats>> {
        let links = self.desired.iter().flat_map(|d| d.wireguard.keys().cloned());
        self.kernel.wireguard_stats(links.collect::<Vec<_>>()).await
    }

    fn scope(&self, desired: &Network) -> Scope {
        Scope::of(desired)
    }
}
