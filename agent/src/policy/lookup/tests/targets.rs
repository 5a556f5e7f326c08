//! What the proxy is asked for.

use crate::name::OriginalDst;
use crate::policy::testing::{compile, decided, document, entry, facts, rule, through};
use crate::policy::{Facts, Look};

#[test]
fn the_first_host_of_a_service_is_the_target() {
    let selected = |spec: &str| {
        let spec = format!("selector: {{matchLabels: {{t: s}}}}, {spec}");
        compile(
            &[
                entry(
                    "s, labels: {t: s}",
                    "hosts: [first.test, second.test, '*.third.test']",
                ),
                entry("w, labels: {t: s}", "hosts: ['*.wild.test', named.test]"),
                entry(
                    "a, labels: {t: s}",
                    "hosts: [addr.test], addresses: [203.0.113.7]",
                ),
                through("t", &spec),
            ]
            .concat(),
        )
    };
    for (spec, connection, expected) in [
        (
            "",
            "198.51.100.7:443 sni first.test",
            "first.test:443 by declared",
        ),
        (
            "",
            "198.51.100.7:443 sni second.test",
            "first.test:443 by declared",
        ),
        (
            "",
            "198.51.100.7:443 host a.third.test",
            "first.test:443 by declared",
        ),
        // No first name, so the best known one.
        (
            "",
            "198.51.100.7:443 sni a.wild.test",
            "a.wild.test:443 by sni",
        ),
        (
            "",
            "198.51.100.7:80 host named.test",
            "named.test:80 by http_host",
        ),
        ("", "203.0.113.7:443", "addr.test:443 by declared"),
        (
            "",
            "203.0.113.7:443 sni stranger.test",
            "addr.test:443 by declared",
        ),
        (
            "targetHost: AUTO_SNI",
            "198.51.100.7:443 sni second.test",
            "second.test:443 by sni",
        ),
        (
            "targetHost: ORIGINAL_DST",
            "203.0.113.7:443 sni addr.test",
            "203.0.113.7:443 by original_dst",
        ),
        (
            "targetHost: fixed.test, targetPort: 8443",
            "203.0.113.7:443",
            "fixed.test:8443 by explicit",
        ),
    ] {
        let decision = decided(&selected(spec), connection);
        assert_eq!(
            decision,
            format!("Tunnel/t: {expected}"),
            "{spec} {connection}"
        );
    }
    assert_eq!(
        decided(&selected("targetHost: AUTO_SNI"), "203.0.113.7:443"),
        "Deny Tunnel/t no_name"
    );
}

#[test]
fn ports_are_those_of_the_service_and_the_target() {
    let ports = "ports: [{number: 443, protocol: TLS}, {number: 80, targetPort: 8080}]";
    let service = format!("hosts: [s.test], {ports}");
    let tunnel = |more: &str| through("t", &format!("selector: {{matchLabels: {{t: s}}}}, {more}"));
    let by_label = |more: &str| entry("s, labels: {t: s}", &service) + &tunnel(more);
    let by_host = || entry("s", &service) + &rule("t", "s.test", "");
    let with_port = entry("s", &service)
        + &document(
            "DestinationRule",
            "t",
            "host: s.test, trafficPolicy: {tunnel: {targetPort: 9, proxy: {host: p, port: 1}}}",
        );
    for (text, port, expected) in [
        (by_label(""), 443, "Tunnel/t: s.test:443 by declared"),
        (by_label(""), 80, "Tunnel/t: s.test:8080 by declared"),
        (
            by_label("targetPort: 9"),
            80,
            "Tunnel/t: s.test:9 by declared",
        ),
        // It is not declared, so nothing is about it.
        (by_label(""), 22, "Direct: no rule is about it"),
        (by_host(), 443, "DestinationRule/t: s.test:443 by declared"),
        (by_host(), 80, "DestinationRule/t: s.test:8080 by declared"),
        (by_host(), 22, "Direct: no rule is about it"),
        (
            with_port.clone(),
            80,
            "DestinationRule/t: s.test:9 by declared",
        ),
        (
            rule("t", "s.test", ""),
            22,
            "DestinationRule/t: s.test:22 by sni",
        ),
    ] {
        let policy = compile(&text);
        let decision = decided(&policy, &format!("203.0.113.7:{port} sni s.test"));
        assert_eq!(decision, expected, "{text}");
    }
}

#[test]
fn every_tunnel_has_a_list_of_its_own() {
    let policy = compile(
        &[
            entry("s, labels: {t: s}", "hosts: [s.test]"),
            through(
                "t",
                "selector: {matchLabels: {t: s}}, noProxy: ['198.51.100.0/24']",
            ),
            through("all", "noProxy: ['203.0.113.0/24', '*:25']"),
        ]
        .concat(),
    );
    for (connection, expected) in [
        (
            "203.0.113.7:443 sni s.test",
            "Tunnel/t: s.test:443 by declared",
        ),
        (
            "198.51.100.7:443 sni s.test verified",
            "Direct: noProxy of Tunnel/t lists `198.51.100.0/24`",
        ),
        // Nothing shows that the name belongs to the address.
        (
            "198.51.100.7:443 sni s.test",
            "Tunnel/all: s.test:443 by sni",
        ),
        (
            "203.0.113.7:443",
            "Direct: noProxy of Tunnel/all lists `203.0.113.0/24`",
        ),
        (
            "198.51.100.7:443",
            "Tunnel/all: 198.51.100.7:443 by original_dst",
        ),
        (
            "198.51.100.7:25",
            "Direct: noProxy of Tunnel/all lists `*:25`",
        ),
    ] {
        assert_eq!(decided(&policy, connection), expected, "{connection}");
    }
}

#[test]
fn what_is_declared_tells_how_first_bytes_are_looked_at() {
    let ports = [
        "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "HTTPS", "MONGO",
    ];
    let ports = ports.iter().enumerate().map(|(at, protocol)| {
        let number = 80 + at;
        format!("{{number: {number}, name: p{number}, protocol: {protocol}}}")
    });
    let ports: Vec<String> = ports.collect();
    let ports = ports.join(", ");
    let entry = entry(
        "a",
        &format!("hosts: [addr.test], addresses: [203.0.113.7], ports: [{ports}]"),
    );
    let looks = |more: &str| {
        let policy = compile(&[&entry, more, &through("t", "")].concat());
        let view = policy.view_of_stranger();
        let dst = |number| OriginalDst(format!("203.0.113.7:{number}").parse().unwrap());
        let looks = (80..89).map(|number| policy.look_at(&Facts::new(dst(number)), view));
        looks.collect::<Vec<_>>()
    };
    let http = Some(Look::Whole);
    let tls = Some(Look::ForTls);
    // A name may matter, and TLS is where one would be.
    assert_eq!(
        looks(""),
        [http, http, http, http, None, tls, tls, None, http]
    );
    // TLS may have to be added.
    let tls_to = "host: addr.test, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}";
    let encrypted = document("DestinationRule", "a", tls_to);
    assert_eq!(
        looks(&encrypted),
        [http, http, http, http, tls, tls, tls, tls, http]
    );
}

#[test]
fn requests_are_served_unless_the_port_is_declared_otherwise() {
    let port = |number: u16, protocol: &str| {
        format!("{{number: {number}, name: p{number}, protocol: {protocol}}}")
    };
    let ports = [
        port(80, "HTTP"),
        port(81, "TCP"),
        port(82, "TLS"),
        port(83, "HTTP2"),
        port(84, "MYSQL"),
    ];
    let ports = ports.join(", ");
    let policy = compile(
        &[
            entry("n", &format!("hosts: [named.test], ports: [{ports}]")),
            entry(
                "a",
                &format!("hosts: [addr.test], addresses: [203.0.113.7], ports: [{ports}]"),
            ),
            through("t", ""),
        ]
        .concat(),
    );
    for (connection, expected) in [
        ("198.51.100.7:80 host named.test", true),
        ("198.51.100.7:81 host named.test", false),
        ("198.51.100.7:82 host named.test", false),
        ("198.51.100.7:83 host named.test", true),
        ("198.51.100.7:84 host named.test", false),
        // What is at the address counts, whatever is claimed.
        ("203.0.113.7:81 host stranger.test", false),
        ("203.0.113.7:80 host stranger.test", true),
        ("198.51.100.7:81 host stranger.test", true),
        ("198.51.100.7:81", true),
    ] {
        let view = policy.view_of_stranger();
        let serves = policy.serves_requests(&facts(connection), view);
        assert_eq!(serves, expected, "{connection}");
    }
}
