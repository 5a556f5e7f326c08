//! How an established stream ends.

use std::io;

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::sockets::reset_on_close;

async fn pair(versions: &[&'static rustls::SupportedProtocolVersion]) -> (Ours, Theirs) {
    let authority = Authority::new("a CA");
    let config = server_config(&authority.issue(&["a.example"]), None, versions);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let tls = client(&authority.settings());
    let (ours, theirs) = shake(&tls, &acceptor, "a.example").await;
    (ours.unwrap(), theirs.unwrap())
}

type Ours = TlsStream<DuplexStream>;
type Theirs = Served<DuplexStream>;

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.map(|_| bytes)
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    for versions in [TLS12, TLS13] {
        let (mut ours, mut theirs) = pair(versions).await;
        ours.write_all(b"question").await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(rest(&mut theirs).await.unwrap(), b"question");
        theirs.write_all(b"answer").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert_eq!(rest(&mut ours).await.unwrap(), b"answer");

        let (mut ours, mut theirs) = pair(versions).await;
        theirs.write_all(b"greeting").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert_eq!(rest(&mut ours).await.unwrap(), b"greeting");
        ours.write_all(b"thanks").await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(rest(&mut theirs).await.unwrap(), b"thanks");
    }
}

#[tokio::test]
async fn shutting_down_ends_the_stream_below_as_well() {
    let (mut ours, theirs) = pair(TLS13).await;
    ours.shutdown().await.unwrap();
    let (mut below, _) = theirs.into_inner();
    // close_notify, and then nothing: a direction that is left open would hang here.
    assert!(!rest(&mut below).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_end_without_close_notify_is_none() {
    for versions in [TLS12, TLS13] {
        let (mut ours, mut theirs) = pair(versions).await;
        theirs.write_all(b"half of it").await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let mut bytes = [0; 10];
        ours.read_exact(&mut bytes).await.unwrap();
        let error = ours.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error: TlsError = error.downcast().unwrap();
        assert_eq!(error.reason(), "tls_truncated");
        assert!(
            error.to_string().contains("without close_notify"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_reset_of_the_connection_below_stays_one() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["127.0.0.1"]), None);
    let tls = client(&authority.settings());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let (host, far) = ("127.0.0.1".parse().unwrap(), far.unwrap().0);
    let connecting = tls.connect(near.unwrap(), &host, patience());
    let (ours, theirs) = tokio::join!(connecting, acceptor.accept(far));
    let (mut ours, theirs) = (ours.unwrap(), theirs.unwrap());
    reset_on_close(theirs.get_ref().0);
    drop(theirs);
    let error = ours.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

#[tokio::test]
async fn bytes_that_were_tampered_with_are_an_error() {
    let (mut ours, theirs) = pair(TLS13).await;
    let (mut below, _) = theirs.into_inner();
    let forged = [&[0x17, 0x03, 0x03, 0x00, 0x20][..], &[7; 0x20]].concat();
    below.write_all(&forged).await.unwrap();
    let error: TlsError = ours.read_u8().await.unwrap_err().downcast().unwrap();
    assert_eq!(error.reason(), "tls_protocol", "{error}");
}
