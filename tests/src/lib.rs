//! What tests, benchmarks (`bench/`) and the fuzzer (`fuzz/`) share: the simulator, Kilo's rig, what each fuzz target does. The tests themselves
//! are in `tests/`.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod fuzz;
pub mod kilo;
pub mod lab;
pub mod memory;
pub mod runner;
#[cfg(test)]
mod security_page;
pub mod sim;
pub mod worst_peer;
