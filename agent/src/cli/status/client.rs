//! One request to the admin interface.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// For connecting, and for each piece of the answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// More of an answer is not read. The list of what is wrong with a policy makes the most of it.
const MAX_ANSWER: u64 = 16 << 20;

/// More header fields than the agent sends.
const MAX_FIELDS: usize = 64;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(
        "no agent answers at {addr}: {source}; is `underpass run` running on this node and in this \
         network namespace, and is that its --admin-addr?"
    )]
    NoAgent { addr: SocketAddr, source: io::Error },
    #[error(
        "what answers at {addr} is not the admin interface of this version of Underpass: {reason}; \
         --admin-addr says where to ask"
    )]
    NotAnAgent { addr: SocketAddr, reason: String },
}

/// The answer of the agent at `addr`.
pub(super) fn ask(addr: SocketAddr) -> Result<Value, AskError> {
    let answer = exchange(addr).map_err(|source| AskError::NoAgent {
        addr,
        source: plain(source),
    })?;
    parse(&answer).map_err(|reason| AskError::NotAnAgent { addr, reason })
}

/// The socket need not be an agent's own: what is on this node is never captured.
fn exchange(addr: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    // With HTTP/1.0 the answer ends with the connection and comes in one piece.
    write!(stream, "GET /status HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER).read_to_end(&mut answer) {
        // What came says more than that the rest did not.
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

/// A deadline that has passed has many names.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("nothing came within {} s", DEADLINE.as_secs()),
        ),
        _ => error,
    }
}

fn parse(answer: &[u8]) -> Result<Value, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err("its answer is not complete".to_owned()),
        Err(error) => return Err(format!("its answer is not HTTP ({error})")),
    };
    match head.code {
        Some(200) => {}
        code => return Err(format!("its answer is {}", code.unwrap_or_default())),
    }
    let status: Value = serde_json::from_slice(&answer[length..])
        .map_err(|error| format!("its answer is not JSON ({error})"))?;
    if status["ready"].is_boolean() {
        Ok(status)
    } else {
        Err("its answer does not say whether it is ready".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn what_is_no_agent_is_told() {
        for (answer, reason) in [
            ("", "not complete"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
            ("HTTP/1.0 404 Not Found\r\n\r\nno\n", "is 404"),
            ("HTTP/1.0 200 OK\r\n\r\n<html>", "not JSON"),
            ("HTTP/1.0 200 OK\r\n\r\n{\"status\": 1}", "ready"),
            ("HTTP/1.0 200 OK\r\n\r\n{\"ready\": true", "not JSON"),
        ] {
            let error = parse(answer.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{answer:?}: {error}");
        }
        let status = parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{\"ready\": false}").unwrap();
        assert_eq!(status["ready"], false);
    }

    #[test]
    fn nobody_there_is_told_with_the_address() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = ask(addr).unwrap_err().to_string();
        assert!(
            error.contains(&format!("no agent answers at {addr}: ")),
            "{error}"
        );
        assert!(
            error.contains("refused") && error.contains("--admin-addr"),
            "{error}"
        );
    }
}
