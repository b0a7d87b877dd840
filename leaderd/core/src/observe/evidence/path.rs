//! One path: everything known about one candidate of a location.

use std::collections::VecDeque;
use std::time::Duration;

use wgctl_plan::WgPublicKey;

use crate::ids::Slot;
use crate::io::ProbeId;
use crate::observe::probing::rtt::{LateReplies, Rtt};
use crate::time::Instant;
use crate::verdict::{EvidenceRow, Verdict};

use super::{Outcome, Sample, Sources};

/// Probes remembered per path: over five seconds of rounds with a few bursts in them.
const MAX_SAMPLES: usize = 160;
/// Losses further apart than this, and than so many rounds, are two pieces of bad luck.
const LOSSY_GAP: Duration = Duration::from_millis(500);
const LOSSY_ROUNDS: u32 = 5;
/// Gain of the share of loss that is shown and compared: about ten seconds of rounds.
pub const LOSS_GAIN: f64 = 1.0 / 128.0;

/// Everything known about one candidate of a location.
#[derive(Debug)]
pub struct Path {
    pub slot: Slot,
    pub key: WgPublicKey,
    pub rtt: Rtt,
    pub late_replies: Option<LateReplies>,
    pub samples: VecDeque<Sample>,
    pub verdict: Verdict,
    pub since: Instant,
    pub first_loss: Option<Instant>,
    pub suspected: Option<Instant>,
    /// The last new flow that passed before the first loss.
    pub ok_before: Option<Instant>,
    pub relay_ok: Option<Instant>,
    /// The first relay probe to pass since one was lost.
    pub relay_run: Option<Instant>,
    pub created: Instant,
    /// When anything at all first came back through it.
    pub first_reply: Option<Instant>,
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
    pub failed_by_service: bool,
    /// A burst is under way.
    pub burst: Option<Instant>,
    /// The last time our own kernel port_unreachable to send on this plane.
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
            samples: VecDeque::new(),
            verdict: Verdict::Unknown,
            since: now,
            first_loss: None,
            suspected: None,
            ok_before: None,
            relay_ok: None,
            relay_run: None,
            created: now,
            first_reply: None,
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
            failed_by_service: false,
            burst: None,
            own_fault: None,
            sources: Sources::default(),
        }
    }

    /// A new flow that was sent then is lost; `interval` is that of rounds.
    pub fn lossy_at(&mut self, sent: Instant, interval: Duration) {
        let gap = LOSSY_GAP.max(interval * LOSSY_ROUNDS);
        let near = |(_, last): &(Instant, Instant)| sent.since(*last) <= gap;
        self.lossy = Some(match self.lossy.filter(near) {
            Some((first, last)) => (first.min(sent), last.max(sent)),
            None => (sent, sent),
        });
    }

    /// How long it has been losing new flows again and again.
    pub fn lossy_for(&self) -> Duration {
        self.lossy.map_or(Duration::ZERO, |(first, last)| last.since(first))
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

    pub fn push(&mut self, sample: Sample) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The entry of a probe, if it is still remembered. Ids only grow, so this is a binary search.
    pub fn find(&mut self, probe: ProbeId) -> Option<&mut Sample> {
        let at = self.samples.binary_search_by_key(&probe, |o| o.probe).ok()?;
        self.samples.get_mut(at)
    }

    pub fn decided_since(&self, from: Instant) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .rev()
            .take_while(move |o| o.sent >= from)
            .filter(|o| !matches!(o.outcome, Outcome::Pending | Outcome::Void))
    }
}
