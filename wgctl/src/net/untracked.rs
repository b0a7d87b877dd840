//! The table of transit that is not tracked, in the kernel. A kernel that cannot have it is warned of, once, and all else works.

use std::io;
use std::time::{Duration, Instant};

use wgctl_plan::Transit;

use super::netlink::{Failed, Netlink};
use super::nft;

/// What was refused is not tried again by itself before this: a module of the kernel may have come meanwhile.
const RETRY: Duration = Duration::from_secs(60);

/// How often the table is read again because somebody changed something meanwhile.
const READS: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Untracked {
    netlink: Option<Netlink>,
    /// What was there, and the generation in which it was.
    seen: Option<(u32, Option<Transit>)>,
    refused: Option<(String, Instant)>,
}

impl Untracked {
    /// Why transit is tracked although it is not to be.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_ref().map(|(why, _)| why.as_str())
    }

    /// True if it was refused so lately that it is not worth trying again.
    pub fn is_put_off(&self) -> bool {
        self.refused.as_ref().is_some_and(|(_, since)| since.elapsed() < RETRY)
    }

    /// What there is. A kernel without nf_tables has none.
    pub fn observe(&mut self) -> Option<Transit> {
        match self.try_observe() {
            Ok(found) => found,
            Err(failed) => {
                tracing::debug!(%failed, "cannot read nf_tables");
                self.netlink = None;
                None
            }
        }
    }

    fn try_observe(&mut self) -> Result<Option<Transit>, Failed> {
        let netlink = self.open()?;
        netlink.clear()?;
        let mut generation = nft::generation(netlink)?;
        if let Some((then, found)) = &self.seen
            && *then == generation
        {
            return Ok(found.clone());
        }
        let netlink = self.open()?;
        let mut found = nft::read(netlink)?;
        // What was changed while it was read may be neither the old nor the new.
        for _ in 1..READS {
            let after = nft::generation(netlink)?;
            if after == generation {
                self.seen = Some((generation, found.clone()));
                break;
            }
            generation = after;
            found = nft::read(netlink)?;
        }
        Ok(found)
    }

    fn open(&mut self) -> Result<&mut Netlink, Failed> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open_netfilter()?,
        };
        Ok(self.netlink.insert(netlink))
    }

    /// Never fails: what is refused is warned of.
    pub fn set(&mut self, transit: &Transit) {
        let result = self.open().and_then(|n| n.transaction(&nft::set(transit)));
        match result {
            Ok(()) => {
                if self.refused.take().is_some() {
                    tracing::info!("transit is not tracked now");
                }
            }
            Err(failed) => {
                self.netlink = None;
                let why = failed.to_string();
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
            Err(failed) if failed.errno == nix::errno::Errno::ENOENT as i32 => Ok(()),
            Err(failed) => Err(failed.into()),
        }
    }
}
