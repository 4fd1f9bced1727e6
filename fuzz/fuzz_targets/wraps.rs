#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetkey_fuzzed::wraps::run(data));
