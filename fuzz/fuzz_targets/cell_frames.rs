#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetkey_fuzzed::cell_frames::run(data));
