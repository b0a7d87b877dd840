//! See [`tests::fuzz::wireguard_request`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::wireguard_request(bytes));
