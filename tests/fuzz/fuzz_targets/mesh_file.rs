//! See [`tests::fuzz::mesh_file`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::mesh_file(bytes));
