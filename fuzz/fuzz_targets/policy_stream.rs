#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetkey_fuzzed::policy_stream::run(data));
