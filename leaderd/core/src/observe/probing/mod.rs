//! Sending probes and waiting for their replies: `schedule` says what a round and a burst hold, `budget` how much may be sent,
//! `send` makes the packets, `in_flight` waits for all of them, `rtt` says how long, and `replies` takes what comes back.

pub mod budget;
pub mod in_flight;
mod replies;
pub mod rtt;
pub mod schedule;
mod send;
