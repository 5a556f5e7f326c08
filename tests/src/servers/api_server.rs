//! The API server of a cluster, as far as an agent needs one; see `programs/api_server.py`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use serde_json::{Value, json};

use crate::addr::PROXY_V4;
use crate::pki::Issued;
use crate::process::Running;
use crate::{Must as _, Place, Scene, http, manifests, tools};

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
    /// Starts it with the kinds of Kubernetes and of `deploy/crds`, and nothing in it: the fake, or
    /// where the variable `UNDERPASS_KUBE` is `real`, that of Kubernetes.
    #[track_caller]
    pub fn start(scene: &Scene) -> Self {
        match env::var("UNDERPASS_KUBE").as_deref() {
            Ok("real") => Self::start_real(scene).expect("the API server of Kubernetes"),
            _ => Self::start_fake(scene),
        }
    }

    /// Starts the fake.
    #[track_caller]
    pub fn start_fake(scene: &Scene) -> Self {
        Self::launch(scene, "api_server", &[])
    }

    /// Starts the API server of Kubernetes, as far as that serves custom resources, where set-up
    /// has been able to build it. Each definition of `deploy/crds` is taken by it and established.
    #[track_caller]
    #[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
    pub fn start_real(scene: &Scene) -> Option<Self> {
        let Some(program) = tools::find("kubernetes/apiextensions-apiserver") else {
            println!(
                "SKIPPED: there is no API server of Kubernetes; `cargo xtask setup` builds it, or says \
                 why it cannot"
            );
            return None;
        };
        let programs = program.parent().expect("a directory");
        let definitions = manifests::deploy("crds");
        Some(Self::launch(
            scene,
            "real_api_server",
            &[programs, &definitions],
        ))
    }

    #[track_caller]
    fn launch(scene: &Scene, script: &str, arguments: &[&Path]) -> Self {
        let place = scene.world.inet().clone();
        let address = SocketAddr::from(PLAIN);
        let mut running = place
            .python(script)
            .args([
                ADDRESS.0.to_string(),
                ADDRESS.1.to_string(),
                PLAIN.1.to_string(),
            ])
            .arg(scene.pki.certificate())
            .arg(scene.pki.key())
            .arg(TOKEN)
            .args(arguments)
            .start();
        let ready = format!("{script} answers on {address}");
        running.wait_for(&ready, Duration::from_secs(60), || {
            place.connect(address).is_ok()
        });
        let directory = scene.world.dir();
        let kubeconfig = directory.join("kubeconfig");
        let server = Self {
            _running: running,
            place,
            kubeconfig: kubeconfig.clone(),
        };
        let [authority, token] = server.files();
        fs::write(&token, TOKEN).must("write a token");
        fs::copy(scene.pki.ca(), &authority).must("copy a certificate");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}:{}", ADDRESS.0, ADDRESS.1),
                "certificate-authority": authority,
                // What the certificate of these tests is for.
                "tls-server-name": "site.example",
            }}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&kubeconfig, config.to_string()).must("write a kubeconfig");
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

    /// Tries to; the answer, whatever it is.
    #[track_caller]
    pub fn try_apply(
        &self,
        collection: &str,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> http::Answer {
        self.apply_as("test", collection, namespace, name, object, true)
    }

    /// Applies as another `manager` of fields, by force or not; the answer, whatever it is.
    #[track_caller]
    pub fn apply_as(
        &self,
        manager: &str,
        collection: &str,
        namespace: &str,
        name: &str,
        object: &Value,
        force: bool,
    ) -> http::Answer {
        let path = at(collection, namespace, name);
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let answer = http::ask(
            &self.place,
            PLAIN.into(),
            "PATCH",
            &path,
            &object.to_string(),
        );
        answer.must(format_args!("PATCH {path}"))
    }

    /// Changes some fields of an object, as `kubectl edit` does.
    #[track_caller]
    pub fn edit(&self, collection: &str, namespace: &str, name: &str, patch: &Value) {
        let path = at(collection, namespace, name);
        let kind = "application/merge-patch+json";
        let patch = patch.to_string();
        let answer = http::send(&self.place, PLAIN.into(), "PATCH", &path, kind, &patch);
        let answer = answer.must(format_args!("PATCH {path}"));
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }

    /// Puts an object in the place of the one whose `metadata.resourceVersion` it has; the answer.
    #[track_caller]
    pub fn replace(
        &self,
        collection: &str,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> http::Answer {
        let path = at(collection, namespace, name);
        let answer = http::ask(&self.place, PLAIN.into(), "PUT", &path, &object.to_string());
        answer.must(format_args!("PUT {path}"))
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

    /// The version that the whole has reached.
    #[track_caller]
    pub fn version(&self) -> String {
        let list = self.ask("GET", SERVED[0], &Value::Null);
        let version = list["metadata"]["resourceVersion"].as_str();
        version.expect("a version").to_owned()
    }

    /// What a watch tells that ends: `COLLECTION?watch=true&timeoutSeconds=1&resourceVersion=VERSION`.
    #[track_caller]
    pub fn events(&self, path: &str) -> Vec<Value> {
        let answer = http::ask(&self.place, PLAIN.into(), "GET", path, "");
        let body = answer.must(format_args!("GET {path}")).body;
        // Each event stands in a line, and sizes of chunks between them.
        let lines = body.lines().filter(|line| line.starts_with('{'));
        lines
            .map(|line| serde_json::from_str(line).must("read an event as JSON"))
            .collect()
    }

    /// Applies many objects of a collection at once.
    #[track_caller]
    pub fn apply_all(&self, collection: &str, mut objects: Vec<Value>) {
        for object in &mut objects {
            object["path"] = collection.into();
        }
        // Each part has its own time to be answered.
        for part in objects.chunks(500) {
            self.ask("POST", "/bulk", &part.into());
        }
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

    /// Has it answer requests of agents for a collection with this status, and tell them to come again
    /// after so many seconds if that is not 0.
    #[track_caller]
    pub fn answer(&self, collection: &str, status: u16, after: u32) {
        let path = format!("/fault/answer?path={collection}&status={status}&after={after}");
        self.ask("POST", &path, &json!({}));
    }

    /// Has it answer them as usual.
    #[track_caller]
    pub fn recover(&self, collection: &str) {
        self.answer(collection, 0, 0);
    }

    /// Has the watches of a collection that there are now be heard no more, without an end.
    #[track_caller]
    pub fn hang(&self, collection: &str) {
        self.of_watches("hang", collection, &json!({}));
    }

    /// Ends a watch of a collection in the middle of its next event.
    #[track_caller]
    pub fn cut(&self, collection: &str) {
        self.of_watches("cut", collection, &json!({}));
    }

    /// Has the watches of a collection say this line.
    #[track_caller]
    pub fn say(&self, collection: &str, line: &str) {
        self.of_watches("say", collection, &json!({"line": line}));
    }

    #[track_caller]
    fn of_watches(&self, fault: &str, collection: &str, body: &Value) {
        let path = format!("/fault/{fault}?path={collection}");
        let told = self.ask("POST", &path, body);
        assert_ne!(told["watches"], 0, "nobody watches {collection}");
    }

    /// Has it be known by this certificate, and agents by this token, from the next connection on.
    #[track_caller]
    pub fn become_another(&self, identity: &Issued, token: &str) {
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        let path = format!("/fault/identity?certificate={certificate}&key={key}&token={token}");
        self.ask("POST", &path, &json!({}));
    }

    /// The files that `kubeconfig` names: that of the authority, and that of the token.
    pub fn files(&self) -> [PathBuf; 2] {
        let directory = self.kubeconfig.parent().expect("a directory");
        [directory.join("api-ca.crt"), directory.join("token")]
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
