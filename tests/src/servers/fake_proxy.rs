//! A forward proxy that does what the test tells it, for answers no real proxy gives on request.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;

use crate::addr::NAMES;
use crate::servers::tcp::Server;
use crate::{Place, poll};

/// What to do when a request head has come.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Send these bytes and close.
    Send(Vec<u8>),
    /// Reset the connection.
    Reset,
    /// Say nothing and keep the connection.
    Silence,
    /// Connect to the target and relay, ends of streams included, after sending this head.
    Tunnel(Vec<u8>),
}

impl Answer {
    /// A tunnel as most proxies open it.
    pub fn tunnel() -> Self {
        Self::Tunnel(b"HTTP/1.1 200 Connection established\r\n\r\n".into())
    }

    /// A refusal with this status line and a body that tells why.
    pub fn refusal(status: &str, body: &str) -> Self {
        let length = body.len();
        Self::Send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into())
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who sent it.
    pub peer: SocketAddr,
    /// The head, its empty line included.
    pub head: String,
}

impl Request {
    /// The first line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        headers
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// The proxy. It records every request head.
pub struct FakeProxy {
    server: Server,
    requests: Arc<Mutex<Vec<Request>>>,
    answer: Arc<Mutex<Answer>>,
}

impl FakeProxy {
    /// Starts it on `address`.
    #[track_caller]
    pub fn start(place: &Place, address: SocketAddr, answer: Answer) -> Self {
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let answer = Arc::new(Mutex::new(answer));
        let (recorder, script) = (Arc::clone(&requests), Arc::clone(&answer));
        let server = Server::start(place, address, move |mut stream, peer| {
            let Some(head) = read_head(&mut stream) else {
                return;
            };
            let request = Request { peer, head };
            let target = request
                .line()
                .split(' ')
                .nth(1)
                .unwrap_or_default()
                .to_owned();
            recorder.lock().push(request);
            let answer = script.lock().clone();
            // An error is the agent hanging up, which tests see on its own side.
            let _ = act(stream, &answer, &target);
        });
        Self {
            server,
            requests,
            answer,
        }
    }

    /// Answers the next requests differently.
    pub fn set_answer(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    /// The request lines so far, after waiting for `count` of them.
    #[track_caller]
    pub fn request_lines(&self, count: usize) -> Vec<String> {
        let complete = || Some(self.requests()).filter(|all| all.len() >= count);
        let requests = poll(Duration::from_secs(5), complete)
            .unwrap_or_else(|| panic!("no {count} requests: {:?}", self.requests()));
        requests
            .iter()
            .map(|request| request.line().to_owned())
            .collect()
    }

    /// The server below, for its peers and open connections.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

/// Reads up to the empty line, byte by byte: what follows belongs to the tunnel.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    String::from_utf8(head).ok()
}

fn act(mut stream: TcpStream, answer: &Answer, target: &str) -> io::Result<()> {
    match answer {
        Answer::Send(bytes) => stream.write_all(bytes),
        Answer::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
        Answer::Silence => stream.read(&mut [0; 16]).map(drop),
        Answer::Tunnel(head) => {
            let upstream = connect(target)?;
            stream.write_all(head)?;
            relay(&stream, &upstream)
        }
    }
}

/// Connects to `host:port`; names are the world's.
fn connect(target: &str) -> io::Result<TcpStream> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no such target: {target}"));
    let (host, port) = target.rsplit_once(':').ok_or_else(unknown)?;
    let port: u16 = port.parse().map_err(|_| unknown())?;
    let literal = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    let known = || {
        NAMES
            .iter()
            .find(|(name, _)| *name == host)
            .map(|(_, all)| all[0])
    };
    let address = literal.ok().or_else(known).ok_or_else(unknown)?;
    TcpStream::connect((address, port))
}

/// Relays both ways until both streams have ended; a reset on one side becomes one on the other.
fn relay(near: &TcpStream, far: &TcpStream) -> io::Result<()> {
    let (from_near, to_far) = (near.try_clone()?, far.try_clone()?);
    let there = thread::spawn(move || copy(&from_near, &to_far));
    copy(far, near);
    let _ = there.join();
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = SockRef::from(to).set_linger(Some(Duration::ZERO));
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
