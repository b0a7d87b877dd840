//! Whether the API server answers. Told once when it stops and once when it is back; retries in between are silent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff as _;

use super::backoff::Backoff;
use crate::counters::Counters;

/// Longest silence before the server is asked whether it is there.
const QUIET: Duration = Duration::from_secs(10);

/// How long one request may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

impl CallError {
    /// The server answered, if only to refuse.
    pub fn was_answered(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(_)))
    }

    /// Somebody else was first: the object is another by now, or there is one already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409)
    }
}

/// Carries out a request, for so long at most.
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Timeout),
    }
}

#[derive(Debug)]
pub struct Contact {
    last: Instant,
    /// When it was found away, and the next try.
    away: Option<Instant>,
    backoff: Backoff,
    next_try: Instant,
    /// The last refusal of each thing asked for, so that each is told once.
    refused: BTreeMap<&'static str, String>,
    counters: Counters,
}

impl Contact {
    pub fn new(counters: Counters) -> Self {
        let now = Instant::now();
        let (away, backoff, refused) = (None, Backoff::default(), BTreeMap::new());
        Self { last: now, away, backoff, next_try: now, refused, counters }
    }

    /// It answered. True if it was away before: what was watched is to be read anew.
    pub fn answered(&mut self) -> bool {
        self.last = Instant::now();
        self.next_try = self.last + QUIET;
        self.backoff.reset();
        let Some(since) = self.away.take() else { return false };
        tracing::info!(
            away.seconds = since.elapsed().as_secs(),
            "the Kubernetes API answers again"
        );
        true
    }

    /// It did not answer.
    pub fn silent(&mut self, error: &dyn std::fmt::Display) {
        self.counters.count("kubernetes_failures");
        let now = Instant::now();
        self.next_try = now + self.backoff.next().unwrap_or(QUIET);
        if self.away.is_none() {
            self.away = Some(self.last);
            tracing::warn!(%error, "the Kubernetes API does not answer; the mesh goes on as it is");
        }
    }

    /// It did, or refused to do, what was asked. What is refused is told once until it is done. Returns as
    /// [`Contact::answered`].
    pub fn heard(&mut self, what: &'static str, result: Result<(), &CallError>) -> bool {
        match result {
            Ok(()) => {
                self.refused.remove(what);
                self.answered()
            }
            Err(error) if error.is_conflict() => {
                self.counters.count("kubernetes_conflicts");
                self.answered()
            }
            Err(error) if error.was_answered() => {
                self.refused(what, &error.to_string());
                self.answered()
            }
            Err(error) => {
                self.silent(error);
                false
            }
        }
    }

    pub fn refused(&mut self, what: &'static str, why: &str) {
        self.counters.count("kubernetes_refusals");
        if self.refused.get(what).is_none_or(|before| before != why) {
            tracing::error!(what, error = why, "the Kubernetes API refuses");
            self.refused.insert(what, why.to_owned());
        }
    }

    pub fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// When the server is to be asked whether it is there.
    pub fn next_try(&self) -> Instant {
        self.next_try
    }

    /// A request that says whether it is there was sent: not again before it is answered.
    pub fn trying(&mut self) {
        self.next_try = Instant::now() + CALL_TIMEOUT * 2;
    }

    pub fn measure(&self) {
        let micros = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.set("kubernetes_contact_age_micros", micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_the_first_answer_even_if_that_is_a_refusal() {
        let counters = Counters::default();
        let mut contact = Contact::new(counters.clone());
        assert!(!contact.heard("keys", Ok(())), "it was never away");
        for _ in 0..3 {
            assert!(!contact.heard("keys", Err(&CallError::Timeout)));
            assert!(contact.is_away());
        }
        assert_eq!(counters.get("kubernetes_failures"), 3);
        let forbidden = kube::core::Status::failure("no", "Forbidden").with_code(403).boxed();
        let refused = CallError::from(kube::Error::Api(forbidden));
        assert!(contact.heard("keys", Err(&refused)));
        assert!(!contact.is_away());
        assert_eq!(counters.get("kubernetes_refusals"), 1);
        let conflict = kube::core::Status::failure("other", "Conflict").with_code(409).boxed();
        assert!(!contact.heard("keys", Err(&CallError::from(kube::Error::Api(conflict)))));
        assert_eq!(counters.get("kubernetes_conflicts"), 1);
    }
}
