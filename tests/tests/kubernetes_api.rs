//! The API server that tests keep policy in, against the one of Kubernetes: what the fake does the real
//! one does, and that takes `deploy/crds` and what is right, and refuses what is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::agent::underpass;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::{Must as _, Scene, manifests};

const VERSION: &str = "underpass.dev/v1alpha1";
const NAMESPACE: &str = "team";

const SECRETS: &str = "/api/v1/secrets";
const PODS: &str = "/api/v1/pods";

fn collection(kind: &str) -> String {
    let plural = match kind {
        "Tunnel" => "tunnels",
        "ServiceEntry" => "serviceentries",
        "DestinationRule" => "destinationrules",
        _ => panic!("{kind} has no definition"),
    };
    format!("/apis/{VERSION}/{plural}")
}

fn tunnels() -> String {
    collection("Tunnel")
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": VERSION, "kind": kind, "metadata": {"name": "it"}, "spec": spec})
}

/// Every sample of `deploy/examples` that has a definition, as it is written for a cluster without Istio.
fn samples() -> Vec<(PathBuf, Value)> {
    let mut files = Vec::new();
    collect(&manifests::deploy("examples"), &mut files);
    let mut samples = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).must("read a sample");
        for mut document in manifests::documents(&text) {
            let kind = document["kind"].as_str().unwrap_or_default();
            if ["Tunnel", "ServiceEntry", "DestinationRule"].contains(&kind) {
                document["apiVersion"] = VERSION.into();
                samples.push((file.clone(), document));
            }
        }
    }
    samples
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).must("list samples") {
        let path = entry.must("list samples").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|it| it == "yaml") {
            files.push(path);
        }
    }
}

/// What a definition can see is wrong, and a part of what is said of it.
fn wrong() -> Vec<(&'static str, Value, &'static str)> {
    let proxy = json!({"host": "proxy.example", "port": 3128});
    let with = |field: &str, value: Value| {
        let mut proxy = proxy.clone();
        proxy[field] = value;
        json!({"proxy": proxy})
    };
    let tls = |fields: Value| json!({"host": "site.example", "trafficPolicy": {"tls": fields}});
    vec![
        ("Tunnel", json!({}), "proxy is missing"),
        (
            "Tunnel",
            json!({"proxy": proxy, "proxies": [proxy]}),
            "either `proxy` or `proxies`",
        ),
        ("Tunnel", json!({"proxies": []}), "at least one proxy"),
        (
            "Tunnel",
            json!({"action": "Deny", "proxy": proxy}),
            "are for `action: Tunnel`",
        ),
        (
            "Tunnel",
            json!({"action": "Direct", "targetPort": 443}),
            "are for `action: Tunnel`",
        ),
        (
            "Tunnel",
            json!({"action": "Deny", "dns": "Off"}),
            "are for `action: Tunnel`",
        ),
        (
            "Tunnel",
            json!({"action": "Direct", "onECH": "Deny"}),
            "are for `action: Tunnel`",
        ),
        ("Tunnel", json!({"action": "deny"}), "Unsupported value"),
        (
            "Tunnel",
            json!({"proxy": {"port": 3128}}),
            "spec.proxy.host",
        ),
        ("Tunnel", with("port", 0.into()), "spec.proxy.port"),
        ("Tunnel", with("port", 65536.into()), "spec.proxy.port"),
        (
            "Tunnel",
            with("host", "http://proxy.example".into()),
            "a URL is not a host",
        ),
        (
            "Tunnel",
            with("host", "proxy.example:3128".into()),
            "a port does not belong here",
        ),
        ("Tunnel", with("host", "".into()), "it is empty"),
        (
            "Tunnel",
            json!({"proxy": {"host": "192.0.2.1"}}),
            "needs a port",
        ),
        (
            "Tunnel",
            json!({"proxy": {"host": "2001:db8::1"}}),
            "needs a port",
        ),
        (
            "Tunnel",
            json!({"proxy": {"host": "proxy.example", "port": 1, "protocol": "HTTP2-CONNECT",
                             "plainHTTP": "ABSOLUTE_FORM"}}),
            "needs a proxy with the protocol HTTP-CONNECT",
        ),
        (
            "Tunnel",
            json!({"proxy": {"host": "proxy.example", "port": 1, "dialFrom": "workload",
                             "healthCheck": {"targetHost": "site.example"}}}),
            "nowhere to check from",
        ),
        (
            "Tunnel",
            with("protocol", "CONNECT".into()),
            "Unsupported value",
        ),
        ("Tunnel", with("weight", 0.into()), "spec.proxy.weight"),
        (
            "Tunnel",
            with("authentication", json!({"credentialName": "Log in"})),
            "the name of a Secret",
        ),
        (
            "Tunnel",
            with("tls", json!({"mode": "MUTUAL"})),
            "mode MUTUAL needs",
        ),
        (
            "Tunnel",
            json!({"proxy": proxy, "targetHost": "auto_sni"}),
            "written in capitals",
        ),
        (
            "Tunnel",
            json!({"proxy": proxy, "targetHost": "site.example:443"}),
            "a port does not belong here",
        ),
        ("ServiceEntry", json!({}), "spec.hosts"),
        ("ServiceEntry", json!({"hosts": []}), "give at least one"),
        (
            "ServiceEntry",
            json!({"hosts": ["a.*.example"]}),
            "a `*` stands alone",
        ),
        (
            "ServiceEntry",
            json!({"hosts": ["192.0.2.1:80"]}),
            "expected a name",
        ),
        (
            "ServiceEntry",
            json!({"hosts": ["a.example"], "ports": [{"number": 1, "protocol": "SMTP"}]}),
            "expected one of 'HTTP'",
        ),
        (
            "ServiceEntry",
            json!({"hosts": ["a.example"], "addresses": ["a.example"]}),
            "expected an address, or a range",
        ),
        (
            "ServiceEntry",
            json!({"hosts": ["a.example"], "exportTo": ["Team A"]}),
            "expected a namespace",
        ),
        (
            "DestinationRule",
            json!({"host": "site.example", "trafficPolicy": {"proxy": proxy}}),
            "and there is none",
        ),
        (
            "DestinationRule",
            json!({"host": "site.example",
                   "trafficPolicy": {"proxy": proxy, "tunnel": {"proxy": proxy}}}),
            "has a proxy as well",
        ),
        (
            "DestinationRule",
            tls(json!({"mode": "SIMPLE", "clientCertificate": "/a", "privateKey": "/b"})),
            "for mode MUTUAL",
        ),
        (
            "DestinationRule",
            tls(
                json!({"mode": "MUTUAL", "clientCertificate": "/a", "privateKey": "/b",
                       "credentialName": "c"}),
            ),
            "either files or `credentialName`",
        ),
        (
            "DestinationRule",
            tls(json!({"mode": "MUTUAL", "clientCertificate": "/a"})),
            "mode MUTUAL needs",
        ),
        (
            "DestinationRule",
            tls(json!({})),
            "spec.trafficPolicy.tls.mode",
        ),
    ]
}

#[test]
fn kubernetes_takes_the_definitions_and_the_samples_and_refuses_what_is_wrong() {
    let scene = Scene::new("kube-crds");
    let start = Instant::now();
    let Some(api) = ApiServer::start_real(&scene) else {
        return;
    };
    println!(
        "API server with all definitions established: {:?}",
        start.elapsed()
    );

    let samples = samples();
    assert!(samples.len() > 10, "{samples:?}");
    for (file, sample) in samples {
        let kind = sample["kind"].as_str().unwrap_or_default();
        let name = sample["metadata"]["name"].as_str().unwrap_or_default();
        let mut sample = sample.clone();
        sample["metadata"]["namespace"] = NAMESPACE.into();
        let answer = api.try_apply(&collection(kind), NAMESPACE, name, &sample);
        assert_eq!(
            answer.status,
            200,
            "{} {name}: {}",
            file.display(),
            answer.body
        );
        // Nothing of it has been pruned.
        let kept = api.get(&collection(kind), NAMESPACE, name);
        assert_eq!(kept["spec"], sample["spec"], "{}", file.display());
    }

    for (kind, spec, expected) in wrong() {
        let answer = api.try_apply(&collection(kind), NAMESPACE, "it", &object(kind, &spec));
        assert_eq!(answer.status, 422, "{kind} {spec}: {}", answer.body);
        assert!(
            answer.body.contains(expected),
            "{kind} {spec}: {}",
            answer.body
        );
    }
    // What nobody knows is refused by server-side apply.
    let spec = json!({"proxy": {"host": "proxy.example", "port": 3128, "warmth": true}});
    let answer = api.try_apply(&tunnels(), NAMESPACE, "it", &object("Tunnel", &spec));
    assert!(answer.status >= 400, "{}", answer.body);
    assert!(answer.body.contains("warmth"), "{}", answer.body);
}

/// An API server refuses nothing that the agent would take.
#[test]
fn the_agent_refuses_what_definitions_refuse() {
    let scene = Scene::new("kube-wrong");
    for (number, (kind, spec, _)) in wrong().into_iter().enumerate() {
        let file = scene.world.dir().join(format!("{number}.yaml"));
        let text = object(kind, &spec).to_string();
        fs::write(&file, text).must("write a document");
        let done = underpass(&scene.world)
            .arg("check")
            .arg(&file)
            .run(Duration::from_secs(30));
        assert_ne!(done.status.code(), Some(0), "{kind} {spec}: {done:?}");
    }
}

#[test]
fn the_fake_does_what_agents_rely_on() {
    let scene = Scene::new("kube-fake");
    behaves(&ApiServer::start_fake(&scene));
}

#[test]
fn kubernetes_does_so_too() {
    let scene = Scene::new("kube-real");
    if let Some(api) = ApiServer::start_real(&scene) {
        behaves(&api);
    }
}

/// What agents rely on.
fn behaves(api: &ApiServer) {
    behaves_as_to_managers(api);

    let spec = |port: u16| json!({"proxy": {"host": "proxy.example", "port": port}});
    let tunnel = |port: u16| object("Tunnel", &spec(port));
    api.apply(&tunnels(), NAMESPACE, "a", tunnel(1));
    let first = api.get(&tunnels(), NAMESPACE, "a");
    assert_eq!(first["spec"], spec(1));
    assert_eq!(first["metadata"]["generation"], 1);
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();

    // The same again is no change; another spec is a new generation of the same object.
    api.apply(&tunnels(), NAMESPACE, "a", tunnel(1));
    assert_eq!(
        version(&api.get(&tunnels(), NAMESPACE, "a")),
        version(&first)
    );
    api.apply(&tunnels(), NAMESPACE, "a", tunnel(2));
    let second = api.get(&tunnels(), NAMESPACE, "a");
    assert_eq!(second["metadata"]["generation"], 2);
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert_ne!(version(&second), version(&first));

    // Status is apart: neither changes the other, and none makes a generation.
    let mut status = object("Tunnel", &spec(9));
    status["metadata"]["name"] = "a".into();
    status["status"] = json!({"conditions": [{"type": "Accepted", "status": "True"}]});
    let answer = api.try_apply(&tunnels(), NAMESPACE, "a/status", &status);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let third = api.get(&tunnels(), NAMESPACE, "a");
    assert_eq!(third["spec"], spec(2));
    assert_eq!(third["status"]["conditions"][0]["status"], "True");
    assert_eq!(third["metadata"]["generation"], 2);
    api.apply(&tunnels(), NAMESPACE, "a", tunnel(3));
    let fourth = api.get(&tunnels(), NAMESPACE, "a");
    assert_eq!(fourth["status"], third["status"]);

    // Selectors.
    let pod = |node: &str, app: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"app": app}},
               "spec": {"nodeName": node, "containers": []}})
    };
    api.apply(PODS, NAMESPACE, "p", pod("node-1", "web"));
    api.apply(PODS, "other", "q", pod("node-2", "web"));
    api.apply(PODS, "other", "r", pod("node-1", "job"));
    let names = |query: &str| {
        let mut names: Vec<_> = api.list(&format!("{PODS}{query}"));
        names.sort_by_key(|pod| pod["metadata"]["name"].to_string());
        let names = names.iter().map(|pod| pod["metadata"]["name"].as_str());
        let names: Vec<_> = names.map(|it| it.unwrap_or_default().to_owned()).collect();
        names.join(" ")
    };
    assert_eq!(names(""), "p q r");
    assert_eq!(names("?fieldSelector=spec.nodeName%3Dnode-1"), "p r");
    assert_eq!(names("?labelSelector=app%3Dweb"), "p q");
    assert_eq!(names("?fieldSelector=metadata.name%3Dq"), "q");

    // What is deleted is gone, and comes back as another.
    api.delete(&tunnels(), NAMESPACE, "a");
    let gone = api.list(&tunnels());
    assert!(gone.is_empty(), "{gone:?}");
    api.apply(&tunnels(), NAMESPACE, "a", tunnel(1));
    let again = api.get(&tunnels(), NAMESPACE, "a");
    assert_ne!(again["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(again["metadata"]["generation"], 1);

    // Secrets carry what they carry.
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                        "data": {"token": "dG9rZW4="}});
    api.apply(SECRETS, NAMESPACE, "login", secret);
    let kept = api.get(SECRETS, NAMESPACE, "login");
    assert_eq!(kept["data"]["token"], "dG9rZW4=");
    assert_eq!(kept["apiVersion"], "v1");

    // History goes on from a version, until that is forgotten.
    let since = format!(
        "{}?watch=true&timeoutSeconds=1&resourceVersion={}",
        tunnels(),
        version(&fourth).as_str().unwrap_or_default()
    );
    let types = |path: &str| {
        let events = api.events(path);
        let types = events.iter().map(|event| event["type"].as_str());
        let types: Vec<_> = types.map(|it| it.unwrap_or_default().to_owned()).collect();
        (types.join(" "), events)
    };
    assert_eq!(types(&since).0, "DELETED ADDED");
    api.compact();
    let (kinds, events) = types(&since);
    assert_eq!(kinds, "ERROR");
    assert_eq!(events[0]["object"]["code"], 410, "{events:?}");
}

/// Fields belong to whoever applies them, and conditions are told apart by their type.
fn behaves_as_to_managers(api: &ApiServer) {
    let spec = |port: u16| json!({"proxy": {"host": "proxy.example", "port": port}});
    let now = || api.get(&tunnels(), NAMESPACE, "m");
    let as_other = |name: &str, object: &Value, force: bool| {
        api.apply_as("other", &tunnels(), NAMESPACE, name, object, force)
    };
    let other = |body: Value| {
        let mut object =
            json!({"apiVersion": VERSION, "kind": "Tunnel", "metadata": {"name": "m"}});
        if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
            object.extend(body);
        }
        object
    };
    api.apply(&tunnels(), NAMESPACE, "m", object("Tunnel", &spec(1)));
    // What another has otherwise is a conflict.
    let conflict = as_other("m", &other(json!({"spec": spec(2)})), false);
    assert_eq!(conflict.status, 409, "{}", conflict.body);
    let named = r#"conflict with \"test\""#;
    assert!(conflict.body.contains(named), "{}", conflict.body);
    // What nobody has is added, and goes with who has added it.
    let port = json!({"spec": {"targetPort": 8443}});
    assert_eq!(as_other("m", &other(port), false).status, 200);
    let mut both = spec(1);
    both["targetPort"] = 8443.into();
    assert_eq!(now()["spec"], both);
    assert_eq!(as_other("m", &other(json!({})), false).status, 200);
    assert_eq!(now()["spec"], spec(1));
    // By force it changes hands, and is left alone by who had it.
    let forced = as_other("m", &other(json!({"spec": spec(2)})), true);
    assert_eq!(forced.status, 200, "{}", forced.body);
    assert_eq!(now()["spec"], spec(2));

    let conditions = |named: &[(&str, &str)]| {
        let all = named
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status}));
        other(json!({"status": {"conditions": all.collect::<Vec<_>>()}}))
    };
    let first = conditions(&[("Accepted", "True"), ("Programmed", "True")]);
    let answer = api.try_apply(&tunnels(), NAMESPACE, "m/status", &first);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let added = as_other("m/status", &conditions(&[("Admired", "True")]), false);
    assert_eq!(added.status, 200, "{}", added.body);
    let theirs = conditions(&[("Accepted", "False")]);
    assert_eq!(as_other("m/status", &theirs, false).status, 409);
    let answer = api.try_apply(&tunnels(), NAMESPACE, "m/status", &first);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let stand: Vec<Value> = now()["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut kinds: Vec<_> = stand.iter().map(|it| it["type"].to_string()).collect();
    kinds.sort();
    assert_eq!(kinds, [r#""Accepted""#, r#""Admired""#, r#""Programmed""#]);
    let managers = now()["metadata"]["managedFields"].clone();
    let of_status = |manager: &str| {
        let mut all = managers.as_array().into_iter().flatten();
        all.any(|it| it["manager"] == manager && it["subresource"] == "status")
    };
    assert!(of_status("test") && of_status("other"), "{managers}");

    // Who edits changes what he names; who replaces must have seen what is there.
    let stale = now();
    api.edit(
        &tunnels(),
        NAMESPACE,
        "m",
        &json!({"spec": {"targetPort": 80}}),
    );
    assert_eq!(now()["spec"]["targetPort"], 80);
    assert_eq!(now()["spec"]["proxy"], spec(2)["proxy"]);
    assert_eq!(now()["status"], stale["status"]);
    let answer = api.replace(&tunnels(), NAMESPACE, "m", &stale);
    assert_eq!(answer.status, 409, "{}", answer.body);
    let mut fresh = now();
    fresh["spec"] = spec(3);
    fresh["status"] = json!({});
    let answer = api.replace(&tunnels(), NAMESPACE, "m", &fresh);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(now()["spec"], spec(3));
    assert_eq!(now()["status"], stale["status"]);
    api.delete(&tunnels(), NAMESPACE, "m");
}
