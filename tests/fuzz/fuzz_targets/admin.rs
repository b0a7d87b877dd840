//! See [`tests::fuzz::admin`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::admin(bytes));
