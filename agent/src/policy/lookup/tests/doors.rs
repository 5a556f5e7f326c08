//! What a workload claims opens no door: as an attacker would try it.

use crate::policy::testing::{compile, decided, entry, rule, through, tunnel};

/// Names that lead to their address, each by another way. None of them has an address.
fn ways_out() -> String {
    [
        entry("direct, labels: {way: direct}", "hosts: [direct.test]"),
        tunnel(
            "direct",
            "action: Direct, selector: {matchLabels: {way: direct}}",
        ),
        entry("address, labels: {way: address}", "hosts: [address.test]"),
        through(
            "address",
            "targetHost: ORIGINAL_DST, selector: {matchLabels: {way: address}}",
        ),
        entry("exempt, labels: {way: exempt}", "hosts: [exempt.test]"),
        through(
            "exempt",
            "noProxy: ['*:443', exempt.test], selector: {matchLabels: {way: exempt}}",
        ),
        entry("listed, labels: {way: listed}", "hosts: [listed.test]"),
        through(
            "listed",
            "noProxy: [listed.test], selector: {matchLabels: {way: listed}}",
        ),
        entry(
            "internal",
            "hosts: [internal.test], location: MESH_INTERNAL",
        ),
        entry("open, labels: {way: open}", "hosts: [open.test]"),
        through(
            "open",
            "failureMode: open, selector: {matchLabels: {way: open}}",
        ),
        rule("host", "host.test", ""),
    ]
    .concat()
}

const CLAIMS: &[&str] = &[
    "sni direct.test",
    "sni address.test",
    "sni exempt.test",
    "sni listed.test",
    "sni internal.test",
    "sni open.test",
    "sni host.test",
    "sni stranger.test",
    "host direct.test",
    // The address of something else.
    "host 198.51.100.1",
];

/// A service at 203.0.113.7 under `rule`, and everything that may lead out.
fn guarded(rule: &str) -> String {
    entry(
        "guarded, labels: {guarded: please}",
        "hosts: [guarded.test], addresses: [203.0.113.7]",
    ) + rule
        + &ways_out()
}

#[test]
fn nothing_leads_past_a_rule_that_denies_an_address() {
    let deny = tunnel(
        "deny",
        "action: Deny, selector: {matchLabels: {guarded: please}}",
    );
    let policy = compile(&guarded(&deny));
    for claim in CLAIMS {
        for proof in ["", " verified"] {
            let connection = format!("203.0.113.7:443 {claim}{proof}");
            assert_eq!(
                decided(&policy, &connection),
                "Deny Tunnel/deny rule",
                "{claim}"
            );
        }
    }
}

/// What becomes of each claim, first unverified, then verified.
fn table(policy: &str, expected: &[(&str, &str, &str)]) {
    let policy = compile(policy);
    assert_eq!(expected.len(), CLAIMS.len());
    for (claim, unverified, verified) in expected {
        assert!(CLAIMS.contains(claim), "{claim}");
        let connection = format!("203.0.113.7:443 {claim}");
        assert_eq!(decided(&policy, &connection), *unverified, "{claim}");
        let connection = format!("{connection} verified");
        assert_eq!(
            decided(&policy, &connection),
            *verified,
            "{claim}, verified"
        );
    }
}

#[test]
fn an_unverified_name_leads_past_a_rule_that_denies_everything_only_into_a_tunnel() {
    const DENY: &str = "Deny Tunnel/all rule";
    let deny = tunnel("all", "action: Deny");
    let opened = "Tunnel/open: open.test:443 by declared";
    table(
        &(deny + &ways_out()),
        &[
            (
                "sni direct.test",
                DENY,
                "Direct: action of Tunnel/direct is Direct",
            ),
            (
                "sni address.test",
                DENY,
                "Tunnel/address: 203.0.113.7:443 by original_dst",
            ),
            (
                "sni exempt.test",
                DENY,
                "Direct: noProxy of Tunnel/exempt lists `*:443`",
            ),
            (
                "sni listed.test",
                "Tunnel/listed: listed.test:443 by declared",
                "Direct: noProxy of Tunnel/listed lists `listed.test`",
            ),
            ("sni internal.test", DENY, "Direct: no rule is about it"),
            (
                "sni open.test",
                &format!("{opened}, else direct if verified"),
                &format!("{opened}, else direct"),
            ),
            (
                "sni host.test",
                "DestinationRule/host: host.test:443 by sni",
                "DestinationRule/host: host.test:443 by sni",
            ),
            ("sni stranger.test", DENY, DENY),
            (
                "host direct.test",
                DENY,
                "Direct: action of Tunnel/direct is Direct",
            ),
            ("host 198.51.100.1", DENY, DENY),
        ],
    );
}

/// Whether the tunnel is for everything, for the labels of a service with that address, or for the
/// name of such a service: an unverified name comes to the address by none.
#[test]
fn an_unverified_name_leads_past_no_tunnel() {
    let for_all = |name: &str| through(name, "");
    let by_label = through("t", "selector: {matchLabels: {guarded: please}}");
    for (policy, by) in [
        (for_all("t") + &ways_out(), "Tunnel/t"),
        (guarded(&by_label), "Tunnel/t"),
        (guarded(&rule("t", "guarded.test", "")), "DestinationRule/t"),
    ] {
        let policy = compile(&policy);
        let alone = decided(&policy, "203.0.113.7:443");
        assert!(alone.starts_with(&format!("{by}: ")), "{alone}");
        for claim in CLAIMS {
            let unverified = decided(&policy, &format!("203.0.113.7:443 {claim}"));
            let own = match *claim {
                "sni listed.test" => "Tunnel/listed: listed.test:443 by declared",
                "sni host.test" => "DestinationRule/host: host.test:443 by sni",
                "sni open.test" => {
                    "Tunnel/open: open.test:443 by declared, else direct if verified"
                }
                _ => by,
            };
            assert!(unverified.starts_with(own), "{claim}: {unverified}");
            assert!(
                !unverified.contains("by original_dst") || unverified == alone,
                "{claim}"
            );
        }
        // A name of which policy says nothing may lead to any address.
        for proof in ["", " verified"] {
            let strange = decided(
                &policy,
                &format!("203.0.113.7:443 sni stranger.test{proof}"),
            );
            assert!(strange.starts_with(&format!("{by}: ")), "{strange}");
        }
    }
}

#[test]
fn a_name_whose_service_has_addresses_is_nothing_elsewhere() {
    let policy = compile(
        &[
            entry(
                "partner, labels: {way: direct}",
                "hosts: [partner.test], addresses: [198.51.100.0/24]",
            ),
            tunnel(
                "direct",
                "action: Direct, selector: {matchLabels: {way: direct}}",
            ),
            through("all", ""),
        ]
        .concat(),
    );
    let direct = "Direct: action of Tunnel/direct is Direct";
    assert_eq!(decided(&policy, "198.51.100.7:443"), direct);
    assert_eq!(
        decided(&policy, "198.51.100.7:443 sni partner.test"),
        direct
    );
    assert_eq!(decided(&policy, "198.51.100.7:443 sni other.test"), direct);
    for proof in ["", " verified"] {
        assert_eq!(
            decided(&policy, &format!("203.0.113.7:443 sni partner.test{proof}")),
            "Tunnel/all: partner.test:443 by sni"
        );
    }
}

#[test]
fn a_claim_does_not_make_an_internal_address_external_nor_the_reverse() {
    let policy = compile(&(through("all", "") + &ways_out()));
    assert_eq!(
        decided(&policy, "10.1.2.3:443 sni host.test"),
        "Direct: 10.0.0.0/8 is internal"
    );
    let internal = entry(
        "cluster",
        "hosts: [cluster.test], addresses: [203.0.113.0/24], location: MESH_INTERNAL",
    );
    let policy = compile(&(through("all", "") + &internal));
    assert_eq!(
        decided(&policy, "203.0.113.7:443 sni any.test"),
        "Direct: 203.0.113.0/24 is internal"
    );
    assert_eq!(
        decided(&policy, "198.51.100.7:443 sni cluster.test verified"),
        "Tunnel/all: cluster.test:443 by sni"
    );
}

#[test]
fn where_a_port_speaks_plain_tcp_nothing_is_claimed() {
    let policy = compile(
        &[
            entry(
                "db, labels: {t: db}",
                "hosts: [db.test], addresses: [203.0.113.7], ports: [{number: 5432, protocol: \
                 TCP}]",
            ),
            through("db", "selector: {matchLabels: {t: db}}"),
            ways_out(),
        ]
        .concat(),
    );
    for claim in [
        "",
        " sni direct.test verified",
        " sni open.test",
        " sni host.test verified",
    ] {
        assert_eq!(
            decided(&policy, &format!("203.0.113.7:5432{claim}")),
            "Tunnel/db: db.test:5432 by declared"
        );
    }
}
