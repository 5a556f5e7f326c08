//! Who connects decides: different workloads take different tunnels, and the proxy is told who asks.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::addr::{OTHER_V4, PROXY_V4, proxy_v4};
use underpass_tests::agent::{Access, Agent, METRICS};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::curl::Seen;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Request};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, http};

const SECONDS: Duration = Duration::from_secs(20);

/// Another proxy at the same address.
const SECOND_PORT: u16 = 3129;

/// Rules for cgroups below the captured one, which is `BASE`; and one for everybody else.
const POLICY: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: others}
spec: {proxy: {host: 192.0.2.20, port: 3128}}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: first}
spec:
  workloadSelector: {cgroups: [BASE/first]}
  proxy:
    host: 192.0.2.20
    port: 3128
    headers:
      X-Cgroup: '{workload.cgroup}'
      X-From: '{original_dst}'
      X-To: '{target.host} at {target.port}'
      X-Unit: '{workload.unit}'
      X-Pod: '{workload.namespace}/{workload.name}'
      X-Half: 'cgroup {workload.cgroup}, app {workload.labels.app}'
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: second}
spec:
  workloadSelector: {cgroups: [BASE/second]}
  targetHost: ORIGINAL_DST
  proxy: {host: 192.0.2.20, port: 3129, headers: {X-Cgroup: '{workload.cgroup}'}}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: shut}
spec: {workloadSelector: {cgroups: [BASE/shut]}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: free}
spec: {workloadSelector: {cgroups: [BASE/free]}, action: Direct}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: backups}
spec:
  workloadSelector: {units: ['backup@*.service']}
  proxy: {host: 192.0.2.20, port: 3129, headers: {X-Unit: '{workload.unit}'}}
";

struct Node {
    agent: Agent,
    first: FakeProxy,
    second: FakeProxy,
    base: String,
    scene: Scene,
}

impl Node {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let inet = scene.world.inet();
        let first = FakeProxy::start(inet, proxy_v4(), Answer::tunnel());
        let second = SocketAddr::from((PROXY_V4, SECOND_PORT));
        let second = FakeProxy::start(inet, second, Answer::tunnel());
        let base = scene.world.workload().name();
        let agent = Agent::start(&scene.world, &POLICY.replace("BASE", &base));
        Self {
            agent,
            first,
            second,
            base,
            scene,
        }
    }

    fn cgroup(&self, name: &str) -> Cgroup {
        self.scene.world.workload().child(name)
    }

    /// A request by a program in the cgroup.
    #[track_caller]
    fn get(&self, cgroup: &Cgroup, url: &str) -> Seen {
        let curl = self.scene.curl(url).args(["-4"]);
        let program = self.scene.world.host().command("curl");
        curl.run(program.in_cgroup(cgroup))
    }

    /// What was recorded of the one connection from the cgroup.
    #[track_caller]
    fn record(&self, cgroup: &Cgroup) -> Access {
        let id = cgroup.id();
        let what = format!("a connection from {}", cgroup.name());
        self.agent
            .wait_for_access(&what, |record| record.number("src.cgroup") == id)
    }
}

#[track_caller]
fn only(requests: &[Request]) -> &Request {
    let [request] = requests else {
        panic!("not one request: {requests:?}");
    };
    request
}

#[test]
fn each_cgroup_takes_the_way_that_is_for_it() {
    let node = Node::new("workloads");
    let second = node.cgroup("second");
    node.get(&second, "http://site.example/").expect_ok();
    let requests = node.second.requests();
    let asked = only(&requests);
    assert_eq!(asked.line(), "CONNECT 203.0.113.10:80 HTTP/1.1");
    let name = format!("{}/second", node.base);
    assert_eq!(asked.header("X-Cgroup"), Some(&*name));
    assert_eq!(node.record(&second).text("policy"), "Tunnel/second");

    // Processes are where policy says, or anywhere below.
    let outer = node.cgroup("first");
    let inner = outer.child("inner");
    let innermost = inner.child("innermost");
    for (number, cgroup) in [&outer, &inner, &innermost].into_iter().enumerate() {
        node.get(cgroup, "http://site.example/").expect_ok();
        let request = node.first.requests()[number].clone();
        assert_eq!(request.line(), "CONNECT site.example:80 HTTP/1.1");
        assert_eq!(request.header("X-Cgroup"), Some(&*cgroup.name()));
        assert_eq!(node.record(cgroup).text("policy"), "Tunnel/first");
    }

    // Nobody else is: neither a name that begins alike, nor one further up.
    let alike = node.cgroup("first-one");
    for (number, cgroup) in [&alike, node.scene.world.workload()]
        .into_iter()
        .enumerate()
    {
        node.get(cgroup, "http://site.example/").expect_ok();
        assert_eq!(node.first.requests()[3 + number].header("X-Cgroup"), None);
        assert_eq!(node.record(cgroup).text("policy"), "Tunnel/others");
    }
    assert_eq!(node.second.requests().len(), 1);
    node.scene.world.expect_no_direct_arrivals();
}

#[test]
fn one_cgroup_is_refused_and_another_goes_direct() {
    let node = Node::new("workloads-actions");
    let shut = node.cgroup("shut");
    let refused = node.get(&shut, "http://site.example/");
    assert_eq!(refused.status, 0, "{refused:?}");
    let record = node.record(&shut);
    assert_eq!(record.text("decision"), "deny", "{record:?}");
    assert_eq!(record.text("policy"), "Tunnel/shut", "{record:?}");
    let denied = [("policy", "Tunnel/shut"), ("reason", "rule")];
    node.agent
        .wait_for_metric("underpass_policy_denied_total", &denied, 1.0);
    node.scene.world.expect_no_direct_arrivals();

    let free = node.cgroup("free");
    node.get(&free, "http://site.example/").expect_ok();
    let record = node.record(&free);
    assert_eq!(record.text("decision"), "direct", "{record:?}");
    assert_eq!(record.text("policy"), "Tunnel/free", "{record:?}");
    assert_eq!(node.scene.world.direct_arrivals().len(), 1);
    assert!(node.first.requests().is_empty() && node.second.requests().is_empty());
}

#[test]
fn units_of_systemd_are_known_by_their_cgroups() {
    let node = Node::new("workloads-units");
    let slice = node.cgroup("system.slice");
    let unit = slice.child("backup@1.service");
    let payload = unit.child("payload");
    let other = slice.child("backup.service");
    for (number, cgroup) in [&unit, &payload].into_iter().enumerate() {
        node.get(cgroup, "http://site.example/").expect_ok();
        let request = node.second.requests()[number].clone();
        assert_eq!(request.header("X-Unit"), Some("backup@1.service"));
        assert_eq!(node.record(cgroup).text("policy"), "Tunnel/backups");
    }
    node.get(&other, "http://site.example/").expect_ok();
    assert_eq!(node.record(&other).text("policy"), "Tunnel/others");
    assert_eq!(node.second.requests().len(), 2);
    node.scene.world.expect_no_direct_arrivals();
}

#[test]
fn the_proxy_is_told_what_is_known_and_nothing_by_halves() {
    let node = Node::new("workloads-headers");
    let outer = node.cgroup("first");
    node.get(&outer, "http://site.example/").expect_ok();
    let unit = outer.child("job@2.service");
    node.get(&unit, "https://site.example/").expect_ok();

    let requests = node.first.requests();
    let [plain, unit_of] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(plain.header("X-Cgroup"), Some(&*outer.name()));
    assert_eq!(plain.header("X-From"), Some("203.0.113.10:80"));
    assert_eq!(plain.header("X-To"), Some("site.example at 80"));
    assert_eq!(plain.header("X-Unit"), None, "it is no unit: {plain:?}");
    assert_eq!(unit_of.header("X-Cgroup"), Some(&*unit.name()));
    assert_eq!(unit_of.header("X-From"), Some("203.0.113.10:443"));
    assert_eq!(unit_of.header("X-To"), Some("site.example at 443"));
    assert_eq!(unit_of.header("X-Unit"), Some("job@2.service"));
    for request in &requests {
        for name in ["X-Pod", "X-Half"] {
            assert_eq!(request.header(name), None, "{request:?}");
        }
        assert!(!request.head.contains(['{', '}']), "{request:?}");
    }
}

/// The agent looks only when the program is gone, and its cgroup was never seen before.
#[test]
fn a_program_that_is_gone_at_once_is_known_nevertheless() {
    let node = Node::new("workloads-gone");
    let sink = Server::sink(node.scene.world.inet(), (OTHER_V4, 9000).into());
    let (first, second) = (node.cgroup("first"), node.cgroup("second"));
    let send = |cgroup: &Cgroup| {
        let program = node.scene.world.host().python("send_and_close");
        let program = program.args(["203.0.113.11", "9000", "goodbye"]);
        program.in_cgroup(cgroup).run(SECONDS).expect_success();
        assert_eq!(cgroup.processes(), Vec::<u32>::new(), "it is gone");
    };
    node.agent.hold();
    for cgroup in [&first, &second] {
        send(cgroup);
    }
    // Of this one not even the cgroup is left.
    let vanished = node.cgroup("shut");
    let id = vanished.id();
    send(&vanished);
    drop(vanished);
    node.agent.resume();

    let reports = sink.wait_for_reports(3);
    assert!(
        reports
            .iter()
            .all(|it| (it.received, it.complete) == (7, true))
    );
    for (cgroup, policy) in [(&first, "Tunnel/first"), (&second, "Tunnel/second")] {
        assert_eq!(node.record(cgroup).text("policy"), policy);
    }
    assert_eq!(
        only(&node.second.requests()).header("X-Cgroup"),
        Some(&*second.name())
    );
    // What is not known is under the rule for everybody.
    let nobody = node
        .agent
        .wait_for_access("of nobody", |record| record.number("src.cgroup") == id);
    assert_eq!(nobody.text("policy"), "Tunnel/others");
    node.scene.world.expect_no_direct_arrivals();
}

/// However many workloads there are and whatever they ask for, there are no more series.
#[test]
fn workloads_and_what_they_ask_for_make_no_series() {
    let node = Node::new("workloads-series");
    let series = || {
        let scrape = http::get(node.scene.world.host(), METRICS, "/metrics").must("scrape");
        let names = scrape.body.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<String> = names
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect();
        names.sort();
        names
    };
    let crowd = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let cgroup = node.cgroup(&format!("job@{number}.service"));
            let host = format!("Host: name-{number}.example");
            let url = format!("http://203.0.113.10:{}/", 10_000 + number);
            let curl = node.scene.curl(&url).args(["--header", &host]);
            let program = node.scene.world.host().command("curl");
            curl.run(program.in_cgroup(&cgroup));
            node.record(&cgroup);
        }
    };
    crowd(0..2);
    let before = series();
    crowd(2..20);
    let text = series();
    assert_eq!(text, before);
    assert!(!before.iter().any(|name| name.contains("name-1")));
    // What lasts of a unit's name is told.
    let jobs = [("source_workload", "job@.service")];
    let counted = "istio_requests_total";
    node.agent.wait_for_metric(counted, &jobs, 20.0);
}
