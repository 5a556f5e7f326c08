//! Tunnels through proxies of our own on loopback.

mod tls;

use std::fs;
use std::net::IpAddr;

use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::policy::Credentials;
use crate::sockets::{PlainSockets, reset_on_close};
use crate::trace::Span;

/// A tunneler that finds names in a hosts file only.
struct World {
    tunneler: Tunneler,
    _files: TempDir,
}

impl World {
    fn new(hosts: &str, deadline: Duration) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        fs::write(path("hosts"), hosts).unwrap();
        let sockets: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
        let resolver =
            Resolver::from_files(Arc::clone(&sockets), &path("resolv.conf"), &path("hosts"));
        Self {
            tunneler: Tunneler::new(
                sockets,
                resolver,
                TunnelConfig { deadline },
                Arc::new(NoObserver),
            ),
            _files: files,
        }
    }

    async fn open(&self, proxy: &Proxy) -> Result<Tunnel, TunnelError> {
        open(&self.tunneler, proxy, &[]).await
    }
}

async fn open(
    tunneler: &Tunneler,
    proxy: &Proxy,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<Tunnel, TunnelError> {
    let request = Request {
        proxy: &Arc::new(proxy.clone()),
        target: &target(),
        headers,
        span: &Span::none(),
    };
    tunneler.open(&request, alone(tunneler)).await
}

/// All the time there is.
fn alone(tunneler: &Tunneler) -> Time {
    Time {
        deadline: tunneler.deadline(),
        has_others: false,
    }
}

fn patient() -> World {
    World::new("", TunnelConfig::default().deadline)
}

fn target() -> Target {
    Target {
        host: "www.example.com".parse().unwrap(),
        port: 443,
    }
}

fn proxy(host: &str, port: u16) -> Proxy {
    Proxy::plain(host.parse().unwrap(), port)
}

/// A proxy that takes one connection, gives `answer` to its request and keeps it open; it comes
/// to all that it was sent, once the other side closes.
async fn answering(answer: &'static [u8]) -> (Proxy, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut sent = Vec::new();
        while !sent.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut sent).await.unwrap();
        }
        stream.write_all(answer).await.unwrap();
        // A reset ends it as well: what was not read is thrown away.
        let _ = stream.read_to_end(&mut sent).await;
        sent
    });
    (proxy("127.0.0.1", port), serving)
}

async fn refused_with(answer: &'static [u8], credentials: Option<Credentials>) -> TunnelError {
    let (mut proxy, serving) = answering(answer).await;
    proxy.credentials = credentials;
    let error = patient().open(&proxy).await.unwrap_err();
    // The connection is closed, or this would not end.
    serving.await.unwrap();
    error
}

/// A listener whose queue is full, so that the kernel drops further SYNs.
fn black_hole(addr: SocketAddr) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&addr.into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let fill = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&addr);
        socket
    };
    (listener, (0..3).map(|_| fill()).collect())
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways() {
    let (mut proxy, serving) = answering(b"HTTP/1.1 200 OK\r\n\r\n220 hello\r\n").await;
    proxy.credentials = Some(Credentials::basic("user", &"secret".into()).unwrap());
    let Tunnel {
        mut stream,
        early,
        code,
        address,
        timings,
        ..
    } = patient().open(&proxy).await.unwrap();
    assert_eq!((code, &early[..]), (200, &b"220 hello\r\n"[..]));
    assert_eq!(address.unwrap().to_string(), proxy.to_string());
    assert!(timings.dns.is_none() && timings.tcp.is_some() && timings.connect.is_some());
    assert!(stream.tcp().nodelay().unwrap() && SockRef::from(stream.tcp()).keepalive().unwrap());

    stream.write_all(b"EHLO me\r\n").await.unwrap();
    drop(stream);
    let sent = serving.await.unwrap();
    let expected = connect::request(&target(), &[], proxy.credentials.as_ref());
    assert_eq!(sent, [&expected[..], b"EHLO me\r\n"].concat());
}

#[tokio::test]
async fn a_proxy_is_found_by_name_at_the_address_that_answers() {
    let (found, _serving) = answering(b"HTTP/1.1 200 OK\r\n\r\n").await;
    // Nothing listens on 127.0.0.3; 127.0.0.2 never answers.
    let hole = SocketAddr::new("127.0.0.2".parse().unwrap(), found.port);
    let _hole = black_hole(hole);
    let hosts = "127.0.0.3 proxy.test\n127.0.0.2 proxy.test\n127.0.0.1 proxy.test\n";
    let world = World::new(hosts, TunnelConfig::default().deadline);
    let start = Instant::now();
    let tunnel = world.open(&proxy("proxy.test", found.port)).await.unwrap();
    assert_eq!(
        tunnel.address.unwrap().ip(),
        "127.0.0.1".parse::<IpAddr>().unwrap()
    );
    assert!(tunnel.timings.dns.is_some());
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(250) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[tokio::test]
async fn an_unreachable_proxy_is_told_by_kind() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = patient().open(&proxy("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no tunnel to www.example.com:443 through proxy 127.0.0.1:{port}: cannot connect: \
             127.0.0.1:{port}: connection refused: nothing listens there"
        )
    );
    assert_eq!((error.reason(), error.side()), ("tcp_refused", Side::Proxy));
    assert!(error.retryable() && error.address().is_none() && error.code().is_none());
    assert!(error.timings().tcp.is_some() && error.timings().connect.is_none());

    let (hole, _full) = black_hole("127.0.0.1:0".parse().unwrap());
    let port = hole.local_addr().unwrap().as_socket().unwrap().port();
    let hasty = World::new("", Duration::from_millis(300));
    let start = Instant::now();
    let error = hasty.open(&proxy("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(error.reason(), "tcp_timeout");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(error.to_string().contains("no answer in time"), "{error}");

    let error = patient()
        .open(&proxy("proxy.test", 3128))
        .await
        .unwrap_err();
    assert_eq!((error.reason(), error.side()), ("dns", Side::Agent));
    let text = error.to_string();
    assert!(
        text.contains(
            "through proxy proxy.test:3128: cannot look up `proxy.test`: no name servers"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn a_407_says_what_to_do() {
    let both = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\
                 Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
    let error = refused_with(both, None).await;
    assert_eq!(
        (error.reason(), error.code(), error.retryable()),
        ("auth_required", Some(407), false)
    );
    assert_eq!(error.refusal().unwrap().schemes, ["Negotiate", "Basic"]);
    let text = error.to_string();
    assert!(
        text.ends_with(
            ": it answered 407 Proxy Authentication Required: it wants credentials and none are \
             configured for it (it offers Negotiate, Basic)"
        ),
        "{text}"
    );

    let secret = Credentials::basic("user", &"open sesame".into()).unwrap();
    let header = secret.header().to_owned();
    let error = refused_with(both, Some(secret)).await;
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("it does not accept the credentials configured for it"),
        "{text}"
    );
    let value = header.strip_prefix("Basic ").unwrap();
    assert!(!text.contains(value) && !text.contains("sesame"), "{text}");

    let only = b"HTTP/1.1 407 X\r\nContent-Length: 0\r\nProxy-Authenticate: NTLM\r\n\r\n";
    let text = refused_with(only, None).await.to_string();
    assert!(
        text.ends_with("(it offers NTLM, none of which is supported: let it offer Basic or Bearer to this client, know it by a client certificate, or run an agent for these schemes (such as cntlm) and name that as the proxy)"),
        "{text}"
    );
    let none = b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n";
    let text = refused_with(none, None).await.to_string();
    assert!(text.ends_with("(it names no scheme)"), "{text}");
}

#[tokio::test]
async fn other_refusals_tell_code_and_text() {
    let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 15\r\n\r\nport\r\nnot open\n";
    let error = refused_with(answer, None).await;
    assert_eq!(
        (error.reason(), error.code(), error.side()),
        ("refused", Some(403), Side::Proxy)
    );
    assert!(!error.retryable());
    let text = error.to_string();
    assert!(
        text.ends_with(
            ": it answered 403 Forbidden: its access rules do not allow www.example.com:443; \
             it says: port not open"
        ),
        "{text}"
    );

    let page = b"HTTP/1.0 502 Bad Gateway\r\nContent-Length: 21\r\n\r\n<html>no route</html>";
    let error = refused_with(page, None).await;
    assert_eq!((error.side(), error.retryable()), (Side::Target, true));
    assert!(
        error
            .to_string()
            .ends_with(": it answered 502 Bad Gateway; it says: no route"),
        "{error}"
    );
    assert_eq!(error.refusal().unwrap().body, "no route");
}

#[tokio::test]
async fn a_proxy_that_breaks_off_or_talks_nonsense_is_told_by_kind() {
    let error = refused_with(b"SSH-2.0-OpenSSH_9.2\r\n", None).await;
    assert_eq!((error.reason(), error.code()), ("malformed", None));
    assert!(error.to_string().contains("`SSH-2.0"), "{error}");

    for (resets, reason) in [(false, "closed_early"), (true, "reset")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let closing = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            if resets {
                reset_on_close(&stream);
            }
        });
        let error = patient().open(&proxy("127.0.0.1", port)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.retryable() && error.address().is_some());
        closing.await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_proxy_is_given_up_at_the_deadline_and_let_go() {
    let (proxy, serving) = answering(b"HTTP/1.1 2").await;
    let hasty = World::new("", Duration::from_millis(300));
    let start = Instant::now();
    let error = hasty.open(&proxy).await.unwrap_err();
    assert_eq!(error.reason(), "connect_timeout");
    assert!(error.to_string().contains("(10 bytes came)"), "{error}");
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(error.timings().connect.is_some());
    serving.await.unwrap();
}

#[test]
fn an_attempt_in_flight_is_small() {
    let world = patient();
    let (proxy, target) = (Arc::new(proxy("127.0.0.1", 3128)), target());
    let request = Request {
        proxy: &proxy,
        target: &target,
        headers: &[],
        span: &Span::none(),
    };
    let size = size_of_val(&world.tunneler.open(&request, alone(&world.tunneler)));
    assert!(size < 1024, "{size} bytes");
}
