use super::*;

fn key(kind: ClusterKind, name: &str) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: "team-a".to_owned(),
        name: name.to_owned(),
    }
}

fn tunnel(proxy: &str) -> Value {
    json!({
        "apiVersion": "underpass.dev/v1alpha1",
        "kind": "Tunnel",
        "metadata": {
            "name": "all", "namespace": "team-a", "uid": "u", "resourceVersion": "7",
            "generation": 1, "managedFields": [{"manager": "m"}],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"proxy": {"host": proxy, "port": 3128}},
    })
}

const OURS: &str = "underpass.dev/v1alpha1";
const ISTIO: &str = "networking.istio.io/v1";

#[test]
fn only_what_policy_reads_is_a_change() {
    let mut objects = ClusterObjects::default();
    let all = key(ClusterKind::Tunnel, "all");
    assert!(objects.set(all.clone(), OURS, tunnel("proxy.example")));
    let mut same = tunnel("proxy.example");
    same["status"] = json!({"conditions": []});
    same["metadata"]["resourceVersion"] = "8".into();
    assert!(!objects.set(all.clone(), OURS, same));
    let mut labelled = tunnel("proxy.example");
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert!(objects.set(all.clone(), OURS, labelled));
    assert!(objects.set(all.clone(), OURS, tunnel("other.example")));
    assert_eq!(objects.documents().0.tunnels.len(), 1);
    assert!(objects.remove(&all));
    assert!(!objects.remove(&all));
    assert!(objects.documents().0.tunnels.is_empty());
}

#[test]
fn what_is_wrong_has_the_object_and_the_key() {
    let mut objects = ClusterObjects::default();
    let mut bad = tunnel("proxy.example");
    bad["spec"]["proxy"]["port"] = 0.into();
    bad["spec"]["acton"] = "Deny".into();
    objects.set(key(ClusterKind::Tunnel, "all"), OURS, bad);
    let documents = objects.documents().0;
    let problems: Vec<_> = documents
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let unknown = "Tunnel team-a/all: spec.acton: unknown field `acton`";
    assert!(
        problems.iter().any(|text| text.starts_with(unknown)),
        "{problems:?}"
    );
    let port = "Tunnel team-a/all: spec.proxy.port: ";
    assert!(
        problems.iter().any(|text| text.starts_with(port)),
        "{problems:?}"
    );
    assert_eq!(
        documents.problems()[0].object().unwrap().namespace,
        Some("team-a")
    );
}

#[test]
fn ours_takes_the_place_of_istios() {
    let entry = |host: &str| json!({"metadata": {}, "spec": {"hosts": [host]}});
    let mut objects = ClusterObjects::default();
    let hosts = |objects: &ClusterObjects| -> Vec<String> {
        let documents = objects.documents().0;
        let entries = documents.service_entries.iter();
        entries
            .map(|entry| entry.object.spec.hosts[0].to_string())
            .collect()
    };
    let istio = key(ClusterKind::IstioServiceEntry, "one");
    objects.set(istio, ISTIO, entry("istio.example"));
    objects.set(
        key(ClusterKind::IstioServiceEntry, "two"),
        ISTIO,
        entry("two.example"),
    );
    assert_eq!(hosts(&objects), ["istio.example", "two.example"]);
    let ours = key(ClusterKind::ServiceEntry, "one");
    objects.set(ours.clone(), OURS, entry("ours.example"));
    assert_eq!(hosts(&objects), ["ours.example", "two.example"]);
    objects.remove(&ours);
    assert_eq!(hosts(&objects), ["istio.example", "two.example"]);
}

#[test]
fn references_are_told_with_their_namespaces() {
    let mut objects = ClusterObjects::default();
    let mut wanted = tunnel("proxy.egress.svc");
    wanted["spec"]["proxy"]["authentication"] = json!({"credentialName": "login"});
    wanted["spec"]["proxy"]["tls"] = json!({"mode": "MUTUAL", "credentialName": "team-a/client"});
    objects.set(key(ClusterKind::Tunnel, "one"), OURS, wanted);
    let mut foreign = tunnel("squid");
    foreign["spec"]["proxy"]["authentication"] = json!({"credentialName": "team-b/login"});
    objects.set(key(ClusterKind::Tunnel, "two"), OURS, foreign);
    objects.set(
        key(ClusterKind::Tunnel, "three"),
        OURS,
        tunnel("proxy.example.com"),
    );
    let rule = json!({"metadata": {}, "spec": {"host": "a.example", "trafficPolicy": {
        "tls": {"mode": "SIMPLE", "credentialName": "ca"},
        "tunnel": {"proxy": {"host": "other.egress.svc.cluster.local",
                             "authorization": {"credentialName": "token"}}},
    }}});
    objects.set(key(ClusterKind::DestinationRule, "r"), OURS, rule);
    let references = objects.references();
    let pairs = |list: &[(&str, &str)]| -> BTreeSet<(String, String)> {
        let pairs = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        pairs.collect()
    };
    let secrets = [
        ("team-a", "ca"),
        ("team-a", "client"),
        ("team-a", "login"),
        ("team-a", "token"),
    ];
    assert_eq!(references.secrets, pairs(&secrets));
    let services = [
        ("egress", "other"),
        ("egress", "proxy"),
        ("team-a", "squid"),
    ];
    assert_eq!(references.services, pairs(&services));
}

#[test]
fn endpoints_are_those_that_are_ready() {
    let mut objects = ClusterObjects::default();
    let slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "proxy"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n"},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"]},
        ],
        "ports": [{"name": "connect", "port": 3128, "protocol": "TCP"}, {"name": "x", "port": 1}],
    });
    objects.set(
        key(ClusterKind::EndpointSlice, "proxy-1"),
        "discovery.k8s.io/v1",
        slice,
    );
    let documents = objects.documents().0;
    assert!(
        documents.problems().is_empty(),
        "{:?}",
        documents.problems()
    );
    let slice = &documents.endpoint_slices[0].object;
    assert_eq!(slice.service(), Some("proxy"));
    let ready = slice.ready(Some("connect"));
    let expected = [("10.0.0.1", 3128), ("10.0.0.3", 3128)];
    assert_eq!(
        ready,
        expected.map(|(ip, port)| (ip.parse().unwrap(), port))
    );
    assert!(slice.ready(None).is_empty());
}
