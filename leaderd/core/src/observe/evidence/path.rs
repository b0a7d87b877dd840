//! One path: everything known about one candidate of a location.

use std::time::Duration;

use wgctl_plan::WgPublicKey;

use crate::ids::Slot;
use crate::observe::index::TargetIdx;
use crate::observe::judgement::path_mtu::PathMtuSearch;
use crate::observe::judgement::verdict::PathVerdict;
use crate::observe::probing::rtt::{LateReplies, Rtt};
use crate::time::Instant;

use super::loss_rate::LossRate;
use super::samples::Samples;
use super::{ComparedLoss, Sources};

#[derive(Debug)]
pub struct Path {
    pub slot: Slot,
    pub key: WgPublicKey,
    pub rtt: Rtt,
    pub late_replies: Option<LateReplies>,
    pub samples: Samples,
    pub loss: LossRate,
    pub compared: ComparedLoss,
    pub life: SignsOfLife,
    pub verdict: PathVerdict,
    pub mtu: PathMtuSearch,
    /// Packets of about this size seem to be lost, and rounds try it.
    pub doubtful_size: Option<u16>,
    /// A burst is under way.
    pub burst: Option<Instant>,
    /// The last time our own kernel refused to send on this plane.
    pub own_fault: Option<Instant>,
    /// What became of probes' sources on the way.
    pub sources: Sources,
}

impl Path {
    pub fn new(slot: Slot, key: WgPublicKey, now: Instant) -> Self {
        Self {
            slot,
            key,
            rtt: Rtt::new(),
            late_replies: None,
            samples: Samples::default(),
            loss: LossRate::default(),
            compared: ComparedLoss::default(),
            life: SignsOfLife::new(now),
            verdict: PathVerdict::new(now),
            mtu: PathMtuSearch::default(),
            doubtful_size: None,
            burst: None,
            own_fault: None,
            sources: Sources::default(),
        }
    }

    /// A reply came within its timeout.
    pub fn replied_in_time(&mut self, sent: Instant, rtt: Duration) {
        self.rtt.sample(rtt);
        if let Some(late) = &mut self.late_replies {
            late.replied_in_time(sent);
        }
    }

    /// A reply came after its timeout.
    pub fn replied_late(&mut self, now: Instant, rtt: Duration) {
        self.rtt.sample(rtt);
        self.late_replies = Some(LateReplies::again(self.late_replies, now, rtt));
    }

    /// The same path under another mesh file, where targets have other numbers. What is on its way is given up.
    pub fn renumbered(self, number_now: impl Fn(TargetIdx) -> Option<TargetIdx>) -> Self {
        Self {
            samples: self.samples.renumbered(&number_now),
            verdict: self.verdict.renumbered(&number_now),
            sources: self.sources.renumbered(&number_now),
            burst: None,
            ..self
        }
    }
}

/// When something last came back through a path. Times are those of sending.
#[derive(Debug, Clone, Copy)]
pub struct SignsOfLife {
    created: Instant,
    /// When anything at all first came back.
    first_reply: Option<Instant>,
    any_reply: Option<Instant>,
    /// Losses since, in any class.
    lost_in_row: u32,
    relay_reply: Option<Instant>,
    /// The first relay probe to pass since one was lost.
    relay_passes_since: Option<Instant>,
}

impl SignsOfLife {
    fn new(now: Instant) -> Self {
        Self {
            created: now,
            first_reply: None,
            any_reply: None,
            lost_in_row: 0,
            relay_reply: None,
            relay_passes_since: None,
        }
    }

    /// Notes that something came back. Returns whether it is the first time.
    pub fn on_reply(&mut self, now: Instant) -> bool {
        let first = self.first_reply.is_none();
        if first {
            (self.first_reply, self.any_reply) = (Some(now), Some(now));
            self.lost_in_row = 0;
        }
        first
    }

    /// True for what was sent before anything came back: it says nothing, neither of loss nor of time, as WireGuard keeps
    /// packets back until the first handshake.
    pub fn precedes(&self, sent: Instant) -> bool {
        self.first_reply.is_some_and(|first| sent < first)
    }

    pub fn on_delivered(&mut self, sent: Instant, relay: bool) {
        self.any_reply = self.any_reply.max(Some(sent));
        self.lost_in_row = 0;
        if relay {
            self.relay_reply = self.relay_reply.max(Some(sent));
            self.relay_passes_since = self.relay_passes_since.or(Some(sent));
        }
    }

    pub fn on_lost(&mut self, relay: bool) {
        self.lost_in_row += 1;
        if relay {
            self.relay_passes_since = None;
        }
    }

    /// Nothing has come back yet.
    pub fn is_new(&self) -> bool {
        self.first_reply.is_none()
    }

    /// For how long nothing has come back yet.
    pub fn new_for(&self, now: Instant) -> Option<Duration> {
        self.is_new().then(|| now.since(self.created))
    }

    pub fn any_reply(&self) -> Option<Instant> {
        self.any_reply
    }

    pub fn lost_in_row(&self) -> u32 {
        self.lost_in_row
    }

    pub fn relay_reply(&self) -> Option<Instant> {
        self.relay_reply
    }

    pub fn relay_passes_since(&self) -> Option<Instant> {
        self.relay_passes_since
    }
}
