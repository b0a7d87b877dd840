//! Any bytes as a STAMP packet: no panic, and no reply longer than its request.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| leaderd_core::probe::stamp::exercise(bytes));
