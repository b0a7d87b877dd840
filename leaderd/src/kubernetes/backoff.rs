//! Pauses between requests to the API server: after failures, and where it asks for one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::RETRY_AFTER;
use hyper::http::{HeaderMap, StatusCode};

/// The first pause, and the longest: the end of an outage is noticed at most this late.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// The longest pause that the server may ask for. It asks for a few seconds; a proxy in between may ask for anything.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Until when the server asked for a pause (header `Retry-After`) of all requests. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RetryAfter(Arc<Mutex<Option<Instant>>>);

impl RetryAfter {
    /// Records an answer. Only answers that report overload may ask for a pause.
    pub fn record(&self, status: StatusCode, headers: &HeaderMap) {
        if !is_overload(status.as_u16()) {
            return;
        }
        let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let Some(pause) = seconds.map(Duration::from_secs) else { return };
        let until = Instant::now() + pause.min(MAX_RETRY_AFTER);
        let mut pause_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pause_until = Some(pause_until.map_or(until, |before| before.max(until)));
    }

    /// Returns the rest of the pause.
    fn left(&self) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// True for status codes of overload: too many requests, service unavailable, gateway timeout.
pub fn is_overload(code: u16) -> bool {
    matches!(code, 429 | 503 | 504)
}

/// Doubles from 0.5 s to 10 s. Each pause is drawn between half and all of it, so that daemons do not return at once, and comes on top of
/// the pause that the server asked for.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    retry_after: RetryAfter,
}

impl Backoff {
    pub fn new(retry_after: RetryAfter) -> Self {
        Self { failures: 0, retry_after }
    }
}

/// Returns a random duration between half of `whole` and all of it.
pub fn spread(whole: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without randomness: all of it.
    let share = getrandom::fill(&mut byte).map_or(255, |()| byte[0]);
    whole / 2 + whole.mul_f64(f64::from(share) / 510.0)
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        Some(self.retry_after.left() + spread(whole))
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
    fn pauses_grow_to_a_bound_and_start_again_after_a_success() {
        let mut backoff = Backoff::default();
        let first = backoff.next().unwrap();
        assert!((FIRST / 2..=FIRST).contains(&first), "{first:?}");
        let later: Vec<_> = backoff.by_ref().take(40).collect();
        assert!(later.iter().all(|p| *p <= LONGEST), "{later:?}");
        assert!(later[10..].iter().all(|p| *p >= LONGEST / 2), "{later:?}");
        backoff.reset();
        assert!(backoff.next().unwrap() <= FIRST);
    }

    #[test]
    fn retry_after_is_respected_only_with_overload() {
        let says = |code: u16, value: &'static str| {
            let retry_after = RetryAfter::default();
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            retry_after.record(StatusCode::from_u16(code).unwrap(), &headers);
            Backoff::new(retry_after).next().unwrap()
        };
        assert!(says(429, "7") > Duration::from_secs(6));
        assert!(says(503, "7") > Duration::from_secs(6));
        assert!(says(201, "7") <= FIRST);
        assert!(says(429, "Fri, 31 Dec 2027 23:59:59 GMT") <= FIRST, "dates are not sent");
        assert!(says(429, "999999999") <= MAX_RETRY_AFTER + FIRST, "a mistake of a proxy");
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let retry_after = RetryAfter::default();
        for value in ["60", "1"] {
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            retry_after.clone().record(StatusCode::TOO_MANY_REQUESTS, &headers);
        }
        assert!(Backoff::new(retry_after).next().unwrap() > Duration::from_secs(50));
    }
}
