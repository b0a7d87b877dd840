//! Notices a disk that confirms no writes.

use std::time::Duration;

use crate::time::Instant;

/// A disk that confirms no waiting write for this long is full or broken.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(2);

/// The writes that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct DiskWatch {
    /// The newest waiting write, and when the disk last confirmed one, or began to have any to confirm.
    waiting: Option<(u64, Instant)>,
    /// The state that was last reported by [`DiskWatch::change`].
    stuck: bool,
}

impl DiskWatch {
    pub fn write_waits(&mut self, now: Instant, ticket: u64) {
        let since = self.waiting.map_or(now, |(_, since)| since);
        self.waiting = Some((ticket, since));
    }

    /// All writes up to this ticket are on disk.
    pub fn written(&mut self, now: Instant, ticket: u64) {
        let waiting = self.waiting.filter(|(newest, _)| *newest > ticket);
        self.waiting = waiting.map(|(newest, _)| (newest, now));
    }

    /// For how long a full or broken disk has confirmed nothing; `None` if it works.
    pub fn stuck_for(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.waiting?;
        Some(now.since(since)).filter(|waited| *waited >= STUCK_AFTER)
    }

    /// Whether the disk is stuck now, if that has changed since the last call.
    pub fn change(&mut self, now: Instant) -> Option<bool> {
        let stuck = self.stuck_for(now).is_some();
        (std::mem::replace(&mut self.stuck, stuck) != stuck).then_some(stuck)
    }

    /// When the disk becomes stuck, if it confirms nothing until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (_, since) = self.waiting.filter(|_| !self.stuck)?;
        Some(since + STUCK_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1000)
    }

    #[test]
    fn a_disk_is_stuck_once_it_confirms_nothing_for_two_seconds() {
        let mut watch = DiskWatch::default();
        assert_eq!(watch.poll_timeout(), None);
        watch.write_waits(at(0), 1);
        watch.write_waits(at(500), 2);
        assert_eq!(watch.poll_timeout(), Some(at(2000)));
        // One of the two is confirmed: the time counts anew.
        watch.written(at(1000), 1);
        assert_eq!((watch.poll_timeout(), watch.change(at(2999))), (Some(at(3000)), None));
        assert_eq!(watch.stuck_for(at(3000)), Some(STUCK_AFTER));
        assert_eq!((watch.change(at(3000)), watch.change(at(3001))), (Some(true), None));
        assert_eq!(watch.poll_timeout(), None);
        watch.written(at(4000), 2);
        assert_eq!((watch.stuck_for(at(9000)), watch.change(at(9000))), (None, Some(false)));
    }
}
