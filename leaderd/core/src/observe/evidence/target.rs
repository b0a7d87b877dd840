//! One target: an address that answers probes, and what is known of it apart from any path.

use std::collections::VecDeque;
use std::net::IpAddr;

use wgctl_plan::WgPublicKey;

use crate::ids::NodeName;
use crate::observe::index::PathIdx;
use crate::observe::{UDP, ip_header};
use crate::probe::stamp::{AUTHENTICATED_LEN, REQUEST_LEN};
use crate::time::Instant;

/// Replies remembered per target, to find the direction of loss.
const REPLIES: usize = 64;

/// Whether a target can show anything about paths.
///
/// ```text
///   healthy ──every path loses it──▶ quarantined ──a new flow passes──▶ healthy
///   any ──its kernel: nothing listens──▶ quarantined, daemon absent ──its daemon answers──▶ quarantined
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TargetHealth {
    /// Dead through every path: held against none of them, and probed slowly.
    quarantined: bool,
    /// Its daemon is gone: its kernel answers with ICMP, and as ICMP is limited to about one a second, silence says nothing.
    daemon_absent: bool,
}

impl TargetHealth {
    pub fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    pub fn is_daemon_absent(&self) -> bool {
        self.daemon_absent
    }

    /// Every path loses it. Returns whether that is new.
    pub fn quarantine(&mut self) -> bool {
        !std::mem::replace(&mut self.quarantined, true)
    }

    /// Its kernel says that nothing listens there. Returns whether that is new. A candidate's own address is never quarantined:
    /// it shows the tunnel.
    pub fn on_unreachable(&mut self, is_relay: bool) -> bool {
        let new = !std::mem::replace(&mut self.daemon_absent, true);
        if new {
            self.quarantined = !is_relay;
        }
        new
    }

    pub fn on_daemon_answered(&mut self) {
        self.daemon_absent = false;
    }

    /// A new flow passed. Returns whether that ends its quarantine.
    pub fn on_new_flow_passed(&mut self) -> bool {
        let ends = self.quarantined && !self.daemon_absent;
        self.quarantined &= !ends;
        ends
    }
}

/// An address that answers probes.
#[derive(Debug)]
pub struct Target {
    pub node: NodeName,
    /// `None`: a reflector that is not ours, probed without authentication.
    pub key: Option<WgPublicKey>,
    pub address: IpAddr,
    /// `None`: any of the mesh's probe ports.
    pub port: Option<u16>,
    /// Where this is a candidate's own inner address: its path.
    pub relay_of: Option<PathIdx>,
    /// The address of the node itself, and not of its workloads.
    pub is_nodes_own: bool,
    /// Where this is a candidate's workload, or its address: its path.
    pub candidate: Option<PathIdx>,
    pub ssid: u16,
    pub seq: u32,
    pub health: TargetHealth,
    /// Sender's number, reflector's number, when it was sent.
    pub replies: VecDeque<(u32, u32, Instant)>,
}

impl Target {
    /// Returns whether this is the same target under another mesh file.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let what = |t: &Self| (t.address, t.port, t.relay_of.is_some());
        self.node == other.node && what(self) == what(other)
    }

    /// Returns the bytes of the smallest probe to it, headers included. A reflector that is not ours gets no TLV but padding.
    pub fn smallest(&self) -> u16 {
        let payload = if self.key.is_some() { REQUEST_LEN } else { AUTHENTICATED_LEN };
        payload as u16 + UDP + ip_header(self.address.is_ipv6())
    }

    pub fn replied(&mut self, sender: u32, reflector: u32, sent: Instant) {
        self.health.on_daemon_answered();
        if self.key.is_none() {
            // Whether a foreign reflector counts what it answers, or sends our number back (RFC 8762 §4.2), is not known.
            return;
        }
        if self.replies.len() == REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back((sender, reflector, sent));
    }

    /// Returns (lost on the way there, lost on the way back) among the probes sent between the last reply to one sent before
    /// `from` and the newest reply.
    pub fn losses_by_direction(&self, from: Instant) -> Option<(u32, u32)> {
        let base = self.replies.iter().rev().find(|r| r.2 < from)?;
        let last = self.replies.iter().max_by_key(|r| r.0)?;
        let sent = last.0.checked_sub(base.0)?;
        let arrived = last.1.checked_sub(base.1)?.min(sent);
        let back = self.replies.iter().filter(|r| r.0 > base.0).count() as u32;
        Some((sent - arrived, arrived.saturating_sub(back)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_ends_with_a_new_flow_that_passes_and_only_while_a_daemon_answers() {
        let mut health = TargetHealth::default();
        assert!(!health.on_new_flow_passed(), "there is none");
        assert!(health.quarantine() && !health.quarantine());
        assert!(health.on_new_flow_passed());
        assert_eq!(health, TargetHealth::default());
        assert!(health.on_unreachable(false) && !health.on_unreachable(false));
        assert!(health.is_quarantined() && health.is_daemon_absent());
        assert!(!health.on_new_flow_passed(), "an ICMP error counts as a delivery");
        health.on_daemon_answered();
        assert!(health.is_quarantined() && health.on_new_flow_passed());
    }

    #[test]
    fn a_candidates_own_address_is_never_quarantined_for_an_absent_daemon() {
        let mut health = TargetHealth::default();
        assert!(health.on_unreachable(true));
        assert!(health.is_daemon_absent() && !health.is_quarantined());
    }
}
