//! An explanation as it is printed.

use std::fmt;

use serde_json::{Value, json};

use super::destination::{Assumed, Destination};
use super::target::Shown;
use crate::policy::{
    Decision, DialFrom, Explanation, Fallback, Mismatch, NameSource, PlainHttp, RankedProxy,
    TargetSource, TunnelDecision, UdpFate,
};
use crate::tls::{ClientTls, Roots, TlsSettings};

/// What is said of one destination.
pub(super) struct Report<'a> {
    pub(super) destination: &'a Destination,
    pub(super) assumed: &'a Assumed,
    pub(super) explanation: &'a Explanation,
}

impl Report<'_> {
    /// The same for programs.
    pub(super) fn to_json(&self) -> Value {
        let facts = &self.assumed.facts;
        let verdict = &self.explanation.verdict;
        let mut shown = json!({
            "destination": self.destination.to_string(),
            "original_dst": facts.original_dst.to_string(),
            "claimed": facts.claimed.as_ref().map(|claim| json!({
                "host": claim.host.to_string(),
                "source": name_source(claim.source),
                "verified": facts.claimed_is_verified,
            })),
            "assumed": self.assumed.notes,
            "captured": self.explanation.captured,
            "udp": self.explanation.udp,
            "service": self.explanation.service.as_deref(),
            "note": verdict.note.as_ref().map(ToString::to_string),
            "target_policy": verdict.target.as_deref().map(|target| Shown(target).to_json()),
            "considered": self.explanation.considered,
        });
        let decision = match &verdict.decision {
            Decision::Deny { policy, reason } => json!({
                "decision": "deny", "policy": &**policy, "reason": reason.to_string(),
            }),
            Decision::Direct(rule) => json!({
                "decision": "direct",
                "policy": rule.policy().map(|policy| &**policy),
                "reason": rule.to_string(),
            }),
            Decision::Tunnel(tunnel) => json!({
                "decision": "tunnel",
                "policy": &*tunnel.policy,
                "target": tunnel.target.to_string(),
                "target_source": tunnel.source.as_str(),
                "proxies": tunnel.proxies.iter().map(proxy_json).collect::<Vec<_>>(),
                "tls_to_target": self.originated(tunnel).map(|tls| json!({
                    "policy": &*tls.policy,
                    "mode": mode(&tls.client),
                    "server_name": tls.client.settings().sni.as_ref().map_or_else(
                        || tls.name.to_string(), ToString::to_string),
                })),
                "failure_mode": fallback(tunnel.fallback),
                "on_mismatch": mismatch(tunnel.mismatch),
            }),
        };
        if let (Value::Object(shown), Value::Object(decision)) = (&mut shown, decision) {
            shown.extend(decision);
        }
        shown
    }

    /// TLS to the target, if the workload does not speak it itself.
    fn originated<'a>(&self, tunnel: &'a TunnelDecision) -> Option<&'a crate::policy::TargetTls> {
        tunnel.tls.as_ref().filter(|_| !self.speaks_tls())
    }

    fn speaks_tls(&self) -> bool {
        let claimed = self.assumed.facts.claimed.as_ref();
        claimed.is_some_and(|claim| claim.source == NameSource::Sni)
    }

    fn speaks_http(&self) -> bool {
        let claimed = self.assumed.facts.claimed.as_ref();
        claimed.is_some_and(|claim| claim.source == NameSource::HttpHost)
    }

    fn tunnel(&self, tunnel: &TunnelDecision, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  target:         {} ({})",
            tunnel.target,
            target_source(tunnel.source)
        )?;
        match tunnel.mismatch {
            Mismatch::Nothing => {}
            Mismatch::ByAddress => writeln!(
                f,
                "  not resolved:   if the name was not resolved to the address, the address \
                 (onMismatch: UseAddress)"
            )?,
            Mismatch::Refuse => writeln!(
                f,
                "  not resolved:   if the name was not resolved to the address, it is refused \
                 (onMismatch: Deny)"
            )?,
        }
        for ranked in tunnel.proxies.iter() {
            let proxy = &ranked.proxy;
            write!(f, "  proxy:          {proxy}, {}", proxy.protocol.as_str())?;
            if proxy.credentials.is_some() {
                f.write_str(", with credentials")?;
            }
            if proxy.plain_http == PlainHttp::AbsoluteForm {
                f.write_str(", plain HTTP in absolute form")?;
            }
            if proxy.settings.dial_from == DialFrom::Workload {
                f.write_str(", dialled from the workload's network namespace")?;
            }
            if tunnel.proxies.len() > 1 {
                write!(
                    f,
                    ", priority {}, weight {}",
                    ranked.priority, ranked.weight
                )?;
            }
            writeln!(f)?;
            let elsewhere = proxy.endpoints.iter();
            for endpoint in elsewhere.filter(|at| at.host != proxy.host || at.port != proxy.port) {
                write!(f, "    endpoint:     {endpoint}")?;
                if proxy.endpoints.len() > 1 {
                    write!(f, ", weight {}", endpoint.weight)?;
                }
                writeln!(f)?;
            }
            match &proxy.tls {
                None => writeln!(f, "  TLS to proxy:   none")?,
                Some(tls) => {
                    let name = proxy.host.to_string();
                    writeln!(f, "  TLS to proxy:   {}", described(tls, &name))?;
                }
            }
        }
        match (&tunnel.tls, self.originated(tunnel)) {
            (_, Some(tls)) => writeln!(
                f,
                "  TLS to target:  {}, by {}",
                described(&tls.client, &tls.name.to_string()),
                tls.policy
            ),
            (Some(_), None) => {
                writeln!(f, "  TLS to target:  the program's own, passed through")
            }
            (None, None) if self.speaks_tls() => {
                writeln!(f, "  TLS to target:  the program's own, passed through")
            }
            (None, None) if self.speaks_http() => writeln!(f, "  TLS to target:  none"),
            (None, None) => writeln!(f, "  TLS to target:  none but the program's own, if any"),
        }?;
        writeln!(
            f,
            "  without proxy:  {}",
            match tunnel.fallback {
                Fallback::Direct => "it goes direct (failureMode: open)",
                Fallback::DirectIfVerified => {
                    "it goes direct if the name belongs to the address (failureMode: open)"
                }
                Fallback::Refuse => "it is refused (failureMode: closed)",
            }
        )
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.assumed.facts;
        let verdict = &self.explanation.verdict;
        write!(f, "{}", self.destination)?;
        if self.destination.is_name() {
            write!(f, " (at {})", facts.original_dst.ip())?;
        }
        writeln!(f)?;
        for note in &self.assumed.notes {
            writeln!(f, "  assumed:        {note}")?;
        }
        if let Some(service) = &self.explanation.service {
            writeln!(f, "  service:        {service}")?;
        }
        if !self.explanation.captured {
            writeln!(
                f,
                "  captured:       no, no rule can be about this address and port: it never comes \
                 to the agent"
            )?;
        }
        match self.explanation.udp {
            UdpFate::Passes => {}
            UdpFate::Refused => writeln!(f, "  UDP:            it is refused")?,
            UdpFate::RefusedWhileHere => {
                writeln!(f, "  UDP:            it is refused while an agent is there")?;
            }
        }
        match &verdict.decision {
            Decision::Deny { policy, reason } => {
                writeln!(f, "  decision:       Deny, by {policy}: {reason}")?;
            }
            Decision::Direct(rule) => writeln!(f, "  decision:       Direct: {rule}")?,
            Decision::Tunnel(tunnel) => {
                writeln!(f, "  decision:       Tunnel, by {}", tunnel.policy)?;
                self.tunnel(tunnel, f)?;
            }
        }
        if let Some(target) = &verdict.target {
            write!(f, "{}", Shown(target))?;
        }
        if let Some(note) = &verdict.note {
            writeln!(f, "  note:           {note}")?;
        }
        f.write_str("  rules, in the order of precedence:")?;
        if self.explanation.considered.is_empty() {
            f.write_str(" none comes to bear")?;
        }
        for considered in &self.explanation.considered {
            let mark = if considered.decides { '*' } else { '-' };
            write!(
                f,
                "\n    {mark} {} ({}): {}",
                considered.policy, considered.place, considered.reason
            )?;
        }
        Ok(())
    }
}

fn proxy_json(ranked: &RankedProxy) -> Value {
    let proxy = &ranked.proxy;
    json!({
        "proxy": proxy.to_string(),
        "protocol": proxy.protocol.as_str(),
        "endpoints": proxy.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "credentials": proxy.credentials.is_some(),
        "dialFrom": proxy.settings.dial_from,
        "tls": proxy.tls.as_deref().map(mode),
        "priority": ranked.priority,
        "weight": ranked.weight,
    })
}

/// `SIMPLE, server name a.test, any certificate`.
fn described(tls: &ClientTls, host: &str) -> String {
    let TlsSettings {
        sni,
        roots,
        subject_alt_names,
        insecure_skip_verify,
        ..
    } = tls.settings();
    let name = sni
        .as_ref()
        .map_or_else(|| host.to_owned(), ToString::to_string);
    let mut text = format!("{}, server name {name}", mode(tls));
    if *insecure_skip_verify {
        text += ", any certificate";
    } else {
        text += match roots {
            Roots::System => ", certificate verified by the CAs of the system",
            Roots::Pem(_) => ", certificate verified by its own CAs",
        };
        if !subject_alt_names.is_empty() {
            text += &format!(", which must have one of {}", subject_alt_names.join(", "));
        }
    }
    text
}

fn mode(tls: &ClientTls) -> &'static str {
    if tls.settings().identity.is_some() {
        "MUTUAL"
    } else {
        "SIMPLE"
    }
}

fn mismatch(mismatch: Mismatch) -> Option<&'static str> {
    match mismatch {
        Mismatch::Nothing => None,
        Mismatch::ByAddress => Some("UseAddress"),
        Mismatch::Refuse => Some("Deny"),
    }
}

fn name_source(source: NameSource) -> &'static str {
    match source {
        NameSource::Dns => "dns",
        NameSource::HttpHost => "http_host",
        NameSource::Sni => "sni",
        NameSource::VirtualAddress => "virtual_address",
    }
}

fn target_source(source: TargetSource) -> &'static str {
    match source {
        TargetSource::Dns => "what the program has resolved",
        TargetSource::Explicit => "targetHost",
        TargetSource::HttpHost => "the Host of its HTTP",
        TargetSource::OriginalDst => "the address it connects to",
        TargetSource::ServiceEntry => "the first host of the ServiceEntry",
        TargetSource::Sni => "the server name of its TLS",
        TargetSource::VirtualAddress => "what its virtual address stands for",
    }
}

fn fallback(fallback: Fallback) -> &'static str {
    match fallback {
        Fallback::Direct => "open",
        Fallback::DirectIfVerified => "open_if_verified",
        Fallback::Refuse => "closed",
    }
}
