//! What every connection passes, with bytes as they come: inspection, CONNECT and its answer.
//!
//! `cargo bench --package underpass --bench parsers`; what policy takes is in `policy`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use underpass::inspect::http_head::{self, Found};
use underpass::inspect::{Limits, Seen, client_hello, inspect};
use underpass::name::Target;
use underpass::tunnel::{answer, connect};

/// The head of a request as a browser writes it.
const REQUEST: &[u8] = b"GET /packages/index.json?since=1700000000 HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Mode: navigate\r\n\r\n";

/// Answers to CONNECT as Envoy and Squid write them.
const SHORT: &[u8] =
    b"HTTP/1.1 200 OK\r\ndate: Sun, 29 Nov 2026 06:00:00 GMT\r\nserver: envoy\r\n\r\n";
const REFUSAL: &[u8] = b"HTTP/1.1 407 Proxy Authentication Required\r\n\
    Server: squid/5.7\r\n\
    Mime-Version: 1.0\r\n\
    Date: Sun, 29 Nov 2026 06:00:00 GMT\r\n\
    Content-Type: text/html;charset=utf-8\r\n\
    Content-Length: 3724\r\n\
    X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0\r\n\
    Vary: Accept-Language\r\n\
    Content-Language: en\r\n\
    Proxy-Authenticate: Negotiate\r\n\
    Proxy-Authenticate: Basic realm=\"proxy.example\"\r\n\
    X-Cache: MISS from proxy.example\r\n\
    Via: 1.1 proxy.example (squid/5.7)\r\n\
    Connection: keep-alive\r\n\r\n";

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
    let hello = client_hello();
    let read = client_hello::parse(&hello).expect("all of it");
    let name = read.expect("a ClientHello").server_name;
    assert_eq!(name.expect("a name").as_str(), "www.example.com");
    criterion.bench_function("ClientHello", |bencher| {
        bencher.iter(|| client_hello::parse(black_box(&hello)));
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
    let hello = client_hello();
    assert!(matches!(seen(&hello), Seen::Tls(_)));
    assert!(matches!(seen(REQUEST), Seen::Http(_)));
    for (name, bytes) in [("ClientHello", hello.as_slice()), ("request", REQUEST)] {
        criterion.bench_function(&format!("inspect: {name}"), |bencher| {
            bencher.iter(|| seen(black_box(bytes)));
        });
    }
}

/// What is said to a proxy, and what it says.
fn exchange(criterion: &mut Criterion) {
    let target: Target = "www.example.com:443".parse().expect("a target");
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

/// That of rustls, with the key of a post-quantum exchange in it, as browsers send it.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("www.example.com").expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("room for it");
    hello
}
