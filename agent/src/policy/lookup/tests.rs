//! Tables of facts and what is decided.

mod doors;
mod ech;
mod precedence;
mod properties;
mod targets;
mod virtuals;

use super::*;
use crate::policy::{HostList, Materials, Options, Proxy};
use crate::tls::SystemRoots;

/// `Direct ...`, `Deny ...`, or `TARGET by SOURCE through PROXY` and what else is said.
fn shown(verdict: Verdict) -> String {
    match verdict.decision {
        Decision::Deny { policy, reason } => format!("Deny {policy} {}", reason.as_str()),
        Decision::Direct(rule) => format!("Direct: {rule}"),
        Decision::Tunnel(tunnel) => {
            let mut text = format!("{} by {}", tunnel.target, tunnel.source.as_str());
            assert_eq!(&*tunnel.policy, "Tunnel/command-line");
            assert_eq!(tunnel.proxies[0].proxy.to_string(), "proxy.example:3128");
            if let Some(service) = verdict.destination_service {
                text += &format!(" for {service}");
            }
            if let Some(note) = verdict.note {
                text += &format!("; {note}");
            }
            text
        }
    }
}

fn policy(target_host: TargetRule, target_port: Option<u16>, no_proxy: &str) -> Policy {
    let proxy = Proxy::from_url("http://proxy.example", SystemRoots::none).unwrap();
    let no_proxy: HostList = no_proxy.parse().unwrap();
    let mut policy = Policy::for_proxy(proxy, no_proxy, &Options::default());
    let Action::Tunnel(route) = &mut policy.rules[0].action else {
        panic!("a command line tunnels");
    };
    route.target_host = target_host;
    route.target_port = target_port;
    policy
}

fn fixed(host: &str) -> TargetRule {
    TargetRule::Fixed(host.parse().unwrap())
}

fn decide(policy: &Policy, facts: &Facts) -> Verdict {
    policy.decide(facts, policy.view_of_stranger())
}

fn wants_verification(policy: &Policy, facts: &Facts) -> bool {
    decide(policy, facts).note.is_some()
}

/// `""`, `sni NAME` or `host HOST`.
fn facts(original_dst: &str, claimed: &str) -> Facts {
    Facts {
        original_dst: OriginalDst(original_dst.parse().unwrap()),
        claimed: claimed.split_once(' ').map(|(source, host)| Claim {
            host: host.parse().unwrap(),
            source: match source {
                "sni" => NameSource::Sni,
                "host" => NameSource::HttpHost,
                other => panic!("{other} is no source"),
            },
        }),
        claimed_is_verified: false,
        hides_name: false,
    }
}

#[test]
fn the_target_is_found_as_target_host_says() {
    use TargetRule as T;
    let v4 = "203.0.113.7:443";
    let v6 = "[2001:db8::1]:8443";
    for (rule, port, dst, claimed, expected) in [
        (T::BestKnown, None, v4, "sni a.test", "a.test:443 by sni"),
        (
            T::BestKnown,
            None,
            v6,
            "host a.test",
            "a.test:8443 by http_host",
        ),
        (
            T::BestKnown,
            None,
            v4,
            "host 198.51.100.7",
            "203.0.113.7:443 by original_dst",
        ),
        (
            T::BestKnown,
            None,
            v6,
            "",
            "[2001:db8::1]:8443 by original_dst",
        ),
        (
            T::BestKnown,
            Some(80),
            v6,
            "",
            "[2001:db8::1]:80 by original_dst",
        ),
        (T::BestKnown, Some(80), v4, "sni a.test", "a.test:80 by sni"),
        (T::AutoSni, None, v4, "sni a.test", "a.test:443 by sni"),
        (
            T::AutoSni,
            Some(1),
            v4,
            "host a.test",
            "a.test:1 by http_host",
        ),
        (
            T::AutoSni,
            None,
            v4,
            "host [2001:db8::9]",
            "Deny Tunnel/command-line no_name",
        ),
        (T::AutoSni, None, v4, "", "Deny Tunnel/command-line no_name"),
        (
            T::OriginalDst,
            None,
            v4,
            "sni a.test",
            "203.0.113.7:443 by original_dst",
        ),
        (
            T::OriginalDst,
            Some(80),
            v6,
            "",
            "[2001:db8::1]:80 by original_dst",
        ),
        (
            fixed("f.test"),
            None,
            v4,
            "sni a.test",
            "f.test:443 by explicit for f.test",
        ),
        (
            fixed("f.test"),
            Some(80),
            v6,
            "",
            "f.test:80 by explicit for f.test",
        ),
        (
            fixed("198.51.100.7"),
            None,
            v4,
            "sni a.test",
            "198.51.100.7:443 by explicit",
        ),
    ] {
        let case = format!("{rule:?} {port:?} {dst} {claimed}");
        let policy = policy(rule, port, "");
        let decision = decide(&policy, &facts(dst, claimed));
        assert_eq!(shown(decision), expected, "{case}");
    }
}

#[test]
fn addresses_lead_past_the_proxy() {
    let list = "198.51.100.0/24 203.0.113.7:25 *:587 named.test";
    let policy = policy(TargetRule::BestKnown, None, list);
    let listed = |entry: &str| format!("Direct: noProxy of Tunnel/command-line lists `{entry}`");
    for (dst, expected) in [
        ("198.51.100.7:443", listed("198.51.100.0/24")),
        ("203.0.113.7:25", listed("203.0.113.7:25")),
        ("203.0.113.7:26", "203.0.113.7:26 by original_dst".into()),
        ("203.0.113.8:587", listed("*:587")),
        ("10.1.2.3:443", "Direct: 10.0.0.0/8 is internal".into()),
        ("[::1]:443", "Direct: ::1/128 is internal".into()),
        (
            "169.254.169.254:80",
            "Direct: 169.254.0.0/16 is internal".into(),
        ),
    ] {
        let facts = facts(dst, "");
        assert_eq!(shown(decide(&policy, &facts)), expected, "{dst}");
        assert!(!wants_verification(&policy, &facts), "{dst}");
    }
}

#[test]
fn a_claimed_name_leads_past_the_proxy_only_if_it_is_verified() {
    let list = ".internal.test open.test port.test:8443 198.51.100.7";
    let policy = policy(TargetRule::BestKnown, None, list);
    let note = |entry: &str| {
        format!("; noProxy lists `{entry}`, but it is not known to belong to the address")
    };
    let listed = |entry: &str| format!("Direct: noProxy of Tunnel/command-line lists `{entry}`");
    for (dst, claimed, unverified, verified) in [
        (
            "203.0.113.7:443",
            "sni open.test",
            "open.test:443 by sni".to_owned() + &note("open.test"),
            listed("open.test"),
        ),
        (
            "203.0.113.7:80",
            "host a.internal.test",
            "a.internal.test:80 by http_host".to_owned() + &note("*.internal.test"),
            listed("*.internal.test"),
        ),
        (
            "203.0.113.7:8443",
            "sni port.test",
            "port.test:8443 by sni".to_owned() + &note("port.test:8443"),
            listed("port.test:8443"),
        ),
    ] {
        let mut facts = facts(dst, claimed);
        assert!(wants_verification(&policy, &facts), "{claimed}");
        assert_eq!(shown(decide(&policy, &facts)), unverified);
        facts.claimed_is_verified = true;
        assert!(!wants_verification(&policy, &facts), "{claimed}");
        assert_eq!(shown(decide(&policy, &facts)), verified);
    }
    for (dst, claimed) in [
        // The list says nothing about the name.
        ("203.0.113.7:443", "sni port.test"),
        ("203.0.113.7:443", "sni internal.test"),
        ("203.0.113.7:443", ""),
        // An address in Host is not where the connection goes.
        ("203.0.113.7:80", "host 198.51.100.7"),
        // The address leads past the proxy whatever the name.
        ("198.51.100.7:443", "sni open.test"),
        ("10.0.0.1:443", "sni open.test"),
    ] {
        let mut facts = facts(dst, claimed);
        assert!(!wants_verification(&policy, &facts), "{dst} {claimed}");
        let unverified = shown(decide(&policy, &facts));
        facts.claimed_is_verified = true;
        assert_eq!(
            shown(decide(&policy, &facts)),
            unverified,
            "{dst} {claimed}"
        );
    }
}

#[test]
fn an_unverified_name_does_not_get_past_a_refusal_or_a_fixed_target() {
    let named = facts("203.0.113.7:443", "sni open.test");
    let policy = policy(fixed("f.test"), None, "open.test");
    let decision = shown(decide(&policy, &named));
    assert!(decision.starts_with("f.test:443 by explicit"), "{decision}");
}

#[test]
fn without_a_tunnel_everything_is_direct() {
    let policy =
        Policy::compile(&Default::default(), &Materials::none(), &Options::default()).unwrap();
    let facts = facts("203.0.113.7:443", "sni a.test");
    assert_eq!(
        shown(decide(&policy, &facts)),
        "Direct: no rule is about it"
    );
    assert!(!wants_verification(&policy, &facts));
}
