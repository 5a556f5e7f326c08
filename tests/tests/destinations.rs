//! As whose connections bytes count that nobody reads: by the name that policy declares, if it is
//! known which.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::Scene;
use underpass_tests::addr::{OTHER_V4, SITE_V4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;

const MINUTE: Duration = Duration::from_secs(60);

/// None of them has addresses.
const SERVICES: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: site}
spec:
  hosts: [site.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: direct, labels: {go: direct}}
spec:
  hosts: [v4.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: direct}
spec: {selector: {matchLabels: {go: direct}}, action: Direct}
";

#[test]
fn a_name_that_tls_tells_is_that_of_its_service() {
    let scene = Scene::new("destinations");
    let _squid = Squid::start_with(&scene.world, &Options::default());
    let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + SERVICES));
    let count = |host: &str, direct: bool, services: [f64; 3]| {
        let curl = scene.curl(&format!("https://{host}/")).args(["-4"]);
        scene.captured(&curl).expect_ok();
        let names = ["site.example", "v4.example", "PassthroughCluster"];
        for (service, expected) in names.iter().zip(services) {
            let labels = [
                ("destination_service", *service),
                ("request_protocol", "tcp"),
            ];
            let metric = "istio_tcp_connections_closed_total";
            if expected > 0.0 {
                agent.wait_for_metric(metric, &labels, expected);
            } else {
                assert_eq!(agent.metrics().sum(metric, &labels), None, "{service}");
            }
        }
        let closed: f64 = services.iter().sum();
        let mut log = agent.wait_for_accesses(closed as usize);
        let last = log.pop().expect("a record");
        assert_eq!(last.text("decision") == "direct", direct, "{last:?}");
    };
    count("site.example", false, [1.0, 0.0, 0.0]);
    count("v4.example", true, [1.0, 1.0, 0.0]);
    // So does a request.
    let url = "http://v4.example/";
    scene.captured(&scene.curl(url)).expect_ok();
    let requests = [
        ("destination_service", "v4.example"),
        ("response_code", "200"),
    ];
    agent.wait_for_metric("istio_requests_total", &requests, 1.0);

    // Who merely claims the name of what goes direct does not count as that.
    let claimed = format!("v4.example:443:{OTHER_V4}");
    let curl = scene
        .curl("https://v4.example/")
        .args(["--resolve", &claimed]);
    scene.captured(&curl);
    let passes = [("destination_service", "PassthroughCluster")];
    let metric = "istio_tcp_connections_closed_total";
    agent.wait_for_metric(metric, &passes, 1.0);
    // What goes direct is at the site, and went nowhere else.
    assert!(!scene.world.arrivals_at(SITE_V4).is_empty());
    assert_eq!(scene.world.arrivals_at(OTHER_V4), []);
}

/// What would never pass as a request, of which policy says that it is none.
#[test]
fn what_is_declared_tcp_or_tls_is_not_read_as_http() {
    let scene = Scene::new("destinations-bytes");
    let options = Options {
        connect_ports: &[8080, 8081],
        ..Options::default()
    };
    let _squid = Squid::start_with(&scene.world, &options);
    let inet = scene.world.inet();
    let echo = |port: u16| Server::echo(inet, SocketAddr::from((OTHER_V4, port)));
    let _echoes = [echo(8080), echo(8081)];
    let service = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other}
spec:
  hosts: [other.example]
  addresses: [203.0.113.11]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 8080, name: tcp, protocol: TCP}, {number: 8081, name: tls, protocol: TLS}]
";
    let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + service));
    let said =
        r"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (port, count) in [("8080", 1.0), ("8081", 2.0)] {
        let talk = scene
            .program("talk")
            .args([OTHER_V4.to_string().as_str(), port, said]);
        let heard = talk.run(MINUTE).expect_success().stdout;
        assert!(heard.ends_with(&format!("b'{said}'\n")), "{heard}");
        let labels = [
            ("destination_service", "other.example"),
            ("request_protocol", "tcp"),
        ];
        agent.wait_for_metric("istio_tcp_connections_closed_total", &labels, count);
    }
    assert_eq!(agent.metrics().sum("istio_requests_total", &[]), None);
    scene.world.expect_no_direct_arrivals();
}
