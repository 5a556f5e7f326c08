//! A forward proxy that does what the test tells it, for answers no real proxy gives on request.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
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
    /// Do this, one after the other, and close.
    Play(Vec<Step>),
}

/// One thing that a proxy does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Send these bytes one by one, each after this pause and in a segment of its own.
    Drip(Vec<u8>, Duration),
    /// Send this byte for ever, each time after this pause, until the connection breaks.
    DripForever(u8, Duration),
    /// Send zeros as fast as they are taken until the connection breaks.
    Flood,
    /// Send the target that was asked for.
    TellTarget,
    /// Send back what comes, up to its end.
    Echo,
    /// Say that there will be no more.
    Finish,
    /// Read this many bytes.
    Read(usize),
    /// Read up to the end, and remember it as [`Heard`].
    Listen,
    /// Read nothing until the connection breaks, and remember that it did.
    Stall,
    /// Read nothing until [`FakeProxy::let_go`].
    Hold,
    /// Close with a reset.
    Reset,
}

/// What came through a tunnel to [`Step::Listen`], or what became of [`Step::Flood`] and
/// [`Step::Stall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether they ended properly rather than by a reset.
    pub complete: bool,
}

impl Answer {
    /// A tunnel as most proxies open it.
    pub fn tunnel() -> Self {
        Self::Tunnel(b"HTTP/1.1 200 Connection established\r\n\r\n".into())
    }

    /// The head of a usual answer, and then these steps.
    pub fn opened(steps: impl IntoIterator<Item = Step>) -> Self {
        let head = Step::Send(b"HTTP/1.1 200 Connection established\r\n\r\n".into());
        Self::Play([head].into_iter().chain(steps).collect())
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
    stage: Arc<Stage>,
    answer: Arc<Mutex<Answer>>,
}

/// What steps and the test share.
#[derive(Default)]
struct Stage {
    heard: Mutex<Vec<Heard>>,
    let_go: AtomicBool,
}

impl FakeProxy {
    /// Starts it on `address`.
    #[track_caller]
    pub fn start(place: &Place, address: SocketAddr, answer: Answer) -> Self {
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let stage = Arc::<Stage>::default();
        let answer = Arc::new(Mutex::new(answer));
        let (recorder, script) = (Arc::clone(&requests), Arc::clone(&answer));
        let played = Arc::clone(&stage);
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
            let _ = act(stream, &answer, &target, &played);
        });
        Self {
            server,
            requests,
            stage,
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

    /// Ends every [`Step::Hold`].
    pub fn let_go(&self) {
        self.stage.let_go.store(true, Ordering::Release);
    }

    /// What was heard so far, after waiting for `count` of it.
    #[track_caller]
    pub fn wait_for_heard(&self, count: usize) -> Vec<Heard> {
        let complete = || Some(self.stage.heard.lock().clone()).filter(|all| all.len() >= count);
        poll(Duration::from_secs(10), complete)
            .unwrap_or_else(|| panic!("no {count} heard: {:?}", self.stage.heard.lock()))
    }

    /// The request lines so far, after waiting for `count` of them.
    #[track_caller]
    pub fn request_lines(&self, count: usize) -> Vec<String> {
        let complete = || Some(self.requests()).filter(|all| all.len() >= count);
        let requests = poll(Duration::from_secs(20), complete)
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

fn act(mut stream: TcpStream, answer: &Answer, target: &str, stage: &Stage) -> io::Result<()> {
    match answer {
        Answer::Send(bytes) => stream.write_all(bytes),
        Answer::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
        Answer::Silence => stream.read(&mut [0; 16]).map(drop),
        Answer::Tunnel(head) => {
            let upstream = connect(target)?;
            stream.write_all(head)?;
            relay(&stream, &upstream)
        }
        Answer::Play(steps) => {
            stream.set_nodelay(true)?;
            steps
                .iter()
                .try_for_each(|step| take(step, &mut stream, target, stage))
        }
    }
}

fn take(step: &Step, stream: &mut TcpStream, target: &str, stage: &Stage) -> io::Result<()> {
    let hear = |bytes, complete| stage.heard.lock().push(Heard { bytes, complete });
    match step {
        Step::Send(bytes) => stream.write_all(bytes),
        Step::Drip(bytes, pause) => bytes.iter().try_for_each(|byte| {
            thread::sleep(*pause);
            stream.write_all(&[*byte])
        }),
        Step::DripForever(byte, pause) => loop {
            thread::sleep(*pause);
            stream.write_all(&[*byte])?;
        },
        Step::Flood => {
            while stream.write_all(&[0; 1 << 16]).is_ok() {}
            hear(Vec::new(), false);
            Ok(())
        }
        Step::TellTarget => stream.write_all(target.as_bytes()),
        Step::Echo => io::copy(&mut &*stream, &mut &*stream).map(drop),
        Step::Finish => stream.shutdown(Shutdown::Write),
        Step::Read(count) => stream.read_exact(&mut vec![0; *count]),
        Step::Listen => {
            let mut bytes = Vec::new();
            let complete = stream.read_to_end(&mut bytes).is_ok();
            hear(bytes, complete);
            Ok(())
        }
        Step::Stall => {
            // Nobody asks for input, so what is reported is the break only.
            let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
            nix::poll::poll(&mut fds, PollTimeout::NONE)?;
            hear(Vec::new(), false);
            Ok(())
        }
        Step::Hold => {
            while !stage.let_go.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        }
        Step::Reset => SockRef::from(&*stream).set_linger(Some(Duration::ZERO)),
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
