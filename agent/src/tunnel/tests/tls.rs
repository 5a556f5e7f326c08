//! TLS with the proxy, and inside the tunnel with the target.

use std::io;

use tokio_rustls::TlsAcceptor;

use super::*;
use crate::name::Host;
use crate::sockets::Carrier;
use crate::tls::testing::{Authority, client, patience, server};
use crate::tls::{ClientTls, TlsError, TlsSettings};

/// A proxy inside TLS that takes one connection, gives `answer` to its request, and comes to what
/// else it was sent and how that ended.
async fn answering_in_tls(
    acceptor: TlsAcceptor,
    answer: &'static [u8],
) -> (u16, JoinHandle<(Vec<u8>, io::Result<usize>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut sent = Vec::new();
        let mut stream = match acceptor.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => return (sent, Err(error)),
        };
        while !sent.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut sent).await.unwrap();
        }
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
        let end = stream.read_to_end(&mut sent).await;
        (sent, end)
    });
    (port, serving)
}

/// A proxy on `port`, spoken to with these settings.
fn tls_proxy(port: u16, settings: &TlsSettings) -> Proxy {
    Proxy {
        tls: Some(Arc::new(client(settings))),
        ..proxy("127.0.0.1", port)
    }
}

#[tokio::test]
async fn the_whole_exchange_with_the_proxy_is_inside_tls() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["127.0.0.1"]), None);
    let answer = b"HTTP/1.1 200 OK\r\n\r\n220 hello\r\n";
    let (port, serving) = answering_in_tls(acceptor, answer).await;
    let mut proxy = tls_proxy(port, &authority.settings());
    proxy.credentials = Some(Credentials::basic("user", &"secret".into()).unwrap());
    let mut tunnel = patient().open(&proxy).await.unwrap();
    assert_eq!(&tunnel.early[..], b"220 hello\r\n");
    assert!(tunnel.timings.tls.is_some() && tunnel.timings.connect.is_some());
    tunnel.stream.write_all(b"EHLO me\r\n").await.unwrap();
    tunnel.stream.shutdown().await.unwrap();
    let (sent, end) = serving.await.unwrap();
    end.unwrap();
    let request = connect::request(&target(), &[], proxy.credentials.as_ref());
    assert_eq!(sent, [&request[..], b"EHLO me\r\n"].concat());
}

#[tokio::test]
async fn a_proxy_that_cannot_prove_itself_learns_nothing() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["other.example"]), None);
    let (port, serving) = answering_in_tls(acceptor, b"").await;
    let proxy = tls_proxy(port, &authority.settings());
    let error = patient().open(&proxy).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.side()),
        ("tls_wrong_name", Side::Proxy)
    );
    assert!(error.retryable() && error.address().is_some());
    let timings = error.timings();
    assert!(timings.tls.is_some() && timings.connect.is_none());
    let text = error.to_string();
    let start = format!(
        "no tunnel to www.example.com:443 through proxy 127.0.0.1:{port}: TLS failed: its \
         certificate is not for `127.0.0.1`, but for other.example"
    );
    assert!(text.starts_with(&start), "{text}");
    let (sent, end) = serving.await.unwrap();
    assert!(sent.is_empty() && end.is_err());
}

#[tokio::test]
async fn a_proxy_that_wants_a_client_certificate_is_told_apart_from_one_that_breaks_off() {
    let authority = Authority::new("a CA");
    let clients = Authority::new("clients");
    let acceptor = server(&authority.issue(&["127.0.0.1"]), Some(&clients));
    let (port, _serving) = answering_in_tls(acceptor.clone(), b"").await;
    let proxy = tls_proxy(port, &authority.settings());
    let error = patient().open(&proxy).await.unwrap_err();
    assert_eq!(error.reason(), "tls_alert_certificate_required", "{error}");
    assert!(error.to_string().contains("client certificate"), "{error}");

    let known = TlsSettings {
        identity: Some(clients.issue(&["me"])),
        ..authority.settings()
    };
    let (port, _serving) = answering_in_tls(acceptor, b"HTTP/1.1 200 OK\r\n\r\n").await;
    let proxy = tls_proxy(port, &known);
    patient().open(&proxy).await.unwrap();
}

#[tokio::test]
async fn plain_text_and_tls_mixed_up_are_told() {
    // A proxy in plain text takes what begins our hello for a request.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let authority = Authority::new("a CA");
    let error = patient()
        .open(&tls_proxy(port, &authority.settings()))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "tls_not_spoken", "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    serving.await.unwrap();

    let acceptor = server(&authority.issue(&["127.0.0.1"]), None);
    let (port, serving) = answering_in_tls(acceptor, b"").await;
    let error = patient().open(&proxy("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(error.reason(), "malformed", "{error}");
    let text = error.to_string();
    assert!(
        text.contains("this looks like TLS, which the port wants and which is not configured"),
        "{text}"
    );
    assert!(serving.await.unwrap().1.is_err());
}

#[tokio::test]
async fn a_silent_handshake_ends_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hasty = World::new("", Duration::from_millis(300));
    let proxy = tls_proxy(port, &Authority::new("a CA").settings());
    let error = hasty.open(&proxy).await.unwrap_err();
    assert_eq!(error.reason(), "tls_timeout");
    assert!(error.timings().tls.is_some() && error.timings().connect.is_none());
}

#[tokio::test]
async fn a_proxy_that_ends_tls_before_its_answer_broke_off() {
    let authority = Authority::new("a CA");
    for in_order in [true, false] {
        let acceptor = server(&authority.issue(&["127.0.0.1"]), None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            if in_order {
                stream.shutdown().await.unwrap();
            }
        });
        let proxy = tls_proxy(port, &authority.settings());
        let error = patient().open(&proxy).await.unwrap_err();
        assert_eq!(error.reason(), "closed_early", "{error}");
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn headers_go_to_the_proxy() {
    let (proxy, serving) = answering(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let header = |name, value| {
        let value = HeaderValue::from_static(value);
        (HeaderName::from_static(name), value)
    };
    let headers = [header("x-workload", "default/app"), header("x-b", "")];
    let tunneler = patient().tunneler;
    drop(open(&tunneler, &proxy, &headers).await.unwrap());
    let sent = String::from_utf8(serving.await.unwrap()).unwrap();
    assert!(
        sent.ends_with("\r\nx-workload: default/app\r\nx-b: \r\n\r\n"),
        "{sent}"
    );
}

/// A pair of sockets, the first as a tunnel has it.
async fn tunnel() -> (Stream, tokio::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap().into(), far.unwrap().0)
}

fn the_target() -> Host {
    "a.example".parse().unwrap()
}

async fn inside(stream: Stream, early: &'static [u8], tls: &ClientTls) -> Result<Stream, TlsError> {
    let early = Bytes::from_static(early);
    originate(stream, early, tls, &the_target(), patience()).await
}

#[tokio::test]
async fn what_came_with_the_answer_belongs_to_the_targets_tls() {
    let authority = Authority::new("a CA");
    let (stream, _far) = tunnel().await;
    let tls = client(&authority.settings());
    let error = inside(stream, b"220 ESMTP\r\n", &tls).await.unwrap_err();
    assert_eq!(error.reason(), "tls_not_spoken");

    // An alert in two parts, the first of which came early.
    let (stream, mut far) = tunnel().await;
    far.write_all(b"\x02\x02\x28").await.unwrap();
    let error = inside(stream, b"\x15\x03\x03\x00", &tls).await.unwrap_err();
    assert_eq!(error.reason(), "tls_alert_handshake_failure", "{error}");
}

#[tokio::test]
async fn tls_inside_tls_carries_bytes_and_ends_in_order() {
    let authority = Authority::new("a CA");
    let outer = server(&authority.issue(&["127.0.0.1"]), None);
    let inner = server(&authority.issue(&["a.example"]), None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = outer.accept(stream).await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut stream = inner.accept(stream).await.unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        stream.write_all(&question).await.unwrap();
        stream.shutdown().await.unwrap();
        question
    });
    let tls = client(&authority.settings());
    let proxy = tls_proxy(port, &authority.settings());
    let tunnel = patient().open(&proxy).await.unwrap();
    let mut stream = originate(tunnel.stream, tunnel.early, &tls, &the_target(), patience())
        .await
        .unwrap();
    let question: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    stream.write_all(&question).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.unwrap();
    assert!(echo == question);
    assert!(serving.await.unwrap() == question);
}

#[tokio::test]
async fn a_stream_that_is_aborted_resets_the_connection_below() {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["a.example"]), None);
    let tls = client(&authority.settings());
    for aborts in [true, false] {
        let (stream, far) = tunnel().await;
        let (stream, served) = tokio::join!(inside(stream, b"", &tls), acceptor.accept(far));
        let (mut stream, mut served) = (stream.unwrap(), served.unwrap());
        stream.abort_on_drop();
        if !aborts {
            stream.shutdown().await.unwrap();
            stream.finish_on_drop();
        }
        drop(stream);
        let end = served.read(&mut [0; 1]).await;
        if aborts {
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        } else {
            assert_eq!(end.unwrap(), 0);
        }
    }
}
