//! Time in the core: it comes with every input, and the core reads no clock.

use std::fmt;
use std::ops::{Add, Sub};
pub use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the monotonic clock, in microseconds since an origin that the shell chose at start.
/// Setting the wall clock does not change it. Every timer and every verdict uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Instant(pub u64);

/// Wall-clock time in microseconds since the Unix epoch, UTC. Only for people to read: nothing is decided by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WallTime(pub u64);

/// Both clocks, read together by the shell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Now {
    pub mono: Instant,
    pub wall: WallTime,
}

impl Now {
    /// Returns the wall-clock time of an earlier (or later) monotonic instant.
    pub fn wall_at(&self, at: Instant) -> WallTime {
        let offset = i128::from(at.0) - i128::from(self.mono.0);
        WallTime(u64::try_from(i128::from(self.wall.0) + offset).unwrap_or(0))
    }
}

impl Instant {
    /// Returns the time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}
impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, d: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}
impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
