//! The goal of the design: an application that speaks plain HTTP, TLS by its DestinationRule inside
//! the tunnel, and metrics for the target as well as for the proxy.

#![expect(clippy::print_stdout, reason = "what is counted is there to be read")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use underpass_tests::addr::{PROXY_V4, PROXY_V6, SITE_V4};
use underpass_tests::agent::{Agent, Endpoints, METRICS, tunnel_policy, underpass};
use underpass_tests::curl::Curl;
use underpass_tests::http;
use underpass_tests::pki::{Pki, Request};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::nginx::{self, Nginx};
use underpass_tests::servers::squid::{Options, Squid, TLS_PORT};
use underpass_tests::{Must as _, World};

/// What curl sends.
const ASKED: &str =
    "GET / HTTP/1.1\r\nHost: www.google.com\r\nUser-Agent: c\r\nAccept: */*\r\n\r\n";

/// A world in which www.google.com and Squid are, and nothing else.
struct Goal {
    nginx: Nginx,
    squid: Squid,
    _dns: Dns,
    pki: Pki,
    world: World,
}

impl Goal {
    /// `proxy` is the name of the proxy, which also speaks TLS.
    #[track_caller]
    fn new(name: &str, proxy: &str) -> Self {
        let world = World::new(name);
        let names: [(&str, &[IpAddr]); 2] = [
            ("www.google.com", &[IpAddr::V4(SITE_V4)]),
            (proxy, &[IpAddr::V4(PROXY_V4), IpAddr::V6(PROXY_V6)]),
        ];
        let dns = Dns::start_with(&world, &names, 0);
        let pki = Pki::new(&world);
        let issue = |name: &str, host: &str| {
            let host = format!("DNS:{host}");
            let names = [host.as_str()];
            pki.authority()
                .issue(&world, name, &Request::server(&names))
        };
        let options = nginx::Options {
            identity: &issue("google", "www.google.com"),
            clients: None,
        };
        let nginx = Nginx::start_with(&world, &options);
        let options = Options {
            tls: Some(&issue("proxy", proxy)),
            ..Options::default()
        };
        let squid = Squid::start_with(&world, &options);
        Self {
            nginx,
            squid,
            _dns: dns,
            pki,
            world,
        }
    }

    /// An agent that trusts the authority of this world as whom the system trusts.
    #[track_caller]
    fn agent(&self, policy: &str) -> Agent {
        let program = underpass(&self.world)
            .in_cgroup(self.world.services())
            .env("SSL_CERT_FILE", self.pki.ca());
        let mut agent = Agent::launch(program, &self.world, policy, &[], Endpoints::default());
        agent.wait_until_ready();
        agent
    }

    /// Two requests of one workload, and what the proxy and the target must have seen of them.
    #[track_caller]
    fn reach(&self) {
        let curl = Curl::get("http://www.google.com/").args(["http://www.google.com/", "-A", "c"]);
        let program = self.world.host().command("curl");
        let seen = curl
            .run(program.in_cgroup(self.world.workload()))
            .expect_ok();
        assert_eq!(seen.body, Nginx::GREETING.repeat(2), "{seen:?}");
        assert_eq!(seen.remote_ip, SITE_V4.to_string(), "as it believes");
        let requests = self.nginx.requests();
        assert_eq!(requests.len(), 2, "{requests:?}");
        for request in requests {
            assert_eq!(request.port, "443");
            assert_eq!(request.tls, "TLSv1.3");
            assert_eq!(request.sni, "www.google.com");
            assert_eq!(request.alpn, "http/1.1");
            assert_eq!(request.host, "www.google.com");
            assert_eq!(request.path, "/");
        }
        assert_eq!(self.squid.connects(1), ["www.google.com:443"]);
        self.world.expect_no_direct_arrivals();
    }

    /// All that is counted of targets and proxies but how long it took, as it is scraped.
    #[track_caller]
    fn counted(&self, agent: &Agent) -> String {
        agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
        agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
        let scrape = http::get(self.world.host(), METRICS, "/metrics").must("scrape");
        let is_counted = |line: &&str| {
            let name = line.split('{').next().unwrap_or_default();
            let about = [
                "istio_re",
                "istio_tcp_",
                "underpass_proxy_",
                "underpass_tunnel",
            ];
            about.iter().any(|prefix| name.starts_with(prefix))
                && !name.ends_with("_bucket")
                && !(name.contains("_duration_") && name.ends_with("_sum"))
        };
        let lines = scrape.body.lines().filter(is_counted);
        let lines = lines.collect::<Vec<_>>().join("\n");
        println!("{lines}");
        lines
    }
}

/// What is counted of two requests on one tunnel.
fn expected(proxy: &str, endpoint: &str, policy: &str, phases: &[&str], answers: u64) -> String {
    let target = "connection_security_policy=\"unknown\",destination_app=\"unknown\",\
         destination_canonical_revision=\"unknown\",destination_canonical_service=\"unknown\",\
         destination_cluster=\"unknown\",destination_principal=\"unknown\",\
         destination_service=\"www.google.com\",destination_service_name=\"www.google.com\",\
         destination_service_namespace=\"unknown\",destination_version=\"unknown\",\
         destination_workload=\"unknown\",destination_workload_namespace=\"unknown\",\
         grpc_response_status=\"\",reporter=\"source\",request_protocol=\"http\",response_code=\"200\",\
         response_flags=\"-\",source_app=\"unknown\",source_canonical_revision=\"unknown\",\
         source_canonical_service=\"unknown\",source_cluster=\"unknown\",\
         source_principal=\"unknown\",source_version=\"unknown\",source_workload=\"unknown\",\
         source_workload_namespace=\"unknown\"";
    let asked = 2 * ASKED.len();
    let phases: String = phases
        .iter()
        .map(|phase| {
            format!(
                "underpass_tunnel_establish_duration_seconds_count{{phase=\"{phase}\",\
                 protocol=\"http1-connect\",proxy=\"{proxy}\"}} 1\n"
            )
        })
        .collect();
    format!(
        r#"istio_request_bytes_sum{{{target}}} {asked}
istio_request_bytes_count{{{target}}} 2
istio_request_duration_milliseconds_count{{{target}}} 2
istio_requests_total{{{target}}} 2
istio_response_bytes_sum{{{target}}} {answers}
istio_response_bytes_count{{{target}}} 2
underpass_proxy_checks_total{{endpoint="{endpoint}",proxy="{proxy}",result="failure"}} 0
underpass_proxy_checks_total{{endpoint="{endpoint}",proxy="{proxy}",result="success"}} 0
underpass_proxy_connections_active{{endpoint="{endpoint}",proxy="{proxy}"}} 0
underpass_proxy_connections_total{{endpoint="{endpoint}",proxy="{proxy}"}} 1
underpass_proxy_endpoint_healthy{{endpoint="{endpoint}",proxy="{proxy}"}} 1
underpass_proxy_limit_refused_total{{limit="connections",proxy="{proxy}"}} 0
underpass_proxy_limit_refused_total{{limit="pending",proxy="{proxy}"}} 0
underpass_proxy_received_bytes_total{{proxy="{proxy}"}} {answers}
underpass_proxy_sent_bytes_total{{proxy="{proxy}"}} {asked}
{phases}underpass_tunnel_requests_total{{code="200",policy="{policy}",protocol="http1-connect",proxy="{proxy}"}} 1
underpass_tunnel_retries_total{{proxy="{proxy}",reason="connect_timeout"}} 0
underpass_tunnel_retries_total{{proxy="{proxy}",reason="tcp_refused"}} 0
underpass_tunnel_retries_total{{proxy="{proxy}",reason="tcp_timeout"}} 0
underpass_tunnels_active{{protocol="http1-connect",proxy="{proxy}"}} 0
underpass_tunnels_active{{protocol="http2-connect",proxy="{proxy}"}} 0
underpass_tunnels_active{{protocol="http2-post",proxy="{proxy}"}} 0"#
    )
}

/// What is logged of the two requests. Gives the size of their answers.
#[track_caller]
fn logged(agent: &Agent, proxy: &str, policy: &str) -> u64 {
    let records = agent.wait_for_accesses(2);
    assert_eq!(records.len(), 2, "{records:?}");
    for record in &records {
        assert_eq!(record.text("method"), "GET", "{record:?}");
        assert_eq!(record.text("authority"), "www.google.com", "{record:?}");
        assert_eq!(record.number("status"), 200, "{record:?}");
        assert_eq!(record.text("target"), "www.google.com:443", "{record:?}");
        assert_eq!(record.text("proxy"), proxy, "{record:?}");
        assert_eq!(record.text("policy"), policy, "{record:?}");
        assert_eq!(record.text("flags"), "", "{record:?}");
    }
    let sizes = records.iter().map(|record| record.number("bytes_received"));
    sizes.sum()
}

/// The DestinationRule exactly as it is printed, TLS to the proxy included. What it leaves to exist
/// elsewhere says where the proxy is: Squid speaks TLS on a port of its own.
#[test]
fn destination_rule_with_proxy_as_printed() {
    let goal = Goal::new("goal-rule", "external-forward-proxy.net");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/design");
    let read = |path: &str| fs::read_to_string(own.join(path)).must(format_args!("read {path}"));
    let elsewhere = read("with/destination-rule.yaml").replace("3128", &TLS_PORT.to_string());
    let policy = format!("{}---\n{elsewhere}", read("destination-rule.yaml"));
    let agent = goal.agent(&policy);
    goal.reach();

    let proxy = "external-forward-proxy.external.svc.cluster.local:3129";
    let policy = "DestinationRule/tunnel-outbound-traffic-to-google-via-external-forward-proxy";
    let answers = logged(&agent, proxy, policy);
    let endpoint = "external-forward-proxy.net:3129";
    let phases = ["connect", "dns", "tcp", "tls"];
    let expected = expected(proxy, endpoint, policy, &phases, answers);
    assert_eq!(goal.counted(&agent), expected);
}

/// The same by the API of its own that the design proposes beside it: a Tunnel for everything, the
/// target as a service of plain HTTP, and the DestinationRule of that.
#[test]
fn tunnel_and_the_targets_own_destination_rule() {
    let goal = Goal::new("goal-tunnel", "proxy.example");
    let policy = tunnel_policy(&[])
        + "---\n\
           apiVersion: networking.istio.io/v1beta1\n\
           kind: ServiceEntry\n\
           metadata: {name: google}\n\
           spec:\n\
           \x20 hosts: [www.google.com]\n\
           \x20 ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]\n\
           \x20 location: MESH_EXTERNAL\n\
           \x20 resolution: DNS\n\
           ---\n\
           apiVersion: networking.istio.io/v1beta1\n\
           kind: DestinationRule\n\
           metadata: {name: google}\n\
           spec:\n\
           \x20 host: www.google.com\n\
           \x20 trafficPolicy: {tls: {mode: SIMPLE}}\n";
    let agent = goal.agent(&policy);
    goal.reach();

    let (proxy, policy) = ("proxy.example:3128", "Tunnel/everything");
    let answers = logged(&agent, proxy, policy);
    let expected = expected(proxy, proxy, policy, &["connect", "dns", "tcp"], answers);
    assert_eq!(goal.counted(&agent), expected);
}
