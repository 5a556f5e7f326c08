//! What must hold for any bytes that a proxy may send on an HTTP/2 connection of ours.
//!
//! The first byte says how the rest is to be read: bit 0, whether the proxy begins as it should,
//! with SETTINGS; bit 1, whether the rest are frames, each with its true length, or bytes as they
//! are; bit 2, whether they come one by one.

use std::cell::LazyCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Runtime;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use underpass::tunnel::http2::{Config, Connection, Method, Opened, TunnelRequest};

/// Tunnels that are asked for before the proxy says more.
const TUNNELS: usize = 3;

/// Far longer than anything here takes: all that is to come is there at once.
const SOON: Duration = Duration::from_secs(8);

/// What we may send for each byte that has come, and in any case: requests, SETTINGS, and what is
/// given back to windows.
const SENT_PER_BYTE: usize = 8;
const SENT_ANYWAY: usize = 16 * 1024;

/// Checks what a proxy sends before it closes the connection.
pub(crate) fn check(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: LazyCell<Runtime> = const {
            LazyCell::new(|| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().build().expect("a runtime")
            })
        };
    }
    let Some((mode, rest)) = bytes.split_first() else {
        return;
    };
    let rest = if mode & 2 == 0 {
        rest.to_vec()
    } else {
        frames(rest)
    };
    let begin = if mode & 1 == 0 { &[][..] } else { SETTINGS };
    let came = begin.len() + rest.len();
    let shared = Arc::new(Mutex::new(Shared {
        unsent: [begin, &rest[..]].concat(),
        held_back: rest.len(),
        segment: if mode & 4 == 0 { usize::MAX } else { 1 },
        sent: 0,
        reader: None,
    }));
    RUNTIME.with(|runtime| {
        let running = run(Proxy(Arc::clone(&shared)));
        let Ok(read) = runtime.block_on(async { timeout(SOON, running).await }) else {
            panic!("it takes too long");
        };
        assert!(read <= came, "out of nothing");
    });
    let sent = shared.lock().sent;
    assert!(
        sent <= SENT_ANYWAY + SENT_PER_BYTE * came,
        "{sent} bytes for {came}"
    );
}

/// SETTINGS without a value.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Type, flags, stream and length, then so many bytes: as frames (RFC 9113 section 4.1).
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let [kind, flags, stream, length, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        frames.extend([
            0,
            0,
            payload.len() as u8,
            kind % 11,
            *flags,
            0,
            0,
            0,
            *stream,
        ]);
        frames.extend(payload);
        bytes = rest;
    }
    frames
}

/// How much came through tunnels.
async fn run(proxy: Proxy) -> usize {
    let shared = Arc::clone(&proxy.0);
    let config = Config::default();
    let deadline = Instant::now() + SOON;
    // Without SETTINGS there is no connection, so all there is has to come at once.
    {
        let mut shared = shared.lock();
        if shared.unsent.len() == shared.held_back {
            shared.let_go();
        }
    }
    let connection = match Connection::handshake(proxy, &config, deadline).await {
        Ok(connection) => connection,
        Err(error) => {
            check_message(&error.to_string());
            return 0;
        }
    };
    let opening: Vec<_> = (0..TUNNELS)
        .map(|_| tokio::spawn(tunnel(connection.clone(), deadline)))
        .collect();
    for _ in 0..4 {
        yield_now().await;
    }
    shared.lock().let_go();
    let mut read = 0;
    for tunnel in opening {
        read += tunnel.await.expect("no panic");
    }
    let mut status = connection.status();
    // What comes ends, and so does the connection.
    let ended = status.wait_for(|status| status.ended.is_some()).await;
    let ended = ended.expect("the connection's status").ended.clone();
    check_message(&ended.expect("an end").to_string());
    assert_eq!(connection.open_streams(), 0);
    read
}

/// Opens a tunnel and uses it to its end; how much came through it.
async fn tunnel(connection: Connection, deadline: Instant) -> usize {
    let target = underpass::name::Target {
        host: "www.example.com".parse().expect("a host"),
        port: 443,
    };
    let request = TunnelRequest {
        target: &target,
        method: &Method::Connect,
        headers: &[],
        authorization: None,
    };
    let request = request.build().expect("a request");
    let (mut stream, code) = match connection.open(request, deadline).await {
        Ok(Opened { stream, code, .. }) => (stream, code),
        Err(error) => {
            check_message(&error.to_string());
            return 0;
        }
    };
    assert!((200..300).contains(&code));
    // It may be reset, or have no window.
    let _ = timeout(Duration::from_millis(1), stream.write_all(b"hello")).await;
    let mut read = 0;
    let mut buf = [0; 1024];
    loop {
        match stream.read(&mut buf).await {
            Ok(0) => return read,
            Ok(some) => read += some,
            Err(error) => {
                check_message(&error.to_string());
                return read;
            }
        }
    }
}

/// What goes to logs is short, and one line.
fn check_message(text: &str) {
    assert!(text.len() <= 2048, "{} bytes: {text}", text.len());
    assert!(!text.contains(['\n', '\r', '\x1b']), "{text:?}");
}

struct Shared {
    unsent: Vec<u8>,
    /// How much of it waits until tunnels were asked for.
    held_back: usize,
    segment: usize,
    /// What was sent to the proxy.
    sent: usize,
    reader: Option<Waker>,
}

impl Shared {
    fn let_go(&mut self) {
        self.held_back = 0;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Sends what it has, as soon as it may, and then the end.
struct Proxy(Arc<Mutex<Shared>>);

impl AsyncRead for Proxy {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        let free = shared.unsent.len() - shared.held_back;
        if free == 0 && shared.held_back > 0 {
            shared.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = free.min(shared.segment).min(buf.remaining());
        buf.put_slice(&shared.unsent[..length]);
        shared.unsent.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().sent += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
