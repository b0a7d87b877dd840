//! The real steward: `wgctl::net`.

use wgctl_plan::Network;

use super::Steward;
use crate::secrets::Keys;

#[derive(Debug)]
pub struct KernelSteward(());

impl KernelSteward {
    pub async fn open(_keys: &Keys) -> anyhow::Result<Self> {
        anyhow::bail!("this build cannot program the kernel")
    }
}

impl Steward for KernelSteward {
    fn backend(&self) -> String {
        String::new()
    }
    async fn program(&mut self, _network: Network) -> Result<(), String> {
        Err("this build cannot program the kernel".into())
    }
    async fn reconcile(&mut self) -> Result<Vec<String>, String> {
        Ok(vec![])
    }
    async fn drift(&mut self) {
        std::future::pending().await
    }
}

/// Removes all that leaderd made in the kernel, and says what that was.
pub async fn cleanup() -> anyhow::Result<Vec<String>> {
    anyhow::bail!("this build cannot program the kernel")
}
