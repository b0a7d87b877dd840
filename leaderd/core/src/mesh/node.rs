//! A node and its keys.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wgctl_plan::{InterfaceName, WgPublicKey};

use crate::ids::{LocationName, NodeIndex, NodeName, Slot};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub index: NodeIndex,
    pub location: LocationName,
    /// `Some` for candidates.
    pub slot: Option<Slot>,
    /// Candidates with a lower number are preferred; among equal ones, the lower slot.
    pub priority: u16,
    /// Host that other locations reach this candidate's WireGuard ports on. Always present for candidates.
    pub endpoint: Option<Host>,
    /// Address within the location (LAN).
    pub address: IpAddr,
    /// LAN device, for overlay `direct`; found by `address` when absent.
    pub device: Option<InterfaceName>,
    /// Workload prefixes behind this node, without host bits; may be empty.
    pub prefixes: Vec<IpNet>,
    /// Workload addresses on which its daemon answers probes, at most one per family: those of the mesh file, else those that the node
    /// says it holds ([`super::Mesh::with_probe_addresses`]), else, while nothing is known, the first host address of its first prefix
    /// of each family.
    pub probe_addresses: Vec<IpAddr>,
    /// Whether the mesh file sets the probe addresses.
    pub probe_addresses_written: bool,
    /// Public half of the key for WireGuard and for probes (X25519).
    pub wireguard_key: WgPublicKey,
    /// Public half of the key for the control channel (Ed25519).
    pub control_key: ControlPublicKey,
}

/// An address or a DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Host {
    Ip(IpAddr),
    Name(String),
}

/// An Ed25519 public key: the identity of a node on the control channel (RFC 7250).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ControlPublicKey(pub [u8; 32]);

impl fmt::Debug for ControlPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..4] {
            write!(f, "{b:02x}")?;
        }
        f.write_str("…")
    }
}

impl Node {
    /// Returns whether an address is within a workload prefix of this node.
    pub fn has_workload(&self, ip: IpAddr) -> bool {
        self.prefixes.iter().any(|p| p.contains(&ip))
    }
}
