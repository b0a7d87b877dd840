//! Whether the meters' traffic flows.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wgctl_lab::{Meter, Meters, wall_micros};

const POLL: Duration = Duration::from_millis(100);
/// Packets may be under way for this long: half a round trip, and room for a late thread.
pub const TRANSIT: Duration = Duration::from_millis(160);
/// Both meters must lose next to nothing for this long.
const STEADY: Duration = Duration::from_secs(1);
/// Share of the packets that may be lost while all is well: a busy machine drops one now and then.
const NOISE: f64 = 0.002;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blackout {
    pub ms: f64,
    /// It had not ended when the measurement did.
    pub unfinished: bool,
}

/// Returns whether next to nothing was lost in the last `window` of what must have arrived by now.
pub fn steady(meters: &Meters, window: Duration) -> bool {
    let until = wall_micros().saturating_sub(TRANSIT.as_micros() as u64);
    let since = until.saturating_sub(window.as_micros() as u64);
    [Meter::NewFlows, Meter::Established].into_iter().all(|m| {
        let t = meters.tally(m, since, until);
        // The first packets are younger than the window: not steady for long enough yet.
        let whole = meters.streams(m).iter().all(|s| s.sent.first().is_some_and(|at| *at <= since));
        whole && t.sent > 0 && t.lost as f64 <= t.sent as f64 * NOISE
    })
}

/// Waits until the meters have been steady for a second. Returns `false` if they were not within `patience`.
pub fn steady_within(meters: &Meters, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if steady(meters, STEADY) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}
