//! Workloads that speak HTTP/1.1 to targets that policy wants to hear HTTP/2 (`h2UpgradePolicy`).

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Access, Agent, tunnel_policy};
use underpass_tests::curl::Seen;
use underpass_tests::process::Running;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

const PORT: u16 = 8080;
const TLS_PORT: u16 = 8443;
const TUNNELS: &str = "underpass_tunnel_requests_total";

/// `NAME` at `PORT`, with TLS to `TO` if that is another port, and these settings for it.
fn service(scene: &Scene, name: &str, to: u16, policy: &str) -> String {
    let label = name.split('.').next().unwrap_or_default();
    let tls = if to == PORT {
        String::new()
    } else {
        let ca = scene.pki.ca();
        format!("tls: {{mode: SIMPLE, caCertificates: {}}}, ", ca.display())
    };
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {label}}}
spec:
  hosts: [{name}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{number: {PORT}, name: http, protocol: HTTP, targetPort: {to}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {label}}}
spec: {{host: {name}, trafficPolicy: {{{tls}connectionPool: {{http: {{{policy}}}}}}}}}
"
    )
}

const UPGRADE: &str = "h2UpgradePolicy: UPGRADE";

/// Squid, and `h2_site.js` behind it: `other.example` without TLS, `mail.example` with.
struct Behind {
    agent: Agent,
    site: Running,
    squid: Squid,
    scene: Scene,
}

impl Behind {
    #[track_caller]
    fn new(name: &str, more: &str) -> Self {
        Self::with(name, &format!("{UPGRADE}, idleTimeout: 1s"), more)
    }

    #[track_caller]
    fn with(name: &str, policy: &str, more: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[80, PORT, TLS_PORT],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/h2_site.js");
        let site = inet.command("node").arg(script).arg(OTHER_V4.to_string());
        let site = site.args([PORT.to_string(), TLS_PORT.to_string()]);
        let mut site = site
            .args([scene.pki.certificate(), scene.pki.key()])
            .start();
        for port in [PORT, TLS_PORT] {
            site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, port)));
        }
        let policy = [
            tunnel_policy(&[]),
            service(&scene, "other.example", PORT, policy),
            service(&scene, "mail.example", TLS_PORT, policy),
            more.to_owned(),
        ];
        let agent = Agent::start(&scene.world, &policy.concat());
        Self {
            agent,
            site,
            squid,
            scene,
        }
    }

    #[track_caller]
    fn ask(&self, url: &str, options: &[&str]) -> Seen {
        let curl = self.scene.curl(url).args(["-4"]);
        self.scene.captured(&curl.args(options.iter().copied()))
    }

    /// What came of a request for this path without TLS.
    #[track_caller]
    fn get(&self, path: &str, options: &[&str]) -> Seen {
        self.ask(&format!("http://other.example:{PORT}{path}"), options)
    }

    /// What the site has seen: the connection, the version, and the rest.
    fn seen(&self) -> Vec<(String, String, String)> {
        let said = self.site.stdout();
        let mut lines = said.lines().map(|line| line.splitn(3, ' '));
        let word = |words: &mut std::str::SplitN<'_, char>| words.next().map(str::to_owned);
        lines
            .by_ref()
            .filter_map(|mut line| Some((word(&mut line)?, word(&mut line)?, word(&mut line)?)))
            .collect()
    }

    #[track_caller]
    fn record(&self, flag: &str) -> Access {
        let is = |access: &Access| access.text("flags") == flag;
        self.agent
            .wait_for_access(&format!("the flag {flag:?}"), is)
    }
}

#[test]
fn it_is_done_when_asked_for_only() {
    let scene = Scene::new("upgrade-nginx");
    let options = Options {
        connect_ports: &[443, 8081],
        ..Options::default()
    };
    let _squid = Squid::start_with(&scene.world, &options);
    let (plain, seen) = plain_nginx(&scene);
    let policy = [
        tunnel_policy(&[]),
        service(&scene, "site.example", 443, UPGRADE),
        service(&scene, "v4.example", 443, "h2UpgradePolicy: DO_NOT_UPGRADE"),
        service(&scene, "mail.example", 8081, UPGRADE)
            .replace("tls: {mode: SIMPLE", "tls: {mode: DISABLE"),
        service(&scene, "other.example", 443, "maxRetries: 1"),
    ];
    let _agent = Agent::start(&scene.world, &policy.concat());
    for (host, protocol, alpn) in [
        ("site.example", "HTTP/2.0", "h2"),
        ("v4.example", "HTTP/1.1", "http/1.1"),
        ("site.example", "HTTP/2.0", "h2"),
    ] {
        let url = format!("http://{host}:{PORT}/");
        let curl = scene.curl(&url).args(["-4"]);
        let answer = scene.captured(&curl).expect_ok();
        assert_eq!(answer.http_version, "1.1", "{answer:?}");
        assert_eq!(answer.body, Nginx::GREETING);
        let requests = scene.nginx.requests();
        let last = requests.last().expect("a request");
        assert_eq!(
            (last.protocol.as_str(), last.alpn.as_str()),
            (protocol, alpn)
        );
        assert_eq!(last.host, format!("{host}:{PORT}"));
    }
    let url = format!("http://mail.example:{PORT}/a");
    let answer = scene.captured(&scene.curl(&url).args(["-4"])).expect_ok();
    assert_eq!(
        (answer.http_version.as_str(), answer.body.as_str()),
        ("1.1", "plain\n")
    );
    assert_eq!(fs::read_to_string(seen).must("read a log"), "HTTP/2.0 /a\n");
    drop(plain);
    scene.world.expect_no_direct_arrivals();
}

/// nginx that speaks HTTP/2 without TLS, and its log.
#[track_caller]
fn plain_nginx(scene: &Scene) -> (Running, std::path::PathBuf) {
    let dir = scene.world.dir().join("plain");
    fs::create_dir(&dir).must("make a directory");
    let (shown, log) = (dir.display(), dir.join("access.log"));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {shown}/{what};\n"))
        .collect();
    let configuration = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log stderr;\nevents {{}}\n\
         http {{ {temporary} log_format seen '$server_protocol $request_uri';\n\
         access_log {shown}/access.log seen;\n\
         server {{ listen {OTHER_V4}:8081 http2; location / {{ return 200 'plain\\n'; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, configuration).must("write nginx.conf");
    let inet = scene.world.inet();
    let command = inet.command("nginx").arg("-p").arg(&dir).arg("-c");
    let mut nginx = command.arg(&file).args(["-e", "stderr"]).start();
    nginx.wait_until_listening(inet, SocketAddr::from((OTHER_V4, 8081)));
    (nginx, log)
}

#[test]
fn what_curl_can_ask_passes() {
    let behind = Behind::new("upgrade-curl", "");
    let said = behind.get(
        "/x?y=z",
        &["-H", "X-A: b", "-H", "Connection: X-C", "-H", "X-C: d"],
    );
    let said: Value = serde_json::from_str(&said.expect_ok().body).must("read JSON");
    assert_eq!(
        (&said["method"], &said["url"]),
        (&"GET".into(), &"/x?y=z".into())
    );
    let fields = said["headers"].as_object().expect("fields");
    let names: Vec<&String> = fields.keys().collect();
    let expected = [
        ":authority",
        ":method",
        ":path",
        ":scheme",
        "accept",
        "user-agent",
        "x-a",
    ];
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(sorted, expected, "{said}");
    assert_eq!(fields[":authority"], "other.example:8080");
    assert_eq!(fields[":scheme"], "http");

    let abc = "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let sum = behind.get("/sum", &["-d", "abc"]).expect_ok();
    assert_eq!(sum.body, format!("{abc} 3 {{}}\n"));
    let chunked = ["-d", "abc", "-H", "Transfer-Encoding: chunked"];
    let sum = behind.get("/sum", &chunked).expect_ok();
    assert_eq!(sum.body, format!("{abc} undefined {{}}\n"));
    // It would wait for longer than it may take.
    let expect = [
        "-d",
        "abc",
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "60",
    ];
    behind.get("/sum", &expect).expect_ok();
    let hints = behind.get("/hints", &["--include"]).expect_ok();
    assert!(
        hints
            .body
            .starts_with("HTTP/1.1 103 Early Hints\r\nlink: </style.css>"),
        "{hints:?}"
    );
    assert!(hints.body.ends_with("with hints\n"), "{hints:?}");
    let old = behind
        .get("/hints", &["--http1.0", "--include"])
        .expect_ok();
    assert!(old.body.starts_with("HTTP/1.1 200 OK\r\n"), "{old:?}");
    let head = behind.get("/status/404", &["--head"]);
    assert_eq!(head.status, 404, "{head:?}");
    let raw = behind.get("/bytes/10", &["--raw", "--include"]).expect_ok();
    assert!(
        raw.body.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{raw:?}"
    );
    assert!(
        raw.body.ends_with("\r\n0\r\nx-trailer: yes\r\n\r\n"),
        "{raw:?}"
    );
    let early = behind.get("/early", &["-d", "abc"]).expect_ok();
    assert_eq!(early.body, "early\n");

    let size: u64 = 100 << 20;
    let much = format!("/bytes/{size}");
    behind.get(&much, &["--output", "/dev/null"]).expect_ok();
    let file = behind.scene.world.dir().join("upload");
    let zeros = fs::File::create(&file).must("create a file");
    zeros.set_len(size).must("make it large");
    let file = file.display().to_string();
    let sum = behind.get("/sum", &["-X", "POST", "-T", &file]).expect_ok();
    assert!(sum.body.starts_with(&format!("{size} ")), "{sum:?}");

    let seen = behind.seen();
    let count = seen.len();
    assert_eq!(count, 11, "{seen:?}");
    assert!(
        seen.iter().all(|(_, version, _)| version == "2.0"),
        "{seen:?}"
    );
    // Each was another process, and another connection of the workload.
    let is_first = |(session, ..): &(String, String, String)| *session == seen[0].0;
    assert!(seen.iter().all(is_first), "{seen:?}");
    let records = behind.agent.wait_for_accesses(count);
    assert!(
        records.iter().all(|one| one.text("flags").is_empty()),
        "{records:?}"
    );
    assert!(
        records[count - 2].number("bytes_received") > size,
        "{records:?}"
    );
    assert!(
        records[count - 1].number("bytes_sent") > size,
        "{records:?}"
    );
    let labels = [
        ("request_protocol", "http"),
        ("destination_service", "other.example"),
    ];
    behind
        .agent
        .wait_for_metric("istio_requests_total", &labels, count as f64);
    behind.agent.wait_for_metric(TUNNELS, &[], 1.0);
    behind
        .agent
        .wait_for_metric("underpass_tunnels_active", &[], 0.0);
    assert_eq!(behind.squid.connects(1), ["other.example:8080"]);
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn connections_of_a_workload_share_one_and_limits_count() {
    let limits = format!("{UPGRADE}, http2MaxRequests: 8");
    let behind = Behind::with("upgrade-shared", &limits, "");
    // Who comes while the connection is being opened waits for that one.
    let url = format!("http://other.example:{PORT}/hold/8");
    let begin = || {
        let curl = behind.scene.curl(&url).args(["-4"]);
        let command = curl.command_line();
        behind.scene.workload("curl").args(&command[1..]).start()
    };
    let mut held: Vec<Running> = (0..7).map(|_| begin()).collect();
    wait_for("seven are held", MINUTE, || behind.seen().len() == 7);
    // There is room for one more at the same time, and for no other.
    let mut last = begin();
    for curl in held.iter_mut().chain([&mut last]) {
        assert!(curl.wait(MINUTE).is_some_and(|status| status.success()));
        assert_eq!(curl.stdout(), "held\n");
    }
    let seen = behind.seen();
    let is_first = |(session, ..): &(String, String, String)| *session == seen[0].0;
    assert!(seen.iter().all(is_first), "{seen:?}");
    behind.agent.wait_for_metric(TUNNELS, &[], 1.0);
    let mut waiting: Vec<Running> = Vec::new();
    for number in 1..=8 {
        waiting.push(begin_waiting(&behind));
        wait_for("it waits", MINUTE, || behind.seen().len() == 8 + number);
    }
    let refused = behind.get("/more", &[]);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(behind.record("UO").number("status"), 503);
    drop(waiting);
    wait_for("they have gone", MINUTE, || {
        behind.site.stdout().matches("gone 8\n").count() == 8
    });
    behind.get("/more", &[]).expect_ok();
    assert_eq!(behind.seen().last().expect("one").0, seen[0].0);
    // Another workload has another connection, of which the target may learn something else.
    let other = behind.scene.world.workload().child("other");
    let curl = behind
        .scene
        .curl(&format!("http://other.example:{PORT}/more"));
    let program = behind.scene.world.host().command("curl").in_cgroup(&other);
    curl.args(["-4"]).run(program).expect_ok();
    assert_ne!(behind.seen().last().expect("one").0, seen[0].0);
    behind.scene.world.expect_no_direct_arrivals();
}

#[track_caller]
fn begin_waiting(behind: &Behind) -> Running {
    let curl = behind
        .scene
        .curl(&format!("http://other.example:{PORT}/wait"));
    let command = curl.args(["-4"]).command_line();
    behind.scene.workload("curl").args(&command[1..]).start()
}

#[test]
fn with_tls_the_target_may_choose() {
    let behind = Behind::new("upgrade-tls", "");
    let secure = |path: &str| format!("http://mail.example:{PORT}{path}");
    let said = behind.ask(&secure("/a"), &[]).expect_ok().body;
    let said: Value = serde_json::from_str(&said).must("read JSON");
    assert_eq!(said["headers"][":scheme"], "https", "{said}");
    // What cannot be a request of HTTP/2 stays what it is, and so does what the target wants so.
    let address = [OTHER_V4.to_string(), PORT.to_string()];
    let lines = behind.scene.program("upgrade").args(address);
    let lines = lines.arg(format!("mail.example:{PORT}")).run(MINUTE);
    let lines = lines.expect_success().stdout;
    assert_eq!(
        lines,
        "HTTP/1.1 101 Switching Protocols\nwelcome\nONE\nTWO\n"
    );
    behind.ask(&secure("/http1"), &[]).expect_ok();
    behind.ask(&secure("/b"), &[]).expect_ok();
    let seen = behind.seen();
    let told: Vec<_> = seen
        .iter()
        .map(|(_, version, rest)| (version.as_str(), rest.as_str()))
        .collect();
    let expected = [
        ("2.0", "GET /a"),
        ("1.1", "GET /echo"),
        ("2.0", "GET /http1"),
        ("1.1", "GET /http1"),
        ("2.0", "GET /b"),
    ];
    assert_eq!(told, expected);
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_target_that_takes_http1_alone_gets_that() {
    let scene = Scene::new("upgrade-fallback");
    let options = Options {
        connect_ports: &[PORT, TLS_PORT],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let inet = scene.world.inet();
    let site = |port: u16, tls: bool| {
        let mut site = inet
            .python("site")
            .args([OTHER_V4.to_string(), port.to_string()]);
        if tls {
            site = site.args([scene.pki.certificate(), scene.pki.key()]);
        }
        let mut site = site.start();
        site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, port)));
        site
    };
    let (secure, plain) = (site(TLS_PORT, true), site(PORT, false));
    let policy = [
        tunnel_policy(&[]),
        service(&scene, "other.example", PORT, UPGRADE),
        service(&scene, "mail.example", TLS_PORT, UPGRADE),
    ];
    let agent = Agent::start(&scene.world, &policy.concat());
    let url = format!("http://mail.example:{PORT}/a");
    let again = [url.as_str(); 3];
    let curl = scene.curl(&url).args(["-4"]).args(again);
    scene.captured(&curl).expect_ok();
    assert_eq!(secure.stdout().matches("GET /a HTTP/1.1").count(), 4);
    assert_eq!(squid.connects(1), ["mail.example:8443"]);

    // Nobody can tell before it is tried whether it speaks HTTP/2 without TLS.
    let url = format!("http://other.example:{PORT}/a");
    let seen = scene.captured(&scene.curl(&url).args(["-4"]));
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(
        seen.body
            .contains("other.example:8080 does not speak HTTP/2"),
        "{seen:?}"
    );
    let record = agent.wait_for_access("no HTTP/2", |one| one.text("flags") == "UPE");
    assert_eq!(record.number("status"), 502);
    assert!(!plain.stdout().contains("GET"), "{}", plain.stdout());
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn every_end_is_told_and_recorded_once() {
    let routes = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other}
spec:
  hosts: [other.example]
  http:
  - {match: [{uri: {prefix: /wait}}], timeout: 1s}
  - {match: [{uri: {prefix: /once}}], retries: {attempts: 1, retryOn: 'reset,refused-stream'}}
  - {match: [{uri: {prefix: /status}}], retries: {attempts: 2, retryOn: '503'}}
";
    let behind = Behind::new("upgrade-ends", routes);
    let mut ended = 0;
    let mut ends = |path: &str, options: &[&str], status: u64, flag: &str| {
        let seen = behind.get(path, options);
        assert_eq!(seen.status, status, "{path}: {seen:?}");
        ended += 1;
        let records = behind.agent.wait_for_accesses(ended);
        assert_eq!(records.len(), ended, "one for each");
        let record = records.into_iter().next_back().expect("a record");
        assert_eq!(record.text("flags"), flag, "{path}: {record:?}");
        (seen, record)
    };
    // CANCEL is what the target is told.
    let (late, _) = ends("/wait", &[], 504, "UT");
    assert!(late.body.contains("no answer within 1s"), "{late:?}");
    let (reset, _) = ends("/reset/2", &[], 502, "UC");
    let told = "it reset the stream: unexpected internal error encountered";
    assert!(reset.body.contains(told), "{reset:?}");
    let (cut, _) = ends("/cut", &[], 200, "UC");
    assert!(cut.exit != 0, "{cut:?}");
    // What the target has not looked at is sent once more anyway.
    ends("/reset/7", &[], 503, "UC");
    let (_, record) = ends("/once/2", &[], 200, "");
    assert_eq!(record.number("retries"), 1);
    let (_, record) = ends("/status/503", &[], 503, "URX");
    assert_eq!(record.number("retries"), 2);
    ends("/goaway", &[], 200, "");
    let (_, _) = ends(
        "/sum",
        &["-H", "Content-Length: 3", "-X", "POST", "--max-time", "1"],
        0,
        "DC",
    );
    let count = |what: &str| behind.seen().iter().filter(|one| one.2 == what).count();
    assert_eq!(count("GET /once/2"), 2);
    assert_eq!(count("GET /status/503"), 3);
    wait_for("the target was told", MINUTE, || {
        behind.site.stdout().contains("gone 8\n")
    });
    let metrics = behind.agent.metrics();
    assert_eq!(metrics.sum("istio_requests_total", &[]), Some(ended as f64));
    behind.scene.world.expect_no_direct_arrivals();
}

/// What is wrong with a request is seen before anything of it is a stream.
#[test]
fn malformed_requests_reach_nobody() {
    let behind = Behind::new("upgrade-malformed", "");
    let shapes = [
        (
            "POST",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("POST", "Transfer-Encoding: chunked\r\n\r\ng\r\n"),
        ("POST", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "X-A: a\r\n b\r\n\r\n"),
        ("GET", ":path: /other\r\n\r\n"),
        ("GET", "Host: mail.example\r\n\r\n"),
    ];
    let whole = |(method, rest): &(&str, &str)| {
        format!("{method} / HTTP/1.1\r\nHost: other.example:{PORT}\r\n{rest}")
    };
    let texts: Vec<String> = shapes.iter().map(whole).collect();
    let program = behind.scene.program("raw");
    let program = program.args([OTHER_V4.to_string(), PORT.to_string()]);
    let texts = serde_json::to_string(&texts).must("write JSON");
    let said = program.input(texts).run(MINUTE).expect_success().stdout;
    let said: Vec<(String, String)> = serde_json::from_str(&said).must("read JSON");
    for (shape, (answer, _)) in shapes.iter().zip(&said) {
        assert!(answer.starts_with("HTTP/1.1 400 "), "{shape:?}: {answer}");
    }
    assert_eq!(said.len(), shapes.len());
    assert_eq!(behind.site.stdout(), "");
    assert_eq!(behind.squid.log(), []);
    behind.scene.world.expect_no_direct_arrivals();
}
