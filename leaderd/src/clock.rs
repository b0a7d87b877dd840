//! The two clocks of the daemon, always read together.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use leaderd_core::time::{Instant, Now, WallTime};

/// The monotonic clock counts from when this was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: StdInstant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { origin: StdInstant::now() }
    }
}

impl Clock {
    pub fn now(&self) -> Now {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Now {
            mono: Instant(micros(self.origin.elapsed())),
            // A wall clock before 1970 shows as 1970: it is only ever shown.
            wall: WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map(micros).unwrap_or(0)),
        }
    }

    /// The same instant on the clock that timers sleep by.
    pub fn deadline(&self, at: Instant) -> tokio::time::Instant {
        let far = StdInstant::now() + Duration::from_secs(86_400);
        self.origin.checked_add(Duration::from_micros(at.0)).unwrap_or(far).min(far).into()
    }
}
