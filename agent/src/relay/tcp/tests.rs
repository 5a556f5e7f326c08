mod duplex;
mod sockets;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::direction::BUFFER_SIZE;
use super::*;

/// Streams whose bytes only a read gives.
macro_rules! no_sockets {
    ($([$($bound:tt)*] $stream:ty),+ $(,)?) => {
        $(impl<$($bound)*> Side for $stream {
            fn socket(&self) -> Option<&tokio::net::TcpStream> {
                None
            }
        })+
    };
}

no_sockets!(
    [] tokio::io::DuplexStream,
    [] tokio::io::Empty,
    [R: AsyncRead + Unpin, W: AsyncWrite + Unpin] tokio::io::Join<R, W>,
    [S: AsyncRead + AsyncWrite + Unpin] crate::tls::TlsStream<S>,
);

#[test]
fn the_future_is_small() {
    let (mut workload, mut upstream) = (tokio::io::empty(), tokio::io::empty());
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    let future = relay(
        &mut workload,
        &mut upstream,
        Bytes::new(),
        Bytes::new(),
        &timeouts,
        &traffic,
    );
    let size = size_of_val(&future);
    assert!(size < 512, "{size} bytes");
}

/// Bytes that repeat with no power of two, so that a piece that is lost, doubled or moved shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(65_521)
    .collect();
    block.iter().copied().cycle().take(len).collect()
}

/// Writes `bytes` in pieces of these sizes, then finishes.
async fn write_in_pieces(mut to: impl AsyncWrite + Unpin, mut bytes: &[u8], sizes: &[usize]) {
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(*size));
        to.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
        bytes = rest;
    }
    to.shutdown().await.unwrap();
}

async fn read_in_pieces(mut from: impl AsyncRead + Unpin, sizes: &[usize]) -> Vec<u8> {
    let mut read = Vec::new();
    for size in sizes.iter().cycle() {
        let before = read.len();
        read.resize(before + size, 0);
        let n = from.read(&mut read[before..]).await.unwrap();
        read.truncate(before + n);
        if n == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    read
}

/// Counts its wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>, wakes: &Arc<Wakes>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(wakes));
    future.poll(&mut Context::from_waker(&waker))
}
