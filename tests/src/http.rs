//! A client for the agent's own endpoints, deliberately independent of any HTTP library.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;

use crate::Place;

/// An answer to [`get`].
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, to the end of the connection.
    pub body: String,
}

/// Asks the server at `address` for `path`, from `place`.
///
/// # Errors
/// When no HTTP answer comes within some seconds.
pub fn get(place: &Place, address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    ask(place, address, "GET", path, "")
}

/// Sends a request with a body of JSON, or none, to the server at `address`, from `place`.
///
/// # Errors
/// When no HTTP answer comes within some seconds.
pub fn ask(
    place: &Place,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    send(place, address, method, path, "application/json", body)
}

/// As [`ask`], with a body of this media type.
///
/// # Errors
/// When no HTTP answer comes within some seconds.
pub fn send(
    place: &Place,
    address: SocketAddr,
    method: &str,
    path: &str,
    media_type: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    let mut stream = place.connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // HTTP/1.0: the body ends with the connection and is never chunked.
    let head = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: {media_type}\r\nContent-Length: {length}\r\n"),
    };
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{head}\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a head's end")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.context("an answer without a status")?,
        body: body.into(),
    })
}
