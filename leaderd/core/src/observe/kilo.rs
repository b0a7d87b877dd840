//! Does Kilo's own way get through? As-workload probes that go as if our rules were not there.
//!
//! They judge no candidate. They say whether our routes may step back, and whether they must step in again: that costs no
//! packet, so a few losses are enough for it.

use std::time::Duration;

use crate::ids::LocationName;
use crate::time::{Instant, Now};

use super::evidence::Outcome;
use super::{Flying, Observer, ObserverOutput, Timer};

/// Between two probes while all is well.
const CALM: Duration = Duration::from_millis(500);
/// Between two probes while it is not known how things stand.
const EAGER: Duration = Duration::from_millis(50);
/// After so many losses in a row it is known.
const DEAD: u32 = 40;
/// So many that pass in a row are enough to step back.
const PASSES: u32 = 10;
/// So many losses in a row are enough to step in.
const LOSSES: u32 = 3;

/// Kilo's way to one location.
#[derive(Debug, Default)]
pub(super) struct KiloWay {
    pub next: Instant,
    sent: usize,
    passed_in_row: u32,
    lost_in_row: u32,
    /// What was said last.
    passes: bool,
}

impl KiloWay {
    /// Books what became of a probe; `Some` when the answer is another now.
    fn book(&mut self, delivered: bool) -> Option<bool> {
        if delivered {
            (self.passed_in_row, self.lost_in_row) = (self.passed_in_row.saturating_add(1), 0);
        } else {
            (self.passed_in_row, self.lost_in_row) = (0, self.lost_in_row.saturating_add(1));
        }
        let passes = match self.passes {
            true => self.lost_in_row < LOSSES,
            false => self.passed_in_row >= PASSES,
        };
        (std::mem::replace(&mut self.passes, passes) != passes).then_some(passes)
    }

    fn every(&self) -> Duration {
        let known = match self.passes {
            true => self.lost_in_row == 0,
            false => self.lost_in_row > DEAD,
        };
        if known { CALM } else { EAGER }
    }
}

impl Observer {
    /// Tries Kilo's way to a location from now on, or no longer. It begins with a way that does not pass.
    pub fn try_kilo(&mut self, now: Now, location: &LocationName, on: bool) {
        let Some(&at) = self.by_name.get(location) else { return };
        match (&self.watches[at].kilo, on) {
            (None, true) => {
                self.watches[at].kilo = Some(KiloWay { next: now.mono, ..KiloWay::default() });
                self.timers.insert((now.mono, Timer::Kilo(at)));
            }
            (Some(way), false) => {
                self.timers.remove(&(way.next, Timer::Kilo(at)));
                self.watches[at].kilo = None;
            }
            _ => {}
        }
    }

    pub(super) fn kilo_tick(&mut self, now: Now, at: usize) {
        let w = &mut self.watches[at];
        let targets = w.as_workload_targets();
        let Some(way) = w.kilo.as_mut() else { return };
        way.next = now.mono + way.every();
        self.timers.insert((way.next, Timer::Kilo(at)));
        // Nothing to try it on says nothing.
        if targets.is_empty() {
            return;
        }
        let target = targets[way.sent % targets.len()];
        way.sent += 1;
        let mut shot = w.as_workload(target);
        shot.unsteered = true;
        if self.spend(now.mono, 1) {
            self.send(now, at, shot);
        }
    }

    pub(super) fn kilo_settle(&mut self, f: &Flying, outcome: Outcome) {
        let w = &mut self.watches[f.watch];
        let delivered = match outcome {
            Outcome::Delivered => true,
            Outcome::Lost | Outcome::Looped => false,
            Outcome::Void | Outcome::Pending => return,
        };
        let Some(way) = w.kilo.as_mut() else { return };
        let was = way.next;
        let said = way.book(delivered);
        // A first loss is looked into at once.
        let soon = f.sent + way.every();
        if soon < was {
            way.next = soon;
            self.timers.remove(&(was, Timer::Kilo(f.watch)));
            self.timers.insert((soon, Timer::Kilo(f.watch)));
        }
        if let Some(passes) = said {
            let location = w.location.clone();
            self.emit(ObserverOutput::Kilo { location, passes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_ten_to_step_back_and_three_losses_to_step_in() {
        let mut way = KiloWay::default();
        let said: Vec<_> = (0..10).map(|_| way.book(true)).collect();
        assert_eq!(said.iter().flatten().collect::<Vec<_>>(), [&true]);
        assert_eq!(said[9], Some(true));
        assert_eq!(way.every(), CALM);
        assert_eq!([way.book(false), way.book(false)], [None, None]);
        assert_eq!(way.every(), EAGER);
        assert_eq!((way.book(true), way.every()), (None, CALM), "two losses are an accident");
        assert_eq!([way.book(false), way.book(false), way.book(false)], [None, None, Some(false)]);
        for _ in 0..DEAD {
            assert_eq!((way.book(false), way.passes), (None, false));
        }
        assert_eq!(way.every(), CALM, "dead ways are not probed eagerly for ever");
    }
}
