//! Scenarios and end-to-end tests; the code is in `tests/`.
