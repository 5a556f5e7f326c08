//! Texts of documents into problems, warnings and capture plans.

mod plan;
mod proxies;
mod tenancy;
mod tls;

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::policy::Side;
use crate::policy::document::Documents;

const ALL: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata:
  name: all
spec:
  proxy:
    host: proxy.example
    port: 3128
";

fn compile(files: &[(&str, &str)]) -> Result<Policy, Vec<String>> {
    let mut documents = Documents::default();
    for (file, text) in files {
        documents.add(Path::new(file), text);
    }
    Policy::compile(&documents, &Materials::none(), &Options::default())
        .map_err(|problems| shown(&problems))
}

fn problems(text: &str) -> Vec<String> {
    compile(&[("a.yaml", text)]).map_or_else(|problems| problems, |_| Vec::new())
}

fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// `ALL` under another name and with more of a spec.
fn tunnel(name: &str, more: &str) -> String {
    ALL.replace("name: all", &format!("name: {name}")) + more
}

#[test]
fn every_api_version_and_json_are_taken() {
    for version in [
        "underpass.dev/v1alpha1",
        "networking.istio.io/v1alpha1",
        "networking.istio.io/v1beta1",
    ] {
        let text = ALL.replace("underpass.dev/v1alpha1", version);
        assert_eq!(problems(&text), [""; 0], "{version}");
    }
    let json = r#"{"apiVersion": "underpass.dev/v1alpha1", "kind": "Tunnel",
        "metadata": {"name": "all"}, "spec": {"proxy": {"host": "203.0.113.7", "port": 80}}}"#;
    assert_eq!(problems(json), [""; 0]);
    assert_eq!(problems(&json.replace("        ", "\t")), [""; 0]);
}

#[test]
fn what_an_api_server_adds_is_taken() {
    let text = ALL.replace(
        "  name: all\n",
        "  name: all
  namespace: egress
  creationTimestamp: 2024-05-01T12:00:00Z
  uid: 0a
  resourceVersion: \"1\"
  generation: 1
  labels: {a: b}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {}
",
    );
    assert_eq!(problems(&text), [""; 0]);
    let text = ALL.replace("  name: all", "  name: all\n  creationTimestamp: null");
    assert_eq!(problems(&text), [""; 0]);
}

#[test]
fn an_empty_key_is_seen_in_its_problem() {
    let shown = problems(&(ALL.to_owned() + "  \"\": 1\n\"\": 2\n"));
    let starts = [
        "a.yaml:9: Tunnel/all: spec.\"\": unknown",
        "a.yaml:10: Tunnel/all: \"\": unknown",
    ];
    assert_eq!(shown.len(), starts.len(), "{shown:?}");
    for (shown, start) in shown.iter().zip(starts) {
        assert!(shown.starts_with(start), "{shown}");
    }
}

#[test]
fn each_problem_has_place_subject_key_and_reason() {
    let text = "\
# A document with everything wrong that can be wrong at once.
apiVersion: underpass.dev/v2
kind: Tunnel
metadata:
  name: all
  namespace: a.b
  colour: red
spec:
  selector:
    matchLabels: {a: b}
  action: Drop
  proxy:
    host: http://user:hunter2@proxy.example
    port: 0
    tls: {}
    protocol: http2-connect
    authentication:
      credentialName: c
  targetHost: '*.example.com'
  targetPort: '443'
  noProxy:
    - example.com
    - 10.1.2.3/8
    - 25
  failureMode: ajar
  workloadSelector: {}
  retries: 3
";
    assert_eq!(
        problems(text),
        [
            "a.yaml:2: Tunnel/all: apiVersion: `underpass.dev/v2` has no kind `Tunnel`, expected \
             one of `underpass.dev/v1alpha1`, `networking.istio.io/v1alpha1`, \
             `networking.istio.io/v1beta1`",
            "a.yaml:6: Tunnel/all: metadata.namespace: `a.b` is not a namespace: at most 63 \
             lower-case letters, digits and `-`, with a letter or digit at either end",
            "a.yaml:7: Tunnel/all: metadata.colour: unknown field `colour`, expected one of \
             `name`, `namespace`, `creationTimestamp`, `labels`, `annotations`, `finalizers`, \
             `generation`, `managedFields`, `ownerReferences`, `resourceVersion`, `selfLink`, \
             `uid`",
            "a.yaml:11: Tunnel/all: spec.action: expected one of `Direct`, `Deny`, `Tunnel`",
            "a.yaml:13: Tunnel/all: spec.proxy.host: a URL is not a host: give the name or the \
             address alone, and the port in the field for ports",
            "a.yaml:14: Tunnel/all: spec.proxy.port: expected a port number from 1 to 65535, found 0",
            "a.yaml:15: Tunnel/all: spec.proxy.tls.mode: it is missing",
            "a.yaml:16: Tunnel/all: spec.proxy.protocol: write it as `HTTP2-CONNECT`",
            "a.yaml:19: Tunnel/all: spec.targetHost: `*.example.com` is not a host name: only \
             letters, digits, hyphens and underscores may stand in it",
            "a.yaml:20: Tunnel/all: spec.targetPort: expected a port number from 1 to 65535, \
             found a string",
            "a.yaml:23: Tunnel/all: spec.noProxy[1]: `10.1.2.3/8` has bits set beyond the prefix; \
             write `10.0.0.0/8`",
            "a.yaml:24: Tunnel/all: spec.noProxy[2]: expected a string, found a number: put it in \
             quotes",
            "a.yaml:25: Tunnel/all: spec.failureMode: expected `closed` or `open`",
            "a.yaml:27: Tunnel/all: spec.retries: unknown field `retries`, expected one of \
             `selector`, `workloadSelector`, `action`, `proxy`, `proxies`, `targetHost`, \
             `targetPort`, `noProxy`, `failureMode`, `dns`, `onMismatch`, `onECH`, \
             `echKeys`, `udp`",
        ]
    );
}

#[test]
fn missing_fields_are_named() {
    assert_eq!(
        problems("apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\n"),
        ["a.yaml:1: document 1: metadata: it is missing"]
    );
    assert_eq!(
        problems("kind: Tunnel\nmetadata: {name: all}\nspec:\n  proxy: {host: proxy.example}\n"),
        ["a.yaml:1: Tunnel/all: apiVersion: it is missing",]
    );
    assert_eq!(
        problems(&ALL.replace("    host: proxy.example\n", "")),
        ["a.yaml:6: Tunnel/all: spec.proxy.host: it is missing"]
    );
    assert_eq!(
        problems(&ALL.replace("name: all", "labels: {a: b}")),
        ["a.yaml:3: document 1: metadata.name: it is missing"]
    );
    assert_eq!(
        problems(&ALL.replace("host: proxy.example", "host:")),
        ["a.yaml:7: Tunnel/all: spec.proxy.host: expected a string, found nothing"]
    );
}

#[test]
fn one_bad_document_hides_no_other() {
    let text = format!(
        "---\n# nothing\n---\n- a list\n---\nkind: ServiceEntry\nmetadata:\n  name: google\n\
         ---\nkind: Gateway\nmetadata: {{name: g}}\n---\nkind: [Tunnel]\n---\nname: x\n---\n\
         {ALL}---\n{}---\nkind: Tunnel\n  x: 1\n---\nkind: Gateway\n",
        ALL.replace("3128", "70000").replace("all", "NO")
    );
    assert_eq!(
        problems(&text),
        [
            "a.yaml:4: document 1: document: expected a mapping with apiVersion, kind, metadata \
             and spec, found a list",
            "a.yaml:6: ServiceEntry/google: apiVersion: it is missing",
            "a.yaml:6: ServiceEntry/google: spec: it is missing",
            "a.yaml:10: Gateway/g: kind: unknown kind `Gateway`, expected one of \
             `DestinationRule`, `Secret`, `Service`, `ServiceEntry`, `Tunnel`, `VirtualService`",
            "a.yaml:13: document 4: kind: expected a string, found a list",
            "a.yaml:15: document 5: kind: it is missing",
            "a.yaml:29: document 7: metadata.name: `NO` is not a name: at most 253 lower-case \
             letters, digits, `-` and `.`, with a letter or digit at either end of each part",
            "a.yaml:33: document 7: spec.proxy.port: expected a port number from 1 to 65535, found 70000",
            "a.yaml:36: document 8: yaml: mapping values are not allowed in this context",
        ]
    );
}

#[test]
fn hostile_names_do_not_reach_the_subject() {
    let text = ALL.replace("name: all", "name: \"a\\nb.yaml:1: x\"");
    let found = problems(&text);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("a.yaml:4: document 1: metadata.name: `a\\nb.yaml:1: x` is not"));
    let found = problems("kind: \"a\\nb\"\nmetadata: {name: a}\n");
    assert_eq!(
        found,
        [
            "a.yaml:1: document 1: kind: unknown kind `a\\nb`, expected one of `DestinationRule`, \
             `Secret`, `Service`, `ServiceEntry`, `Tunnel`, `VirtualService`"
        ]
    );
}

#[test]
fn repeated_keys_and_names_are_problems() {
    let text = ALL.to_owned() + "    port: 3129\n";
    assert_eq!(
        problems(&text),
        ["a.yaml:9: Tunnel/all: spec.proxy.port: it already stands in line 8"]
    );
    let in_namespace = ALL.replace("name: all", "name: all\n  namespace: n");
    let found = compile(&[("b.yaml", ALL), ("c.yaml", &in_namespace), ("a.yaml", ALL)]);
    assert_eq!(
        found.unwrap_err(),
        ["a.yaml:4: Tunnel/all: metadata.name: `all` is already the name of a Tunnel in b.yaml:4"]
    );
}

#[test]
fn the_oldest_tunnel_wins_then_the_first_by_name() {
    let aged = |name: &str, year: u16| {
        let created = format!("name: {name}\n  creationTimestamp: {year}-01-01T00:00:00Z");
        ALL.replace("name: all", &created)
    };
    for (texts, winner, losers) in [
        ([aged("a", 2024), aged("b", 2023)], "Tunnel/b", ["Tunnel/a"]),
        ([tunnel("a", ""), aged("b", 2023)], "Tunnel/b", ["Tunnel/a"]),
        ([tunnel("b", ""), tunnel("a", "")], "Tunnel/a", ["Tunnel/b"]),
        ([aged("b", 2023), aged("a", 2023)], "Tunnel/a", ["Tunnel/b"]),
    ] {
        let policy = compile(&[("1.yaml", &texts[0]), ("2.yaml", &texts[1])]).unwrap();
        assert_eq!(&*policy.rules[0].policy, winner);
        let warned = shown(policy.warnings());
        assert_eq!(warned.len(), losers.len());
        for (warning, loser) in warned.iter().zip(losers) {
            assert!(warning.contains(&format!(": {loser}: spec: it never applies: {winner} in ")));
        }
    }
    let policy = compile(&[("1.yaml", ALL), ("2.yaml", &tunnel("b", ""))]).unwrap();
    assert_eq!(
        shown(policy.warnings()),
        [
            "2.yaml:5: Tunnel/b: spec: it never applies: Tunnel/all in 1.yaml:4 is for all \
             external traffic too, and the oldest wins, then the first by name"
        ]
    );
    assert_eq!(policy.proxies().count(), 1);
}

#[test]
fn the_plan_captures_what_policy_is_about() {
    let none = compile(&[("a.yaml", "---\n")]).unwrap();
    assert!(none.capture_plan().ports.is_empty());
    assert_eq!(none.proxies().count(), 0);

    let all = compile(&[("a.yaml", ALL)]).unwrap();
    assert_eq!(all.capture_plan().ports, PortSet::all());

    let more = "  noProxy: ['*:25', '*:587', 198.51.100.0/24, '203.0.113.7:80', example.com]\n";
    let some = compile(&[("a.yaml", &tunnel("all", more))]).unwrap();
    let plan = some.capture_plan();
    assert_eq!(plan.ports.to_string(), "1-24,26-586,588-65535");
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let side = |text: &str| {
        let mut sides = plan.prefixes.iter();
        sides
            .find(|(n, _)| *n == net(text))
            .map(|(_, sides)| sides.tcp)
    };
    assert_eq!(side("198.51.100.0/24"), Some(Side::Internal));
    assert_eq!(side("203.0.113.7/32"), None);
    assert_eq!(side("0.0.0.0/0"), Some(Side::External));
    assert_eq!(side("::/0"), Some(Side::External));
    assert_eq!(side("169.254.0.0/16"), Some(Side::Internal));

    let nothing = compile(&[("a.yaml", &tunnel("all", "  noProxy: ['*']\n"))]).unwrap();
    assert!(nothing.capture_plan().ports.is_empty());
}

#[test]
fn options_make_ranges_internal() {
    let proxy = Proxy::from_url("http://proxy.example", SystemRoots::none).unwrap();
    let options = Options {
        internal_cidrs: vec!["203.0.113.9/24".parse().unwrap()],
        ..Options::default()
    };
    let policy = Policy::for_proxy(proxy, "2001:db8::/32".parse().unwrap(), &options);
    let plan = policy.capture_plan();
    for net in ["203.0.113.0/24", "2001:db8::/32"] {
        let entry = (net.parse().unwrap(), Captured::from(Side::Internal));
        assert!(plan.prefixes.contains(&entry), "{net}");
    }
    assert_eq!(plan.ports, PortSet::all());
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(
        lines in proptest::collection::vec(
            ("(  )?", "(kind|spec|proxy|<<|\\?|-|---|a)?", "[:&*!|>\"'{}\\[\\]#%@, \t~a1-]{0,8}"),
            0..12,
        ),
        cut in 0..ALL.len(),
    ) {
        let mut text = ALL[..cut].to_owned();
        for (indent, key, value) in lines {
            text += &format!("{indent}{key}{value}\n");
        }
        for problem in problems(&text) {
            prop_assert!(problem.starts_with("a.yaml:") && !problem.contains('\n'), "{problem}");
        }
    }
}

#[test]
fn the_failure_mode_is_closed_unless_said() {
    let closed = compile(&[("a.yaml", ALL)]).unwrap();
    assert_eq!(closed.failure_mode(), FailureMode::Closed);
    assert_eq!(shown(closed.warnings()), [""; 0]);
    let named = compile(&[("a.yaml", &tunnel("all", "  noProxy: [example.com]\n"))]).unwrap();
    assert_eq!(
        shown(named.warnings()),
        [
            "a.yaml:9: Tunnel/all: spec.noProxy: names in it are refused, too, while the agent is \
             gone, because only the agent knows names; addresses and ranges are not"
        ]
    );
    let more = "  failureMode: open\n  noProxy: [example.com, '203.0.113.7:25']\n";
    let open = compile(&[("a.yaml", &tunnel("all", more))]).unwrap();
    assert_eq!(open.failure_mode(), FailureMode::Open);
    assert_eq!(shown(open.warnings()), [""; 0]);
    let plan = open.capture_plan();
    assert_eq!(plan.exceptions, [("203.0.113.7/32".parse().unwrap(), 25)]);
    // Nothing is captured, so nothing can be refused.
    let none = compile(&[("a.yaml", "---\n")]).unwrap();
    assert_eq!(none.failure_mode(), FailureMode::Open);
}
