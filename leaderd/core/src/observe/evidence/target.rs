//! One target: an address that answers probes, and what is known of it apart from any path.

use std::collections::VecDeque;
use std::net::IpAddr;

use wgctl_plan::WgPublicKey;

use crate::ids::NodeName;
use crate::observe::{UDP, ip_header};
use crate::probe::stamp::{AUTHENTICATED_LEN, REQUEST_LEN};
use crate::time::Instant;

/// Replies remembered per target, to find the direction of loss.
const REPLIES: usize = 64;

/// Something that answers probes.
#[derive(Debug)]
pub struct Target {
    pub node: NodeName,
    /// `None`: a reflector that is not ours, asked without authentication.
    pub key: Option<WgPublicKey>,
    pub address: IpAddr,
    /// `None`: any of the mesh's probe ports.
    pub port: Option<u16>,
    /// Where this is the candidate's own inner address: the slot's index among the paths.
    pub relay_of: Option<usize>,
    /// The address of the node itself, and not of its workloads.
    pub own: bool,
    /// Where this is a candidate's workload, or its address: the same.
    pub candidate: Option<usize>,
    pub ssid: u16,
    pub seq: u32,
    /// Dead through every path: held against nobody, probed slowly.
    pub quarantined: bool,
    /// Its daemon is gone: its kernel answers with ICMP, and as ICMP is limited to about one a second, silence says nothing.
    pub daemon_absent: bool,
    /// Sender's number, reflector's number, sent.
    pub replies: VecDeque<(u32, u32, Instant)>,
}

impl Target {
    /// The same under another mesh file.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let what = |t: &Self| (t.address, t.port, t.relay_of.is_some());
        self.node == other.node && what(self) == what(other)
    }

    /// Bytes of the smallest probe to it, headers included. One that is not ours is sent no TLV but padding.
    pub fn smallest(&self) -> u16 {
        let payload = if self.key.is_some() { REQUEST_LEN } else { AUTHENTICATED_LEN };
        payload as u16 + UDP + ip_header(self.address.is_ipv6())
    }

    pub fn replied(&mut self, sender: u32, reflector: u32, sent: Instant) {
        self.daemon_absent = false;
        if self.key.is_none() {
            // Whether a foreign reflector counts what it answers, or sends our number back (RFC 8762 §4.2), is not known.
            return;
        }
        if self.replies.len() == REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back((sender, reflector, sent));
    }

    /// (lost on the way there, lost on the way back) among what was sent between the last reply to a probe sent before
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
