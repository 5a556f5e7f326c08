//! An agent in a cluster: what its API server is told, and what it tells.

use std::time::Duration;

use serde_json::{Value, json};

use crate::addr::PROXY_V4;
use crate::agent::Agent;
use crate::servers::api_server::ApiServer;
use crate::{Scene, wait_for};

/// The root namespace of agents that are told of no other.
pub const ROOT: &str = "underpass-system";

/// Where the API has Tunnels.
pub const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";
/// Where it has ServiceEntries of ours.
pub const ENTRIES: &str = "/apis/underpass.dev/v1alpha1/serviceentries";
/// Where it has Secrets.
pub const SECRETS: &str = "/api/v1/secrets";
/// Where it has Events.
pub const EVENTS: &str = "/apis/events.k8s.io/v1/events";

/// For what must happen.
pub const SECONDS: Duration = Duration::from_secs(30);

/// A Tunnel for everything, through the world's proxy on this port; `more` are further fields of its
/// `proxy`.
pub fn tunnel(port: u16, more: Value) -> Value {
    let mut spec = json!({"targetHost": "AUTO_SNI", "proxy": {"host": PROXY_V4, "port": port}});
    if let (Some(proxy), Value::Object(more)) = (spec["proxy"].as_object_mut(), more) {
        proxy.extend(more);
    }
    of_spec(&spec)
}

/// A Tunnel with this spec.
pub fn of_spec(spec: &Value) -> Value {
    json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "Tunnel", "spec": spec})
}

/// A Secret with a token, which is given in Base64.
pub fn secret(token: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"token": token}})
}

/// What a condition of a Tunnel says: `STATUS REASON: MESSAGE`.
#[track_caller]
pub fn condition(api: &ApiServer, namespace: &str, name: &str, kind: &str) -> String {
    let tunnel = api.get(TUNNELS, namespace, name);
    let conditions = tunnel["status"]["conditions"].as_array().cloned();
    let found = conditions.iter().flatten().find(|it| it["type"] == kind);
    let word = |key: &str| found.and_then(|it| it[key].as_str()).unwrap_or_default();
    format!("{} {}: {}", word("status"), word("reason"), word("message"))
}

/// Waits until a Tunnel is in force on every node, as its status says of this very version.
#[track_caller]
pub fn wait_until_programmed(api: &ApiServer, namespace: &str, name: &str) {
    wait_for(
        &format!("{namespace}/{name} is programmed"),
        SECONDS,
        || {
            let tunnel = api.get(TUNNELS, namespace, name);
            let conditions = tunnel["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|it| {
                it["type"] == "Programmed"
                    && it["status"] == "True"
                    && it["observedGeneration"] == tunnel["metadata"]["generation"]
            })
        },
    );
}

/// Events with this reason, as `KIND NAMESPACE/NAME: NOTE`.
#[track_caller]
pub fn events(api: &ApiServer, reason: &str) -> Vec<String> {
    let events = api.list(EVENTS).into_iter();
    let told = events.filter(|event| event["reason"] == reason);
    told.map(|event| {
        let word = |at: &str| {
            event
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        format!(
            "{} {}/{}: {}",
            word("/regarding/kind"),
            word("/regarding/namespace"),
            word("/regarding/name"),
            word("/note")
        )
    })
    .collect()
}

/// The proxies of the policy that is in force.
#[track_caller]
pub fn proxies(agent: &Agent) -> Vec<String> {
    let status = agent.admin("/status");
    let proxies = status["policy"]["proxies"].as_array().cloned();
    let texts = proxies.iter().flatten().filter_map(Value::as_str);
    let mut proxies: Vec<String> = texts.map(str::to_owned).collect();
    proxies.sort();
    proxies
}

/// Waits until policy has the world's proxy on these ports, and no other.
#[track_caller]
pub fn wait_for_proxies(agent: &Agent, ports: &[u16]) {
    let expected: Vec<String> = ports
        .iter()
        .map(|port| format!("{PROXY_V4}:{port}"))
        .collect();
    wait_for(
        &format!("proxies {expected:?}\n{}", agent.tails()),
        SECONDS,
        || proxies(agent) == expected,
    );
}

/// Starts the agent of `node-1` in the cluster of this API server, and waits until it is ready.
#[track_caller]
pub fn start(scene: &Scene, api: &ApiServer) -> Agent {
    let mut agent = Agent::launch_in_cluster(scene, api, &[]);
    agent.wait_until_ready();
    agent
}

/// Whether the agent says that it has its API server.
#[track_caller]
pub fn is_connected(agent: &Agent) -> bool {
    agent.admin("/status")["cluster"]["connected"] == true
}
