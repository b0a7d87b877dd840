//! What the tests share: the simulator, the benchmarks in virtual time and beside other systems, and what the fuzzer does. The tests themselves are in `tests/`.

pub mod bench_cost;
pub mod bench_peers;
pub mod bench_sim;
pub mod fuzz;
pub mod kilo;
pub mod liar;
pub mod memory;
pub mod runner;
#[cfg(test)]
mod security_page;
pub mod sim;
