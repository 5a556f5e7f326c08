//! Why a decision is what it is, in words.
//!
//! Every rule is looked at, one after the other, without the indexes that lookups use; tests hold
//! the two to each other.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::compile::Policy;
use super::decision::Verdict;
use super::external::{Captured, Side};
use super::lookup::{Facts, Picked, spoken_name};
use super::ports::PortSet;
use super::rule::{Ports, Rule, Scope, Service};
use super::workloads::includes;
use crate::name::{HostName, OriginalDst};
use crate::workload::Workload;

const PORT_DNS: u16 = 53;
const PORT_QUIC: u16 = 443;

/// A decision and how it came to be.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Whether it comes to the agent at all; what does not, goes its own way.
    pub captured: bool,
    /// What becomes of UDP to the same address and port.
    pub udp: UdpFate,
    /// The ServiceEntry that the connection is to, if any.
    pub service: Option<Arc<str>>,
    /// Every rule, in the order of precedence.
    pub considered: Vec<Considered>,
    /// The decision.
    pub verdict: Verdict,
}

/// What becomes of UDP, for which there is no tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UdpFate {
    /// It passes.
    Passes,
    /// It is refused.
    Refused,
    /// It is refused while an agent is there.
    RefusedWhileHere,
}

/// What came of one rule.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Considered {
    /// `KIND/NAME`.
    pub policy: String,
    /// Where it stands: `FILE:LINE`.
    pub place: String,
    /// Whether it decides.
    pub decides: bool,
    /// Why, or why not.
    pub reason: String,
}

impl Policy {
    /// What [`decide`](Self::decide) does, rule by rule.
    pub fn explain(&self, facts: &Facts, workload: &Workload) -> Explanation {
        let dst = facts.original_dst;
        let view = self.view(workload);
        let verdict = self.decide(facts, &view);
        let at = self.looked_up_by_address(dst, workload);
        let name = spoken_name(facts, at);
        let (named, nameless) = self.picked(facts, workload);
        let fell_back = named.rule != nameless.rule
            && (self.denies_address(nameless)
                || (!facts.claimed_is_verified && self.leads_to_address(named, dst)));
        let chosen = if fell_back { nameless } else { named };
        let considered = self.rules.iter().enumerate().map(|(index, rule)| {
            let by_name = self.mismatch(rule, name, named.service, dst, workload);
            let reason = match (by_name, chosen.rule) {
                (_, Some(winner)) if winner == index => applies(rule),
                (None, _) if fell_back && named.rule == Some(index) => {
                    if self.denies_address(nameless) {
                        "it is about the claimed name, but the address itself is denied".to_owned()
                    } else {
                        "it is about the claimed name, which is not known to belong to the address"
                            .to_owned()
                    }
                }
                (None, Some(winner)) => goes_before(&self.rules[winner], rule),
                (None, None) => "it does not come to bear".to_owned(),
                (Some(reason), _) => reason,
            };
            Considered {
                policy: rule.policy.to_string(),
                place: rule.place.clone(),
                decides: chosen.rule == Some(index),
                reason,
            }
        });
        let internal = matches!(
            &verdict.decision,
            super::Decision::Direct(super::DirectRule::Internal(_))
        );
        Explanation {
            captured: self.captures(dst),
            udp: self.udp(dst),
            service: chosen.service.map(|service| Arc::clone(&service.id)),
            considered: if internal {
                Vec::new()
            } else {
                considered.collect()
            },
            verdict,
        }
    }

    /// Whether the kernel side sends connections to `dst` to the agent.
    fn captures(&self, dst: OriginalDst) -> bool {
        self.side(dst, |sides| sides.tcp) != Side::Internal
    }

    /// What the kernel side does with UDP to `dst`.
    fn udp(&self, dst: OriginalDst) -> UdpFate {
        let side = match dst.port() {
            PORT_DNS => Side::Internal,
            PORT_QUIC => self.side(dst, |sides| sides.quic),
            _ => self.side(dst, |sides| sides.udp),
        };
        match side {
            Side::Internal => UdpFate::Passes,
            Side::External | Side::Virtual => UdpFate::Refused,
            Side::Open => UdpFate::RefusedWhileHere,
        }
    }

    /// The side of `dst` for the kernel side.
    fn side(&self, dst: OriginalDst, pick: impl Fn(Captured) -> Side) -> Side {
        let ip = dst.ip().to_canonical();
        let is_exempt = |(net, port): &(IpNet, u16)| *port == dst.port() && net.contains(&ip);
        let sides = self.captured.of(ip);
        let sides = sides.map_or(Side::External.into(), |(_, sides)| sides);
        let any_port = sides == Captured::VIRTUAL;
        if !any_port && !self.ports.contains(dst.port()) || self.exceptions.iter().any(is_exempt) {
            return Side::Internal;
        }
        pick(sides)
    }

    /// The rule and service by name, and those by address alone, found by looking at each.
    pub(super) fn picked(&self, facts: &Facts, workload: &Workload) -> (Picked<'_>, Picked<'_>) {
        let dst = facts.original_dst;
        let at = self.looked_up_by_address(dst, workload);
        let name = spoken_name(facts, at);
        let pick = |name: Option<&HostName>, service: Option<&'_ Service>| {
            self.rules
                .iter()
                .position(|rule| self.mismatch(rule, name, service, dst, workload).is_none())
        };
        let nameless = Picked {
            rule: pick(None, at),
            service: at,
        };
        let Some(name) = name else {
            return (nameless, nameless);
        };
        let named = match self.looked_up_by_name(name, dst, workload) {
            Some(service) => Picked {
                rule: pick(Some(name), Some(service)),
                service: Some(service),
            },
            // Of a name without a service only rules about hosts say something.
            None => {
                let mut rules = self.rules.iter();
                let rule = rules.position(|rule| {
                    matches!(rule.scope, Scope::Host { .. })
                        && self
                            .mismatch(rule, Some(name), None, dst, workload)
                            .is_none()
                });
                rule.map_or(nameless, |rule| Picked {
                    rule: Some(rule),
                    service: None,
                })
            }
        };
        (named, nameless)
    }

    fn looked_up_by_address(&self, dst: OriginalDst, workload: &Workload) -> Option<&Service> {
        let ip = dst.ip().to_canonical();
        let candidates = self
            .services
            .iter()
            .enumerate()
            .flat_map(|(index, service)| {
                let nets = service
                    .addresses
                    .iter()
                    .filter(move |net| net.contains(&ip));
                nets.map(move |net| (index, net.prefix_len()))
            });
        let best = candidates
            .filter(|(index, _)| self.is_open_to(*index, dst, workload))
            .min_by_key(|(index, length)| (std::cmp::Reverse(*length), *index));
        best.map(|(index, _)| &self.services[index])
    }

    fn looked_up_by_name(
        &self,
        name: &HostName,
        dst: OriginalDst,
        workload: &Workload,
    ) -> Option<&Service> {
        let ip = dst.ip().to_canonical();
        let candidates = self
            .services
            .iter()
            .enumerate()
            .flat_map(|(index, service)| {
                let hosts = service.hosts.iter().filter(|host| host.matches(name));
                // An exact name is the longest that matches.
                hosts.map(move |host| (index, host.to_string().trim_start_matches("*.").len()))
            });
        let best = candidates
            .filter(|(index, _)| {
                let addresses = &self.services[*index].addresses;
                addresses.is_empty() || addresses.iter().any(|net| net.contains(&ip))
            })
            .filter(|(index, _)| self.is_open_to(*index, dst, workload))
            .min_by_key(|(index, length)| (std::cmp::Reverse(*length), *index));
        best.map(|(index, _)| &self.services[index])
    }

    fn is_open_to(&self, service: usize, dst: OriginalDst, workload: &Workload) -> bool {
        let service = &self.services[service];
        service.is_on(dst.port()) && service.visibility.shows_to(workload.namespace.as_deref())
    }

    /// Why a rule is not about a connection.
    fn mismatch(
        &self,
        rule: &Rule,
        name: Option<&HostName>,
        service: Option<&Service>,
        dst: OriginalDst,
        workload: &Workload,
    ) -> Option<String> {
        match &rule.scope {
            Scope::All if service.is_some_and(|service| !service.external) => {
                return Some("it is about external services, and this one is internal".to_owned());
            }
            Scope::All => {}
            Scope::Host { pattern, ports } => {
                let host = name.or_else(|| service?.target.as_ref());
                match host {
                    Some(host) if pattern.matches(host) => {}
                    Some(host) => return Some(format!("it is about `{pattern}`, not `{host}`")),
                    None => {
                        return Some(format!("it is about `{pattern}`, and no name is known"));
                    }
                }
                if let Ports::Some(declared) = ports
                    && !declared.contains(&dst.port())
                {
                    let declared: PortSet = declared.iter().copied().collect();
                    return Some(format!(
                        "it is about `{pattern}` on port {declared} only, as declared"
                    ));
                }
            }
            Scope::Labels(wanted) => match service {
                Some(service) if !service.external => {
                    return Some(
                        "it selects external services, and this one is internal".to_owned(),
                    );
                }
                Some(service) if includes(&service.labels, wanted) => {}
                Some(service) => {
                    return Some(format!(
                        "its selector does not match the labels of {}",
                        service.id
                    ));
                }
                None => {
                    return Some(format!(
                        "it selects services, and no ServiceEntry has this name or address on \
                         port {}",
                        dst.port()
                    ));
                }
            },
        }
        rule.mismatch(workload).map(str::to_owned)
    }
}

fn applies(rule: &Rule) -> String {
    match &rule.scope {
        Scope::All => "it is about all external services".to_owned(),
        Scope::Host { pattern, .. } => format!("it is about `{pattern}`"),
        Scope::Labels(_) => "it selects the service".to_owned(),
    }
}

/// Why `winner` goes before `rule`, both of which match.
fn goes_before(winner: &Rule, rule: &Rule) -> String {
    let class = |rule: &Rule| match &rule.scope {
        Scope::Host { pattern, .. } if pattern.name().is_some() => 0,
        Scope::Host { .. } => 1,
        Scope::Labels(_) => 2,
        Scope::All => 3,
    };
    let policy = &winner.policy;
    let why = match (class(winner), class(rule)) {
        (a, b) if a != b => match a {
            0 => "is about the very host",
            1 => "is about a domain of the host",
            _ => "selects the service",
        },
        (1, 1) if pattern_length(winner) != pattern_length(rule) => "is about a longer domain",
        _ if kind(winner) != kind(rule) => "is a DestinationRule",
        _ if winner.workloads.is_everyone() != rule.workloads.is_everyone()
            || winner.workloads.is_selective() != rule.workloads.is_selective() =>
        {
            "is for this workload in particular"
        }
        _ => "is older, or the first by name",
    };
    format!("it would apply, but {policy} goes before it, because that {why}")
}

fn pattern_length(rule: &Rule) -> usize {
    match &rule.scope {
        Scope::Host { pattern, .. } => pattern.to_string().len(),
        Scope::All | Scope::Labels(_) => 0,
    }
}

fn kind(rule: &Rule) -> &str {
    rule.policy.split('/').next().unwrap_or_default()
}
