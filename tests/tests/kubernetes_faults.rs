//! An API server that fails: policy stays as it was, and follows when there is something to follow.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use underpass_tests::addr::{OTHER_V4, PROXY_V4, proxy_v4};
use underpass_tests::agent::Agent;
use underpass_tests::cluster::{
    ENTRIES, ROOT, SECONDS, SECRETS, TUNNELS, events, is_connected, of_spec, proxies, secret,
    start, tunnel, wait_for_proxies, wait_until_programmed,
};
use underpass_tests::pki::{Authority, Request};
use underpass_tests::process::Running;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, wait_for};

/// What an agent that is well may take until it has noticed that a watch hangs, and a good deal more.
const NOTICED: Duration = Duration::from_secs(150);

const ISTIO_ENTRIES: &str = "/apis/networking.istio.io/v1/serviceentries";

/// A connection of a workload that stays, and says something now and then.
struct Held(Running);

impl Held {
    #[track_caller]
    fn start(scene: &Scene, port: u16) -> Self {
        let program = scene.program("rounds");
        let address = [OTHER_V4.to_string(), port.to_string()];
        let mut held = Self(program.args(address).arg("1").start());
        held.expect_echoes(1);
        held
    }

    /// It says something, and has it back.
    #[track_caller]
    fn say(&mut self) {
        let before = self.0.stdout().lines().count();
        self.0.signal(Signal::SIGUSR1);
        self.expect_echoes(before + 1);
    }

    #[track_caller]
    fn expect_echoes(&mut self, count: usize) {
        let running = &self.0;
        let lines = || running.stdout().lines().count();
        wait_for("another word came back", SECONDS, || lines() >= count);
        let heard = running.stdout();
        assert!(
            heard.lines().all(|line| line == r#"{"echoed": 1}"#),
            "{heard}"
        );
    }
}

#[track_caller]
fn said(agent: &mut Agent, what: &str) -> usize {
    agent.process().stderr().matches(what).count()
}

#[test]
fn answers_that_are_none_and_watches_that_break_are_got_over() {
    let scene = Scene::new("kube-faults");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    let mut agent = start(&scene, &api);
    let site = scene.curl("https://site.example/").args(["-4"]);
    let mut requests = 0;
    let mut is_in_force = || {
        scene.captured(&site).expect_ok();
        requests += 1;
        assert_eq!(proxy.request_lines(requests).len(), requests);
    };
    is_in_force();

    // A watch ends in the middle of an object, and no other can be had.
    for (port, status, after) in [(3129, 429, 1), (3130, 500, 0), (3131, 503, 1)] {
        api.answer(TUNNELS, status, after);
        api.cut(TUNNELS);
        let other = tunnel(port, json!({}));
        api.apply(TUNNELS, "team-a", "other", other);
        wait_for(&format!("{status} is noticed"), SECONDS, || {
            !is_connected(&agent)
        });
        let why = agent.admin("/status")["cluster"]["outage"]["reason"].clone();
        assert!(
            why.as_str()
                .is_some_and(|why| why.contains(&status.to_string())),
            "{why}"
        );
        assert!(!proxies(&agent).contains(&format!("{PROXY_V4}:{port}")));
        is_in_force();
        api.recover(TUNNELS);
        wait_for_proxies(&agent, &[3128, port]);
        wait_for("it is over", SECONDS, || is_connected(&agent));
    }
    assert_eq!(said(&mut agent, "the API server is not to be had"), 3);
    assert_eq!(said(&mut agent, "the API server is there again"), 3);

    // What is none of an object of a Tunnel, or no JSON, comes in between.
    for (number, line) in [
        r#"{"type":"ADDED","object":{"metadata":"none"}}"#,
        r#"{"type":"MODIFIED","object":{"apiVersion":"underpass.dev/v1alpha1","kind":"Tunnel",
            "metadata":{"name":"all","namespace":"underpass-system"},"spec":{}}}"#,
        r#"{"type":"NONSENSE","object":[]}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"of the test"}}"#,
        "no JSON at all",
        "{",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        api.say(TUNNELS, &line.replace('\n', " "));
        let port = 3140 + u16::try_from(number).must("a small number");
        api.apply(TUNNELS, "team-a", "other", tunnel(port, json!({})));
        wait_for_proxies(&agent, &[3128, port]);
        is_in_force();
    }
    assert!(agent.process().is_running());

    // What is not allowed any more is said once, however often it is tried, and is no outage.
    api.answer(ENTRIES, 403, 0);
    api.cut(ENTRIES);
    let entry = json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry",
                       "spec": {"hosts": ["a.example"]}});
    api.apply(ENTRIES, ROOT, "a", entry);
    let tries = || {
        let requests = api.requests().into_iter();
        requests
            .filter(|request| request.contains("/serviceentries?"))
            .count()
    };
    let before = tries();
    wait_for("it is tried again", SECONDS, || tries() > before + 2);
    assert!(is_connected(&agent));
    assert_eq!(said(&mut agent, "does not let us read serviceentries"), 1);
    api.recover(ENTRIES);
    wait_for("it is allowed again", SECONDS, || {
        agent.admin("/status")["cluster"]["objects"]["serviceentries"] == 1
    });
    assert_eq!(said(&mut agent, "logger\":\"kube"), 0);
    scene.world.expect_no_direct_arrivals();
}

/// Istio's kinds are not as strictly defined in these tests, so that what is stored can be nonsense.
#[test]
fn objects_that_cannot_be_read_hide_no_others_and_are_told_of() {
    let scene = Scene::new("kube-malformed");
    let api = ApiServer::start(&scene);
    api.serve(ISTIO_ENTRIES);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = start(&scene, &api);
    let entry = |spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "spec": spec});
    for (name, spec) in [
        ("hosts", json!({"hosts": 7})),
        (
            "ports",
            json!({"hosts": ["a.example"], "ports": {"number": "x"}}),
        ),
        ("hosts-in-hosts", json!({"hosts": [["a.example"]]})),
    ] {
        api.apply(ISTIO_ENTRIES, "team-a", name, entry(spec));
    }
    let mut with_login = tunnel(3128, json!({"authentication": {"credentialName": "login"}}));
    api.apply(TUNNELS, ROOT, "all", with_login.clone());
    let mut nonsense = secret("bm9uc2Vuc2U=");
    nonsense["data"]["token"] = "b@d!-nonsense".into();
    api.apply(SECRETS, ROOT, "login", nonsense);
    wait_for("all of them are told of", SECONDS, || {
        let told = events(&api, "Rejected");
        let is_told = |of: &str| told.iter().any(|event| event.starts_with(of));
        is_told("ServiceEntry team-a/hosts: spec.hosts: ")
            && is_told("ServiceEntry team-a/ports: spec.ports: ")
            && is_told("ServiceEntry team-a/hosts-in-hosts: spec.hosts[0]: ")
            && is_told("Secret underpass-system/login: data.token: ")
    });
    let told = events(&api, "Rejected").concat();
    assert!(!told.contains("b@d!-nonsense"), "{told}");

    with_login["spec"]["proxy"]["authentication"] = json!({"credentialName": "other"});
    api.apply(SECRETS, ROOT, "other", secret("c2Vuc2U="));
    api.apply(TUNNELS, ROOT, "all", with_login);
    wait_until_programmed(&api, ROOT, "all");
    let site = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    proxy.request_lines(1);
    drop(agent);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_bookmark_spares_a_watch_from_listing_anew() {
    let scene = Scene::new("kube-bookmark");
    let api = ApiServer::start_fake(&scene);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    let agent = start(&scene, &api);
    wait_for_proxies(&agent, &[3128]);
    let lists = || {
        let list = format!("GET {ENTRIES}?&limit=500");
        let requests = api.requests().into_iter();
        requests
            .filter(|request| request.starts_with(&list))
            .count()
    };
    let watches = || {
        let watch = format!("GET {ENTRIES}?&watch=true");
        let requests = api.requests().into_iter();
        requests
            .filter(|request| request.starts_with(&watch))
            .count()
    };
    assert_eq!((lists(), watches()), (1, 1), "{:#?}", api.requests());
    // Nothing happens to ServiceEntries while much does elsewhere, and is then forgotten.
    for port in 3129..3140 {
        api.apply(TUNNELS, ROOT, "all", tunnel(port, json!({})));
    }
    wait_for_proxies(&agent, &[3139]);
    api.compact();
    let version = api.version();
    let mark = json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry",
                      "metadata": {"resourceVersion": version}});
    api.say(
        ENTRIES,
        &json!({"type": "BOOKMARK", "object": mark}).to_string(),
    );
    api.go_away(Duration::from_millis(200));
    wait_for("the watch goes on", SECONDS, || watches() > 1);
    let entry = json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry",
                       "spec": {"hosts": ["a.example"]}});
    api.apply(ENTRIES, ROOT, "a", entry);
    wait_for("it is heard", SECONDS, || {
        agent.admin("/status")["cluster"]["objects"]["serviceentries"] == 1
    });
    assert_eq!(lists(), 1, "{:#?}", api.requests());
}

/// The server, or what is between, holds the connection and says nothing more.
#[test]
fn a_watch_that_hangs_is_given_up_for_another() {
    let scene = Scene::new("kube-hang");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    let mut agent = start(&scene, &api);
    api.hang(TUNNELS);
    let start = Instant::now();
    api.apply(TUNNELS, ROOT, "other", tunnel(3129, json!({})));
    let site = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    proxy.request_lines(1);
    let expected = [3128, 3129].map(|port| format!("{PROXY_V4}:{port}"));
    wait_for("another watch tells of it", NOTICED, || {
        proxies(&agent) == expected
    });
    println!("a watch that hangs is given up after {:?}", start.elapsed());
    let watches = |collection: &str| {
        let watch = format!("GET {collection}?&watch=true");
        let requests = api.requests().into_iter();
        requests
            .filter(|request| request.starts_with(&watch))
            .count()
    };
    assert_eq!(watches(TUNNELS), 2);
    // A bookmark keeps that of another kind, unless the server has none, as that of Kubernetes of a
    // kind of which it has seen no event.
    assert!((1..=2).contains(&watches(ENTRIES)), "{:#?}", api.requests());
    assert!(is_connected(&agent));
    assert_eq!(said(&mut agent, "logger\":\"kube"), 0);
    scene.world.expect_no_direct_arrivals();
}

/// It comes back with another certificate, of another authority, and wants another token, as after both
/// were rotated. Meanwhile a Secret has been, too.
#[test]
fn a_minute_without_api_server_changes_nothing_and_what_was_rotated_counts_after_it() {
    const AWAY: Duration = Duration::from_secs(60);
    const ECHO: u16 = 9000;
    let scene = Scene::new("kube-minute");
    let world = &scene.world;
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(world.inet(), proxy_v4(), Answer::tunnel());
    let _echo = Server::echo(world.inet(), (OTHER_V4, ECHO).into());
    let authority = Authority::new(world, "rotated");
    let identity = authority.issue(world, "api", &Request::server(&["DNS:site.example"]));
    let with_login = json!({
        "targetHost": "ORIGINAL_DST",
        "proxy": {"host": PROXY_V4, "port": 3128, "authentication": {"credentialName": "login"}},
    });
    api.apply(SECRETS, ROOT, "login", secret("YWxwaGEtNzM5MQ=="));
    api.apply(TUNNELS, ROOT, "all", of_spec(&with_login));
    let mut agent = start(&scene, &api);
    wait_until_programmed(&api, ROOT, "all");
    let mut held = Held::start(&scene, ECHO);

    let site = scene.curl("https://site.example/").args(["-4"]);
    let mut requests = proxy.request_lines(1).len();
    let mut shows = || {
        scene.captured(&site).expect_ok();
        requests += 1;
        proxy.request_lines(requests);
        let request = proxy.requests().swap_remove(requests - 1);
        let shown = request.header("Proxy-Authorization");
        shown.unwrap_or_default().to_owned()
    };
    assert_eq!(shows(), "Bearer alpha-7391");

    let start = Instant::now();
    api.go_away(AWAY);
    let [ca, token] = api.files();
    fs::copy(authority.certificate(), &ca).must("rotate the authority");
    fs::write(&token, "hush-again").must("rotate the token");
    api.become_another(&identity, "hush-again");
    api.apply(SECRETS, ROOT, "login", secret("b21lZ2EtNzM5MQ=="));
    wait_for("it is noticed", SECONDS, || !is_connected(&agent));
    while start.elapsed() < AWAY {
        assert_eq!(shows(), "Bearer alpha-7391");
        assert!(agent.readiness().0, "{}", agent.readiness().1);
        held.say();
        std::thread::sleep(Duration::from_secs(5));
    }
    // Files are read again within a minute, and a watch is tried again within 15 s.
    wait_for("it is back", NOTICED, || is_connected(&agent));
    wait_for("the other Secret counts", SECONDS, || {
        shows() == "Bearer omega-7391"
    });
    println!("back {:?} after it went", start.elapsed());
    held.say();
    assert_eq!(said(&mut agent, "the API server is not to be had"), 1);
    assert_eq!(said(&mut agent, "the API server is there again"), 1);
    assert_eq!(said(&mut agent, "hush"), 0);
    world.expect_no_direct_arrivals();
}
