//! How long to leave the API server alone: after it failed, and where it asks to be left alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::RETRY_AFTER;
use hyper::http::{HeaderMap, StatusCode};

/// The first pause, and the longest: an outage ends unseen for at most so long.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// The longest pause that the server may ask for. It says a second or a few; what sits between may say anything.
const MOST_ASKED: Duration = Duration::from_secs(120);

/// Until when the server asked to be left alone (header `Retry-After`), whatever the request was. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Mutex<Option<Instant>>>);

impl Asked {
    /// An answer came. Only those that say that there is too much to do may ask for a pause.
    pub fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        if !is_overload(status.as_u16()) {
            return;
        }
        let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let Some(pause) = seconds.map(Duration::from_secs) else { return };
        let until = Instant::now() + pause.min(MOST_ASKED);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(held.map_or(until, |before| before.max(until)));
    }

    /// What is left of the pause.
    fn left(&self) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// Too many requests, no server for them, or none in time: the same later may be fine.
pub fn is_overload(code: u16) -> bool {
    matches!(code, 429 | 503 | 504)
}

/// Doubles from 0.5 s to 10 s, each pause drawn between half and all of it, so that daemons do not come back at once; and goes on
/// top of what the server asked for.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    asked: Asked,
}

impl Backoff {
    pub fn new(asked: Asked) -> Self {
        Self { failures: 0, asked }
    }
}

/// Between half and all of it.
pub fn spread(whole: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without randomness it is all of it: no harm.
    let share = getrandom::fill(&mut byte).map_or(255, |()| byte[0]);
    whole / 2 + whole.mul_f64(f64::from(share) / 510.0)
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        Some(self.asked.left() + spread(whole))
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

    #[test]
    fn what_the_server_asks_for_is_kept_and_only_where_it_has_too_much_to_do() {
        let says = |code: u16, value: &'static str| {
            let asked = Asked::default();
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            asked.hear(StatusCode::from_u16(code).unwrap(), &headers);
            Backoff::new(asked).next().unwrap()
        };
        assert!(says(429, "7") > Duration::from_secs(6));
        assert!(says(503, "7") > Duration::from_secs(6));
        assert!(says(201, "7") <= FIRST);
        assert!(says(429, "Fri, 31 Dec 2027 23:59:59 GMT") <= FIRST, "dates are not sent");
        assert!(says(429, "999999999") <= MOST_ASKED + FIRST, "a mistake of something between");
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let asked = Asked::default();
        for value in ["60", "1"] {
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            asked.clone().hear(StatusCode::TOO_MANY_REQUESTS, &headers);
        }
        assert!(Backoff::new(asked).next().unwrap() > Duration::from_secs(50));
    }
}
