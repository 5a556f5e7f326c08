//! How connections begin and end: a workload sees through each kind of tunnel what it would see
//! without an agent, or, where the proxy itself takes something away, what a client of that proxy
//! sees.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use socket2::SockRef;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::Options;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::squid::{self, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, World, poll};

const MINUTE: Duration = Duration::from_secs(60);

/// Where the first of the servers is; the others follow in the order of PORTS in `manners.py`.
const PORT: u16 = 9000;

/// A target that cannot be reached is told of at once. Whoever waited for anything would wait for
/// longer than this: the agent's own deadline for a tunnel is 15 s.
const AT_ONCE: f64 = 5.0;

/// What comes drop by drop.
const DRIPS: &str = "drop by drop by drop ";

/// What a workload sees where nothing is taken away.
const INTACT: [(&str, &str); 11] = [
    ("gone", "closed"),
    ("silent", "whole, end"),
    ("first", "whole, end"),
    ("last", "whole, end"),
    ("both", "whole, end"),
    ("pieces", "whole"),
    ("drips", "whole, end"),
    ("greeted", "hello\n"),
    ("reset", "whole, reset"),
    ("resets", "closed"),
    ("refused", "reset"),
];

/// The servers that the cases are about.
struct Stage {
    gone: Server,
    first: Server,
    last: Server,
    /// How those that were greeted ended.
    greeted: Arc<Mutex<Vec<&'static str>>>,
    _others: Vec<Server>,
    world: World,
}

impl Stage {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let inet = world.inet();
        let at = |offset: u16| SocketAddr::from((OTHER_V4, PORT + offset));
        let greeted = Arc::<Mutex<Vec<&'static str>>>::default();
        let ends = Arc::clone(&greeted);
        let others = vec![
            Server::sink(inet, at(1)),
            Server::echo(inet, at(4)),
            Server::start(inet, at(5), |stream, _| drop(drip(stream))),
            Server::start(inet, at(6), |stream, _| drop(reset(stream))),
            Server::start(inet, at(7), move |stream, _| {
                let end = if greet(stream).is_ok() {
                    "end"
                } else {
                    "reset"
                };
                ends.lock().push(end);
            }),
        ];
        Self {
            gone: Server::sink(inet, at(0)),
            first: Server::sink(inet, at(2)),
            last: Server::source(inet, at(3), 251 * 12_000),
            greeted,
            _others: others,
            world,
        }
    }

    /// What a program in `cgroup` sees, which asks `proxy` itself if there is one.
    #[track_caller]
    fn seen(&self, cgroup: &Cgroup, proxy: Option<SocketAddr>) -> BTreeMap<String, Value> {
        let program = self.world.host().python("manners").in_cgroup(cgroup);
        let program = program.args([OTHER_V4.to_string(), PORT.to_string()]);
        let program = program.args(proxy.map(|proxy| proxy.to_string()));
        let said = program.run(MINUTE).expect_success().stdout;
        serde_json::from_str(&said).must("read what the program says")
    }

    /// What a workload sees; who is refused must be told at once.
    #[track_caller]
    fn captured(&self) -> BTreeMap<String, Value> {
        let mut seen = self.seen(self.world.workload(), None);
        let seconds = seen.remove("seconds").and_then(|value| value.as_f64());
        assert!(seconds.is_some_and(|it| it < AT_ONCE), "{seconds:?} s");
        seen
    }

    /// The servers have heard all of this many runs, and each end as the workload meant it; a proxy
    /// takes away what there is in the cases `but`.
    #[track_caller]
    fn expect_heard(&self, runs: usize, but: &[&str]) {
        // What it has answered, the program has checked.
        let whole = self.first.wait_for_reports(runs)[0];
        assert!(whole.complete && whole.received > 0, "{whole:?}");
        for (case, server) in [
            ("gone", &self.gone),
            ("first", &self.first),
            ("last", &self.last),
        ] {
            if !but.contains(&case) {
                let reports = server.wait_for_reports(runs);
                assert!(reports.iter().all(|it| *it == whole), "{case}: {reports:?}");
            }
        }
        let all = || Some(self.greeted.lock().clone()).filter(|ends| ends.len() == 2 * runs);
        let ends = poll(MINUTE, all).unwrap_or_else(|| panic!("{:?}", self.greeted.lock()));
        let resets = ends.iter().filter(|end| **end == "reset").count();
        let expected = if but.contains(&"resets") { 0 } else { runs };
        assert_eq!(resets, expected, "{ends:?}");
    }
}

/// Sends drop by drop, and ends.
fn drip(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    for byte in DRIPS.repeat(20).bytes() {
        stream.write_all(&[byte])?;
    }
    Ok(())
}

/// Resets as soon as something comes.
fn reset(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Speaks first, and listens to the end.
fn greet(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"hello\n")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// What is seen where nothing is taken away.
fn intact() -> BTreeMap<String, Value> {
    let seen = INTACT.map(|(case, what)| (case.to_owned(), Value::from(what)));
    seen.into()
}

/// By address, so that no name server is needed, and with nothing read.
fn policy(protocol: &str) -> String {
    let policy = tunnel_policy(&["targetHost: ORIGINAL_DST"]);
    let protocol = format!("192.0.2.20\n    protocol: {protocol}");
    policy.replace("proxy.example", &protocol)
}

#[test]
fn our_gateway_takes_nothing_away_over_either_version() {
    for (version, protocol) in ["HTTP-CONNECT", "HTTP2-CONNECT"].into_iter().enumerate() {
        let stage = Stage::new(&format!("manners-gateway-{version}"));
        let _gateway = Gateway::start(&stage.world);
        let _agent = Agent::start(&stage.world, &policy(protocol));
        assert_eq!(stage.captured(), intact(), "{protocol}");
        stage.expect_heard(1, &[]);
        stage.world.expect_no_direct_arrivals();
    }
}

#[test]
fn reading_the_first_bytes_takes_nothing_away() {
    let stage = Stage::new("manners-inspected");
    let _gateway = Gateway::start(&stage.world);
    let policy = tunnel_policy(&[]).replace("proxy.example", "192.0.2.20");
    let agent = Agent::start(&stage.world, &policy);
    assert_eq!(stage.captured(), intact());
    stage.expect_heard(1, &[]);
    let inspected = agent.metrics().sum("underpass_inspection_total", &[]);
    assert_eq!(inspected, Some(INTACT.len() as f64));
    stage.world.expect_no_direct_arrivals();
}

/// To Envoy an answer that has ended ends the exchange: it resets the stream, whatever client it has.
/// What the window had no room for is lost then, and so is what the workload would say. At least that
/// is no end to the workload. To the target a stream that was reset looks like one that has ended.
#[test]
fn envoy_takes_no_more_away_over_http2_than_what_comes_last_and_resets() {
    let stage = Stage::new("manners-envoy");
    let options = Options::default();
    let _envoy = envoy::start(&stage.world, &options, Versions::Http2);
    let _agent = Agent::start(&stage.world, &policy("HTTP2-CONNECT"));
    let mut captured = stage.captured();
    let last = captured.remove("last").expect("a case");
    let told = |it: &str| it == "whole, end" || it.ends_with(", reset");
    assert!(last.as_str().is_some_and(told), "{last}");
    let mut expected = intact();
    expected.remove("last");
    assert_eq!(captured, expected);
    stage.expect_heard(1, &["last", "resets"]);
    stage.world.expect_no_direct_arrivals();
}

/// Squid closes both directions when one ends, whoever its client is.
#[test]
fn squid_takes_away_what_it_takes_from_its_own_clients() {
    let stage = Stage::new("manners-squid");
    let ports: Vec<u16> = (PORT..PORT + 9).collect();
    let options = squid::Options {
        connect_ports: &ports,
        ..squid::Options::default()
    };
    let _squid = Squid::start_with(&stage.world, &options);
    let _agent = Agent::start(&stage.world, &policy("HTTP-CONNECT"));
    let explicit = stage.seen(stage.world.services(), Some(proxy_v4()));
    let mut captured = stage.captured();
    // How much of it still comes back depends on who is faster.
    for seen in [&explicit["both"], &captured.remove("both").expect("a case")] {
        assert!(
            seen.as_str().is_some_and(|it| it.ends_with(", end")),
            "{seen}"
        );
    }
    let mut expected = intact();
    expected.remove("both");
    for case in ["silent", "first", "reset"] {
        expected.insert(case.into(), explicit[case].clone());
    }
    assert_eq!(captured, expected);
    stage.expect_heard(2, &["last", "resets"]);
    stage.world.expect_no_direct_arrivals();
}

#[test]
fn what_goes_direct_is_as_without_an_agent() {
    let stage = Stage::new("manners-direct");
    let without = stage.seen(stage.world.workload(), None);
    let policy = format!(
        "apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata: {{ name: free }}\n\
         spec: {{ workloadSelector: {{ cgroups: ['{}'] }}, action: Direct }}\n\
         ---\n{}",
        stage.world.workload().name(),
        policy("HTTP-CONNECT")
    );
    let agent = Agent::start(&stage.world, &policy);
    let mut with = stage.captured();
    assert_eq!(with, intact());
    // `connect` has succeeded before the agent knows that nobody is there.
    with.insert("refused".into(), "ConnectionRefusedError".into());
    let compared = without.iter().filter(|(case, _)| *case != "seconds");
    assert!(compared.eq(&with), "{without:?}");
    stage.expect_heard(2, &[]);
    let log = agent.wait_for_accesses(INTACT.len());
    assert!(
        log.iter().all(|it| it.text("decision") == "direct"),
        "{log:?}"
    );
}
