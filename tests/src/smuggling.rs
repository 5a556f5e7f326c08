//! Requests that can be understood in two ways, and others that are none.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Must as _;
use crate::process::Cmd;

/// All shapes, as they would come first on a connection. Their targets begin with `base`: nothing, or
/// the site, for a proxy.
pub fn shapes(base: &str) -> Vec<String> {
    let post =
        |lines: &str| format!("POST / HTTP/1.1\r\nHost: site.example\r\n{lines}\r\n\r\nabcdef");
    let chunked = |body: &str| post("Transfer-Encoding: chunked").replace("abcdef", body);
    let mut shapes: Vec<String> = LINES.iter().map(|lines| post(lines)).collect();
    shapes.extend(CHUNKS.iter().map(|body| chunked(body)));
    shapes.extend(HEADS.iter().map(|head| format!("{head}\r\n\r\n")));
    shapes.push(post(&format!("X: {}", "y".repeat(20_000))));
    shapes.push(post(&vec!["X: y"; 300].join("\r\n")));
    let at = |shape: String| shape.replacen(" /", &format!(" {base}/"), 1);
    shapes.into_iter().map(at).collect()
}

/// The answers to these texts, each sent on a connection of its own by `client`, which is the program
/// `raw`, and how each ended.
#[track_caller]
pub fn answers(client: Cmd, address: SocketAddr, texts: &[String]) -> Vec<(String, String)> {
    let texts = serde_json::to_string(texts).must("write JSON");
    let program = client.args([&address.ip().to_string(), &address.port().to_string()]);
    let said = program.input(texts).run(Duration::from_secs(120));
    serde_json::from_str(&said.expect_success().stdout).must("read JSON")
}

/// A refusal must be the only answer, and the last.
#[track_caller]
pub fn expect_refused(shape: &str, answer: &str) {
    let refused = ["HTTP/1.1 400 ", "HTTP/1.1 431 "];
    let is_refused = refused.iter().any(|status| answer.starts_with(status));
    let shape = shown(shape);
    assert!(is_refused, "{shape:?} is answered with {answer:?}");
    assert!(
        answer.to_lowercase().contains("\r\nconnection: close\r\n"),
        "{shape:?}"
    );
    assert_eq!(
        answer.matches("HTTP/1.1 4").count() + answer.matches("HTTP/1.1 2").count(),
        1,
        "{shape:?}: {answer:?}"
    );
}

/// The beginning of a shape, for a message.
pub fn shown(shape: &str) -> String {
    shape.chars().take(200).collect()
}

/// What does not begin as HTTP is not read as such: first on a connection it is bytes, which go where
/// the workload went, unread. Behind a request it can only be another.
pub const LATER: [&str; 3] = [
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
