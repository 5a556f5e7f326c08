//! TLS on either leg, as documents have it.

use std::path::Path;

use secrecy::ExposeSecret as _;

use crate::policy::dump;
use crate::policy::testing::{
    document, entry, facts, rule, through, try_compile, tunnel, warnings,
};
use crate::policy::{Decision, Materials, Policy, TunnelDecision};
use crate::tls::testing::Authority;
use crate::tls::{ClientTls, Roots, TlsVersion};

/// Files as an operator may have them: `/ca.pem`, `/cert.pem`, `/key.pem`, and one that is missing.
fn materials() -> Materials {
    let authority = Authority::new("test");
    let identity = authority.issue(&["client.test"]);
    let files = [
        ("/ca.pem", Ok(authority.pem().into_bytes())),
        ("/cert.pem", Ok(identity.chain.clone())),
        (
            "/key.pem",
            Ok(identity.key.expose_secret().as_bytes().to_vec()),
        ),
        ("/text.pem", Ok(b"hunter2".to_vec())),
        (
            "/gone.pem",
            Err("No such file or directory (os error 2)".to_owned()),
        ),
    ];
    let mut materials = Materials::none();
    for (path, bytes) in files {
        materials.files.look_at(path.into(), |_| bytes);
    }
    materials
}

/// A Secret with some of the files.
fn secret(name: &str, keys: &[&str]) -> String {
    let materials = materials();
    let values = keys.iter().map(|key| {
        let file = match *key {
            "ca.crt" => "/ca.pem",
            "tls.crt" => "/cert.pem",
            _ => "/key.pem",
        };
        let bytes = materials
            .files
            .get(Path::new(file))
            .unwrap()
            .clone()
            .unwrap();
        format!("{key}: {:?}", String::from_utf8(bytes).unwrap())
    });
    let values: Vec<_> = values.collect();
    document(
        "Secret",
        name,
        &format!("stringData: {{{}}}", values.join(", ")),
    )
}

fn compile(text: &str) -> Policy {
    try_compile(text, &materials()).unwrap_or_else(|found| panic!("{text}\n{found:?}"))
}

fn tls_rule(name: &str, host: &str, tls: &str) -> String {
    document(
        "DestinationRule",
        name,
        &format!("host: '{host}', trafficPolicy: {{tls: {{{tls}}}}}"),
    )
}

fn tunnel_of(policy: &Policy, connection: &str) -> TunnelDecision {
    let verdict = policy.decide(&facts(connection), policy.view_of_stranger());
    match verdict.decision {
        Decision::Tunnel(tunnel) => tunnel,
        other => panic!("{other:?}"),
    }
}

/// What is wrong, from the key on.
fn wrong(text: &str) -> Vec<String> {
    let found = try_compile(text, &materials()).unwrap_err();
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    let strip = |problem: String| problem.splitn(3, ": ").nth(2).unwrap().to_owned();
    found.into_iter().map(strip).collect()
}

/// Each way to say it, with the TLS to the proxy that comes of it.
#[test]
fn tls_to_a_proxy_is_that_of_the_tunnel_else_of_its_destination_rule() {
    let simple = "mode: SIMPLE, caCertificates: /ca.pem";
    let proxy = |tls: &str| tunnel("t", &format!("proxy: {{host: p.test, port: 8{tls}}}"));
    let port = |number: u16| {
        document(
            "DestinationRule",
            "ports",
            &format!(
                "host: p.test, trafficPolicy: {{portLevelSettings: [{{port: {{number: \
                 {number}}}, tls: {{{simple}}}}}]}}"
            ),
        )
    };
    for (text, expected) in [
        (proxy(""), "DISABLE"),
        (proxy(&format!(", tls: {{{simple}}}")), "SIMPLE"),
        (proxy("") + &tls_rule("r", "p.test", simple), "SIMPLE"),
        (proxy("") + &tls_rule("r", "*.test", simple), "SIMPLE"),
        (proxy("") + &tls_rule("r", "q.test", simple), "DISABLE"),
        (
            proxy(", tls: {mode: DISABLE}") + &tls_rule("r", "p.test", simple),
            "DISABLE",
        ),
        (
            proxy("")
                + &tls_rule("r", "p.test", "mode: DISABLE")
                + &tls_rule("s", "*.test", simple),
            "DISABLE",
        ),
        (proxy("") + &port(8), "SIMPLE"),
        (proxy("") + &port(9), "DISABLE"),
        (
            proxy(
                ", tls: {mode: MUTUAL, caCertificates: /ca.pem, clientCertificate: /cert.pem, \
                 privateKey: /key.pem}",
            ),
            "MUTUAL",
        ),
        (
            proxy(", tls: {mode: MUTUAL, credentialName: s}")
                + &secret("s", &["ca.crt", "tls.crt", "tls.key"]),
            "MUTUAL",
        ),
        (
            proxy(", tls: {mode: SIMPLE, credentialName: s}") + &secret("s", &["ca.crt"]),
            "SIMPLE",
        ),
    ] {
        let policy = compile(&text);
        let tunnel = tunnel_of(&policy, "203.0.113.7:443 sni t.test");
        let client = tunnel.proxies[0].proxy.tls.as_deref();
        assert_eq!(dump::tls(client), expected, "{text}");
        if let Some(client) = client {
            assert!(matches!(client.settings().roots, Roots::Pem(_)), "{text}");
        }
    }
}

#[test]
fn tls_to_a_target_is_that_of_its_most_particular_destination_rule() {
    let own = |name: &str, host: &str, sni: &str| {
        tls_rule(
            name,
            host,
            &format!("mode: SIMPLE, caCertificates: /ca.pem, sni: {sni}"),
        )
    };
    let ports = document(
        "DestinationRule",
        "ports",
        "host: ports.test, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: \
         {number: 443}, tls: {mode: SIMPLE, caCertificates: /ca.pem, sni: port.sni}}]}",
    );
    let young = "young, creationTimestamp: 2025-01-01T00:00:00Z";
    let policy = compile(
        &[
            through("all", ""),
            own("any", "*", "any.sni"),
            own("below", "*.a.test", "below.sni"),
            own("exact", "x.a.test", "exact.sni"),
            own(young, "both.test", "young.sni"),
            own(
                "old, creationTimestamp: 2024-01-01T00:00:00Z",
                "both.test",
                "old.sni",
            ),
            tls_rule("off", "off.test", "mode: DISABLE"),
            ports,
        ]
        .concat(),
    );
    for (connection, expected) in [
        ("203.0.113.7:80 host x.a.test", Some("exact.sni")),
        ("203.0.113.7:80 host y.a.test", Some("below.sni")),
        ("203.0.113.7:80 host other.test", Some("any.sni")),
        ("203.0.113.7:80 host both.test", Some("old.sni")),
        ("203.0.113.7:80 host off.test", None),
        ("203.0.113.7:443 host ports.test", Some("port.sni")),
        ("203.0.113.7:80 host ports.test", None),
        // No name is known.
        ("203.0.113.7:80", None),
    ] {
        let tls = tunnel_of(&policy, connection).tls;
        let sni = tls.and_then(|tls| tls.client.settings().sni.clone());
        assert_eq!(
            sni.map(|sni| sni.to_string()).as_deref(),
            expected,
            "{connection}"
        );
    }
    assert_eq!(
        warnings(&policy),
        [
            "a.yaml:5: DestinationRule/young: spec.trafficPolicy.tls: it never applies: \
          DestinationRule/old in a.yaml:6 says how TLS is spoken to `both.test`, and the oldest \
          wins, then the first by name"
        ]
    );
}

#[test]
fn every_field_reaches_the_client() {
    let settings = |more: &str, text: &str| {
        let tls = format!("mode: SIMPLE, caCertificates: /ca.pem, {more}");
        let text = through("all", "") + &tls_rule("r", "t.test", &tls) + text;
        let tls = tunnel_of(&compile(&text), "203.0.113.7:80 host t.test").tls;
        ClientTls::settings(&tls.unwrap().client).clone()
    };
    let plain = settings("", "");
    assert_eq!((plain.sni, plain.min_version), (None, TlsVersion::Tls12));
    assert_eq!(plain.subject_alt_names, [""; 0]);
    let full = settings(
        "sni: s.test, subjectAltNames: [a.test], minProtocolVersion: TLSV1_3",
        "",
    );
    assert_eq!(full.sni.unwrap().as_str(), "s.test");
    assert_eq!(full.subject_alt_names, ["a.test"]);
    assert_eq!(full.min_version, TlsVersion::Tls13);
    let names = entry("t", "hosts: [t.test], subjectAltNames: [b.test]");
    assert_eq!(settings("", &names).subject_alt_names, ["b.test"]);
    assert_eq!(
        settings("subjectAltNames: [a.test]", &names).subject_alt_names,
        ["a.test"]
    );
}

#[test]
fn what_contradicts_itself_or_is_not_there_is_refused() {
    let tls = |fields: &str| tls_rule("r", "t.test", fields);
    let mutual = |fields: &str| tls(&format!("mode: MUTUAL, caCertificates: /ca.pem, {fields}"));
    let files = "clientCertificate: /cert.pem, privateKey: /key.pem";
    for (text, expected) in [
        (
            tls(&format!("mode: SIMPLE, {files}")),
            "clientCertificate: a certificate of our own is for mode MUTUAL, and mode is SIMPLE",
        ),
        (
            tls(&format!("mode: DISABLE, {files}")),
            "clientCertificate: a certificate of our own is for mode MUTUAL, and mode is DISABLE",
        ),
        (
            mutual(""),
            "clientCertificate: it is missing; mode MUTUAL needs `clientCertificate` and \
             `privateKey`, or `credentialName`",
        ),
        (
            mutual("clientCertificate: /cert.pem"),
            "privateKey: it is missing; mode MUTUAL needs `clientCertificate` and `privateKey`, \
             or `credentialName`",
        ),
        (
            mutual(&format!("{files}, credentialName: s")),
            "clientCertificate: give either files or `credentialName`",
        ),
        (
            mutual("credentialName: s") + &secret("s", &["tls.crt"]),
            "credentialName: Secret/s lacks `tls.crt` or `tls.key`, for mode MUTUAL",
        ),
        (
            mutual("credentialName: s") + &secret("s", &["ca.crt", "tls.crt", "tls.key"]),
            "caCertificates: Secret/s has a `ca.crt` as well: give one of them",
        ),
        (
            mutual("credentialName: s"),
            "credentialName: there is no Secret `s`",
        ),
        (
            tls("mode: SIMPLE, caCertificates: /gone.pem"),
            "caCertificates: /gone.pem cannot be read: No such file or directory (os error 2)",
        ),
    ] {
        let found = wrong(&text);
        assert_eq!(
            found,
            [format!("spec.trafficPolicy.tls.{expected}")],
            "{text}"
        );
    }
    let found = wrong(&tls("mode: SIMPLE, caCertificates: /text.pem"));
    assert_eq!(
        found,
        [
            "spec.trafficPolicy.tls.caCertificates: /text.pem: the CA certificates have no \
             certificate in PEM form"
        ]
    );
    let found = wrong(&tls("mode: SIMPLE"));
    assert!(found[0].contains("caCertificates"), "{found:?}");
}

#[test]
fn what_is_not_verified_and_what_has_no_effect_is_told() {
    let to_proxy = |tls: &str| tunnel("t", &format!("proxy: {{host: p, port: 8, tls: {{{tls}}}}}"));
    for (text, expected) in [
        (
            to_proxy("mode: SIMPLE, insecureSkipVerify: true"),
            "a.yaml:1: Tunnel/t: spec.proxy.tls.insecureSkipVerify: no certificate is verified: \
             everybody on the way can read and change what is sent",
        ),
        (
            to_proxy("mode: DISABLE, sni: a.test"),
            "a.yaml:1: Tunnel/t: spec.proxy.tls.mode: mode is DISABLE, so the fields beside it \
             have no effect",
        ),
        (
            rule("r", "t.test", "") + &tls_rule("s", "u.test", "mode: DISABLE"),
            "a.yaml:2: DestinationRule/s: spec.trafficPolicy.tls: it has no effect: `u.test` is \
             neither tunnelled nor a proxy; TLS is originated inside tunnels only",
        ),
    ] {
        assert_eq!(warnings(&compile(&text)), [expected], "{text}");
    }
}
