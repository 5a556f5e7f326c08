//! What the tests have in common: a proxy of the h2 crate, one made of single frames, and pools
//! that dial either in memory.

mod connection;
mod hostile;
mod pool;
mod raw;
mod stream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};

use super::*;
use crate::name::Target;

/// Room between the two ends of a connection in memory.
const PIPE: usize = 64 * 1024;

/// Far off: a test that is not about time fails by it only if something hangs.
fn patience() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Bounds what must come to an end.
async fn soon<F: Future>(future: F) -> F::Output {
    let bounded = timeout(Duration::from_secs(120), future);
    bounded.await.expect("it hangs")
}

fn target() -> Target {
    Target {
        host: "www.example.com".parse().unwrap(),
        port: 443,
    }
}

fn request() -> Request<()> {
    let target = target();
    tunnel_request(&target).build().unwrap()
}

fn tunnel_request(target: &Target) -> TunnelRequest<'_> {
    TunnelRequest {
        target,
        method: &Method::Connect,
        headers: &[],
        authorization: None,
    }
}

/// A request as the proxy sees it, and the streams it has for it.
type Asked = (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// Begins HTTP/2 on both ends; the proxy of `server` hands each request to `answer`.
async fn connected<F>(config: &Config, server: h2::server::Builder, answer: F) -> Connection
where
    F: FnMut(Asked) + Send + 'static,
{
    let (near, far) = duplex(PIPE);
    serve(far, server, answer);
    Connection::handshake(near, config, patience())
        .await
        .unwrap()
}

fn serve<F>(far: DuplexStream, server: h2::server::Builder, mut answer: F)
where
    F: FnMut(Asked) + Send + 'static,
{
    tokio::spawn(async move {
        let Ok(mut connection) = server.handshake(far).await else {
            return;
        };
        while let Some(Ok(asked)) = connection.accept().await {
            answer(asked);
        }
    });
}

fn status(code: u16) -> Response<()> {
    Response::builder().status(code).body(()).unwrap()
}

/// Answers 200 and sends back what comes.
fn echo((request, mut respond): Asked) {
    tokio::spawn(async move {
        let mut send = respond.send_response(status(200), false).unwrap();
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if send_all(&mut send, data).await.is_err() {
                return;
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    });
}

/// Sends `data` as the flow control allows.
async fn send_all(send: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len().min(16 * 1024));
        let mut room = send.capacity();
        if room == 0 {
            let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
            room = capacity.ok_or(h2::Reason::CANCEL)??;
        }
        let chunk = data.split_to(room.min(data.len()));
        send.send_data(chunk, false)?;
    }
    Ok(())
}

/// Bytes that are not the same at any two places near each other.
fn pattern(len: usize) -> Vec<u8> {
    let words = (0..len / 4 + 1).flat_map(|at| (at as u32).wrapping_mul(0x9E37_79B1).to_be_bytes());
    words.take(len).collect()
}

/// Sends `data` through an echoing `stream` and expects it back, both ends included.
async fn expect_echo(mut stream: TunnelStream, data: &[u8]) {
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut back = Vec::new();
    let sending = async {
        write.write_all(data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (_, received) = tokio::join!(sending, read.read_to_end(&mut back));
    received.unwrap();
    assert!(back == data, "{} bytes of {}", back.len(), data.len());
}

/// Dials what `make` makes of the number of the dial, from 0.
struct InMemory<F> {
    dials: Arc<AtomicUsize>,
    make: F,
}

impl<F> Dial for InMemory<F>
where
    F: Fn(usize) -> io::Result<DuplexStream> + Send + Sync + 'static,
{
    type Key = &'static str;
    type Transport = DuplexStream;
    type Info = usize;
    type Error = io::Error;

    async fn dial(&self, _: &&'static str, _: Instant) -> io::Result<(DuplexStream, usize)> {
        let dial = self.dials.fetch_add(1, Ordering::Relaxed);
        Ok(((self.make)(dial)?, dial))
    }
}
