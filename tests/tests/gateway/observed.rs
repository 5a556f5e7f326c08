//! What an operator sees.

use std::collections::BTreeSet;

use underpass_tests::agent::tunnel_policy;
use underpass_tests::http;

use super::*;

#[test]
fn its_metrics_are_those_of_its_document() {
    let scene = Scene::new("gateway-metrics");
    let metrics = SocketAddr::from(([192, 0, 2, 20], 9901));
    let file = secret_file(&scene, "tokens", "ci:token\n");
    let path = file.display().to_string();
    // Nobody is there, and it goes on without.
    let policy = scene.world.dir().join("policy.yaml");
    let open = tunnel_policy(&["failureMode: open"]).replace("port: 3128", "port: 1");
    fs::write(&policy, open).must("write a policy");
    let policy = policy.display().to_string();
    let options = [
        ["--metrics-addr", "192.0.2.20:9901"],
        ["--tokens", &path],
        ["--policy", &policy],
    ]
    .concat();
    let mut gateway = start(&scene, &options);
    assert_eq!(status(&scene, "site.example:443"), "407");
    let request = "CONNECT site.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer token";
    let (head, tunnel) = ask(&scene, request);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let scrape = || {
        let answer = http::get(scene.world.inet(), metrics, "/metrics").must("scrape");
        answer.body
    };
    let active = "underpass_gateway_tunnels_active{protocol=\"http1\"} ";
    gateway.wait_for("the tunnel is counted", SECONDS, || {
        scrape().contains(&format!("{active}1"))
    });
    gateway.signal(Signal::SIGHUP);
    gateway.wait_for("the reload is counted", SECONDS, || {
        scrape().contains("{result=\"success\",what=\"tokens\"} 1")
    });
    drop(tunnel);
    gateway.wait_for("the tunnel has ended", SECONDS, || {
        scrape().contains(&format!("{active}0"))
    });
    let scrape = scrape();
    for sample in [
        "underpass_gateway_denied_total{reason=\"credentials\"} 1",
        "{code=\"407\",method=\"connect\",protocol=\"http1\"} 1",
        "underpass_tunnel_requests_total{code=\"none\",policy=\"Tunnel/everything\",\
         protocol=\"http1-connect\",proxy=\"proxy.example:1\"} 1",
        "underpass_proxy_connections_failures_total{endpoint=\"proxy.example:1\",\
         proxy=\"proxy.example:1\",reason=\"tcp_refused\"} 1",
        "underpass_gateway_routes_total{route=\"direct\"} 1",
    ] {
        assert!(scrape.contains(sample), "{scrape}");
    }
    assert!(!scrape.contains("site.example"), "{scrape}");
    let families: BTreeSet<&str> = scrape
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateway.md");
    let document = fs::read_to_string(document).must("read the document");
    let documented: BTreeSet<&str> = document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| span.starts_with("underpass_"))
        .collect();
    assert_eq!(documented, families);
}
