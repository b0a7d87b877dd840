//! Rules and routes of another tool on a node: they win before ours and lead nowhere, as a VPN client's do whose own way is dead.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wgctl_plan::InterfaceName;

/// What another tool has put into a node's kernel. What it takes is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// Packets to here.
    pub to: IpNet,
    /// With a source in here. A route knows no source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpNet>,
    /// That came in by this device. A route knows no device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<InterfaceName>,
    pub kind: ForeignKind,
}

/// How it takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForeignKind {
    /// `ip rule add pref N to … lookup T`, with a route in a table of its own.
    Rule(u32),
    /// A route in `main` with this metric.
    Route { metric: u32 },
}

impl Foreign {
    /// Returns whether a packet is one that it takes if nothing takes it before.
    pub fn takes(&self, source: IpAddr, target: IpAddr, iif: Option<&InterfaceName>) -> bool {
        let here = self.to.contains(&target);
        match self.kind {
            ForeignKind::Route { .. } => here,
            ForeignKind::Rule(_) => {
                here && self.from.is_none_or(|p| p.contains(&source))
                    && self.iif.as_ref().is_none_or(|dev| Some(dev) == iif)
            }
        }
    }

    pub(super) fn rule_priority(&self) -> Option<u32> {
        match self.kind {
            ForeignKind::Rule(priority) => Some(priority),
            ForeignKind::Route { .. } => None,
        }
    }

    /// Returns its place among the routes of `main`, the smallest first: long prefixes, then low metrics.
    pub(super) fn route_rank(&self) -> Option<(Reverse<u8>, u32)> {
        match self.kind {
            ForeignKind::Rule(_) => None,
            ForeignKind::Route { metric } => Some((Reverse(self.to.prefix_len()), metric)),
        }
    }
}
