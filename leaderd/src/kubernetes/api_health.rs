//! Tracks whether the API server answers and accepts requests. It logs once when that stops and once when it resumes; the pings in between
//! are silent, and no other request is sent meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff as _;

use super::backoff::{Backoff, RetryAfter, is_overload, spread};
use crate::counters::Counters;

/// Longest silence before a ping. Each pause is drawn between half and all of it: a watch event that all daemons receive at once must not
/// make them ping at once.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Longest duration of a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

impl ApiError {
    /// True if the server answered, even if it refused.
    pub fn was_answered(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(_)))
    }

    /// True if the server is overloaded.
    fn is_overload(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if is_overload(status.code))
    }

    /// True if another client was first: the object has changed or exists already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409)
    }
}

/// Sends a request with a timeout.
///
/// # Errors
/// If the server refuses it, or does not answer within [`REQUEST_TIMEOUT`].
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::Timeout),
    }
}

#[derive(Debug)]
pub struct ApiHealth {
    last_answer: Instant,
    /// Since when the server does not answer.
    away: Option<Instant>,
    /// Since when the server is too busy for our requests.
    throttled: Option<Instant>,
    backoff: Backoff,
    next_ping: Instant,
    /// The last refusal of each kind of request, so that each is logged once.
    refused: BTreeMap<&'static str, String>,
    counters: Counters,
}

impl ApiHealth {
    pub fn new(counters: Counters, retry_after: RetryAfter) -> Self {
        let now = Instant::now();
        let (away, throttled, refused) = (None, None, BTreeMap::new());
        let backoff = Backoff::new(retry_after);
        Self { last_answer: now, away, throttled, backoff, next_ping: now, refused, counters }
    }

    /// Records an answer. True if the server did not answer before: then the watches have to start again.
    pub fn answered(&mut self) -> bool {
        let back = self.end_outage();
        self.next_ping = self.last_answer + spread(MAX_SILENCE);
        self.backoff.reset();
        if let Some(since) = self.throttled.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(held.seconds = seconds, "the Kubernetes API accepts requests again");
        }
        back
    }

    /// Records that a watch delivered something: the server answers. That says nothing about other requests, as a running watch is not
    /// throttled.
    pub fn watch_delivered(&mut self) {
        if !self.is_paused() {
            self.answered();
        }
    }

    fn end_outage(&mut self) -> bool {
        self.last_answer = Instant::now();
        let Some(since) = self.away.take() else { return false };
        tracing::info!(
            away.seconds = since.elapsed().as_secs(),
            "the Kubernetes API answers again"
        );
        true
    }

    /// Records that the server did not answer.
    pub fn unreachable(&mut self, error: &dyn std::fmt::Display) {
        self.counters.count("kubernetes_failures");
        let now = Instant::now();
        self.next_ping = now + self.backoff.next().unwrap_or(MAX_SILENCE);
        if self.away.is_none() {
            self.away = Some(self.last_answer);
            tracing::warn!(%error, "the Kubernetes API does not answer; the mesh goes on as it is");
        }
    }

    /// Records that the server is overloaded: no request is sent before the next ping. Returns the same as [`ApiHealth::answered`].
    pub fn throttled(&mut self, what: &'static str, why: &str) -> bool {
        let back = self.end_outage();
        self.counters.count("kubernetes_throttled");
        self.next_ping = self.last_answer + self.backoff.next().unwrap_or(MAX_SILENCE);
        if self.throttled.is_none() {
            self.throttled = Some(self.last_answer);
            tracing::warn!(
                what,
                error = why,
                "the Kubernetes API is overloaded; requests wait, and the mesh goes on as it is"
            );
        }
        back
    }

    /// Records the result of a request. A refusal is logged once until the request succeeds. Returns the same as
    /// [`ApiHealth::answered`].
    pub fn record(&mut self, what: &'static str, result: Result<(), &ApiError>) -> bool {
        match result {
            Ok(()) => {
                self.refused.remove(what);
                self.answered()
            }
            Err(error) if error.is_conflict() => {
                self.counters.count("kubernetes_conflicts");
                self.answered()
            }
            Err(error) if error.is_overload() => self.throttled(what, &error.to_string()),
            Err(error) if error.was_answered() => {
                self.refused(what, &error.to_string());
                self.answered()
            }
            Err(error) => {
                self.unreachable(error);
                false
            }
        }
    }

    /// Records that the server refused a request.
    pub fn refused(&mut self, what: &'static str, why: &str) {
        self.counters.count("kubernetes_refusals");
        if self.refused.get(what).is_none_or(|before| before != why) {
            tracing::error!(what, error = why, "the Kubernetes API refuses");
            self.refused.insert(what, why.to_owned());
        }
    }

    /// True if no request but the ping may be sent.
    pub fn is_paused(&self) -> bool {
        self.away.is_some() || self.throttled.is_some()
    }

    /// Returns when to send the next ping.
    pub fn next_ping(&self) -> Instant {
        self.next_ping
    }

    /// Records that a ping was sent: the next one waits for its answer.
    pub fn ping_sent(&mut self) {
        self.next_ping = Instant::now() + REQUEST_TIMEOUT * 2;
    }

    /// Exports the time since the last answer as a metric.
    pub fn export_age(&self) {
        let micros = u64::try_from(self.last_answer.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.set("kubernetes_contact_age_micros", micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_the_first_answer_even_if_it_is_a_refusal() {
        let counters = Counters::default();
        let mut health = ApiHealth::new(counters.clone(), RetryAfter::default());
        assert!(!health.record("keys", Ok(())), "it was never away");
        for _ in 0..3 {
            assert!(!health.record("keys", Err(&ApiError::Timeout)));
            assert!(health.is_paused());
        }
        assert_eq!(counters.get("kubernetes_failures"), 3);
        let forbidden = kube::core::Status::failure("no", "Forbidden").with_code(403).boxed();
        let refused = ApiError::from(kube::Error::Api(forbidden));
        assert!(health.record("keys", Err(&refused)));
        assert!(!health.is_paused());
        assert_eq!(counters.get("kubernetes_refusals"), 1);
        let conflict = kube::core::Status::failure("other", "Conflict").with_code(409).boxed();
        assert!(!health.record("keys", Err(&ApiError::from(kube::Error::Api(conflict)))));
        assert_eq!(counters.get("kubernetes_conflicts"), 1);
    }

    #[test]
    fn overload_is_no_outage_and_no_refusal_and_pauses_all_requests() {
        let counters = Counters::default();
        let mut health = ApiHealth::new(counters.clone(), RetryAfter::default());
        health.answered();
        let busy = || {
            let busy = kube::core::Status::failure("too many requests", "").with_code(429).boxed();
            ApiError::from(kube::Error::Api(busy))
        };
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(!health.record("status", Err(&busy())), "it was never away");
            pauses.push(health.next_ping() - Instant::now());
            health.watch_delivered();
            assert!(health.is_paused(), "a running watch says nothing about requests");
        }
        assert!(pauses[5] > Duration::from_secs(4), "pauses grow: {pauses:?}");
        assert_eq!(
            (counters.get("kubernetes_throttled"), counters.get("kubernetes_refusals")),
            (6, 0)
        );
        assert_eq!(counters.get("kubernetes_failures"), 0);
        assert!(!health.record("ping", Ok(())));
        assert!(!health.is_paused());
        // From an outage into overload: the watches start again all the same.
        health.unreachable(&"nothing");
        assert!(health.record("ping", Err(&busy())), "it was away");
        assert!(health.is_paused());
    }
}
