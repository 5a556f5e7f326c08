//! Policy from the API of a cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::agent::Agent;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Scene, wait_for};

const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";
const ENTRIES: &str = "/apis/underpass.dev/v1alpha1/serviceentries";
const SECRETS: &str = "/api/v1/secrets";
const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const ISTIO_ENTRIES: &str = "/apis/networking.istio.io/v1/serviceentries";

const ROOT: &str = "underpass-system";

const SECONDS: Duration = Duration::from_secs(30);

/// A Tunnel for everything, through the world's proxy on this port.
fn tunnel(port: u16, more: Value) -> Value {
    let mut spec = json!({"targetHost": "AUTO_SNI", "proxy": {"host": PROXY_V4, "port": port}});
    if let (Some(spec), Value::Object(more)) = (spec["proxy"].as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "Tunnel", "spec": spec})
}

fn secret(token: &str) -> Value {
    // Base64 of what stands for itself in these tests.
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"token": token}})
}

/// What a condition of a Tunnel says: `STATUS REASON: MESSAGE`.
fn condition(api: &ApiServer, namespace: &str, name: &str, kind: &str) -> String {
    let tunnel = api.get(TUNNELS, namespace, name);
    let conditions = tunnel["status"]["conditions"].as_array().cloned();
    let found = conditions.iter().flatten().find(|it| it["type"] == kind);
    let word = |key: &str| found.and_then(|it| it[key].as_str()).unwrap_or_default();
    format!("{} {}: {}", word("status"), word("reason"), word("message"))
}

/// The proxies of the policy that is in force.
fn proxies(agent: &Agent) -> Vec<String> {
    let status = agent.admin("/status");
    let proxies = status["policy"]["proxies"].as_array().cloned();
    let texts = proxies.iter().flatten().filter_map(Value::as_str);
    let mut proxies: Vec<String> = texts.map(str::to_owned).collect();
    proxies.sort();
    proxies
}

#[track_caller]
fn wait_for_proxies(agent: &Agent, ports: &[u16]) {
    let expected: Vec<String> = ports
        .iter()
        .map(|port| format!("{PROXY_V4}:{port}"))
        .collect();
    wait_for(
        &format!("proxies {expected:?}\n{}", agent.tails()),
        SECONDS,
        || proxies(agent) == expected,
    );
}

fn start(scene: &Scene, api: &ApiServer) -> Agent {
    let mut agent = Agent::launch_in_cluster(scene, api, &[]);
    agent.wait_until_ready();
    agent
}

#[test]
fn what_is_applied_is_programmed_and_its_conditions_say_so() {
    let scene = Scene::new("kube");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = start(&scene, &api);
    let site = scene.curl("https://site.example/").args(["-4"]);

    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    wait_for_proxies(&agent, &[3128]);
    scene.captured(&site).expect_ok();
    assert_eq!(
        proxy.request_lines(1),
        ["CONNECT site.example:443 HTTP/1.1"]
    );
    let says = |kind: &str| condition(&api, ROOT, "all", kind);
    wait_for("it is programmed", SECONDS, || {
        says("Programmed").starts_with("True Programmed")
    });
    assert!(
        says("Accepted").starts_with("True Accepted"),
        "{}",
        says("Accepted")
    );

    // A bad version changes nothing but what is said of it.
    api.apply(
        TUNNELS,
        ROOT,
        "all",
        tunnel(3128, json!({"headers": {"Host": "other.example"}})),
    );
    wait_for("it is refused", SECONDS, || {
        says("Accepted").starts_with("False Invalid")
    });
    assert!(
        says("Accepted").contains("spec.proxy.headers.Host: `host` cannot be set"),
        "{}",
        says("Accepted")
    );
    assert!(
        says("Programmed").starts_with("False Invalid"),
        "{}",
        says("Programmed")
    );
    scene.captured(&site).expect_ok();
    proxy.request_lines(2);
    let rejected =
        |event: &Value| event["reason"] == "Rejected" && event["regarding"]["name"] == "all";
    wait_for("an event", SECONDS, || {
        api.list(EVENTS).iter().any(rejected)
    });
    let reload = agent.admin("/config_dump")["policy_reload"].clone();
    let place = "Tunnel underpass-system/all: spec.proxy.headers.Host: ";
    assert!(
        reload["problems"][0]
            .as_str()
            .is_some_and(|it| it.starts_with(place)),
        "{reload}"
    );

    // And neither does it hold up another.
    api.apply(TUNNELS, ROOT, "labelled", tunnel(3129, json!({})));
    wait_for_proxies(&agent, &[3128, 3129]);
    api.delete(TUNNELS, ROOT, "labelled");
    wait_for_proxies(&agent, &[3128]);
    api.apply(TUNNELS, ROOT, "all", tunnel(3130, json!({})));
    wait_for_proxies(&agent, &[3130]);
    wait_for("it is accepted", SECONDS, || {
        says("Programmed").starts_with("True")
    });

    api.delete(TUNNELS, ROOT, "all");
    wait_for_proxies(&agent, &[]);
    scene.world.expect_no_direct_arrivals();
    scene.captured(&site).expect_ok();
    proxy.request_lines(2);
}

#[test]
fn secrets_rotate_and_are_shown_nowhere() {
    let scene = Scene::new("kube-secret");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = start(&scene, &api);
    let with_login = json!({"authentication": {"credentialName": "login"}});
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, with_login));
    let says = || condition(&api, ROOT, "all", "Accepted");
    wait_for("the Secret is missing", SECONDS, || {
        says().contains("there is no Secret `login`")
    });
    api.apply(SECRETS, ROOT, "login", secret("YWxwaGEtNzM5MQ=="));
    wait_for("it is there", SECONDS, || says().starts_with("True"));

    let site = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    let shown = |count: usize| {
        proxy.request_lines(count);
        let request = proxy.requests().swap_remove(count - 1);
        request
            .header("Proxy-Authorization")
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(shown(1), "Bearer alpha-7391");
    let generation = agent.admin("/config_dump")["policy_generation"].as_u64();
    api.apply(SECRETS, ROOT, "login", secret("b21lZ2EtNzM5MQ=="));
    wait_for("another policy", SECONDS, || {
        agent.admin("/config_dump")["policy_generation"].as_u64() > generation
    });
    scene.captured(&site).expect_ok();
    assert_eq!(shown(2), "Bearer omega-7391");
    for secret in ["alpha-7391", "omega-7391", "YWxwaGEt", "hush-hush"] {
        assert!(!agent.tails().contains(secret), "{}", agent.tails());
        assert!(!agent.admin("/config_dump").to_string().contains(secret));
    }
    // It looks at no other Secret.
    let of_others =
        |uri: &String| uri.contains("/secrets") && !uri.contains("metadata.name%3Dlogin");
    let requests = api.requests();
    assert!(!requests.iter().any(of_others), "{requests:?}");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn policy_outlives_an_api_server_that_is_away_and_one_that_forgets() {
    let scene = Scene::new("kube-away");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    let mut agent = start(&scene, &api);
    let site = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();

    api.go_away(Duration::from_secs(4));
    let connected = |agent: &Agent| agent.admin("/status")["cluster"]["connected"].clone();
    wait_for("it is noticed", SECONDS, || connected(&agent) == false);
    assert_eq!(
        agent.metrics().sum("underpass_kubernetes_connected", &[]),
        Some(0.0)
    );
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.request_lines(2).len(), 2);
    assert!(agent.readiness().0, "{}", agent.readiness().1);
    // Meanwhile.
    api.apply(TUNNELS, ROOT, "other", tunnel(3129, json!({})));
    api.delete(TUNNELS, ROOT, "all");
    api.compact();
    wait_for_proxies(&agent, &[3129]);
    wait_for("it is back", SECONDS, || connected(&agent) == true);
    wait_for("the gauge", SECONDS, || {
        agent.metrics().sum("underpass_kubernetes_connected", &[]) == Some(1.0)
    });
    let log = agent.process().stderr();
    let said = |what: &str| log.matches(what).count();
    assert_eq!(said("the API server is not to be had"), 1, "{log}");
    assert_eq!(said("the API server is there again"), 1, "{log}");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn without_an_api_server_it_waits_and_says_for_what() {
    let scene = Scene::new("kube-start");
    let api = ApiServer::start(&scene);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let first = start(&scene, &api);
    // It is gone, and what it has captured stays refused.
    drop(first);
    let site = scene.curl("https://site.example/").args(["-4"]);
    assert_ne!(scene.captured(&site).exit, 0, "refused");
    api.go_away(Duration::from_secs(5));
    let mut second = Agent::launch_in_cluster(&scene, &api, &[]);
    let mut why = String::new();
    wait_for("it says why it is not ready", SECONDS, || {
        let asked = underpass_tests::http::get(
            scene.world.host(),
            underpass_tests::agent::READY,
            "/healthz/ready",
        );
        why = asked.map(|answer| answer.body).unwrap_or_default();
        why.contains("no policy from the API server yet")
    });
    assert_ne!(scene.captured(&site).exit, 0, "still refused");
    second.wait_until_ready();
    scene.captured(&site).expect_ok();
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn kinds_of_istio_are_taken_up_when_they_are_installed() {
    let scene = Scene::new("kube-istio");
    let api = ApiServer::start(&scene);
    let mut agent = start(&scene, &api);
    let mut by_entry = tunnel(3128, json!({"host": "proxy.example"}));
    if let Some(proxy) = by_entry["spec"]["proxy"].as_object_mut() {
        proxy.remove("port");
    }
    api.apply(TUNNELS, ROOT, "all", by_entry);
    let says = || condition(&api, ROOT, "all", "Accepted");
    wait_for("nobody tells the port", SECONDS, || {
        says().contains("spec.proxy.port")
    });
    assert_eq!(agent.admin("/status")["cluster"]["connected"], true);
    api.serve(ISTIO_ENTRIES);
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "spec": {"hosts": ["proxy.example"], "resolution": "DNS",
                 "ports": [{"number": 3128, "name": "proxy", "protocol": "HTTP"}]},
    });
    api.apply(ISTIO_ENTRIES, ROOT, "proxy", entry);
    wait_for("the entry does", SECONDS, || says().starts_with("True"));
    let log = agent.process().stderr();
    assert!(!log.contains("istio"), "{log}");
}

/// Nobody waits for a figure: what is printed is for people.
#[test]
fn five_thousand_services_and_how_fast_a_change_counts() {
    const SERVICES: usize = 5000;
    let scene = Scene::new("kube-many");
    let api = ApiServer::start(&scene);
    let agent = start(&scene, &api);
    let entries = (0..SERVICES).map(|number| {
        json!({
            "apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry",
            "metadata": {"name": format!("s-{number}"), "namespace": format!("team-{}", number % 50)},
            "spec": {"hosts": [format!("s-{number}.example.com")],
                     "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]},
        })
    });
    let start = Instant::now();
    api.apply_all(ENTRIES, entries.collect());
    let known = || agent.admin("/status")["cluster"]["objects"]["serviceentries"].as_u64();
    wait_for("all are known", SECONDS, || {
        known() == Some(SERVICES as u64)
    });
    println!(
        "{SERVICES} ServiceEntries are known after {:?}",
        start.elapsed()
    );

    let mut times = Vec::new();
    for round in 0..11_u16 {
        let port = 4000 + round;
        let start = Instant::now();
        api.apply(TUNNELS, ROOT, "all", tunnel(port, json!({})));
        wait_for_proxies(&agent, &[port]);
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "from apply to programmed, with them: median {:?}, all {times:?}",
        times[times.len() / 2]
    );
    let proxy = FakeProxy::start(
        scene.world.inet(),
        SocketAddr::from((PROXY_V4, 4010)),
        Answer::tunnel(),
    );
    scene
        .captured(&scene.curl("https://site.example/").args(["-4"]))
        .expect_ok();
    proxy.request_lines(1);
}
