//! Measures traffic without the cores: once per virtual millisecond, would a new flow get through, each way?

use std::time::Duration;

use leaderd_core::ids::NodeName;

use super::World;

/// What the meter measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub sent: u32,
    pub lost: u32,
    /// The longest time without a delivery, in milliseconds.
    pub longest_gap: u32,
}

/// Lets `time` pass and measures every millisecond, both ways between two nodes' workloads.
pub fn measure(world: &mut World, a: &NodeName, b: &NodeName, time: Duration) -> Reading {
    let mut reading = Reading::default();
    let mut gaps = [0; 2];
    for _ in 0..time.as_millis() {
        world.run_for(Duration::from_millis(1));
        for (gap, (from, to)) in gaps.iter_mut().zip([(a, b), (b, a)]) {
            reading.sent += 1;
            if world.delivers(from, to) {
                *gap = 0;
            } else {
                reading.lost += 1;
                *gap += 1;
                reading.longest_gap = reading.longest_gap.max(*gap);
            }
        }
    }
    reading
}
