//! An API server for tests: lists and watches of whatever it is given, and its faults.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::kubernetes::ClusterConfig;

/// Serves until it is dropped.
pub(super) struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinSet<()>>,
}

struct Shared {
    state: Mutex<State>,
    events: broadcast::Sender<(String, Value)>,
}

impl Shared {
    fn put(&self, collection: &str, namespace: &str, name: &str, mut object: Value) {
        let mut state = self.state.lock();
        state.version += 1;
        let metadata = &mut object["metadata"];
        metadata["namespace"] = namespace.into();
        metadata["name"] = name.into();
        metadata["resourceVersion"] = state.version.to_string().into();
        let key = (namespace.to_owned(), name.to_owned());
        let objects = state.objects.entry(collection.to_owned()).or_default();
        let is_there = objects.insert(key, object.clone()).is_some();
        let kind = if is_there { "MODIFIED" } else { "ADDED" };
        self.tell(&mut state, collection, kind, &object);
    }

    fn tell(&self, state: &mut State, collection: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        state
            .log
            .push((state.version, collection.to_owned(), event.clone()));
        let _ = self.events.send((collection.to_owned(), event));
    }
}

#[derive(Default)]
struct State {
    version: u64,
    /// Versions before are forgotten.
    oldest: u64,
    /// By collection, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    log: Vec<(u64, String, Value)>,
    answers: HashMap<String, u16>,
    requests: Vec<String>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Server {
    pub(super) async fn start() -> Self {
        let state = State {
            version: 10,
            ..State::default()
        };
        let mut server = Self {
            addr: ([127, 0, 0, 1], 0).into(),
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                events: broadcast::channel(10_000).0,
            }),
            serving: None,
        };
        server.come_back().await;
        server
    }

    /// Listens, at the same address as before.
    pub(super) async fn come_back(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.addr).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        self.addr = listener.local_addr().unwrap();
        let shared = Arc::clone(&self.shared);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move {
                        let (parts, body) = Request::into_parts(request);
                        let body = Incoming::collect(body).await.unwrap().to_bytes();
                        let answer = match parts.method {
                            Method::GET => answer(&shared, &parts),
                            _ => write_of(&shared, &parts, &body),
                        };
                        Ok::<_, Infallible>(answer)
                    }
                });
                connections.spawn(async move {
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    let _ = connection.await;
                });
            }
        });
        self.serving = Some(serving);
    }

    /// Breaks all connections and takes no more.
    pub(super) async fn go_away(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    /// A configuration that leads here.
    pub(super) fn config(&self) -> (ClusterConfig, NamedTempFile) {
        let mut file = NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.addr)}}],
            "users": [{"name": "u", "user": {"token": "hush"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        write!(file, "{config}").unwrap();
        let config = ClusterConfig {
            kubeconfig: Some(file.path().to_owned()),
            node: "node-1".to_owned(),
            root_namespace: "underpass-system".parse().unwrap(),
        };
        (config, file)
    }

    /// Has a collection (`/apis/underpass.dev/v1alpha1/tunnels`), empty if it is new.
    pub(super) fn serve(&self, collection: &str) {
        self.shared
            .state
            .lock()
            .objects
            .entry(collection.to_owned())
            .or_default();
    }

    /// Creates or changes an object.
    pub(super) fn put(&self, collection: &str, namespace: &str, name: &str, object: Value) {
        self.shared.put(collection, namespace, name, object);
    }

    /// An object as it is.
    pub(super) fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.shared.state.lock();
        let key = (namespace.to_owned(), name.to_owned());
        state.objects.get(collection)?.get(&key).cloned()
    }

    /// All objects of a collection.
    pub(super) fn all(&self, collection: &str) -> Vec<Value> {
        let state = self.shared.state.lock();
        let objects = state.objects.get(collection);
        objects
            .into_iter()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect()
    }

    pub(super) fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        let version = state.version.to_string();
        let objects = state.objects.get_mut(collection).unwrap();
        let mut object = objects
            .remove(&(namespace.to_owned(), name.to_owned()))
            .unwrap();
        object["metadata"]["resourceVersion"] = version.into();
        self.shared.tell(&mut state, collection, "DELETED", &object);
    }

    /// Sends something to the watches of a collection.
    pub(super) fn say(&self, collection: &str, event: Value) {
        let _ = self.shared.events.send((collection.to_owned(), event));
    }

    /// Forgets what was before: who asks for it is told 410.
    pub(super) fn compact(&self) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
    }

    /// Answers requests for a collection with this status; 0: as usual.
    pub(super) fn fail(&self, collection: &str, status: u16) {
        let mut state = self.shared.state.lock();
        state.answers.insert(collection.to_owned(), status);
    }

    /// Every request so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.shared.state.lock().requests.clone()
    }
}

/// POST, PUT, PATCH and DELETE. A patch takes the place of the object, or of its status.
fn write_of(shared: &Shared, request: &Parts, body: &[u8]) -> Answer {
    let path = request.uri.path();
    let (path, of_status) = match path.strip_suffix("/status") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let (root, rest) = path.split_once("/namespaces/").unwrap();
    let mut steps = rest.splitn(3, '/');
    let (namespace, plural) = (steps.next().unwrap(), steps.next().unwrap());
    let collection = format!("{root}/{plural}");
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    let name = match steps.next() {
        Some(name) => name.to_owned(),
        None => object["metadata"]["name"].as_str().unwrap().to_owned(),
    };
    let key = (namespace.to_owned(), name.clone());
    let mut state = shared.state.lock();
    let line = format!("{} {}", request.method, request.uri);
    state.requests.push(line);
    if let Some(code) = state.answers.get(&collection).filter(|code| **code != 0) {
        return status(*code);
    }
    let objects = state.objects.entry(collection.clone()).or_default();
    let before = objects.get(&key).cloned();
    match (&request.method, before) {
        (&Method::DELETE, _) => {
            objects.remove(&key);
            return status(200);
        }
        (&Method::POST, Some(_)) => return status(409),
        (&Method::PUT, Some(before))
            if object["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] =>
        {
            return status(409);
        }
        (&Method::PATCH, Some(mut before)) if of_status => {
            before["status"] = object["status"].take();
            object = before;
        }
        _ => {}
    }
    drop(state);
    shared.put(&collection, namespace, &name, object.clone());
    whole(StatusCode::OK, &object)
}

fn answer(shared: &Shared, request: &Parts) -> Answer {
    let mut state = shared.state.lock();
    state.requests.push(request.uri.to_string());
    let path = request.uri.path();
    let query: HashMap<String, String> =
        url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    if let Some(group) = path
        .strip_prefix("/apis/")
        .filter(|rest| !rest.contains('/'))
    {
        let has = |(at, _): (&String, &BTreeMap<_, _>)| {
            let version = at
                .strip_prefix(&format!("/apis/{group}/"))?
                .split('/')
                .next()?;
            Some(json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        };
        let versions: Vec<Value> = state.objects.iter().filter_map(has).collect();
        if versions.is_empty() {
            return status(404);
        }
        let group = json!({"kind": "APIGroup", "name": group, "versions": versions});
        return whole(StatusCode::OK, &group);
    }
    let (collection, namespace) = match path.split_once("/namespaces/") {
        Some((root, rest)) => {
            let (namespace, plural) = rest.split_once('/').unwrap();
            (format!("{root}/{plural}"), Some(namespace.to_owned()))
        }
        None => (path.to_owned(), None),
    };
    if let Some(code) = state.answers.get(&collection).filter(|code| **code != 0) {
        return status(*code);
    }
    let single = collection.rsplit_once('/');
    let single = single.filter(|(root, _)| state.objects.contains_key(*root));
    if let (Some((root, name)), Some(namespace)) = (single, &namespace) {
        let key = (namespace.clone(), name.to_owned());
        return match state.objects[root].get(&key) {
            Some(object) => whole(StatusCode::OK, object),
            None => status(404),
        };
    }
    let Some(objects) = state.objects.get(&collection) else {
        return status(404);
    };
    let name = query
        .get("fieldSelector")
        .and_then(|it| it.strip_prefix("metadata.name="));
    let label = query.get("labelSelector");
    let is_meant = move |object: &Value| {
        let metadata = &object["metadata"];
        namespace
            .as_ref()
            .is_none_or(|it| metadata["namespace"] == **it)
            && name.is_none_or(|it| metadata["name"] == *it)
            && label.is_none_or(|label| is_labelled(metadata, label))
    };
    if query.get("watch").is_none_or(|watch| watch != "true") {
        let items: Vec<&Value> = objects.values().filter(|object| is_meant(object)).collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
        });
        return whole(StatusCode::OK, &list);
    }
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let mut first: Vec<Value> = Vec::new();
    if from < state.oldest {
        let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
                          "message": "too old resource version"});
        first.push(json!({"type": "ERROR", "object": gone}));
    } else {
        let missed = state.log.iter().filter(|(version, at, event)| {
            *version > from && *at == collection && is_meant(&event["object"])
        });
        first.extend(missed.map(|(_, _, event)| event.clone()));
    }
    let names = (name.map(str::to_owned), label.cloned());
    let namespace = path
        .split_once("/namespaces/")
        .map(|(_, rest)| rest.split('/').next().unwrap().to_owned());
    let receiver = shared.events.subscribe();
    let start = (receiver, first.into_iter(), collection, namespace, names);
    let events = stream::unfold(
        start,
        |(mut receiver, mut first, collection, namespace, names)| async move {
            let event = loop {
                if let Some(event) = first.next() {
                    break event;
                }
                let (at, event) = receiver.recv().await.ok()?;
                let metadata = &event["object"]["metadata"];
                let is_it = at == collection
                    && namespace
                        .as_ref()
                        .is_none_or(|it| metadata["namespace"] == **it)
                    && names.0.as_ref().is_none_or(|it| metadata["name"] == **it)
                    && names
                        .1
                        .as_ref()
                        .is_none_or(|label| is_labelled(metadata, label));
                if is_it {
                    break event;
                }
            };
            let line = Bytes::from(format!("{event}\n"));
            Some((
                Ok(Frame::data(line)),
                (receiver, first, collection, namespace, names),
            ))
        },
    );
    Response::new(StreamBody::new(events).boxed_unsync())
}

/// Whether a selector of one label, `KEY=VALUE` or `KEY`, selects it.
fn is_labelled(metadata: &Value, selector: &str) -> bool {
    let labels = &metadata["labels"];
    match selector.split_once('=') {
        Some((key, value)) => labels[key] == value,
        None => !labels[selector].is_null(),
    }
}

fn status(code: u16) -> Answer {
    let code = StatusCode::from_u16(code).unwrap();
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "Reason",
    };
    let says = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                      "code": code.as_u16(), "reason": reason, "message": "as the test wants it"});
    whole(code, &says)
}

fn whole(status: StatusCode, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string()));
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer
}
