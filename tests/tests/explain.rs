//! `underpass explain`: what it says of the design's configurations, and that it says what a running
//! agent does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Access, Agent, tunnel_policy, underpass};
use underpass_tests::process::Finished;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Must as _, Scene, World};

const SECONDS: Duration = Duration::from_secs(20);

fn explain(world: &World, args: &[&str]) -> Finished {
    underpass(world).arg("explain").args(args).run(SECONDS)
}

/// The one explanation there is, for programs.
#[track_caller]
fn as_json(world: &World, args: &[&str]) -> Value {
    let done = explain(world, &[args, &["--output", "json"]].concat()).expect_success();
    let Ok(Value::Array(mut explained)) = serde_json::from_str(&done.stdout) else {
        panic!("no list: {done:?}");
    };
    assert_eq!(explained.len(), 1, "{args:?}: {done:?}");
    explained.remove(0)
}

fn examples() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.join("../deploy/examples/design")
}

/// Of an example of the design: what is asked, and what is to be said. `explain/NAME.txt` has, for
/// each line `$ underpass explain ARGUMENTS`, the lines below it.
#[track_caller]
fn expect_as_written(world: &World, example: &str) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain");
    let file = own.join(format!("{example}.txt"));
    let expected = fs::read_to_string(&file).must(format_args!("read {}", file.display()));
    let policy = examples().join(format!("{example}.yaml"));
    let with = examples().join("with").join(format!("{example}.yaml"));
    let folder = format!("{}/", examples().display());
    let mut said = String::new();
    for question in expected.lines().filter(|line| line.starts_with("$ ")) {
        let words = question.strip_prefix("$ underpass explain ");
        let words = words.unwrap_or_else(|| panic!("{question}"));
        let command = underpass(world).arg("explain").args(words.split(' '));
        let command = command.arg("--policy").arg(&policy);
        let command = command.args(with.exists().then_some(&with));
        let done = command.run(SECONDS).expect_success();
        assert_eq!(done.stderr, "", "{question}");
        said += &format!("{question}\n{}", done.stdout.replace(&folder, ""));
    }
    assert!(!said.is_empty(), "{example} asks nothing");
    assert_eq!(said, expected, "{example}");
}

/// Decision, rule, target and where its name is from, proxy and its places, TLS on each leg, and
/// each rule with why it applies or not.
#[test]
fn the_configurations_of_the_design_are_explained() {
    let world = World::new("explain-design");
    let mut explained = 0;
    for entry in fs::read_dir(examples()).must("list the examples") {
        let path = entry.must("list").path();
        if path.is_file() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            expect_as_written(&world, &name);
            explained += 1;
        }
    }
    assert_eq!(
        explained, 8,
        "one file for each configuration of the design"
    );
}

/// One rule for each thing that can be known of a workload.
const WORKLOADS: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: z-namespace}
spec: {workloadSelector: {namespaces: [shop]}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: d-label}
spec: {workloadSelector: {matchLabels: {app: web}}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: c-account}
spec: {workloadSelector: {serviceAccounts: [builder]}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: b-unit}
spec: {workloadSelector: {units: ['backup@*.service']}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: a-cgroup}
spec: {workloadSelector: {cgroups: [/machine.slice]}, action: Deny}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: 0-everything}
spec: {action: Direct}
";

#[test]
fn each_thing_known_of_a_workload_is_asked_for_by_its_option() {
    let world = World::new("explain-workload");
    let file = world.dir().join("workloads.yaml");
    fs::write(&file, WORKLOADS).must("write a policy");
    let policy = file.display().to_string();
    for (who, decides) in [
        (&[][..], "0-everything"),
        (&["--namespace", "shop"], "z-namespace"),
        (&["--namespace", "shopping"], "0-everything"),
        (&["--label", "app=web"], "d-label"),
        (&["--label", "tier=web"], "0-everything"),
        (&["--service-account", "builder"], "c-account"),
        (&["--unit", "backup@7.service"], "b-unit"),
        (&["--cgroup", "/machine.slice/one.scope"], "a-cgroup"),
        (&["--cgroup", "/system.slice/backup@1.service"], "b-unit"),
        // The first by name, of those for this workload.
        (
            &["--namespace", "shop", "--unit", "backup@7.service"],
            "b-unit",
        ),
    ] {
        let args = [&["203.0.113.10:443", "--policy", &policy], who].concat();
        let told = as_json(&world, &args);
        assert_eq!(told["policy"], format!("Tunnel/{decides}"), "{who:?}");
        let considered = told["considered"].as_array().expect("a list of rules");
        assert_eq!(considered.len(), 6, "every rule is there: {told}");
        for rule in considered {
            let name = rule["policy"].as_str().unwrap_or_default();
            let reason = rule["reason"].as_str().unwrap_or_default();
            let wins = name == format!("Tunnel/{decides}");
            assert_eq!(rule["decides"], wins, "{who:?}: {rule}");
            let is_other = reason.starts_with("workloadSelector asks for other ")
                || reason.starts_with("it would apply, but ");
            assert_eq!(is_other, !wins, "{who:?}: {rule}");
        }
    }
}

#[test]
fn credentials_are_told_of_and_never_shown() {
    let world = World::new("explain-secrets");
    let secrets = world.dir().join("secrets");
    let login = secrets.join("login");
    fs::create_dir_all(&login).must("make a Secret");
    fs::write(login.join("username"), "meg").must("write a Secret");
    fs::write(login.join("password"), "open sesame").must("write a Secret");
    let file = world.dir().join("policy.yaml");
    let policy = tunnel_policy(&[]).replace(
        "port: 3128",
        "port: 3128\n    authentication: {credentialName: login}",
    );
    fs::write(&file, &policy).must("write a policy");
    let (file, secrets) = (file.display().to_string(), secrets.display().to_string());

    let args = ["site.example:443", "--policy", &file];
    let without = explain(&world, &args);
    assert_eq!(without.status.code(), Some(64), "{without:?}");
    assert!(without.stderr.contains("login"), "{without:?}");

    let args = [&args[..], &["--secrets", &secrets]].concat();
    let done = explain(&world, &args).expect_success();
    assert!(done.stdout.contains("with credentials"), "{done:?}");
    let told = as_json(&world, &args);
    assert_eq!(told["proxies"][0]["credentials"], true, "{told}");
    // The password, and it with the user as Basic has them.
    for hidden in ["open sesame", "bWVnOm9wZW4gc2VzYW1l", "meg"] {
        for shown in [&done.stdout, &done.stderr, &told.to_string()] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
    }
}

#[test]
fn wrong_usage_and_bad_policy_exit_64_and_whatever_is_decided_0() {
    let world = World::new("explain-exit");
    let write = |name: &str, text: &str| {
        let file = world.dir().join(name);
        fs::write(&file, text).must("write a policy");
        file.display().to_string()
    };
    let good = write("good.yaml", &tunnel_policy(&["targetHost: AUTO_SNI"]));
    let bad = write("bad.yaml", &tunnel_policy(&["targetHots: AUTO_SNI"]));
    let place = format!("{bad}:9: Tunnel/everything: spec.targetHots: ");
    let to = "203.0.113.10:443";
    for (args, reason) in [
        (&[][..], "<DEST>"),
        (&[to], "--policy"),
        (&["--policy", &good], "<DEST>"),
        (&["203.0.113.10", "--policy", &good], "HOST:PORT"),
        (&["site.example:0", "--policy", &good], "1 to 65535"),
        (&["2001:db8::1:443", "--policy", &good], "brackets"),
        (
            &[to, "--policy", &good, "--address", "192.0.2.1"],
            "has an address",
        ),
        (
            &[to, "--policy", &good, "--sni", "a.test", "--host", "a.test"],
            "--sni",
        ),
        (&[to, "--policy", &good, "--label", "app"], "KEY=VALUE"),
        (&[to, "--policy", &good, "--output", "xml"], "xml"),
        (&[to, "--policy", "/no/such/policy"], "/no/such/policy"),
        (&[to, "--policy", &bad], &place),
    ] {
        let done = explain(&world, args);
        assert_eq!(done.status.code(), Some(64), "{args:?}: {done:?}");
        assert!(done.stderr.contains(reason), "{args:?}: {done:?}");
        assert_eq!(done.stdout, "", "{args:?}");
    }
    let done = explain(&world, &[to, "--policy", &good]).expect_success();
    assert!(done.stdout.contains("decision:       Deny"), "{done:?}");
}

/// One rule of each kind, about different connections.
const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: site, labels: {via: proxy}}
spec: {hosts: [site.example], ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: labelled}
spec: {selector: {matchLabels: {via: proxy}}, proxy: {host: proxy.example, port: 3128}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: very-host}
spec:
  host: v4.example
  trafficPolicy:
    tunnel: {targetHost: other.example, targetPort: 80, proxy: {host: proxy.example, port: 3128}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shut, labels: {is: shut}}
spec: {hosts: [shut.example], addresses: ['2001:db8:113::11'], ports: []}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: shut}
spec: {selector: {matchLabels: {is: shut}}, action: Deny}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: known, labels: {is: direct}}
spec: {hosts: [v6.example]}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: direct}
spec: {selector: {matchLabels: {is: direct}}, action: Direct}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: group}
spec:
  workloadSelector: {cgroups: [CGROUP]}
  targetHost: ORIGINAL_DST
  proxy: {host: 192.0.2.20, port: 3128}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: everything}
spec:
  noProxy: [mail.example, '203.0.113.11:8080']
  proxy: {host: proxy.example, port: 3128}
";

/// A connection and how it is asked about, in curl's words and in `explain`'s; whether it is made in
/// the cgroup that has a rule of its own; decision, rule, and target.
type Case = (&'static str, &'static str, bool, [&'static str; 3]);

const CASES: [Case; 14] = [
    (
        "https://site.example/ -4",
        "site.example:443 --address 203.0.113.10",
        false,
        ["tunnel", "Tunnel/labelled", "site.example:8443"],
    ),
    (
        "https://site.example/ --resolve site.example:443:203.0.113.11",
        "203.0.113.11:443 --sni site.example",
        false,
        ["tunnel", "Tunnel/labelled", "site.example:8443"],
    ),
    (
        "http://site.example/ -4",
        "site.example:80 --address 203.0.113.10",
        false,
        ["tunnel", "Tunnel/everything", "site.example:80"],
    ),
    (
        "http://v4.example/ -4",
        "v4.example:80 --address 203.0.113.10",
        false,
        ["tunnel", "DestinationRule/very-host", "other.example:80"],
    ),
    (
        "https://other.example/ -4",
        "other.example:443 --address 203.0.113.11",
        false,
        ["tunnel", "Tunnel/everything", "other.example:443"],
    ),
    (
        "https://other.example/ -4",
        "other.example:443 --address 203.0.113.11",
        true,
        ["tunnel", "Tunnel/group", "203.0.113.11:443"],
    ),
    (
        "http://[2001:db8:113::10]/ -6",
        "[2001:db8:113::10]:80",
        false,
        ["tunnel", "Tunnel/everything", "[2001:db8:113::10]:80"],
    ),
    (
        "https://other.example/ -6",
        "other.example:443 --address 2001:db8:113::11",
        false,
        ["deny", "Tunnel/shut", ""],
    ),
    // A name that leads past the proxy where it is true, at an address that is shut, at its own,
    // and elsewhere.
    (
        "https://v6.example/ --resolve v6.example:443:[2001:db8:113::11]",
        "[2001:db8:113::11]:443 --sni v6.example",
        false,
        ["deny", "Tunnel/shut", ""],
    ),
    (
        "https://v6.example/ -6",
        "v6.example:443 --address 2001:db8:113::10",
        false,
        ["direct", "Tunnel/direct", ""],
    ),
    (
        "https://v6.example/ --resolve v6.example:443:203.0.113.11",
        "203.0.113.11:443 --sni v6.example",
        false,
        ["tunnel", "Tunnel/everything", "v6.example:443"],
    ),
    (
        "http://mail.example/ -4",
        "mail.example:80 --address 203.0.113.11",
        false,
        ["direct", "Tunnel/everything", ""],
    ),
    (
        "http://mail.example/ --resolve mail.example:80:203.0.113.10",
        "203.0.113.10:80 --host mail.example",
        false,
        ["tunnel", "Tunnel/everything", "mail.example:80"],
    ),
    (
        "http://203.0.113.11:8080/ -4",
        "203.0.113.11:8080",
        false,
        ["direct", "Tunnel/everything", ""],
    ),
];

#[test]
fn what_is_explained_is_what_an_agent_does() {
    let scene = Scene::new("explain-agrees");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let group = scene.world.workload().child("group");
    let policy = RULES.replace("CGROUP", &group.name());
    let agent = Agent::start(&scene.world, &policy);
    let file = scene.world.dir().join("policy.yaml").display().to_string();
    for (number, (request, question, grouped, expected)) in CASES.into_iter().enumerate() {
        let (url, options) = request.split_once(' ').expect("an option");
        let cgroup = if grouped {
            &group
        } else {
            scene.world.workload()
        };
        // Whether anybody is there does not matter.
        let program = scene.world.host().command("curl").in_cgroup(cgroup);
        scene.curl(url).args(options.split(' ')).run(program);
        let did = agent.wait_for_accesses(number + 1).swap_remove(number);

        let who = cgroup.name();
        let mut args: Vec<&str> = question.split(' ').collect();
        args.extend(["--cgroup", &who, "--policy", &file]);
        let told = as_json(&scene.world, &args);
        expect_agreement(&told, &did, expected);
    }
}

#[track_caller]
fn expect_agreement(told: &Value, did: &Access, [decision, policy, target]: [&str; 3]) {
    assert_eq!(told["captured"], true, "{told}");
    assert_eq!(did.text("decision"), decision, "{did:?}");
    assert_eq!(did.text("policy"), policy, "{did:?}");
    assert_eq!(did.text("target"), target, "{did:?}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (told, field) in [
        (text(&told["decision"]), "decision"),
        (text(&told["policy"]), "policy"),
        (text(&told["original_dst"]), "original_dst"),
        (text(&told["target"]), "target"),
        (text(&told["target_source"]), "target.source"),
        (text(&told["proxies"][0]["proxy"]), "proxy"),
    ] {
        assert_eq!(told, did.text(field), "{field} of {did:?}");
    }
}

/// What never comes to an agent is told as such, and does not.
#[test]
fn what_is_not_captured_is_told() {
    let scene = Scene::new("explain-captured");
    let policy = "\
        apiVersion: networking.istio.io/v1\n\
        kind: ServiceEntry\n\
        metadata: {name: site, labels: {via: proxy}}\n\
        spec: {hosts: [site.example], ports: [{number: 443, name: tls, protocol: TLS}]}\n\
        ---\n\
        apiVersion: underpass.dev/v1alpha1\n\
        kind: Tunnel\n\
        metadata: {name: labelled}\n\
        spec: {selector: {matchLabels: {via: proxy}}, proxy: {host: proxy.example, port: 3128}}\n";
    let agent = Agent::start(&scene.world, policy);
    let file = scene.world.dir().join("policy.yaml").display().to_string();
    let asked = ["site.example:80", "--address", "203.0.113.10"];
    let args = [&asked[..], &["--policy", &file]].concat();
    let told = as_json(&scene.world, &args);
    assert_eq!(told["captured"], false, "{told}");
    assert_eq!(told["decision"], "direct", "{told}");
    let text = explain(&scene.world, &args).expect_success().stdout;
    assert!(text.contains("\n  captured:       no"), "{text}");

    let seen = scene.captured(&scene.curl("http://site.example/").args(["-4"]));
    seen.expect_ok();
    assert_eq!(
        agent
            .metrics()
            .sum("underpass_capture_redirected_total", &[]),
        Some(0.0)
    );
    assert_eq!(scene.world.direct_arrivals().len(), 1);
}

#[test]
fn what_a_client_hello_may_hide_is_explained() {
    let world = World::new("explain-ech");
    let file = world.dir().join("ech.yaml");
    let path = file.display().to_string();
    let decided = |on_ech: &str, to: &[&str]| {
        let on_ech = format!("onECH: {on_ech}");
        fs::write(&file, tunnel_policy(&[&on_ech])).must("write a policy");
        let more = ["--policy", &path, "--sni", "front.example", "--ech"];
        let told = as_json(&world, &[to, &more].concat());
        let target = told["target"].as_str().map(str::to_owned);
        target.unwrap_or_else(|| told["reason"].to_string())
    };
    let by_address = ["203.0.113.11:443"];
    let by_name = ["mail.example:443", "--address", "203.0.113.11"];
    for (on_ech, to, expected) in [
        ("UseResolvedName", &by_address[..], "front.example:443"),
        ("UseResolvedName", &by_name, "mail.example:443"),
        ("UseServerName", &by_name, "front.example:443"),
        ("Deny", &by_name, "mail.example:443"),
    ] {
        assert_eq!(decided(on_ech, to), expected, "{on_ech} {to:?}");
    }
    let said = decided("Deny", &by_address);
    assert!(said.contains("onECH is Deny"), "{said}");
}
