//! Which settings a connection is under.

use std::time::Duration;

use crate::policy::testing::{
    compile, document, entry, facts, problems, through, tunnel, warnings,
};
use crate::policy::{Policy, TargetPolicy, TargetSettings};
use crate::workload::Workload;

/// A DestinationRule without a tunnel.
fn limits(name: &str, host: &str, policy: &str) -> String {
    let spec = format!("host: '{host}', trafficPolicy: {{{policy}}}");
    document("DestinationRule", name, &spec)
}

fn at_most(connections: u32) -> String {
    format!("connectionPool: {{tcp: {{maxConnections: {connections}}}}}")
}

fn target(policy: &Policy, connection: &str) -> Option<TargetPolicy> {
    let verdict = policy.decide(&facts(connection), policy.view_of_stranger());
    verdict.target.map(|target| (*target).clone())
}

/// How many connections there may be; 0 if nothing is said.
fn allowed(policy: &Policy, connection: &str) -> u32 {
    let target = target(policy, connection);
    target
        .and_then(|target| target.settings.max_connections)
        .unwrap_or_default()
}

#[test]
fn the_nearest_host_counts_then_the_port_then_the_oldest() {
    let on_8443 = format!(
        "{}, portLevelSettings: [{{port: {{number: 8443}}, {}}}]",
        at_most(2),
        at_most(3)
    );
    let text = [
        through("all", ""),
        limits("any", "*", &at_most(1)),
        limits("below", "*.example.com", &on_8443),
        limits(
            "exact, creationTimestamp: 2026-01-02T00:00:00Z",
            "www.example.com",
            &at_most(4),
        ),
        limits(
            "older, creationTimestamp: 2026-01-01T00:00:00Z",
            "www.example.com",
            &at_most(5),
        ),
        limits("ageless", "www.example.com", &at_most(6)),
        limits(
            "tls-alone",
            "tls.example.com",
            "tls: {mode: SIMPLE, insecureSkipVerify: true}",
        ),
    ];
    let policy = compile(&text.concat());
    for (connection, expected) in [
        ("203.0.113.7:443 sni www.example.com", 5),
        ("203.0.113.7:443 sni a.example.com", 2),
        ("203.0.113.7:8443 host a.example.com", 3),
        ("203.0.113.7:8443 sni www.example.com", 5),
        ("203.0.113.7:443 sni example.com", 1),
        ("203.0.113.7:443 sni tls.example.com", 2),
        ("203.0.113.7:443", 0),
        ("10.0.0.1:443 sni www.example.com", 0),
    ] {
        assert_eq!(allowed(&policy, connection), expected, "{connection}");
    }
    let never: Vec<_> = warnings(&policy);
    let never = never
        .iter()
        .filter(|warning| warning.contains("it never applies"));
    assert_eq!(never.count(), 2);
}

#[test]
fn they_are_found_by_the_name_asked_for_then_of_the_service_then_of_the_target() {
    let text = [
        through("all", "targetHost: fixed.test"),
        entry(
            "service",
            "hosts: [declared.test], addresses: [203.0.113.9], ports: [{number: 5432, name: db, \
             protocol: TCP}, {number: 80, name: web, protocol: HTTP}]",
        ),
        entry(
            "direct, labels: {way: direct}",
            "hosts: [direct.test], addresses: [203.0.113.5]",
        ),
        tunnel(
            "direct",
            "action: Direct, selector: {matchLabels: {way: direct}}",
        ),
        limits("a", "declared.test", &at_most(1)),
        limits("b", "asked.test", &at_most(2)),
        limits("c", "fixed.test", &at_most(3)),
        limits("d", "direct.test", &at_most(4)),
    ];
    let policy = compile(&text.concat());
    for (connection, expected) in [
        ("203.0.113.9:5432", 1),
        ("203.0.113.9:80 host asked.test", 2),
        ("203.0.113.8:80", 3),
        ("203.0.113.5:80 host direct.test", 4),
        ("203.0.113.5:80", 4),
    ] {
        assert_eq!(allowed(&policy, connection), expected, "{connection}");
    }
    let declared = |connection| target(&policy, connection).unwrap().declared.to_string();
    assert_eq!(declared("203.0.113.9:5432"), "declared.test");
    assert_eq!(declared("203.0.113.5:80 host direct.test"), "direct.test");
}

#[test]
fn a_label_is_never_a_name_that_was_merely_claimed() {
    let text = [through("all", ""), limits("any", "*.test", &at_most(1))];
    let found = target(&compile(&text.concat()), "203.0.113.7:443 sni raw.test").unwrap();
    assert_eq!(
        (&*found.declared, found.host.as_str(), found.port),
        ("*.test", "raw.test", 443)
    );
}

#[test]
fn every_field_counts() {
    let all = "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s, idleTimeout: 3s}, \
               http: {http1MaxPendingRequests: 4, http2MaxRequests: 5, maxRequestsPerConnection: \
               6, maxRetries: 7, idleTimeout: 8s, h2UpgradePolicy: UPGRADE, \
               maxConcurrentStreams: 9}}, outlierDetection: {consecutive5xxErrors: 10, \
               consecutiveGatewayErrors: 11, splitExternalLocalOriginErrors: true, \
               consecutiveLocalOriginFailures: 12, interval: 13s, baseEjectionTime: 14s, \
               maxEjectionPercent: 0}";
    let text = [through("all", ""), limits("a", "a.test", all)].concat();
    let policy = compile(&text);
    assert_eq!(warnings(&policy), [""; 0]);
    let found = target(&policy, "203.0.113.7:443 sni a.test").unwrap();
    let TargetSettings {
        policy,
        max_connections,
        connect_timeout,
        idle_timeout,
        http,
        outliers,
    } = (*found.settings).clone();
    let seconds = Duration::from_secs;
    assert_eq!(policy.as_deref(), Some("DestinationRule/a"));
    assert_eq!(max_connections, Some(1));
    assert_eq!(connect_timeout, Some(seconds(2)));
    assert_eq!(idle_timeout, Some(Some(seconds(3))));
    assert_eq!(
        [
            http.max_pending,
            http.max_requests,
            http.max_requests_per_connection,
            http.max_retries
        ],
        [4, 5, 6, 7].map(Some)
    );
    assert_eq!(
        (http.idle_timeout, http.max_streams),
        (Some(seconds(8)), Some(9))
    );
    assert!(http.upgrades);
    let outliers = outliers.unwrap();
    assert_eq!((outliers.failures, outliers.gateway_failures), (10, 11));
    assert_eq!(outliers.local_failures, Some(12));
    assert_eq!(
        (outliers.interval, outliers.base),
        (seconds(13), seconds(14))
    );
    assert!(!outliers.ejects);

    let unset = "connectionPool: {tcp: {maxConnections: 0, idleTimeout: 0s}, http: \
                 {http1MaxPendingRequests: 0}}, outlierDetection: {}";
    let text = [through("all", ""), limits("a", "a.test", unset)].concat();
    let found = target(&compile(&text), "203.0.113.7:443 sni a.test").unwrap();
    let expected = TargetSettings {
        policy: found.settings.policy.clone(),
        idle_timeout: Some(None),
        outliers: Some(super::Outliers::default()),
        ..TargetSettings::default()
    };
    assert_eq!(*found.settings, expected);
}

#[test]
fn they_are_for_the_workloads_of_their_rule() {
    let text = [
        through("all", ""),
        limits("others", "a.test", &at_most(1)),
        document(
            "DestinationRule",
            "mine",
            &format!(
                "host: a.test, trafficPolicy: {{{}}}, workloadSelector: {{matchLabels: {{app: \
                 web}}}}",
                at_most(2)
            ),
        ),
    ];
    let policy = compile(&text.concat());
    assert!(policy.wants_workload());
    let of = |labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        let workload = Workload {
            labels: labels.collect(),
            ..Workload::default()
        };
        let facts = facts("203.0.113.7:443 sni a.test");
        let target = policy
            .decide(&facts, &policy.view(&workload))
            .target
            .unwrap();
        target.settings.max_connections
    };
    assert_eq!(of(&[]), Some(1));
    assert_eq!(of(&[("app", "web")]), Some(2));
}

#[test]
fn what_has_no_effect_is_said_and_what_contradicts_itself_is_wrong() {
    let lonely = limits("a", "a.test", &at_most(1));
    let said = warnings(&compile(&lonely));
    let reason = "its limits have no effect: `a.test` is neither a proxy nor a host";
    assert!(said.len() == 1 && said[0].contains(reason), "{said:?}");

    let split = limits(
        "a",
        "a.test",
        "outlierDetection: {consecutiveLocalOriginFailures: 1}",
    );
    let said = warnings(&compile(&(through("all", "") + &split)));
    let reason = "it has no effect without `splitExternalLocalOriginErrors: true`";
    assert!(said.len() == 1 && said[0].contains(reason), "{said:?}");

    let both = "connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}";
    let wrong = problems(&(through("all", "") + &limits("a", "a.test", both)));
    let key = "spec.trafficPolicy.connectionPool.http.useClientProtocol";
    assert!(wrong.len() == 1 && wrong[0].contains(key), "{wrong:?}");
}
