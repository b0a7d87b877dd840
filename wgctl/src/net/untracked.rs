//! The nftables table that keeps transit out of connection tracking. If the kernel refuses the table, one warning says so and
//! everything else works.

use std::io;
use std::time::{Duration, Instant};

use wgctl_plan::Transit;

use super::netlink::{Netlink, NetlinkError};
use super::nft;

/// A refused table is tried again after this: the missing kernel module may be loaded by then.
const RETRY: Duration = Duration::from_secs(60);

/// Reads of the table, at most, while its generation keeps changing.
const READS: usize = 5;

#[derive(Debug, Default)]
pub(super) struct UntrackedTable {
    netlink: Option<Netlink>,
    /// The ruleset generation that was last read, and what it held.
    cache: Option<(u32, Option<Transit>)>,
    refused: Option<(String, Instant)>,
}

impl UntrackedTable {
    /// Why the kernel refused the table, if it did.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_ref().map(|(why, _)| why.as_str())
    }

    /// True if the table was refused within [`RETRY`].
    pub fn is_put_off(&self) -> bool {
        self.refused.as_ref().is_some_and(|(_, since)| since.elapsed() < RETRY)
    }

    /// Returns what the table holds. A kernel without nf_tables has none.
    pub fn observe(&mut self) -> Option<Transit> {
        match self.try_observe() {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "cannot read nf_tables");
                self.netlink = None;
                None
            }
        }
    }

    fn try_observe(&mut self) -> Result<Option<Transit>, NetlinkError> {
        let netlink = self.open()?;
        netlink.clear()?;
        let mut generation = nft::generation(netlink)?;
        if let Some((then, found)) = &self.cache
            && *then == generation
        {
            return Ok(found.clone());
        }
        let netlink = self.open()?;
        let mut found = nft::read(netlink)?;
        // A read during a change may mix old and new.
        for _ in 1..READS {
            let after = nft::generation(netlink)?;
            if after == generation {
                self.cache = Some((generation, found.clone()));
                break;
            }
            generation = after;
            found = nft::read(netlink)?;
        }
        Ok(found)
    }

    fn open(&mut self) -> Result<&mut Netlink, NetlinkError> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open_netfilter()?,
        };
        Ok(self.netlink.insert(netlink))
    }

    /// Writes the table. Never fails: a refusal is logged and remembered.
    pub fn set(&mut self, transit: &Transit) {
        let result = self.open().and_then(|n| n.transaction(&nft::set(transit)));
        match result {
            Ok(()) => {
                if self.refused.take().is_some() {
                    tracing::info!("transit is not tracked now");
                }
            }
            Err(error) => {
                self.netlink = None;
                let why = error.to_string();
                if self.refused() != Some(&why) {
                    tracing::warn!(
                        error = why,
                        remedy = "a kernel with nf_tables, nft_ct and nft_fib_inet, or overlays and a CNI without source NAT",
                        "transit is tracked: source NAT and firewalls of others on this node apply to what it relays"
                    );
                }
                self.refused = Some((why, Instant::now()));
            }
        }
    }

    pub fn remove(&mut self) -> io::Result<()> {
        self.refused = None;
        match self.open().and_then(|n| n.transaction(&nft::remove())) {
            Ok(()) => Ok(()),
            Err(error) if error.errno == nix::errno::Errno::ENOENT as i32 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
