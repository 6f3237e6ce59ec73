#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proa::fuzz::mount_options(data));
