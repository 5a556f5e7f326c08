//! What DestinationRules and VirtualServices say of targets: limits, times, retries, and when a
//! target is refused.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, OTHER_V6};
use underpass_tests::agent::{Access, Agent, tunnel_policy, underpass};
use underpass_tests::curl::{Curl, Seen};
use underpass_tests::process::Running;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Scene, poll, wait_for};

const SECONDS: Duration = Duration::from_secs(20);
const REFUSED: &str = "underpass_target_refused_total";
const RETRIES: &str = "underpass_target_retries_total";

/// Where `moods.py` is; on `NOBODY` nobody is.
const PORT: u16 = 8080;
const NOBODY: u16 = 8081;

/// Squid, and `moods.py` behind it at `other.example`.
struct Behind {
    agent: Agent,
    moods: Running,
    squid: Squid,
    scene: Scene,
}

/// A document about `other.example`.
fn document(kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: other}}\nspec:\n  \
         {spec}\n"
    )
}

fn limits(policy: &str) -> String {
    let spec = format!("host: other.example\n  trafficPolicy: {{{policy}}}");
    document("DestinationRule", &spec)
}

fn routes(http: &str) -> String {
    document(
        "VirtualService",
        &format!("hosts: [other.example]\n  http: [{http}]"),
    )
}

#[track_caller]
fn moods(scene: &Scene, address: SocketAddr) -> Running {
    let inet = scene.world.inet();
    let args = [address.ip().to_string(), address.port().to_string()];
    let mut moods = inet.python("moods").args(args).start();
    moods.wait_until_listening(inet, address);
    moods
}

impl Behind {
    #[track_caller]
    fn new(name: &str, documents: &[String]) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[7, PORT, NOBODY],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let moods = moods(&scene, SocketAddr::from((OTHER_V4, PORT)));
        let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + &documents.concat()));
        Self {
            agent,
            moods,
            squid,
            scene,
        }
    }

    fn curl(path: &str) -> Curl {
        Curl::get(&format!("http://other.example:{PORT}{path}"))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Seen {
        self.scene.captured(&Self::curl(path))
    }

    fn start(&self, curl: &Curl) -> Running {
        let curl = curl.command_line();
        self.scene.workload("curl").args(&curl[1..]).start()
    }

    /// A request that takes until it is killed, and has reached the target.
    #[track_caller]
    fn begin(&self, path: &str) -> Running {
        let before = self.requests().len();
        let running = self.start(&Self::curl(path));
        wait_for("the request to arrive", SECONDS, || {
            self.requests().len() > before
        });
        running
    }

    /// What the target was asked for.
    fn requests(&self) -> Vec<String> {
        self.moods.stdout().lines().map(str::to_owned).collect()
    }

    /// How often the target was asked for this.
    fn count(&self, line: &str) -> usize {
        let line = format!("{line} HTTP/1.1");
        self.requests()
            .iter()
            .filter(|asked| **asked == line)
            .count()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.agent.metrics().sum(name, labels).unwrap_or_default()
    }

    /// The record of the request with these flags.
    #[track_caller]
    fn record(&self, flags: &str) -> Access {
        self.agent
            .wait_for_access(flags, |access| access.text("flags") == flags)
    }
}

#[test]
fn a_request_has_so_much_time_to_the_end_of_its_answer() {
    let timeout = routes("{match: [{uri: {prefix: /wait}}, {uri: {exact: /drip}}], timeout: 1s}");
    let behind = Behind::new("target-timeout", &[timeout]);
    let late = behind.get("/wait?for=me");
    assert_eq!(late.status, 504, "{late:?}");
    assert!(
        late.body
            .contains("no answer within 1s (timeout of VirtualService/other)"),
        "{late:?}"
    );
    assert!(late.elapsed >= Duration::from_secs(1), "{late:?}");
    let record = behind.record("UT");
    assert_eq!(record.number("status"), 504);

    // The answer has begun, so all that can be said is that it is not whole.
    let cut = behind.get("/drip");
    assert!(cut.exit != 0 && cut.status == 200, "{cut:?}");
    behind
        .agent
        .wait_for_access("the answer that was cut", |access| {
            access.text("flags") == "UT" && access.number("status") == 200
        });
    // Other requests have all the time they like.
    let mut other = behind.begin("/mute/1/a");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(other.is_running());
    other.kill();
}

#[test]
fn what_failed_is_tried_again_as_policy_has_it() {
    let http = "{match: [{uri: {prefix: /mute}}], retries: {attempts: 3, perTryTimeout: 500ms, \
                retryOn: reset}},
                {match: [{uri: {prefix: /drop}}], retries: {attempts: 1, retryOn: reset}},
                {match: [{uri: {prefix: /status}}], retries: {attempts: 2, retryOn: '418'}},
                {match: [{uri: {prefix: /plain}}], timeout: 20s},
                {retries: {attempts: 3, retryOn: gateway-error}}";
    let behind = Behind::new("target-retries", &[routes(http)]);

    behind.get("/fail/2/a").expect_ok();
    assert_eq!(behind.count("GET /fail/2/a"), 3);
    let record = behind
        .agent
        .wait_for_access("retries", |access| access.number("status") == 200);
    assert_eq!(
        (record.number("retries"), record.text("flags").as_str()),
        (2, "")
    );
    let service = [("destination_service", "other.example")];
    assert_eq!(behind.metric(RETRIES, &service), 2.0);

    behind.get("/mute/2/a").expect_ok();
    assert_eq!(behind.count("GET /mute/2/a"), 3);
    behind.get("/drop/1/a").expect_ok();
    assert_eq!(behind.count("GET /drop/1/a"), 2);

    // Often enough is enough; the last answer is the answer.
    let seen = behind.get("/fail/9/a");
    assert_eq!((seen.status, seen.body.as_str()), (503, "1\n"), "{seen:?}");
    assert_eq!(behind.count("GET /fail/9/a"), 4);
    let record = behind.record("URX");
    assert_eq!(
        (record.number("status"), record.number("retries")),
        (503, 3)
    );
    let labels = [("response_code", "503"), ("response_flags", "URX")];
    assert_eq!(behind.metric("istio_requests_total", &labels), 1.0);
    let seen = behind.get("/drop/9/a");
    assert_eq!(seen.status, 502, "{seen:?}");
    assert_eq!(behind.count("GET /drop/9/a"), 2);
    behind.agent.wait_for_access("no answer at last", |access| {
        access.text("flags") == "URX" && access.number("status") == 502
    });

    // What may not be repeated is not, nor what policy does not name.
    let post = Behind::curl("/fail/1/post").args(["--data", "x"]);
    assert_eq!(behind.scene.captured(&post).status, 503);
    assert_eq!(behind.count("POST /fail/1/post"), 1);
    let empty = Behind::curl("/fail/1/empty").args(["--request", "POST"]);
    assert_eq!(behind.scene.captured(&empty).status, 503);
    assert_eq!(behind.count("POST /fail/1/empty"), 1);
    for (path, times) in [("/status/418", 3), ("/status/503", 1), ("/plain/503", 1)] {
        behind.get(path);
        assert_eq!(behind.count(&format!("GET {path}")), times, "{path}");
    }
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_connection_that_fails_is_tried_again_whatever_the_request() {
    let http = "{match: [{uri: {exact: /}}], retries: {attempts: 2, retryOn: connect-failure}},
                {timeout: 15s, retries: {attempts: 100, retryOn: connect-failure}}";
    let behind = Behind::new("target-connect", &[routes(http)]);
    let url = format!("http://other.example:{NOBODY}/");
    let post = Curl::get(&url).args(["--data", "x"]);
    let seen = behind.scene.captured(&post);
    assert_eq!(seen.status, 503, "{seen:?}");
    let expected = vec![format!("other.example:{NOBODY}"); 3];
    assert_eq!(behind.squid.connects(3), expected);
    let record = behind.record("URX");
    assert_eq!(record.number("retries"), 2);

    // Another is there only after the first tries.
    let post = Curl::get(&format!("{url}status/200")).args(["--data", "x"]);
    let curl = behind.start(&post);
    assert!(behind.squid.connects(5).len() >= 5);
    // Squid remembers for a while which of two addresses was of no use.
    let _v4 = moods(&behind.scene, SocketAddr::from((OTHER_V4, NOBODY)));
    let _v6 = moods(&behind.scene, SocketAddr::from((OTHER_V6, NOBODY)));
    let done = curl.finish(SECONDS);
    assert_eq!(done.stdout, "1\n", "{done:?}");
}

#[test]
fn no_more_requests_than_policy_allows() {
    let limit = limits("connectionPool: {http: {http2MaxRequests: 1}}");
    let behind = Behind::new("target-requests", &[limit]);
    let first = behind.begin("/wait");
    let seen = behind.get("/");
    assert_eq!(seen.status, 503, "{seen:?}");
    let why = "other.example:8080 has 1 requests already (http2MaxRequests)";
    assert!(seen.body.contains(why), "{seen:?}");
    let record = behind.record("UO");
    assert_eq!(record.number("status"), 503);
    let labels = [
        ("destination_service", "other.example"),
        ("reason", "requests"),
    ];
    assert_eq!(behind.metric(REFUSED, &labels), 1.0);
    first.signal(Signal::SIGTERM);
    poll(SECONDS, || (behind.get("/").status == 200).then_some(())).expect("room again");
    assert_eq!(behind.count("GET /"), 1);
}

#[test]
fn a_request_waits_for_a_connection_and_an_idle_one_gives_way() {
    let limit = limits(
        "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, \
         maxRequestsPerConnection: 2}}",
    );
    let behind = Behind::new("target-connections", &[limit]);
    // Three requests of one program, on two connections.
    let url = |path: &str| format!("http://other.example:{PORT}{path}");
    let many = behind
        .scene
        .workload("curl")
        .args(["--silent", &url("/"), &url("/"), &url("/")]);
    let done = many.run(SECONDS).expect_success();
    assert_eq!(done.stdout, "1\n2\n1\n");
    assert_eq!(behind.squid.connects(2).len(), 2);

    // One is idle, of a program that is still there, and waits for somebody else.
    let inet = behind.scene.world.inet();
    let silent = Server::sink(inet, SocketAddr::from((OTHER_V4, 7)));
    let both = Behind::curl("/idle").args(["http://other.example:7/"]);
    let _idle = behind.start(&both);
    wait_for("the second request", SECONDS, || {
        silent.open_connections() == 1
    });
    let busy = behind.begin("/wait");
    // Of two more one may wait, and the other is one too many.
    let mut both: Vec<_> = ["/after", "/more"]
        .map(|path| behind.start(&Behind::curl(path)))
        .into();
    let refused = poll(SECONDS, || {
        both.iter_mut().position(|curl| !curl.is_running())
    });
    let refused = both.remove(refused.expect("one too many that wait"));
    let refused = refused.finish(SECONDS);
    assert!(
        refused.stdout.contains("(http1MaxPendingRequests)"),
        "{refused:?}"
    );
    let mut waiting = both.remove(0);
    assert!(waiting.is_running());
    busy.signal(Signal::SIGTERM);
    let done = waiting.finish(SECONDS);
    assert!(done.status.success() && done.stdout == "1\n", "{done:?}");
    behind.scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_target_that_keeps_failing_is_refused_until_a_try_succeeds() {
    let fragile =
        limits("outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 2s, interval: 10s}");
    let behind = Behind::new("target-outlier", &[fragile]);
    behind.get("/").expect_ok();
    for _ in 0..2 {
        assert_eq!(behind.get("/status/500").status, 500);
    }
    let refused = behind.get("/");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        refused.body.contains("other.example:8080 has kept failing"),
        "{refused:?}"
    );
    let record = behind.record("UH");
    assert_eq!(record.number("status"), 503);
    let service = ("destination_service", "other.example");
    assert_eq!(
        behind.metric("underpass_target_ejections_total", &[service]),
        1.0
    );
    assert_eq!(
        behind.metric(REFUSED, &[service, ("reason", "ejected")]),
        1.0
    );
    // Others are not its business.
    assert_eq!(behind.count("GET /"), 1);

    // The first one to try when it is over fails, and it is refused for longer.
    let failed = poll(SECONDS, || {
        (behind.get("/status/500").status == 500).then_some(())
    });
    failed.expect("a try");
    assert_eq!(
        behind.metric("underpass_target_ejections_total", &[service]),
        2.0
    );
    assert_eq!(behind.get("/").status, 503);
    let well = poll(SECONDS, || (behind.get("/").status == 200).then_some(()));
    well.expect("a try that succeeds");
    behind.get("/").expect_ok();
}

#[test]
fn connections_of_bytes_are_limited_and_closed_when_they_are_idle() {
    let limit = limits("connectionPool: {tcp: {maxConnections: 2, idleTimeout: 2s}}");
    // The server speaks for no name, so the address says whose it is.
    let entry = document(
        "ServiceEntry",
        &format!(
            "hosts: [other.example]\n  addresses: [{OTHER_V4}]\n  ports: [{{number: 7, name: echo, \
             protocol: TCP}}]"
        ),
    );
    let behind = Behind::new("target-tcp", &[limit, entry]);
    let inet = behind.scene.world.inet();
    let echo = Server::echo(inet, SocketAddr::from((OTHER_V4, 7)));
    let hold = behind.scene.program("hold");
    let held = hold.args(["203.0.113.11", "7", "3", "in-turn"]).start();
    let outcomes = poll(SECONDS, || {
        let said = held.stdout();
        (said.lines().count() == 3).then_some(said)
    });
    assert_eq!(outcomes.as_deref(), Some("answered\nanswered\nreset\n"));
    let record = behind.record("UO");
    assert!(
        record.text("error").contains("(maxConnections)"),
        "{record:?}"
    );
    let labels = [
        ("destination_service", "other.example"),
        ("reason", "connections"),
    ];
    assert_eq!(behind.metric(REFUSED, &labels), 1.0);
    // The program holds both, and says nothing.
    behind.record("SI");
    wait_for("both to end", SECONDS, || echo.open_connections() == 0);
    let again = behind
        .scene
        .program("hold")
        .args(["203.0.113.11", "7", "1", "in-turn"])
        .start();
    let answered = poll(SECONDS, || (again.stdout() == "answered\n").then_some(()));
    answered.expect("room again");
}

#[test]
fn a_connection_that_takes_too_long_is_given_up() {
    let limit = limits("connectionPool: {tcp: {connectTimeout: 1s}}");
    let behind = Behind::new("target-connect-timeout", &[limit]);
    behind.get("/").expect_ok();
    behind.squid.signal(Signal::SIGSTOP);
    let seen = behind.get("/");
    behind.squid.signal(Signal::SIGCONT);
    assert_eq!(seen.status, 504, "{seen:?}");
    assert!(seen.elapsed < Duration::from_secs(10), "{seen:?}");
    behind.record("UT");
}

#[test]
fn what_is_in_force_is_explained() {
    let scene = Scene::new("target-explain");
    let documents = [
        tunnel_policy(&[]),
        limits("connectionPool: {tcp: {maxConnections: 7}}, outlierDetection: {}"),
        routes(
            "{match: [{uri: {prefix: /a}, method: {exact: GET}}], timeout: 2s, retries: {attempts: \
                3, retryOn: '5xx,429'}}, {}",
        ),
    ];
    let file = scene.world.dir().join("policy.yaml");
    std::fs::write(&file, documents.concat()).expect("write a policy");
    let explain = underpass(&scene.world)
        .args([
            "explain",
            "other.example:80",
            "--address",
            "203.0.113.11",
            "--policy",
        ])
        .arg(&file);
    let said = explain.run(SECONDS).expect_success().stdout;
    let expected = "  limits:         maxConnections 7, consecutive5xxErrors 5, baseEjectionTime \
                    30s, interval 10s, by DestinationRule/other\n  \
                    requests:       by VirtualService/other\n    \
                    GET /a*: timeout 2s, 3 retries on 5xx,429, backoff 25ms\n    \
                    *: no timeout, no retries\n";
    assert!(said.contains(expected), "{said}\n{expected}");
}
