//! How long to leave the API server alone after it failed.

use std::time::Duration;

/// The first pause, and the longest: an outage ends unseen for at most so long.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles from 0.5 s to 10 s; each pause is drawn between half and all of it, so that daemons do not come back at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let mut byte = [0; 1];
        // Without randomness the pause is a whole one: no harm.
        let share = getrandom::fill(&mut byte).map_or(255, |()| byte[0]);
        Some(whole / 2 + whole.mul_f64(f64::from(share) / 510.0))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::utils::Backoff as _;

    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let first = backoff.next().unwrap();
        assert!((FIRST / 2..=FIRST).contains(&first), "{first:?}");
        let later: Vec<_> = backoff.by_ref().take(40).collect();
        assert!(later.iter().all(|p| *p <= LONGEST), "{later:?}");
        assert!(later[10..].iter().all(|p| *p >= LONGEST / 2), "{later:?}");
        backoff.reset();
        assert!(backoff.next().unwrap() <= FIRST);
    }
}
