//! At a reload a bad document keeps its last good version, and the rest comes into force.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::agent::{Agent, underpass};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Must as _, Scene};

const SECONDS: Duration = Duration::from_secs(20);

/// A rule for one host, of which the proxy tells the version.
fn rule(name: &str, version: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: DestinationRule\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 host: {name}.example\n\
         \x20 trafficPolicy:\n\
         \x20   tunnel:\n\
         \x20     targetHost: {name}-{version}.example\n\
         \x20     targetPort: 80\n\
         \x20     proxy: {{host: 192.0.2.20, port: 3128}}\n"
    )
}

/// The same with an unknown field, in its eighth line.
fn bad_rule(name: &str, version: u32) -> String {
    rule(name, version).replace("targetHost:", "targetHots:")
}

fn documents(all: &[String]) -> String {
    all.join("---\n")
}

/// An agent that follows a directory of policy.
struct Node {
    agent: Agent,
    directory: PathBuf,
    proxy: FakeProxy,
    scene: Scene,
}

impl Node {
    /// Starts with these files.
    #[track_caller]
    fn new(name: &str, files: &[(&str, String)]) -> Self {
        let scene = Scene::new(name);
        // Nobody has to be there: what it is asked for tells everything.
        let answer = Answer::refusal("403 Forbidden", "");
        let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), answer);
        let directory = scene.world.dir().join("policy");
        fs::create_dir(&directory).must("make a directory");
        for (file, text) in files {
            fs::write(directory.join(file), text).must("write a policy");
        }
        let options = ["--policy", &directory.display().to_string()];
        let agent = Agent::start_with(&scene.world, "", &options);
        Self {
            agent,
            directory,
            proxy,
            scene,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts another text in the place of the file, at one moment, and waits for what comes of that.
    #[track_caller]
    fn write(&self, name: &str, text: &str, result: &str) -> Value {
        let new = self.file(".new");
        fs::write(&new, text).must("write a policy");
        self.change(result, || {
            fs::rename(&new, self.file(name)).must("put it in place");
        })
    }

    #[track_caller]
    fn remove(&self, name: &str, result: &str) -> Value {
        self.change(result, || {
            fs::remove_file(self.file(name)).must("remove a policy");
        })
    }

    /// Waits for one reading with this result; what is told of it.
    #[track_caller]
    fn change(&self, result: &str, change: impl FnOnce()) -> Value {
        const RELOADS: &str = "underpass_policy_reload_total";
        let labels = [("result", result)];
        let read = |labels: &[(&str, &str)]| self.agent.metrics().sum(RELOADS, labels);
        let before = read(&labels).unwrap_or_default();
        let all = read(&[]).unwrap_or_default();
        let generation = self.told()["generation"].clone();
        change();
        self.agent.wait_for_metric(RELOADS, &[], all + 1.0);
        let told = self.told();
        assert_eq!(read(&labels), Some(before + 1.0), "not {result}: {told}");
        assert_eq!(told["reload"]["result"], result, "{told}");
        let is_new = told["generation"] != generation;
        assert_eq!(is_new, result != "failure", "{told}");
        let all_well = f64::from(u8::from(result == "success"));
        let successful = "underpass_policy_last_reload_successful";
        let said = self.agent.metrics().sum(successful, &[]);
        assert_eq!(said, Some(all_well), "{told}");
        told["reload"]["problems"].clone()
    }

    /// What `status` has of policy.
    #[track_caller]
    fn told(&self) -> Value {
        self.agent.admin("/status")["policy"].clone()
    }

    /// What the proxy is asked for by who asks for this host.
    #[track_caller]
    fn asked(&self, host: &str) -> String {
        let before = self.proxy.requests().len();
        self.get(host);
        let requests = self.proxy.requests();
        assert_eq!(requests.len(), before + 1, "{host}: {requests:?}");
        let line = requests[before].line().to_owned();
        let target = line.split(' ').nth(1).unwrap_or_default();
        target.trim_end_matches(".example:80").to_owned()
    }

    #[track_caller]
    fn get(&self, host: &str) -> u64 {
        let host = format!("Host: {host}.example");
        let curl = self.scene.curl("http://203.0.113.10/");
        self.scene.captured(&curl.args(["--header", &host])).status
    }

    /// The problems are these, in order: each is told by `status`, by `/config_dump` and by the
    /// log, with its place.
    #[track_caller]
    fn expect_told(&mut self, problems: &Value, expected: &[(&Path, &str)]) {
        let problems: Vec<&str> = problems
            .as_array()
            .expect("a list of problems")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        let dump = self.agent.admin("/config_dump")["policy_reload"].clone();
        assert_eq!(dump["problems"], serde_json::json!(problems), "{dump}");
        let status = underpass(&self.scene.world).arg("status").run(SECONDS);
        let status = status.expect_success().stdout;
        for (problem, (file, start)) in problems.into_iter().zip(expected) {
            let start = format!("{}:{start}", file.display());
            assert!(problem.starts_with(&start), "{problem}\nis not\n{start}");
            assert!(status.contains(problem), "no {problem} in {status}");
            self.agent.process().wait_for_logged(&start);
        }
    }
}

#[test]
fn of_several_documents_only_the_bad_one_stays_as_it_was() {
    let both = |one: String, two: String| documents(&[one, two]);
    let mut node = Node::new(
        "recheck",
        &[
            ("a.yaml", both(rule("one", 1), rule("two", 1))),
            ("b.yaml", rule("three", 1)),
        ],
    );
    for host in ["one", "two", "three"] {
        assert_eq!(node.asked(host), format!("{host}-1"));
    }

    // The second document of the file begins in its twelfth line.
    let text = both(rule("one", 2), bad_rule("two", 2));
    let problems = node.write("a.yaml", &text, "partial");
    let place = "19: DestinationRule/two: spec.trafficPolicy.tunnel.targetHots: ";
    let file = node.file("a.yaml");
    node.expect_told(&problems, &[(&file, place)]);
    assert_eq!(node.asked("one"), "one-2", "the good document of the file");
    assert_eq!(node.asked("two"), "two-1", "the last good version");
    assert_eq!(node.asked("three"), "three-1");

    // It is bad all the time, while others change, come and go.
    let problems = node.write("b.yaml", &rule("three", 3), "partial");
    node.expect_told(&problems, &[(&file, place)]);
    node.write("c.yaml", &rule("four", 3), "partial");
    for asked in ["two-1", "three-3", "four-3"] {
        let host = asked.split('-').next().unwrap_or_default();
        assert_eq!(node.asked(host), asked);
    }
    node.remove("c.yaml", "partial");
    assert_eq!(node.get("four"), 200, "no rule is about it any more");
    assert_eq!(node.scene.world.direct_arrivals().len(), 1);
    assert_eq!(node.asked("two"), "two-1");

    let text = both(rule("one", 4), rule("two", 4));
    let problems = node.write("a.yaml", &text, "success");
    assert_eq!(problems, serde_json::json!([]));
    assert_eq!(node.asked("one"), "one-4");
    assert_eq!(node.asked("two"), "two-4");
}

#[test]
fn a_file_that_is_no_yaml_keeps_all_that_it_had() {
    let mut node = Node::new(
        "recheck-yaml",
        &[
            ("a.yaml", documents(&[rule("one", 1), rule("two", 1)])),
            ("b.yaml", rule("three", 1)),
        ],
    );
    // Cut off where a writer stopped.
    let cut = format!("{}---\nkind: [", rule("one", 2));
    let problems = node.write("a.yaml", &cut, "partial");
    let file = node.file("a.yaml");
    node.expect_told(&problems, &[(&file, "12: document 2: yaml: ")]);
    assert_eq!(node.asked("two"), "two-1");
    node.write("b.yaml", &rule("three", 2), "partial");
    assert_eq!(node.asked("three"), "three-2");
    assert_eq!(node.asked("two"), "two-1");

    // Nothing of it can be told.
    fs::write(node.file(".new"), b"\xff\xfe").must("write");
    node.change("partial", || {
        fs::rename(node.file(".new"), &file).must("put it in place");
    });
    assert_eq!(node.asked("two"), "two-1");

    // A file that is gone is gone, whatever it was like.
    let problems = node.remove("a.yaml", "success");
    assert_eq!(problems, serde_json::json!([]));
    assert_eq!(node.get("two"), 200);
    assert_eq!(node.scene.world.direct_arrivals().len(), 1);
    assert_eq!(node.asked("three"), "three-2");
}

#[test]
fn nothing_but_bad_documents_changes_nothing() {
    let mut node = Node::new("recheck-nothing", &[("a.yaml", rule("one", 1))]);
    let file = node.file("a.yaml");
    let problems = node.write("a.yaml", &bad_rule("one", 2), "failure");
    let place = "8: DestinationRule/one: spec.trafficPolicy.tunnel.targetHots: ";
    node.expect_told(&problems, &[(&file, place)]);
    assert_eq!(node.asked("one"), "one-1");
    // An empty directory is more likely a mistake than a wish.
    node.remove("a.yaml", "failure");
    assert_eq!(node.asked("one"), "one-1");
    node.write("a.yaml", &rule("one", 3), "success");
    assert_eq!(node.asked("one"), "one-3");
}

const TUNNEL: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: everything}
spec: {proxy: {host: proxy.example}}
";

/// The proxy of `TUNNEL`.
fn entry(port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{name: proxy}}\n\
         spec:\n\
         \x20 hosts: [proxy.example]\n\
         \x20 ports: [{{number: {port}, name: proxy, protocol: HTTP-CONNECT}}]\n\
         \x20 resolution: STATIC\n\
         \x20 endpoints: [{{address: 192.0.2.20}}]\n"
    )
}

#[test]
fn a_tunnel_whose_proxy_is_not_described_any_more_stays() {
    let mut node = Node::new(
        "recheck-across",
        &[
            ("entry.yaml", entry(3128)),
            ("rule.yaml", rule("one", 1)),
            ("tunnel.yaml", TUNNEL.to_owned()),
        ],
    );
    assert_eq!(node.asked("any"), "any");
    let problems = node.remove("entry.yaml", "partial");
    let file = node.file("tunnel.yaml");
    node.expect_told(&problems, &[(&file, "4: Tunnel/everything: spec.proxy")]);
    assert_eq!(node.asked("any"), "any", "by the old tunnel and its proxy");

    // Others go on changing; and what is wrong with one hides nothing of the other.
    node.write("rule.yaml", &rule("one", 2), "partial");
    assert_eq!(node.asked("one"), "one-2");
    let text = documents(&[bad_rule("one", 3), rule("two", 3)]);
    let problems = node.write("rule.yaml", &text, "partial");
    let place = "8: DestinationRule/one: spec.trafficPolicy.tunnel.targetHots: ";
    let rules = node.file("rule.yaml");
    let expected = [
        (rules.as_path(), place),
        (file.as_path(), "4: Tunnel/everything: spec.proxy"),
    ];
    node.expect_told(&problems, &expected);
    for asked in ["one-2", "two-3"] {
        let host = asked.split('-').next().unwrap_or_default();
        assert_eq!(node.asked(host), asked);
    }
    assert_eq!(node.asked("any"), "any");
    node.scene.world.expect_no_direct_arrivals();

    // It is described again, elsewhere.
    let answer = Answer::refusal("403 Forbidden", "");
    let second = (PROXY_V4, 3129).into();
    let second = FakeProxy::start(node.scene.world.inet(), second, answer);
    node.write("rule.yaml", &rule("one", 4), "partial");
    let problems = node.write("entry.yaml", &entry(3129), "success");
    assert_eq!(problems, serde_json::json!([]));
    node.get("any");
    assert_eq!(second.request_lines(1), ["CONNECT any.example:80 HTTP/1.1"]);
    assert_eq!(node.asked("one"), "one-4");
    node.scene.world.expect_no_direct_arrivals();
}
