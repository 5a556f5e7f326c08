//! Who has a say about whom, in a cluster.

use std::path::Path;

use crate::policy::testing::{decided_for, document, entry, facts, rule, secret, through, tunnel};
use crate::policy::{Decision, Documents, Materials, Options, Policy, Side};
use crate::workload::Workload;

const ROOT: &str = "underpass-system";

fn try_compile(texts: &[String]) -> Result<Policy, Vec<String>> {
    let mut documents = Documents::default();
    documents.add(Path::new("a.yaml"), &texts.concat());
    let options = Options {
        root_namespace: Some(ROOT.parse().unwrap()),
        ..Options::default()
    };
    let compiled = Policy::compile(&documents, &Materials::none(), &options);
    compiled.map_err(|problems| {
        let texts = problems.iter().map(ToString::to_string);
        // Without the place.
        let texts = texts.map(|text| text.splitn(3, ':').nth(2).unwrap().trim().to_owned());
        texts.collect()
    })
}

fn compile(texts: &[String]) -> Policy {
    try_compile(texts).unwrap()
}

fn problem(texts: &[String]) -> String {
    let problems = try_compile(texts).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

/// A name with a namespace.
fn of(namespace: &str, name: &str) -> String {
    format!("{name}, namespace: {namespace}")
}

fn pod(namespace: &str) -> Workload {
    Workload {
        namespace: Some(namespace.into()),
        ..Workload::default()
    }
}

/// Which policy decides about a connection of a pod in `namespace`.
fn decides(policy: &Policy, namespace: &str, connection: &str) -> String {
    let decided = decided_for(policy, &pod(namespace), connection);
    decided.split(": ").next().unwrap().to_owned()
}

const ANYWHERE: &str = "203.0.113.7:443 sni www.example.com verified";

#[test]
fn a_tunnel_is_for_its_own_namespace_and_that_of_the_root_for_all() {
    let root = through(&of(ROOT, "root"), "");
    let own = through(&of("team-a", "own"), "");
    let policy = compile(std::slice::from_ref(&own));
    assert_eq!(decides(&policy, "team-a", ANYWHERE), "Tunnel/team-a/own");
    assert_eq!(decides(&policy, "team-b", ANYWHERE), "Direct");
    let host = decided_for(&policy, &Workload::default(), ANYWHERE);
    assert!(host.starts_with("Direct"), "{host}");
    let policy = compile(&[root, own]);
    assert_eq!(decides(&policy, "team-a", ANYWHERE), "Tunnel/team-a/own");
    assert_eq!(
        decides(&policy, "team-b", ANYWHERE),
        format!("Tunnel/{ROOT}/root")
    );
}

/// As everywhere; a namespace is the world of those who write in it.
#[test]
fn in_a_namespace_too_a_rule_for_some_pods_goes_before_one_for_all() {
    let age = |year: u32| format!("creationTimestamp: '{year}-01-01T00:00:00Z'");
    let named = |name: &str, year| format!("{}, {}", of("team-a", name), age(year));
    let policy = compile(&[
        through(&named("all", 2020), ""),
        through(
            &named("web", 2024),
            "workloadSelector: {matchLabels: {app: web}}",
        ),
    ]);
    let mut web = pod("team-a");
    let decided = |pod: &Workload| decided_for(&policy, pod, ANYWHERE);
    assert!(decided(&web).starts_with("Tunnel/team-a/all: "));
    web.labels = [("app".to_owned(), "web".to_owned())].into();
    assert!(decided(&web).starts_with("Tunnel/team-a/web: "));
}

#[test]
fn the_own_namespace_goes_before_the_root_whatever_the_age() {
    let age = |year: u32| format!("creationTimestamp: '{year}-01-01T00:00:00Z'");
    let selecting = "workloadSelector: {matchLabels: {}}, selector: {matchLabels: {a: b}}";
    let named = |namespace: &str, year| format!("{}, {}", of(namespace, "t"), age(year));
    let services = entry(
        &format!("{}, labels: {{a: b}}", of(ROOT, "e")),
        "hosts: [www.example.com]",
    );
    let policy = compile(&[
        through(&named(ROOT, 2020), selecting),
        through(&named("team-a", 2024), selecting),
        services,
    ]);
    assert_eq!(decides(&policy, "team-a", ANYWHERE), "Tunnel/team-a/t");
    assert_eq!(
        decides(&policy, "team-b", ANYWHERE),
        format!("Tunnel/{ROOT}/t")
    );
}

#[test]
fn a_tunnel_may_not_select_what_is_not_of_its_namespace() {
    for (selector, key) in [
        ("namespaces: [team-a, team-b]", "namespaces[1]"),
        ("units: [backup.service]", "units"),
        ("cgroups: [/system.slice]", "cgroups"),
    ] {
        let spec = format!("workloadSelector: {{{selector}}}");
        let found = problem(&[through(&of("team-a", "t"), &spec)]);
        let start =
            format!("Tunnel/t: spec.workloadSelector.{key}: a Tunnel is for the pods of its own");
        assert!(found.starts_with(&start), "{found}");
        compile(&[through(&of(ROOT, "t"), &spec)]);
    }
    compile(&[through(
        &of("team-a", "t"),
        "workloadSelector: {namespaces: [team-a]}",
    )]);
}

#[test]
fn a_destination_rule_is_for_its_own_namespace_whatever_it_exports() {
    let theirs = rule(&of("team-b", "r"), "*.example.com", "exportTo: ['*']");
    let policy = compile(&[theirs]);
    assert_eq!(
        decides(&policy, "team-b", ANYWHERE),
        "DestinationRule/team-b/r"
    );
    assert_eq!(decides(&policy, "team-a", ANYWHERE), "Direct");
    let nobodys = rule(&of("team-b", "r"), "*.example.com", "exportTo: ['~']");
    assert_eq!(decides(&compile(&[nobodys]), "team-b", ANYWHERE), "Direct");
    let ours = rule(&of(ROOT, "r"), "*.example.com", "exportTo: [team-a]");
    let policy = compile(&[ours]);
    assert_eq!(
        decides(&policy, "team-a", ANYWHERE),
        format!("DestinationRule/{ROOT}/r")
    );
    assert_eq!(decides(&policy, "team-b", ANYWHERE), "Direct");
}

/// The endpoints of the proxy that a pod in `namespace` is led through.
fn endpoints(policy: &Policy, namespace: &str) -> Vec<String> {
    let view = policy.view(&pod(namespace));
    match policy.decide(&facts(ANYWHERE), &view).decision {
        Decision::Tunnel(tunnel) => {
            let endpoints = tunnel.proxies[0].proxy.endpoints.iter();
            endpoints.map(ToString::to_string).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_else_says_where_a_proxy_is() {
    let to_proxy = "proxy: {host: proxy.corp, port: 3128}";
    let described = |namespace: &str, address: &str| {
        entry(
            &of(namespace, "proxy"),
            &format!(
                "hosts: [proxy.corp], resolution: STATIC, endpoints: [{{address: {address}}}], \
                 ports: [{{number: 3128, name: p, protocol: HTTP-CONNECT}}]"
            ),
        )
    };
    let root = tunnel(&of(ROOT, "t"), to_proxy);
    let evil = described("team-b", "198.51.100.66");
    let policy = compile(&[root.clone(), evil.clone()]);
    assert_eq!(endpoints(&policy, "team-a"), ["proxy.corp:3128"]);
    let good = described(ROOT, "198.51.100.1");
    let policy = compile(&[root, evil.clone(), good.clone()]);
    assert_eq!(endpoints(&policy, "team-a"), ["198.51.100.1:3128"]);
    let own = tunnel(&of("team-b", "t"), to_proxy);
    assert_eq!(
        endpoints(&compile(&[own.clone(), good.clone()]), "team-b"),
        ["198.51.100.1:3128"]
    );
    assert_eq!(
        endpoints(&compile(&[own, good, evil]), "team-b"),
        ["198.51.100.66:3128"]
    );
}

#[test]
fn nobody_else_says_how_a_proxy_is_spoken_to() {
    let root = tunnel(&of(ROOT, "t"), "proxy: {host: proxy.corp, port: 3128}");
    let insecure = |namespace: &str| {
        document(
            "DestinationRule",
            &of(namespace, "r"),
            "host: proxy.corp, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}, \
             connectionPool: {tcp: {maxConnections: 1}}}",
        )
    };
    let proxy = |texts: &[String]| {
        let policy = compile(texts);
        let proxy = policy.proxies().next().unwrap();
        (proxy.tls.is_some(), proxy.settings.max_connections)
    };
    assert_eq!(proxy(&[root.clone(), insecure("team-b")]), (false, None));
    assert_eq!(proxy(&[root, insecure(ROOT)]), (true, Some(1)));
}

#[test]
fn secrets_are_of_the_own_namespace() {
    let wants = |namespace: &str, name: &str| {
        let proxy =
            format!("proxy: {{host: p.corp, port: 1, authentication: {{credentialName: {name}}}}}");
        tunnel(&of(namespace, "t"), &proxy)
    };
    let theirs = secret(&of("team-b", "login"), "token: t");
    let nodes = secret("login", "token: t");
    let key = "Tunnel/t: spec.proxy.authentication.credentialName: ";
    let found = problem(&[wants("team-a", "team-b/login"), theirs.clone()]);
    let only =
        "in a cluster a document has the Secrets of its own namespace only, which is `team-a`";
    assert_eq!(found, format!("{key}{only}"));
    let none = format!("{key}there is no Secret `login` in namespace `team-a`");
    assert_eq!(problem(&[wants("team-a", "login"), theirs.clone()]), none);
    assert_eq!(problem(&[wants("team-a", "login"), nodes.clone()]), none);
    compile(&[wants(ROOT, "login"), nodes]);
    compile(&[wants("team-b", "login"), theirs.clone()]);
    compile(&[wants("team-b", "team-b/login"), theirs]);
}

#[test]
fn files_of_the_node_are_for_the_root() {
    let rule = document(
        "DestinationRule",
        &of("team-a", "r"),
        "host: a.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/ca.pem}}",
    );
    let found = problem(&[rule]);
    let expected = "DestinationRule/r: spec.trafficPolicy.tls.caCertificates: files of the node are \
                    for documents in namespace `underpass-system`; use `credentialName`";
    assert_eq!(found, expected);
}

#[test]
fn only_the_root_says_what_is_internal() {
    let internal = |namespace: &str| {
        entry(
            &of(namespace, "e"),
            "hosts: [all.example], addresses: [203.0.113.0/24], location: MESH_INTERNAL",
        )
    };
    let all = through(&of(ROOT, "t"), "");
    let policy = compile(&[all.clone(), internal("team-a")]);
    for namespace in ["team-a", "team-b"] {
        assert_eq!(
            decides(&policy, namespace, ANYWHERE),
            format!("Tunnel/{ROOT}/t")
        );
    }
    let warnings = policy.warnings();
    assert!(
        warnings[0].reason().contains("in the root namespace only"),
        "{warnings:?}"
    );
    let policy = compile(&[all, internal(ROOT)]);
    assert_eq!(decides(&policy, "team-a", ANYWHERE), "Direct");
}

#[test]
fn without_a_cluster_all_documents_are_of_one_hand() {
    let text = through(&of("team-a", "t"), "workloadSelector: {units: [a.service]}");
    crate::policy::testing::compile(&text);
    let policy = crate::policy::testing::compile(&through(&of("team-a", "t"), ""));
    assert_eq!(decides(&policy, "team-b", ANYWHERE), "Tunnel/team-a/t");
}

#[test]
fn what_istio_cannot_carry_is_hinted_at() {
    let lost = document(
        "DestinationRule",
        &of("team-a", "r"),
        "host: www.example.com, trafficPolicy: {tunnel: {targetHost: t.example, targetPort: 443}}",
    );
    let policy = compile(&[lost]);
    let reason = policy.warnings()[0].reason();
    assert!(reason.contains("underpass.dev"), "{reason}");
}

#[test]
fn a_service_is_where_its_ready_pods_are_else_at_its_own_address() {
    let service = |more: &str| {
        let ports = "ports: [{name: connect, port: 3128, targetPort: 8080}]";
        document("Service", &of("egress", "squid"), &format!("{ports}{more}"))
    };
    let all = tunnel(
        &of(ROOT, "t"),
        "proxy: {host: squid.egress.svc, port: 3128}",
    );
    let slice = "--- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, \
                 namespace: egress, labels: {kubernetes.io/service-name: squid}}, endpoints: \
                 [{addresses: [10.1.0.7]}, {addresses: [10.1.0.8], conditions: {ready: false}}], \
                 ports: [{name: connect, port: 8080}]}\n";
    let found = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        endpoints(&compile(&texts), "team-a")
    };
    let own = service(", clusterIP: 10.96.0.9");
    assert_eq!(found(&[&all, &own]), ["10.96.0.9:3128"]);
    assert_eq!(found(&[&all, &own, slice]), ["10.1.0.7:8080"]);
    let unready = slice.replace("[10.1.0.7]}", "[10.1.0.7], conditions: {ready: false}}");
    assert_eq!(found(&[&all, &own, &unready]), ["10.96.0.9:3128"]);
    let headless = service(", clusterIP: None");
    assert_eq!(
        found(&[&all, &headless]),
        ["squid.egress.svc.cluster.local:3128"]
    );
    assert_eq!(found(&[&all, &headless, slice]), ["10.1.0.7:8080"]);
}

/// What is on the node's own network is nobody's by being there: it has to be named.
#[test]
fn rules_without_a_selector_spare_the_network_of_the_node() {
    let service = entry(
        "s, labels: {t: s}",
        "hosts: [s.test], addresses: [203.0.113.7]",
    );
    let policy = compile(&[
        service,
        tunnel("s", "action: Deny, selector: {matchLabels: {t: s}}"),
        through("all", ""),
        through("own, namespace: kube-system", ""),
        through(
            "resolver",
            "workloadSelector: {matchLabels: {app: resolver}}",
        ),
        through("backup", "workloadSelector: {units: [backup.service]}"),
    ]);
    let resolver = Workload {
        labels: [("app".to_owned(), "resolver".to_owned())].into(),
        ..pod("kube-system")
    };
    let decides = |workload: &Workload, host_network, connection: &str| {
        let workload = Workload {
            host_network,
            ..workload.clone()
        };
        let decided = decided_for(&policy, &workload, connection);
        decided.split(": ").next().unwrap().to_owned()
    };
    let backup = Workload::in_cgroup("/system.slice/backup.service");
    let kubelet = Workload::in_cgroup("/system.slice/kubelet.service");
    for (workload, in_pod, on_node) in [
        (&resolver, "Tunnel/kube-system/own", "Tunnel/resolver"),
        (&pod("kube-system"), "Tunnel/kube-system/own", "Direct"),
        (&backup, "Tunnel/backup", "Tunnel/backup"),
        (&kubelet, "Tunnel/all", "Direct"),
    ] {
        let elsewhere = "203.0.113.8:443";
        assert_eq!(decides(workload, false, elsewhere), in_pod, "{workload:?}");
        assert_eq!(decides(workload, true, elsewhere), on_node, "{workload:?}");
        assert_eq!(policy.names(workload), on_node != "Direct", "{workload:?}");
    }
    // The address that is denied to pods.
    assert_eq!(
        decides(&backup, false, "203.0.113.7:443"),
        "Deny Tunnel/s rule"
    );
    assert_eq!(decides(&backup, true, "203.0.113.7:443"), "Tunnel/backup");
    let named = policy.names_workloads();
    assert!(named.any && named.by_services);
    let named = compile(&[through("all", "workloadSelector: {}")]).names_workloads();
    assert!(!named.any && !named.by_services);
}

/// Where a rule for everyone goes before it, one that names workloads has its connections captured
/// nevertheless, if that rule spares them.
#[test]
fn what_is_named_on_the_network_of_the_node_is_captured() {
    let service = entry(
        "s, labels: {t: s}",
        "hosts: [s.test], addresses: [203.0.113.7]",
    );
    let direct = tunnel("s", "action: Direct, selector: {matchLabels: {t: s}}");
    let side = |more: &[String]| {
        let policy = compile(&[&[service.clone(), direct.clone()], more].concat());
        let plan = policy.capture_plan();
        let net: ipnet::IpNet = "203.0.113.7/32".parse().unwrap();
        let (_, captured) = plan
            .prefixes
            .iter()
            .find(|(prefix, _)| *prefix == net)
            .unwrap();
        captured.tcp
    };
    assert_eq!(side(&[through("all", "")]), Side::Open);
    let named = through("backup", "workloadSelector: {units: [backup.service]}");
    assert_eq!(side(&[through("all", ""), named]), Side::External);
}
