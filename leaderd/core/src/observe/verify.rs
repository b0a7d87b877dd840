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
pub(super) struct Verify {
    epoch: Epoch,
    decided: Instant,
    pub next: Instant,
    sent: usize,
    passed: BTreeSet<TargetIdx>,
    in_row: usize,
    first_ok: Option<Instant>,
    /// The last new flow that passed before the fault.
    blackout_from: Option<Instant>,
}

impl Verify {
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
            self.verify = None;
            return false;
        }
        self.verify = Some(Verify {
            epoch,
            decided: now,
            next: now,
            sent: 0,
            passed: BTreeSet::new(),
            in_row: 0,
            first_ok: None,
            blackout_from,
        });
        true
    }

    pub(super) fn next_as_workload(&self) -> Option<TargetIdx> {
        let targets = if self.observed { Vec::new() } else { self.as_workload_targets() };
        targets.get(self.as_workload_sent as usize % targets.len().max(1)).copied()
    }

    pub(super) fn as_workload_probe(&self, target: TargetIdx) -> ProbeSpec {
        let size = self.targets[target].smallest();
        ProbeSpec { class: ProbeClass::AsWorkload, path: None, target, size }
    }
}

impl Observer {
    pub(super) fn verify_tick(&mut self, now: Now, watch: WatchIdx) {
        let w = &mut self.watches[watch];
        let targets = w.as_workload_targets();
        let Some(v) = w.verify.as_mut() else { return };
        if now.mono.since(v.decided) > GIVE_UP || targets.is_empty() {
            w.verify = None;
            return;
        }
        let target = targets[v.sent % targets.len()];
        v.sent += 1;
        v.next = now.mono + EVERY;
        self.timers.insert((v.next, Timer::Verify(watch)));
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
        let Some(v) = w.verify.as_mut().filter(|v| f.sent_at >= v.decided) else { return };
        if outcome != Outcome::Delivered {
            v.in_row = 0;
            v.passed.remove(&packet.spec.target);
            return;
        }
        v.in_row += 1;
        v.passed.insert(packet.spec.target);
        let first = v.first_ok.map_or(f.sent_at, |t| t.min(f.sent_at));
        v.first_ok = Some(first);
        let (passed, in_row) = (v.passed.len(), v.in_row);
        let blackout = v.blackout_from.map(|from| first.since(from));
        let (epoch, next) = (v.epoch, v.next);
        let all = w.as_workload_targets().len();
        if passed < all && (in_row < ENOUGH || passed < ENOUGH.min(all)) {
            return;
        }
        self.timers.remove(&(next, Timer::Verify(f.watch)));
        w.verify = None;
        let location = w.location.clone();
        self.emit(ObserverOutput::Verified { location, epoch, at: now.wall, blackout });
    }
}
