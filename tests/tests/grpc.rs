//! Workloads that speak gRPC without TLS: each call has a target, an answer and a record, whether it
//! goes on as it is or by TLS that is originated inside the tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::process::Running;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// Where `grpc_site.py` is, at `other.example`.
const PORT: u16 = 8080;

/// By which TLS is originated for the server.
const ENCRYPTED: &str = "---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: other}
spec:
  host: other.example
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: CA.PEM}}
";

/// Whether the server of gRPC speaks TLS, and with it the agent.
#[derive(Clone, Copy)]
enum Leg {
    Plain,
    Tls,
}

/// Squid, and a server of gRPC behind it.
struct Behind {
    agent: Agent,
    site: Running,
    squid: Squid,
    scene: Scene,
}

impl Behind {
    #[track_caller]
    fn new(name: &str, leg: Leg) -> Self {
        let name = match leg {
            Leg::Plain => name.to_owned(),
            Leg::Tls => format!("{name}-tls"),
        };
        Self::with(&name, leg, "")
    }

    /// The same, with more of policy.
    #[track_caller]
    fn with(name: &str, leg: Leg, more: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[80, PORT],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        let mut site = inet.debian_python("grpc_site");
        site = site.args([&OTHER_V4.to_string(), &PORT.to_string()]);
        let mut policy = tunnel_policy(&[]) + more;
        if let Leg::Tls = leg {
            site = site.args([scene.pki.certificate(), scene.pki.key()]);
            policy += ENCRYPTED;
        }
        let policy = policy.replace("CA.PEM", &scene.pki.ca().display().to_string());
        let mut site = site.start();
        site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, PORT)));
        let agent = Agent::start(&scene.world, &policy);
        Self {
            agent,
            site,
            squid,
            scene,
        }
    }

    /// What came of these, on one connection.
    #[track_caller]
    fn call(&self, what: &Value) -> Vec<Value> {
        call(&self.scene, &format!("other.example:{PORT}"), what)
    }
}

#[track_caller]
fn call(scene: &Scene, address: &str, what: &Value) -> Vec<Value> {
    let program = scene.grpc_client(address);
    let said = program.input(what.to_string()).run(5 * MINUTE);
    let said = said.expect_success().stdout;
    said.lines()
        .map(|line| serde_json::from_str(line).must("read JSON"))
        .collect()
}

#[test]
fn all_kinds_of_calls_share_one_tunnel() {
    all_kinds(Leg::Plain);
}

#[test]
fn all_kinds_of_calls_share_one_tunnel_with_tls_in_it() {
    all_kinds(Leg::Tls);
}

#[track_caller]
fn all_kinds(leg: Leg) {
    let behind = Behind::new("grpc-kinds", leg);
    let metadata = json!([["x-said", "hello"], ["x-said-bin", "ok"]]);
    let came_back = json!([["x-said-bin", "b'ok'"], ["x-said", "hello"]]);
    let said = behind.call(&json!([
        ["echo", "abc", metadata],
        ["collect", 10, 1000],
        ["count", 20, 1000],
        ["talk", 30],
        ["fail", 5, "no such thing: \u{e4} 100%"],
        ["at-once", 100],
    ]));
    let expected = json!([
        {"ok": ["cba", came_back, came_back]},
        {"ok": [10, 10_000, true]},
        {"ok": [20, 20_000, true]},
        {"ok": [30, "LINE 29"]},
        {"code": "NOT_FOUND", "details": "no such thing: \u{e4} 100%"},
        {"ok": 100},
    ]);
    assert_eq!(json!(said), expected);
    assert_eq!(behind.squid.connects(1), ["other.example:8080"]);
    let calls = behind.site.stdout();
    assert_eq!(calls.lines().count(), 105, "{calls}");
    assert!(calls.lines().all(|line| line.ends_with(" 1")), "{calls}");

    let records = behind.agent.wait_for_accesses(105);
    assert_eq!(records.len(), 105, "one for each call");
    for (record, status) in records.iter().zip(["0", "0", "0", "0", "5", "0"]) {
        assert_eq!(record.text("grpc.status"), status, "{record:?}");
        assert_eq!(record.text("status"), "200", "{record:?}");
        assert_eq!(record.text("method"), "POST", "{record:?}");
        assert_eq!(record.text("authority"), "other.example:8080", "{record:?}");
        assert_eq!(record.text("target"), "other.example:8080", "{record:?}");
        assert_eq!(record.text("flags"), "", "{record:?}");
    }
    let metrics = behind.agent.metrics();
    let calls = |status| {
        let labels = [
            ("request_protocol", "grpc"),
            ("response_code", "200"),
            ("grpc_response_status", status),
            ("response_flags", "-"),
        ];
        metrics.sum("istio_requests_total", &labels)
    };
    assert_eq!((calls("0"), calls("5")), (Some(104.0), Some(1.0)));
    assert_eq!(metrics.sum("istio_requests_total", &[]), Some(105.0));
    // Those of Fail among the requests only.
    let messages = |name| metrics.sum(name, &[("destination_service", "PassthroughCluster")]);
    let sent = messages("istio_request_messages_total");
    assert_eq!(sent, Some(1.0 + 10.0 + 1.0 + 30.0 + 1.0 + 100.0));
    let received = messages("istio_response_messages_total");
    assert_eq!(received, Some(1.0 + 1.0 + 20.0 + 30.0 + 100.0));
    let bytes: u64 = records.iter().map(|one| one.number("bytes_sent")).sum();
    for name in [
        "istio_request_bytes_sum",
        "underpass_proxy_sent_bytes_total",
    ] {
        assert_eq!(metrics.sum(name, &[]), Some(bytes as f64), "{name}");
    }
    behind
        .agent
        .wait_for_metric("underpass_tunnels_active", &[], 0.0);
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn large_streams_pass_both_ways() {
    large_streams(Leg::Plain, 100 << 20, 100 << 20);
}

#[test]
fn large_streams_pass_both_ways_by_tls() {
    // The other way, one that is not short; a program that is not optimised takes its time.
    large_streams(Leg::Tls, 100 << 20, 10 << 20);
}

#[track_caller]
fn large_streams(leg: Leg, up: u64, down: u64) {
    let behind = Behind::new("grpc-large", leg);
    let size = 64 << 10;
    let [sent, got] = [up, down].map(|bytes| bytes / size);
    let said = behind.call(&json!([["collect", sent, size], ["count", got, size]]));
    let expected = json!([{"ok": [sent, up, true]}, {"ok": [got, down, true]}]);
    assert_eq!(json!(said), expected);
    let records = behind.agent.wait_for_accesses(2);
    assert!(records[0].number("bytes_sent") > up, "{records:?}");
    assert!(records[1].number("bytes_received") > down, "{records:?}");
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn calls_end_with_their_clients_and_their_tunnel_lives_on() {
    given_up(Leg::Plain);
}

#[test]
fn calls_end_with_their_clients_and_their_tunnel_with_tls_lives_on() {
    given_up(Leg::Tls);
}

#[track_caller]
fn given_up(leg: Leg) {
    let behind = Behind::new("grpc-cancel", leg);
    let said = behind.call(&json!([
        ["cancel", "given-up", 1],
        ["wait", "too-long", 1],
        ["echo", "abc"],
    ]));
    assert_eq!(said[0]["code"], "CANCELLED", "{said:?}");
    assert_eq!(said[1]["code"], "DEADLINE_EXCEEDED", "{said:?}");
    assert_eq!(said[2]["ok"][0], "cba", "{said:?}");
    for text in ["given-up", "too-long"] {
        let site = &behind.site;
        wait_for("the target knows", MINUTE, || {
            site.stdout().contains(&format!("ended {text}"))
        });
    }
    assert_eq!(behind.squid.connects(1), ["other.example:8080"]);
    let records = behind.agent.wait_for_accesses(3);
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(records[0].text("flags"), "DC", "{records:?}");
    assert_eq!(records[0].text("status"), "", "{records:?}");
    // Whoever is faster: the client, which resets, or the agent or the target, which answer.
    let flag = records[1].text("flags");
    let answered = flag.is_empty() && records[1].number("grpc.status") == 4;
    assert!(flag == "DC" || flag == "UT" || answered, "{records:?}");
    let labels = [("grpc_response_status", ""), ("response_code", "0")];
    let given_up = behind.agent.metrics().sum("istio_requests_total", &labels);
    assert!(given_up >= Some(1.0), "{given_up:?}");
}

#[test]
fn what_goes_wrong_on_the_way_is_told_in_the_words_of_grpc() {
    let scene = Scene::new("grpc-proxy");
    let refusal = |status: &str| Answer::refusal(status, "not today");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), refusal("403 Forbidden"));
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
    let address = format!("site.example:{PORT}");
    let one = |what| call(&scene, &address, &what).pop().expect("an answer");
    let echo = || one(json!([["echo", "abc"]]));
    let expect = |said: &Value, code: &str, details: &str, record: usize| {
        assert_eq!(said["code"], code, "{said}");
        let records = agent.wait_for_accesses(record + 1);
        let id = records[record].text("request_id");
        let text = said["details"].as_str().unwrap_or_default();
        assert!(text.contains(details) && text.contains(&id), "{said}");
        records[record].clone()
    };
    let record = expect(&echo(), "UNAVAILABLE", "403", 0);
    assert_eq!(record.text("flags"), "CONNECT", "{record:?}");
    assert_eq!(record.text("status"), "200", "{record:?}");
    assert_eq!(record.text("grpc.status"), "14", "{record:?}");
    proxy.set_answer(refusal("503 Service Unavailable"));
    expect(&echo(), "UNAVAILABLE", "not today", 1);
    drop(proxy);
    expect(&echo(), "UNAVAILABLE", "proxy.example:3128", 2);
    let denied = one(json!([["as", "secret.example"], ["echo", "abc"]]));
    let record = expect(&denied, "PERMISSION_DENIED", "Deny", 3);
    assert_eq!(record.text("policy"), "Tunnel/no-secrets", "{record:?}");
    let metrics = agent.metrics();
    for (status, flag, count) in [
        ("14", "CONNECT", 2.0),
        ("14", "UF", 1.0),
        ("7", "DENY", 1.0),
    ] {
        let labels = [("grpc_response_status", status), ("response_flags", flag)];
        let sum = metrics.sum("istio_requests_total", &labels);
        assert_eq!(sum, Some(count), "{labels:?}");
    }
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_target_that_ends_fails_its_calls_and_is_found_again() {
    let mut behind = Behind::new("grpc-lost", Leg::Plain);
    let program = behind.scene.grpc_client(&format!("other.example:{PORT}"));
    let what = json!([["wait", "lost", 50], ["wait", "again", 1]]);
    let client = program.input(what.to_string()).start();
    let site = &behind.site;
    wait_for("the call is there", MINUTE, || {
        site.stdout().contains("Wait")
    });
    behind.site.kill();
    let said = client.finish(MINUTE).expect_success().stdout;
    let said: Vec<&str> = said.lines().collect();
    assert!(said[0].contains("UNAVAILABLE"), "{said:?}");
    let records = behind.agent.wait_for_accesses(2);
    assert_eq!(records[0].text("flags"), "UC", "{records:?}");
    assert_eq!(records[0].text("grpc.status"), "14", "{records:?}");
    // Nobody listens there now, and Squid says so.
    assert!(said[1].contains("UNAVAILABLE"), "{said:?}");
    assert_eq!(records[1].text("flags"), "CONNECT", "{records:?}");
}

/// The answer is ours, and tells why there is no other.
#[track_caller]
fn expect_own_answer(behind: &Behind, said: &Value, code: &str, details: &str, flag: &str) {
    assert_eq!(said["code"], code, "{said}");
    let records = behind.agent.wait_for_accesses(1);
    let [record] = &records[..] else {
        panic!("one for one call: {records:?}");
    };
    assert_eq!(record.text("flags"), flag, "{record:?}");
    assert_eq!(record.text("status"), "200", "{record:?}");
    let text = said["details"].as_str().unwrap_or_default();
    let id = record.text("request_id");
    assert!(text.contains(details) && text.contains(&id), "{said}");
    let status = record.text("grpc.status");
    let labels = [("grpc_response_status", &*status), ("response_flags", flag)];
    let counted = behind.agent.metrics().sum("istio_requests_total", &labels);
    assert_eq!(counted, Some(1.0), "{labels:?}");
}

#[test]
fn a_call_that_takes_too_long_for_policy_is_told_so() {
    let timeout = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other}
spec: {hosts: [other.example], http: [{timeout: 1s}]}
";
    let behind = Behind::with("grpc-late", Leg::Plain, timeout);
    let said = behind.call(&json!([["wait", "late", 60]]));
    let why = "no answer within 1s (timeout of VirtualService/other)";
    expect_own_answer(&behind, &said[0], "DEADLINE_EXCEEDED", why, "UT");
    wait_for("the target knows", MINUTE, || {
        behind.site.stdout().contains("ended late")
    });
}

#[test]
fn a_target_that_does_not_speak_tls_where_it_should_is_unavailable() {
    let behind = Behind::with("grpc-no-tls", Leg::Plain, ENCRYPTED);
    let said = behind.call(&json!([["echo", "abc"]]));
    let why = "TLS with other.example:8080";
    expect_own_answer(&behind, &said[0], "UNAVAILABLE", why, "UF");
    assert_eq!(behind.site.stdout(), "");
}
