//! See [`tests::fuzz::recording`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::recording(bytes));
