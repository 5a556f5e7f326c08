//! What documents say of a proxy, in one place or in several.

use crate::policy::testing::{compile, document, entry, facts, problems, secret, tunnel, warnings};
use crate::policy::{Decision, HeaderContext, PlainHttp, Policy, TunnelDecision};
use crate::workload::Workload;

/// The tunnel of a connection to `t.test`.
fn tunnel_of(policy: &Policy) -> TunnelDecision {
    let facts = facts("203.0.113.7:443 sni t.test verified");
    match policy.decide(&facts, policy.view_of_stranger()).decision {
        Decision::Tunnel(tunnel) => tunnel,
        other => panic!("{other:?}"),
    }
}

/// `NAME PROTOCOL at ENDPOINT*WEIGHT ...`, and what is special about it.
fn proxies(policy: &Policy) -> Vec<String> {
    let tunnel = tunnel_of(policy);
    tunnel
        .proxies
        .iter()
        .map(|ranked| {
            let proxy = &ranked.proxy;
            let mut text = format!("{proxy} {}", proxy.protocol.as_str());
            for endpoint in &proxy.endpoints {
                text += &format!(" at {endpoint}*{}", endpoint.weight);
            }
            if (ranked.priority, ranked.weight) != (0, 1) {
                text += &format!(" priority {} weight {}", ranked.priority, ranked.weight);
            }
            if let Some(credentials) = &proxy.credentials {
                text += &format!(" as {}", credentials.header());
            }
            text
        })
        .collect()
}

fn only(text: &str) -> String {
    let found = proxies(&compile(text));
    let [proxy] = &found[..] else {
        panic!("{found:?}");
    };
    proxy.clone()
}

/// What is wrong, without its place.
fn wrong(text: &str) -> Vec<String> {
    let strip = |problem: String| problem.splitn(3, ':').nth(2).unwrap().trim().to_owned();
    problems(text).into_iter().map(strip).collect()
}

#[test]
fn several_proxies_stand_in_the_order_of_priority() {
    let text = tunnel(
        "t",
        "proxies: [{host: c, port: 1, priority: 7}, {host: a, port: 2, weight: 3}, {host: b, \
         port: 3}, {host: '2001:db8::1', port: 4, protocol: HTTP2-CONNECT, priority: 7, weight: \
         65535}]",
    );
    assert_eq!(
        proxies(&compile(&text)),
        [
            "a:2 HTTP-CONNECT at a:2*1 priority 0 weight 3",
            "b:3 HTTP-CONNECT at b:3*1",
            "c:1 HTTP-CONNECT at c:1*1 priority 7 weight 1",
            "[2001:db8::1]:4 HTTP2-CONNECT at [2001:db8::1]:4*1 priority 7 weight 65535",
        ]
    );
}

#[test]
fn a_service_entry_describes_a_proxy() {
    let described = |spec: &str, proxy: &str| {
        entry("proxy", &format!("hosts: [p.test, q.test], {spec}"))
            + &tunnel("t", &format!("proxy: {{{proxy}}}"))
    };
    let by_host = |spec: &str| described(spec, "host: p.test");
    for (text, expected) in [
        (
            by_host("ports: [{number: 3128, protocol: HTTP-CONNECT}]"),
            "p.test:3128 HTTP-CONNECT at p.test:3128*1",
        ),
        (
            by_host("ports: [{number: 3128, protocol: http2-connect}], resolution: DNS"),
            "p.test:3128 HTTP2-CONNECT at p.test:3128*1",
        ),
        (
            by_host("ports: [{number: 8, protocol: HTTP2}]"),
            "p.test:8 HTTP2-CONNECT at p.test:8*1",
        ),
        (
            by_host("ports: [{number: 8, protocol: HTTP2-POST}]"),
            "p.test:8 HTTP2-POST at p.test:8*1",
        ),
        (
            by_host("ports: [{number: 8, protocol: TCP}]"),
            "p.test:8 HTTP-CONNECT at p.test:8*1",
        ),
        (
            by_host("ports: [{number: 8, protocol: HTTPS}]"),
            "p.test:8 HTTP-CONNECT at p.test:8*1",
        ),
        // Of several ports the one that says how to tunnel.
        (
            by_host("ports: [{number: 80, protocol: HTTP}, {number: 8, protocol: HTTP-CONNECT}]"),
            "p.test:8 HTTP-CONNECT at p.test:8*1",
        ),
        // What the Tunnel says goes before.
        (
            described(
                "ports: [{number: 80, protocol: HTTP}, {number: 8, protocol: HTTP2-POST}]",
                "host: q.test, port: 80, protocol: HTTP2-CONNECT",
            ),
            "q.test:80 HTTP2-CONNECT at q.test:80*1",
        ),
        // An entry without ports, as of a host that is a target elsewhere.
        (
            described("", "host: p.test, port: 9"),
            "p.test:9 HTTP-CONNECT at p.test:9*1",
        ),
        (
            by_host(
                "resolution: STATIC, ports: [{number: 8, name: tunnel, targetPort: 18}], \
                 endpoints: [{address: 203.0.113.1}, {address: '2001:db8::1', weight: 5}, \
                 {address: 203.0.113.3, ports: {tunnel: 28, other: 1}}]",
            ),
            "p.test:8 HTTP-CONNECT at 203.0.113.1:18*1 at [2001:db8::1]:18*5 at 203.0.113.3:28*1",
        ),
        (
            by_host(
                "resolution: DNS, ports: [{number: 8}], endpoints: [{address: a.test}, {address: \
                 b.test}]",
            ),
            "p.test:8 HTTP-CONNECT at a.test:8*1 at b.test:8*1",
        ),
        (
            by_host("resolution: STATIC, ports: [{number: 8}], addresses: [203.0.113.9]"),
            "p.test:8 HTTP-CONNECT at 203.0.113.9:8*1",
        ),
        (
            by_host("addresses: [203.0.113.9, '2001:db8::9/128'], ports: [{number: 8}]"),
            "p.test:8 HTTP-CONNECT at 203.0.113.9:8*1 at [2001:db8::9]:8*1",
        ),
    ] {
        assert_eq!(only(&text), expected, "{text}");
    }
    for (text, expected) in [
        (
            tunnel("t", "proxy: {host: p.test}"),
            "Tunnel/t: spec.proxy.port: it is missing; no ServiceEntry or Service describes \
             `p.test`, which could give it",
        ),
        (
            by_host(""),
            "Tunnel/t: spec.proxy.port: it is missing, and ServiceEntry/proxy has no port",
        ),
        (
            by_host("ports: [{number: 80}, {number: 8}]"),
            "Tunnel/t: spec.proxy.port: it is missing, and ServiceEntry/proxy has several ports: \
             80, 8",
        ),
        (
            described(
                "ports: [{number: 80}, {number: 8}]",
                "host: p.test, port: 9",
            ),
            "Tunnel/t: spec.proxy.port: ServiceEntry/proxy has no port 9, only 80, 8",
        ),
        (
            by_host("resolution: STATIC, ports: [{number: 8}]"),
            "Tunnel/t: spec.proxy: ServiceEntry/proxy has resolution STATIC and neither endpoints \
             nor addresses",
        ),
        (
            by_host("resolution: STATIC, ports: [{number: 8}], endpoints: [{address: a.test}]"),
            "Tunnel/t: spec.proxy: ServiceEntry/proxy has resolution STATIC, and the endpoint \
             `a.test` is a name",
        ),
        (
            by_host("addresses: [203.0.113.0/24], ports: [{number: 8}]"),
            "Tunnel/t: spec.proxy: ServiceEntry/proxy has the range 203.0.113.0/24 where the \
             proxy should be",
        ),
    ] {
        assert_eq!(wrong(&text), [expected], "{text}");
    }
}

#[test]
fn of_entries_for_a_proxy_the_one_for_tunnels_counts_then_the_oldest() {
    let of =
        |name: &str, ports: &str| entry(name, &format!("hosts: [p.test], ports: [{{{ports}}}]"));
    let young = "a, creationTimestamp: 2025-01-01T00:00:00Z";
    let old = "b, creationTimestamp: 2024-01-01T00:00:00Z";
    for (entries, expected) in [
        (
            of("a", "number: 1") + &of("b", "number: 2, protocol: HTTP-CONNECT"),
            2,
        ),
        (of("b", "number: 2") + &of("a", "number: 1"), 1),
        (of(young, "number: 1") + &of(old, "number: 2"), 2),
    ] {
        let text = entries + &tunnel("t", "proxy: {host: p.test}");
        assert_eq!(
            only(&text),
            format!("p.test:{expected} HTTP-CONNECT at p.test:{expected}*1")
        );
    }
}

#[test]
fn a_service_of_the_cluster_describes_a_proxy() {
    let service = document(
        "Service",
        "proxy, namespace: egress",
        "ports: [{port: 3128, appProtocol: HTTP2-CONNECT}], clusterIP: 10.0.0.1",
    );
    let full = "proxy.egress.svc.cluster.local:3128*1";
    for host in [
        "proxy.egress",
        "proxy.egress.svc",
        "proxy.egress.svc.cluster.local",
    ] {
        let text = service.clone() + &tunnel("t", &format!("proxy: {{host: {host}}}"));
        assert_eq!(only(&text), format!("{host}:3128 HTTP2-CONNECT at {full}"));
    }
    let short = |namespace: &str| {
        service.clone() + &tunnel(&format!("t{namespace}"), "proxy: {host: proxy}")
    };
    assert_eq!(
        only(&short(", namespace: egress")),
        format!("proxy:3128 HTTP2-CONNECT at {full}")
    );
    for elsewhere in ["", ", namespace: other"] {
        let found = wrong(&short(elsewhere));
        assert!(
            found[0].contains("no ServiceEntry or Service describes `proxy`"),
            "{found:?}"
        );
    }
}

#[test]
fn an_external_name_is_where_a_service_is() {
    let text = document(
        "Service",
        "proxy, namespace: egress",
        "type: ExternalName, externalName: squid.corp.test, ports: [{port: 3128}]",
    ) + &tunnel("t", "proxy: {host: proxy.egress}")
        + &document(
            "DestinationRule",
            "tls",
            "host: squid.corp.test, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}",
        );
    let policy = compile(&text);
    assert_eq!(
        proxies(&policy),
        ["proxy.egress:3128 HTTP-CONNECT at squid.corp.test:3128*1"]
    );
    assert!(tunnel_of(&policy).proxies[0].proxy.tls.is_some());
}

#[test]
fn a_redirect_is_the_same_intent_as_a_tunnel() {
    let proxy = |protocol: &str| {
        entry(
            "proxy",
            &format!("hosts: [p.test], ports: [{{number: 8, protocol: {protocol}}}]"),
        )
    };
    let target = entry(
        "target, labels: {t: target}",
        "hosts: [t.test], ports: [{number: 443}]",
    );
    let recipe = |how: &str, to: &str| {
        document(
            "VirtualService",
            "redirect",
            &format!(
                "hosts: [t.test], {how}: [{{match: [{{port: 443{}}}], route: [{{destination: \
                 {{host: p.test{to}}}}}]}}]",
                if how == "tls" {
                    ", sniHosts: [t.test]"
                } else {
                    ""
                }
            ),
        )
    };
    let of_proxy = |tunnel: &str| {
        document(
            "DestinationRule",
            "proxy",
            &format!("host: p.test, trafficPolicy: {{tunnel: {{{tunnel}}}}}"),
        )
    };
    let way = |policy: &Policy| {
        let tunnel = tunnel_of(policy);
        format!(
            "{} {:?} {:?}",
            tunnel.target, tunnel.proxies, tunnel.fallback
        )
    };
    for (protocol, fields, method, tunnel_fields) in [
        ("HTTP-CONNECT", "", "", ""),
        (
            "HTTP",
            "targetHost: t.test, targetPort: 443",
            "protocol: CONNECT",
            "targetHost: t.test, targetPort: 443",
        ),
        (
            "HTTP2",
            "targetHost: AUTO_SNI",
            "protocol: CONNECT",
            "targetHost: AUTO_SNI",
        ),
        (
            "HTTP2",
            "targetHost: ORIGINAL_DST",
            "",
            "targetHost: ORIGINAL_DST",
        ),
        ("HTTP2-POST", "", "protocol: POST", ""),
    ] {
        let as_tunnel = compile(
            &[
                proxy(protocol),
                target.clone(),
                tunnel(
                    "t",
                    &format!(
                        "selector: {{matchLabels: {{t: target}}}}, proxy: {{host: p.test}}, \
                         {tunnel_fields}"
                    ),
                ),
            ]
            .concat(),
        );
        for (how, to) in [("tls", ""), ("tcp", ""), ("tcp", ", port: {number: 8}")] {
            let rule = of_proxy(&[method, fields].join(", ").replace(", , ", ", "));
            let rule = rule.replace("{, ", "{");
            let text = [proxy(protocol), target.clone(), recipe(how, to), rule].concat();
            let policy = compile(&text);
            assert_eq!(way(&policy), way(&as_tunnel), "{text}");
            assert_eq!(warnings(&policy), [""; 0], "{text}");
        }
    }
}

#[test]
fn a_destination_rule_has_its_proxy_inside_tunnel_or_beside_it() {
    let rule = |policy: &str| {
        document(
            "DestinationRule",
            "r",
            &format!("host: t.test, trafficPolicy: {{{policy}}}"),
        )
    };
    let proxy = "proxy: {host: p.test, port: 8}";
    for text in [
        rule(&format!("tunnel: {{{proxy}}}")),
        rule(&format!("tunnel: {{}}, {proxy}")),
        rule(&format!(
            "tunnel: {{protocol: CONNECT, targetPort: 443}}, {proxy}"
        )),
    ] {
        assert_eq!(only(&text), "p.test:8 HTTP-CONNECT at p.test:8*1");
    }
    assert_eq!(
        wrong(&rule(&format!("tunnel: {{{proxy}}}, {proxy}"))),
        [
            "DestinationRule/r: spec.trafficPolicy.proxy: `tunnel` has a proxy as well: give one of \
          them"
        ]
    );
    assert_eq!(
        wrong(&rule(proxy)),
        [
            "DestinationRule/r: spec.trafficPolicy.proxy: it is the proxy of a `tunnel`, and there \
          is none"
        ]
    );
    assert_eq!(
        wrong(&rule(&format!("tunnel: {{protocol: POST, {proxy}}}"))),
        [
            "DestinationRule/r: spec.trafficPolicy.tunnel.protocol: POST needs HTTP/2: the port of \
          the proxy must have the protocol HTTP2-POST, HTTP2-CONNECT or HTTP2"
        ]
    );
}

#[test]
fn credentials_come_from_secrets() {
    let with = |secret: &str, reference: &str| {
        secret.to_owned()
            + &tunnel(
                "t, namespace: n",
                &format!(
                    "proxy: {{host: p, port: 8, authentication: {{credentialName: {reference}}}}}"
                ),
            )
    };
    // "user:secret" and "sesame".
    const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";
    for (secret, reference, expected) in [
        (secret("s", "username: user, password: secret"), "s", BASIC),
        (
            secret("s, namespace: n", "username: user, password: \"secret\\n\""),
            "s",
            BASIC,
        ),
        (
            secret("s, namespace: m", "username: user, password: secret"),
            "m/s",
            BASIC,
        ),
        (
            document(
                "Secret",
                "s",
                "data: {username: dXNlcg==, password: c2VjcmV0}",
            ),
            "s",
            BASIC,
        ),
        (
            document(
                "Secret",
                "s",
                "data: {username: dXNlcg==, password: AAAA}, stringData: {password: secret}",
            ),
            "s",
            BASIC,
        ),
        (secret("s", "username: user"), "s", "Basic dXNlcjo="),
        (secret("s", "token: sesame"), "s", "Bearer sesame"),
        (secret("s", "header: Negotiate abc"), "s", "Negotiate abc"),
        (
            secret("s", "token: wrong") + &secret("s, namespace: n", "token: own"),
            "s",
            "Bearer own",
        ),
    ] {
        let text = with(&secret, reference);
        assert_eq!(
            only(&text),
            format!("p:8 HTTP-CONNECT at p:8*1 as {expected}"),
            "{text}"
        );
    }
    let key = "Tunnel/t: spec.proxy.authentication.credentialName:";
    for (secret, reference, expected) in [
        (
            String::new(),
            "s",
            "there is no Secret `s` in namespace `n`",
        ),
        (String::new(), "m/s", "there is no Secret `m/s`"),
        (
            secret("s, namespace: m", "token: a"),
            "s",
            "there is no Secret `s` in namespace `n`; that in namespace `m` is `m/s`",
        ),
        (
            secret("s", "user: hunter2, pass: hunter2"),
            "s",
            "Secret/s has no credentials for a proxy: expected `username` and `password`, \
             `token`, or `header`, found only `pass`, `user`",
        ),
        (
            secret("s", "username: hunter2, token: hunter2"),
            "s",
            "Secret/s has several credentials for a proxy: expected only one of `username` with \
             `password`, `token`, and `header`",
        ),
        (
            secret("s", "username: 'hunter:2', password: a"),
            "s",
            "the credentials in Secret/s cannot be sent: the user name contains a colon",
        ),
        (
            secret("s", "header: \"a\\r\\nhunter2: b\""),
            "s",
            "the credentials in Secret/s cannot be sent: the header is empty or has characters \
             that may not stand in one",
        ),
    ] {
        assert_eq!(
            wrong(&with(&secret, reference)),
            [format!("{key} {expected}")]
        );
    }
}

#[test]
fn headers_of_a_proxy_tell_who_connects() {
    let policy = compile(&tunnel(
        "t",
        "proxy: {host: p, port: 8, headers: {X-Who: '{workload.namespace}/{workload.name}', \
         X-To: '{target.host}'}}",
    ));
    assert!(policy.wants_workload());
    let decision = tunnel_of(&policy);
    let workload = Workload {
        namespace: Some("team-a".into()),
        name: Some("web-0".into()),
        ..Workload::default()
    };
    let context = HeaderContext {
        workload: &workload,
        target: &decision.target,
        original_dst: facts("203.0.113.7:443").original_dst,
    };
    let headers: Vec<_> = decision.proxies[0]
        .proxy
        .headers
        .iter()
        .filter_map(|header| header.render(&context))
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    assert_eq!(headers, ["x-to: t.test", "x-who: team-a/web-0"]);
    let plain = "proxy: {host: p, port: 8, headers: {X-To: '{target.host}'}}";
    assert!(!compile(&tunnel("t", plain)).wants_workload());
}

#[test]
fn requests_in_absolute_form_are_a_reason_to_read_them() {
    let view = |policy: &Policy| {
        let facts = facts("203.0.113.7:80");
        policy
            .look_at(
                &crate::policy::Facts::new(facts.original_dst),
                policy.view_of_stranger(),
            )
            .is_some()
    };
    let with = |more: &str| {
        let spec = format!("proxy: {{host: p, port: 8{more}}}, targetHost: t.test");
        compile(&tunnel("t", &spec))
    };
    let absolute = with(", plainHTTP: ABSOLUTE_FORM");
    let proxy = &tunnel_of(&absolute).proxies[0].proxy;
    assert_eq!(proxy.plain_http, PlainHttp::AbsoluteForm);
    assert!(view(&absolute));
    for more in ["", ", plainHTTP: CONNECT"] {
        let tunnels = with(more);
        let proxy = &tunnel_of(&tunnels).proxies[0].proxy;
        assert_eq!(proxy.plain_http, PlainHttp::Connect);
        assert!(!view(&tunnels), "{more}");
    }
    // Both are one proxy to connect to, and two to ask.
    let both = compile(&tunnel(
        "t",
        "proxies: [{host: p, port: 8}, {host: p, port: 8, plainHTTP: ABSOLUTE_FORM}]",
    ));
    assert_eq!(both.proxies().count(), 2);
    let of_rule = compile(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\n\
         spec: {host: t.test, trafficPolicy: {tunnel: {proxy: {host: p, port: 8, plainHTTP: \
         ABSOLUTE_FORM}}}}\n",
    );
    let proxy = &tunnel_of(&of_rule).proxies[0].proxy;
    assert_eq!(proxy.plain_http, PlainHttp::AbsoluteForm);
}
