mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Api, follow, report};
use crate::dns::Resolver;
use crate::kubernetes::{ClusterConfig, Feed};
use crate::policy::{Options, Paths, load_cluster};
use crate::sockets::PlainSockets;
use crate::workload::Pods;
use server::Server;

/// For what must happen.
const SECONDS: Duration = Duration::from_secs(30);

const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";
const ENTRIES: &str = "/apis/underpass.dev/v1alpha1/serviceentries";
const RULES: &str = "/apis/underpass.dev/v1alpha1/destinationrules";
const ISTIO_ENTRIES: &str = "/apis/networking.istio.io/v1/serviceentries";
const SECRETS: &str = "/api/v1/secrets";
const PODS: &str = "/api/v1/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
const EVENTS: &str = "/apis/events.k8s.io/v1/events";
const ROOT: &str = "underpass-system";

fn tunnel(proxy: &str) -> Value {
    json!({"spec": {"proxy": {"host": proxy, "port": 3128}}})
}

async fn server() -> Server {
    let server = Server::start().await;
    for collection in [TUNNELS, ENTRIES, RULES, SECRETS, PODS, LEASES, EVENTS] {
        server.serve(collection);
    }
    server
}

/// A feed that follows a server, until it is dropped.
struct Followed {
    feed: Arc<Feed>,
    pods: Arc<Pods>,
    api: Api,
    config: ClusterConfig,
    tasks: JoinSet<()>,
}

impl Followed {
    async fn of(server: &Server) -> Self {
        let (config, _file) = server.config();
        let sockets: Arc<_> = Arc::new(PlainSockets);
        let nothing = Path::new("/dev/null");
        let resolver = Resolver::from_files(Arc::clone(&sockets) as _, nothing, nothing);
        let api = Api::new(&config, sockets, resolver).await.unwrap();
        let feed = Arc::new(Feed::default());
        let mut tasks = JoinSet::new();
        let following = follow(
            api.clone(),
            config.node.clone(),
            Arc::clone(&feed),
            Registry::new(),
        );
        tasks.spawn(following);
        Self {
            pods: feed.pods(),
            feed,
            api,
            config,
            tasks,
        }
    }

    /// Has it tell the cluster what becomes of its policy, as the agent of this node.
    fn report(&mut self, node: &str) -> IntCounterVec {
        let opts = Opts::new("underpass_tunnel_requests_total", "help");
        let labels = ["proxy", "policy", "protocol", "code"];
        let requests = IntCounterVec::new(opts, &labels).unwrap();
        let config = ClusterConfig {
            node: node.to_owned(),
            ..self.config.clone()
        };
        let (api, feed) = (self.api.clone(), Arc::clone(&self.feed));
        self.tasks
            .spawn(report(api, config, requests.clone(), feed));
        requests
    }

    /// Reads its policy, and says what came of it.
    fn judge(&self) {
        let options = Options::default();
        let loaded = load_cluster(self.feed.documents(), &Paths::default(), &options, None);
        self.feed.judge(&loaded.rejected, None);
    }

    /// The proxies of its policy, and what is wrong with it.
    fn policy(&self) -> (Vec<String>, Vec<String>) {
        let options = Options::default();
        let loaded = load_cluster(self.feed.documents(), &Paths::default(), &options, None);
        let policy = loaded.policy.unwrap();
        let mut proxies: Vec<String> = policy.proxies().map(ToString::to_string).collect();
        proxies.sort();
        let problems = loaded.rejected.iter().map(ToString::to_string).collect();
        (proxies, problems)
    }

    /// Waits until it is as expected, looking only when a change was told.
    async fn until(&self, what: &str, mut expected: impl FnMut(&Self) -> bool) {
        let waiting = async {
            loop {
                self.feed.changed().await;
                if expected(self) {
                    return;
                }
            }
        };
        let waited = timeout(SECONDS, waiting).await;
        assert!(
            waited.is_ok(),
            "{what}: {:?}, {}",
            self.policy(),
            self.feed.to_json()
        );
    }

    async fn until_proxies(&self, expected: &[&str]) {
        let what = format!("{expected:?}");
        self.until(&what, |it| it.policy().0 == expected).await;
    }
}

#[tokio::test]
async fn objects_come_change_and_go() {
    let server = server().await;
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    let followed = Followed::of(&server).await;
    followed.until_proxies(&["one.example:3128"]).await;
    server.put(TUNNELS, "team-a", "two", tunnel("two.example"));
    followed
        .until_proxies(&["one.example:3128", "two.example:3128"])
        .await;
    server.put(TUNNELS, "team-a", "one", tunnel("other.example"));
    followed
        .until_proxies(&["other.example:3128", "two.example:3128"])
        .await;
    server.delete(TUNNELS, "team-a", "two");
    followed.until_proxies(&["other.example:3128"]).await;
    assert_eq!(followed.feed.tunnels().len(), 1);
    let all_secrets = server.requests().iter().any(|uri| uri.starts_with(SECRETS));
    assert!(!all_secrets, "{:?}", server.requests());
}

#[tokio::test]
async fn what_is_bad_hides_nothing_and_is_told_with_its_object() {
    let server = server().await;
    server.put(
        TUNNELS,
        "team-a",
        "bad",
        json!({"spec": {"proxy": {"port": 1}}}),
    );
    server.put(TUNNELS, "team-b", "bad", tunnel("good.example"));
    let followed = Followed::of(&server).await;
    followed.until_proxies(&["good.example:3128"]).await;
    assert_eq!(
        followed.policy().1,
        ["Tunnel team-a/bad: spec.proxy.host: it is missing"]
    );
}

#[tokio::test]
async fn secrets_that_are_referred_to_are_watched_and_no_others() {
    let server = server().await;
    let followed = Followed::of(&server).await;
    followed.until_proxies(&[]).await;
    let mut wanted = tunnel("proxy.example");
    wanted["spec"]["proxy"]["authentication"] = json!({"credentialName": "login"});
    server.put(TUNNELS, "team-a", "one", wanted);
    followed
        .until("no such Secret", |it| it.policy().1.len() == 1)
        .await;
    let secret = |token: &str| json!({"type": "Opaque", "data": {"token": token}});
    server.put(SECRETS, "team-b", "login", secret("dGhlaXJz"));
    server.put(SECRETS, "team-a", "login", secret("b3Vycw=="));
    followed.until_proxies(&["proxy.example:3128"]).await;
    server.put(SECRETS, "team-a", "login", secret("b@d!"));
    followed
        .until("a bad one", |it| !it.policy().1.is_empty())
        .await;
    assert!(!followed.policy().1[0].contains("b@d!"));
    server.delete(TUNNELS, "team-a", "one");
    followed
        .until("forgotten", |it| it.policy().1.is_empty())
        .await;
    let mut requests = server.requests();
    requests.retain(|uri| uri.contains("secrets"));
    assert!(!requests.is_empty());
    let only = |uri: &String| {
        uri.starts_with("/api/v1/namespaces/team-a/secrets?")
            && uri.contains("&fieldSelector=metadata.name%3Dlogin&")
    };
    assert!(requests.iter().all(only), "{requests:?}");
}

#[tokio::test]
async fn policy_stays_while_the_server_is_away_and_follows_when_it_is_back() {
    let mut server = server().await;
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    let followed = Followed::of(&server).await;
    followed.until_proxies(&["one.example:3128"]).await;
    assert_eq!(followed.feed.outage(), None);
    server.go_away().await;
    let lost = async {
        while followed.feed.outage().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SECONDS, lost).await.unwrap();
    assert_eq!(followed.policy().0, ["one.example:3128"]);
    server.put(TUNNELS, "team-a", "two", tunnel("two.example"));
    server.delete(TUNNELS, "team-a", "one");
    server.come_back().await;
    followed.until_proxies(&["two.example:3128"]).await;
    let back = async {
        while followed.feed.outage().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SECONDS, back).await.unwrap();
}

#[tokio::test]
async fn what_was_missed_for_good_is_listed_anew() {
    let mut server = server().await;
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    server.put(TUNNELS, "team-a", "two", tunnel("two.example"));
    let followed = Followed::of(&server).await;
    followed
        .until_proxies(&["one.example:3128", "two.example:3128"])
        .await;
    server.go_away().await;
    server.delete(TUNNELS, "team-a", "one");
    server.compact();
    server.come_back().await;
    followed.until_proxies(&["two.example:3128"]).await;
}

#[tokio::test]
async fn what_cannot_be_read_ends_no_watch() {
    let server = server().await;
    let followed = Followed::of(&server).await;
    followed.until_proxies(&[]).await;
    server.say(
        TUNNELS,
        json!({"type": "ADDED", "object": {"metadata": "none"}}),
    );
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    followed.until_proxies(&["one.example:3128"]).await;
}

#[tokio::test]
async fn failures_of_one_kind_stop_the_others_only_at_the_start() {
    let server = server().await;
    server.fail(ENTRIES, 500);
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    let followed = Followed::of(&server).await;
    let early = timeout(Duration::from_millis(700), followed.feed.changed()).await;
    assert!(early.is_err(), "ServiceEntries are not known");
    assert!(followed.feed.outage().unwrap().contains("500"));
    server.fail(ENTRIES, 0);
    followed.until_proxies(&["one.example:3128"]).await;
}

#[tokio::test]
async fn kinds_of_istio_are_taken_when_they_are_there() {
    let server = server().await;
    server.put(
        TUNNELS,
        "team-a",
        "one",
        json!({"spec": {"proxy": {"host": "proxy.example"}}}),
    );
    let followed = Followed::of(&server).await;
    followed
        .until("no port", |it| it.policy().1.len() == 1)
        .await;
    assert_eq!(followed.feed.outage(), None);
    let entry = json!({"spec": {"hosts": ["proxy.example"],
                                "ports": [{"number": 3128, "name": "x", "protocol": "HTTP"}]}});
    server.put(ISTIO_ENTRIES, "team-a", "proxy", entry);
    followed.until_proxies(&["proxy.example:3128"]).await;
}

#[tokio::test]
async fn who_may_not_read_secrets_is_told_and_goes_on() {
    let server = server().await;
    server.fail(SECRETS, 403);
    let mut wanted = tunnel("proxy.example");
    wanted["spec"]["proxy"]["authentication"] = json!({"credentialName": "login"});
    server.put(TUNNELS, "team-a", "one", wanted);
    server.put(TUNNELS, "team-a", "two", tunnel("two.example"));
    let followed = Followed::of(&server).await;
    followed.until_proxies(&["two.example:3128"]).await;
    assert_eq!(
        followed.feed.to_json()["refused"],
        json!(["secrets team-a/login"])
    );
    assert_eq!(followed.feed.outage(), None);
}

#[tokio::test]
async fn who_may_not_read_policy_or_is_not_known_waits_for_it() {
    let server = server().await;
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    for (kind, status) in [(TUNNELS, 401), (TUNNELS, 403), (ENTRIES, 403), (RULES, 403)] {
        server.fail(kind, status);
        let followed = Followed::of(&server).await;
        wait_for("it is noticed", || followed.feed.obstacle().is_some()).await;
        assert_eq!(followed.feed.outage().is_some(), status == 401);
        let early = timeout(Duration::from_millis(700), followed.feed.changed()).await;
        assert!(early.is_err(), "{kind} is not known: {status}");
        server.fail(kind, 0);
        followed.until_proxies(&["one.example:3128"]).await;
        assert_eq!(followed.feed.obstacle(), None);
    }
}

/// Waits until `expected` is so.
async fn wait_for(what: &str, mut expected: impl FnMut() -> bool) {
    let waiting = async {
        while !expected() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(SECONDS, waiting).await;
    assert!(waited.is_ok(), "{what}");
}

#[tokio::test]
async fn pods_of_the_node_are_known_by_what_their_cgroups_call_them() {
    let server = server().await;
    let pod = |app: &str| {
        json!({"metadata": {"uid": "u-1", "labels": {"app": app}},
               "spec": {"nodeName": "node-1", "containers": []}})
    };
    server.put(PODS, "shop", "web", pod("web"));
    let followed = Followed::of(&server).await;
    let app = || {
        let pod = followed.pods.get("u-1")?;
        pod.labels.get("app").cloned()
    };
    wait_for("it is known", || app().as_deref() == Some("web")).await;
    server.put(PODS, "shop", "web", pod("shop"));
    wait_for("it has other labels", || app().as_deref() == Some("shop")).await;
    server.delete(PODS, "shop", "web");
    wait_for("it is gone", || app().is_none()).await;
    let mut requests = server.requests();
    requests.retain(|uri| uri.starts_with(PODS));
    let only = |uri: &String| uri.contains("fieldSelector=spec.nodeName%3Dnode-1");
    assert!(requests.iter().all(only), "{requests:?}");
}

/// `STATUS REASON` of a condition.
fn condition(server: &Server, name: &str, kind: &str) -> String {
    let tunnel = server.get(TUNNELS, "team-a", name).unwrap();
    let conditions = tunnel["status"]["conditions"].as_array().cloned();
    let found = conditions.iter().flatten().find(|it| it["type"] == kind);
    let word = |key: &str| found.and_then(|it| it[key].as_str()).unwrap_or_default();
    format!("{} {}", word("status"), word("reason"))
}

#[tokio::test]
async fn conditions_tell_of_all_nodes_and_are_written_once() {
    let server = server().await;
    let mut versioned = tunnel("one.example");
    versioned["metadata"] = json!({"generation": 1, "uid": "u"});
    server.put(TUNNELS, "team-a", "good", versioned);
    server.put(
        TUNNELS,
        "team-a",
        "bad",
        json!({"spec": {"proxy": {"port": 1}}}),
    );
    let mut first = Followed::of(&server).await;
    let mut second = Followed::of(&server).await;
    for followed in [&first, &second] {
        followed.until_proxies(&["one.example:3128"]).await;
    }
    // No name of a node is in the way of the leader's Lease.
    first.report("status");
    first.judge();
    let is = |name: &str, kind: &str, expected: &str| condition(&server, name, kind) == expected;
    wait_for("on the first", || {
        is("good", "Programmed", "True Programmed")
    })
    .await;
    assert!(is("good", "Accepted", "True Accepted"));
    wait_for("the bad one", || is("bad", "Accepted", "False Invalid")).await;
    assert!(is("bad", "Programmed", "False Invalid"));
    // A node that has not got it.
    second.report("node-2");
    second.feed.judge([], Some("it cannot".to_owned()));
    wait_for("on one of two", || {
        is("good", "Programmed", "False Pending")
    })
    .await;
    let status = || server.get(TUNNELS, "team-a", "good").unwrap()["status"]["nodes"].clone();
    assert_eq!(status(), json!({"programmed": 1, "total": 2}));
    second.judge();
    wait_for("on both", || is("good", "Programmed", "True Programmed")).await;
    assert_eq!(status(), json!({"programmed": 2, "total": 2}));
    let holder = server.get(LEASES, ROOT, "underpass.status").unwrap();
    assert_eq!(holder["spec"]["holderIdentity"], "status");
    // Nothing is written while nothing changes, also not when an agent starts anew.
    let writes = |of: &str| {
        let requests = server.requests().into_iter();
        requests.filter(|uri| uri.contains(of)).count()
    };
    let status_writes = || writes("/tunnels/good/status");
    let before = status_writes();
    first.judge();
    drop(second);
    let mut second = Followed::of(&server).await;
    second.until_proxies(&["one.example:3128"]).await;
    let lease_writes = || writes("/leases/underpass-node-2?");
    let leases_before = lease_writes();
    second.report("node-2");
    second.judge();
    wait_for("its Lease", || lease_writes() > leases_before).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(status_writes(), before);
    // What is bad is told once.
    let rejected = || {
        let events = server.all(EVENTS).into_iter();
        events
            .filter(|event| event["reason"] == "Rejected")
            .collect::<Vec<_>>()
    };
    wait_for("an event", || !rejected().is_empty()).await;
    let events = rejected();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["regarding"]["name"], "bad");
    assert_eq!(events[0]["note"], "spec.proxy.host: it is missing");
}

#[tokio::test]
async fn a_proxy_that_wants_other_credentials_is_an_event() {
    let server = server().await;
    server.put(TUNNELS, "team-a", "one", tunnel("one.example"));
    let mut followed = Followed::of(&server).await;
    followed.until_proxies(&["one.example:3128"]).await;
    let counters = followed.report("node-1");
    for code in ["200", "407", "407"] {
        let labels = [
            "one.example:3128",
            "Tunnel/team-a/one",
            "HTTP-CONNECT",
            code,
        ];
        counters.with_label_values(&labels).inc();
    }
    wait_for("an event", || !server.all(EVENTS).is_empty()).await;
    let events = server.all(EVENTS);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["reason"], "ProxyAuthenticationRequired");
    assert_eq!(events[0]["metadata"]["namespace"], "team-a");
    assert!(
        events[0]["note"]
            .as_str()
            .unwrap()
            .contains("one.example:3128")
    );
    assert_eq!(events[0]["reportingInstance"], "node-1");
}
