//! leaderd and what people use in its place, side by side on real packets: `docs/bench-peers.md`.
//!
//! ```text
//! cases ─ play (a world of the lab, one of `systems`, meters) ─ report (tables, dots)
//!           ├ counters: packets and processor time, as the kernel counts them
//!           ├ carriers: which gateway the traffic really takes
//!           └ stalls: whether the machine kept up
//! ```
//!
//! No system is asked what it did: times are the meters', moves are read from counters of the WAN devices.

pub mod carriers;
pub mod cases;
pub mod counters;
pub mod dots;
pub mod play;
pub mod report;
pub mod stalls;
pub mod systems;
pub mod why;
