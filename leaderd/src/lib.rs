//! The shells around the core: clock, probes on UDP, control channel on QUIC, disk, network, admin socket, metrics.
//!
//! No policy lives here. [`engine`] owns the core's node, hands every input in, and every effect on to the shell that
//! carries it out; shells never call each other.

pub mod clock;
pub mod control;
pub mod counters;
pub mod log;
pub mod node;
pub mod probes;
pub mod secrets;
pub mod store;
