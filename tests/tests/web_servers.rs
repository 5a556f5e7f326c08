//! What curl can ask of web servers, through the agent: each server plain, and by TLS that the agent
//! originates.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::curl::Seen;
use underpass_tests::process::Running;
use underpass_tests::random::Random;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::web::{self, Maker, PORT, TLS_PORT};
use underpass_tests::{Must as _, Scene};

const MINUTE: Duration = Duration::from_secs(60);

/// The same server under a name for which TLS is originated.
const SECURE: &str = "mail.example";

/// How long the file is that goes up.
const SIZE: usize = 300_000;

/// What a web server does, seen by curl.
struct Visit<'a> {
    scene: &'a Scene,
    agent: &'a Agent,
    host: &'static str,
    file: PathBuf,
    bytes: Vec<u8>,
    asked: usize,
}

#[track_caller]
fn visit(maker: Maker) {
    let name = format!("web-{maker:?}").to_lowercase();
    let scene = Scene::new(&name);
    let options = Options {
        connect_ports: &[PORT, TLS_PORT],
        ..Options::default()
    };
    let _squid = Squid::start_with(&scene.world, &options);
    let _web: Running = web::start(&scene.world, &scene.pki, maker);
    let policy = format!(
        "{}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: secure}}
spec:
  hosts: [{SECURE}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{number: {PORT}, name: http, protocol: HTTP, targetPort: {TLS_PORT}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: secure}}
spec:
  host: {SECURE}
  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}
",
        tunnel_policy(&[]),
        scene.pki.ca().display()
    );
    let agent = Agent::start(&scene.world, &policy);
    let mut random = Random::new(7);
    let bytes: Vec<u8> = (0..SIZE).map(|_| random.below(256) as u8).collect();
    let file = scene.world.dir().join("upload");
    fs::write(&file, &bytes).must("write a file");
    let mut visit = Visit {
        scene: &scene,
        agent: &agent,
        host: "other.example",
        file,
        bytes,
        asked: 0,
    };
    visit.all(maker);
    visit.host = SECURE;
    visit.all(maker);
    let requests = visit.asked;
    let records = agent.wait_for_accesses(requests);
    assert_eq!(records.len(), requests, "one for each");
    agent.wait_for_metric("istio_requests_total", &[], requests as f64);
    scene.world.expect_no_direct_arrivals();
}

impl Visit<'_> {
    /// curl with these options, which asks `requests` times.
    #[track_caller]
    fn curl(&mut self, path: &str, requests: usize, options: &[&str]) -> Seen {
        self.asked += requests;
        let url = format!("http://{}:{PORT}{path}", self.host);
        let curl = self
            .scene
            .curl(&url)
            .args(["-4"])
            .args(options.iter().copied());
        let seen = self.scene.captured(&curl);
        assert_eq!(seen.exit, 0, "{seen:?}\n{}", self.agent.tails());
        seen
    }

    /// What is PUT with these options comes back.
    #[track_caller]
    fn upload(&mut self, path: &str, requests: usize, options: &[&str]) {
        let file = self.file.display().to_string();
        let options = [&["-T", &file], options].concat();
        let seen = self.curl(path, requests, &options);
        assert!([201, 204].contains(&seen.status), "{seen:?}");
        let back = self.scene.world.dir().join("download");
        let seen = self.curl(path, 1, &["-o", &back.display().to_string()]);
        assert_eq!(seen.status, 200, "{seen:?}");
        let back = fs::read(back).must("read what came back");
        assert!(back == self.bytes, "{path}: {} bytes came back", back.len());
    }

    #[track_caller]
    fn all(&mut self, maker: Maker) {
        self.upload("/length", 1, &["-H", "Expect:"]);
        self.upload(
            "/chunked",
            1,
            &["-H", "Expect:", "-H", "Transfer-Encoding: chunked"],
        );
        // It would wait for longer than it may take.
        let granted = ["-H", "Expect: 100-continue", "--expect100-timeout", "60"];
        self.upload("/granted", 1, &granted);

        for (what, options) in [("1.0", &["--http1.0"][..]), ("1.1", &[])] {
            let back = self.scene.world.dir().join("download");
            let back = ["-o", &back.display().to_string()].map(str::to_owned);
            let back = [back[0].as_str(), back[1].as_str()];
            let seen = self.curl("/length", 1, &[options, &back[..]].concat());
            assert_eq!(seen.status, 200, "{what}: {seen:?}");
        }
        let head = self.curl("/length", 1, &["--head"]);
        assert_eq!(head.status, 200, "{head:?}");
        let length = format!("content-length: {SIZE}\r\n");
        assert!(head.body.to_lowercase().contains(&length), "{head:?}");

        let part = self.scene.world.dir().join("part");
        let to_part = ["-o", &part.display().to_string()].map(str::to_owned);
        let range = ["-r", "1000-1999", &to_part[0], &to_part[1]];
        let seen = self.curl("/length", 1, &range);
        assert_eq!(seen.status, 206, "{seen:?}");
        let part = fs::read(part).must("read a part");
        assert!(part == self.bytes[1000..2000], "another part");

        let seen = self.curl("/nothing", 1, &[]);
        assert_eq!(seen.status, 404, "{seen:?}");
        let fields: Vec<String> = (0..14)
            .map(|number| format!("X-{number}: {}", "y".repeat(500)))
            .collect();
        let fields: Vec<&str> = fields
            .iter()
            .flat_map(|field| ["-H", field.as_str()])
            .collect();
        let seen = self.curl("/nothing", 1, &fields);
        assert_eq!(seen.status, 404, "{seen:?}");
        self.kept_alive();
        self.pipelined();
        if maker.is_scripted() {
            self.scripted();
        }
    }

    /// One connection, and one tunnel, for all that a client asks.
    #[track_caller]
    fn kept_alive(&mut self) {
        let tunnels = || {
            let metrics = self.agent.metrics();
            metrics.sum("underpass_tunnel_requests_total", &[])
        };
        let before = tunnels().unwrap_or_default();
        let again = format!("http://{}:{PORT}/nothing", self.host);
        let again = [again.as_str(); 4];
        self.curl("/nothing", 5, &again);
        assert_eq!(tunnels(), Some(before + 1.0));
    }

    /// All of them are asked before the first is answered, and answered in their order.
    #[track_caller]
    fn pipelined(&mut self) {
        let asked: Vec<usize> = (0..8).map(|number| number * 1111).collect();
        let one = |(number, at): (usize, &usize)| {
            let close = if number == 7 {
                "Connection: close\r\n"
            } else {
                ""
            };
            format!(
                "GET /length HTTP/1.1\r\nHost: {}:{PORT}\r\n{close}Range: bytes={at}-{at}\r\n\r\n",
                self.host
            )
        };
        let text: String = asked.iter().enumerate().map(one).collect();
        let program = self.scene.program("raw");
        let program = program.args([OTHER_V4.to_string(), PORT.to_string()]);
        let input = serde_json::to_string(&[text]).must("write JSON");
        let said = program.input(input).run(MINUTE).expect_success().stdout;
        let said: Vec<(String, String)> = serde_json::from_str(&said).must("read JSON");
        let (answers, end) = &said[0];
        assert_eq!(end, "closed");
        let answers: Vec<&str> = answers.split("HTTP/1.1 206 ").skip(1).collect();
        let bodies: Vec<Option<char>> = answers.iter().map(|one| one.chars().last()).collect();
        let expected: Vec<_> = asked
            .iter()
            .map(|at| Some(char::from(self.bytes[*at])))
            .collect();
        assert_eq!(bodies, expected);
        self.asked += asked.len();
    }

    #[track_caller]
    fn scripted(&mut self) {
        let seen = self.curl("/hints", 1, &["--include"]);
        let (hints, answer) = seen.body.split_once("HTTP/1.1 200 OK").expect("an answer");
        assert!(hints.starts_with("HTTP/1.1 103 "), "{seen:?}");
        assert!(
            hints.to_lowercase().contains("link: </style.css>"),
            "{seen:?}"
        );
        assert!(answer.ends_with("with hints\n"), "{seen:?}");
        let seen = self.curl("/big-head", 1, &["--include"]);
        assert_eq!(seen.body.matches(&"y".repeat(1000)).count(), 30);
        // Refused, the body stays where it is.
        let file = self.file.display().to_string();
        let asks = [
            "-T",
            &file,
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "60",
        ];
        let seen = self.curl("/refuse", 1, &asks);
        assert_eq!(seen.status, 417, "{seen:?}");
        let records = self.agent.wait_for_accesses(self.asked);
        let refused = &records[self.asked - 1];
        assert_eq!(refused.number("status"), 417, "{records:?}");
        assert!(refused.number("bytes_sent") < 1000, "{records:?}");
        // Nobody answers, and curl goes on when it has waited.
        let waits = ["-H", "Expect: 100-continue", "--expect100-timeout", "0.1"];
        self.upload("/ignore", 1, &waits);
    }
}

#[test]
fn apache() {
    visit(Maker::Apache);
}

#[test]
fn nginx() {
    visit(Maker::Nginx);
}

#[test]
fn node() {
    visit(Maker::Node);
}

#[test]
fn python() {
    visit(Maker::Python);
}
