//! Requests that can be understood in two ways, and others that are none: nothing of them reaches a
//! target, whether they come first on a connection or behind a request that was served.

use underpass_tests::addr::SITE_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene};

use std::time::Duration;

/// Behind every shape: the request that would be smuggled in.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// Before it, if it is not the first.
const GOOD: &str = "GET /good HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// By which TLS is originated for the site.
const ENCRYPTED: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: site}
spec:
  hosts: [site.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: site}
spec:
  host: site.example
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: CA}}
";

/// All shapes, as they would come first on a connection.
fn shapes() -> Vec<String> {
    let post =
        |lines: &str| format!("POST / HTTP/1.1\r\nHost: site.example\r\n{lines}\r\n\r\nabcdef");
    let chunked = |body: &str| post("Transfer-Encoding: chunked").replace("abcdef", body);
    let mut shapes: Vec<String> = LINES.iter().map(|lines| post(lines)).collect();
    shapes.extend(CHUNKS.iter().map(|body| chunked(body)));
    shapes.extend(HEADS.iter().map(|head| format!("{head}\r\n\r\n")));
    shapes.push(post(&format!("X: {}", "y".repeat(20_000))));
    shapes.push(post(&vec!["X: y"; 300].join("\r\n")));
    shapes
}

/// The answers to these texts, each sent on a connection of its own, and how each ended.
#[track_caller]
fn raw(scene: &Scene, texts: &[String]) -> Vec<(String, String)> {
    let texts = serde_json::to_string(texts).must("write JSON");
    let program = scene.program("raw").args([&SITE_V4.to_string(), "80"]);
    let said = program.input(texts).run(Duration::from_secs(120));
    serde_json::from_str(&said.expect_success().stdout).must("read JSON")
}

/// Sends each shape with the request to be smuggled behind it, first alone and then behind a good one.
#[track_caller]
fn none_arrives(name: &str, spec: &[&str], more: &str, port: &str) {
    let scene = Scene::new(name);
    let options = Options {
        connect_ports: &[80],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let more = more.replace("CA", &scene.pki.ca().display().to_string());
    let agent = Agent::start(&scene.world, &(tunnel_policy(spec) + &more));
    let mut shapes = shapes();
    assert!(shapes.len() >= 80, "{}", shapes.len());

    let alone: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{shape}{SMUGGLED}"))
        .collect();
    let alone = raw(&scene, &alone);
    for (shape, (answer, _)) in shapes.iter().zip(&alone) {
        expect_refused(shape, answer);
    }
    let records = agent.wait_for_accesses(shapes.len());
    assert_eq!(records.len(), shapes.len(), "one for each");
    let others = records.iter().filter(|one| one.text("flags") != "DPE");
    let others: Vec<_> = others.collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(squid.log(), []);
    assert_eq!(scene.nginx.requests(), []);

    let refused = shapes.len();
    shapes.extend(LATER.map(str::to_owned));
    let behind: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{GOOD}{shape}{SMUGGLED}"))
        .collect();
    for (shape, (answer, _)) in shapes.iter().zip(raw(&scene, &behind)) {
        let rest = answer.strip_prefix("HTTP/1.1 200 OK\r\n");
        let rest = rest.unwrap_or_else(|| panic!("{:?} spoils {answer:?}", shown(shape)));
        let at = rest.find("HTTP/1.1 ").unwrap_or(rest.len());
        expect_refused(shape, &rest[at..]);
    }
    // One connection and one request of each client, all of them good.
    let asked = match spec {
        [] => format!("site.example:{port}"),
        _ => "http://site.example/good".to_owned(),
    };
    let log = squid.wait_for_log(shapes.len()).into_iter();
    let log: Vec<String> = log.map(|line| line.target).collect();
    assert_eq!(log, vec![asked; shapes.len()]);
    let requests = scene.nginx.requests();
    let paths: Vec<&str> = requests.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, vec!["/good"; shapes.len()]);
    assert!(requests.iter().all(|one| one.port == port), "{requests:?}");
    let all = refused + 2 * shapes.len();
    assert_eq!(agent.wait_for_accesses(all).len(), all, "one for each");
    let labels = [("response_code", "200")];
    agent.wait_for_metric("istio_requests_total", &labels, shapes.len() as f64);
    agent.wait_for_metric("istio_requests_total", &[], all as f64);
    scene.world.expect_no_direct_arrivals();
}

/// It must be the only answer, and the last.
#[track_caller]
fn expect_refused(shape: &str, answer: &str) {
    let refused = ["HTTP/1.1 400 ", "HTTP/1.1 431 "];
    let is_refused = refused.iter().any(|status| answer.starts_with(status));
    let shape = shown(shape);
    assert!(is_refused, "{shape:?} is answered with {answer:?}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{shape:?}");
    assert_eq!(
        answer.matches("HTTP/1.1 4").count() + answer.matches("HTTP/1.1 2").count(),
        1,
        "{shape:?}: {answer:?}"
    );
}

fn shown(shape: &str) -> String {
    shape.chars().take(200).collect()
}

#[test]
fn none_of_eighty_shapes_arrives() {
    none_arrives("smuggling", &[], "", "80");
}

#[test]
fn none_of_them_arrives_by_originated_tls() {
    none_arrives("smuggling-tls", &[], ENCRYPTED, "443");
}

#[test]
fn none_of_them_arrives_in_absolute_form() {
    let spec = ["  plainHTTP: ABSOLUTE_FORM"];
    none_arrives("smuggling-absolute", &spec, "", "80");
}

/// What does not begin as HTTP is not read as such: first on a connection it is bytes, which go where
/// the workload went, unread. Behind a request it can only be another.
const LATER: [&str; 3] = [
    "GET\t/ HTTP/1.1\r\nHost: site.example\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: site.example\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

const LINES: [&str; 52] = [
    "Content-Length: 6\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 6",
    "Content-Length: 6\r\nContent-Length: 5",
    "Content-Length: 6, 6",
    "Content-Length: +6",
    "Content-Length: -6",
    "Content-Length: 0x6",
    "Content-Length: 6 6",
    "Content-Length:",
    "Content-Length: 18446744073709551616",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding:\u{b}chunked",
    "Transfer-Encoding : chunked",
    "Content-Length : 6",
    " Content-Length: 6",
    "X: a\r\n b",
    "X: a\r\n\tTransfer-Encoding: chunked",
    "X: a\rContent-Length: 6",
    "X: a\0b",
    "X\0: a",
    "X(y): a",
    "X y: a",
    ": a",
    "no colon",
    "Connection: Content-Length\r\nContent-Length: 6",
    "Host: other.example",
    "Content-Length: 6\r\nContent-Length: 6, 7",
    "Content-Length: 6\r\nTransfer-Encoding: identity",
    "Content-Length: 6.0",
    "Content-Length: 6e0",
    "Content-Length: \u{b2}",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: chunked\r\n ,identity",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding:",
    "Transfer-Encoding: \u{a0}chunked",
    "Transfer-Encoding\t: chunked",
    "Transfer-Encoding\0: chunked",
    "Transfer-Encoding\u{b}: chunked",
    "\tTransfer-Encoding: chunked",
    "X: a\r\r\nTransfer-Encoding: chunked",
    "X: a\u{7f}b",
    "Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked",
    "Connection: Host",
    "Host: site.example\r\nHost: site.example",
];

const CHUNKS: [&str; 21] = [
    "zz\r\n",
    "-1\r\n",
    "+1\r\na\r\n0\r\n\r\n",
    "0x1\r\na\r\n0\r\n\r\n",
    "1 \r\na\r\n0\r\n\r\n",
    "1\na\r\n0\r\n\r\n",
    "1\r\nab\r\n0\r\n\r\n",
    "10000000000000001\r\na\r\n",
    "1\r\na\n0\r\n\r\n",
    "\r\n0\r\n\r\n",
    ";a=b\r\n0\r\n\r\n",
    "1\r\na0\r\n\r\n",
    "1\ra\r\n0\r\n\r\n",
    "1;a\rb\r\na\r\n0\r\n\r\n",
    "1;\0\r\na\r\n0\r\n\r\n",
    "ffffffffffffffff1\r\na\r\n0\r\n\r\n",
    "0\r\nno colon\r\n\r\n",
    "0\r\nX: a\r\n folded\r\n\r\n",
    "0\r\nX : a\r\n\r\n",
    "0\r\nX: a\n\r\n",
    "0\n\r\n",
];

const HEADS: [&str; 20] = [
    "GET / HTTP/1.1",
    "GET / HTTP/1.1\r\nHost: a b",
    "GET / HTTP/1.1\r\nHost: site.example@other.example",
    "GET / HTTP/1.1\r\nHost: site.example:port",
    "GET /a b HTTP/1.1\r\nHost: site.example",
    "GET /\0 HTTP/1.1\r\nHost: site.example",
    "GET / HTTP/1.2\r\nHost: site.example",
    "GET / HTTP/1.1\r\n Host: site.example",
    "POST / HTTP/1.0\r\nTransfer-Encoding: chunked",
    "GET / HTTP/1.1\r\nHost: site.example, other.example",
    "GET / HTTP/1.1\r\nHost: site.example/",
    "GET / HTTP/1.1\r\nHost: site.example\u{b}",
    "GET / HTTP/1.1\r\nHost : site.example",
    "GET /\rX HTTP/1.1\r\nHost: site.example",
    "GET  / HTTP/1.1\r\nHost: site.example",
    "GET / HTTP/1.1 \r\nHost: site.example",
    "GET / HTTP/1.10\r\nHost: site.example",
    "GET / http/1.1\r\nHost: site.example",
    "GET site.example HTTP/1.1\r\nHost: site.example",
    "POST / HTTP/1.0\r\nContent-Length: 6\r\nTransfer-Encoding: chunked",
];
