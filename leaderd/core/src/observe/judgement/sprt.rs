//! The arithmetic of judging: log-likelihood ratios and the threshold that the operator's error rate asks for.
//!
//! H0: the path loses a share `p0` of its probes, no more than its controls. H1: it loses `p1`. A lost probe adds
//! `ln(p1/p0)`, a delivered one `ln((1-p1)/(1-p0))`, and the sum is held at zero or above (Page's CUSUM, a chain of
//! Wald's tests that start again at every acceptance of H0). Under H0 the chance that one such test reaches `h` is at
//! most `e^-h`, and at most one test starts per observation. With `rate` observations a second and `allowed` false
//! alarms a year, therefore
//!
//! ```text
//! h = ln(rate · 31 557 600 / allowed)
//! ```
//!
//! With 10 probes a second and one false failover in 100 years, h = 24.2: seven losses in a row where the controls
//! lose 2%, eleven where they lose 10%. A burst has more than that in flight at once, so the rigour costs no time.

use std::time::Duration;

use crate::time::Instant;

const SECONDS_PER_YEAR: f64 = 31_557_600.0;
/// Loss of a broken path: not 1, so that a stray delivery does not clear it.
pub const P1: f64 = 0.9;
/// Loss that is assumed even if the controls lose nothing.
pub const BASE_LOSS: f64 = 0.02;

/// Two hypotheses about a share of loss.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    lost: f64,
    delivered: f64,
}

impl Test {
    /// Without power (both increments zero) if `p1` is hardly above `p0`: the controls explain everything.
    pub fn new(p0: f64, p1: f64) -> Self {
        if p1 < p0 + 0.05 {
            return Self { lost: 0.0, delivered: 0.0 };
        }
        Self { lost: (p1 / p0).ln(), delivered: ((1.0 - p1) / (1.0 - p0)).ln() }
    }

    /// Returns what a probe adds to the sum.
    pub fn step(&self, lost: bool) -> f64 {
        if lost { self.lost } else { self.delivered }
    }
}

/// A CUSUM and where its present climb began.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cusum {
    value: f64,
    from: Option<Instant>,
}

impl Cusum {
    /// Adds the step of a probe that was sent then.
    pub fn add(&mut self, step: f64, sent: Instant) {
        self.value = (self.value + step).max(0.0);
        self.from = if self.value > 0.0 { self.from.or(Some(sent)) } else { None };
    }

    pub fn hold_at(&mut self, most: f64) {
        self.value = self.value.min(most);
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// When the first probe of the present climb was sent.
    pub fn from(&self) -> Option<Instant> {
        self.from
    }

    pub fn worse(self, other: Self) -> Self {
        if other.value > self.value { other } else { self }
    }
}

/// Test of a total failure against the loss of the controls.
pub fn failure(control_loss: f64) -> Test {
    Test::new(control_loss.max(BASE_LOSS), P1)
}

/// Test of steady loss, indifferent at about `threshold`, and above what the controls lose.
pub fn steady(control_loss: f64, threshold: f64) -> Test {
    let p0 = control_loss.max(threshold / 2.0).clamp(0.001, 0.95);
    Test::new(p0, (threshold * 1.5).max(p0 + 0.2).min(0.99))
}

/// Returns `h` (see above).
pub fn threshold(interval: Duration, allowed_per_year: f64) -> f64 {
    let rate = 1.0 / interval.as_secs_f64().max(1e-3);
    (rate * SECONDS_PER_YEAR / allowed_per_year.max(1e-9)).ln().max(5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stricter_operator_needs_more_losses() {
        let h = |allowed| threshold(Duration::from_millis(100), allowed);
        let needed = |h: f64, p0| (h / failure(p0).step(true)).ceil();
        assert_eq!(needed(h(0.01), 0.0), 7.0);
        assert!(needed(h(0.01), 0.1) >= 11.0);
        assert!(h(0.001) > h(0.01));
    }

    #[test]
    fn a_climb_begins_with_its_first_loss_and_ends_when_deliveries_outweigh_it() {
        let at = |s| Instant(0) + Duration::from_secs(s);
        let mut sum = Cusum::default();
        sum.add(-1.0, at(1));
        assert_eq!((sum.value(), sum.from()), (0.0, None));
        sum.add(2.0, at(2));
        sum.add(2.0, at(3));
        assert_eq!((sum.value(), sum.from()), (4.0, Some(at(2))));
        sum.add(-5.0, at(4));
        assert_eq!((sum.value(), sum.from()), (0.0, None));
        let mut worse = Cusum::default();
        worse.add(1.0, at(5));
        assert_eq!(sum.worse(worse).value(), 1.0);
    }

    #[test]
    fn loss_that_the_controls_share_is_no_evidence() {
        assert_eq!(failure(0.9).step(true), 0.0);
        let t = steady(0.1, 0.2);
        assert!(0.1 * t.step(true) + 0.9 * t.step(false) < 0.0);
        assert!(0.4 * t.step(true) + 0.6 * t.step(false) > 0.0);
    }
}
