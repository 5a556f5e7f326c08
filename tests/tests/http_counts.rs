//! Whatever a crowd of workloads does, what they count, what their targets and the proxy count, what
//! is logged and what the metrics say are the same numbers; also while some of it is still open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::addr::{OTHER_V4, OTHER_V6, SITE_V4, SITE_V6};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::metrics::Metrics;
use underpass_tests::process::Running;
use underpass_tests::random::Random;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

const HTTP: u16 = 8080;
const ECHO: u16 = 7;

/// Names at which `site.py` is.
const HOSTS: [&str; 4] = [
    "other.example",
    "mail.example",
    "site.example",
    "v4.example",
];

const SECRETS: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: secret, labels: {secret: \"yes\"}}
spec: {hosts: [secret.example], location: MESH_EXTERNAL, resolution: DNS}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: no-secrets}
spec: {selector: {matchLabels: {secret: \"yes\"}}, action: Deny}
";

/// A world for `programs/mix.py`.
struct Mix {
    agent: Agent,
    _echo: Server,
    sites: [Running; 4],
    squid: Squid,
    scene: Scene,
}

impl Mix {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[ECHO, HTTP],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        // Squid may try any address of a name.
        let addresses: [IpAddr; 4] = [
            OTHER_V4.into(),
            OTHER_V6.into(),
            SITE_V4.into(),
            SITE_V6.into(),
        ];
        let sites = addresses.map(|address| {
            let site = inet.python("site");
            let mut site = site.args([address.to_string(), HTTP.to_string()]).start();
            site.wait_until_listening(inet, SocketAddr::new(address, HTTP));
            site
        });
        let echo = Server::echo(inet, SocketAddr::from((OTHER_V4, ECHO)));
        let policy = tunnel_policy(&[]) + SECRETS;
        let agent = Agent::start(&scene.world, &policy);
        Self {
            agent,
            _echo: echo,
            sites,
            squid,
            scene,
        }
    }

    /// Starts the crowd, and takes what it has counted when it holds its last connections.
    #[track_caller]
    fn start(&self, seed: u64) -> (Running, Value) {
        let mut mix = self
            .scene
            .program("mix")
            .args([seed.to_string(), OTHER_V4.to_string()])
            .args([HTTP.to_string(), ECHO.to_string()])
            .args(HOSTS)
            .start();
        wait_for("the crowd has done its part", MINUTE, || {
            !mix.is_running() || mix.stdout().matches('\n').count() == 2
        });
        let failed = || {
            let log = self.agent.access_log().into_iter();
            let log = log.filter(|one| one.text("status").starts_with('5'));
            log.collect::<Vec<_>>()
        };
        assert!(mix.is_running(), "{}\n{:?}", mix.tails(), failed());
        let said = mix.stdout();
        let counted = said.lines().nth(1).expect("a second line");
        (mix, serde_json::from_str(counted).must("read JSON"))
    }

    /// The numbers of the requests that came to a target; one may come twice.
    fn reached(&self) -> BTreeSet<u64> {
        let said = self.sites.each_ref().map(Running::stdout).concat();
        let numbers = said.lines().filter_map(|line| {
            let number = line.split_once('?')?.1.split(' ').next()?;
            number.parse().ok()
        });
        numbers.collect()
    }
}

/// The requests of each status, `0` being none, by the metrics.
fn by_metrics(metrics: &Metrics) -> BTreeMap<String, u64> {
    let name = "istio_requests_total";
    let codes = metrics.label_values(name, "response_code");
    let sum = |code: &str| {
        metrics
            .sum(name, &[("response_code", code)])
            .unwrap_or_default()
    };
    codes
        .into_iter()
        .map(|code| (code.to_owned(), sum(code) as u64))
        .collect()
}

#[test]
fn counts_agree() {
    let seed = Random::seed_from("MIX_SEED");
    // Small enough for JSON and Python to mean the same.
    let seed = seed % (1 << 32);
    println!("MIX_SEED={seed}");
    let mix = Mix::new("http-counts");
    let (crowd, counted) = mix.start(seed);
    let number = |value: &Value| value.as_u64().expect("a number");
    let held = &counted["held"];
    let (held_bytes, held_http) = (number(&held["bytes"]), number(&held["http"]));
    let streams = number(&counted["streams"]);
    assert!(held_http > 0 && held_bytes > 0, "{counted}");

    // What is open is what was opened and is not closed, by whoever counts.
    let tunnels = held_bytes + number(&held["tunnels"]);
    let agent = &mix.agent;
    agent.wait_for_metric("underpass_tunnels_active", &[], tunnels as f64);
    agent.wait_for_metric("underpass_proxy_connections_active", &[], tunnels as f64);
    let (opened, closed) = (
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
    );
    agent.wait_for_metric(opened, &[], streams as f64);
    agent.wait_for_metric(closed, &[], (streams - held_bytes) as f64);
    wait_for("all others are gone", MINUTE, || {
        let open = agent.admin("/connections");
        open.as_array()
            .is_some_and(|open| open.len() as u64 == held_bytes + held_http)
    });

    crowd.signal(Signal::SIGTERM);
    crowd.finish(MINUTE).expect_success();
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
    agent.wait_for_metric(closed, &[], streams as f64);
    wait_for("nothing is open", MINUTE, || {
        agent
            .admin("/connections")
            .as_array()
            .is_some_and(Vec::is_empty)
    });

    // Requests: of the workloads, of the metrics, of the log, of the targets.
    let statuses: BTreeMap<String, u64> =
        serde_json::from_value(counted["statuses"].clone()).must("read counts");
    let requests: u64 = statuses.values().sum();
    let metrics = agent.metrics();
    assert_eq!(by_metrics(&metrics), statuses);
    let records = agent.wait_for_accesses((requests + streams) as usize);
    assert_eq!(records.len() as u64, requests + streams);
    let mut logged: BTreeMap<String, u64> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    let of_requests = records
        .iter()
        .filter(|one| ids.insert(one.text("request_id")));
    let (mut up, mut down) = (0, 0);
    for record in of_requests.filter(|one| !one.text("request_id").is_empty()) {
        let status = record.text("status");
        let status = if status.is_empty() {
            "0".to_owned()
        } else {
            status
        };
        *logged.entry(status).or_default() += 1;
        up += record.number("bytes_sent");
        down += record.number("bytes_received");
    }
    assert_eq!(logged, statuses);
    let reached: BTreeSet<u64> =
        serde_json::from_value(counted["reached"].clone()).must("read numbers");
    assert_eq!(mix.reached(), reached);
    for (name, value) in [
        ("istio_request_duration_milliseconds_count", requests),
        ("istio_request_bytes_count", requests),
        ("istio_response_bytes_count", requests),
        ("istio_request_bytes_sum", up),
        ("istio_response_bytes_sum", down),
        ("istio_tcp_sent_bytes_total", number(&counted["echoed"])),
        ("istio_tcp_received_bytes_total", number(&counted["echoed"])),
        (opened, streams),
    ] {
        assert_eq!(metrics.sum(name, &[]), Some(value as f64), "{name}");
    }

    // Tunnels: of the metrics, and of the proxy.
    let asked = metrics
        .sum("underpass_tunnel_requests_total", &[])
        .unwrap_or_default() as usize;
    let log = mix.squid.wait_for_log(asked);
    assert_eq!(log.len(), asked);
    for code in [200, 503] {
        let by_proxy = log.iter().filter(|one| one.status == code).count();
        let labels = [("code", &*code.to_string())];
        let by_agent = metrics.sum("underpass_tunnel_requests_total", &labels);
        assert_eq!(by_agent, Some(by_proxy as f64), "{code}");
    }
    mix.scene.world.expect_no_direct_arrivals();
}
