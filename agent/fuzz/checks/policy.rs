//! What must hold for any text that is given as a policy.

use std::net::SocketAddr;
use std::path::Path;

use underpass::name::OriginalDst;
use underpass::policy::{
    Claim, Decision, DirectRule, Documents, Facts, Materials, NameSource, Options, Policy, Problem,
    Side, TargetSource,
};
use underpass::workload::Workload;

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
            if count == 0 {
                assert!(policy.warnings().is_empty());
                assert!(policy.proxies().next().is_none());
                assert!(policy.capture_plan().ports.is_empty());
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
    (
        count,
        Policy::compile(&documents, &Materials::none(), &Options::default()),
    )
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
    let view = &**policy.view_of_stranger();
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
                let verdict = policy.decide(&facts, view);
                check_decision(&facts, &verdict.decision);
                let explained = policy.explain(&facts, &Workload::default());
                assert_eq!(format!("{:?}", explained.verdict), format!("{verdict:?}"));
                (facts, verdict)
            })
            .collect();
        let [(_, without_name), named @ ..] = &decisions[..] else {
            panic!("no facts");
        };
        assert!(without_name.note.is_none());
        for (facts, verdict) in named {
            // Nothing is found out of bytes that nobody looks at.
            if !facts.hides_name && policy.look_at(&Facts::new(dst), view).is_none() {
                assert_eq!(format!("{verdict:?}"), format!("{without_name:?}"));
            }
            let verified = Facts {
                claimed_is_verified: true,
                ..facts.clone()
            };
            // Asking is worth it only where it leads to another decision.
            let with_proof = policy.decide(&verified, view);
            assert!(with_proof.note.is_none());
            // The two hosts of one VirtualService lead the same way.
            if verdict.note.is_some() && !is_redirect(&verdict.decision) {
                let differs = format!("{:?}", with_proof.decision);
                assert_ne!(differs, format!("{:?}", verdict.decision), "{facts:?}");
            }
        }
        // What the kernel leaves alone is never for a proxy.
        let side = plan
            .prefixes
            .iter()
            .filter(|(net, _)| net.contains(&dst.ip()))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, side)| *side);
        let captured = side.expect("every address has a side").tcp != Side::Internal
            && plan.ports.contains(dst.port())
            && !plan
                .exceptions
                .iter()
                .any(|(net, port)| net.contains(&dst.ip()) && *port == dst.port());
        // Nor may a name that nobody has shown to be at the address lead there.
        let direct = |decision: &Decision| matches!(decision, Decision::Direct(_));
        assert!(
            direct(&without_name.decision)
                || named.iter().all(|(facts, verdict)| {
                    facts.claimed_is_verified || !direct(&verdict.decision)
                }),
            "{dst} is reached by a claim"
        );
        if !captured {
            assert!(
                decisions
                    .iter()
                    .all(|(_, verdict)| direct(&verdict.decision)),
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
            [(false, false), (true, false), (false, true)].map(|(proof, hides_name)| Facts {
                original_dst,
                claimed_is_verified: proof && claimed.is_some(),
                claimed: claimed.clone(),
                hides_name,
            })
        })
        .skip(1)
}

fn is_redirect(decision: &Decision) -> bool {
    matches!(decision, Decision::Tunnel(tunnel) if tunnel.policy.starts_with("VirtualService/"))
}

fn check_decision(facts: &Facts, decision: &Decision) {
    let claimed = facts.claimed.as_ref().map(|claim| &claim.host);
    match decision {
        Decision::Tunnel(tunnel) => {
            assert!(!tunnel.proxies.is_empty(), "{}", tunnel.policy);
            assert!(tunnel.proxies.iter().all(|ranked| ranked.proxy.port != 0));
            assert_ne!(tunnel.target.port, 0);
            match tunnel.source {
                TargetSource::Explicit | TargetSource::ServiceEntry => {}
                TargetSource::OriginalDst => {
                    assert_eq!(tunnel.target.host.name(), None, "an address is no name");
                }
                TargetSource::Dns
                | TargetSource::HttpHost
                | TargetSource::Sni
                | TargetSource::VirtualAddress => {
                    assert_eq!(claimed, Some(&tunnel.target.host));
                }
            }
            assert!(!facts.original_dst.ip().is_loopback());
        }
        Decision::Deny { .. } => {}
        Decision::Direct(DirectRule::NoProxy { policy, .. }) => {
            assert!(policy.starts_with("Tunnel/"), "{policy}");
        }
        Decision::Direct(_) => {}
    }
}
