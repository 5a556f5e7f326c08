//! In-process TCP servers on threads inside `inet`.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use parking_lot::Mutex;

use crate::{Must as _, Place, poll};

/// A server that gives each connection to a handler on a thread of its own.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    peers: Mutex<Vec<SocketAddr>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    reports: Mutex<Vec<Report>>,
}

/// What one connection to a [`Server::sink`] or [`Server::source`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes up to the client's end of stream.
    pub received: u64,
    /// Their Adler-32 checksum.
    pub adler32: u32,
    /// Whether the client ended its stream properly rather than by a reset.
    pub complete: bool,
}

impl Server {
    /// Listens on `address` in `place`; `handler` may block, and runs inside `place`.
    #[track_caller]
    pub fn start(
        place: &Place,
        address: SocketAddr,
        handler: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Self {
        Self::start_shared(place, address, Arc::default(), handler)
    }

    /// Sends back what it gets, and ends when the client does.
    #[track_caller]
    pub fn echo(place: &Place, address: SocketAddr) -> Self {
        Self::start(place, address, |stream, _| {
            // An error is the client's reset: nobody is left to be told.
            if io::copy(&mut &stream, &mut &stream).is_ok() {
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }

    /// Speaks first: sends `banner` at once, then answers each read with `again\n`.
    #[track_caller]
    pub fn banner(place: &Place, address: SocketAddr, banner: &'static str) -> Self {
        Self::start(place, address, move |mut stream, _| {
            let mut line = [0; 512];
            let mut answer = banner;
            while stream.write_all(answer.as_bytes()).is_ok()
                && stream.read(&mut line).is_ok_and(|length| length > 0)
            {
                answer = "again\n";
            }
        })
    }

    /// Reads to the end of the client's stream, and only then answers: `BYTES ADLER32\n`.
    #[track_caller]
    pub fn sink(place: &Place, address: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let reports = Arc::clone(&shared);
        Self::start_shared(place, address, shared, move |mut stream, _| {
            let report = receive(&mut stream);
            reports.reports.lock().push(report);
            let _ = writeln!(stream, "{} {}", report.received, report.adler32);
        })
    }

    /// Sends `length` bytes (position modulo 251) and ends its stream, and only then reads the
    /// client's stream to its end.
    #[track_caller]
    pub fn source(place: &Place, address: SocketAddr, length: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let reports = Arc::clone(&shared);
        Self::start_shared(place, address, shared, move |mut stream, _| {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            if stream.write_all(&bytes).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
                let report = receive(&mut stream);
                reports.reports.lock().push(report);
            }
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who has connected, oldest first.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.shared.peers.lock().clone()
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.lock().len()
    }

    /// Waits for the report of `count` connections.
    #[track_caller]
    pub fn wait_for_reports(&self, count: usize) -> Vec<Report> {
        let complete = || Some(self.shared.reports.lock().clone()).filter(|all| all.len() >= count);
        poll(Duration::from_secs(10), complete)
            .unwrap_or_else(|| panic!("no {count} reports: {:?}", self.shared.reports.lock()))
    }

    #[track_caller]
    fn start_shared(
        place: &Place,
        address: SocketAddr,
        shared: Arc<Shared>,
        handler: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Self {
        let listener = place.within(|| TcpListener::bind(address));
        let listener = listener.must(format_args!("listen on {address}"));
        listener
            .set_nonblocking(true)
            .must("set a listener non-blocking");
        let address = listener.local_addr().must("ask for a listener's address");
        let for_thread = Arc::clone(&shared);
        // Threads inherit the namespace of the thread that starts them.
        let acceptor = place
            .within(|| thread::spawn(move || accept(&listener, &for_thread, &Arc::new(handler))));
        Self {
            shared,
            address,
            acceptor: Some(acceptor),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.shared.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept<H>(listener: &TcpListener, shared: &Arc<Shared>, handler: &Arc<H>)
where
    H: Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
{
    for number in 0.. {
        let (stream, peer) = loop {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let _ = nix::poll::poll(&mut fds, PollTimeout::from(50_u8));
            if shared.stopped.load(Ordering::Acquire) {
                return;
            }
            if let Ok(accepted) = listener.accept() {
                break accepted;
            }
        };
        shared.peers.lock().push(peer);
        let Ok(kept) = stream.try_clone() else {
            continue;
        };
        shared.open.lock().insert(number, kept);
        let (shared, handler) = (Arc::clone(shared), Arc::clone(handler));
        let serve = move || {
            handler(stream, peer);
            // The last descriptor: only now the connection is closed.
            shared.open.lock().remove(&number);
        };
        let _ = thread::Builder::new().stack_size(256 << 10).spawn(serve);
    }
}

/// Reads to the end, counting and summing.
fn receive(stream: &mut TcpStream) -> Report {
    const MODULUS: u32 = 65521;
    // So many bytes can be summed before the sums overflow (as zlib has it).
    const BLOCK: usize = 5552;
    let (mut a, mut b, mut received) = (1_u32, 0_u32, 0);
    let mut buffer = [0; BLOCK];
    loop {
        let read = stream.read(&mut buffer);
        let length = *read.as_ref().unwrap_or(&0);
        for byte in &buffer[..length] {
            a += u32::from(*byte);
            b += a;
        }
        (a, b) = (a % MODULUS, b % MODULUS);
        received += length as u64;
        if length == 0 {
            return Report {
                received,
                adler32: b << 16 | a,
                complete: read.is_ok(),
            };
        }
    }
}
