//! A socket that is read, written and watched at the same time.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::sockets::Side;

/// Reads and writes through a shared reference, so that others may look at the socket meanwhile.
#[derive(Debug)]
pub struct Shared<'a>(pub &'a TcpStream);

impl AsyncRead for Shared<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.0).shutdown(Shutdown::Write))
    }
}

impl Side for Shared<'_> {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.0)
    }
}

/// Waits until the peer has reset the connection, or it broke otherwise. A relay that waits for
/// one side to take more does not look at the other, and would not notice.
pub async fn broken(stream: &TcpStream) -> io::Error {
    match stream.ready(Interest::ERROR).await {
        Ok(_) => match stream.take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Somebody else has read it.
            Ok(None) => io::ErrorKind::ConnectionReset.into(),
        },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::sockets::reset_on_close;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_and_the_end_of_them_pass() {
        let (near, mut far) = pair().await;
        let mut shared = Shared(&near);
        shared.write_all(b"question").await.unwrap();
        shared.shutdown().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"question");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        read.clear();
        shared.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"answer");
    }

    #[tokio::test]
    async fn a_reset_is_noticed_by_who_does_not_read_and_an_end_is_not_one() {
        let (near, mut far) = pair().await;
        far.write_all(b"unread").await.unwrap();
        far.shutdown().await.unwrap();
        let waited = timeout(Duration::from_millis(100), broken(&near)).await;
        assert!(waited.is_err(), "a half-close is no error");
        reset_on_close(&far);
        drop(far);
        let error = timeout(Duration::from_secs(10), broken(&near))
            .await
            .unwrap();
        // The kernel's word for a reset depends on whether there was an end before.
        let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}
