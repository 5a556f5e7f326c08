//! TLS with clients, and HTTP/2.

use underpass_tests::curl::Seen;
use underpass_tests::pki::Request;
use underpass_tests::process::Running;

use super::*;

const TLS_PROXY: &str = "https://proxy.example:3128";

/// The scene's certificate is good for `proxy.example` too.
fn start_tls(scene: &Scene, options: &[&str]) -> Running {
    let (certificate, key) = (scene.pki.certificate(), scene.pki.key());
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    start(scene, &[&tls, options].concat())
}

fn by_tls(scene: &Scene, url: &str, options: &[&str]) -> Seen {
    let curl = scene.curl(url).args(["-4", "-x", TLS_PROXY]).args(options);
    let seen = curl.run(scene.world.host().command("curl"));
    scene.world.expect_no_direct_arrivals();
    seen
}

#[test]
fn tunnels_and_plain_http_go_over_tls() {
    let scene = Scene::new("gateway-tls");
    let mut gateway = start_tls(&scene, &["--allow", "*:443", "--allow", "*:80"]);
    let ca = scene.pki.ca().display().to_string();
    let trusting = ["--proxy-cacert", &ca];
    let seen = by_tls(&scene, "https://site.example/", &trusting).expect_ok();
    assert_eq!((seen.connect_status, seen.verification), (200, 0));
    let seen = by_tls(&scene, "http://site.example/", &trusting).expect_ok();
    assert_eq!(seen.connect_status, 0);
    for (version, spoken) in [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let openssl = scene.world.host().command("openssl").arg("s_client");
        let connect = ["-connect", "192.0.2.20:3128", "-CAfile", &ca, version];
        // What openssl itself has against a version must not decide.
        let options = ["-verify_return_error", "-cipher", "ALL:@SECLEVEL=0"];
        let done = openssl.args(connect).args(options).input("").run(SECONDS);
        assert_eq!(done.status.success(), spoken, "{version}: {done:?}");
    }
    // curl trusts nobody else's word for the proxy.
    let seen = by_tls(
        &scene,
        "https://site.example/",
        &["--proxy-cacert", "/dev/null"],
    );
    assert_ne!(seen.exit, 0, "{seen:?}");
    // In the clear there is nothing.
    let seen = by_proxy(&scene, "http://proxy.example:3128", "https://site.example/");
    assert_eq!((seen.status, seen.connect_status), (0, 0), "{seen:?}");
    gateway.stop();
    assert!(
        gateway.stderr().contains("tls=true"),
        "{}",
        gateway.stderr()
    );
}

#[test]
fn only_clients_with_a_certificate_are_served_where_that_is_wanted() {
    let scene = Scene::new("gateway-mutual");
    let ca = scene.pki.ca().display().to_string();
    let _gateway = start_tls(&scene, &["--tls-client-ca", &ca]);
    let client = scene
        .pki
        .authority()
        .issue(&scene.world, "client", &Request::client("workload"));
    let certificate = client.certificate.display().to_string();
    let key = client.key.display().to_string();
    let trusting = ["--proxy-cacert", &*ca];
    let own = ["--proxy-cert", &*certificate, "--proxy-key", &*key];
    let url = "https://site.example/";
    by_tls(&scene, url, &[&trusting[..], &own[..]].concat()).expect_ok();
    let seen = by_tls(&scene, url, &trusting);
    assert_eq!((seen.exit != 0, seen.connect_status), (true, 0), "{seen:?}");
}

#[test]
fn tunnels_of_many_clients_share_connections_of_http2() {
    let scene = Scene::new("gateway-h2");
    let metrics = "192.0.2.20:9901";
    let rules = ["--allow", "*:*", "--metrics-addr", metrics];
    for tls in [false, true] {
        let mut gateway = if tls {
            start_tls(&scene, &rules)
        } else {
            start(&scene, &rules)
        };
        // Another's implementation: it takes tunnels over HTTP/1.1 and asks for them over HTTP/2.
        let scheme = if tls {
            "tls;sni=proxy.example;proto=h2"
        } else {
            "proto=h2"
        };
        let ca = scene.pki.ca();
        let front = SocketAddr::from(([192, 0, 2, 20], 3129));
        let nghttpx = scene
            .world
            .inet()
            .command("nghttpx")
            .args(["--conf=/dev/null", "--workers=1", "--http2-proxy"])
            .arg(format!("--frontend={},{};no-tls", front.ip(), front.port()))
            .arg(format!("--backend=192.0.2.20,3128;;{scheme}"))
            .arg(format!("--cacert={}", ca.display()));
        let mut nghttpx = nghttpx.start();
        nghttpx.wait_until_listening(scene.world.inet(), front);
        for _ in 0..3 {
            let seen = by_proxy(&scene, "http://proxy.example:3129", "https://site.example/");
            assert_eq!(seen.expect_ok().connect_status, 200);
        }
        let refused = by_proxy(&scene, "http://proxy.example:3129", "http://127.0.0.1/");
        assert_eq!(refused.connect_status, 403);
        let address = metrics.parse().expect("an address");
        let scrape = underpass_tests::http::get(scene.world.inet(), address, "/metrics");
        let scrape = scrape.must("scrape").body;
        let requests = "{code=\"200\",method=\"connect\",protocol=\"http2\"} 3";
        assert!(scrape.contains(requests), "{scrape}");
        // Before that only whoever waited until it listened, once or twice.
        nghttpx.stop();
        gateway.stop();
        let log = gateway.stderr();
        let clients: std::collections::BTreeSet<&str> = log
            .lines()
            .filter(|line| line.contains("CONNECT site.example:443 HTTP/2.0"))
            .filter_map(|line| line.split(" client=").nth(1)?.split(' ').next())
            .collect();
        assert_eq!(clients.len(), 1, "one connection: {log}");
    }
}
