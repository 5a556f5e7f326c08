//! The resolver's sockets: made by the agent's factory and no other way.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioTime};
use tokio::net::{TcpStream, UdpSocket};

use crate::sockets::SocketFactory;

/// Gives the resolver tokio for a runtime and marked sockets for the network.
#[derive(Clone)]
pub(super) struct OwnSockets {
    sockets: Arc<dyn SocketFactory>,
    handle: TokioHandle,
}

impl OwnSockets {
    pub(super) fn new(sockets: Arc<dyn SocketFactory>) -> Self {
        Self {
            sockets,
            handle: TokioHandle::default(),
        }
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for OwnSockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = ConnectedUdp;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        let sockets = Arc::clone(&self.sockets);
        Box::pin(async move {
            if local.is_some() {
                // Our configuration never asks for one.
                return Err(io::ErrorKind::Unsupported.into());
            }
            let connecting = sockets.connect(server);
            match timeout {
                None => connecting.await,
                Some(timeout) => tokio::time::timeout(timeout, connecting)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            }
            .map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        let sockets = Arc::clone(&self.sockets);
        Box::pin(async move {
            let socket = sockets.bind_udp(local)?;
            socket.connect(server).await?;
            Ok(ConnectedUdp(socket))
        })
    }
}

/// A socket that hears its server only, and hears of it when nobody listens there (a stub
/// resolver on loopback that is down). Linux lets `sendto` name the address all the same.
pub(super) struct ConnectedUdp(UdpSocket);

impl DnsUdpSocket for ConnectedUdp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        match DnsUdpSocket::poll_recv_from(&self.0, cx, buf) {
            // An error alone does not make a socket readable, so it has to be asked for. On
            // loopback it is there as soon as the question is sent.
            Poll::Pending => match self.0.take_error()? {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            },
            ready => ready,
        }
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        server: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send_to(cx, buf, server)
    }
}
