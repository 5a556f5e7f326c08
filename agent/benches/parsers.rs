//! What every connection passes, with bytes as they come: inspection, CONNECT and its answer.
//!
//! `cargo bench --package underpass --bench parsers`; what policy takes is in `policy`.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use underpass::inspect::http_head::{self, Found};
use underpass::inspect::{Limits, Seen, client_hello, inspect};
use underpass::name::Target;
use underpass::tunnel::{answer, connect};

mod inputs {
    pub(crate) mod connection;
}
use inputs::connection::{CLIENT_HELLO, REFUSAL, REQUEST, SHORT, TARGET};

fn main() {
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_secs(1))
        .configure_from_args();
    parsers(&mut criterion);
    inspection(&mut criterion);
    exchange(&mut criterion);
    criterion.final_summary();
}

/// Of all the bytes at once.
fn parsers(criterion: &mut Criterion) {
    let read = client_hello::parse(CLIENT_HELLO).expect("all of it");
    let name = read.expect("a ClientHello").server_name;
    assert_eq!(name.expect("a name").as_str(), "www.example.com");
    criterion.bench_function("ClientHello", |bencher| {
        bencher.iter(|| client_hello::parse(black_box(CLIENT_HELLO)));
    });
    let head = http_head::parse(REQUEST).expect("a good one");
    assert!(matches!(head, Found::Head(head) if head.host.is_some()));
    criterion.bench_function("head of a request", |bencher| {
        bencher.iter(|| http_head::parse(black_box(REQUEST)));
    });
}

/// From a connection on which they are already there, timeouts included.
fn inspection(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let limits = Limits::default();
    let seen = |mut bytes: &[u8]| {
        let inspected = runtime.block_on(inspect(&mut bytes, &limits));
        inspected.expect("nothing wrong with it").seen
    };
    assert!(matches!(seen(CLIENT_HELLO), Seen::Tls(_)));
    assert!(matches!(seen(REQUEST), Seen::Http(_)));
    for (name, bytes) in [("ClientHello", CLIENT_HELLO), ("request", REQUEST)] {
        criterion.bench_function(&format!("inspect: {name}"), |bencher| {
            bencher.iter(|| seen(black_box(bytes)));
        });
    }
}

/// What is said to a proxy, and what it says.
fn exchange(criterion: &mut Criterion) {
    let target: Target = TARGET.parse().expect("a target");
    criterion.bench_function("write CONNECT", |bencher| {
        bencher.iter(|| connect::request(black_box(&target), &[], None));
    });
    for (name, code, bytes) in [("short", 200, SHORT), ("407 of Squid", 407, REFUSAL)] {
        let answer = answer::parse(bytes).expect("a good one");
        assert_eq!(answer.map(|answer| answer.code), Some(code));
        criterion.bench_function(&format!("answer to CONNECT: {name}"), |bencher| {
            bencher.iter(|| answer::parse(black_box(bytes)));
        });
    }
}
