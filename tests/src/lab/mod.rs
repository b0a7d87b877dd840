//! Measures and sets up worlds of the lab, for tests and benchmarks alike.
//!
//! [`flows`] says whether traffic flows and for how long it did not, [`gateways`] which gateway it takes, [`counters`] reads the kernel's
//! packet counters, [`overlay`] sets up what a CNI would.

pub mod counters;
pub mod flows;
pub mod gateways;
pub mod overlay;
