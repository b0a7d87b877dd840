//! As-workload probes: from this node's workload address to theirs, by the ordinary routes.
//!
//! They judge no candidate (their route moves with every decision). They prove a decision: after it they go out every
//! 20 ms until enough pass, and the first to pass ends the blackout.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ids::{Epoch, Slot};
use crate::time::{Instant, Now};
use crate::verdict::ProbeClass;

use super::evidence::Outcome;
use super::index::{TargetIdx, WatchIdx};
use super::location::LocationWatch;
use super::probing::in_flight::{InFlight, SentPacket};
use super::probing::schedule::ProbeSpec;
use super::{Observer, ObserverOutput, Timer};

/// Between two probes of a verification.
const EVERY: Duration = Duration::from_millis(20);
/// A verification that has not passed after this time is given up.
const GIVE_UP: Duration = Duration::from_secs(30);
/// This many in a row to different targets, or all targets there are, verify a decision; of both families where there are both.
const ENOUGH: usize = 3;

/// A decision that is being verified.
#[derive(Debug)]
pub(super) struct Verification {
    epoch: Epoch,
    decided: Instant,
    /// When its next probe is due.
    next: Instant,
    sent: usize,
    /// Targets whose latest probe passed.
    passed: BTreeSet<TargetIdx>,
    in_row: usize,
    first_ok: Option<Instant>,
    /// The last new flow that passed before the fault.
    blackout_from: Option<Instant>,
}

impl Verification {
    fn new(now: Instant, epoch: Epoch, blackout_from: Option<Instant>) -> Self {
        Self {
            epoch,
            decided: now,
            next: now,
            sent: 0,
            passed: BTreeSet::new(),
            in_row: 0,
            first_ok: None,
            blackout_from,
        }
    }

    /// When its next probe is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Returns the target of the probe that is due; `None` if the verification is given up.
    fn next_target(&mut self, now: Instant, targets: &[TargetIdx]) -> Option<TargetIdx> {
        if now.since(self.decided) > GIVE_UP {
            return None;
        }
        let target = targets.get(self.sent % targets.len().max(1)).copied();
        self.sent += 1;
        self.next = now + EVERY;
        target
    }

    /// Takes an outcome down. `all`: how many targets there are. Returns whether the decision is verified by it.
    fn record(&mut self, target: TargetIdx, sent: Instant, delivered: bool, all: usize) -> bool {
        if sent < self.decided {
            return false;
        }
        if !delivered {
            self.in_row = 0;
            self.passed.remove(&target);
            return false;
        }
        self.in_row += 1;
        self.passed.insert(target);
        self.first_ok = Some(self.first_ok.map_or(sent, |first| first.min(sent)));
        let passed = self.passed.len();
        passed >= all || self.in_row >= ENOUGH && passed >= ENOUGH.min(all)
    }

    /// From the last new flow that passed before the fault to the first as-workload probe that passed after the decision.
    fn blackout(&self) -> Option<Duration> {
        Some(self.first_ok?.since(self.blackout_from?))
    }

    /// The same under another mesh file, where targets have other numbers.
    pub(super) fn forget_targets(self) -> Self {
        Self { passed: BTreeSet::new(), in_row: 0, ..self }
    }
}

impl LocationWatch {
    /// Returns whether there is something to verify.
    pub(super) fn decided(&mut self, now: Instant, epoch: Epoch, leaders: &[Slot]) -> bool {
        if epoch <= self.epoch && self.epoch != Epoch::default() {
            return false;
        }
        let before = self.paths.iter().find(|p| self.leaders.first() == Some(&p.slot));
        let blackout_from =
            before.and_then(|p| p.verdict.trouble()).and_then(|trouble| trouble.ok_before);
        self.epoch = epoch;
        self.leaders = leaders.to_vec();
        if self.observed {
            // Traffic does not go by the decision, so nothing would be verified.
            self.verification = None;
            return false;
        }
        self.verification = Some(Verification::new(now, epoch, blackout_from));
        true
    }

    pub(super) fn next_as_workload(&self) -> Option<TargetIdx> {
        let targets = if self.observed { Vec::new() } else { self.as_workload_targets() };
        targets.get(self.as_workload_sent as usize % targets.len().max(1)).copied()
    }

    pub(super) fn as_workload_probe(&self, target: TargetIdx) -> ProbeSpec {
        let size = self.targets[target].smallest();
        ProbeSpec { class: ProbeClass::AsWorkload, path: None, target, size, round: None }
    }
}

impl Observer {
    pub(super) fn verify_tick(&mut self, now: Now, watch: WatchIdx) {
        let w = &mut self.watches[watch];
        let targets = w.as_workload_targets();
        let Some(v) = w.verification.as_mut() else { return };
        let Some(target) = v.next_target(now.mono, &targets) else {
            w.verification = None;
            return;
        };
        self.timers.insert((v.next(), Timer::Verify(watch)));
        let probe = w.as_workload_probe(target);
        if self.spend(now.mono, 1) {
            self.send(now, watch, probe);
        }
    }

    pub(super) fn record_verification(
        &mut self,
        now: Now,
        f: &InFlight,
        packet: &SentPacket,
        outcome: Outcome,
    ) {
        let w = &mut self.watches[f.watch];
        let all = w.as_workload_targets().len();
        let delivered = outcome == Outcome::Delivered;
        let Some(verified) =
            w.verification.take_if(|v| v.record(packet.spec.target, f.sent_at, delivered, all))
        else {
            return;
        };
        self.timers.remove(&(verified.next(), Timer::Verify(f.watch)));
        let (epoch, blackout) = (verified.epoch, verified.blackout());
        let location = w.location.clone();
        self.emit(ObserverOutput::Verified { location, epoch, at: now.wall, blackout });
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Index;
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    fn t(number: usize) -> TargetIdx {
        TargetIdx::new(number)
    }

    fn begun() -> Verification {
        Verification::new(at(1000), Epoch(2), Some(at(400)))
    }

    #[test]
    fn three_in_a_row_to_different_targets_verify_and_the_first_of_them_ends_the_blackout() {
        let mut v = begun();
        assert!(!v.record(t(0), at(990), true, 5), "sent before the decision");
        assert!(!v.record(t(0), at(1020), true, 5));
        assert!(!v.record(t(1), at(1000), true, 5), "an earlier one that came back later");
        assert!(!v.record(t(2), at(1040), false, 5));
        assert!(!v.record(t(0), at(1060), true, 5) && !v.record(t(0), at(1080), true, 5));
        assert!(!v.record(t(1), at(1100), true, 5), "two targets are too few");
        assert!(v.record(t(3), at(1120), true, 5));
        assert_eq!(v.blackout(), Some(Duration::from_millis(600)));
    }

    #[test]
    fn where_there_are_fewer_targets_all_of_them_verify() {
        let mut v = begun();
        assert!(!v.record(t(0), at(1000), true, 2) && v.record(t(1), at(1020), true, 2));
        assert!(begun().record(t(0), at(1000), true, 1));
    }

    #[test]
    fn targets_take_turns_until_it_is_given_up() {
        let mut v = begun();
        let targets = [t(4), t(7)];
        let turns: Vec<_> = (0..3).map(|n| v.next_target(at(1000 + n * 20), &targets)).collect();
        assert_eq!((turns, v.next()), (vec![Some(t(4)), Some(t(7)), Some(t(4))], at(1060)));
        assert_eq!(begun().next_target(at(1000), &[]), None);
        assert_eq!(v.next_target(at(31_001), &targets), None);
    }
}
