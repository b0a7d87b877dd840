//! What a path loses over tens of seconds: the shares that are shown and compared, and the test for steady loss.

use std::time::Duration;

use crate::observe::judgement::sprt::Test;
use crate::time::Instant;

/// Gain of the shares: about ten seconds of rounds.
const GAIN: f64 = 1.0 / 128.0;
/// Losses further apart than this, and than five rounds, are two pieces of bad luck.
const LOSSY_GAP: Duration = Duration::from_millis(500);
const LOSSY_ROUNDS: u32 = 5;
/// The test for steady loss is held at this, so that a path that gets better is believed in time.
const MAX_STEADY: f64 = 1e3;

/// Of new flows.
#[derive(Debug, Clone, Copy, Default)]
pub struct LossRate {
    /// Share lost lately, 0 to 1.
    shown: f64,
    /// The same of those that another path did not lose as well.
    own: f64,
    /// CUSUM of the test for steady loss.
    steady: f64,
    /// The first and the last of the latest losses, no two of them far apart.
    lossy: Option<(Instant, Instant)>,
}

impl LossRate {
    /// Share lost lately, 0 to 1.
    pub fn shown(&self) -> f64 {
        self.shown
    }

    /// Share lost lately, without what another path lost as well.
    pub fn own(&self) -> f64 {
        self.own
    }

    pub fn steady(&self) -> f64 {
        self.steady
    }

    /// How long it has been losing new flows again and again.
    pub fn lossy_for(&self) -> Duration {
        self.lossy.map_or(Duration::ZERO, |(first, last)| last.since(first))
    }

    /// Counts an outcome for the share that is shown.
    pub fn show(&mut self, lost: bool) {
        self.shown += GAIN * (f64::from(u8::from(lost)) - self.shown);
    }

    /// Counts an outcome for the path's own share and for the test.
    pub fn count(&mut self, lost: bool, test: &Test) {
        self.own += GAIN * (f64::from(u8::from(lost)) - self.own);
        self.steady = (self.steady + test.step(lost)).clamp(0.0, MAX_STEADY);
    }

    /// Takes a loss back: its reply came late.
    pub fn take_back(&mut self, test: &Test) {
        self.own = (self.own - GAIN).max(0.0);
        self.shown = (self.shown - GAIN).max(0.0);
        self.steady = (self.steady - test.step(true)).max(0.0);
    }

    /// A new flow that was sent then is lost; `interval` is that of rounds.
    pub fn lost_at(&mut self, sent: Instant, interval: Duration) {
        let gap = LOSSY_GAP.max(interval * LOSSY_ROUNDS);
        let near = |(_, last): &(Instant, Instant)| sent.since(*last) <= gap;
        self.lossy = Some(match self.lossy.filter(near) {
            Some((first, last)) => (first.min(sent), last.max(sent)),
            None => (sent, sent),
        });
    }

    /// Forgets the shares and the test, as nothing was known before.
    pub fn restart(&mut self) {
        (self.own, self.shown, self.steady) = (0.0, 0.0, 0.0);
    }

    pub fn restart_test(&mut self) {
        self.steady = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::judgement::sprt;

    const ROUND: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    #[test]
    fn a_loss_whose_reply_came_late_leaves_nothing_behind() {
        let test = sprt::steady(0.0, 0.2);
        let mut rate = LossRate::default();
        rate.show(true);
        rate.count(true, &test);
        assert!(rate.shown() > 0.0 && rate.own() > 0.0 && rate.steady() > 0.0);
        rate.take_back(&test);
        assert_eq!((rate.shown(), rate.own(), rate.steady()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_share_follows_the_last_ten_seconds_of_rounds() {
        let test = sprt::steady(0.0, 0.2);
        let mut rate = LossRate::default();
        for n in 0..1000 {
            rate.count(n % 2 == 0, &test);
        }
        assert!((0.45..0.55).contains(&rate.own()), "{}", rate.own());
        (0..1000).for_each(|_| rate.count(true, &test));
        assert_eq!(rate.steady(), MAX_STEADY);
        for _ in 0..400 {
            rate.count(false, &test);
        }
        assert!(rate.own() < 0.1, "{}", rate.own());
    }

    #[test]
    fn losses_far_apart_are_not_one_time_of_loss() {
        let mut rate = LossRate::default();
        for ms in [0, 400, 800, 1200] {
            rate.lost_at(at(ms), ROUND);
        }
        assert_eq!(rate.lossy_for(), Duration::from_millis(1200));
        rate.lost_at(at(1701), ROUND);
        assert_eq!(rate.lossy_for(), Duration::ZERO);
        // Where rounds are rare, losses are as well.
        rate.lost_at(at(3000), ROUND * 10);
        assert_eq!(rate.lossy_for(), Duration::from_millis(1299));
    }
}
