//! Queries of workloads.
#![no_main]

#[path = "../checks/dns_query.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
