//! See [`tests::fuzz::stamp`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::stamp(bytes));
