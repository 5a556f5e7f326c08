mod duplex;
mod sockets;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::direction::BUFFER_SIZE;
use super::*;

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
