//! Workloads that speak HTTP/2 without TLS, with prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::addr::{OTHER_V4, PROXY_V4, SITE_V4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::curl::Seen;
use underpass_tests::process::Running;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::{apache, forward};
use underpass_tests::{Must as _, Scene};

const MINUTE: Duration = Duration::from_secs(60);

const PORT: u16 = 8080;

/// Of a proxy that the agent knows nothing of.
const OTHER_PROXY: u16 = 3140;

/// TLS with both: nginx at 443 takes HTTP/2, `site.py` HTTP/1.1 alone.
const ENCRYPTED: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: site}
spec:
  hosts: [site.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 8080, name: http2, protocol: HTTP2, targetPort: 443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: site}
spec: {host: site.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: CA.PEM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other}
spec: {host: other.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: CA.PEM}}}
";

struct Behind {
    agent: Agent,
    _site: Running,
    squid: Squid,
    scene: Scene,
}

impl Behind {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[80, PORT],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        let site = inet
            .python("site")
            .args([&OTHER_V4.to_string(), &PORT.to_string()])
            .args([scene.pki.certificate(), scene.pki.key()]);
        let mut site = site.start();
        site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, PORT)));
        let ca = scene.pki.ca().display().to_string();
        let policy = tunnel_policy(&[]) + &ENCRYPTED.replace("CA.PEM", &ca);
        let agent = Agent::start(&scene.world, &policy);
        Self {
            agent,
            _site: site,
            squid,
            scene,
        }
    }

    #[track_caller]
    fn curl(&self, url: &str, options: &[&str]) -> Seen {
        let curl = self.scene.curl(url).args(options.iter().copied());
        let curl = curl.args(["-4", "--http2-prior-knowledge"]);
        self.scene.captured(&curl).expect_ok()
    }
}

/// What came back on each of these connections.
#[track_caller]
fn raw(scene: &Scene, host: &str, port: u16, connections: &[Value]) -> Vec<Vec<String>> {
    let host_place = scene.world.host();
    let program = host_place
        .debian_python("h2_raw")
        .in_cgroup(scene.world.workload())
        .args([host, &port.to_string()]);
    let said = program.input(json!(connections).to_string()).run(MINUTE);
    serde_json::from_str(&said.expect_success().stdout).must("read JSON")
}

fn get(stream: u32, authority: &str, path: &str) -> Value {
    let fields = json!([
        [":method", "GET"],
        [":scheme", "http"],
        [":authority", authority],
        [":path", path],
    ]);
    json!(["headers", stream, 5, fields])
}

#[test]
fn a_target_that_speaks_http2_gets_it() {
    let behind = Behind::new("h2-nginx");
    let seen = behind.curl("http://site.example:8080/a", &[]);
    assert!(seen.body.starts_with(Nginx::GREETING), "{seen:?}");
    let one = |stream| get(stream, "site.example:8080", "/b");
    let both = json!([one(1), one(3)]);
    let answers = &raw(&behind.scene, &SITE_V4.to_string(), PORT, &[both])[0];
    assert!(answers[1].ends_with(Nginx::GREETING), "{answers:?}");
    let requests = behind.scene.nginx.requests();
    let told: Vec<_> = requests
        .iter()
        .map(|one| (one.protocol.as_str(), one.alpn.as_str(), one.path.as_str()))
        .collect();
    let b = ("HTTP/2.0", "h2", "/b");
    assert_eq!(told, [("HTTP/2.0", "h2", "/a"), b, b]);
    assert_eq!(behind.squid.connects(2), ["site.example:443"; 2]);
    for record in behind.agent.wait_for_accesses(3) {
        assert_eq!(record.text("status"), "200", "{record:?}");
        assert_eq!(record.text("flags"), "", "{record:?}");
    }
    let labels = [
        ("request_protocol", "http"),
        ("destination_service", "site.example"),
    ];
    behind
        .agent
        .wait_for_metric("istio_requests_total", &labels, 3.0);
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_target_that_speaks_http1_gets_that() {
    let behind = Behind::new("h2-site");
    let url = |path: &str| format!("http://other.example:8080{path}");
    let abc = "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let sum = behind.curl(&url("/sum"), &["-d", "abc"]);
    assert_eq!(sum.body, format!("{abc} length []\n"));
    assert_eq!(behind.curl(&url("/hints"), &[]).body, "with hints\n");
    let shown = behind.curl(&url("/x"), &["-H", "Cookie: a=b"]).body;
    assert!(
        shown.starts_with("GET /x HTTP/1.1\nhost: other.example:8080\n"),
        "{shown}"
    );
    assert!(shown.contains("cookie: a=b\n"), "{shown}");
    let head = behind.curl(&url("/head"), &["--head"]);
    assert!(head.body.contains("content-length: "), "{head:?}");
    let size: u64 = 100 << 20;
    behind.curl(&url(&format!("/bytes/{size}")), &["--output", "/dev/null"]);
    let file = behind.scene.world.dir().join("upload");
    let zeros = std::fs::File::create(&file).must("create a file");
    zeros.set_len(size).must("make it large");
    let file = file.display().to_string();
    let sum = behind.curl(&url("/sum"), &["-X", "POST", "-T", &file]);
    assert!(sum.body.starts_with(&format!("{size} ")), "{sum:?}");
    let records = behind.agent.wait_for_accesses(6);
    assert!(records[4].number("bytes_received") > size, "{records:?}");
    assert!(records[5].number("bytes_sent") > size, "{records:?}");
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn streams_of_one_connection_go_to_their_own_targets() {
    let behind = Behind::new("h2-hosts");
    let frames = json!([
        get(1, "other.example:8080", "/wait"),
        get(3, "site.example:8080", "/three"),
        get(5, "other.example:8080", "/five"),
        // Nobody waits for the first.
        ["frame", 3, 0, 1, "00000008"],
    ]);
    let answers = &raw(&behind.scene, &OTHER_V4.to_string(), PORT, &[frames])[0];
    assert!(answers[1].contains(Nginx::GREETING), "{answers:?}");
    assert!(answers[2].contains("GET /five HTTP/1.1"), "{answers:?}");
    let mut targets = behind.squid.connects(2);
    targets.sort();
    targets.dedup();
    assert_eq!(targets, ["other.example:8080", "site.example:443"]);
    behind.scene.world.expect_no_direct_arrivals();
}

/// `fields` instead of or besides those of a good request.
fn with(fields: &[(&str, &str)]) -> Value {
    let mut all = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "site.example"),
        (":path", "/"),
    ];
    for (name, value) in fields {
        match all.iter_mut().find(|(own, _)| own == name) {
            Some(own) => own.1 = value,
            None => all.push((name, value)),
        }
    }
    // An empty pseudo-field is left out.
    all.retain(|(name, value)| !name.starts_with(':') || !value.is_empty());
    json!([["headers", 1, 5, all]])
}

fn frames(first: u8, more: &Value, fields: &[(&str, &str)]) -> Value {
    let mut all = with(fields);
    all[0][2] = json!(first);
    let more = more.as_array().cloned().unwrap_or_default();
    let frames = all.as_array_mut().expect("frames");
    frames.extend(more);
    all
}

fn shapes() -> Vec<Value> {
    let long = "y".repeat(16_300);
    let fields: &[&[(&str, &str)]] = &[
        &[(":method", "")],
        &[(":path", "")],
        &[(":scheme", "")],
        &[(":authority", "")],
        &[(":scheme", "ftp")],
        &[(":method", "G T")],
        &[(":path", "a")],
        &[(":path", "*")],
        &[(":path", "/a b")],
        &[(":path", "http://site.example/")],
        &[(":authority", "user@site.example")],
        &[(":authority", "site.example:port")],
        &[(":authority", "site.example/a")],
        &[(":authority", "a b")],
        &[(":status", "200")],
        &[(":other", "x")],
        &[("host", "other.example")],
        &[("connection", "close")],
        &[("connection", "x-a"), ("x-a", "b")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "keep-alive")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[("X-Capital", "a")],
        &[("x a", "b")],
        &[("x:a", "b")],
        &[("", "b")],
        &[("x-a", "a\r\nx-b: c")],
        &[("x-a", "a\0b")],
        &[("x-a", " a")],
        &[("x-a", "a ")],
        &[("content-length", "5")],
        &[("content-length", "-1")],
        &[("content-length", "+0")],
        &[("content-length", "0, 0")],
        &[("content-length", "")],
        &[("x-long", &long)],
        &[(":method", "CONNECT"), (":path", ""), (":scheme", "")],
        &[(":method", "CONNECT"), (":protocol", "websocket")],
    ];
    let mut shapes: Vec<Value> = fields.iter().map(|fields| with(fields)).collect();
    let data = |flags: u8, text: &str| json!([["data", 1, flags, text]]);
    // A body that is not as long as said, two lengths, two hosts.
    shapes.push(frames(4, &data(1, "abc"), &[("content-length", "5")]));
    shapes.push(frames(4, &data(1, "abcdefg"), &[("content-length", "5")]));
    let mut twice = with(&[]);
    for (name, one, other) in [
        ("content-length", "0", "1"),
        ("host", "site.example", "site.example"),
    ] {
        let mut shape = twice.clone();
        let all = shape[0][3].as_array_mut().expect("fields");
        all.extend([json!([name, one]), json!([name, other])]);
        shapes.push(shape);
    }
    // A pseudo-field twice, and one behind the others.
    let all = twice[0][3].as_array_mut().expect("fields");
    all.push(json!([":path", "/b"]));
    shapes.push(twice.clone());
    let mut behind = with(&[("x-a", "b")]);
    let all = behind[0][3].as_array_mut().expect("fields");
    all.swap(3, 4);
    shapes.push(behind);
    // Frames out of place.
    shapes.push(json!([["data", 1, 1, "abc"]]));
    shapes.push(json!([["headers", 2, 5, [[":method", "GET"]]]]));
    shapes.push(json!([["frame", 9, 4, 1, "82"]]));
    shapes.push(json!([["frame", 1, 5, 1, "ff"]]));
    shapes.push(json!([
        ["frame", 8, 0, 0, "00000000"],
        ["frame", 1, 5, 1, "82"]
    ]));
    shapes
}

#[test]
fn malformed_requests_reach_nobody() {
    let scene = Scene::new("h2-malformed");
    let options = Options {
        connect_ports: &[80],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let shapes = shapes();
    assert!(shapes.len() >= 50, "{}", shapes.len());
    let answers = raw(&scene, &SITE_V4.to_string(), 80, &shapes);
    for (shape, answer) in shapes.iter().zip(&answers) {
        let shown: String = shape.to_string().chars().take(300).collect();
        let text = answer.join("|");
        let refused = ["400 ", "431 ", "501 ", "reset 1", "|goaway 1", "goaway 9"];
        let is_refused = refused.iter().any(|one| text.contains(one));
        assert!(is_refused, "{shown} is answered with {answer:?}");
    }
    assert_eq!(squid.log(), []);
    assert_eq!(scene.nginx.requests(), []);
    for record in agent.access_log() {
        assert_eq!(record.text("flags"), "DPE", "{record:?}");
    }
    scene.world.expect_no_direct_arrivals();
}

/// A proxy of the workload's own choice is a target as any other, and CONNECT a request to it.
#[test]
fn a_tunnel_that_a_workload_asks_another_proxy_for_is_inside_ours() {
    let scene = Scene::new("h2-connect");
    let options = Options {
        connect_ports: &[OTHER_PROXY],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let options = forward::Options {
        port: OTHER_PROXY,
        ..forward::Options::default()
    };
    let other = apache::start(&scene.world, &options);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/h2_connect.js");
    let client = scene.workload("node").arg(script);
    let proxy = format!("{PROXY_V4}:{OTHER_PROXY}");
    let targets = ["site.example:80", "nowhere.example:80", "site.example:80"];
    let said = client.arg(&proxy).args(targets).run(MINUTE);
    let said = said.expect_success().stdout;
    let lines: Vec<&str> = said.lines().collect();
    let served = "site.example:80 200 HTTP/1.1 200 OK";
    assert_eq!([lines[0], lines[2]], [served, served], "{said}");
    // Its refusals are its own.
    assert!(lines[1].starts_with("nowhere.example:80 50"), "{said}");
    assert_eq!(scene.nginx.requests().len(), 2);

    assert_eq!(squid.connects(1), [proxy]);
    assert_eq!(other.wait_for_log(3).len(), 3);
    let records = agent.wait_for_accesses(3);
    let told = |name: &str| records.iter().map(|one| one.text(name)).collect::<Vec<_>>();
    assert_eq!(told("authority"), targets, "{records:?}");
    assert_eq!(told("method"), ["CONNECT"; 3], "{records:?}");
    assert_eq!(told("flags"), [""; 3], "{records:?}");
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    scene.world.expect_no_direct_arrivals();
}
