//! What a proxy sends on an HTTP/2 connection.
#![no_main]

#[path = "../checks/http2_proxy.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
