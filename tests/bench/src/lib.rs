//! The benchmarks. Each `bin/` writes the figures and pictures of one page in `docs`: [`cost`] is real kernels and daemons, [`peers`] leaderd
//! beside other systems on real packets, [`sim`] virtual time. No benchmark is a test: figures depend on the machine.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod chart;
pub mod cost;
pub mod markdown;
pub mod peers;
pub mod sim;
