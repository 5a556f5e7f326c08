//! Through further proxies, as a policy says.

use std::path::Path;

use super::*;
use crate::app::PolicySource;
use crate::dns::Resolver;
use crate::policy::{Options, Paths};
use crate::sockets::PlainSockets;
use crate::tunnel::TunnelConfig;

/// A policy with a Tunnel for everything, through the proxy on loopback with this port.
fn tunnel(port: u16, spec: &str) -> String {
    format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: all}}\nspec:\n  \
         proxy: {{host: 127.0.0.1, port: {port}{spec}}}\n"
    )
}

/// A Tunnel that denies connections to the host `name`.
fn deny(name: &str) -> String {
    format!(
        "---\napiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: nobody}}\n\
         spec: {{action: Deny, selector: {{matchLabels: {{for: nobody}}}}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: it, labels: {{for: nobody}}}}\n\
         spec: {{hosts: [{name}], location: MESH_EXTERNAL, resolution: NONE, \
         ports: [{{number: 443, name: tls, protocol: TLS}}]}}\n"
    )
}

fn write(directory: &Path, policy: &str) {
    fs::write(directory.join("policy.yaml"), policy).unwrap();
}

/// A gateway with the policy of this directory.
async fn chained(directory: &Path, rest: GatewayConfig) -> Running {
    let paths = Paths {
        policy: vec![directory.to_owned()],
        secrets: Vec::new(),
    };
    let policy = follow_policy(PolicySource::files(paths, Options::default()));
    let resolver = Resolver::from_system(Arc::new(PlainSockets));
    let limits = TunnelConfig {
        deadline: rest.connect_timeout,
    };
    start_with(|metrics| GatewayConfig {
        chain: Some(Chain::new(policy.unwrap(), resolver, limits, metrics)),
        ..rest
    })
    .await
}

/// A gateway with this policy, to everywhere.
async fn start_by(policy: &str) -> (Running, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), policy);
    let rules = GatewayConfig {
        deny: vec!["203.0.113.64/28".parse().unwrap()],
        ..allow(&["*:*"])
    };
    let gateway = chained(directory.path(), rules).await;
    (gateway, directory)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// What proxies said.
const TUNNELS: &str = "underpass_tunnel_requests_total";

const AGREED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

#[tokio::test]
async fn a_tunnel_leads_through_the_proxy_of_the_policy() {
    let proxy = Server::new().await;
    let headers = ", headers: {x-asked: '{target.host}'}";
    let (gateway, _policy) = start_by(&tunnel(proxy.port(), headers)).await;
    // One that has an address here, and one that only the proxy can resolve.
    for name in ["denied.example", "nowhere.example"] {
        let mut client = Client::new(&gateway).await;
        let asked = format!(
            "CONNECT {name}:443 HTTP/1.1\r\nVia: 1.1 before\r\n\
             Proxy-Authorization: Basic bm90OmZvcg==\r\n\r\n"
        );
        client.0.write_all(asked.as_bytes()).await.unwrap();
        let mut upstream = proxy.accept().await;
        let request = head(&mut upstream).await;
        let mut lines = request.lines();
        assert_eq!(lines.next(), Some(&*format!("CONNECT {name}:443 HTTP/1.1")));
        assert!(request.contains("\r\nvia: 1.1 before\r\nvia: 1.1 underpass-"));
        assert!(
            request.contains(&format!("\r\nx-asked: {name}\r\n")),
            "{request}"
        );
        assert!(!request.contains("Basic"), "{request}");
        upstream.write_all(AGREED).await.unwrap();
        upstream.write_all(b"early").await.unwrap();
        assert_eq!(client.answer().await.status(), "200");
        let mut early = [0; 5];
        client.0.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        client.0.write_all(b"there").await.unwrap();
        let mut there = [0; 5];
        upstream.read_exact(&mut there).await.unwrap();
        // Its end is the client's end, and its failure the client's failure.
        client.0.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut there).await.unwrap(), 0);
        crate::sockets::reset_on_close(&upstream);
        drop(upstream);
        client.rest().await.unwrap_err();
    }
    let routes = "underpass_gateway_routes_total";
    let labels = [("route", "tunnel")];
    gateway.wait_for_metric(routes, &labels, 2.0).await;
    // The way to proxies is counted as the agent counts its own.
    let proxy = format!("127.0.0.1:{}", proxy.port());
    let place = [("proxy", &*proxy), ("endpoint", &*proxy)];
    let connected = "underpass_proxy_connections_total";
    gateway.wait_for_metric(connected, &place, 2.0).await;
    let active = "underpass_proxy_connections_active";
    gateway.wait_for_metric(active, &place, 0.0).await;
    let asked = [
        ("proxy", &*proxy),
        ("policy", "Tunnel/all"),
        ("protocol", "http1-connect"),
        ("code", "200"),
    ];
    gateway.wait_for_metric(TUNNELS, &asked, 2.0).await;
    let stands = "underpass_tunnels_active";
    let kind = [asked[0], asked[2]];
    gateway.wait_for_metric(stands, &kind, 0.0).await;
    let phases = "underpass_tunnel_establish_duration_seconds_count";
    let phase = [("proxy", &*proxy), ("phase", "connect")];
    gateway.wait_for_metric(phases, &phase, 2.0).await;
}

#[tokio::test]
async fn clients_of_http2_are_led_there_as_well() {
    let proxy = Server::new().await;
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &tunnel(proxy.port(), ""));
    let config = GatewayConfig {
        post_tunnels: true,
        ..allow(&["*:*"])
    };
    let gateway = chained(directory.path(), config).await;
    let mut client = http2::Client::new(&gateway).await;
    for (method, uri) in [
        ("CONNECT", "nowhere.example:443"),
        ("POST", "https://nowhere.example:443/"),
    ] {
        let asking = client.ask(method, uri);
        let proxying = async {
            let mut upstream = proxy.accept().await;
            let request = head(&mut upstream).await;
            upstream.write_all(AGREED).await.unwrap();
            request
        };
        let (answer, request) = tokio::join!(asking, proxying);
        assert_eq!(answer.status().as_u16(), 200, "{method}");
        assert!(request.starts_with("CONNECT nowhere.example:443 HTTP/1.1\r\n"));
        assert!(request.contains("\r\nvia: 2 underpass-"), "{request}");
    }
}

#[tokio::test]
async fn plain_http_is_forwarded_inside_a_tunnel() {
    let proxy = Server::new().await;
    let (gateway, _policy) = start_by(&tunnel(proxy.port(), "")).await;
    let mut client = Client::new(&gateway).await;
    let asked = "GET http://nowhere.example/page HTTP/1.1\r\nHost: nowhere.example\r\n\r\n";
    client.0.write_all(asked.as_bytes()).await.unwrap();
    let mut upstream = proxy.accept().await;
    let request = head(&mut upstream).await;
    assert!(
        request.starts_with("CONNECT nowhere.example:80 "),
        "{request}"
    );
    upstream.write_all(AGREED).await.unwrap();
    let request = head(&mut upstream).await;
    assert!(request.starts_with("GET /page HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains("\r\nHost: nowhere.example\r\n"),
        "{request}"
    );
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfound";
    upstream.write_all(answer).await.unwrap();
    let answer = client.answer().await;
    assert_eq!((answer.status(), &*answer.body), ("200", "found"));

    // Who speaks first is no server of HTTP.
    let mut client = Client::new(&gateway).await;
    client.0.write_all(asked.as_bytes()).await.unwrap();
    let mut upstream = proxy.accept().await;
    head(&mut upstream).await;
    let banner = [AGREED, b"220 mail.example\r\n"].concat();
    upstream.write_all(&banner).await.unwrap();
    assert_eq!(client.answer().await.status(), "502");
}

#[tokio::test]
async fn the_rules_hold_before_the_policy_and_for_all_that_is_known() {
    let proxy = Server::new().await;
    let policy = tunnel(proxy.port(), "") + &deny("empty.example");
    let (gateway, _policy) = start_by(&policy).await;
    for (target, reason) in [
        ("to-denied.example:443", "a deny rule"),
        ("203.0.113.66:443", "a deny rule"),
        // What is internal to the policy goes directly, which the rules do not allow.
        ("here.example:443", "loopback"),
        ("127.0.0.1:443", "loopback"),
        ("private.example:443", "private"),
        ("second.example:443", "loopback"),
        // The proxy may go to either.
        ("mixed.example:443", "private"),
        (
            "empty.example:443",
            "Tunnel/nobody of this gateway's policy denies it",
        ),
    ] {
        let answer = Client::new(&gateway).await.connect(target).await;
        assert_eq!(answer.status(), "403", "{target}: {}", answer.body);
        assert!(answer.body.contains(reason), "{target}: {}", answer.body);
    }
    let asked = timeout(Duration::from_millis(50), proxy.accept()).await;
    assert!(asked.is_err(), "the proxy was asked");
    let labels = [("route", "deny")];
    let routes = "underpass_gateway_routes_total";
    gateway.wait_for_metric(routes, &labels, 8.0).await;
    let denied = "underpass_gateway_denied_total";
    let labels = [("reason", "policy")];
    gateway.wait_for_metric(denied, &labels, 1.0).await;
}

#[tokio::test]
async fn a_name_that_only_an_address_could_allow_has_to_have_one() {
    let proxy = Server::new().await;
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &tunnel(proxy.port(), ""));
    let rules = allow(&["203.0.113.0/24:443"]);
    let gateway = chained(directory.path(), rules).await;
    for (target, status) in [
        ("nowhere.example:443", "403"),
        ("empty.example:443", "403"),
        ("private.example:443", "403"),
        ("denied.example:443", "200"),
    ] {
        let mut client = Client::new(&gateway).await;
        let asking = client.connect(target);
        let proxying = async {
            if status == "200" {
                proxy.accept().await.write_all(AGREED).await.unwrap();
            }
        };
        let (answer, ()) = tokio::join!(asking, proxying);
        assert_eq!(answer.status(), status, "{target}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_the_proxy_says_is_not_taken_for_the_gateways_own_word() {
    let proxy = Server::new().await;
    let (gateway, _policy) = start_by(&tunnel(proxy.port(), "")).await;
    for (said, status) in [
        ("403 Forbidden", "403"),
        // The client has no credentials for that proxy, and is not to give its own.
        ("407 Proxy Authentication Required", "502"),
        ("502 Bad Gateway", "502"),
        ("504 Gateway Timeout", "504"),
        ("508 Loop Detected", "508"),
        ("301 Moved", "502"),
    ] {
        let mut client = Client::new(&gateway).await;
        let asking = client.connect("nowhere.example:443");
        let proxying = async {
            let mut upstream = proxy.accept().await;
            head(&mut upstream).await;
            let answer = format!("HTTP/1.1 {said}\r\nContent-Length: 0\r\n\r\n");
            upstream.write_all(answer.as_bytes()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(asking, proxying);
        assert_eq!(answer.status(), status, "{said}: {}", answer.body);
        assert_eq!(answer.field("proxy-authenticate"), None);
    }
    let port = proxy.port();
    drop(proxy);
    let answer = Client::new(&gateway)
        .await
        .connect("nowhere.example:443")
        .await;
    assert_eq!(answer.status(), "502");
    let named = format!("through proxy 127.0.0.1:{port}");
    assert!(answer.body.contains(&named), "{}", answer.body);
}

#[tokio::test]
async fn a_proxy_that_says_nothing_leaves_time_for_the_next() {
    let (silent, proxy) = (Server::new().await, Server::new().await);
    let policy = format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: all}}\nspec:\n  \
         proxies:\n  - {{host: 127.0.0.1, port: {}}}\n  \
         - {{host: 127.0.0.1, port: {}, priority: 1}}\n",
        silent.port(),
        proxy.port()
    );
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &policy);
    let config = GatewayConfig {
        connect_timeout: Duration::from_secs(1),
        ..allow(&["*:*"])
    };
    let gateway = chained(directory.path(), config).await;
    let mut client = Client::new(&gateway).await;
    let asking = client.connect("nowhere.example:443");
    let proxying = async {
        let mut upstream = proxy.accept().await;
        head(&mut upstream).await;
        upstream.write_all(AGREED).await.unwrap();
        upstream
    };
    let (answer, _upstream) = tokio::join!(asking, proxying);
    assert_eq!(answer.status(), "200", "{}", answer.body);
    let silent = format!("127.0.0.1:{}", silent.port());
    let unanswered = [("proxy", &*silent), ("code", "none")];
    gateway.wait_for_metric(TUNNELS, &unanswered, 1.0).await;
    let why = [("proxy", &*silent), ("reason", "connect_timeout")];
    let failures = "underpass_proxy_connections_failures_total";
    gateway.wait_for_metric(failures, &why, 1.0).await;
    let retries = "underpass_tunnel_retries_total";
    gateway.wait_for_metric(retries, &why, 1.0).await;
    let proxy = format!("127.0.0.1:{}", proxy.port());
    let well = [("proxy", &*proxy), ("protocol", "http1-connect")];
    let stands = "underpass_tunnels_active";
    gateway.wait_for_metric(stands, &well, 1.0).await;
}

#[tokio::test]
async fn of_a_policy_that_is_partly_wrong_the_rest_is_in_force() {
    let proxy = Server::new().await;
    let all = tunnel(proxy.port(), "");
    let (gateway, policy) = start_by(&format!("{all}{}", deny("first.example"))).await;
    // The ServiceEntry is wrong now, and a Tunnel is new.
    let wrong = deny("first.example").replace("resolution: NONE", "resolution: MAGIC");
    let more = deny("second.example").replace("nobody", "others");
    let more = more.replace("{name: it,", "{name: that,");
    write(policy.path(), &format!("{all}{wrong}{more}"));
    gateway.wait_for_reload("policy", "partial").await;
    for target in ["first.example:443", "second.example:443"] {
        let answer = Client::new(&gateway).await.connect(target).await;
        assert_eq!(answer.status(), "403", "{target}: {}", answer.body);
    }
    write(policy.path(), &all);
    gateway.wait_for_reload("policy", "success").await;
}

#[tokio::test]
async fn another_policy_is_taken_and_a_circle_ends() {
    let proxy = Server::new().await;
    let (gateway, policy) = start_by(&tunnel(proxy.port(), "")).await;
    write(policy.path(), "kind: Nonsense\n");
    gateway.wait_for_reload("policy", "failure").await;
    let mut client = Client::new(&gateway).await;
    let asking = client.connect("nowhere.example:443");
    let (answer, ()) = tokio::join!(asking, async {
        proxy.accept().await.write_all(AGREED).await.unwrap();
    });
    assert_eq!(answer.status(), "200", "the last good one");
    drop(client);

    write(policy.path(), &tunnel(gateway.address.port(), ""));
    gateway.wait_for_reload("policy", "success").await;
    let answer = Client::new(&gateway)
        .await
        .connect("nowhere.example:443")
        .await;
    assert_eq!(answer.status(), "508", "{}", answer.body);
    let labels = [("reason", "loop")];
    let denied = "underpass_gateway_denied_total";
    gateway.wait_for_metric(denied, &labels, 1.0).await;
    let labels = [("route", "tunnel")];
    let routes = "underpass_gateway_routes_total";
    gateway.wait_for_metric(routes, &labels, 2.0).await;
}
