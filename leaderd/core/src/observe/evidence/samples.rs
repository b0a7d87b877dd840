//! The recent probes of a path, with their outcomes.

use std::collections::VecDeque;

use crate::io::ProbeId;
use crate::observe::index::TargetIdx;
use crate::time::Instant;
use crate::verdict::ProbeClass;

/// Probes remembered per path: over five seconds of rounds with a few bursts in them.
const MAX_SAMPLES: usize = 160;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Delivered,
    Lost,
    /// ICMP time exceeded.
    Looped,
    /// Says nothing about the path (a local error).
    Void,
}

impl Outcome {
    pub const fn is_loss(self) -> bool {
        match self {
            Self::Lost | Self::Looped => true,
            Self::Pending | Self::Delivered | Self::Void => false,
        }
    }

    /// It says something about the path.
    pub const fn is_decided(self) -> bool {
        match self {
            Self::Delivered | Self::Lost | Self::Looped => true,
            Self::Pending | Self::Void => false,
        }
    }
}

/// One probe through one path.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub probe: ProbeId,
    pub sent: Instant,
    pub class: ProbeClass,
    pub target: TargetIdx,
    /// Bytes, headers included.
    pub size: u16,
    /// The round whose main probe it is, sent through all paths at once: so it can be compared.
    pub round: Option<u64>,
    pub outcome: Outcome,
}

impl Sample {
    /// A new flow to a workload, of any size.
    pub const fn is_new_flow(&self) -> bool {
        self.class.is_new_flow()
    }
}

/// The latest probes of a path, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Samples {
    samples: VecDeque<Sample>,
}

impl Samples {
    pub fn push(&mut self, sample: Sample) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    pub fn clear(&mut self) {
        self.samples.clear();
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Sample> {
        self.samples.iter()
    }

    /// The entry of a probe, if it is still remembered. Ids only grow, so this is a binary search.
    pub fn find(&mut self, probe: ProbeId) -> Option<&mut Sample> {
        let index = self.samples.binary_search_by_key(&probe, |s| s.probe).ok()?;
        self.samples.get_mut(index)
    }

    /// Those that were sent at this time or later, oldest first.
    pub fn since(&self, from: Instant) -> impl Iterator<Item = &Sample> {
        self.samples.range(self.samples.partition_point(|s| s.sent < from)..)
    }

    /// Those of them whose outcome says something, newest first.
    pub fn decided_since(&self, from: Instant) -> impl Iterator<Item = &Sample> {
        let recent = self.samples.iter().rev().take_while(move |s| s.sent >= from);
        recent.filter(|s| s.outcome.is_decided())
    }

    /// Under another mesh file, where targets have other numbers. Probes without an outcome are given up.
    pub fn renumbered(self, number_now: impl Fn(TargetIdx) -> Option<TargetIdx>) -> Self {
        let decided = self.samples.into_iter().filter(|s| s.outcome != Outcome::Pending);
        let samples = decided.filter_map(|s| Some(Sample { target: number_now(s.target)?, ..s }));
        Self { samples: samples.collect() }
    }
}
