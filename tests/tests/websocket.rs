//! WebSocket (RFC 6455) between a client and a server that others wrote, plain and with TLS
//! originated for the target.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Access, Agent, tunnel_policy};
use underpass_tests::process::Running;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Scene, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// All that the client says when all is well.
const SAID: &str = "text 5\ntext 1048576\nbinary 1048576\nbinary 0\nfragments 13\npong\ncrowd\n\
    closed 4001 that was all\n/close 4002 your turn\n/vanish 1006 \n";

/// All that the server hears: 1006 is for a connection that ended without a word.
const HEARD: [&str; 4] = [
    "/abort 1006 ",
    "/close 4002 your turn",
    "/talk 4001 that was all",
    "/vanish 1006 ",
];

/// A workload that says `ws://other.example:8080`; the server listens on `port`.
#[track_caller]
fn speaks(name: &str, port: u16, more: impl Fn(&Scene) -> String, tls: bool) {
    let scene = Scene::new(name);
    let options = Options {
        connect_ports: &[port],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let mut server = server(&scene, port, tls);
    let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + &more(&scene)));

    let client = scene.world.host().debian_python("ws_client");
    let client = client.in_cgroup(scene.world.workload());
    let client = client.arg("ws://other.example:8080");
    let said = client.run(MINUTE).expect_success().stdout;
    assert_eq!(said, SAID, "{}\n{}", agent.tails(), server.tails());
    let heard = || {
        let said = server.stdout();
        let mut heard: Vec<String> = said.lines().map(str::to_owned).collect();
        heard.sort();
        heard
    };
    wait_for("the server heard how each ended", MINUTE, || {
        heard().len() == HEARD.len()
    });
    assert_eq!(heard(), HEARD);
    assert!(server.is_running());
    let asked = squid.connects(4);
    assert_eq!(asked, vec![format!("other.example:{port}"); 4]);

    let records = agent.wait_for_accesses(4);
    assert_eq!(records.len(), 4, "one for each: {records:?}");
    assert!(records.iter().all(|one| one.text("status") == "101"));
    let flags: Vec<String> = records.iter().map(|one| one.text("flags")).collect();
    // Without TLS an end is an end, since Squid says no more of it.
    let vanished = if tls { "UC" } else { "" };
    assert_eq!(flags, ["", "", vanished, "DC"], "{records:?}");
    let moved = |one: &Access| one.number("bytes_sent").min(one.number("bytes_received"));
    assert!(moved(&records[0]) > 1 << 20, "{records:?}");
    let counted = [("response_code", "101"), ("request_protocol", "http")];
    agent.wait_for_metric("istio_requests_total", &counted, 4.0);
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    scene.world.expect_no_direct_arrivals();
}

#[track_caller]
fn server(scene: &Scene, port: u16, tls: bool) -> Running {
    let inet = scene.world.inet();
    let mut server = inet
        .debian_python("ws_server")
        .args([OTHER_V4.to_string(), port.to_string()]);
    if tls {
        server = server.arg(scene.pki.certificate()).arg(scene.pki.key());
    }
    let mut server = server.start();
    server.wait_until_listening(inet, SocketAddr::from((OTHER_V4, port)));
    server
}

#[test]
fn plain() {
    speaks("websocket", 8080, |_| String::new(), false);
}

#[test]
fn with_tls_originated() {
    let rule = |scene: &Scene| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other}}
spec:
  hosts: [other.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{number: 8080, name: http, protocol: HTTP, targetPort: 8443}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: other}}
spec:
  host: other.example
  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}
",
            scene.pki.ca().display()
        )
    };
    speaks("websocket-tls", 8443, rule, true);
}
