//! Server names that may hide others, and keys to hide them with.

use crate::name::Host;
use crate::policy::testing::{compile, entry, facts, rule, shown, through, tunnel};
use crate::policy::{Claim, Facts, NameSource, Policy};
use crate::workload::Workload;

/// What is decided about a ClientHello that may hide a name which nobody knows.
fn hidden(policy: &Policy, connection: &str) -> String {
    let facts = Facts {
        hides_name: true,
        ..facts(connection)
    };
    let workload = Workload::default();
    let verdict = policy.decide(&facts, &policy.view(&workload));
    let explained = policy.explain(&facts, &workload).verdict;
    assert_eq!(format!("{verdict:?}"), format!("{explained:?}"));
    shown(&verdict)
}

#[test]
fn a_name_that_nobody_knows_is_refused_where_names_are_what_it_goes_by() {
    const AT: &str = "203.0.113.7:443 sni front.test";
    for (spec, expected) in [
        ("", "Tunnel/all: front.test:443 by sni"),
        ("onECH: UseServerName", "Tunnel/all: front.test:443 by sni"),
        ("onECH: Deny", "Deny Tunnel/all hidden_name"),
        (
            "onECH: Deny, targetHost: AUTO_SNI",
            "Deny Tunnel/all hidden_name",
        ),
        (
            "onECH: Deny, targetHost: fixed.test",
            "Tunnel/all: fixed.test:443 by explicit",
        ),
        (
            "onECH: Deny, targetHost: ORIGINAL_DST",
            "Tunnel/all: 203.0.113.7:443 by original_dst",
        ),
        // The address is exempt, whatever is said there; the name in front tells nothing.
        (
            "onECH: Deny, noProxy: [203.0.113.0/24]",
            "Direct: noProxy of Tunnel/all lists `203.0.113.0/24`",
        ),
        (
            "onECH: Deny, noProxy: [front.test]",
            "Deny Tunnel/all hidden_name",
        ),
    ] {
        let policy = compile(&through("all", spec));
        assert_eq!(hidden(&policy, AT), expected, "{spec}");
    }
    let policy = compile(&through("all", "onECH: Deny"));
    assert_eq!(
        hidden(&policy, "203.0.113.7:443"),
        "Deny Tunnel/all hidden_name",
        "not even the server name in the open is told"
    );
    assert_eq!(
        hidden(&policy, "203.0.113.7:443 sni front.test verified"),
        "Deny Tunnel/all hidden_name",
        "the address may be that of all whom the front stands before"
    );
    assert_eq!(
        shown(&policy.decide(&facts(AT), policy.view_of_stranger())),
        "Tunnel/all: front.test:443 by sni"
    );
}

#[test]
fn the_rule_of_the_name_that_was_resolved_says_which_name_counts() {
    let policy = compile(
        &[
            through("all", ""),
            through(
                "some",
                "onECH: UseServerName, selector: {matchLabels: {a: b}}",
            ),
            entry("some, labels: {a: b}", "hosts: [open.test]"),
            tunnel("none", "action: Deny, selector: {matchLabels: {a: c}}"),
            entry("none, labels: {a: c}", "hosts: [shut.test]"),
        ]
        .concat(),
    );
    let prefers = |resolved: &str| {
        let facts = Facts {
            claimed: Some(Claim {
                host: Host::Name(resolved.parse().unwrap()),
                source: NameSource::Dns,
            }),
            ..facts("203.0.113.7:443")
        };
        policy.prefers_server_name(&facts, policy.view_of_stranger())
    };
    assert!(prefers("open.test"));
    assert!(!prefers("other.test"));
    assert!(!prefers("shut.test"), "what is denied has no other name");
}

#[test]
fn keys_are_taken_from_the_answers_about_hosts_whose_tunnel_says_so() {
    let policy = compile(
        &[
            through(
                "all",
                "echKeys: Remove, noProxy: [exempt.test], workloadSelector: {units: [a.service]}",
            ),
            through("kept", "selector: {matchLabels: {a: b}}"),
            entry("kept, labels: {a: b}", "hosts: [kept.test]"),
            entry(
                "inside",
                "hosts: ['*.inside.test'], location: MESH_INTERNAL",
            ),
            rule("ruled", "ruled.test", ""),
        ]
        .concat(),
    );
    let removes = |unit: &str, name: &str| {
        let workload = Workload::in_cgroup(&format!("/system.slice/{unit}.service"));
        policy.removes_ech_keys(&name.parse().unwrap(), &policy.view(&workload))
    };
    for (name, expected) in [
        ("anything.test", true),
        ("ruled.test", true),
        // It is found in `noProxy` by its server name.
        ("exempt.test", true),
        ("kept.test", false),
        ("a.inside.test", false),
    ] {
        assert_eq!(removes("a", name), expected, "{name}");
        assert!(!removes("b", name), "{name}");
    }

    // Nothing else comes of it.
    assert!(policy.takes_queries());
    assert!(!policy.serves_dns());
    assert!(!policy.is_virtual("240.240.0.1".parse().unwrap()));
    let keeps = compile(&through("all", "echKeys: Keep, onECH: Deny"));
    assert!(!keeps.takes_queries());
}
