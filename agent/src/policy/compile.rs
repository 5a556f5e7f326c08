//! Documents into the policy that lookups use.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::tunnel::{self, Tunnel};
use super::api::value::{Port, TargetHost};
use super::document::{Document, Documents};
use super::external::{Side, Sides};
use super::failure_mode::FailureMode;
use super::no_proxy::HostList;
use super::ports::PortSet;
use super::problem::Problem;
use super::proxy::Proxy;
use crate::name::{Host, HostName};

/// What a policy is compiled with besides documents.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Ranges that are internal although their addresses do not tell (`--internal-cidr`).
    pub internal_cidrs: Vec<IpNet>,
}

/// A policy, checked and indexed; it never changes.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(super) sides: Sides,
    /// The Tunnel for all external traffic.
    pub(super) tunnel: Option<Route>,
    pub(super) warnings: Vec<Problem>,
}

/// What a Tunnel comes down to.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// `Tunnel/NAME` or `Tunnel/NAMESPACE/NAME`.
    pub(super) policy: Arc<str>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) target_host: TargetRule,
    /// Unset: the original port.
    pub(super) target_port: Option<u16>,
    pub(super) no_proxy: HostList,
    pub(super) failure_mode: FailureMode,
}

/// How the host of a target is found.
#[derive(Clone, Debug)]
pub(super) enum TargetRule {
    AutoSni,
    BestKnown,
    Fixed {
        host: Host,
        /// The same host, if it is a name.
        service: Option<Arc<HostName>>,
    },
    OriginalDst,
}

/// What the kernel side has to capture: connections to an address on the external side, by the
/// longest prefix, and to a port of the set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CapturePlan {
    /// Which ranges are external; together they cover every IPv4 and IPv6 address.
    pub prefixes: Vec<(IpNet, Side)>,
    /// Ranges that are internal on one port only, which goes before `prefixes`.
    pub exceptions: Vec<(IpNet, u16)>,
    /// What becomes of the rest when the agent is gone.
    pub failure_mode: FailureMode,
    /// The TCP ports that policy is about; none if there is nothing to do.
    pub ports: PortSet,
}

impl Policy {
    /// Makes a policy of documents.
    ///
    /// # Errors
    /// Everything that is wrong with the documents, by themselves and together, ordered by file
    /// and line.
    pub fn compile(documents: &Documents, options: &Options) -> Result<Self, Vec<Problem>> {
        let mut problems = documents.problems().to_vec();
        problems.extend(duplicates(documents.tunnels()));

        if !problems.is_empty() {
            problems.sort();
            return Err(problems);
        }

        let mut tunnels: Vec<_> = documents.tunnels().iter().collect();
        tunnels.sort_by(|a, b| precedence(&a.object).cmp(&precedence(&b.object)));
        let Some((first, others)) = tunnels.split_first() else {
            return Ok(Self::new(None, options));
        };
        let route = Route::compile(&first.object);
        let mut policy = Self::new(Some(route), options);
        policy.warnings = others.iter().map(|other| shadowed(other, first)).collect();
        policy.warnings.extend(closed_to_names(&policy, first));
        policy.warnings.sort();
        Ok(policy)
    }

    /// The policy of a command line: everything external goes through `proxy`, under its best
    /// known name, but for what `no_proxy` lists.
    pub fn for_proxy(proxy: Proxy, no_proxy: HostList, options: &Options) -> Self {
        let route = Route {
            policy: format!("{}/command-line", tunnel::KIND).into(),
            proxy: Arc::new(proxy),
            target_host: TargetRule::BestKnown,
            target_port: None,
            no_proxy,
            failure_mode: FailureMode::Closed,
        };
        Self::new(Some(route), options)
    }

    /// What is to be captured.
    pub fn capture_plan(&self) -> CapturePlan {
        CapturePlan {
            prefixes: self.sides.prefixes().collect(),
            exceptions: self
                .tunnel
                .iter()
                .flat_map(|route| route.no_proxy.nets_on_ports())
                .collect(),
            failure_mode: self.failure_mode(),
            ports: self.tunnel.as_ref().map(Route::ports).unwrap_or_default(),
        }
    }

    /// What becomes of captured connections when the agent is gone; open where nothing is captured.
    pub fn failure_mode(&self) -> FailureMode {
        self.tunnel
            .as_ref()
            .map_or(FailureMode::Open, |route| route.failure_mode)
    }

    /// Every proxy in use.
    pub fn proxies(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.tunnel.iter().map(|route| &route.proxy)
    }

    /// What is not wrong, but perhaps not meant: Tunnels that never apply.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    fn new(tunnel: Option<Route>, options: &Options) -> Self {
        let mut sides = Sides::new();
        let listed = tunnel.iter().flat_map(|route| route.no_proxy.nets());
        for net in options.internal_cidrs.iter().copied().chain(listed) {
            sides.set(net, Side::Internal);
        }
        Self {
            sides,
            tunnel,
            warnings: Vec::new(),
        }
    }
}

impl Route {
    fn compile(tunnel: &Tunnel) -> Self {
        let Tunnel { metadata, spec, .. } = tunnel;
        let name = &metadata.name;
        let policy = match &metadata.namespace {
            Some(namespace) => format!("{}/{namespace}/{name}", tunnel::KIND),
            None => format!("{}/{name}", tunnel::KIND),
        };
        Self {
            policy: policy.into(),
            proxy: Arc::new(Proxy {
                host: spec.proxy.host.0.clone(),
                port: spec.proxy.port.get(),
                credentials: None,
                tls: None,
            }),
            target_host: match &spec.target_host {
                None => TargetRule::BestKnown,
                Some(TargetHost::AutoSni) => TargetRule::AutoSni,
                Some(TargetHost::OriginalDst) => TargetRule::OriginalDst,
                Some(TargetHost::Fixed(host)) => TargetRule::Fixed {
                    host: host.clone(),
                    service: host.name().cloned().map(Arc::new),
                },
            },
            target_port: spec.target_port.map(Port::get),
            no_proxy: spec.no_proxy.iter().flatten().cloned().collect(),
            failure_mode: spec.failure_mode,
        }
    }

    fn ports(&self) -> PortSet {
        let mut ports = PortSet::all();
        for port in self.no_proxy.ports() {
            match port {
                Some(port) => ports.remove(port),
                None => return PortSet::none(),
            }
        }
        ports
    }
}

/// The first in this order wins: the oldest, then by name. What has no age, as in most files,
/// comes after what has.
fn precedence(tunnel: &Tunnel) -> impl Ord + '_ {
    let metadata = &tunnel.metadata;
    let created = metadata.creation_timestamp.as_ref();
    (
        created.is_none(),
        created,
        &metadata.name,
        &metadata.namespace,
    )
}

fn shadowed(loser: &Document<Tunnel>, winner: &Document<Tunnel>) -> Problem {
    let reason = format!(
        "it never applies: {} in {} is for all external traffic too, and the oldest wins, then \
         the first by name",
        winner.subject(),
        winner.place("metadata")
    );
    loser.problem("spec", reason)
}

/// The kernel side knows no names, so what only names exempt is refused like the rest while the
/// agent is gone.
fn closed_to_names(policy: &Policy, document: &Document<Tunnel>) -> Option<Problem> {
    let route = policy.tunnel.as_ref()?;
    let closed = route.failure_mode == FailureMode::Closed && route.no_proxy.has_names();
    closed.then(|| {
        document.problem(
            "spec.noProxy",
            "names in it are refused, too, while the agent is gone, because only the agent knows \
             names; addresses and ranges are not",
        )
    })
}

fn duplicates(documents: &[Document<Tunnel>]) -> Vec<Problem> {
    let mut first = HashMap::new();
    let mut problems = Vec::new();
    for document in documents {
        let metadata = &document.object.metadata;
        let key = (&metadata.namespace, &metadata.name);
        let other: &Document<Tunnel> = first.entry(key).or_insert(document);
        if !std::ptr::eq(other, document) {
            let reason = format!(
                "`{}` is already the name of a {} in {}",
                metadata.name,
                tunnel::KIND,
                other.place("metadata.name")
            );
            problems.push(document.problem("metadata.name", reason));
        }
    }
    problems
}

#[cfg(test)]
mod tests;
