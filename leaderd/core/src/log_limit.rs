//! The rate limit of log lines that others can cause: one a minute from the same source about the same thing.

use std::collections::BTreeMap;

use crate::time::{Duration, Instant};

/// Between two lines from the same source about the same thing.
const INTERVAL: Duration = Duration::from_secs(60);
/// (source, reason) pairs that are remembered.
const MAX_REMEMBERED: usize = 1024;
/// What a flood of made-up sources is logged as: it would fill the log otherwise.
const MANY: &str = "many";

/// Remembers when each source was last in the log, for each reason `R`.
#[derive(Debug)]
pub struct LogLimit<R> {
    last: BTreeMap<(String, R), Instant>,
}

impl<R> Default for LogLimit<R> {
    fn default() -> Self {
        Self { last: BTreeMap::new() }
    }
}

impl<R: Ord + Copy> LogLimit<R> {
    /// Returns the source to name in the log, or `None` if it was in the log less than a minute ago for this reason.
    pub fn allow(&mut self, now: Instant, source: &str, reason: R) -> Option<String> {
        let recent = |at: &Instant| now.since(*at) < INTERVAL;
        let mut key = (source.to_owned(), reason);
        if !self.last.contains_key(&key) && self.last.len() >= MAX_REMEMBERED {
            self.last.retain(|_, at| recent(at));
            if self.last.len() >= MAX_REMEMBERED {
                key.0 = MANY.to_owned();
            }
        }
        if self.last.get(&key).is_some_and(recent) {
            return None;
        }
        let source = key.0.clone();
        self.last.insert(key, now);
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_logged_once_a_minute_and_a_flood_of_sources_stays_bounded() {
        let mut limit = LogLimit::default();
        let now = Instant(1_000_000);
        assert_eq!(limit.allow(now, "a", "refused").as_deref(), Some("a"));
        assert_eq!(limit.allow(now, "a", "refused"), None);
        assert_eq!(limit.allow(now, "a", "malformed").as_deref(), Some("a"));
        assert_eq!(limit.allow(now + INTERVAL, "a", "refused").as_deref(), Some("a"));
        let flood = (0..5000).filter_map(|n| limit.allow(now, &n.to_string(), "refused"));
        assert_eq!(flood.filter(|source| source == MANY).count(), 1);
        assert!(limit.last.len() <= MAX_REMEMBERED + 2);
    }
}
