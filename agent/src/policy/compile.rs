//! Documents into the policy that lookups use.

mod credentials;
mod http_routes;
mod plan;
mod proxies;
mod redirects;
mod rules;
mod services;
mod shadowed;
mod targets;
mod tenancy;
mod tls;
mod traffic;
mod warnings;

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::metadata::Namespace;
use super::api::tunnel::{OnEch, OnMismatch, Udp};
use super::api::value::HostPattern;
use super::document::Documents;
use super::external::{Captured, Sides};
use super::failure_mode::FailureMode;
use super::hosts::HostTable;
use super::named_files::NamedFiles;
use super::no_proxy::HostList;
use super::ports::PortSet;
use super::prefix::PrefixTable;
use super::problem::Problem;
use super::proxy::{Proxy, RankedProxy};
use super::rule::{Action, Route, Rule, Scope, Service, TargetRule, TargetRules};
use super::target::{HttpRoutes, TargetSettings};
use super::virtuals::{VirtualHosts, VirtualRange};
use super::workloads::{View, WorkloadMatch};
use crate::name::HostName;
use crate::tls::{ClientTls, SystemRoots};
use crate::workload::Workload;
use proxies::Proxies;
use services::Services;
pub(super) use tenancy::Tenancy;
use tls::TlsConfigs;
use traffic::Traffic;

/// What a policy is compiled with besides documents.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Ranges that are internal although their addresses do not tell (`--internal-cidr`).
    pub internal_cidrs: Vec<IpNet>,
    /// Whose documents are for the whole node, where documents are those of a cluster: each other
    /// namespace has a say about its own workloads only. `None`: all documents are of one hand.
    pub root_namespace: Option<Namespace>,
    /// The addresses that hosts are given where the agent answers for them.
    pub virtual_range: VirtualRange,
}

/// What documents only refer to.
#[derive(Clone, Debug)]
pub struct Materials {
    /// The files that documents name.
    pub files: NamedFiles,
    /// Whom this system trusts.
    pub roots: SystemRoots,
}

impl Materials {
    /// Nothing at all.
    pub fn none() -> Self {
        Self {
            files: NamedFiles::default(),
            roots: SystemRoots::none(),
        }
    }
}

/// A policy, checked and indexed; it never changes.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(super) sides: Sides,
    pub(super) captured: Sides<Captured>,
    pub(super) ports: PortSet,
    pub(super) exceptions: Vec<(IpNet, u16)>,
    pub(super) services: Vec<Service>,
    /// Services by address, each list in the order of seniority.
    pub(super) by_address: PrefixTable<Vec<usize>>,
    /// Services by host, likewise.
    pub(super) by_host: HostTable<usize>,
    /// In the order of precedence.
    pub(super) rules: Vec<Rule>,
    /// Those that rules lead through, each once.
    proxies: Vec<Arc<Proxy>>,
    /// Those that are about hosts.
    pub(super) host_rules: HostTable<usize>,
    /// TLS to targets, the oldest setting first.
    pub(super) tls_settings: Vec<TlsSetting>,
    /// The same by host.
    pub(super) tls_by_host: HostTable<usize>,
    /// Whether some of them are not only about proxies.
    pub(super) has_tls_to_targets: bool,
    /// Limits of targets.
    pub(super) targets: TargetRules<TargetSettings>,
    /// Times and retries of requests to them.
    pub(super) http_routes: TargetRules<HttpRoutes>,
    /// The addresses that hosts have been given; none where the agent answers for nobody.
    pub(super) virtuals: Option<VirtualHosts>,
    wants_workload: bool,
    /// What a workload sees of which nothing is known.
    pub(super) stranger: Arc<View>,
    pub(super) warnings: Vec<Problem>,
}

/// TLS to a host, as a DestinationRule has it.
#[derive(Clone, Debug)]
pub(super) struct TlsSetting {
    /// That of the DestinationRule.
    namespace: Option<Namespace>,
    pub(super) host: HostPattern,
    /// Unset: every port without one of its own.
    pub(super) port: Option<u16>,
    /// The DestinationRule.
    pub(super) policy: Arc<str>,
    pub(super) workloads: WorkloadMatch,
    /// `None`: no TLS.
    pub(super) tls: Option<Arc<ClientTls>>,
}

impl TlsSetting {
    /// Whether it is about this host and no other.
    fn is_only(&self, host: &HostName) -> bool {
        self.host.name() == Some(host)
    }
}

/// What the kernel side has to capture: connections to an address that is not internal, by the
/// longest prefix, and to a port of the set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CapturePlan {
    /// On which sides which ranges are; together they cover every IPv4 and IPv6 address.
    pub prefixes: Vec<(IpNet, Captured)>,
    /// Ranges that are internal on one port only, which goes before `prefixes`.
    pub exceptions: Vec<(IpNet, u16)>,
    /// The ports that policy is about, of TCP and of UDP; none if there is nothing to do.
    pub ports: PortSet,
}

/// Whether rules name workloads, rather than being for all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Named {
    /// By whatever is known of them.
    pub any: bool,
    /// By unit or cgroup, which what is in no pod has as well.
    pub by_services: bool,
}

/// What is found while documents are compiled.
#[derive(Debug, Default)]
struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Policy {
    /// Makes a policy of documents.
    ///
    /// # Errors
    /// Everything that is wrong with the documents, by themselves and together, ordered by file
    /// and line.
    pub fn compile(
        documents: &Documents,
        materials: &Materials,
        options: &Options,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = documents.problems().to_vec();
        problems.extend(documents.duplicates());
        if !problems.is_empty() {
            // What refers to a bad document would be reported as well, and mislead.
            return Err(sorted(problems));
        }
        let mut report = Report::default();
        let tenancy = Tenancy::new(options.root_namespace.as_ref());
        services::check(documents, tenancy, &mut report);
        let mut configs = TlsConfigs::new(documents, materials, tenancy);
        let settings = configs.of_rules(&mut report);
        let by_host = tls::by_host(&settings);
        let traffic = Traffic::new(documents);
        let mut proxies = Proxies::new(documents, configs, &settings, &by_host, &traffic);
        let mut ranked = rules::compile(documents, &mut proxies, &mut report);
        ranked.extend(redirects::compile(documents, &mut proxies, &mut report));
        shadowed::warn(&ranked, documents, &mut report);
        let hosts_of_proxies = proxies.into_hosts();
        let targets = targets::compile(&traffic, &hosts_of_proxies, tenancy, &mut report);
        let http_routes = http_routes::compile(documents, tenancy, &mut report);
        let mut services = Services::new(documents, tenancy);
        let rules = services.settle(ranked);
        if !report.problems.is_empty() {
            return Err(sorted(report.problems));
        }
        traffic::warn(documents, &hosts_of_proxies, &mut report);
        let mut policy = Self::assemble(rules, services, settings, &hosts_of_proxies, options);
        policy.targets = targets;
        policy.http_routes = http_routes;
        policy.look_from_afar();
        report.warnings.extend_from_slice(documents.ignored());
        report
            .warnings
            .extend(policy.doubts(documents, &hosts_of_proxies));
        policy.warnings = sorted(report.warnings);
        Ok(policy)
    }

    /// The policy of a command line: everything external goes through `proxy`, under its best
    /// known name, but for what `no_proxy` lists.
    pub fn for_proxy(proxy: Proxy, no_proxy: HostList, options: &Options) -> Self {
        let rule = Rule {
            policy: "Tunnel/command-line".into(),
            place: "command line".to_owned(),
            scope: Scope::All,
            workloads: WorkloadMatch::default(),
            pods_only: false,
            action: Action::Tunnel(Box::new(Route {
                proxies: Arc::new([RankedProxy {
                    proxy: Arc::new(proxy),
                    priority: 0,
                    weight: 1,
                }]),
                target_host: TargetRule::BestKnown,
                target_port: None,
                no_proxy,
                failure_mode: FailureMode::Closed,
                dns: None,
                on_mismatch: OnMismatch::UseName,
                on_ech: OnEch::UseResolvedName,
                ech_keys: None,
            })),
            udp: Udp::DenyQuic,
        };
        let services = Services::default();
        Self::assemble(vec![rule], services, Vec::new(), &HashSet::new(), options)
    }

    fn assemble(
        rules: Vec<Rule>,
        services: Services,
        tls_settings: Vec<TlsSetting>,
        hosts_of_proxies: &HashSet<HostName>,
        options: &Options,
    ) -> Self {
        let mut host_rules = HostTable::default();
        for (index, rule) in rules.iter().enumerate() {
            if let Scope::Host { pattern, .. } = &rule.scope {
                host_rules.push(pattern, index);
            }
        }
        let Services {
            list,
            by_address,
            by_host,
        } = services;
        let serves_dns = rules.iter().any(Rule::serves_dns);
        let virtuals =
            serves_dns.then(|| VirtualHosts::new(options.virtual_range, &list, hosts_of_proxies));
        let plan = plan::make(&rules, &list, &by_address, options);
        let mut policy = Self {
            sides: plan.sides,
            captured: plan.captured,
            ports: plan.ports,
            exceptions: plan.exceptions,
            services: list,
            by_address,
            by_host,
            proxies: proxies_of(&rules),
            rules,
            host_rules,
            tls_by_host: tls::by_host(&tls_settings),
            has_tls_to_targets: tls_settings
                .iter()
                .any(|setting| !hosts_of_proxies.iter().any(|host| setting.is_only(host))),
            tls_settings,
            targets: TargetRules::default(),
            http_routes: TargetRules::default(),
            virtuals,
            wants_workload: false,
            stranger: Arc::default(),
            warnings: Vec::new(),
        };
        policy.look_from_afar();
        policy
    }

    /// What it is for nobody in particular, once all rules are there.
    fn look_from_afar(&mut self) {
        self.wants_workload = self.asks_for_workloads();
        self.stranger = Arc::new(self.make_view(&Workload::default()));
    }

    /// What is to be captured.
    pub fn capture_plan(&self) -> CapturePlan {
        CapturePlan {
            prefixes: self.captured.prefixes().collect(),
            exceptions: self.exceptions.clone(),
            ports: self.ports.clone(),
        }
    }

    /// What becomes of captured connections when the agent is gone: closed if anything that is
    /// captured is.
    pub fn failure_mode(&self) -> FailureMode {
        let closed = self.rules.iter().any(|rule| rule.action.is_closed());
        if closed && !self.ports.is_empty() {
            FailureMode::Closed
        } else {
            FailureMode::Open
        }
    }

    /// Whether names count that workloads have resolved, for some of them at least.
    pub fn observes_dns(&self) -> bool {
        !self.ports.is_empty() && self.rules.iter().any(Rule::observes_dns)
    }

    /// Every proxy in use, each once.
    pub fn proxies(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.proxies.iter()
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// What is not wrong, but perhaps not meant: fields without effect, rules that never apply.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Whether it matters who connects. Where it does not, everybody has the view of a stranger.
    pub fn wants_workload(&self) -> bool {
        self.wants_workload
    }

    fn asks_for_workloads(&self) -> bool {
        let selects = self.rules.iter().any(|rule| !rule.workloads.is_everyone());
        let shows = |service: &Service| service.visibility != super::workloads::Visibility::All;
        let tls = self.tls_settings.iter().any(|s| !s.workloads.is_everyone());
        selects
            || tls
            || self.targets.wants_workload()
            || self.http_routes.wants_workload()
            || self.services.iter().any(shows)
            || self
                .proxies()
                .flat_map(|proxy| &proxy.headers)
                .any(super::header::HeaderTemplate::wants_workload)
    }

    /// Whether rules name workloads.
    pub fn names_workloads(&self) -> Named {
        let workloads = || self.rules.iter().map(|rule| &rule.workloads);
        Named {
            any: workloads().any(WorkloadMatch::is_selective),
            by_services: workloads().any(WorkloadMatch::names_services),
        }
    }

    /// Whether a rule names this workload.
    pub fn names(&self, workload: &Workload) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.workloads.is_selective() && rule.workloads.matches(workload))
    }

    /// What the policy looks like from a workload.
    pub fn view(&self, workload: &Workload) -> Arc<View> {
        Arc::new(self.make_view(workload))
    }

    /// What it looks like from a workload of which nothing is known.
    pub fn view_of_stranger(&self) -> &Arc<View> {
        &self.stranger
    }

    fn make_view(&self, workload: &Workload) -> View {
        let applies = |(_, rule): &(usize, &Rule)| rule.mismatch(workload).is_none();
        let mine = || self.rules.iter().enumerate().filter(applies);
        View {
            rules: mine().map(|(index, _)| index).collect(),
            for_all: mine()
                .find(|(_, rule)| matches!(rule.scope, Scope::All))
                .map(|(index, _)| index),
            tls_settings: self
                .tls_settings
                .iter()
                .enumerate()
                .filter(|(_, setting)| setting.workloads.matches(workload))
                .map(|(index, _)| index)
                .collect(),
            targets: self.targets.of_workload(workload),
            http_routes: self.http_routes.of_workload(workload),
            namespace: workload.namespace.clone(),
            observes_dns: mine().any(|(_, rule)| rule.observes_dns()),
            serves_dns: mine().any(|(_, rule)| rule.serves_dns()),
            removes_ech_keys: mine().any(|(_, rule)| rule.removes_ech_keys()),
        }
    }
}

fn proxies_of(rules: &[Rule]) -> Vec<Arc<Proxy>> {
    let mut seen = HashSet::new();
    let mut proxies = Vec::new();
    for rule in rules {
        if let Action::Tunnel(route) = &rule.action {
            for RankedProxy { proxy, .. } in route.proxies.iter() {
                if seen.insert(Arc::as_ptr(proxy)) {
                    proxies.push(Arc::clone(proxy));
                }
            }
        }
    }
    proxies
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    problems
}

/// The host of a pattern and those it means, for messages.
fn shown(patterns: &[HostPattern]) -> String {
    let shown: Vec<_> = patterns.iter().map(ToString::to_string).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests;
