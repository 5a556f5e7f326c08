//! The corpora of the fuzz targets, each file through the same checks as when fuzzing: what was
//! found once is found by every `cargo test`.

use std::fs;
use std::io;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[path = "../fuzz/checks/client_hello.rs"]
mod client_hello;
#[path = "../fuzz/checks/connect_answer.rs"]
mod connect_answer;
#[path = "../fuzz/checks/dns_answer.rs"]
mod dns_answer;
#[path = "../fuzz/checks/dns_query.rs"]
mod dns_query;
#[path = "../fuzz/checks/http2_proxy.rs"]
mod http2_proxy;
#[path = "../fuzz/checks/http_head.rs"]
mod http_head;
#[path = "../fuzz/checks/http_messages.rs"]
mod http_messages;
#[path = "../fuzz/checks/policy.rs"]
mod policy;

#[test]
fn client_hellos() {
    check_all("client_hello", client_hello::check);
}

#[test]
fn http_heads() {
    check_all("http_head", http_head::check);
}

#[test]
fn connect_answers() {
    check_all("connect_answer", connect_answer::check);
}

#[test]
fn answers_of_name_servers() {
    check_all("dns_answer", dns_answer::check);
}

#[test]
fn queries_to_name_servers() {
    check_all("dns_query", dns_query::check);
}

#[test]
fn messages() {
    check_all("http_messages", http_messages::check);
}

#[test]
fn proxies_of_http2() {
    check_all("http2_proxy", http2_proxy::check);
}

#[test]
fn policies() {
    check_all("policy", policy::check);
}

/// Checks every file of a corpus, and names those that fail.
fn check_all(target: &str, check: fn(&[u8])) {
    let files = files(target).expect("a corpus");
    assert!(files.len() >= 10, "only {} files for {target}", files.len());
    let failed: Vec<_> = files
        .iter()
        .filter(|(_, bytes)| catch_unwind(|| check(bytes)).is_err())
        .map(|(path, _)| path)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn files(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    fs::read_dir(corpus.join(target))?
        .map(|entry| {
            let path = entry?.path();
            let bytes = fs::read(&path)?;
            Ok((path, bytes))
        })
        .collect()
}
