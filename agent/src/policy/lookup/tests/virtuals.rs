//! Hosts that the agent answers for, and connections to their virtual addresses.

use crate::name::OriginalDst;
use crate::policy::testing::{compile, entry, rule, shown, through, tunnel, warnings};
use crate::policy::{Facts, Look, Policy, Served};
use crate::workload::Workload;

/// What the agent answers, in words.
fn answer(policy: &Policy, name: &str) -> String {
    answer_to(policy, &Workload::default(), name)
}

fn answer_to(policy: &Policy, workload: &Workload, name: &str) -> String {
    match policy.serves(&name.parse().unwrap(), &policy.view(workload)) {
        None => "-".to_owned(),
        Some(Served::At(addresses)) => format!("{addresses:?}"),
        Some(Served::Virtual(_)) => "virtual".to_owned(),
        Some(Served::OnDemand) => "on demand".to_owned(),
    }
}

/// What is decided about a connection to a host by its virtual address.
fn decided(policy: &Policy, host: &str, port: u16) -> String {
    let facts = facts(host, port);
    let workload = Workload::default();
    let verdict = policy.decide(&facts, &policy.view(&workload));
    let explained = policy.explain(&facts, &workload).verdict;
    assert_eq!(format!("{verdict:?}"), format!("{explained:?}"));
    shown(&verdict)
}

fn facts(host: &str, port: u16) -> Facts {
    Facts::of_virtual(dst(port), host.parse().unwrap())
}

fn dst(port: u16) -> OriginalDst {
    OriginalDst(format!("240.240.1.2:{port}").parse().unwrap())
}

#[test]
fn external_hosts_behind_a_tunnel_are_served_and_no_others() {
    let policy = compile(
        &[
            through("all", "dns: Serve, noProxy: [exempt.example.com]"),
            entry(
                "several",
                "hosts: [db.example.com, '*.wild.example.com', exempt.example.com, \
                 all.proxy, api.team.svc.cluster.local, single]",
            ),
            entry(
                "inside",
                "hosts: [inside.wild.example.com], location: MESH_INTERNAL",
            ),
            entry(
                "fixed",
                "hosts: [fixed.example.com], addresses: [203.0.113.7, '2001:db8::7']",
            ),
            entry(
                "range",
                "hosts: [range.example.com], addresses: [203.0.113.0/24]",
            ),
            entry("denied, labels: {no: way}", "hosts: [denied.example.com]"),
            tunnel("deny", "action: Deny, selector: {matchLabels: {no: way}}"),
            entry("seen, labels: {only: seen}", "hosts: [seen.example.com]"),
            through("observe", "selector: {matchLabels: {only: seen}}"),
            entry("ruled", "hosts: [ruled.example.com]"),
            rule("ruled", "ruled.example.com", ""),
            entry("everything", "hosts: ['*']"),
        ]
        .concat(),
    );
    for (name, expected) in [
        ("db.example.com", "virtual"),
        ("a.b.wild.example.com", "on demand"),
        ("wild.example.com", "-"),
        ("fixed.example.com", "[203.0.113.7, 2001:db8::7]"),
        ("ruled.example.com", "virtual"),
        // They have addresses of their own, or none at all.
        ("inside.wild.example.com", "-"),
        ("range.example.com", "-"),
        ("denied.example.com", "-"),
        ("seen.example.com", "-"),
        ("exempt.example.com", "-"),
        ("all.proxy", "-"),
        ("api.team.svc.cluster.local", "-"),
        ("single", "-"),
        ("1.2.0.192.in-addr.arpa", "-"),
        // What all names are is not told from what search lists make of them.
        ("db.example.com.corp.example", "-"),
    ] {
        assert_eq!(answer(&policy, name), expected, "{name}");
    }
    assert!(policy.serves_dns());

    let policy = compile(&[through("all", ""), entry("db", "hosts: [db.example.com]")].concat());
    assert!(!policy.serves_dns());
    assert_eq!(answer(&policy, "db.example.com"), "-");
    assert!(!policy.is_virtual("240.240.0.1".parse().unwrap()));
    assert!(warnings(&policy).is_empty(), "{:?}", warnings(&policy));
}

#[test]
fn only_workloads_are_served_whose_tunnel_serves() {
    let policy = compile(
        &[
            through("all", ""),
            through("some", "dns: Serve, workloadSelector: {units: [a.service]}"),
            entry("db", "hosts: [db.example.com]"),
        ]
        .concat(),
    );
    let unit = |name: &str| Workload::in_cgroup(&format!("/system.slice/{name}.service"));
    assert_eq!(answer_to(&policy, &unit("a"), "db.example.com"), "virtual");
    assert_eq!(answer_to(&policy, &unit("b"), "db.example.com"), "-");
}

#[test]
fn a_virtual_address_is_its_host_whatever_the_target_rule() {
    let policy = |spec: &str| {
        compile(
            &[
                through("all", &format!("dns: Serve, {spec}")),
                entry(
                    "wild",
                    "hosts: ['*.example.com'], ports: [{number: 443, name: a}]",
                ),
            ]
            .concat(),
        )
    };
    for (spec, expected) in [
        ("", "Tunnel/all: db.example.com:443 by virtual_address"),
        (
            "targetHost: AUTO_SNI",
            "Tunnel/all: db.example.com:443 by virtual_address",
        ),
        (
            "targetHost: ORIGINAL_DST",
            "Tunnel/all: db.example.com:443 by virtual_address",
        ),
        (
            "targetHost: x.example",
            "Tunnel/all: x.example:443 by explicit",
        ),
        (
            "failureMode: open",
            "Tunnel/all: db.example.com:443 by virtual_address, else direct",
        ),
        (
            "noProxy: [db.example.com]",
            "Direct: noProxy of Tunnel/all lists `db.example.com`",
        ),
    ] {
        assert_eq!(
            decided(&policy(spec), "db.example.com", 443),
            expected,
            "{spec}"
        );
    }
    // Whatever the port.
    let policy = policy("");
    assert_eq!(
        decided(&policy, "db.example.com", 5432),
        "Tunnel/all: db.example.com:5432 by virtual_address"
    );
    // Nobody has waited for bytes that tell nothing.
    assert_eq!(
        policy.look_at(&facts("db.example.com", 443), policy.view_of_stranger()),
        None
    );
}

#[test]
fn an_address_that_stands_for_nothing_leads_nowhere() {
    let policy = compile(
        &[
            through("all", "dns: Serve, noProxy: ['*:25']"),
            entry("wild", "hosts: ['*.example.com']"),
        ]
        .concat(),
    );
    for claim in ["", " sni db.example.com", " host db.example.com verified"] {
        for port in [25, 443] {
            let facts = crate::policy::testing::facts(&format!("240.240.1.2:{port}{claim}"));
            let verdict = policy.decide(&facts, policy.view_of_stranger());
            assert_eq!(
                shown(&verdict),
                "Deny Tunnel/all unknown_address",
                "{claim}"
            );
        }
    }
    assert_eq!(
        policy.look_at(&Facts::new(dst(443)), policy.view_of_stranger()),
        None
    );
}

#[test]
fn without_a_rule_for_it_a_host_is_looked_up_for_good() {
    let policy = compile(
        &[
            through("some", "dns: Serve, selector: {matchLabels: {a: b}}"),
            entry(
                "db, labels: {a: b}",
                "hosts: [db.example.com], ports: [{number: 5432, name: a, protocol: TCP}]",
            ),
            entry(
                "web, labels: {a: b}",
                "hosts: [web.example.com], ports: [{number: 80, name: a, protocol: HTTP}]",
            ),
        ]
        .concat(),
    );
    assert_eq!(
        decided(&policy, "db.example.com", 5432),
        "Tunnel/some: db.example.com:5432 by declared"
    );
    assert_eq!(
        decided(&policy, "db.example.com", 22),
        "Direct: no rule is about it"
    );
    // Requests are read where HTTP is declared, also here.
    let look = |facts: &Facts| policy.look_at(facts, policy.view_of_stranger());
    assert_eq!(look(&facts("web.example.com", 80)), Some(Look::Whole));
    assert_eq!(look(&facts("db.example.com", 5432)), None);
}

#[test]
fn the_same_hosts_have_the_same_addresses_and_an_older_one_keeps_them() {
    let hosts = |count: usize, more: &str| {
        let entries = (0..count).map(|n| {
            entry(
                &format!("n{n}, creationTimestamp: '2026-01-02T03:04:05Z'"),
                &format!("hosts: [n{n}.example.com]"),
            )
        });
        compile(&(through("all", "dns: Serve") + &entries.collect::<String>() + more))
    };
    let slot = |policy: &Policy, n: usize| {
        let name = format!("n{n}.example.com").parse().unwrap();
        match policy.serves(&name, policy.view_of_stranger()) {
            Some(Served::Virtual(slot)) => slot,
            other => panic!("{name}: {other:?}"),
        }
    };
    let younger = entry(
        "a, creationTimestamp: '2026-02-02T03:04:05Z'",
        "hosts: [n3000.example.com, n4000.example.com, n4001.example.com, n4002.example.com]",
    );
    let (few, many) = (hosts(3000, ""), hosts(3000, &younger));
    let mut seen = std::collections::HashSet::new();
    for n in 0..3000 {
        assert_eq!(slot(&few, n), slot(&many, n));
        assert!(seen.insert(slot(&few, n)), "two hosts at one address");
        let [v4, v6] = few.virtual_range().unwrap().addresses(slot(&few, n));
        for address in [v4, v6] {
            let (_, host) = few.virtual_slot(address).unwrap();
            assert_eq!(host.unwrap().as_str(), format!("n{n}.example.com"));
        }
    }
    assert_eq!(many.virtual_hosts(), 3004);
}
