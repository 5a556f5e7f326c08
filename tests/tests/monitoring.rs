//! What is shipped for Prometheus and Grafana, on an agent at work: the scrape configuration, alerts that
//! fire when they should and not before, and a dashboard without an empty panel.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::agent::Agent;
use underpass_tests::manifests::{deploy, documents, find, render};
use underpass_tests::servers::prometheus::Prometheus;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene, World};

const MINUTE: Duration = Duration::from_secs(60);

/// The first proxy is not there, so there is something to retry.
const POLICY: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: everything}
spec:
  proxies:
  - {host: proxy.example, port: 3999}
  - {host: proxy.example, port: 3128, priority: 1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other, labels: {shut: 'yes'}}
spec:
  hosts: [other.example]
  addresses: [203.0.113.11]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 7, name: tcp, protocol: TCP}]
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: wall}
spec: {selector: {matchLabels: {shut: 'yes'}}, action: Deny}
";

#[track_caller]
fn shipped(path: &str) -> String {
    fs::read_to_string(deploy(path)).must(format_args!("read {path}"))
}

/// The shipped files, with alerts that wait for nothing.
#[track_caller]
fn prometheus(world: &World) -> Prometheus {
    let alerts: String = shipped("prometheus/alerts.yml")
        .lines()
        .filter(|line| !line.trim_start().starts_with("for: "))
        .map(|line| format!("{line}\n"))
        .collect();
    Prometheus::start_with(
        world,
        &[
            ("prometheus.yml", &shipped("prometheus/prometheus.yml")),
            ("agents.yml", &shipped("prometheus/agents.yml")),
            ("alerts.yml", &alerts),
        ],
    )
}

/// Each alert with what it asks.
fn alerts() -> Vec<(String, String)> {
    let file = &documents(&shipped("prometheus/alerts.yml"))[0];
    let rules = file["groups"][0]["rules"].as_array().expect("rules");
    let text = |rule: &Value, key: &str| rule[key].as_str().expect(key).to_owned();
    let alerts: Vec<_> = rules
        .iter()
        .map(|rule| (text(rule, "alert"), text(rule, "expr")))
        .collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    alerts
}

fn firing(prometheus: &Prometheus) -> BTreeSet<String> {
    let series = prometheus.ask_now("ALERTS{alertstate=\"firing\"}");
    let names = series.iter().map(|one| one.labels["alertname"].as_str());
    names.map(|name| name.expect("a name").to_owned()).collect()
}

/// The queries of all panels with their titles, as Grafana asks them where all agents are chosen.
#[track_caller]
fn panels() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_str(&shipped("grafana/underpass.json")).must("read the dashboard");
    let panels = dashboard["panels"].as_array().expect("panels");
    let queries: Vec<(String, String)> = panels
        .iter()
        .flat_map(|panel| {
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets.into_iter().map(|target| {
                let title = panel["title"].as_str().expect("a title").to_owned();
                let query = target["expr"].as_str().expect("a query");
                let query = query
                    .replace("$__rate_interval", "1m")
                    .replace("$instance", ".*");
                assert!(!query.contains('$'), "{title}: what is asked in {query}?");
                (title, query)
            })
        })
        .collect();
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

struct Busy {
    agent: Agent,
    squid: Squid,
    scene: Scene,
}

impl Busy {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[80],
            ..Options::default()
        };
        Self {
            squid: Squid::start_with(&scene.world, &options),
            agent: Agent::start(&scene.world, POLICY),
            scene,
        }
    }

    /// A request over TLS, one in the clear, and a connection that policy refuses.
    #[track_caller]
    fn round(&self) {
        for url in ["https://site.example/page", "http://site.example/page"] {
            let curl = self.scene.curl(url).args(["-4"]);
            self.scene.captured(&curl).expect_ok();
        }
        let refused = self
            .scene
            .program("fault")
            .args(["echo", "203.0.113.11", "7"]);
        let said = refused.run(MINUTE).stdout;
        assert!(!said.ends_with("echoed\n"), "{said}");
    }
}

#[test]
fn the_dashboard_has_data_in_every_panel_and_alerts_fire_when_they_should() {
    let mut busy = Busy::new("monitoring");
    let prometheus = prometheus(&busy.scene.world);
    prometheus.wait_for("count(ALERTS) or vector(0)", 0.0);
    for _ in 0..3 {
        busy.round();
    }
    let requests = "sum(underpass_tunnel_requests_total{code=\"200\"})";
    prometheus.wait_for(requests, 6.0);
    busy.round();
    prometheus.wait_for(requests, 8.0);
    prometheus.wait_for("sum(underpass_policy_denied_total)", 4.0);

    let empty: Vec<_> = panels()
        .into_iter()
        .filter(|(_, query)| {
            let series = prometheus.ask(query);
            !series.iter().any(|one| !one.values.is_empty())
        })
        .collect();
    assert!(empty.is_empty(), "no data for {empty:#?}");
    // What an alert compares is there, though it does not fire.
    for (name, query) in alerts() {
        let comparison = query.rsplit_once(" > ").or(query.rsplit_once(" == "));
        let Some((compared, _)) = comparison else {
            assert!(query.starts_with("absent("), "{name}: {query}");
            continue;
        };
        let series = prometheus.ask(compared);
        assert!(
            !series.is_empty() || name == "UnderpassCredentialsRefused",
            "{name}: {compared}"
        );
    }

    // The first proxy has been away from the start; now the other goes as well.
    let expected = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    let proxy_down = |proxy: &str| {
        format!(
            "count(ALERTS{{alertname=\"UnderpassProxyDown\", alertstate=\"firing\", proxy=\"{proxy}\"}}) or vector(0)"
        )
    };
    prometheus.wait_for(&proxy_down("proxy.example:3128"), 0.0);
    busy.squid.stop();
    for _ in 0..5 {
        let curl = busy.scene.curl("https://site.example/page").args(["-4"]);
        assert_ne!(busy.scene.captured(&curl).exit, 0);
    }
    prometheus.wait_for(&proxy_down("proxy.example:3128"), 1.0);
    let down = expected(&["UnderpassProxyDown", "UnderpassTunnelsFail"]);
    assert_eq!(firing(&prometheus), down);

    // A policy that is no good, and then no agent.
    let alert =
        |name: &str| format!("count(ALERTS{{alertname=\"{name}\", alertstate=\"firing\"}})");
    let policy = busy.scene.world.dir().join("policy.yaml");
    fs::write(policy, POLICY.replace("port: 3999", "port: none")).must("write a policy");
    prometheus.wait_for(&alert("UnderpassPolicyRejected"), 1.0);
    busy.agent.process().kill();
    prometheus.wait_for(&alert("UnderpassAgentDown"), 1.0);
}

#[test]
fn promtool_has_nothing_to_say() {
    let world = World::new("promtool-shipped");
    let promtool = |arguments: &[&str]| {
        let command = world.host().command("promtool").args(arguments);
        command.run(MINUTE).expect_success().stdout
    };
    let path = |name: &str| deploy("prometheus").join(name).display().to_string();
    promtool(&["check", "config", &path("prometheus.yml")]);
    promtool(&["test", "rules", &path("alerts_test.yml")]);
    let tests = documents(&shipped("prometheus/alerts_test.yml"));
    let tested: BTreeSet<&str> = tests[0]["tests"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten())
        .filter(|test| test["exp_alerts"].is_array())
        .filter_map(|test| test["alertname"].as_str())
        .collect();
    let alerts = alerts();
    let shipped: BTreeSet<&str> = alerts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(tested, shipped, "each alert has a test in which it fires");
}

/// Debian's Prometheus knows nothing of Kubernetes, so that it finds pods is not shown here. What becomes of
/// those that it would find is.
#[test]
fn of_the_pods_of_a_cluster_the_agents_are_scraped_under_the_names_of_their_nodes() {
    let scene = Scene::new("monitoring-pods");
    let _agent = Agent::start(&scene.world, POLICY);
    let configuration = shipped("prometheus/kubernetes.yml");
    let (before, rest) = configuration
        .split_once("    kubernetes_sd_configs:\n")
        .expect("pods are looked for");
    let (_, after) = rest
        .split_once("    relabel_configs:\n")
        .expect("and chosen");
    let configuration = format!(
        "{before}    file_sd_configs: [{{files: [pods.yml]}}]\n    relabel_configs:\n{after}"
    );
    let pod = |node: &str, name: &str, port: &str| {
        format!(
            "- targets: ['127.0.0.1:15020']\n\
             \x20 labels:\n\
             \x20   __meta_kubernetes_pod_node_name: {node}\n\
             \x20   __meta_kubernetes_pod_label_app_kubernetes_io_name: {name}\n\
             \x20   __meta_kubernetes_pod_container_port_name: {port}\n"
        )
    };
    let pods = [
        pod("node-a", "underpass", "metrics"),
        pod("node-b", "underpass", "other"),
        pod("node-c", "underpass-detach", "metrics"),
    ];
    let prometheus = Prometheus::start_with(
        &scene.world,
        &[
            ("prometheus.yml", &configuration),
            ("alerts.yml", &shipped("prometheus/alerts.yml")),
            ("pods.yml", &pods.concat()),
        ],
    );
    let up = prometheus.ask("up");
    let instances: Vec<_> = up
        .iter()
        .map(|one| one.labels["instance"].clone())
        .collect();
    assert_eq!(instances, ["node-a"]);
}

/// The operator's objects say what the files say: the same labels for agents, the same alerts.
#[test]
fn the_operator_of_prometheus_is_told_the_same() {
    let rendered = documents(&render("overlays/prometheus-operator"));
    let rule = find(&rendered, "PrometheusRule", "underpass");
    let alerts = &documents(&shipped("prometheus/alerts.yml"))[0];
    assert_eq!(rule["spec"], *alerts);

    let monitor = &find(&rendered, "PodMonitor", "underpass")["spec"];
    let pod = &find(&rendered, "DaemonSet", "underpass")["spec"]["template"];
    let (label, job) = ("app.kubernetes.io/name", "underpass");
    assert_eq!(monitor["jobLabel"], label);
    assert_eq!(monitor["selector"]["matchLabels"][label], job);
    assert_eq!(pod["metadata"]["labels"][label], job);
    let endpoint = &monitor["podMetricsEndpoints"][0];
    let port = &pod["spec"]["containers"][0]["ports"][0];
    assert_eq!(port["name"], endpoint["port"]);
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/path"], endpoint["path"]);
    assert_eq!(
        annotations["prometheus.io/port"],
        port["containerPort"].to_string()
    );
}
