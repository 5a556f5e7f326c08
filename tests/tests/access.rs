//! What the agent may do at the API server: all that it does there, and no more.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::agent::Agent;
use underpass_tests::manifests::{documents, find, render};
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::{Scene, poll};

const SECONDS: Duration = Duration::from_secs(30);

const ROOT: &str = "underpass-system";
const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";

/// What only happens after minutes: a node has been gone for long; the same event comes again.
const NOT_SEEN: [(&str, &str, &str, &str); 2] = [
    (ROOT, "coordination.k8s.io", "leases", "delete"),
    ("", "events.k8s.io", "events", "patch"),
];

/// Where something may be done, everywhere if the namespace is empty, and what: group, resource, verb.
type Grant = (String, (String, String, String));

fn grant(namespace: &str, group: &str, resource: &str, verb: &str) -> Grant {
    let [group, resource, verb] = [group, resource, verb].map(str::to_owned);
    (namespace.to_owned(), (group, resource, verb))
}

/// What a role grants in a namespace.
#[track_caller]
fn grants(namespace: &str, role: &Value) -> Vec<Grant> {
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|text| text.as_str().expect("text").to_owned())
            .collect()
    };
    let mut grants = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    grants.push(grant(namespace, &group, &resource, &verb));
                }
            }
        }
    }
    grants
}

/// All that the bindings of a folder grant the agent's service account.
#[track_caller]
fn granted(folder: &str) -> BTreeSet<Grant> {
    let rendered = documents(&render(folder));
    let bindings = rendered.iter().filter(|document| {
        let kind = document["kind"].as_str().unwrap_or_default();
        kind.ends_with("RoleBinding")
    });
    let mut all = BTreeSet::new();
    for binding in bindings {
        assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(1));
        assert_eq!(binding["subjects"][0]["kind"], "ServiceAccount");
        assert_eq!(binding["subjects"][0]["name"], "underpass");
        assert_eq!(binding["subjects"][0]["namespace"], ROOT);
        let role = binding["roleRef"]["name"].as_str().expect("a role");
        let role = find(&rendered, "ClusterRole", role);
        let namespace = binding["metadata"]["namespace"].as_str();
        for one in grants(namespace.unwrap_or_default(), role) {
            let said = format!("{one:?}");
            assert!(all.insert(one), "granted twice: {said}");
        }
    }
    all
}

/// What a request asks leave for: RBAC's words for `METHOD PATH?QUERY`. None if it is for what is there,
/// which all may ask for.
#[track_caller]
fn asked(request: &str) -> Option<Grant> {
    let (method, target) = request.split_once(' ').expect("METHOD PATH");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let steps: Vec<&str> = path.split('/').skip(1).collect();
    let (group, rest) = match &steps[..] {
        ["api", _version, rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, is_one) = match rest {
        [resource] => ((*resource).to_owned(), false),
        [resource, _name] => ((*resource).to_owned(), true),
        [resource, _name, part] => (format!("{resource}/{part}"), true),
        _ => return None,
    };
    let is_watch = query
        .split('&')
        .any(|pair| pair == "watch=true" || pair == "watch=1");
    let verb = match method {
        "GET" if is_watch => "watch",
        "GET" if is_one => "get",
        "GET" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        other => panic!("what is {other}? {request}"),
    };
    Some(grant(namespace, group, &resource, verb))
}

#[test]
fn what_the_agent_does_at_the_api_server_is_granted_and_nothing_more() {
    let scene = Scene::new("access");
    let api = ApiServer::start(&scene);
    for kind in ["serviceentries", "destinationrules", "virtualservices"] {
        api.serve(&format!("/apis/networking.istio.io/v1/{kind}"));
    }
    let tunnel = |spec: Value| {
        let version = "underpass.dev/v1alpha1";
        json!({"apiVersion": version, "kind": "Tunnel", "spec": spec})
    };
    let proxy = json!({
        "host": "proxy.underpass-system.svc",
        "port": 3128,
        "authentication": {"credentialName": "proxy-credentials"},
    });
    api.apply(TUNNELS, ROOT, "all", tunnel(json!({"proxy": proxy})));
    api.apply(
        TUNNELS,
        ROOT,
        "bad",
        tunnel(json!({"proxy": {"host": "a b"}})),
    );
    let _agent = Agent::launch_in_cluster(&scene, &api, &[]);

    let granted = granted("base");
    let not_seen =
        NOT_SEEN.map(|(namespace, group, resource, verb)| grant(namespace, group, resource, verb));
    let covers =
        |one: &Grant, asked: &Grant| one.1 == asked.1 && (one.0.is_empty() || one.0 == asked.0);
    // Until each of them has been of use, which takes a renewal of the Lease.
    let asked = || -> BTreeSet<Grant> {
        api.requests()
            .iter()
            .filter_map(|request| asked(request))
            .collect()
    };
    let unused = || -> Vec<Grant> {
        let asked = asked();
        let mut left: Vec<Grant> = granted.iter().cloned().collect();
        left.retain(|one| !not_seen.contains(one) && !asked.iter().any(|it| covers(one, it)));
        left
    };
    let all_used = poll(SECONDS, || unused().is_empty().then_some(()));
    assert!(all_used.is_some(), "granted for nothing: {:#?}", unused());
    let refused: Vec<Grant> = asked()
        .into_iter()
        .filter(|asked| !granted.iter().any(|one| covers(one, asked)))
        .collect();
    assert!(refused.is_empty(), "not granted: {refused:#?}");
}

/// With Istio's root namespace that is the one whose Secrets may be read, and where the Leases are.
#[test]
fn another_root_namespace_takes_the_place_of_ours() {
    let namespaces = |folder: &str| -> BTreeSet<String> {
        let granted = granted(folder).into_iter();
        granted.map(|(namespace, _)| namespace).collect()
    };
    let everywhere_and =
        |root: &str| -> BTreeSet<String> { [String::new(), root.to_owned()].into() };
    assert_eq!(namespaces("base"), everywhere_and(ROOT));
    assert_eq!(namespaces("overlays/istio"), everywhere_and("istio-system"));
    let rendered = documents(&render("overlays/istio"));
    let pod = &find(&rendered, "DaemonSet", "underpass")["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().expect("arguments");
    assert_eq!(
        arguments.last(),
        Some(&json!("--root-namespace=istio-system"))
    );
}

#[test]
fn the_uninstaller_asks_nothing_of_the_api() {
    let rendered = documents(&render("uninstall"));
    let pod = &find(&rendered, "DaemonSet", "underpass-detach")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
}
