//! What the cluster is told of policy, beside others who write there as well.

use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::cluster::{
    ENTRIES, ROOT, SECONDS, TUNNELS, condition, events, of_spec, start, tunnel, wait_for_proxies,
    wait_until_programmed,
};
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Scene, poll, wait_for};

const RULES: &str = "/apis/underpass.dev/v1alpha1/destinationrules";

fn status(conditions: &[(&str, &str)]) -> Value {
    let all = conditions
        .iter()
        .map(|(kind, status)| json!({"type": kind, "status": status, "reason": "Theirs"}));
    let mut object = of_spec(&Value::Null);
    if let Some(object) = object.as_object_mut() {
        object.remove("spec");
    }
    object["metadata"] = json!({"name": "all"});
    object["status"] = json!({"conditions": all.collect::<Vec<_>>()});
    object
}

#[test]
fn conditions_of_others_stay_and_ours_come_back_when_somebody_else_takes_them() {
    let scene = Scene::new("kube-owners");
    let api = ApiServer::start(&scene);
    let agent = start(&scene, &api);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    wait_until_programmed(&api, ROOT, "all");
    let says = |kind: &str| condition(&api, ROOT, "all", kind);
    let writes = || {
        let requests = api.requests().into_iter();
        requests
            .filter(|request| request.contains("/tunnels/all/status"))
            .count()
    };
    let at = "all/status";
    let admired = status(&[("Admired", "True")]);
    let answer = api.apply_as("other", TUNNELS, ROOT, at, &admired, false);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let before = writes();
    api.apply(TUNNELS, ROOT, "all", tunnel(3129, json!({})));
    wait_until_programmed(&api, ROOT, "all");
    assert!(
        says("Admired").starts_with("True Theirs"),
        "{}",
        says("Admired")
    );
    // Beside it, nothing is ever new.
    let more = poll(std::time::Duration::from_secs(7), || {
        (writes() > before + 1).then(writes)
    });
    assert_eq!(more, None);

    // What is ours is not another's to say, nor a conflict that nobody gets out of.
    let theirs = status(&[("Admired", "True"), ("Programmed", "Unknown")]);
    let refused = api.apply_as("other", TUNNELS, ROOT, at, &theirs, false);
    assert_eq!(refused.status, 409, "{}", refused.body);
    let forced = api.apply_as("other", TUNNELS, ROOT, at, &theirs, true);
    assert_eq!(forced.status, 200, "{}", forced.body);
    wait_until_programmed(&api, ROOT, "all");
    assert!(
        says("Admired").starts_with("True Theirs"),
        "{}",
        says("Admired")
    );
    drop(agent);
}

#[test]
fn edits_and_status_do_not_get_in_each_others_way() {
    const EDITS: u16 = 30;
    let scene = Scene::new("kube-edits");
    let api = ApiServer::start(&scene);
    let agent = start(&scene, &api);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    wait_until_programmed(&api, ROOT, "all");
    for port in 3129..=3128 + EDITS {
        let patch = json!({"spec": {"proxy": {"port": port}}});
        api.edit(TUNNELS, ROOT, "all", &patch);
    }
    wait_for_proxies(&agent, &[3128 + EDITS]);
    wait_until_programmed(&api, ROOT, "all");
    let now = api.get(TUNNELS, ROOT, "all");
    assert_eq!(now["metadata"]["generation"], EDITS + 1);
    assert_eq!(now["spec"]["proxy"]["port"], 3128 + EDITS);

    // Who has read before status was written has to read again, and then is heard.
    let mut replaced = false;
    let took = poll(SECONDS, || {
        let mut object = api.get(TUNNELS, ROOT, "all");
        object["spec"]["proxy"]["port"] = 3200.into();
        replaced |= api.replace(TUNNELS, ROOT, "all", &object).status == 200;
        replaced.then_some(())
    });
    assert!(took.is_some());
    wait_for_proxies(&agent, &[3200]);
    wait_until_programmed(&api, ROOT, "all");
}

#[test]
fn what_is_created_anew_under_an_old_name_is_judged_anew() {
    let scene = Scene::new("kube-anew");
    let api = ApiServer::start(&scene);
    let agent = start(&scene, &api);
    let good = || tunnel(3128, json!({}));
    let bad = || tunnel(3128, json!({"headers": {"Host": "other.example"}}));
    let accepted = || {
        let now = api.get(TUNNELS, ROOT, "all");
        let conditions = now["status"]["conditions"].as_array().cloned();
        let found = conditions.into_iter().flatten();
        found.into_iter().find(|it| it["type"] == "Accepted")
    };
    api.apply(TUNNELS, ROOT, "all", good());
    wait_until_programmed(&api, ROOT, "all");
    let mut uid = api.get(TUNNELS, ROOT, "all")["metadata"]["uid"].clone();
    for (object, expected) in [(bad(), "False"), (good(), "True"), (bad(), "False")] {
        api.delete(TUNNELS, ROOT, "all");
        api.apply(TUNNELS, ROOT, "all", object);
        wait_for(&format!("it is {expected}"), SECONDS, || {
            accepted().is_some_and(|it| it["status"] == expected)
        });
        let told = accepted().expect("a condition");
        let now = api.get(TUNNELS, ROOT, "all");
        assert_ne!(now["metadata"]["uid"], uid);
        uid = now["metadata"]["uid"].clone();
        assert_eq!(now["metadata"]["generation"], 1);
        assert_eq!(told["observedGeneration"], 1);
        // And then another version of the same.
        let other = tunnel(3129, json!({}));
        api.apply(TUNNELS, ROOT, "all", other);
        wait_until_programmed(&api, ROOT, "all");
        let told = accepted().expect("a condition");
        assert_eq!(told["observedGeneration"], 2);
    }
    drop(agent);
}

#[test]
fn events_tell_of_documents_that_are_refused_and_of_proxies_that_refuse() {
    let scene = Scene::new("kube-events");
    let api = ApiServer::start(&scene);
    let wants = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                 Proxy-Authenticate: Basic realm=\"test\"\r\nContent-Length: 0\r\n\r\n";
    let answer = Answer::Send(wants.into());
    let inet = scene.world.inet();
    let _proxy = FakeProxy::start(inet, proxy_v4(), answer.clone());
    let agent = start(&scene, &api);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, json!({})));
    wait_until_programmed(&api, ROOT, "all");
    let site = scene.curl("https://site.example/").args(["-4"]);
    for _ in 0..3 {
        assert_ne!(scene.captured(&site).exit, 0);
    }
    let of = |reason: &str| events(&api, reason);
    let wanted = format!(
        "Tunnel {ROOT}/all: proxy {PROXY_V4}:3128 answers 407: it wants other credentials than those \
         of the Secret, or any at all"
    );
    wait_for("an event", SECONDS, || {
        !of("ProxyAuthenticationRequired").is_empty()
    });
    assert_eq!(of("ProxyAuthenticationRequired"), [wanted]);

    // Of a DestinationRule as well, and of whatever is refused.
    let rule = |spec: Value| json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "DestinationRule", "spec": spec});
    let other = SocketAddr::from((PROXY_V4, 3129));
    let _other = FakeProxy::start(inet, other, answer);
    let through = json!({"targetHost": "site.example", "targetPort": 443,
                         "proxy": {"host": PROXY_V4, "port": 3129}});
    api.apply(
        RULES,
        ROOT,
        "site",
        rule(json!({"host": "site.example", "trafficPolicy": {"tunnel": through}})),
    );
    let entry = |spec: Value| json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry", "spec": spec});
    api.apply(
        ENTRIES,
        ROOT,
        "site",
        entry(json!({"hosts": ["site.example"], "resolution": "DNS",
                     "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]})),
    );
    wait_for_proxies(&agent, &[3128, 3129]);
    assert_ne!(scene.captured(&site).exit, 0);
    let wanted = format!("DestinationRule {ROOT}/site: proxy {PROXY_V4}:3129 answers 407");
    wait_for("an event about it", SECONDS, || {
        let all = of("ProxyAuthenticationRequired");
        all.iter().any(|event| event.starts_with(&wanted))
    });

    let file = json!({"host": "a.example", "trafficPolicy": {
        "tls": {"mode": "SIMPLE", "caCertificates": "/etc/ca.crt"}}});
    api.apply(RULES, "team-a", "files", rule(file));
    let twice = json!({"hosts": ["a.example"], "ports": [{"number": 1, "name": "x"}],
                       "addresses": ["203.0.113.10/33"]});
    api.apply(ENTRIES, "team-a", "range", entry(twice));
    wait_for("events about both", SECONDS, || {
        let all = of("Rejected");
        let is_told = |start: &str| all.iter().any(|event| event.starts_with(start));
        is_told(
            "DestinationRule team-a/files: spec.trafficPolicy.tls.caCertificates: files of the node",
        ) && is_told("ServiceEntry team-a/range: spec.addresses[0]: ")
    });
    drop(agent);
}
