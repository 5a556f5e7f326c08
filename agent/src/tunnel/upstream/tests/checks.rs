//! Endpoints that are asked whether they are well, and limits of what a proxy is asked for.

use super::*;
use crate::policy::Check;

/// How often endpoints are checked here.
const OFTEN: Duration = Duration::from_millis(20);

fn checked(ports: &[u16], credentials: Option<&str>) -> Arc<Proxy> {
    let password = |name| Credentials::basic(name, &"secret".into()).unwrap();
    Arc::new(Proxy {
        check: Some(Arc::new(Check {
            target: Target {
                host: "check.test".parse().unwrap(),
                port: 8443,
            },
            interval: OFTEN,
        })),
        credentials: credentials.map(password),
        ..(*proxy(
            ports,
            ProxySettings {
                ejection: Ejection {
                    after: 2,
                    base: OFTEN,
                    ..Ejection::default()
                },
                warm: true,
                ..in_turn()
            },
        ))
        .clone()
    })
}

impl World {
    /// Waits until just this was noted, whatever else was.
    async fn wait_for(&self, note: &str) -> Vec<String> {
        let mut notes = Vec::new();
        for _ in 0..1000 {
            notes.extend(self.notes.take());
            if notes.iter().any(|noted| noted == note) {
                return notes;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {note}: {notes:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_nobody_uses_is_passed_over_and_back_in_time() {
    let good = Server::start(OK).await;
    let port = nobody().await;
    let proxy = checked(&[good.port, port], None);
    let world = World::serving(&proxy);
    let at = format!("127.0.0.1:{port}");
    let notes = world.wait_for(&format!("healthy {at} false")).await;
    assert!(notes.contains(&format!("checked {at} false")), "{notes:?}");
    world
        .wait_for(&format!("checked 127.0.0.1:{} true", good.port))
        .await;
    // No failure is one of a workload.
    let failures = notes.iter().filter(|note| note.starts_with("failed"));
    assert_eq!(failures.count(), 0, "{notes:?}");
    let _back = Server::with(TcpListener::bind(&at).await.unwrap(), OK);
    world.wait_for(&format!("healthy {at} true")).await;
}

#[tokio::test]
async fn what_a_check_is_told_tells_the_endpoint_from_the_credentials() {
    for (answer, well) in [
        (&b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n"[..], true),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", true),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", false),
        (b"HTTP/1.1 504 No\r\nContent-Length: 0\r\n\r\n", false),
        (b"SSH-2.0-x\r\n", false),
    ] {
        let server = Server::start(answer).await;
        let world = World::serving(&checked(&[server.port], None));
        let note = format!("checked 127.0.0.1:{} {well}", server.port);
        let notes = world.wait_for(&note).await;
        let other = format!("checked 127.0.0.1:{} {}", server.port, !well);
        assert!(!notes.contains(&other), "{notes:?}");
    }
}

#[tokio::test]
async fn a_check_asks_for_its_target_with_what_the_proxy_wants_now() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let next = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 1024];
        let read = stream.read(&mut head).await.unwrap();
        let _ = stream.write_all(OK).await;
        String::from_utf8(head[..read].to_vec()).unwrap()
    };
    let basic = |name: &str| {
        let credentials = Credentials::basic(name, &"secret".into()).unwrap();
        format!("Proxy-Authorization: {}\r\n", credentials.header())
    };
    let world = World::serving(&checked(&[port], Some("before")));
    let asked = next().await;
    assert!(
        asked.starts_with("CONNECT check.test:8443 HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains(&basic("before")), "{asked}");
    // The upstream is the same, its credentials are not.
    let renewed = checked(&[port], Some("after"));
    world.tunneler.serve([&renewed]);
    let mut seen = 0;
    while seen < 3 {
        let asked = next().await;
        seen += usize::from(asked.contains(&basic("after")));
        assert!(seen == 0 || !asked.contains(&basic("before")), "{asked}");
    }
    // When policy has it no more, one check may be under way.
    world.tunneler.serve([]);
    let _ = tokio::time::timeout(OFTEN * 10, next()).await;
    let another = tokio::time::timeout(OFTEN * 10, next()).await;
    assert!(another.is_err(), "{another:?}");
}

#[tokio::test]
async fn only_so_many_tunnels_are_opened_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = proxy(
        &[port],
        ProxySettings {
            max_pending: Some(1),
            ..ProxySettings::default()
        },
    );
    let world = World::serving(&proxy);
    let first = world.open(&proxy);
    let second = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let error = world.open(&proxy).await.unwrap_err();
        assert_eq!(error.reason(), "too_many_pending");
        assert!(
            error.to_string().contains("http1MaxPendingRequests"),
            "{error}"
        );
        assert_eq!(world.notes.take(), ["over pending"]);
        stream.write_all(OK).await.unwrap();
        stream
    };
    let (tunnel, _stream) = tokio::join!(first, second);
    tunnel.unwrap();
    // It stands, and is no longer being opened.
    let (third, accepted) = tokio::join!(world.open(&proxy), async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(OK).await.unwrap();
        stream
    });
    third.unwrap();
    drop(accepted);
}
