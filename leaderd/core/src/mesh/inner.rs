//! Inner addresses, and the ranges that they come from (`docs/decisions/0010`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ids::{NodeIndex, Slot};

/// The range of a mesh file that sets none. It never changes: an upgrade must not move a running mesh to another range. New mesh files
/// set theirs.
pub const UNSAID_INNER: &str = "100.127.0.0/16";

/// The range of new meshes: nobody routes link-local addresses, and no endpoint discovery announces them.
pub const NEW_INNER: &str = "169.254.0.0/16";

/// The ranges of new meshes where [`NEW_INNER`] is in use, best first.
pub const OTHER_INNER: [&str; 3] = ["172.29.0.0/16", "10.213.0.0/16", "100.127.0.0/16"];

/// In link-local addresses this slot holds 169.254.169.254 and its neighbours, where clouds serve metadata, names and time.
pub const METADATA_SLOT: Slot = Slot(10);

/// Returns whether others need the inner addresses of a slot.
pub fn is_taken(range: Ipv4Net, slot: Slot) -> bool {
    slot == METADATA_SLOT && range.addr().is_link_local()
}

/// Ranges of the inner addresses. Their low 16 bits are `slot << 12 | index`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InnerRange {
    /// Exactly a /16.
    pub v4: Ipv4Net,
    /// Exactly a /112 of a ULA prefix; present when a workload prefix is IPv6.
    pub v6: Option<Ipv6Net>,
}

impl InnerRange {
    pub(super) fn address4(&self, slot: Slot, index: NodeIndex) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) + u32::from(low_bits(slot, index)))
    }

    pub(super) fn address6(&self, slot: Slot, index: NodeIndex) -> Option<Ipv6Addr> {
        let base = u128::from(self.v6?.network());
        Some(Ipv6Addr::from(base + u128::from(low_bits(slot, index))))
    }

    pub(super) fn of_slot4(&self, slot: Slot) -> Ipv4Net {
        Ipv4Net::new(self.address4(slot, NodeIndex(0)), 20).expect("20 is a prefix length")
    }

    pub(super) fn of_slot6(&self, slot: Slot) -> Option<Ipv6Net> {
        let first = self.address6(slot, NodeIndex(0))?;
        Some(Ipv6Net::new(first, 116).expect("116 is a prefix length"))
    }

    /// Returns slot and node of an inner address; `None` for other addresses.
    pub fn read(&self, ip: IpAddr) -> Option<(Slot, NodeIndex)> {
        let low = match ip {
            IpAddr::V4(ip) if self.v4.contains(&ip) => u32::from(ip) as u16,
            IpAddr::V6(ip) if self.v6.is_some_and(|r| r.contains(&ip)) => u128::from(ip) as u16,
            _ => return None,
        };
        Some((Slot((low >> 12) as u8), NodeIndex(low & 0x0fff)))
    }
}

fn low_bits(slot: Slot, index: NodeIndex) -> u16 {
    (u16::from(slot.0) << 12) + index.0
}
