//! Workloads that speak plain HTTP/1.1: each request has a target, an answer and a record.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, PROXY_V4, SITE_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::process::Running;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::forward;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tinyproxy;
use underpass_tests::{Must as _, Scene, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// Where `site.py` is.
const SITE: &str = "203.0.113.11";

/// Where another proxy is at `proxy.example`.
const OTHER_PROXY: u16 = 3140;

/// Squid, and `site.py` behind it at `other.example`, port 8080.
struct Behind {
    agent: Agent,
    site: Running,
    squid: Squid,
    scene: Scene,
}

impl Behind {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[80, 8080],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        let mut site = inet.python("site").args([SITE, "8080"]).start();
        site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, 8080)));
        let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
        Self {
            agent,
            site,
            squid,
            scene,
        }
    }

    /// The answers to these texts, each sent on a connection of its own, and how each ended.
    #[track_caller]
    fn raw(&self, port: u16, texts: &[&str]) -> Vec<(String, String)> {
        raw(&self.scene, SITE, port, texts)
    }
}

#[track_caller]
fn raw(scene: &Scene, host: &str, port: u16, texts: &[&str]) -> Vec<(String, String)> {
    let texts = serde_json::to_string(texts).must("write JSON");
    let program = scene.program("raw").args([host, &port.to_string()]);
    let said = program.input(texts).run(MINUTE).expect_success().stdout;
    serde_json::from_str(&said).must("read JSON")
}

#[test]
fn each_request_of_a_connection_goes_to_its_own_target() {
    let behind = Behind::new("http-hosts");
    let one = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let all = [
        one("/1", "other.example"),
        one("/2", "site.example"),
        one("/3", "other.example"),
        "GET /4 HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n".to_owned(),
    ]
    .concat();
    let (answer, end) = &behind.raw(8080, &[&all])[0];
    assert_eq!(end, "closed");
    // Nothing listens on port 8080 of site.example, so Squid says so.
    let statuses: Vec<&str> = answer.matches("HTTP/1.1 200 OK").collect();
    assert_eq!(statuses.len(), 3, "{answer}");
    let second = answer
        .find("HTTP/1.1 503")
        .expect("an answer about site.example");
    assert!(answer.find("GET /1 ") < Some(second), "{answer}");
    assert!(answer.find("GET /3 ") > Some(second), "{answer}");
    assert!(answer[second..].contains("site.example:8080"), "{answer}");
    let mut asked = behind.squid.connects(2);
    asked.sort();
    assert_eq!(asked, ["other.example:8080", "site.example:8080"]);
    let records = behind.agent.wait_for_accesses(4);
    let statuses: Vec<u64> = records.iter().map(|one| one.number("status")).collect();
    assert_eq!(statuses, [200, 503, 200, 200]);
    assert_eq!(records[1].text("flags"), "CONNECT", "{records:?}");
    let id = records[1].text("request_id");
    assert!(answer.contains(&format!("request id: {id}")), "{answer}");
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn whatever_a_client_may_do_works() {
    let mut behind = Behind::new("http-clients");
    let url = |path: &str| format!("http://other.example:8080{path}");
    let curl = |path: &str, options: &[&str]| {
        let curl = behind.scene.curl(&url(path)).args(options.iter().copied());
        behind.scene.captured(&curl.args(["-4"])).expect_ok()
    };
    let abc = "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let chunked = ["-H", "Transfer-Encoding: chunked", "-d", "abc"];
    assert_eq!(curl("/sum", &chunked).body, format!("{abc} chunked []\n"));
    assert_eq!(
        curl("/sum", &["-d", "abc"]).body,
        format!("{abc} length []\n")
    );
    let expect = ["-H", "Expect: 100-continue", "-d", "abc"];
    assert_eq!(curl("/sum", &expect).body, format!("{abc} length []\n"));
    assert_eq!(curl("/hints", &[]).body, "with hints\n");
    let old = curl("/old", &["--http1.0"]);
    assert!(old.body.starts_with("GET /old HTTP/1.0"), "{old:?}");
    let head = curl("/head", &["--head"]);
    assert!(head.body.contains("Content-Length: "), "{head:?}");
    // HTTP/1.0 knows no Host: the original destination is all there is.
    let (answer, end) = &behind.raw(8080, &["GET /older HTTP/1.0\r\n\r\n"])[0];
    assert!(answer.ends_with("GET /older HTTP/1.0\n"), "{answer}");
    assert_eq!(end, "closed");
    assert!(behind.squid.connects(7).contains(&format!("{SITE}:8080")));
    // Trailers pass.
    let trailers = "POST /sum HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\
                    Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n";
    let (answer, _) = &behind.raw(8080, &[trailers])[0];
    assert!(answer.ends_with("chunked ['X-T: 1']\n"), "{answer}");

    let upgrade = behind.scene.program("upgrade");
    let upgrade = upgrade.args([SITE, "8080", "other.example"]);
    let said = upgrade.run(MINUTE).expect_success().stdout;
    let switched = "HTTP/1.1 101 Switching Protocols\nwelcome\nONE\nTWO\n";
    assert_eq!(said, switched);
    let record = behind
        .agent
        .wait_for_access("the upgrade", |one| one.text("status") == "101");
    assert_eq!(record.text("flags"), "", "{record:?}");
    assert!(behind.site.is_running());
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn large_bodies_stream_both_ways() {
    let behind = Behind::new("http-large");
    let scene = &behind.scene;
    let size = 100 << 20;
    let get = scene
        .curl(&format!("http://other.example:8080/bytes/{size}"))
        .args(["-4", "--output", "/dev/null"]);
    scene.captured(&get).expect_ok();
    let record = behind.agent.wait_for_access("the download", |_| true);
    assert!(record.number("bytes_received") > size, "{record:?}");

    let file = scene.world.dir().join("upload");
    let zeros = std::fs::File::create(&file).must("create a file");
    zeros.set_len(size).must("make it large");
    let from = format!("@{}", file.display());
    for (encoding, framing) in [
        ("X-No: encoding", "length"),
        ("Transfer-Encoding: chunked", "chunked"),
    ] {
        let post = scene.curl("http://other.example:8080/sum").args([
            "-4",
            "-X",
            "POST",
            "-H",
            encoding,
            "-T",
            &from[1..],
        ]);
        let seen = scene.captured(&post).expect_ok();
        assert!(seen.body.starts_with(&format!("{size} ")), "{seen:?}");
        assert!(seen.body.contains(framing), "{seen:?}");
    }
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn an_answer_that_breaks_off_breaks_off_and_none_is_told() {
    let behind = Behind::new("http-broken");
    let texts = [
        "GET /short HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "GET /none HTTP/1.1\r\nHost: other.example\r\n\r\nGET /x HTTP/1.1\r\n\
         Host: other.example\r\nConnection: close\r\n\r\n",
    ];
    let answers = behind.raw(8080, &texts[1..]);
    let (answer, _) = &answers[0];
    assert!(
        answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{answer}"
    );
    assert!(answer.contains("it gave no answer"), "{answer}");
    assert!(
        answer.contains("GET /x HTTP/1.1"),
        "the connection lives on: {answer}"
    );
    let record = behind
        .agent
        .wait_for_access("no answer", |one| one.text("status") == "502");
    assert_eq!(record.text("flags"), "UC", "{record:?}");

    let curl = behind.scene.curl("http://other.example:8080/short");
    let seen = behind.scene.captured(&curl.args(["-4", "--max-time", "3"]));
    assert_ne!(seen.exit, 0, "not to be taken for the whole: {seen:?}");
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_goes_wrong_with_the_proxy_is_told() {
    let scene = Scene::new("http-proxy");
    let proxy = FakeProxy::start(
        scene.world.inet(),
        proxy_v4(),
        Answer::refusal("403 Forbidden", "not today"),
    );
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let get = || scene.captured(&scene.curl("http://site.example/").args(["-4"]));

    let seen = get();
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(
        seen.body.contains("403") && seen.body.contains("not today"),
        "{seen:?}"
    );
    proxy.set_answer(Answer::refusal("407 Proxy Authentication Required", ""));
    let seen = get();
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(seen.body.contains("credentials"), "{seen:?}");
    proxy.set_answer(Answer::refusal("504 Gateway Timeout", ""));
    assert_eq!(get().status, 504);
    drop(proxy);
    let seen = get();
    assert_eq!(seen.status, 503, "{seen:?}");
    assert!(seen.body.contains("proxy.example:3128"), "{seen:?}");

    let records = agent.wait_for_accesses(4);
    let told: Vec<_> = records
        .iter()
        .map(|one| {
            (
                one.text("status"),
                one.text("flags"),
                one.text("tunnel.code"),
            )
        })
        .collect();
    let expected = [
        ("502", "CONNECT", "403"),
        ("502", "CONNECT", "407"),
        ("504", "CONNECT", "504"),
        ("503", "UF", ""),
    ];
    let expected = expected.map(|(status, flag, code)| (status.into(), flag.into(), code.into()));
    assert_eq!(told, expected);
    let metrics = agent.metrics();
    let mut counts = BTreeMap::new();
    for code in ["502", "503", "504"] {
        let labels = [("response_code", code)];
        counts.insert(code, metrics.sum("istio_requests_total", &labels));
    }
    let expected = [("502", Some(2.0)), ("503", Some(1.0)), ("504", Some(1.0))];
    assert_eq!(counts, BTreeMap::from(expected));
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn each_request_of_a_connection_has_its_own_decision() {
    let scene = Scene::new("http-decisions");
    let options = Options {
        connect_ports: &[80],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let policy = tunnel_policy(&[])
        + "---\n\
           apiVersion: networking.istio.io/v1beta1\n\
           kind: ServiceEntry\n\
           metadata: {name: secret, labels: {secret: \"yes\"}}\n\
           spec: {hosts: [secret.example], location: MESH_EXTERNAL, resolution: DNS}\n\
           ---\n\
           apiVersion: underpass.dev/v1alpha1\n\
           kind: Tunnel\n\
           metadata: {name: no-secrets}\n\
           spec: {selector: {matchLabels: {secret: \"yes\"}}, action: Deny}\n";
    let agent = Agent::start(&scene.world, &policy);
    let one = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let last = "GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n";
    let all = [&one("site.example"), &one("secret.example"), last].concat();
    let (answer, end) = &raw(&scene, &SITE_V4.to_string(), 80, &[&all])[0];
    assert_eq!(end, "closed");
    let mut statuses = answer.lines().filter(|line| line.starts_with("HTTP/1.1 "));
    assert_eq!(statuses.next(), Some("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(statuses.next(), Some("HTTP/1.1 403 Forbidden"), "{answer}");
    assert!(answer.contains("Deny"), "{answer}");
    assert_eq!(answer.matches(Nginx::GREETING).count(), 2, "{answer}");
    assert_eq!(squid.connects(1), ["site.example:80"]);
    let records = agent.wait_for_accesses(3);
    assert_eq!(records[1].text("flags"), "DENY", "{records:?}");
    assert_eq!(
        records[1].text("policy"),
        "Tunnel/no-secrets",
        "{records:?}"
    );
    let denied = [("policy", "Tunnel/no-secrets"), ("reason", "rule")];
    agent.wait_for_metric("underpass_policy_denied_total", &denied, 1.0);
    scene.world.expect_no_direct_arrivals();
}

/// What the target served, what was counted and what was logged are the same number.
#[test]
fn requests_counts_and_records_agree() {
    let scene = Scene::new("http-counts");
    let options = Options {
        connect_ports: &[80],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let one = "GET / HTTP/1.1\r\nHost: site.example\r\n\r\n".repeat(24);
    let last = "HEAD / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n";
    let text = serde_json::to_string(&[one + last]).must("write JSON");
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let program = scene.program("raw").args([&SITE_V4.to_string(), "80"]);
            program.input(text.clone()).start()
        })
        .collect();
    for client in clients {
        let said = client.finish(MINUTE).expect_success().stdout;
        assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 25, "{said}");
    }
    let records = agent.wait_for_accesses(200);
    assert_eq!(records.len(), 200);
    assert_eq!(scene.nginx.requests().len(), 200);
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("istio_requests_total", &[]), Some(200.0));
    assert_eq!(
        metrics.sum("underpass_tunnel_requests_total", &[]),
        Some(8.0)
    );
    assert_eq!(squid.connects(8).len(), 8);
    let bytes = |field| -> u64 { records.iter().map(|one| one.number(field)).sum() };
    for (field, metric) in [
        ("bytes_sent", "underpass_proxy_sent_bytes_total"),
        ("bytes_received", "underpass_proxy_received_bytes_total"),
        ("bytes_sent", "istio_request_bytes_sum"),
        ("bytes_received", "istio_response_bytes_sum"),
    ] {
        assert_eq!(
            metrics.sum(metric, &[]),
            Some(bytes(field) as f64),
            "{metric}"
        );
    }
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_request_ends_with_its_client() {
    let behind = Behind::new("http-gone");
    let curl = behind
        .scene
        .curl("http://other.example:8080/wait")
        .args(["-4"]);
    let program = behind
        .scene
        .workload("curl")
        .args(curl.command_line().split_off(1));
    let mut client = program.start();
    wait_for("the request is there", MINUTE, || {
        behind.site.stdout().contains("/wait")
    });
    let open = behind.agent.admin("/connections");
    assert_eq!(open[0]["target"], "other.example:8080", "{open}");
    client.kill();
    wait_for("the target knows", MINUTE, || {
        behind.site.stdout().contains("gone")
    });
    let record = behind.agent.wait_for_access("the end", |_| true);
    assert_eq!(record.text("flags"), "DC", "{record:?}");
    assert_eq!(record.text("status"), "", "{record:?}");
    let labels = [("response_code", "0"), ("response_flags", "DC")];
    behind
        .agent
        .wait_for_metric("istio_requests_total", &labels, 1.0);
    behind
        .agent
        .wait_for_metric("underpass_tunnels_active", &[], 0.0);
}

/// A proxy of the workload's own choice is a target as any other: it is reached by ours, and asked
/// for what the workload asks it for.
#[test]
fn a_tunnel_that_a_workload_asks_another_proxy_for_is_inside_ours() {
    let scene = Scene::new("http-connect");
    let options = Options {
        connect_ports: &[OTHER_PROXY],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let options = forward::Options {
        port: OTHER_PROXY,
        ..forward::Options::default()
    };
    let other = tinyproxy::start(&scene.world, &options);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let by = format!("http://proxy.example:{OTHER_PROXY}");
    let get = |url: &str| {
        let curl = scene.curl(url).args(["-4", "--proxy", &by]);
        scene.captured(&curl)
    };

    let seen = get("https://site.example/").expect_ok();
    assert_eq!(seen.connect_status, 200, "{seen:?}");
    assert_eq!(scene.nginx.requests()[0].tls, "TLSv1.3");
    // By the name that curl has resolved.
    let target = format!("proxy.example:{OTHER_PROXY}");
    assert_eq!(squid.connects(1), std::slice::from_ref(&target));
    let log = other.wait_for_log(1);
    assert_eq!(log[0].target, "site.example:443", "{log:?}");
    // First on its connection, it is no request of ours to read.
    let record = agent.wait_for_access("the tunnel", |_| true);
    assert_eq!(record.text("request_id"), "", "{record:?}");
    assert_eq!(record.text("target"), target, "{record:?}");
    assert_eq!(record.text("flags"), "", "{record:?}");

    // Behind another it is one. What stands behind it is for whom the tunnel leads to, or a request
    // if there is no tunnel.
    let forward = "GET http://site.example/one HTTP/1.1\r\nHost: site.example\r\n\r\n";
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let last = "GET /two HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n";
    let all = [forward, &connect("site.example:80"), last].concat();
    let none = [forward, &connect("nowhere.example:80"), last].concat();
    let answers = raw(&scene, &PROXY_V4.to_string(), OTHER_PROXY, &[&all, &none]);
    let [(served, end), (refused, _)] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(end, "closed");
    assert_eq!(served.matches(" 200 ").count(), 3, "{served}");
    assert_eq!(served.matches(Nginx::GREETING).count(), 2, "{served}");
    assert_eq!(refused.matches(" 200 ").count(), 1, "{refused}");
    let paths: Vec<String> = scene
        .nginx
        .requests()
        .into_iter()
        .map(|one| one.path)
        .collect();
    assert_eq!(
        paths,
        ["/", "/one", "/two", "/one"],
        "none behind a refusal"
    );
    let records = agent.wait_for_accesses(5);
    let told: Vec<_> = records[1..3]
        .iter()
        .map(|one| {
            [
                one.text("method"),
                one.text("status"),
                one.text("authority"),
            ]
        })
        .collect();
    let get = ["GET", "200", "site.example"];
    assert_eq!(told, [get, ["CONNECT", "200", "site.example:80"]]);
    assert_eq!(records[4].text("method"), "CONNECT", "{records:?}");
    assert!(records[4].number("status") >= 500, "{records:?}");
    assert_eq!(records[4].text("flags"), "", "its refusals are its own");
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_kept_connection_that_has_ended_is_replaced() {
    let behind = Behind::new("http-bye");
    let one = "GET /bye HTTP/1.1\r\nHost: other.example\r\n\r\n";
    let last = "GET /x HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    let (answer, end) = &behind.raw(8080, &[&[one, one, last].concat()])[0];
    assert_eq!(end, "closed");
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert_eq!(behind.squid.connects(3), ["other.example:8080"; 3]);
    assert_eq!(behind.agent.wait_for_accesses(3).len(), 3);
}

#[test]
fn an_agent_that_drains_does_not_wait_for_idle_clients() {
    let mut behind = Behind::new("http-drain");
    let texts = serde_json::to_string(&["GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"]);
    let program = behind.scene.program("raw").args([SITE, "8080"]);
    let client = program.input(texts.must("write JSON")).start();
    behind.agent.wait_for_accesses(1);
    behind.agent.process().signal(Signal::SIGTERM);
    // The time to drain is 25 s, and that of the client 20 s.
    let said = client
        .finish(Duration::from_secs(15))
        .expect_success()
        .stdout;
    assert!(
        said.contains("200 OK") && said.contains("\"closed\""),
        "{said}"
    );
    let ended = behind.agent.process().wait(Duration::from_secs(15));
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}
