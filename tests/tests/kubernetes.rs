//! Policy from the API of a cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::agent::Agent;
use underpass_tests::cluster::{
    ENTRIES, ROOT, SECONDS, SECRETS, TUNNELS, condition, events, is_connected, secret, start,
    tunnel, wait_for_proxies, wait_until_programmed,
};
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Scene, wait_for};

const ISTIO_ENTRIES: &str = "/apis/networking.istio.io/v1/serviceentries";

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
    wait_until_programmed(&api, ROOT, "all");
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
    let why = "Tunnel underpass-system/all: spec.proxy.headers.Host: `host` cannot be set";
    wait_for("an event", SECONDS, || {
        let events = events(&api, "Rejected");
        events.iter().any(|event| event.starts_with(why))
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
    wait_until_programmed(&api, ROOT, "all");

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
    wait_for("it is noticed", SECONDS, || !is_connected(&agent));
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
    wait_for("it is back", SECONDS, || is_connected(&agent));
    wait_for("the gauge", SECONDS, || {
        agent.metrics().sum("underpass_kubernetes_connected", &[]) == Some(1.0)
    });
    let log = agent
        .process()
        .wait_for_logged("the API server is there again");
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
    let waits_for = |expected: &str| {
        wait_for("it says why it is not ready", SECONDS, || {
            let asked = underpass_tests::http::get(
                scene.world.host(),
                underpass_tests::agent::READY,
                "/healthz/ready",
            );
            let why = asked.map(|answer| answer.body).unwrap_or_default();
            why.contains("no policy from the API server yet: ") && why.contains(expected)
        });
        assert_ne!(scene.captured(&site).exit, 0, "still refused");
    };
    // So it is for one that is not let in, or may not read what says what goes where.
    for (status, expected) in [(401, "401 Unauthorized"), (403, "let us read tunnels")] {
        api.answer(TUNNELS, status, 0);
        let refused = Agent::launch_in_cluster(&scene, &api, &[]);
        waits_for(expected);
        drop(refused);
        api.recover(TUNNELS);
    }
    api.go_away(Duration::from_secs(5));
    let mut second = Agent::launch_in_cluster(&scene, &api, &[]);
    waits_for("");
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
    assert!(is_connected(&agent));
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

    let mut in_force = Vec::new();
    let mut told = Vec::new();
    for round in 0..=20_u16 {
        let port = 4000 + round;
        let start = Instant::now();
        api.apply(TUNNELS, ROOT, "all", tunnel(port, json!({})));
        wait_for_proxies(&agent, &[port]);
        in_force.push(start.elapsed());
        wait_until_programmed(&api, ROOT, "all");
        told.push(start.elapsed());
    }
    for (what, mut times) in [("in force", in_force), ("Programmed in status", told)] {
        times.sort();
        println!(
            "from apply to {what}, with them: median {:?}, all {times:?}",
            times[times.len() / 2]
        );
    }
    let proxy = FakeProxy::start(
        scene.world.inet(),
        SocketAddr::from((PROXY_V4, 4020)),
        Answer::tunnel(),
    );
    scene
        .captured(&scene.curl("https://site.example/").args(["-4"]))
        .expect_ok();
    proxy.request_lines(1);
}
