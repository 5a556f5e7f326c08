//! One client of the gateway, from accept to the protocol that it speaks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::request::Admission;
use super::stream::ClientStream;
use super::{Control, Shared, http1, http2, tls};
use crate::sockets::reset_on_close;

/// Who is connected, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) addr: SocketAddr,
    pub(super) tls: bool,
}

/// Serves the clients of one listener until it is told to stop and all of them have gone.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, control: Control) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = control.drained() => break,
            // Ends are collected as they come, else the set would grow for ever.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                if let Some((admission, permit)) = admit(&shared) {
                    let shared = Arc::clone(&shared);
                    let control = control.clone();
                    connections.spawn(async move {
                        serve(stream, client, admission, &shared, &control).await;
                        drop(permit);
                    });
                } else {
                    reset_on_close(&stream);
                }
            }
            Err(error) => {
                // Out of file descriptors, mostly; trying again at once would only burn CPU.
                tracing::warn!(%error, "cannot accept a connection; waiting a moment");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// `None` is for clients for whom not even a refusal can be spared.
fn admit(shared: &Shared) -> Option<(Admission, OwnedSemaphorePermit)> {
    let take = |slots: &Arc<Semaphore>| Arc::clone(slots).try_acquire_owned().ok();
    let served = take(&shared.slots).map(|permit| (Admission::Served, permit));
    served.or_else(|| Some((Admission::TooMany, take(&shared.refusals)?)))
}

async fn serve(
    stream: TcpStream,
    addr: SocketAddr,
    admission: Admission,
    shared: &Arc<Shared>,
    control: &Control,
) {
    // Without it small pieces wait for acknowledgements: slower, nothing worse.
    let _ = stream.set_nodelay(true);
    let client = Client {
        addr,
        tls: shared.tls.is_some(),
    };
    let _connected = shared.metrics.connected(client.tls);
    let begun = tokio::select! {
        begun = timeout(shared.head_timeout, begin(stream, shared)) => begun,
        // It has not asked for anything yet.
        () = control.drained() => return,
    };
    let (stream, protocol) = match begun {
        Ok(Ok(begun)) => begun,
        Ok(Err(error)) => return tracing::debug!(client = %addr, %error, "no connection"),
        Err(_) => {
            if client.tls {
                shared.metrics.handshake_failed();
            }
            return tracing::debug!(client = %addr, "silent for too long");
        }
    };
    match protocol {
        Protocol::Http1 => http1::serve(stream, client, admission, shared, control).await,
        Protocol::Http2 => http2::serve(stream, client, admission, shared, control).await,
    }
}

enum Protocol {
    Http1,
    Http2,
}

/// Makes TLS where that is wanted, and finds out the protocol: over TLS it was agreed upon (RFC
/// 7301), else the first bytes tell (RFC 9113 section 3.3).
async fn begin(stream: TcpStream, shared: &Shared) -> io::Result<(ClientStream, Protocol)> {
    let patience = shared.relay.idle;
    let Some(settings) = &shared.tls else {
        let mut stream = ClientStream::plain(stream, patience);
        let protocol = match stream.begins_http2().await {
            Ok(true) => Protocol::Http2,
            Ok(false) => Protocol::Http1,
            Err(error) => return Err(error),
        };
        return Ok((stream, protocol));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&settings.current().0));
    let stream = acceptor
        .accept(stream)
        .await
        .inspect_err(|_| shared.metrics.handshake_failed())?;
    let protocol = match stream.get_ref().1.alpn_protocol() {
        Some(agreed) if agreed == tls::HTTP2 => Protocol::Http2,
        _ => Protocol::Http1,
    };
    Ok((ClientStream::tls(stream, patience), protocol))
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
