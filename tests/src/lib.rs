//! What the tests share: the simulator. The tests themselves are in `tests/`.

pub mod sim;
