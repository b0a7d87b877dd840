//! Sending probes and waiting for their replies: `schedule` says what a round and a burst hold, `budget` how much may be
//! sent, `send` makes the packets, `rtt` the timeouts, and `in_flight` waits.

pub mod budget;
pub mod in_flight;
pub mod rtt;
pub mod schedule;
mod send;
