//! The cause and the direction of a fault, from what the same burst did in the other classes and to other targets.

use std::time::Duration;

use crate::fault::Fault;
use crate::observe::evidence::{Outcome, Sample};
use crate::observe::index::{IndexVec, PathIdx, TargetIdx};
use crate::observe::location::LocationWatch;
use crate::probe::class::Proves;
use crate::time::Instant;
use crate::verdict::{Direction, EvidenceRow, ProbeClass};

/// A path that passes every eighth new flow, or more, is lossy rather than broken.
const LOSSY: usize = 8;

/// Outcomes of one kind of probe.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    passed: usize,
    lost: usize,
}

impl Tally {
    fn count(&mut self, sample: &Sample) {
        if sample.outcome.is_loss() { self.lost += 1 } else { self.passed += 1 }
    }
}

/// Which targets of a path fail.
#[derive(Debug, Default)]
pub struct FailingTargets {
    /// Targets that only fail.
    pub failing: Vec<TargetIdx>,
    /// Targets that pass at least sometimes.
    pub passing: Vec<TargetIdx>,
    /// Some target fails often and passes too.
    pub mixed: bool,
}

impl LocationWatch {
    /// Sorts the targets of a path by what its new flows to them did since `from`.
    pub fn failing_targets(&self, p: PathIdx, from: Instant) -> FailingTargets {
        let mut tallies: IndexVec<TargetIdx, Tally> =
            self.targets.iter().map(|_| Tally::default()).collect();
        for s in self.paths[p].samples.decided_since(from).filter(|s| s.is_new_flow()) {
            tallies[s.target].count(s);
        }
        let mut found = FailingTargets::default();
        for (t, tally) in tallies.enumerate() {
            if self.targets[t].health.is_quarantined() {
                continue;
            }
            found.mixed |= tally.lost > 0 && tally.passed > 0 && tally.lost * 4 > tally.passed;
            if tally.lost >= 2 && tally.passed == 0 {
                found.failing.push(t);
            }
            if tally.passed > 0 {
                found.passing.push(t);
            }
        }
        found
    }

    /// Names the cause of the losses of a path since `from`.
    pub fn classify(&self, p: PathIdx, from: Instant) -> (Fault, Option<Direction>) {
        let path = &self.paths[p];
        let (mut new, mut full) = (Tally::default(), Tally::default());
        let (mut old, mut tunnel) = (Tally::default(), Tally::default());
        let mut looped = 0;
        let mut largest_passed = 0;
        for s in path.samples.decided_since(from) {
            match s.class.spec().proves {
                Proves::Tunnel => tunnel.count(s),
                Proves::OldFlow => old.count(s),
                Proves::Decision | Proves::Service => {}
                Proves::NewFlows { full_size } => {
                    new.count(s);
                    if full_size {
                        full.count(s);
                    }
                    looped += usize::from(s.outcome == Outcome::Looped);
                    if !s.outcome.is_loss() {
                        largest_passed = largest_passed.max(s.size);
                    }
                }
            }
        }
        // Linux sends a burst of six of these to a host, then one a second (`icmp_ratelimit`): the rest stays silent.
        if looped >= 2 && looped * 6 >= new.lost {
            return (Fault::Loop, None);
        }
        let direction = self.direction(from);
        let lost_within = path
            .samples
            .decided_since(from)
            .filter(|s| s.is_new_flow() && s.outcome.is_loss() && s.size <= largest_passed);
        if full.lost >= 2
            && full.passed == 0
            && new.passed >= 2
            && lost_within.count() * 10 <= new.lost
        {
            return (Fault::Mtu, direction);
        }
        let targets = self.failing_targets(p, from);
        if !targets.failing.is_empty() && !targets.passing.is_empty() && !targets.mixed {
            return (Fault::Partial, direction);
        }
        if new.passed * LOSSY > new.passed + new.lost {
            return (Fault::Loss, direction);
        }
        // A relay probe that was lost long before is a dead daemon's, unless nothing ever came.
        let relay_was_alive =
            path.life.relay_reply().is_some_and(|t| t + Duration::from_secs(3) > from);
        if tunnel.passed == 0 && tunnel.lost > 0 && (relay_was_alive || path.life.is_new()) {
            return (Fault::TunnelDown, direction);
        }
        // Some long-lived flows may be no older than the fault; when all flows die none passes.
        if old.passed > 0 && old.passed * 3 >= old.lost {
            (Fault::NewFlow, direction)
        } else {
            (Fault::NotForwarding, direction)
        }
    }

    /// Returns the direction of the losses since `from`, by the reflectors' counts.
    pub fn direction(&self, from: Instant) -> Option<Direction> {
        let ways = self.targets.iter().filter_map(|t| t.losses_by_direction(from));
        let (there, back) = ways.fold((0, 0), |sum, w| (sum.0 + w.0, sum.1 + w.1));
        match there + back {
            0..3 => None,
            all if there * 10 >= all * 8 => Some(Direction::Forward),
            all if back * 10 >= all * 8 => Some(Direction::Return),
            _ => None,
        }
    }

    /// Counts outcomes since `from`: a row for each class, and one for each target that fails alone.
    pub fn evidence_rows(&self, p: PathIdx, from: Instant) -> Vec<EvidenceRow> {
        let all: Vec<&Sample> = self.paths[p].samples.decided_since(from).collect();
        let row = |class, target: Option<TargetIdx>| {
            let of = || {
                all.iter().filter(move |s| s.class == class && target.is_none_or(|t| t == s.target))
            };
            EvidenceRow {
                class,
                target: target.map(|t| self.targets[t].node.clone()),
                address: target.map(|t| self.targets[t].address),
                port: None,
                sent: of().count() as u32,
                lost: of().filter(|s| s.outcome.is_loss()).count() as u32,
                time_exceeded: of().filter(|s| s.outcome == Outcome::Looped).count() as u32,
            }
        };
        let mut rows: Vec<EvidenceRow> =
            ProbeClass::ALL.into_iter().map(|c| row(c, None)).collect();
        let targets = self.failing_targets(p, from);
        if !targets.passing.is_empty() {
            rows.extend(targets.failing.into_iter().map(|t| row(ProbeClass::NewFlow, Some(t))));
        }
        rows.retain(|r| r.sent > 0);
        rows.extend(self.service_rows(p, from));
        rows
    }
}
