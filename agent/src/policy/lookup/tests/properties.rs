//! Random policies: what the indexes find is what looking at every rule finds, and what is
//! promised of decisions holds whatever a workload claims.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::*;
use crate::policy::testing::{compile, document, entry, facts, rule, tunnel};
use crate::policy::{CapturePlan, Captured, DenyReason, Fallback};
use crate::workload::Workload;

const PATTERNS: &[&str] = &[
    "a.test",
    "b.test",
    "www.a.test",
    "'*.a.test'",
    "'*.www.a.test'",
    "'*.test'",
    "'*'",
];

/// Among them a name that no document has.
const NAMES: &[&str] = &[
    "a.test",
    "b.test",
    "www.a.test",
    "x.www.a.test",
    "c.test",
    "stranger.example",
];

const RANGES: &[&str] = &[
    "203.0.113.7",
    "203.0.113.7/32",
    "203.0.113.0/24",
    "203.0.0.0/16",
    "10.1.2.3",
    "10.1.0.0/16",
    "10.0.0.0/8",
    "127.0.0.1",
    "0.0.0.0/0",
    "2001:db8::7",
    "2001:db8::/32",
    "::/0",
];

const ADDRESSES: &[&str] = &[
    "203.0.113.7",
    "203.0.113.8",
    "203.0.1.1",
    "198.51.100.1",
    "10.1.2.3",
    "10.1.9.9",
    "10.9.9.9",
    "127.0.0.1",
    "[2001:db8::7]",
    "[2001:db8::8]",
    "[2001:db9::1]",
];

const PORTS: [u16; 3] = [80, 443, 5432];

/// The text of a field, or nothing.
fn maybe(field: &'static str, values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(String::new()),
        1 => select(values).prop_map(move |value| format!("{field}: {value}, ")),
    ]
}

fn name() -> impl Strategy<Value = String> {
    let age = maybe(
        "creationTimestamp",
        &["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"],
    );
    let labels = maybe("labels", &["{t: a}", "{t: b}", "{t: a, u: a}", "{u: a}"]);
    ("[a-z]", maybe("namespace", &["x", "y"]), age, labels)
        .prop_map(|(letter, namespace, age, labels)| format!("{letter}N, {namespace}{age}{labels}"))
}

fn export_to() -> impl Strategy<Value = String> {
    maybe("exportTo", &["['.']", "['*']", "[x]", "['~']", "[x, y]"])
}

fn service_entry() -> impl Strategy<Value = String> {
    let list = |values: &'static [&'static str], size| {
        vec(select(values), size).prop_map(|list| list.join(", "))
    };
    let ports = maybe(
        "ports",
        &[
            "[{number: 443}]",
            "[{number: 443, protocol: TLS}, {number: 80, protocol: HTTP, targetPort: 8080}]",
            "[{number: 5432, protocol: TCP}]",
            "[{number: 80, protocol: TCP}]",
        ],
    );
    let addresses = prop_oneof![1 => Just(String::new()), 3 => list(RANGES, 1..3)];
    let location = maybe("location", &["MESH_INTERNAL", "MESH_EXTERNAL"]);
    (
        name(),
        list(PATTERNS, 1..3),
        addresses,
        ports,
        location,
        export_to(),
    )
        .prop_map(|(name, hosts, addresses, ports, location, export_to)| {
            let spec = format!(
                "hosts: [{hosts}], addresses: [{}], {ports}{location}{export_to}",
                // IPv6 would end a word in a list.
                addresses
                    .split(", ")
                    .filter(|address| !address.is_empty())
                    .map(|address| format!("'{address}'"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            entry(&name, &spec)
        })
}

fn any_tunnel() -> impl Strategy<Value = String> {
    let selector = maybe(
        "selector",
        &[
            "{matchLabels: {t: a}}",
            "{matchLabels: {t: b}}",
            "{matchLabels: {t: a, u: a}}",
        ],
    );
    let workloads = maybe(
        "workloadSelector",
        &[
            "{namespaces: [x]}",
            "{matchLabels: {app: a}}",
            "{units: ['b*']}",
        ],
    );
    let through = (
        maybe("targetHost", &["AUTO_SNI", "ORIGINAL_DST", "fixed.test"]),
        maybe("failureMode", &["open", "closed"]),
        maybe(
            "noProxy",
            &[
                "[a.test]",
                "['203.0.113.7']",
                "['203.0.113.0/24:443']",
                "['*:80']",
                "['*']",
            ],
        ),
    )
        .prop_map(|(target, mode, no_proxy)| {
            format!("proxy: {{host: proxy.example, port: 3128}}, {target}{mode}{no_proxy}")
        });
    let action = prop_oneof![
        3 => through,
        1 => Just("action: Deny, ".to_owned()),
        1 => Just("action: Direct, ".to_owned()),
    ];
    (name(), selector, workloads, action).prop_map(|(name, selector, workloads, action)| {
        tunnel(&name, &format!("{action}{selector}{workloads}"))
    })
}

fn destination_rule() -> impl Strategy<Value = String> {
    let workloads = maybe("workloadSelector", &["{matchLabels: {app: a}}"]);
    (name(), select(PATTERNS), export_to(), workloads).prop_map(
        |(name, host, export_to, workloads)| {
            let host = host.trim_matches('\'');
            rule(&name, host, &format!("{export_to}{workloads}"))
        },
    )
}

fn virtual_service() -> impl Strategy<Value = String> {
    let port = maybe("port", &["443", "80"]);
    (name(), select(PATTERNS), export_to(), port, any::<bool>()).prop_map(
        |(name, host, export_to, port, tls)| {
            let route = "route: [{destination: {host: redirect.example}}]";
            let routes = if tls {
                format!("tls: [{{match: [{{{port}sniHosts: [{host}]}}], {route}}}]")
            } else {
                format!("tcp: [{{match: [{{{port}}}], {route}}}]")
            };
            document(
                "VirtualService",
                &name,
                &format!("hosts: [{host}], {export_to}{routes}"),
            )
        },
    )
}

/// What `virtual_service` sends connections to.
const REDIRECT: &str = "\
--- {apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: redirect},
     spec: {hosts: [redirect.example], addresses: [192.0.2.1], ports: [{number: 3128}]}}
--- {apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: redirect},
     spec: {host: redirect.example, trafficPolicy: {tunnel: {targetHost: t.test}}}}
";

fn any_policy() -> impl Strategy<Value = String> {
    // Rules about hosts are about any address, and hide what others are about: often there is none.
    let few = || prop_oneof![2 => Just(0), 1 => 1..5_usize];
    (
        vec(service_entry(), 0..8),
        vec(any_tunnel(), 0..8),
        few().prop_flat_map(|count| vec(destination_rule(), count)),
        few().prop_flat_map(|count| vec(virtual_service(), count)),
    )
        .prop_map(|(entries, tunnels, rules, services)| {
            let all = entries.into_iter().chain(tunnels).chain(rules);
            let numbered = all
                .chain(services)
                .enumerate()
                // Names of their own; where they stand in the alphabet stays chance.
                .map(|(number, text)| text.replacen("N, ", &format!("{number}, "), 1))
                .map(|text| text.replace("N.proxy", ".proxy"));
            numbered.chain([REDIRECT.to_owned()]).collect()
        })
}

fn destinations() -> Vec<(&'static str, u16)> {
    let ports = |address: &&'static str| PORTS.map(|port| (*address, port));
    ADDRESSES.iter().flat_map(ports).collect()
}

fn workloads() -> [Workload; 4] {
    let labels = |app: &str| [("app".to_owned(), app.to_owned())].into();
    [
        Workload::default(),
        Workload {
            namespace: Some("x".into()),
            labels: labels("a"),
            ..Workload::default()
        },
        Workload {
            namespace: Some("y".into()),
            labels: labels("b"),
            ..Workload::default()
        },
        Workload::in_cgroup("/system.slice/backup.service"),
    ]
}

/// Where the kernel side has an address and port.
fn sides(plan: &CapturePlan, dst: OriginalDst) -> Captured {
    let excepted =
        |(net, port): &(ipnet::IpNet, u16)| net.contains(&dst.ip()) && *port == dst.port();
    if !plan.ports.contains(dst.port()) || plan.exceptions.iter().any(excepted) {
        return Side::Internal.into();
    }
    let around = plan
        .prefixes
        .iter()
        .filter(|(net, _)| net.contains(&dst.ip()));
    around.max_by_key(|(net, _)| net.prefix_len()).unwrap().1
}

/// Whether no document has anything about the claimed name.
fn is_strange(policy: &Policy, facts: &Facts) -> bool {
    let port = facts.original_dst.port();
    let name = facts.claimed.as_ref().and_then(|claim| claim.host.name());
    name.is_some_and(|name| {
        let lists = |rule: &Rule| match &rule.action {
            Action::Tunnel(route) => route.no_proxy.match_name(name, port).is_some(),
            Action::Deny | Action::Direct => false,
        };
        policy.by_host.matching(name).next().is_none()
            && policy.host_rules.matching(name).next().is_none()
            && !policy.rules.iter().any(lists)
    })
}

fn is_direct(verdict: &Verdict) -> bool {
    matches!(verdict.decision, Decision::Direct(_))
}

/// The rules and services that the indexes find: by name, and by address alone.
fn indexed<'a>(
    policy: &'a Policy,
    facts: &Facts,
    view: &View,
) -> [(Option<usize>, Option<&'a str>); 2] {
    let dst = facts.original_dst;
    let at = policy.service_at(dst, view);
    let nameless = Picked {
        rule: policy.rule_for(None, at, dst.port(), view),
        service: at,
    };
    let named = match spoken_name(facts, at) {
        Some(name) => policy.named(name, nameless, dst, view),
        None => nameless,
    };
    [found(named), found(nameless)]
}

fn found(picked: Picked<'_>) -> (Option<usize>, Option<&str>) {
    (picked.rule, picked.service.map(|service| &*service.id))
}

fn check(policy: &Policy, workload: &Workload, view: &View, sides: Captured, dst: OriginalDst) {
    let alone = policy.decide(&facts(&dst.to_string()), view);
    let claims = std::iter::once(dst.to_string()).chain(
        NAMES
            .iter()
            .flat_map(|name| ["", " verified"].map(|proof| format!("{dst} sni {name}{proof}"))),
    );
    for claim in claims {
        let facts = facts(&claim);
        let verdict = policy.decide(&facts, view);
        let shown = format!("{verdict:?}");

        let (named, nameless) = policy.picked(&facts, workload);
        assert_eq!(
            indexed(policy, &facts, view),
            [found(named), found(nameless)],
            "{claim}"
        );
        let explained = policy.explain(&facts, workload);
        assert_eq!(format!("{:?}", explained.verdict), shown, "{claim}");
        let deciding: Vec<_> = explained
            .considered
            .iter()
            .filter(|considered| considered.decides)
            .map(|considered| considered.policy.as_str())
            .collect();
        let by = match &verdict.decision {
            Decision::Deny { policy, .. } => Some(policy),
            Decision::Direct(rule) => rule.policy(),
            Decision::Tunnel(tunnel) => Some(&tunnel.policy),
        };
        assert_eq!(
            deciding,
            by.map(|by| &**by).into_iter().collect::<Vec<_>>(),
            "{claim}"
        );

        // The kernel side captures what is not direct, and lets nothing pass that is closed.
        let closed = match &verdict.decision {
            Decision::Direct(_) => false,
            Decision::Deny { reason, .. } => *reason == DenyReason::Rule,
            Decision::Tunnel(tunnel) => tunnel.fallback == Fallback::Refuse,
        };
        match sides.tcp {
            Side::Internal => assert!(is_direct(&verdict), "{claim}: {shown}"),
            _ if dst.ip().is_loopback() => panic!("{claim}: a node's own address is captured"),
            Side::Open => assert!(!closed, "{claim}: {shown}"),
            Side::External | Side::Virtual => {}
        }
        // Nor does QUIC pass where a connection would not.
        match sides.quic {
            _ if dst.port() != 443 => {}
            Side::Internal => assert!(is_direct(&verdict), "{claim}: {shown}"),
            Side::Open => assert!(!closed, "{claim}: {shown}"),
            Side::External | Side::Virtual => {}
        }
        if policy.look_at(&Facts::new(dst), view).is_none() {
            assert_eq!(format!("{alone:?}"), shown, "{claim}");
        }

        // What a workload says opens no door to the address.
        if !facts.claimed_is_verified || is_strange(policy, &facts) {
            assert!(
                !is_direct(&verdict) || is_direct(&alone),
                "{claim}: {shown}"
            );
        }
        if let Decision::Tunnel(tunnel) = &verdict.decision
            && tunnel.fallback == Fallback::Direct
            && !facts.claimed_is_verified
        {
            let may = nameless
                .rule
                .is_none_or(|rule| !policy.rules[rule].action.is_closed());
            assert!(may, "{claim}: {shown}");
        }
        if policy.denies_address(nameless) {
            assert_eq!(format!("{alone:?}"), shown, "{claim}");
        }
        assert!(
            verdict.note.is_none() || !facts.claimed_is_verified,
            "{claim}: {shown}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn decisions_are_those_of_a_plain_reading(
        text in any_policy(),
        destinations in subsequence(destinations(), 8),
    ) {
        let policy = compile(&text);
        let plan = policy.capture_plan();
        for workload in &workloads() {
            let view = policy.view(workload);
            for (address, port) in &destinations {
                let dst = OriginalDst(format!("{address}:{port}").parse().unwrap());
                check(&policy, workload, &view, sides(&plan, dst), dst);
            }
        }
    }
}
