//! What must hold for any text that is given as a policy.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use underpass::name::OriginalDst;
use underpass::policy::{
    Claim, Decision, DirectRule, Documents, Facts, NameSource, Options, Policy, Problem, Side,
    TargetSource,
};

const FILE: &str = "policy.yaml";

/// Checks a file as policy. That it takes no longer than it should, the fuzzer sees.
pub(crate) fn check(bytes: &[u8]) {
    // Other files are refused before anybody looks for documents.
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let (count, compiled) = compile(text);
    let (again, compiled_again) = compile(text);
    assert_eq!(count, again);
    match compiled {
        Ok(policy) => {
            let other = compiled_again.expect("what is right once is right again");
            assert_eq!(dump(&policy), dump(&other));
            check_problems(text, policy.warnings());
            assert!(policy.warnings().len() <= count);
            if count == 0 {
                assert!(policy.proxies().next().is_none());
                assert!(policy.capture_plan().ports.is_empty());
            } else {
                assert_eq!(policy.proxies().count(), 1);
            }
            check_decisions(&policy);
        }
        Err(problems) => {
            assert!(count > 0, "problems with no document");
            assert!(!problems.is_empty(), "refused without a reason");
            check_problems(text, &problems);
            assert_eq!(compiled_again.err(), Some(problems));
        }
    }
}

fn compile(text: &str) -> (usize, Result<Policy, Vec<Problem>>) {
    let mut documents = Documents::default();
    let count = documents.add(Path::new(FILE), text);
    (count, Policy::compile(&documents, &Options::default()))
}

/// What the admin endpoint shows, which must always work.
fn dump(policy: &Policy) -> String {
    serde_json::to_string(policy).expect("a policy can be shown")
}

/// Each is one line that can be shown, with a place that there is.
fn check_problems(text: &str, problems: &[Problem]) {
    let lines = 1 + text
        .bytes()
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
        .count();
    assert!(problems.is_sorted());
    for problem in problems {
        assert_eq!(problem.file(), Path::new(FILE));
        let line = usize::try_from(problem.line()).expect("a line number");
        assert!((1..=lines).contains(&line), "{problem} has {lines} lines");
        assert!(
            !problem.key().is_empty() && !problem.reason().is_empty(),
            "{problem}"
        );
        let shown = problem.to_string();
        assert!(shown.starts_with(&format!("{FILE}:{line}: ")), "{shown}");
        assert!(!shown.contains(char::is_control), "{shown:?}");
        assert!(shown.len() <= 4096, "{} bytes: {shown}", shown.len());
    }
}

/// Decides about some connections, and compares with what policy promises of itself.
fn check_decisions(policy: &Policy) {
    let plan = policy.capture_plan();
    for dst in [
        "203.0.113.7:443",
        "203.0.113.7:25",
        "198.51.100.1:80",
        "[2001:db8::7]:443",
        "10.1.2.3:443",
        "127.0.0.1:80",
        "[::1]:80",
    ] {
        let dst = OriginalDst(dst.parse::<SocketAddr>().expect("an address"));
        let decisions: Vec<_> = all_facts(dst)
            .map(|facts| {
                let decision = policy.decide(&facts);
                check_decision(&facts, &decision);
                (facts, decision)
            })
            .collect();
        let [(no_name, without_name), named @ ..] = &decisions[..] else {
            panic!("no facts");
        };
        assert!(!policy.wants_verification(no_name));
        for (facts, decision) in named {
            if !policy.wants_name(dst) {
                assert_eq!(format!("{decision:?}"), format!("{without_name:?}"));
            }
            let verified = Facts {
                claimed_is_verified: true,
                ..facts.clone()
            };
            // Asking is worth it only where it leads to another decision, and then it leads past
            // the proxy.
            let with_proof = policy.decide(&verified);
            let differs = !matches!(decision, Decision::Direct(_))
                && matches!(with_proof, Decision::Direct(_));
            assert_eq!(policy.wants_verification(facts), differs, "{facts:?}");
        }
        // What the kernel leaves alone is never for a proxy.
        let side = plan
            .prefixes
            .iter()
            .filter(|(net, _)| net.contains(&dst.ip()))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, side)| *side);
        let captured = side.expect("every address has a side") == Side::External
            && plan.ports.contains(dst.port());
        if !captured {
            assert!(
                decisions
                    .iter()
                    .all(|(_, decision)| matches!(decision, Decision::Direct(_))),
                "{dst} is not captured and yet not direct"
            );
        }
    }
}

/// No name first, then names with and without proof.
fn all_facts(original_dst: OriginalDst) -> impl Iterator<Item = Facts> {
    let claims = [
        "www.example.com",
        "example.com",
        "a.corp.example",
        "203.0.113.7",
    ]
    .map(|host| host.parse().expect("a host"))
    .into_iter()
    .flat_map(|host| {
        [NameSource::Sni, NameSource::HttpHost].map(|source| {
            let host = Clone::clone(&host);
            Some(Claim { host, source })
        })
    });
    std::iter::once(None)
        .chain(claims)
        .flat_map(move |claimed| {
            [false, true].map(|proof| Facts {
                original_dst,
                claimed_is_verified: proof && claimed.is_some(),
                claimed: claimed.clone(),
            })
        })
        .skip(1)
}

fn check_decision(facts: &Facts, decision: &Decision) {
    let claimed = facts.claimed.as_ref().map(|claim| &claim.host);
    match decision {
        Decision::Tunnel(tunnel) => {
            assert!(tunnel.policy.starts_with("Tunnel/"), "{}", tunnel.policy);
            assert!(tunnel.proxy.port != 0 && tunnel.target.port != 0);
            match tunnel.source {
                TargetSource::Explicit => {}
                TargetSource::OriginalDst => {
                    assert_eq!(tunnel.target.host.name(), None, "an address is no name");
                }
                TargetSource::Sni | TargetSource::HttpHost => {
                    assert_eq!(claimed, Some(&tunnel.target.host));
                }
            }
            let IpAddr::V4(addr) = facts.original_dst.ip() else {
                return;
            };
            assert!(!addr.is_loopback() && !addr.is_private());
        }
        Decision::Deny { .. } => assert_eq!(claimed.and_then(|host| host.name()), None),
        Decision::Direct(DirectRule::NoProxy { policy, .. }) => {
            assert!(policy.starts_with("Tunnel/"), "{policy}");
        }
        Decision::Direct(_) => {}
    }
}
