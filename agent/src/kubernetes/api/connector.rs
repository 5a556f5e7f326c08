//! Connections to the API server: on sockets of our own, by our own resolver.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::dns::{Resolver, first_success};
use crate::name::Host;
use crate::sockets::SocketFactory;

/// For name and handshake together.
const DEADLINE: Duration = Duration::from_secs(5);

/// Addresses tried at most, and the head start of each before the next (RFC 8305 section 8).
const MAX_ADDRESSES: usize = 8;
const HEAD_START: Duration = Duration::from_millis(250);

/// A watch is silent for long, so whether the server is still there is asked below it: after this
/// long without a byte, this often, and it is gone when nothing has come back for that long.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const USER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) sockets: Arc<dyn SocketFactory>,
    pub(super) resolver: Resolver,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let connected = timeout(DEADLINE, this.connect(&uri)).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host: Host = host.parse().map_err(io::Error::other)?;
        let port = uri.port_u16().unwrap_or(443);
        let addrs = self.resolver.resolve(&host).await;
        let addrs = addrs.map_err(io::Error::other)?.into_iter();
        let connected = first_success(addrs.take(MAX_ADDRESSES), HEAD_START, |ip| async move {
            self.sockets.connect(SocketAddr::new(ip, port)).await
        });
        let connected: Result<TcpStream, Vec<io::Error>> = connected.await;
        let stream = connected.map_err(|mut errors| {
            errors
                .pop()
                .unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())
        })?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_INTERVAL);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        Ok(TokioIo::new(stream))
    }
}
