//! Answers of name servers to workloads.
#![no_main]

#[path = "../checks/dns_answer.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
