#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mitu_fuzz::client_hello(data));
