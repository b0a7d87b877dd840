//! The pure core of leaderd.
//!
//! Nothing here reads a clock, a socket, a file or a random source. The shell (crate `leaderd`) calls
//! `Node::handle_input(now, Input)`, then drains `poll_effect()` and sleeps until `poll_timeout()`.
//!
//! ```text
//! probe → evidence → verdict → decision → Raft log → state → topology → plan → kernel
//! ```
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod admin;
pub mod capability;
mod consensus;
pub mod duration;
mod election;
pub mod fault;
#[cfg(test)]
mod golden;
pub mod group;
mod handover;
pub mod ids;
pub mod io;
pub mod kubernetes;
pub mod log_limit;
pub mod mesh;
pub mod node;
pub mod observe;
pub mod probe;
pub mod proof;
pub mod relay_pair;
pub mod rendezvous;
pub mod state;
pub mod status;
pub mod stored;
pub mod text;
pub mod time;
pub mod topology;
pub mod verdict;
pub mod wire;
