//! The API server of a cluster, as far as an agent needs one; see `programs/api_server.py`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::addr::PROXY_V4;
use crate::process::Running;
use crate::{Must as _, Place, Scene, http};

/// Where the agent finds it, with TLS.
const ADDRESS: (std::net::Ipv4Addr, u16) = (PROXY_V4, 6443);
/// Where the test does, without.
const PLAIN: (std::net::Ipv4Addr, u16) = (PROXY_V4, 6444);

/// What the agent is let in by.
const TOKEN: &str = "hush-hush";

/// The kinds that every cluster of these tests has.
const SERVED: [&str; 9] = [
    "/apis/underpass.dev/v1alpha1/tunnels",
    "/apis/underpass.dev/v1alpha1/serviceentries",
    "/apis/underpass.dev/v1alpha1/destinationrules",
    "/api/v1/secrets",
    "/api/v1/services",
    "/api/v1/pods",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/events.k8s.io/v1/events",
];

/// An API server that stands outside of the world's host.
pub struct ApiServer {
    _running: Running,
    place: Place,
    kubeconfig: PathBuf,
}

impl ApiServer {
    /// Starts it with the kinds of Kubernetes and of `deploy/crds`, and nothing in it.
    #[track_caller]
    pub fn start(scene: &Scene) -> Self {
        let place = scene.world.inet().clone();
        let address = SocketAddr::from(PLAIN);
        let mut running = place
            .python("api_server")
            .args([
                ADDRESS.0.to_string(),
                ADDRESS.1.to_string(),
                PLAIN.1.to_string(),
            ])
            .arg(scene.pki.certificate())
            .arg(scene.pki.key())
            .arg(TOKEN)
            .start();
        running.wait_until_listening(&place, address);
        let directory = scene.world.dir();
        let token = directory.join("token");
        fs::write(&token, TOKEN).must("write a token");
        let kubeconfig = directory.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}:{}", ADDRESS.0, ADDRESS.1),
                "certificate-authority": scene.pki.ca(),
                // What the certificate of these tests is for.
                "tls-server-name": "site.example",
            }}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&kubeconfig, config.to_string()).must("write a kubeconfig");
        let server = Self {
            _running: running,
            place,
            kubeconfig,
        };
        for path in SERVED {
            server.serve(path);
        }
        server
    }

    /// A configuration that leads to it.
    pub fn kubeconfig(&self) -> &str {
        self.kubeconfig.to_str().expect("a path of text")
    }

    /// Has it know another kind: `/apis/GROUP/VERSION/PLURAL`.
    #[track_caller]
    pub fn serve(&self, collection: &str) {
        self.ask("PUT", &format!("/served{collection}"), &json!({}));
    }

    /// Creates an object of a collection, or changes it into this one.
    #[track_caller]
    pub fn apply(&self, collection: &str, namespace: &str, name: &str, mut object: Value) {
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        let path = at(collection, namespace, name);
        self.ask(
            "PATCH",
            &format!("{path}?fieldManager=test&force=true"),
            &object,
        );
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        self.ask("DELETE", &at(collection, namespace, name), &json!({}));
    }

    /// An object as it is.
    #[track_caller]
    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Value {
        self.ask("GET", &at(collection, namespace, name), &Value::Null)
    }

    /// All objects of a collection.
    #[track_caller]
    pub fn list(&self, collection: &str) -> Vec<Value> {
        let list = self.ask("GET", collection, &Value::Null);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Applies many objects of a collection at once.
    #[track_caller]
    pub fn apply_all(&self, collection: &str, mut objects: Vec<Value>) {
        for object in &mut objects {
            object["path"] = collection.into();
        }
        self.ask("POST", "/bulk", &objects.into());
    }

    /// Breaks its connections with agents, and takes none for so long.
    #[track_caller]
    pub fn go_away(&self, time: Duration) {
        let path = format!("/fault/away?seconds={}", time.as_secs_f64());
        self.ask("POST", &path, &json!({}));
    }

    /// Forgets what was: who asks for it is told 410.
    #[track_caller]
    pub fn compact(&self) {
        self.ask("POST", "/fault/compact", &json!({}));
    }

    /// Every request of agents so far: `METHOD PATH?QUERY`.
    #[track_caller]
    pub fn requests(&self) -> Vec<String> {
        let requests = self.ask("GET", "/requests", &Value::Null);
        let texts = requests.as_array().into_iter().flatten();
        texts
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let answer = http::ask(&self.place, PLAIN.into(), method, path, &body);
        let answer = answer.must(format_args!("{method} {path}"));
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        serde_json::from_str(&answer.body).must("read an answer as JSON")
    }
}

fn at(collection: &str, namespace: &str, name: &str) -> String {
    let (root, plural) = collection.rsplit_once('/').unwrap_or_default();
    format!("{root}/namespaces/{namespace}/{plural}/{name}")
}
