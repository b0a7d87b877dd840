//! The shells around the core: clock, probes on UDP, control channel on QUIC, disk, network, admin socket, metrics.
//!
//! Shells decide nothing. [`engine`] owns the core's node, passes every input to it, and every effect to the shell that carries it
//! out; shells never call each other. [`userspace`] is a program of its own beside the daemon. With feature `kubernetes` there is
//! one more shell, which reads the cluster and writes decisions to it.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod addresses;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod control;
pub mod counters;
mod durable;
pub mod engine;
#[cfg(test)]
mod fixture;
pub mod hardening;
pub mod host;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod lan;
pub mod log;
pub mod metrics;
pub mod network;
pub mod probes;
pub mod record;
pub mod reload;
pub mod replay;
pub mod resolve;
pub mod run;
pub mod secrets;
pub mod store;
pub mod supervise;
pub mod userspace;
