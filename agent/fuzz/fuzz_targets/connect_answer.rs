//! Answers of proxies to CONNECT.
#![no_main]

#[path = "../checks/connect_answer.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
