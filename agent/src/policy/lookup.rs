//! A policy and the facts of a connection into a decision.

use std::net::IpAddr;
use std::sync::Arc;

use super::api::service_entry::PortProtocol;
use super::api::tunnel::{OnEch, OnMismatch};
use super::compile::Policy;
use super::decision::{
    Decision, DenyReason, DirectRule, Fallback, Mismatch, Note, TargetSource, TargetTls,
    TunnelDecision, Verdict,
};
use super::external::Side;
use super::failure_mode::FailureMode;
use super::rule::{Action, Route, Rule, Scope, Service, TargetRule};
use super::target::TargetPolicy;
use super::workloads::View;
use crate::name::{Host, HostName, OriginalDst, Target};

/// What is known about a captured connection.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the workload connected to.
    pub original_dst: OriginalDst,
    /// The host its first bytes ask for.
    pub claimed: Option<Claim>,
    /// Whether the claimed name is known to belong to the address of `original_dst`, by
    /// something the workload cannot make up. Asked for by [`Verdict::note`].
    pub claimed_is_verified: bool,
    /// Whether the first bytes may hide another name (ECH), and the workload has resolved none of the
    /// address.
    pub hides_name: bool,
}

/// A host that a workload claims to talk to. It may claim any.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The host.
    pub host: Host,
    /// Where it was said.
    pub source: NameSource,
}

/// Where a host was found: in the first bytes of a connection, or before it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NameSource {
    /// What the workload has resolved; it need not say it itself.
    Dns,
    /// The Host field of an HTTP/1 request.
    HttpHost,
    /// The server name of a TLS ClientHello.
    Sni,
    /// The name that the address stands for, which is therefore certain.
    VirtualAddress,
}

/// How first bytes are looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Whether they are TLS, and for whom.
    ForTls,
    /// Whether they are TLS or HTTP, and for whom.
    Whole,
}

/// The rule that a connection is under, and the service it is to.
#[derive(Clone, Copy)]
pub(super) struct Picked<'a> {
    /// The index of the rule.
    pub(super) rule: Option<usize>,
    pub(super) service: Option<&'a Service>,
}

impl Facts {
    /// What is known of a connection that has said nothing yet.
    pub fn new(original_dst: OriginalDst) -> Self {
        Self {
            original_dst,
            claimed: None,
            claimed_is_verified: false,
            hides_name: false,
        }
    }

    /// What is known of a connection to the virtual address of a host.
    pub fn of_virtual(original_dst: OriginalDst, host: HostName) -> Self {
        Self {
            original_dst,
            claimed: Some(Claim {
                host: Host::Name(host),
                source: NameSource::VirtualAddress,
            }),
            claimed_is_verified: true,
            hides_name: false,
        }
    }

    /// The name that the address stands for, if it is virtual.
    fn certain(&self) -> Option<&HostName> {
        let claim = self.claimed.as_ref()?;
        let claim = (claim.source == NameSource::VirtualAddress).then_some(claim)?;
        claim.host.name()
    }

    fn is_certain(&self) -> bool {
        self.certain().is_some()
    }
}

impl Policy {
    /// What is done with a connection of a workload with this view.
    ///
    /// A name that the workload merely claims may choose a tunnel and its target, because the proxy
    /// still decides. It leads to the address that the workload chose, past the rule that the
    /// address alone would be under, only if it is verified; and never past a rule that denies
    /// that very address. A name of which policy says nothing changes nothing: anybody may own a
    /// name, and have it lead to any address.
    pub fn decide(&self, facts: &Facts, view: &View) -> Verdict {
        let dst = facts.original_dst;
        if let Some((net, Side::Internal)) = self.sides.of(dst.ip()) {
            return Decision::Direct(DirectRule::Internal(net)).into();
        }
        if self.is_virtual(dst.ip()) && !facts.is_certain() {
            return Decision::Deny {
                policy: self
                    .serving()
                    .map_or("".into(), |rule| Arc::clone(&rule.policy)),
                reason: DenyReason::UnknownAddress,
            }
            .into();
        }
        let nameless = self.nameless(dst, view);
        let Some(name) = spoken_name(facts, nameless.service) else {
            return self.settle(nameless, nameless, None, facts, view);
        };
        if self.denies_address(nameless) {
            return self.settle(nameless, nameless, None, facts, view);
        }
        let named = self.named(name, nameless, dst, view);
        if named.rule != nameless.rule
            && !facts.claimed_is_verified
            && self.leads_to_address(named, dst)
        {
            let mut verdict = self.settle(nameless, nameless, Some(name), facts, view);
            let rule = named.rule.map(|rule| Arc::clone(&self.rules[rule].policy));
            verdict.note.get_or_insert(Note::UnverifiedRule(rule));
            return verdict;
        }
        self.settle(named, nameless, Some(name), facts, view)
    }

    /// Whether what is at this address is nothing external.
    pub fn is_internal(&self, addr: IpAddr) -> bool {
        matches!(self.sides.of(addr), Some((_, Side::Internal)))
    }

    /// Has the name that the workload has `resolved` of the address count, of a ClientHello that may
    /// hide another than the one it claims in the open; whether it does.
    pub fn see_through_ech(&self, facts: &mut Facts, resolved: Option<Claim>, view: &View) -> bool {
        let Some(resolved) = resolved else {
            facts.hides_name = true;
            return false;
        };
        let in_the_open = facts.claimed.replace(resolved);
        let prefers_open = self.prefers_server_name(facts, view);
        if prefers_open {
            facts.claimed = in_the_open;
        }
        !prefers_open
    }

    /// Whether the server name in the open is to count all the same: the rule of the name that is
    /// claimed in `facts` says it.
    fn prefers_server_name(&self, facts: &Facts, view: &View) -> bool {
        let dst = facts.original_dst;
        let nameless = self.nameless(dst, view);
        let picked = match spoken_name(facts, nameless.service) {
            Some(name) => self.named(name, nameless, dst, view),
            None => nameless,
        };
        picked
            .rule
            .is_some_and(|rule| match &self.rules[rule].action {
                Action::Tunnel(route) => route.on_ech == OnEch::UseServerName,
                Action::Deny | Action::Direct => false,
            })
    }

    /// How the first bytes of a connection are looked at, of which only the address is known and, if it
    /// is virtual, the name. `None`: what is done with it does not depend on them, so there is nothing
    /// to wait for.
    ///
    /// Where policy declares HTTP, its requests are served as such, whether or not anything depends
    /// on their names; where it declares something else, nothing is taken for HTTP.
    pub fn look_at(&self, facts: &Facts, view: &View) -> Option<Look> {
        let dst = facts.original_dst;
        if self.is_internal(dst.ip()) {
            return None;
        }
        let certain = facts.certain();
        if certain.is_none() && self.is_virtual(dst.ip()) {
            return None;
        }
        let at = match certain {
            Some(name) => self.service_named(name, dst, view),
            None => self.service_at(dst, view),
        };
        let depends = match certain {
            Some(name) => self.depends_on_protocol(name, at, dst, view),
            None => self.depends_on_bytes(dst, view),
        };
        let declared = at.and_then(|service| service.port(dst.port()));
        match declared.map(|port| port.protocol) {
            Some(PortProtocol::Http | PortProtocol::Http2) => Some(Look::Whole),
            None | Some(PortProtocol::Auto) => depends.then_some(Look::Whole),
            Some(_) => depends.then_some(Look::ForTls),
        }
    }

    /// Whether what is done with a connection to this host may depend on what is spoken.
    fn depends_on_protocol(
        &self,
        host: &HostName,
        service: Option<&Service>,
        dst: OriginalDst,
        view: &View,
    ) -> bool {
        let forwards = || {
            let rule = self.rule_for(Some(host), service, dst.port(), view);
            rule.is_some_and(|rule| match &self.rules[rule].action {
                Action::Tunnel(route) => route.forwards_requests(),
                Action::Deny | Action::Direct => false,
            })
        };
        let tls = self.tls_by_host.matching(host).next().is_some();
        tls || self.says_something_of_targets() || forwards()
    }

    /// Whether what is done with a connection to `dst` may depend on its first bytes.
    fn depends_on_bytes(&self, dst: OriginalDst, view: &View) -> bool {
        let at = self.service_at(dst, view);
        if at.is_some_and(|service| service.is_nameless_on(dst.port())) {
            // What is spoken matters only where TLS would have to be added.
            let target = at.and_then(|service| service.target.as_ref());
            return target.is_some_and(|host| self.tls_by_host.matching(host).next().is_some());
        }
        if self.has_tls_to_targets
            || self.says_something_of_targets()
            || !self.host_rules.is_empty()
            || !self.by_host.is_empty()
        {
            return true;
        }
        let Some(rule) = self.rule_for(None, at, dst.port(), view) else {
            return false;
        };
        match &self.rules[rule].action {
            Action::Deny | Action::Direct => false,
            Action::Tunnel(route) => {
                route.no_proxy.match_addr(dst.ip(), dst.port()).is_none()
                    && (route.no_proxy.has_names()
                        || route.forwards_requests()
                        || match route.target_host {
                            TargetRule::AutoSni => true,
                            TargetRule::BestKnown => at.and_then(|s| s.target.as_ref()).is_none(),
                            TargetRule::Fixed(_) | TargetRule::OriginalDst => false,
                        })
            }
        }
    }

    /// Whether a request of HTTP/1, which the first bytes of a connection have turned out to be,
    /// is served as one: not where policy declares another protocol for the port.
    pub fn serves_requests(&self, facts: &Facts, view: &View) -> bool {
        let dst = facts.original_dst;
        let named = facts.claimed.as_ref().and_then(|claim| claim.host.name());
        let named = named.and_then(|name| self.service_named(name, dst, view));
        let services = self.service_at(dst, view).into_iter().chain(named);
        let mut declared = services.filter_map(|service| service.port(dst.port()));
        declared.all(|port| {
            matches!(
                port.protocol,
                PortProtocol::Auto | PortProtocol::Http | PortProtocol::Http2
            )
        })
    }

    /// The service that is at this address and port.
    pub(super) fn service_at(&self, dst: OriginalDst, view: &View) -> Option<&Service> {
        let namespace = view.namespace.as_deref();
        let mut at = self.by_address.covering(dst.ip()).flat_map(|(_, at)| at);
        at.find_map(|index| {
            let service = &self.services[*index];
            (service.is_on(dst.port()) && service.visibility.shows_to(namespace)).then_some(service)
        })
    }

    /// The service of this name on this port. One with addresses is at these only.
    pub(super) fn service_named(
        &self,
        name: &HostName,
        dst: OriginalDst,
        view: &View,
    ) -> Option<&Service> {
        let namespace = view.namespace.as_deref();
        self.by_host.matching(name).find_map(|index| {
            let service = &self.services[*index];
            (service.is_on(dst.port())
                && service.is_at(dst.ip())
                && service.visibility.shows_to(namespace))
            .then_some(service)
        })
    }

    /// The rule and service of an address and port, whatever name is claimed.
    fn nameless(&self, dst: OriginalDst, view: &View) -> Picked<'_> {
        let service = self.service_at(dst, view);
        Picked {
            rule: self.rule_for(None, service, dst.port(), view),
            service,
        }
    }

    /// The rule and service of a claimed name; where policy says nothing of it, those of the
    /// address.
    fn named<'a>(
        &'a self,
        name: &HostName,
        nameless: Picked<'a>,
        dst: OriginalDst,
        view: &View,
    ) -> Picked<'a> {
        match self.service_named(name, dst, view) {
            Some(service) => Picked {
                rule: self.rule_for(Some(name), Some(service), dst.port(), view),
                service: Some(service),
            },
            None => match self.host_rule(name, dst.port(), view) {
                Some(rule) => Picked {
                    rule: Some(rule),
                    service: None,
                },
                None => nameless,
            },
        }
    }

    /// The first rule about this host and port.
    fn host_rule(&self, host: &HostName, port: u16, view: &View) -> Option<usize> {
        let mut rules = self.host_rules.matching(host).copied();
        rules.find(|index| view.rules.contains(*index) && self.rules[*index].is_on(port))
    }

    /// The first rule about a connection to this name, service and port.
    fn rule_for(
        &self,
        name: Option<&HostName>,
        service: Option<&Service>,
        port: u16,
        view: &View,
    ) -> Option<usize> {
        let host = name.or_else(|| service?.target.as_ref());
        host.and_then(|host| self.host_rule(host, port, view))
            .or_else(|| service?.rules.first_common(&view.rules))
            .or(match service {
                Some(service) if !service.external => None,
                _ => view.for_all,
            })
    }

    /// Whether a rule denies the address as such: that of a service, not just everything.
    pub(super) fn denies_address(&self, nameless: Picked<'_>) -> bool {
        nameless.rule.is_some_and(|rule| {
            let rule = &self.rules[rule];
            matches!(rule.action, Action::Deny) && !matches!(rule.scope, Scope::All)
        })
    }

    /// Whether a connection under this rule ends at the address that the workload chose.
    pub(super) fn leads_to_address(&self, picked: Picked<'_>, dst: OriginalDst) -> bool {
        let Some(rule) = picked.rule else { return true };
        match &self.rules[rule].action {
            Action::Deny => false,
            Action::Direct => true,
            Action::Tunnel(route) => {
                route.target_host == TargetRule::OriginalDst
                    || route.no_proxy.match_addr(dst.ip(), dst.port()).is_some()
            }
        }
    }

    /// The decision by the rule that was picked, and what is said of its target. `nameless` is what
    /// the address alone is under.
    fn settle(
        &self,
        picked: Picked<'_>,
        nameless: Picked<'_>,
        name: Option<&HostName>,
        facts: &Facts,
        view: &View,
    ) -> Verdict {
        let mut verdict = self.settle_by_rule(picked, nameless, name, facts, view);
        let target = match &verdict.decision {
            Decision::Deny { .. } => return verdict,
            Decision::Direct(_) => None,
            Decision::Tunnel(tunnel) => Some(tunnel),
        };
        let declared = destination_service(picked.service, target);
        if self.says_something_of_targets() {
            let host = named_host(name, picked.service, target.map(|tunnel| &tunnel.target));
            let port = facts.original_dst.port();
            verdict.target = host
                .and_then(|host| self.of_target(host, port, declared.as_ref(), view))
                .map(Arc::new);
        }
        verdict.destination_service = declared;
        verdict
    }

    fn says_something_of_targets(&self) -> bool {
        !self.targets.is_empty() || !self.http_routes.is_empty()
    }

    /// What is said of a target, by the documents of its most particular name.
    fn of_target(
        &self,
        host: &HostName,
        port: u16,
        declared: Option<&Arc<str>>,
        view: &View,
    ) -> Option<TargetPolicy> {
        let settings = self.targets.of(host, port, &view.targets);
        let routes = self.http_routes.of(host, port, &view.http_routes);
        let pattern = match (settings, routes) {
            (Some(settings), _) => &settings.host,
            (None, Some(routes)) => &routes.host,
            (None, None) => return None,
        };
        Some(TargetPolicy {
            host: host.clone(),
            port,
            declared: declared.map_or_else(|| pattern.to_string().into(), Arc::clone),
            settings: settings
                .map(|rule| Arc::clone(&rule.says))
                .unwrap_or_default(),
            routes: routes.map(|rule| Arc::clone(&rule.says)),
        })
    }

    fn settle_by_rule(
        &self,
        picked: Picked<'_>,
        nameless: Picked<'_>,
        name: Option<&HostName>,
        facts: &Facts,
        view: &View,
    ) -> Verdict {
        let Some(index) = picked.rule else {
            return Decision::Direct(DirectRule::NoRule).into();
        };
        let rule = &self.rules[index];
        let route = match &rule.action {
            Action::Deny => {
                let policy = Arc::clone(&rule.policy);
                let reason = DenyReason::Rule;
                return Decision::Deny { policy, reason }.into();
            }
            Action::Direct => {
                return Decision::Direct(DirectRule::Rule(Arc::clone(&rule.policy))).into();
            }
            Action::Tunnel(route) => route,
        };
        let dst = facts.original_dst;
        let exempt = |entry: &Arc<_>| {
            let policy = Arc::clone(&rule.policy);
            let entry = Arc::clone(entry);
            Decision::Direct(DirectRule::NoProxy { policy, entry })
        };
        if let Some(entry) = route.no_proxy.match_addr(dst.ip(), dst.port()) {
            return exempt(entry).into();
        }
        if facts.hides_name && route.refuses_hidden_names() {
            let policy = Arc::clone(&rule.policy);
            let reason = DenyReason::HiddenName;
            return Decision::Deny { policy, reason }.into();
        }
        let mut note = None;
        let listed = name.and_then(|name| route.no_proxy.match_name(name, dst.port()));
        if let Some(entry) = listed {
            if facts.claimed_is_verified {
                return exempt(entry).into();
            }
            note = Some(Note::UnverifiedName(Arc::clone(entry)));
        }
        let Some((host, source)) = target_host(route, picked.service, name, facts) else {
            let policy = Arc::clone(&rule.policy);
            let reason = DenyReason::NoName;
            return Decision::Deny { policy, reason }.into();
        };
        let declared = picked.service.and_then(|service| service.port(dst.port()));
        let target = Target {
            host,
            port: route
                .target_port
                .or_else(|| declared?.target)
                .unwrap_or(dst.port()),
        };
        let tls = self.tls_to(name, picked.service, &target, dst.port(), view);
        let decision = Decision::Tunnel(TunnelDecision {
            policy: Arc::clone(&rule.policy),
            proxies: Arc::clone(&route.proxies),
            target,
            source,
            tls,
            fallback: self.fallback(index, route, nameless, facts),
            mismatch: mismatch(route, source, facts),
        });
        Verdict {
            decision,
            note,
            target: None,
            destination_service: None,
        }
    }

    /// What becomes of a connection whose proxy cannot be reached. `open` of a rule that only a
    /// claimed name led to must not let it past the rule that its address is under.
    fn fallback(
        &self,
        index: usize,
        route: &Route,
        nameless: Picked<'_>,
        facts: &Facts,
    ) -> Fallback {
        if route.failure_mode == FailureMode::Closed {
            return Fallback::Refuse;
        }
        let open_anyway = match nameless.rule {
            None => true,
            Some(rule) => rule == index || !self.rules[rule].action.is_closed(),
        };
        if open_anyway || facts.claimed_is_verified {
            Fallback::Direct
        } else {
            Fallback::DirectIfVerified
        }
    }

    /// TLS to the target, by the DestinationRule of its most particular name.
    fn tls_to(
        &self,
        name: Option<&HostName>,
        service: Option<&Service>,
        target: &Target,
        port: u16,
        view: &View,
    ) -> Option<TargetTls> {
        let host = named_host(name, service, Some(target))?;
        let mut settings = self.tls_by_host.matching(host).filter(|index| {
            let only = self.tls_settings[**index].port;
            view.tls_settings.contains(**index) && only.is_none_or(|only| only == port)
        });
        let setting = &self.tls_settings[*settings.next()?];
        Some(TargetTls {
            policy: Arc::clone(&setting.policy),
            client: Arc::clone(setting.tls.as_ref()?),
            name: Host::Name(host.clone()),
        })
    }
}

impl Service {
    /// Whether no name is spoken on this port.
    fn is_nameless_on(&self, port: u16) -> bool {
        self.port(port)
            .is_some_and(|port| port.protocol == PortProtocol::Tcp)
    }

    /// Whether it may be at this address.
    fn is_at(&self, addr: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|net| net.contains(&addr))
    }
}

impl Rule {
    /// Whether it is about this port.
    pub(super) fn is_on(&self, port: u16) -> bool {
        match &self.scope {
            Scope::All | Scope::Labels(_) => true,
            Scope::Host { ports, .. } => ports.contains(port),
        }
    }
}

/// The name that a connection claims, where one is spoken at all or was asked for before.
pub(super) fn spoken_name<'a>(facts: &'a Facts, at: Option<&Service>) -> Option<&'a HostName> {
    let claim = facts.claimed.as_ref()?;
    let nameless = at.is_some_and(|service| service.is_nameless_on(facts.original_dst.port()));
    let beforehand = matches!(claim.source, NameSource::Dns | NameSource::VirtualAddress);
    if nameless && !beforehand {
        return None;
    }
    claim.host.name()
}

fn target_host(
    route: &Route,
    service: Option<&Service>,
    name: Option<&HostName>,
    facts: &Facts,
) -> Option<(Host, TargetSource)> {
    let claimed = || {
        let claim = facts.claimed.as_ref()?;
        Some((Host::Name(name?.clone()), claim.source.into()))
    };
    let original = || {
        let target = Target::from(facts.original_dst);
        (target.host, TargetSource::OriginalDst)
    };
    match &route.target_host {
        TargetRule::Fixed(host) => Some((host.clone(), TargetSource::Explicit)),
        // What the connection itself says, and nothing else.
        TargetRule::AutoSni => claimed().filter(|(_, source)| *source != TargetSource::Dns),
        // To the proxy a virtual address means nothing.
        TargetRule::OriginalDst if facts.is_certain() => claimed(),
        TargetRule::OriginalDst => Some(original()),
        TargetRule::BestKnown => {
            let first = service.and_then(|service| service.target.clone());
            let first = first.map(|name| (Host::Name(name), TargetSource::ServiceEntry));
            Some(first.or_else(claimed).unwrap_or_else(original))
        }
    }
}

/// What is done if the name, with which the proxy is to be asked, was not resolved to the address.
fn mismatch(route: &Route, source: TargetSource, facts: &Facts) -> Mismatch {
    let is_claimed = matches!(source, TargetSource::HttpHost | TargetSource::Sni);
    if !is_claimed || facts.claimed_is_verified {
        return Mismatch::Nothing;
    }
    match route.on_mismatch {
        OnMismatch::Deny => Mismatch::Refuse,
        OnMismatch::UseAddress => Mismatch::ByAddress,
        OnMismatch::UseName => Mismatch::Nothing,
    }
}

/// By which name what is said of a target is found.
fn named_host<'a>(
    name: Option<&'a HostName>,
    service: Option<&'a Service>,
    target: Option<&'a Target>,
) -> Option<&'a HostName> {
    name.or_else(|| service?.target.as_ref())
        .or_else(|| target?.host.name())
}

/// The host that policy declares for a connection.
fn destination_service(
    service: Option<&Service>,
    tunnel: Option<&TunnelDecision>,
) -> Option<Arc<str>> {
    if let Some(service) = service {
        return Some(Arc::clone(&service.declared));
    }
    let tunnel = tunnel.filter(|tunnel| tunnel.source == TargetSource::Explicit)?;
    tunnel.target.host.name().map(|name| name.as_str().into())
}

#[cfg(test)]
mod tests;
