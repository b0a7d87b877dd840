//! leaderd and what people use in its place, side by side on real packets: `docs/bench-peers.md`.
//!
//! ```text
//! cases ─ play (a world of the lab, one of `systems`, meters) ─ report (tables, chart::dots)
//!           ├ tests::lab::counters: packets and processor time, as the kernel counts them
//!           ├ tests::lab::gateways: which gateway the traffic really takes
//!           └ stalls: whether the machine kept up
//! ```
//!
//! No figure is a system's own word: times are the meters', moves are read from the packet counters of the WAN devices.

pub mod cases;
pub mod play;
pub mod report;
pub mod stalls;
pub mod systems;
pub mod why;
