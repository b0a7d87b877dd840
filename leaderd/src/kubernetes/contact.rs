//! Whether the API server answers, and takes requests. Told once when it stops and once when it is back; retries in between are
//! silent, and nothing else is asked of it meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff as _;

use super::backoff::{Asked, Backoff, is_overload, spread};
use crate::counters::Counters;

/// Longest silence before the server is asked whether it is there. Drawn between half and all of it: what all daemons hear at once
/// (one word of a watch) must not make all of them ask at once.
const QUIET: Duration = Duration::from_secs(60);

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

    /// The server has too much to do.
    fn is_overload(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if is_overload(status.code))
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
    /// Since when it has too much to do for our requests.
    throttled: Option<Instant>,
    backoff: Backoff,
    next_try: Instant,
    /// The last refusal of each thing asked for, so that each is told once.
    refused: BTreeMap<&'static str, String>,
    counters: Counters,
}

impl Contact {
    pub fn new(counters: Counters, asked: Asked) -> Self {
        let now = Instant::now();
        let (away, throttled, refused) = (None, None, BTreeMap::new());
        let backoff = Backoff::new(asked);
        Self { last: now, away, throttled, backoff, next_try: now, refused, counters }
    }

    /// It answered. True if it was away before: what was watched is to be read anew.
    pub fn answered(&mut self) -> bool {
        let back = self.is_there();
        self.next_try = self.last + spread(QUIET);
        self.backoff.reset();
        if let Some(since) = self.throttled.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(held.seconds = seconds, "the Kubernetes API takes our requests again");
        }
        back
    }

    /// A watch brought something: the server is there. That says nothing of other requests, as a watch that runs is not throttled.
    pub fn overheard(&mut self) {
        if !self.holds() {
            self.answered();
        }
    }

    fn is_there(&mut self) -> bool {
        self.last = Instant::now();
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

    /// It answered that it has too much to do: nothing is asked of it before the next try. Returns as [`Contact::answered`].
    pub fn throttled(&mut self, what: &'static str, why: &str) -> bool {
        let back = self.is_there();
        self.counters.count("kubernetes_throttled");
        self.next_try = self.last + self.backoff.next().unwrap_or(QUIET);
        if self.throttled.is_none() {
            self.throttled = Some(self.last);
            tracing::warn!(
                what,
                error = why,
                "the Kubernetes API has too much to do; requests wait, and the mesh goes on as it is"
            );
        }
        back
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
            Err(error) if error.is_overload() => self.throttled(what, &error.to_string()),
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

    /// Nothing but the one request that says whether it is there is to be asked of it.
    pub fn holds(&self) -> bool {
        self.away.is_some() || self.throttled.is_some()
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
        let mut contact = Contact::new(counters.clone(), Asked::default());
        assert!(!contact.heard("keys", Ok(())), "it was never away");
        for _ in 0..3 {
            assert!(!contact.heard("keys", Err(&CallError::Timeout)));
            assert!(contact.holds());
        }
        assert_eq!(counters.get("kubernetes_failures"), 3);
        let forbidden = kube::core::Status::failure("no", "Forbidden").with_code(403).boxed();
        let refused = CallError::from(kube::Error::Api(forbidden));
        assert!(contact.heard("keys", Err(&refused)));
        assert!(!contact.holds());
        assert_eq!(counters.get("kubernetes_refusals"), 1);
        let conflict = kube::core::Status::failure("other", "Conflict").with_code(409).boxed();
        assert!(!contact.heard("keys", Err(&CallError::from(kube::Error::Api(conflict)))));
        assert_eq!(counters.get("kubernetes_conflicts"), 1);
    }

    #[test]
    fn too_many_requests_are_no_outage_and_no_refusal_and_hold_all_others_back() {
        let counters = Counters::default();
        let mut contact = Contact::new(counters.clone(), Asked::default());
        contact.answered();
        let busy = || {
            let busy = kube::core::Status::failure("too many requests", "").with_code(429).boxed();
            CallError::from(kube::Error::Api(busy))
        };
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(!contact.heard("status", Err(&busy())), "it was never away");
            pauses.push(contact.next_try() - Instant::now());
            contact.overheard();
            assert!(contact.holds(), "a watch goes on, and says nothing of requests");
        }
        assert!(pauses[5] > Duration::from_secs(4), "pauses grow: {pauses:?}");
        assert_eq!(
            (counters.get("kubernetes_throttled"), counters.get("kubernetes_refusals")),
            (6, 0)
        );
        assert_eq!(counters.get("kubernetes_failures"), 0);
        assert!(!contact.heard("beat", Ok(())));
        assert!(!contact.holds());
        // From an outage into overload: the watches are read anew all the same.
        contact.silent(&"nothing");
        assert!(contact.heard("beat", Err(&busy())), "it was away");
        assert!(contact.holds());
    }
}
