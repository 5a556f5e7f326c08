//! Which of several documents decides.

use crate::policy::Policy;
use crate::policy::testing::{
    compile, decided, decided_for, document, entry, facts, rule, through, tunnel, warnings,
};
use crate::workload::Workload;

/// Who decides: `KIND/NAME`, or how it goes direct.
fn decides(policy: &Policy, connection: &str) -> String {
    let decision = decided(policy, connection);
    match decision.split_once(": ") {
        Some(("Direct", _)) | None => decision,
        Some((by, _)) => by.to_owned(),
    }
}

/// A VirtualService that sends connections for `host` to `NAME.proxy`, and what describes that.
fn redirect(name: &str, host: &str) -> String {
    let proxy = format!("{name}.proxy");
    [
        document(
            "VirtualService",
            name,
            &format!(
                "hosts: ['{host}'], tcp: [{{route: [{{destination: {{host: {proxy}, port: \
                 {{number: 3128}}}}}}]}}]"
            ),
        ),
        document(
            "DestinationRule",
            &format!("{name}-proxy"),
            &format!("host: {proxy}, trafficPolicy: {{tunnel: {{protocol: CONNECT}}}}"),
        ),
    ]
    .concat()
}

#[test]
fn the_more_particular_rule_decides() {
    let service = entry("www, labels: {t: www}", "hosts: [www.google.com]");
    // From the least particular to the most.
    let documents = [
        (through("all", ""), "Tunnel/all"),
        (
            through("for-me, namespace: n", "workloadSelector: {}"),
            "Tunnel/all",
        ),
        (
            through("selected", "selector: {matchLabels: {t: www}}"),
            "Tunnel/selected",
        ),
        (redirect("any", "*"), "VirtualService/any"),
        (rule("any", "*", ""), "DestinationRule/any"),
        (redirect("com", "*.com"), "VirtualService/com"),
        (rule("com", "*.com", ""), "DestinationRule/com"),
        (redirect("google", "*.google.com"), "VirtualService/google"),
        (rule("google", "*.google.com", ""), "DestinationRule/google"),
        (redirect("www", "www.google.com"), "VirtualService/www"),
        (rule("www", "www.google.com", ""), "DestinationRule/www"),
    ];
    let mut text = service;
    for (document, winner) in documents {
        // In front, so that nothing comes from the order in the file.
        text.insert_str(0, &document);
        let policy = compile(&text);
        assert_eq!(
            decides(&policy, "203.0.113.7:443 sni www.google.com"),
            *winner
        );
        assert_eq!(
            decides(&policy, "203.0.113.7:443 sni www.google.com verified"),
            *winner
        );
    }
}

#[test]
fn a_wildcard_is_every_name_below_and_the_longest_wins() {
    let policy = compile(
        &[
            rule("google", "*.google.com", ""),
            rule("cloud", "*.cloud.google.com", ""),
            through("all", ""),
        ]
        .concat(),
    );
    for (name, by) in [
        ("www.google.com", "DestinationRule/google"),
        ("a.b.google.com", "DestinationRule/google"),
        ("google.com", "Tunnel/all"),
        ("notgoogle.com", "Tunnel/all"),
        ("cloud.google.com", "DestinationRule/google"),
        ("a.cloud.google.com", "DestinationRule/cloud"),
        ("WWW.Google.COM.", "DestinationRule/google"),
        ("www.google.com.evil.test", "Tunnel/all"),
    ] {
        let connection = format!("203.0.113.7:443 sni {name}");
        assert_eq!(decides(&policy, &connection), by, "{name}");
    }
}

#[test]
fn within_a_class_who_is_selected_goes_first_then_the_oldest_then_the_first_by_name() {
    let selected = |name: &str, more: &str| {
        through(
            name,
            &format!("selector: {{matchLabels: {{t: a}}}}, {more}"),
        )
    };
    let young = "creationTimestamp: 2025-01-01T00:00:00Z";
    let old = "creationTimestamp: 2024-01-01T00:00:00Z";
    let web = Workload {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..Workload::default()
    };
    for (rules, for_web, for_others) in [
        (vec![selected("b", ""), selected("a", "")], "a", "a"),
        (
            vec![selected("a", ""), selected(&format!("b, {young}"), "")],
            "b",
            "b",
        ),
        (
            vec![
                selected(&format!("a, {young}"), ""),
                selected(&format!("b, {old}"), ""),
            ],
            "b",
            "b",
        ),
        (
            vec![
                selected(&format!("a, {old}"), ""),
                selected("b", "workloadSelector: {matchLabels: {app: web}}"),
            ],
            "b",
            "a",
        ),
        // A workload's own rule is still behind one about the service.
        (
            vec![
                selected("a", ""),
                through("b", "workloadSelector: {matchLabels: {app: web}}"),
            ],
            "a",
            "a",
        ),
    ] {
        let text = rules.concat() + &entry("s, labels: {t: a}", "hosts: [a.test]");
        let policy = compile(&text);
        let connection = "203.0.113.7:443 sni a.test";
        let by = |workload: &Workload| {
            let decision = decided_for(&policy, workload, connection);
            decision[..8].trim_start_matches("Tunnel/").to_owned()
        };
        assert_eq!(
            (&*by(&web), &*by(&Workload::default())),
            (for_web, for_others)
        );
    }
}

#[test]
fn what_is_shadowed_is_told_with_the_place_of_what_shadows_it() {
    let service = |name: &str| entry(&format!("{name}, labels: {{t: {name}}}"), "hosts: [a.test]");
    for (text, expected) in [
        (
            through("a", "") + &through("b", ""),
            "a.yaml:2: Tunnel/b: spec: it never applies: Tunnel/a in a.yaml:1 is for all external \
             traffic too, and the oldest wins, then the first by name",
        ),
        (
            service("x")
                + &tunnel("b", "action: Deny, selector: {matchLabels: {t: x}}")
                + &tunnel("a", "action: Deny, selector: {matchLabels: {t: x}}"),
            "a.yaml:2: Tunnel/b: spec: it never applies: Tunnel/a in a.yaml:3 is for services with \
             the labels t=x too, and the oldest wins, then the first by name",
        ),
        (
            rule("b", "a.test", "") + &rule("a", "a.test", ""),
            "a.yaml:1: DestinationRule/b: spec.trafficPolicy.tunnel: it never applies: \
             DestinationRule/a in a.yaml:2 is for `a.test` too, and the oldest wins, then the \
             first by name",
        ),
        (
            redirect("a", "a.test") + &rule("z", "a.test", ""),
            "a.yaml:1: VirtualService/a: spec: it never applies: DestinationRule/z in a.yaml:3 is \
             for `a.test` too, and a DestinationRule goes before a VirtualService",
        ),
    ] {
        assert_eq!(warnings(&compile(&text)), [expected]);
    }
    let some = "workloadSelector: {namespaces: [x]}";
    assert_eq!(
        warnings(&compile(&(through("a", some) + &through("b", "")))),
        [""; 0]
    );
}

#[test]
fn a_service_is_found_by_its_longest_range_then_by_age() {
    let service = |name: &str, address: &str| {
        entry(
            &format!("{name}, labels: {{t: {}}}", &name[..1]),
            &format!("hosts: [{}.test], addresses: ['{address}']", &name[..1]),
        )
    };
    let selected = |name: &str| through(name, &format!("selector: {{matchLabels: {{t: {name}}}}}"));
    let policy = compile(
        &[
            service("a", "203.0.0.0/16"),
            service("b", "203.0.113.0/24"),
            service("c, creationTimestamp: 2024-01-01T00:00:00Z", "203.0.113.7"),
            service("d", "203.0.113.7"),
            service("e", "10.1.0.0/16"),
            service("f", "2001:db8::/32"),
            "abcdef"
                .chars()
                .map(|name| selected(&name.to_string()))
                .collect(),
        ]
        .concat(),
    );
    for (dst, by) in [
        ("203.0.1.1:1", "Tunnel/a"),
        ("203.0.113.1:1", "Tunnel/b"),
        ("203.0.113.7:1", "Tunnel/c"),
        // It is internal by its nature, and external because a document says so.
        ("10.1.2.3:1", "Tunnel/e"),
        ("10.2.2.3:1", "Direct: 10.0.0.0/8 is internal"),
        ("[2001:db8::7]:1", "Tunnel/f"),
        ("198.51.100.7:1", "Direct: no rule is about it"),
    ] {
        assert_eq!(decides(&policy, dst), by, "{dst}");
    }
}

#[test]
fn whom_an_object_shows_to_is_whom_it_is_for() {
    let service = |exports: &str| {
        entry(
            "s, namespace: x, labels: {t: s}",
            &format!("hosts: [s.test], exportTo: [{exports}]"),
        ) + &through("t", "selector: {matchLabels: {t: s}}")
    };
    let by_rule = |exports: &str| {
        rule(
            "t, namespace: x",
            "s.test",
            &format!("exportTo: [{exports}]"),
        )
    };
    let workload = |namespace: &str| Workload {
        namespace: Some(namespace.into()),
        ..Workload::default()
    };
    for (exports, x, y, nobody) in [
        ("'*'", true, true, true),
        ("", true, true, true),
        ("'.'", true, false, false),
        ("y", false, true, false),
        ("'.', y", true, true, false),
        ("'~'", false, false, false),
    ] {
        for policy in [compile(&service(exports)), compile(&by_rule(exports))] {
            for (workload, expected) in [
                (workload("x"), x),
                (workload("y"), y),
                (Workload::default(), nobody),
            ] {
                let decision = decided_for(&policy, &workload, "203.0.113.7:443 sni s.test");
                let tunnelled = !decision.starts_with("Direct");
                assert_eq!(tunnelled, expected, "{exports} {workload:?}: {decision}");
            }
            assert_eq!(policy.wants_workload(), !(x && y && nobody), "{exports}");
        }
    }
}

#[test]
fn an_explanation_says_why_each_rule_won_or_lost() {
    let text = [
        entry("s, labels: {t: s}", "hosts: [www.a.test]"),
        through("all", ""),
        through("all2", ""),
        through("selected", "selector: {matchLabels: {t: s}}"),
        through("others", "selector: {matchLabels: {t: o}}"),
        through(
            "them",
            "selector: {matchLabels: {t: s}}, workloadSelector: {namespaces: [x]}",
        ),
        rule("below", "*.a.test", ""),
        rule("other", "b.test", ""),
    ]
    .concat();
    let policy = compile(&text);
    let explained = policy.explain(
        &facts("203.0.113.7:443 sni www.a.test"),
        &Workload::default(),
    );
    assert_eq!(explained.service.as_deref(), Some("ServiceEntry/s"));
    let told: Vec<_> = explained
        .considered
        .iter()
        .map(|c| format!("{} {}: {}", c.place, c.policy, c.reason))
        .collect();
    let behind = |why: &str| {
        format!("it would apply, but DestinationRule/below goes before it, because that {why}")
    };
    let domain = behind("is about a domain of the host");
    assert_eq!(
        told,
        [
            "a.yaml:8 DestinationRule/other: it is about `b.test`, not `www.a.test`".to_owned(),
            "a.yaml:7 DestinationRule/below: it is about `*.a.test`".to_owned(),
            "a.yaml:6 Tunnel/them: workloadSelector asks for other namespaces".to_owned(),
            "a.yaml:5 Tunnel/others: its selector does not match the labels of ServiceEntry/s"
                .to_owned(),
            format!("a.yaml:4 Tunnel/selected: {domain}"),
            format!("a.yaml:2 Tunnel/all: {domain}"),
            format!("a.yaml:3 Tunnel/all2: {domain}"),
        ]
    );
}
