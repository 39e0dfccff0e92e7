#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mitu_fuzz::mqtt_connect(data));
