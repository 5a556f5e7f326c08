//! Messages of HTTP/1.1.
#![no_main]

#[path = "../checks/http_messages.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
