//! The cause and the direction of a fault, from what the same burst did in the other classes and to other targets.

use std::time::Duration;

use crate::time::Instant;
use crate::verdict::{Cause, Direction, EvidenceRow, ProbeClass};

use crate::observe::evidence::{Outcome, Sample};
use crate::observe::location::LocationWatch;

/// A path that passes one new flow in so many, or more, is lossy rather than broken.
const LOSSY: usize = 8;

impl LocationWatch {
    /// Targets that only fail, and targets that pass, since `from`.
    pub fn failing_targets(&self, p: usize, from: Instant) -> (Vec<usize>, Vec<usize>, bool) {
        let mut counts = vec![(0, 0); self.targets.len()];
        for o in self.paths[p].decided_since(from).filter(|o| o.is_fresh()) {
            let c: &mut (u32, u32) = &mut counts[o.target];
            if o.outcome.is_loss() { c.0 += 1 } else { c.1 += 1 }
        }
        let which = |f: &dyn Fn(&(u32, u32)) -> bool| -> Vec<usize> {
            (0..counts.len()).filter(|t| !self.targets[*t].quarantined && f(&counts[*t])).collect()
        };
        let mixed = !which(&|c| c.0 > 0 && c.1 > 0 && c.0 * 4 > c.1).is_empty();
        (which(&|c| c.0 >= 2 && c.1 == 0), which(&|c| c.1 > 0), mixed)
    }

    pub fn classify(&self, p: usize, from: Instant) -> (Cause, Option<Direction>) {
        let path = &self.paths[p];
        let all: Vec<&Sample> = path.decided_since(from).collect();
        let count = |class: ProbeClass, lost: bool| {
            all.iter().filter(|o| o.class == class && o.outcome.is_loss() == lost).count()
        };
        let fresh: Vec<&&Sample> = all.iter().filter(|o| o.is_fresh()).collect();
        let lost = fresh.iter().filter(|o| o.outcome.is_loss()).count();
        let looped = fresh.iter().filter(|o| o.outcome == Outcome::Looped).count();
        // Linux sends a burst of six of these to a host, then one a second (`icmp_ratelimit`): the rest stays silent.
        if looped >= 2 && looped * 6 >= lost {
            return (Cause::Loop, None);
        }
        let direction = self.direction(from);
        let passed: Vec<u16> =
            fresh.iter().filter(|o| !o.outcome.is_loss()).map(|o| o.size).collect();
        let largest = passed.iter().copied().max().unwrap_or(0);
        let lost_within = fresh.iter().filter(|o| o.outcome.is_loss() && o.size <= largest).count();
        let full_lost = count(ProbeClass::FullSize, true);
        if full_lost >= 2
            && count(ProbeClass::FullSize, false) == 0
            && passed.len() >= 2
            && lost_within * 10 <= lost
        {
            return (Cause::Mtu, direction);
        }
        let (bad, good, mixed) = self.failing_targets(p, from);
        if !bad.is_empty() && !good.is_empty() && !mixed {
            return (Cause::Partial, direction);
        }
        if passed.len() * LOSSY > fresh.len() {
            return (Cause::Loss, direction);
        }
        let relay = (count(ProbeClass::Relay, false), count(ProbeClass::Relay, true));
        // A relay probe that was lost long before is a dead daemon's, unless nothing ever came.
        let relay_was_alive = path.relay_ok.is_some_and(|t| t + Duration::from_secs(3) > from);
        if relay.0 == 0 && relay.1 > 0 && (relay_was_alive || path.first_reply.is_none()) {
            return (Cause::TunnelDown, direction);
        }
        let pinned = (count(ProbeClass::PinnedFlow, false), count(ProbeClass::PinnedFlow, true));
        // Some long-lived flows may be no older than the fault; when all flows die none passes.
        if pinned.0 > 0 && pinned.0 * 3 >= pinned.1 {
            (Cause::NewFlow, direction)
        } else {
            (Cause::Forwarding, direction)
        }
    }

    /// Which way the losses since `from` went, from the reflectors' counts.
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

    pub fn evidence_rows(&self, p: usize, from: Instant) -> Vec<EvidenceRow> {
        let all: Vec<&Sample> = self.paths[p].decided_since(from).collect();
        let row = |class, target: Option<usize>| {
            let of = || {
                all.iter().filter(move |o| o.class == class && target.is_none_or(|t| t == o.target))
            };
            EvidenceRow {
                class,
                target: target.map(|t| self.targets[t].node.clone()),
                address: target.map(|t| self.targets[t].address),
                port: None,
                sent: of().count() as u32,
                lost: of().filter(|o| o.outcome.is_loss()).count() as u32,
                time_exceeded: of().filter(|o| o.outcome == Outcome::Looped).count() as u32,
            }
        };
        let mut rows: Vec<EvidenceRow> =
            ProbeClass::ALL.into_iter().map(|c| row(c, None)).collect();
        let (bad, good, _) = self.failing_targets(p, from);
        if !good.is_empty() {
            rows.extend(bad.into_iter().map(|t| row(ProbeClass::NewFlow, Some(t))));
        }
        rows.retain(|r| r.sent > 0);
        rows.extend(self.service_rows(p, from));
        rows
    }
}
