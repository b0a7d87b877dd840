//! What the tests share: the simulator, and what the fuzzer does. The tests themselves are in `tests/`.

pub mod fuzz;
pub mod sim;
