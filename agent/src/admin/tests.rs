use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::json;

use super::*;
use crate::telemetry::scrape::Scrape;
use crate::telemetry::{ConnectionRecord, LogConfig, Metrics, logging};

struct Bench {
    thread: AdminThread,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    log: LogHandle,
    /// Keeps the filter of `log` in place.
    _subscriber: Box<dyn tracing::Subscriber + Send + Sync>,
}

fn loopback() -> Option<SocketAddr> {
    Some((Ipv4Addr::LOCALHOST, 0).into())
}

impl Bench {
    fn start() -> Self {
        let server = AdminServer::bind(Endpoints {
            metrics: loopback(),
            ready: loopback(),
            admin: loopback(),
        })
        .unwrap();
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let readiness = Readiness::default();
        let (subscriber, log) = logging::build(&LogConfig::default()).unwrap();
        let thread = server
            .spawn_thread(AdminState {
                registry,
                readiness: readiness.clone(),
                config_dump: Arc::new(|| json!({"policy": {"tunnels": 1}, "password": "***"})),
                status: Arc::new(|| json!({"version": "1"})),
                connections: metrics.connections().clone(),
                log: log.clone(),
            })
            .unwrap();
        Self {
            thread,
            metrics,
            readiness,
            log,
            _subscriber: Box::new(subscriber),
        }
    }

    fn metrics_addr(&self) -> SocketAddr {
        self.thread.addrs().metrics.unwrap()
    }

    fn ready_addr(&self) -> SocketAddr {
        self.thread.addrs().ready.unwrap()
    }

    fn admin_addr(&self) -> SocketAddr {
        self.thread.addrs().admin.unwrap()
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn request(addr: SocketAddr, method: &str, path: &str) -> Reply {
    raw(
        addr,
        &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
}

fn get(addr: SocketAddr, path: &str) -> Reply {
    request(addr, "GET", path)
}

fn raw(addr: SocketAddr, request: &str) -> Reply {
    let mut stream = connect(addr);
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Reply {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

#[test]
fn metrics_are_served_under_both_paths() {
    let bench = Bench::start();
    for path in ["/metrics", "/stats/prometheus", "/metrics?name=x"] {
        let reply = get(bench.metrics_addr(), path);
        assert_eq!(reply.status, 200);
        assert!(
            reply
                .head
                .contains("content-type: text/plain; version=0.0.4"),
            "{}",
            reply.head
        );
        let scrape = Scrape::parse(&reply.body);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        assert_eq!(scrape.value("underpass_build_info", &version), Some(1.0));
    }
}

#[test]
fn ready_is_what_the_checks_say() {
    let bench = Bench::start();
    let reply = get(bench.ready_addr(), "/healthz/ready");
    assert_eq!((reply.status, &*reply.body), (503, "agent: starting\n"));
    let policy = bench.readiness.check("policy");
    let canary = bench.readiness.check("canary");
    canary.failed(&"connection was not captured");
    let reply = get(bench.ready_addr(), "/healthz/ready");
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.body,
        "canary: connection was not captured\npolicy: pending\n"
    );
    policy.ok();
    canary.ok();
    let reply = get(bench.ready_addr(), "/healthz/ready");
    assert_eq!((reply.status, &*reply.body), (200, "ready\n"));
    canary.failed(&"detached");
    assert_eq!(get(bench.ready_addr(), "/healthz/ready").status, 503);
    assert_eq!(get(bench.ready_addr(), "/healthz/live").status, 200);
}

#[test]
fn configuration_and_connections_are_json() {
    let bench = Bench::start();
    let reply = get(bench.admin_addr(), "/config_dump");
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("content-type: application/json"));
    let dump: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(dump["policy"]["tunnels"], 1);

    let connections = || -> Value {
        serde_json::from_str(&get(bench.admin_addr(), "/connections").body).unwrap()
    };
    assert_eq!(connections(), json!([]));
    let record = ConnectionRecord::begin(&bench.metrics, "10.0.0.1:5".parse().unwrap());
    assert_eq!(connections()[0]["src.addr"], "10.0.0.1:5");
    drop(record);
    assert_eq!(connections(), json!([]));
}

#[test]
fn status_has_readiness_and_what_the_agent_says() {
    let bench = Bench::start();
    let canary = bench.readiness.check("canary");
    let status = || -> Value {
        let reply = get(bench.admin_addr(), "/status");
        assert_eq!(reply.status, 200, "also when it is not ready");
        serde_json::from_str(&reply.body).unwrap()
    };
    canary.failed(&"gone");
    let checks = json!([{"name": "canary", "state": "failed", "reason": "gone"}]);
    let expected = json!({"ready": false, "checks": checks, "version": "1"});
    assert_eq!(status(), expected);
    canary.ok();
    assert_eq!(status()["ready"], true);
}

#[test]
fn the_log_filter_is_shown_and_set() {
    let bench = Bench::start();
    let addr = bench.admin_addr();
    assert_eq!(get(addr, "/logging").body, "info\n");
    let reply = request(addr, "POST", "/logging?level=warn%2Cunderpass%3Ddebug");
    assert_eq!(
        (reply.status, &*reply.body),
        (200, "warn,underpass=debug\n")
    );
    assert_eq!(bench.log.filter(), "warn,underpass=debug");
    let reply = request(addr, "POST", "/logging?level=loud=very");
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("log filter `loud=very`"), "{reply:?}");
    let reply = request(addr, "POST", "/logging");
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("level="), "{reply:?}");
    assert_eq!(get(addr, "/logging").body, "warn,underpass=debug\n");
    // Reading does not change it.
    get(addr, "/logging?level=trace");
    assert_eq!(bench.log.filter(), "warn,underpass=debug");
}

#[test]
fn what_is_not_there_says_what_is() {
    let bench = Bench::start();
    for (addr, path) in [
        (bench.metrics_addr(), "/metrics"),
        (bench.ready_addr(), "/healthz/ready"),
        (bench.admin_addr(), "POST /logging?level=FILTER"),
    ] {
        let reply = get(addr, "/nothing");
        assert_eq!(reply.status, 404);
        assert!(reply.body.contains(path), "{reply:?}");
    }
    // What belongs on loopback is on no other listener.
    for path in ["/connections", "/config_dump", "/logging", "/status"] {
        assert_eq!(get(bench.metrics_addr(), path).status, 404);
        assert_eq!(get(bench.ready_addr(), path).status, 404);
    }
    for (method, addr, path, allow) in [
        ("POST", bench.metrics_addr(), "/metrics", "allow: get\r\n"),
        (
            "HEAD",
            bench.ready_addr(),
            "/healthz/ready",
            "allow: get\r\n",
        ),
        (
            "DELETE",
            bench.admin_addr(),
            "/logging",
            "allow: get, post\r\n",
        ),
    ] {
        let reply = request(addr, method, path);
        assert_eq!(reply.status, 405, "{method} {path}");
        assert!((reply.head + "\r\n").contains(allow), "{method} {path}");
    }
}

#[test]
fn requests_are_bounded_in_size() {
    let bench = Bench::start();
    let many = "X: y\r\n".repeat(100);
    let reply = raw(
        bench.admin_addr(),
        &format!("GET /logging HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
    );
    assert_eq!(reply.status, 431);
    let mut stream = connect(bench.admin_addr());
    // The server may close before it has read all, so neither writing nor reading need succeed.
    let _ = stream.write_all(format!("GET /{} HTTP/1.1\r\n", "a".repeat(100_000)).as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    assert_eq!(get(bench.admin_addr(), "/logging").status, 200);
}

#[test]
fn idlers_are_closed_and_keep_nobody_out() {
    let bench = Bench::start();
    let start = Instant::now();
    let mut idle: Vec<_> = (0..100).map(|_| connect(bench.ready_addr())).collect();
    assert_eq!(get(bench.ready_addr(), "/healthz/live").status, 200);
    let closed = |stream: &mut TcpStream| stream.read(&mut [0; 512]);
    // The oldest had to go for the newest.
    assert!(closed(&mut idle[0]).is_ok_and(|n| n == 0));
    assert!(start.elapsed() < Duration::from_secs(3));
    // The newest has its time to send a request, and no more.
    assert!(closed(&mut idle[99]).is_ok());
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(4), "{waited:?}");
    assert!(waited < Duration::from_secs(15), "{waited:?}");
}

#[test]
fn an_address_in_use_is_named_with_its_flag() {
    let bench = Bench::start();
    let taken = bench.metrics_addr();
    for (endpoints, flag) in [
        (
            Endpoints {
                metrics: Some(taken),
                ..Endpoints::default()
            },
            "--metrics-addr",
        ),
        (
            Endpoints {
                ready: Some(taken),
                ..Endpoints::default()
            },
            "--ready-addr",
        ),
        (
            Endpoints {
                admin: Some(taken),
                ..Endpoints::default()
            },
            "--admin-addr",
        ),
    ] {
        let error = AdminServer::bind(endpoints).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{flag} {taken}: the address is in use, choose another with {flag}")
        );
    }
    let error = AdminServer::bind(Endpoints {
        admin: Some("192.0.2.1:0".parse().unwrap()),
        ..Endpoints::default()
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no such address"), "{error}");
}

#[test]
fn who_lets_go_of_an_address_is_waited_for() {
    let predecessor = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = predecessor.local_addr().unwrap();
    let leaving = thread::spawn(move || {
        thread::sleep(RETRY_INTERVAL);
        drop(predecessor);
    });
    let (_, bound) = listen(addr).unwrap();
    assert_eq!(bound, addr);
    leaving.join().unwrap();
}

#[test]
fn what_is_not_asked_for_is_not_bound() {
    let server = AdminServer::bind(Endpoints {
        ready: loopback(),
        ..Endpoints::default()
    })
    .unwrap();
    let addrs = server.addrs();
    assert!(addrs.metrics.is_none() && addrs.admin.is_none());
    assert_ne!(addrs.ready.unwrap().port(), 0);
}

#[test]
fn a_dropped_thread_frees_its_ports() {
    let bench = Bench::start();
    let addr = bench.admin_addr();
    assert!(bench.thread.is_serving());
    drop(bench);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpListener::bind(addr).is_err() {
        assert!(Instant::now() < deadline, "still listening");
        thread::sleep(Duration::from_millis(10));
    }
}
