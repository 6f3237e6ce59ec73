#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proa_executor::fuzz::code(data));
