//! Requests that can be understood in two ways, and others that are none: nothing of them reaches a
//! target, whether they come first on a connection or behind a request that was served.

use std::net::{IpAddr, SocketAddr};

use underpass_tests::Scene;
use underpass_tests::addr::SITE_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::smuggling::{LATER, answers, expect_refused, shapes, shown};

const SITE: SocketAddr = SocketAddr::new(IpAddr::V4(SITE_V4), 80);

/// Behind every shape: the request that would be smuggled in.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// Before it, if it is not the first.
const GOOD: &str = "GET /good HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// By which TLS is originated for the site.
const ENCRYPTED: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: site}
spec:
  hosts: [site.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: site}
spec:
  host: site.example
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: CA}}
";

/// Sends each shape with the request to be smuggled behind it, first alone and then behind a good one.
#[track_caller]
fn none_arrives(name: &str, spec: &[&str], more: &str, port: &str) {
    let scene = Scene::new(name);
    let options = Options {
        connect_ports: &[80],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let more = more.replace("CA", &scene.pki.ca().display().to_string());
    let agent = Agent::start(&scene.world, &(tunnel_policy(spec) + &more));
    let mut shapes = shapes("");
    assert!(shapes.len() >= 80, "{}", shapes.len());

    let alone: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{shape}{SMUGGLED}"))
        .collect();
    let alone = answers(scene.program("raw"), SITE, &alone);
    for (shape, (answer, _)) in shapes.iter().zip(&alone) {
        expect_refused(shape, answer);
    }
    let records = agent.wait_for_accesses(shapes.len());
    assert_eq!(records.len(), shapes.len(), "one for each");
    let others = records.iter().filter(|one| one.text("flags") != "DPE");
    let others: Vec<_> = others.collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(squid.log(), []);
    assert_eq!(scene.nginx.requests(), []);

    let refused = shapes.len();
    shapes.extend(LATER.map(str::to_owned));
    let behind: Vec<String> = shapes
        .iter()
        .map(|shape| format!("{GOOD}{shape}{SMUGGLED}"))
        .collect();
    for (shape, (answer, _)) in shapes
        .iter()
        .zip(answers(scene.program("raw"), SITE, &behind))
    {
        let rest = answer.strip_prefix("HTTP/1.1 200 OK\r\n");
        let rest = rest.unwrap_or_else(|| panic!("{:?} spoils {answer:?}", shown(shape)));
        let at = rest.find("HTTP/1.1 ").unwrap_or(rest.len());
        expect_refused(shape, &rest[at..]);
    }
    // One connection and one request of each client, all of them good.
    let asked = match spec {
        [] => format!("site.example:{port}"),
        _ => "http://site.example/good".to_owned(),
    };
    let log = squid.wait_for_log(shapes.len()).into_iter();
    let log: Vec<String> = log.map(|line| line.target).collect();
    assert_eq!(log, vec![asked; shapes.len()]);
    let requests = scene.nginx.requests();
    let paths: Vec<&str> = requests.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, vec!["/good"; shapes.len()]);
    assert!(requests.iter().all(|one| one.port == port), "{requests:?}");
    let all = refused + 2 * shapes.len();
    assert_eq!(agent.wait_for_accesses(all).len(), all, "one for each");
    let labels = [("response_code", "200")];
    agent.wait_for_metric("istio_requests_total", &labels, shapes.len() as f64);
    agent.wait_for_metric("istio_requests_total", &[], all as f64);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn none_of_eighty_shapes_arrives() {
    none_arrives("smuggling", &[], "", "80");
}

#[test]
fn none_of_them_arrives_by_originated_tls() {
    none_arrives("smuggling-tls", &[], ENCRYPTED, "443");
}

#[test]
fn none_of_them_arrives_in_absolute_form() {
    let spec = ["  plainHTTP: ABSOLUTE_FORM"];
    none_arrives("smuggling-absolute", &spec, "", "80");
}
