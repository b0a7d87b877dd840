//! What was measured: per path a ring of recent probes, per path and target when it last passed and how often it failed.
//!
//! Outcomes are kept rather than sums: a reply that comes late turns a loss into a delivery, and the next judgement,
//! which reads the ring again, never knew better.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use wgctl_plan::WgPublicKey;

use crate::ids::{NodeName, Slot};
use crate::io::ProbeId;
use crate::probe::stamp::{AUTHENTICATED_LEN, REQUEST_LEN};
use crate::time::Instant;
use crate::verdict::{EvidenceRow, ProbeClass, Verdict};

use super::rtt::{Late, Rtt};
use super::sources::Sources;
use super::{UDP, ip_header};

/// Probes remembered per path: over five seconds of rounds with a few bursts in them.
const RING: usize = 160;
/// Replies remembered per target, to find the direction of loss.
const REPLIES: usize = 64;
/// Losses further apart than this, and than so many rounds, are two pieces of bad luck.
const LOSSY_GAP: Duration = Duration::from_millis(500);
const LOSSY_ROUNDS: u32 = 5;
/// Gain of the share of loss that is shown and compared: about ten seconds of rounds.
pub(super) const LOSS_GAIN: f64 = 1.0 / 128.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Pending,
    Delivered,
    Lost,
    /// ICMP time exceeded.
    Looped,
    /// Says nothing about the path (a local error).
    Void,
}

impl Outcome {
    pub(super) const fn is_loss(self) -> bool {
        matches!(self, Self::Lost | Self::Looped)
    }
}

/// One probe through one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Obs {
    pub probe: ProbeId,
    pub sent: Instant,
    pub class: ProbeClass,
    /// Index in the location's targets.
    pub target: usize,
    /// Bytes, headers included.
    pub size: u16,
    pub outcome: Outcome,
}

impl Obs {
    /// A new flow to a workload, of any size.
    pub(super) const fn is_fresh(&self) -> bool {
        matches!(self.class, ProbeClass::NewFlow | ProbeClass::FullSize)
    }
}

/// One path to one target: new flows only.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// When the latest probe that was answered had been sent.
    pub delivered: Option<Instant>,
    pub lost_in_row: u32,
    /// When the latest probe that the target's daemon answered had been sent.
    pub proved: Option<Instant>,
    /// When the first probe since was sent of which an ICMP error said, in the target's name, that nobody listens there.
    pub refused: Option<Instant>,
}

/// Something that answers probes.
#[derive(Debug)]
pub(super) struct Target {
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
    pub mute: bool,
    /// Sender's number, reflector's number, sent.
    pub replies: VecDeque<(u32, u32, Instant)>,
}

impl Target {
    /// The same under another mesh file.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let what = |t: &Self| (t.address, t.port, t.relay_of.is_some());
        self.node == other.node && what(self) == what(other)
    }

    /// Bytes of the smallest probe to it, headers included. One that is not ours is sent no TLV but padding.
    pub(super) fn smallest(&self) -> u16 {
        let payload = if self.key.is_some() { REQUEST_LEN } else { AUTHENTICATED_LEN };
        payload as u16 + UDP + ip_header(self.address.is_ipv6())
    }

    pub(super) fn replied(&mut self, sender: u32, reflector: u32, sent: Instant) {
        self.mute = false;
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
    pub(super) fn lost_ways(&self, from: Instant) -> Option<(u32, u32)> {
        let base = self.replies.iter().rev().find(|r| r.2 < from)?;
        let last = self.replies.iter().max_by_key(|r| r.0)?;
        let sent = last.0.checked_sub(base.0)?;
        let arrived = last.1.checked_sub(base.1)?.min(sent);
        let back = self.replies.iter().filter(|r| r.0 > base.0).count() as u32;
        Some((sent - arrived, arrived.saturating_sub(back)))
    }
}

/// Everything known about one candidate of a location.
#[derive(Debug)]
pub(super) struct Path {
    pub slot: Slot,
    pub key: WgPublicKey,
    pub rtt: Rtt,
    pub late: Option<Late>,
    pub ring: VecDeque<Obs>,
    pub verdict: Verdict,
    pub since: Instant,
    pub first_loss: Option<Instant>,
    pub suspected: Option<Instant>,
    /// The last new flow that passed before the first loss.
    pub ok_before: Option<Instant>,
    pub relay_ok: Option<Instant>,
    /// The first relay probe to pass since one was lost.
    pub relay_run: Option<Instant>,
    pub born: Instant,
    /// When anything at all first came back through it.
    pub woke: Option<Instant>,
    /// A probe of any class was answered; when it was sent.
    pub any_ok: Option<Instant>,
    /// Losses since, in any class.
    pub lost_in_row: u32,
    /// Share of new flows lost lately; and the same of those that another path did not lose as well.
    pub shown_loss: f64,
    pub loss: f64,
    /// CUSUM of the test for steady loss.
    pub steady: f64,
    /// The first and the last of the latest losses of new flows, no two of them far apart.
    pub lossy: Option<(Instant, Instant)>,
    pub path_mtu: Option<u16>,
    /// While the MTU is being looked for: the largest size that passed and the smallest that was lost.
    pub mtu_between: Option<(u16, u16)>,
    /// Counts behind a degraded verdict.
    pub rows: Vec<EvidenceRow>,
    /// Targets that a partial verdict is about.
    pub partial: Vec<usize>,
    /// Its verdict is by what services lose, not by packets.
    pub by_service: bool,
    /// A burst is under way.
    pub burst: Option<Instant>,
    /// The last time our own kernel refused to send on this plane.
    pub own_fault: Option<Instant>,
    /// What became of probes' sources on the way.
    pub sources: Sources,
}

impl Path {
    pub(super) fn new(slot: Slot, key: WgPublicKey, now: Instant) -> Self {
        Self {
            slot,
            key,
            rtt: Rtt::new(),
            late: None,
            ring: VecDeque::new(),
            verdict: Verdict::Unknown,
            since: now,
            first_loss: None,
            suspected: None,
            ok_before: None,
            relay_ok: None,
            relay_run: None,
            born: now,
            woke: None,
            any_ok: None,
            lost_in_row: 0,
            shown_loss: 0.0,
            loss: 0.0,
            steady: 0.0,
            lossy: None,
            path_mtu: None,
            mtu_between: None,
            rows: Vec::new(),
            partial: Vec::new(),
            by_service: false,
            burst: None,
            own_fault: None,
            sources: Sources::default(),
        }
    }

    /// A new flow that was sent then is lost; `interval` is that of rounds.
    pub(super) fn lossy_at(&mut self, sent: Instant, interval: Duration) {
        let gap = LOSSY_GAP.max(interval * LOSSY_ROUNDS);
        let near = |(_, last): &(Instant, Instant)| sent.since(*last) <= gap;
        self.lossy = Some(match self.lossy.filter(near) {
            Some((first, last)) => (first.min(sent), last.max(sent)),
            None => (sent, sent),
        });
    }

    /// How long it has been losing new flows again and again.
    pub(super) fn lossy_for(&self) -> Duration {
        self.lossy.map_or(Duration::ZERO, |(first, last)| last.since(first))
    }

    /// A reply came within its timeout.
    pub(super) fn in_time(&mut self, sent: Instant, rtt: Duration) {
        self.rtt.sample(rtt);
        if let Some(late) = &mut self.late {
            late.in_time(sent);
        }
    }

    /// A reply came after its timeout.
    pub(super) fn late(&mut self, now: Instant, rtt: Duration) {
        self.rtt.sample(rtt);
        self.late = Some(Late::again(self.late, now, rtt));
    }

    pub(super) fn push(&mut self, obs: Obs) {
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back(obs);
    }

    /// The entry of a probe, if it is still remembered. Ids only grow, so this is a binary search.
    pub(super) fn find(&mut self, probe: ProbeId) -> Option<&mut Obs> {
        let at = self.ring.binary_search_by_key(&probe, |o| o.probe).ok()?;
        self.ring.get_mut(at)
    }

    pub(super) fn settled_since(&self, from: Instant) -> impl Iterator<Item = &Obs> {
        self.ring
            .iter()
            .rev()
            .take_while(move |o| o.sent >= from)
            .filter(|o| !matches!(o.outcome, Outcome::Pending | Outcome::Void))
    }
}
