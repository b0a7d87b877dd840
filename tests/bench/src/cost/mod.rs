//! The figures of `make bench-cost`: what a failover, a watched location and a packet cost on real kernels and daemons.

pub mod daemons;
pub mod lab;
pub mod path;
pub mod programming;
pub mod throughput;
pub mod times;

use std::time::Duration;

/// The middle one, the upper of two. Empty: not a number.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
