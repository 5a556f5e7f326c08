//! Tunnels through several endpoints, some of which fail.

mod checks;
mod kept;
mod names;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::name::Target;
use crate::policy::{self, Credentials, Ejection, ProxySettings};
use crate::sockets::PlainSockets;
use crate::trace::Span;
use crate::tunnel::{Place, Time, Timings, Tunnel, TunnelConfig, TunnelError, Tunneler};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, what: String) {
        self.0.lock().push(what);
    }

    /// What was noted since the last time.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Observer for Notes {
    fn appeared(&self, at: &Place) {
        self.note(format!("appeared {}", at.endpoint));
    }
    fn gone(&self, at: &Place) {
        self.note(format!("gone {}", at.endpoint));
    }
    fn connected(&self, _: &Place) {}
    fn disconnected(&self, _: &Place) {}
    fn failed(&self, _: &Place, reason: &'static str) {
        self.note(format!("failed {reason}"));
    }
    fn healthy(&self, at: &Place, healthy: bool) {
        self.note(format!("healthy {} {healthy}", at.endpoint));
    }
    fn checked(&self, at: &Place, well: bool) {
        self.note(format!("checked {} {well}", at.endpoint));
    }
    fn over_limit(&self, _: &str, limit: &'static str) {
        self.note(format!("over {limit}"));
    }
    fn retried(&self, _: &str, reason: &'static str) {
        self.note(format!("retried {reason}"));
    }
    fn took(&self, _: &str, _: Spoken, _: &Timings) {}
}

struct World {
    tunneler: Tunneler,
    notes: Arc<Notes>,
    files: TempDir,
}

impl World {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        let sockets: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
        let resolver =
            Resolver::from_files(Arc::clone(&sockets), &path("resolv.conf"), &path("hosts"));
        let notes = Arc::new(Notes::default());
        let observer = Arc::clone(&notes) as _;
        Self {
            tunneler: Tunneler::new(sockets, resolver, TunnelConfig::default(), observer),
            notes,
            files,
        }
    }

    /// Serves `proxy` alone, and forgets what was noted about that.
    fn serving(proxy: &Arc<Proxy>) -> Self {
        let world = Self::new();
        world.tunneler.serve([proxy]);
        world.notes.take();
        world
    }

    fn hosts(&self, text: &str) {
        fs::write(self.files.path().join("hosts"), text).unwrap();
    }

    async fn open(&self, proxy: &Arc<Proxy>) -> Result<Tunnel, TunnelError> {
        let target = Target {
            host: "www.example.com".parse().unwrap(),
            port: 443,
        };
        let request = Request {
            proxy,
            target: &target,
            headers: &[],
            span: &Span::none(),
        };
        let time = Time {
            deadline: self.tunneler.deadline(),
            has_others: false,
        };
        self.tunneler.open(&request, time).await
    }
}

/// An endpoint that gives each connection's request this answer, and keeps the connection for as
/// long as the other side does if it is [`OK`].
struct Server {
    port: u16,
    accepted: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::with(listener, answer)
    }

    fn with(listener: TcpListener, answer: &'static [u8]) -> Self {
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer));
            }
        });
        Self {
            port,
            accepted,
            serving,
        }
    }

    /// From now on nobody listens.
    async fn stop(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(answer).await?;
    if answer == OK {
        let _ = stream.read_to_end(&mut Vec::new()).await?;
    }
    Ok(())
}

/// A port where nobody listens.
async fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn endpoints(host: &str, ports: &[u16]) -> Vec<policy::Endpoint> {
    let endpoint = |port: &u16| policy::Endpoint {
        host: host.parse().unwrap(),
        port: *port,
        weight: 1,
    };
    ports.iter().map(endpoint).collect()
}

fn proxy(ports: &[u16], settings: ProxySettings) -> Arc<Proxy> {
    Arc::new(Proxy {
        endpoints: endpoints("127.0.0.1", ports),
        settings,
        ..Proxy::plain("proxy.test".parse().unwrap(), 3128)
    })
}

/// Each endpoint in its turn, so that tests know which one comes.
fn in_turn() -> ProxySettings {
    ProxySettings {
        balance: policy::Balance::RoundRobin,
        ..ProxySettings::default()
    }
}

#[tokio::test]
async fn whatever_an_endpoint_does_wrong_another_one_makes_good() {
    let good = Server::start(OK).await;
    for (answer, reason) in [
        (&b""[..], "closed_early"),
        (b"HTTP/1.1 2", "closed_early"),
        (b"SSH-2.0-x\r\n", "malformed"),
    ] {
        let bad = Server::start(answer).await;
        let proxy = proxy(&[bad.port, good.port], in_turn());
        let world = World::serving(&proxy);
        let tunnel = world.open(&proxy).await.unwrap();
        assert_eq!(tunnel.address.unwrap().port(), good.port);
        let expected = [format!("failed {reason}"), format!("retried {reason}")];
        assert_eq!(world.notes.take(), expected);
        assert_eq!(bad.accepted(), 1);
    }
    let proxy = proxy(&[nobody().await, good.port], in_turn());
    let world = World::serving(&proxy);
    world.open(&proxy).await.unwrap();
    assert_eq!(
        world.notes.take(),
        ["failed tcp_refused", "retried tcp_refused"]
    );
}

#[tokio::test]
async fn a_refusal_stands_but_for_a_target_that_another_endpoint_may_reach() {
    let good = Server::start(OK).await;
    let forbids = Server::start(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").await;
    let fails = Server::start(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
    let first = proxy(&[forbids.port, good.port], in_turn());
    let world = World::serving(&first);
    let error = world.open(&first).await.unwrap_err();
    assert_eq!((error.code(), good.accepted()), (Some(403), 0));
    assert_eq!(world.notes.take(), [""; 0]);

    let second = proxy(&[fails.port, good.port], in_turn());
    let world = World::serving(&second);
    world.open(&second).await.unwrap();
    assert_eq!(world.notes.take(), ["retried refused"]);

    // Once: the target may be at fault after all.
    let all = proxy(&[fails.port, fails.port, good.port], in_turn());
    let world = World::serving(&all);
    let error = world.open(&all).await.unwrap_err();
    assert_eq!(error.code(), Some(503));
    assert_eq!(world.notes.take(), ["retried refused"]);
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_left_alone_until_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad_port = listener.local_addr().unwrap().port();
    drop(listener);
    let good = Server::start(OK).await;
    let proxy = proxy(
        &[bad_port, good.port],
        ProxySettings {
            ejection: Ejection {
                after: 2,
                ..Ejection::default()
            },
            ..in_turn()
        },
    );
    let world = World::serving(&proxy);
    for _ in 0..6 {
        world.open(&proxy).await.unwrap();
    }
    let notes = world.notes.take();
    // Twice it was tried, and then no more.
    let failures = notes.iter().filter(|note| note.starts_with("failed"));
    assert_eq!(failures.count(), 2, "{notes:?}");
    let passed_over = format!("healthy 127.0.0.1:{bad_port} false");
    assert_eq!(notes.iter().filter(|note| **note == passed_over).count(), 1);

    // A policy that is the same but for the credentials changes nothing.
    let renewed = Arc::new(Proxy {
        credentials: Some(Credentials::basic("me", &"secret".into()).unwrap()),
        ..(*proxy).clone()
    });
    world.tunneler.serve([&renewed]);
    world.open(&renewed).await.unwrap();
    world.open(&renewed).await.unwrap();
    assert_eq!(world.notes.take(), [""; 0]);

    // Back again, it is tried by one when its time has come.
    let at = format!("127.0.0.1:{bad_port}");
    let back = Server::with(TcpListener::bind(&at).await.unwrap(), OK);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(7)).await;
    tokio::time::resume();
    world.open(&renewed).await.unwrap();
    assert_eq!(world.notes.take(), [format!("healthy {at} true")]);
    assert_eq!(back.accepted(), 1);
}

#[tokio::test]
async fn a_single_endpoint_is_tried_however_often_it_failed() {
    let port = nobody().await;
    let proxy = proxy(&[port], ProxySettings::default());
    let world = World::serving(&proxy);
    for _ in 0..5 {
        let error = world.open(&proxy).await.unwrap_err();
        assert_eq!(error.reason(), "tcp_refused");
    }
    let at = format!("127.0.0.1:{port}");
    let _back = Server::with(TcpListener::bind(&at).await.unwrap(), OK);
    world.open(&proxy).await.unwrap();
    let notes = world.notes.take();
    let last = [format!("healthy {at} false"), format!("healthy {at} true")];
    let changes: Vec<_> = notes.iter().filter(|n| n.starts_with("healthy")).collect();
    assert_eq!(changes, last.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn what_leaves_policy_is_forgotten_when_its_last_connection_ends() {
    let server = Server::start(OK).await;
    let proxy = proxy(&[server.port], ProxySettings::default());
    let world = World::new();
    world.tunneler.serve([&proxy]);
    let at = format!("127.0.0.1:{}", server.port);
    assert_eq!(
        world.notes.take(),
        [format!("appeared {at}"), format!("healthy {at} true")]
    );
    let tunnel = world.open(&proxy).await.unwrap();
    world.tunneler.serve([]);
    assert_eq!(world.notes.take(), [""; 0]);
    drop(tunnel);
    assert_eq!(world.notes.take(), [format!("gone {at}")]);
    // Decided just before, a connection is served still, and nothing is counted.
    world.open(&proxy).await.unwrap();
    assert_eq!(world.notes.take(), [""; 0]);
}

#[tokio::test]
async fn connections_over_the_limit_are_refused_as_such() {
    let server = Server::start(OK).await;
    let proxy = proxy(
        &[server.port],
        ProxySettings {
            max_connections: Some(2),
            ..ProxySettings::default()
        },
    );
    let world = World::serving(&proxy);
    let first = world.open(&proxy).await.unwrap();
    let _second = world.open(&proxy).await.unwrap();
    let error = world.open(&proxy).await.unwrap_err();
    assert_eq!(error.reason(), "too_many_connections");
    assert!(error.to_string().contains("maxConnections"), "{error}");
    drop(first);
    world.open(&proxy).await.unwrap();
    assert_eq!(server.accepted(), 3);
}

#[tokio::test]
async fn tunnels_go_to_the_endpoint_with_the_fewest() {
    let (a, b) = (Server::start(OK).await, Server::start(OK).await);
    let proxy = proxy(&[a.port, b.port], ProxySettings::default());
    let world = World::serving(&proxy);
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        tunnels.push(world.open(&proxy).await.unwrap());
    }
    assert_eq!((a.accepted(), b.accepted()), (5, 5));
    // Half of it ends at one of them, and is made up for there.
    tunnels.retain(|tunnel| tunnel.address.unwrap().port() == b.port);
    for _ in 0..5 {
        tunnels.push(world.open(&proxy).await.unwrap());
    }
    assert_eq!((a.accepted(), b.accepted()), (10, 5));
}
