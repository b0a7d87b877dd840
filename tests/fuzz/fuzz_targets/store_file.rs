//! See [`tests::fuzz::store_file`].

#![no_main]

libfuzzer_sys::fuzz_target!(
    init: {
        // A panic inside of redb is caught and told as damage; the fuzzer's hook would end the process before that.
        drop(std::panic::take_hook());
    },
    |bytes: &[u8]| tests::fuzz::store_file(bytes)
);
