//! The main promise: a program that knows of no proxy reaches an HTTPS site through one, and
//! notices nothing.

use underpass_tests::Scene;
use underpass_tests::addr::{HOST_V4, PROXY_V4, PROXY_V6, SITE_V4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::curl::Curl;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Logged, Squid};

#[test]
fn curl_reaches_an_https_site_through_squid() {
    let scene = Scene::new("https");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    for (number, (option, version)) in [("--http1.1", "1.1"), ("--http2", "2")].iter().enumerate() {
        let curl = scene
            .curl("https://site.example/page")
            .args([*option, "-4"]);
        let seen = scene.captured(&curl).expect_ok();
        assert_eq!(seen.body, Nginx::GREETING);
        assert_eq!(seen.http_version, *version);
        assert_eq!(
            seen.remote_ip,
            SITE_V4.to_string(),
            "the original destination"
        );
        assert_eq!(seen.verification, 0, "the site's own certificate");
        assert_eq!(seen.connect_status, 0, "curl used no proxy");

        let expected = Logged {
            method: "CONNECT".into(),
            target: "site.example:443".into(),
            status: 200,
            user: "-".into(),
        };
        assert_eq!(squid.wait_for_log(number + 1)[number], expected);
        let request = &scene.nginx.requests()[number];
        assert_ne!(
            request.peer,
            HOST_V4.to_string(),
            "the site must see the proxy"
        );
        assert_eq!(request.sni, "site.example");
        assert_eq!(request.path, "/page");
    }
    scene.world.expect_no_direct_arrivals();
    let at_proxy = [
        scene.world.arrivals_at(PROXY_V4),
        scene.world.arrivals_at(PROXY_V6),
    ];
    assert_eq!(
        at_proxy.concat().len(),
        2,
        "one connection to the proxy for each tunnel"
    );

    let record = agent.wait_for_access("the first request", |_| true);
    assert_eq!(record.text("original_dst"), "203.0.113.10:443");
    assert_eq!(record.text("target"), "site.example:443");
    assert_eq!(record.text("decision"), "tunnel");
    assert_eq!(record.text("policy"), "Tunnel/everything");
    assert_eq!(record.number("tunnel.code"), 200);
    assert_eq!(record.text("error"), "");
    // Redirected to a listener on loopback, the workload's end is there too.
    assert!(
        record.text("src.addr").starts_with("127.0.0.1:"),
        "{record:?}"
    );
    assert!(record.number("bytes_sent") > 300, "{record:?}");
    assert!(record.number("bytes_received") > 300, "{record:?}");
    agent.wait_for_metric("underpass_tunnel_requests_total", &[("code", "200")], 2.0);
    agent.wait_for_metric("underpass_capture_redirected_total", &[], 2.0);
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
}

#[test]
fn certificate_verification_stays_between_the_program_and_the_site() {
    let scene = Scene::new("verification");
    let squid = Squid::start(&scene.world);
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    // An authority curl does not know.
    let seen = scene.captured(&Curl::get("https://site.example/"));
    assert_eq!(seen.exit, 60, "{seen:?}");
    // A name that is not in the certificate, at the site's address.
    let wrong = "https://wrong.example/";
    let curl = scene
        .curl(wrong)
        .args(["--connect-to", "wrong.example:443:site.example:443"]);
    let seen = scene.captured(&curl);
    assert_ne!(seen.exit, 0, "{seen:?}");
    assert_eq!(squid.wait_for_log(1)[0].target, "site.example:443");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_is_not_in_the_cgroup_is_not_captured() {
    let scene = Scene::new("outside");
    let squid = Squid::start(&scene.world);
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let curl = scene.curl("https://site.example/").args(["-4"]);
    let seen = curl.run(scene.world.host().command("curl")).expect_ok();
    assert_eq!(seen.remote_ip, SITE_V4.to_string());
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    assert_eq!(scene.nginx.requests()[0].peer, HOST_V4.to_string());
    assert_eq!(squid.log(), []);
}
