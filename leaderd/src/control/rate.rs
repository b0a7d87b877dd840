//! Limits what one peer may send: a token bucket of frames and one of bytes.

use std::time::Duration;

use tokio::time::Instant;

/// Frames a second, and at once. In a mesh of a thousand locations a candidate passes on a report of each every second.
const FRAMES: f64 = 2000.0;
/// Bytes a second, and at once: a snapshot is a fraction of it.
const BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// Seconds of either that may come at once.
const BURST: f64 = 2.0;

#[derive(Debug)]
pub(super) struct Rate {
    at: Instant,
    frames: f64,
    bytes: f64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now, frames: FRAMES * BURST, bytes: BYTES * BURST }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.frames = (self.frames + passed * FRAMES).min(FRAMES * BURST);
        self.bytes = (self.bytes + passed * BYTES).min(BYTES * BURST);
    }

    /// Returns false if it is too much: for what may be dropped.
    pub(super) fn allows(&mut self, now: Instant, bytes: usize) -> bool {
        self.refill(now);
        let allowed = self.frames >= 1.0 && self.bytes >= bytes as f64;
        if allowed {
            self.spend(bytes);
        }
        allowed
    }

    /// Takes it in any case, and returns how long to wait before the next: for what may not be dropped.
    pub(super) fn debt(&mut self, now: Instant, bytes: usize) -> Duration {
        self.refill(now);
        self.spend(bytes);
        let wait = (-self.frames / FRAMES).max(-self.bytes / BYTES).max(0.0);
        Duration::from_secs_f64(wait)
    }

    fn spend(&mut self, bytes: usize) {
        self.frames -= 1.0;
        self.bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_bytes_of_a_minute_are_bounded() {
        let start = Instant::now();
        for (bytes, most) in [(10, FRAMES), (64 << 10, BYTES / f64::from(64 << 10))] {
            let mut rate = Rate::new(start);
            let tries = (0..600_000).map(|n| start + Duration::from_micros(n * 100));
            let passed = tries.filter(|at| rate.allows(*at, bytes)).count() as f64;
            assert!((most * 60.0..=most * (60.0 + BURST) + 1.0).contains(&passed), "{passed}");
        }
    }

    #[test]
    fn a_long_frame_is_taken_and_paid_for_before_the_next() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.debt(start, 4 << 20), Duration::ZERO);
        assert_eq!(rate.debt(start, 4 << 20), Duration::ZERO);
        let wait = rate.debt(start, 4 << 20);
        assert!(wait.abs_diff(Duration::from_secs(1)) < Duration::from_millis(1), "{wait:?}");
        assert!(!rate.allows(start, 10));
        assert_eq!(rate.debt(start + Duration::from_secs(60), 4 << 20), Duration::ZERO);
    }
}
