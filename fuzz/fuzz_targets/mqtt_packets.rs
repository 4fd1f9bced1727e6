#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleetkey_fuzzed::mqtt_packets::run(data));
