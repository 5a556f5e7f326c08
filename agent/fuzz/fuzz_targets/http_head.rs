//! Heads of HTTP requests.
#![no_main]

#[path = "../checks/http_head.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
