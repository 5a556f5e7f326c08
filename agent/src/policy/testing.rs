//! Documents, connections and decisions as short texts, for tables.

use std::path::Path;

use super::{
    Claim, Decision, Documents, Facts, Fallback, Materials, NameSource, Options, Policy, Verdict,
};
use crate::name::OriginalDst;
use crate::workload::Workload;

/// A document on a line of its own: of `metadata` what follows the name may stand behind it.
pub(super) fn document(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Tunnel" => "underpass.dev/v1alpha1",
        "Secret" | "Service" => "v1",
        _ => "networking.istio.io/v1",
    };
    let spec = match kind {
        "Secret" => spec.to_owned(),
        _ => format!("spec: {{{spec}}}"),
    };
    format!("--- {{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}}}, {spec}}}\n")
}

pub(super) fn tunnel(name: &str, spec: &str) -> String {
    document("Tunnel", name, spec)
}

/// A Tunnel through `NAME.proxy:3128`.
pub(super) fn through(name: &str, spec: &str) -> String {
    let proxy = name.split(',').next().unwrap_or(name);
    tunnel(
        name,
        &format!("proxy: {{host: {proxy}.proxy, port: 3128}}, {spec}"),
    )
}

pub(super) fn entry(name: &str, spec: &str) -> String {
    document("ServiceEntry", name, spec)
}

/// A DestinationRule that tunnels `host` through `NAME.proxy:3128`.
pub(super) fn rule(name: &str, host: &str, more: &str) -> String {
    let proxy = name.split(',').next().unwrap_or(name);
    document(
        "DestinationRule",
        name,
        &format!(
            "host: '{host}', trafficPolicy: {{tunnel: {{proxy: {{host: {proxy}.proxy, port: \
             3128}}}}}}, {more}"
        ),
    )
}

pub(super) fn secret(name: &str, values: &str) -> String {
    document("Secret", name, &format!("stringData: {{{values}}}"))
}

/// The policy of a text, or its problems.
pub(super) fn try_compile(text: &str, materials: &Materials) -> Result<Policy, Vec<String>> {
    let mut documents = Documents::default();
    documents.add(Path::new("a.yaml"), text);
    Policy::compile(&documents, materials, &Options::default())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

pub(super) fn compile(text: &str) -> Policy {
    try_compile(text, &Materials::none())
        .unwrap_or_else(|problems| panic!("{text}\n{}", problems.join("\n")))
}

pub(super) fn problems(text: &str) -> Vec<String> {
    try_compile(text, &Materials::none()).map_or_else(|problems| problems, |_| Vec::new())
}

pub(super) fn warnings(policy: &Policy) -> Vec<String> {
    policy.warnings().iter().map(ToString::to_string).collect()
}

/// `ADDR:PORT`, then `sni NAME` or `host HOST` if it is claimed, then `verified` if it is.
pub(super) fn facts(text: &str) -> Facts {
    let mut words = text.split(' ');
    let original_dst = OriginalDst(words.next().unwrap().parse().unwrap());
    let claimed = words.next().map(|source| Claim {
        host: words.next().unwrap().parse().unwrap(),
        source: match source {
            "sni" => NameSource::Sni,
            "host" => NameSource::HttpHost,
            other => panic!("{other} is no source"),
        },
    });
    Facts {
        original_dst,
        claimed,
        claimed_is_verified: words.next().is_some_and(|word| word == "verified"),
        hides_name: false,
    }
}

/// What is decided about a connection of nobody in particular.
pub(super) fn decided(policy: &Policy, connection: &str) -> String {
    decided_for(policy, &Workload::default(), connection)
}

/// What is decided about a connection of a workload.
pub(super) fn decided_for(policy: &Policy, workload: &Workload, connection: &str) -> String {
    shown(&policy.decide(&facts(connection), &policy.view(workload)))
}

/// `Direct: ...`, `Deny POLICY REASON`, or `POLICY: TARGET by SOURCE` and the way besides, where
/// it is not closed.
pub(super) fn shown(verdict: &Verdict) -> String {
    match &verdict.decision {
        Decision::Deny { policy, reason } => format!("Deny {policy} {}", reason.as_str()),
        Decision::Direct(rule) => format!("Direct: {rule}"),
        Decision::Tunnel(tunnel) => {
            let way = match tunnel.fallback {
                Fallback::Direct => ", else direct",
                Fallback::DirectIfVerified => ", else direct if verified",
                Fallback::Refuse => "",
            };
            format!(
                "{}: {} by {}{way}",
                tunnel.policy,
                tunnel.target,
                tunnel.source.as_str()
            )
        }
    }
}
