//! What was measured: recent probes of each path, and for each pair of path and target when it last passed and how often it
//! failed in a row. `record` takes the outcome of a probe down.
//!
//! Outcomes are kept rather than sums: a reply that arrives late turns a loss into a delivery, and the next judgement, which
//! reads the samples again, never knew better.

mod compared;
mod loss_rate;
mod path;
mod record;
mod samples;
mod size_band;
mod sources;
mod target;
mod unreached;

use crate::time::Instant;

pub use compared::{Blocks, ComparedLoss};
pub use path::Path;
pub use samples::{Outcome, Sample};
pub use size_band::SizeBand;
pub use sources::Sources;
pub use target::{Target, TargetHealth};
pub use unreached::Unreached;

/// New flows of one path to one target.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairStats {
    /// When the latest probe that was answered had been sent.
    delivered: Option<Instant>,
    lost_in_row: u32,
    /// When the latest probe that was lost had been sent.
    lost: Option<Instant>,
    /// When the latest probe that the target's daemon answered had been sent.
    daemon_answered: Option<Instant>,
    /// When the first probe since was sent of which an ICMP error said, in the target's name, that nothing listens there.
    unreachable_since: Option<Instant>,
}

impl PairStats {
    pub fn on_delivered(&mut self, sent: Instant) {
        self.delivered = self.delivered.max(Some(sent));
        self.lost_in_row = 0;
    }

    pub fn on_lost(&mut self, sent: Instant) {
        self.lost_in_row += 1;
        self.lost = self.lost.max(Some(sent));
    }

    /// The target's daemon itself answered.
    pub fn on_daemon_answered(&mut self, sent: Instant) {
        self.daemon_answered = self.daemon_answered.max(Some(sent));
        self.unreachable_since = None;
    }

    /// An ICMP error says in the target's name that nothing listens there. Returns when the first such probe since the daemon's
    /// last answer was sent.
    pub fn on_unreachable(&mut self, sent: Instant) -> Instant {
        *self.unreachable_since.get_or_insert(sent)
    }

    pub fn delivered(&self) -> Option<Instant> {
        self.delivered
    }

    pub fn lost(&self) -> Option<Instant> {
        self.lost
    }

    pub fn lost_in_row(&self) -> u32 {
        self.lost_in_row
    }

    pub fn daemon_answered(&self) -> Option<Instant> {
        self.daemon_answered
    }
}
