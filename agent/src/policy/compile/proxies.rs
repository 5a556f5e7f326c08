//! What is said of a forward proxy in several places into one proxy.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::credentials::credentials;
use super::tenancy::Tenancy;
use super::tls::TlsConfigs;
use super::traffic::Traffic;
use super::{Report, TlsSetting};
use crate::name::{Host, HostName, Target};
use crate::policy::api::Object;
use crate::policy::api::destination_rule::TunnelMethod;
use crate::policy::api::endpoint_slice::EndpointSlice;
use crate::policy::api::metadata::Namespace;
use crate::policy::api::service::Service;
use crate::policy::api::service_entry::{PortProtocol, Resolution, ServiceEntry};
use crate::policy::api::tls::TlsFields;
use crate::policy::api::tunnel::{
    CredentialRef, DialFromField, HealthCheck, PlainHttpField, ProxyProtocol,
};
use crate::policy::api::value::Port;
use crate::policy::document::{Document, Documents};
use crate::policy::header::HeaderTemplate;
use crate::policy::hosts::HostTable;
use crate::policy::problem::{quotable, some};
use crate::policy::proxy::{
    Check, Credentials, DialFrom, Endpoint, OnceText, PlainHttp, Proxy, ProxySettings,
    TunnelProtocol,
};
use crate::policy::workloads::Visibility;
use crate::tls::ClientTls;

/// Where the domain of a cluster is not told, it is this.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// How often an endpoint is checked, where that is not said, and at most.
const CHECKED_EVERY: Duration = Duration::from_secs(30);
const CHECKED_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The proxies of all documents; one that is described twice in the same way is one.
pub(super) struct Proxies<'a> {
    tls: TlsConfigs<'a>,
    /// Those of DestinationRules.
    settings: &'a [TlsSetting],
    settings_by_host: &'a HostTable<usize>,
    traffic: &'a Traffic<'a>,
    /// The best first.
    described: HashMap<String, Vec<Described<'a>>>,
    /// Of Services, by namespace and name.
    slices: HashMap<(Option<&'a Namespace>, &'a str), Vec<&'a EndpointSlice>>,
    made: Vec<Arc<Proxy>>,
    /// Hosts that turned out to be proxies.
    hosts: HashSet<HostName>,
}

/// What a rule says of its proxy.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// Where it stands.
    pub(super) key: &'a str,
    pub(super) host: &'a Host,
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<ProxyProtocol>,
    /// And where that stands.
    pub(super) method: Option<(&'a str, TunnelMethod)>,
    pub(super) credential: Option<(String, &'a CredentialRef)>,
    pub(super) tls: Option<&'a TlsFields>,
    pub(super) headers: Option<&'a BTreeMap<String, String>>,
    pub(super) dial_from: DialFromField,
    pub(super) plain_http: PlainHttpField,
    pub(super) check: Option<&'a HealthCheck>,
    pub(super) warm: bool,
}

/// The document that describes a proxy.
#[derive(Clone, Copy)]
enum Described<'a> {
    Entry(&'a Document<ServiceEntry>),
    Service(&'a Document<Service>),
}

impl<'a> Proxies<'a> {
    pub(super) fn new(
        documents: &'a Documents,
        tls: TlsConfigs<'a>,
        settings: &'a [TlsSetting],
        settings_by_host: &'a HostTable<usize>,
        traffic: &'a Traffic<'a>,
    ) -> Self {
        let mut described: HashMap<String, Vec<Described<'_>>> = HashMap::new();
        for document in &documents.services {
            for name in cluster_names(document) {
                let described = described.entry(name).or_default();
                if described.is_empty() {
                    described.push(Described::Service(document));
                }
            }
        }
        let mut entries: Vec<_> = documents.service_entries.iter().collect();
        // An entry that says how to tunnel goes first, and the oldest of those; then Services.
        entries.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        entries.sort_by_key(|entry| {
            !entry
                .object
                .spec
                .ports
                .iter()
                .any(|p| p.protocol.is_of_proxy())
        });
        for document in entries.into_iter().rev() {
            for name in document.object.spec.hosts.iter().filter_map(|h| h.name()) {
                let described = described.entry(name.to_string()).or_default();
                described.insert(0, Described::Entry(document));
            }
        }
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for document in &documents.endpoint_slices {
            if let Some(service) = document.object.service() {
                let of_service = slices.entry((document.namespace(), service)).or_default();
                of_service.push(&document.object);
            }
        }
        Self {
            slices,
            tls,
            settings,
            settings_by_host,
            traffic,
            described,
            made: Vec::new(),
            hosts: HashSet::new(),
        }
    }

    /// The hosts that turned out to be proxies.
    pub(super) fn into_hosts(self) -> HashSet<HostName> {
        self.hosts
    }

    /// The rules for namespaces.
    pub(super) fn tenancy(&self) -> Tenancy<'a> {
        self.tls.tenancy
    }

    /// The proxy that `document` wants. What is wrong with it is reported.
    pub(super) fn get<T: Object>(
        &mut self,
        document: &Document<T>,
        wanted: &Wanted<'_>,
        report: &mut Report,
    ) -> Option<Arc<Proxy>> {
        match self.build(document, wanted, report) {
            Ok(proxy) => Some(self.share(proxy)),
            Err((key, reason)) => {
                report.problems.push(document.problem(&key, reason));
                None
            }
        }
    }

    fn build<T: Object>(
        &mut self,
        document: &Document<T>,
        wanted: &Wanted<'_>,
        report: &mut Report,
    ) -> Result<Proxy, (String, String)> {
        let at = |field: &str| format!("{}.{field}", wanted.key);
        let described = self.describe(wanted.host, document.namespace());
        if let Some(described) = described {
            described
                .shows_to(document.namespace())
                .map_err(|reason| (wanted.key.to_owned(), reason))?;
        }
        let port = port(wanted, described).map_err(|reason| (at("port"), reason))?;
        let protocol = protocol(wanted, described, port)?;
        let plain_http = plain_http(wanted, protocol)?;
        let dial_from = dial_from(wanted)?;
        let names = names(wanted.host, described);
        self.hosts.extend(names.iter().cloned());
        let tls = match wanted.tls {
            Some(fields) => self.tls.client(document, &at("tls"), fields, &[], report)?,
            None => self.tls_of(&names, port, document.namespace()),
        };
        let tls = match tls {
            Some(tls) => Some(
                self.tls
                    .with_alpn(&tls, alpn(protocol))
                    .map_err(|error| (at("tls"), error.to_string()))?,
            ),
            None => None,
        };
        let mut headers = Vec::new();
        for (name, value) in wanted.headers.into_iter().flatten() {
            let header = HeaderTemplate::parse(name, value);
            let key = || at(&format!("headers.{}", quotable(name)));
            headers.push(header.map_err(|reason| (key(), reason))?);
        }
        Ok(Proxy {
            host: wanted.host.clone(),
            port,
            endpoints: self
                .endpoints(wanted.host, described, port)
                .map_err(|reason| (wanted.key.to_owned(), reason))?,
            protocol,
            tls,
            credentials: self.credentials(document.namespace(), wanted)?,
            headers,
            plain_http,
            check: wanted
                .check
                .map(check)
                .transpose()
                .map_err(|reason| (at("healthCheck.interval"), reason))?,
            settings: ProxySettings {
                dial_from,
                warm: wanted.warm,
                ..self.traffic.settings(&names, port, |other| {
                    self.tenancy().distance(document.namespace(), other)
                })
            },
            label: OnceText::default(),
        })
    }

    fn credentials(
        &self,
        namespace: Option<&Namespace>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Credentials>, (String, String)> {
        let Some((key, reference)) = &wanted.credential else {
            return Ok(None);
        };
        self.tls
            .secrets
            .get(&reference.credential_name, namespace)
            .and_then(credentials)
            .map(Some)
            .map_err(|reason| (key.clone(), reason))
    }

    /// TLS to a proxy, as the DestinationRule of one of its names has it.
    fn tls_of(
        &self,
        names: &[HostName],
        port: u16,
        namespace: Option<&Namespace>,
    ) -> Option<Arc<ClientTls>> {
        names.iter().find_map(|name| {
            let settings = self.settings_by_host.matching(name);
            let settings = settings.map(|index| &self.settings[*index]);
            let on_it = settings.filter(|setting| setting.port.is_none_or(|only| only == port));
            let near = on_it.filter_map(|setting| {
                let other = setting.namespace.as_ref();
                Some((self.tenancy().distance(namespace, other)?, setting))
            });
            let nearest = near.min_by_key(|(distance, _)| *distance);
            nearest.map(|(_, setting)| setting.tls.clone())
        })?
    }

    fn describe(&self, host: &Host, namespace: Option<&Namespace>) -> Option<Described<'a>> {
        let name = host.name()?.as_str();
        let own = namespace.map(|namespace| format!("{name}.{namespace}"));
        let of_name = |name: &str| {
            let described = self.described.get(name)?.iter();
            // A Service is where its name says.
            let near = described.filter_map(|described| match described {
                Described::Service(_) => Some((u8::MAX, described)),
                Described::Entry(entry) => {
                    let distance = self.tenancy().distance(namespace, entry.namespace())?;
                    Some((distance, described))
                }
            });
            near.min_by_key(|(distance, _)| *distance)
                .map(|(_, it)| *it)
        };
        of_name(name).or_else(|| of_name(&own?))
    }

    /// Where a proxy is.
    fn endpoints(
        &self,
        host: &Host,
        described: Option<Described<'_>>,
        port: u16,
    ) -> Result<Vec<Endpoint>, String> {
        match described {
            Some(Described::Service(document)) => {
                let pods = self.pods(document, port);
                let spec = &document.object.spec;
                // A node need not be able to resolve the names of its cluster.
                let own = spec
                    .cluster_ip
                    .as_deref()
                    .filter(|_| self.tenancy().is_many());
                match own.and_then(|own| own.parse().ok()) {
                    _ if !pods.is_empty() => Ok(pods),
                    Some(addr) => Ok(vec![Endpoint {
                        host: Host::Addr(addr),
                        port,
                        weight: 1,
                    }]),
                    None => endpoints(host, described, port),
                }
            }
            _ => endpoints(host, described, port),
        }
    }

    /// The pods of a Service that are ready, as far as they are known.
    fn pods(&self, document: &Document<Service>, port: u16) -> Vec<Endpoint> {
        let key = (document.namespace(), document.object.metadata.name.as_ref());
        let ports = &document.object.spec.ports;
        let Some(declared) = ports.iter().find(|declared| declared.port.get() == port) else {
            return Vec::new();
        };
        let name = declared.name.as_deref();
        let slices = self.slices.get(&key).into_iter().flatten();
        let mut ready: Vec<_> = slices.flat_map(|slice| slice.ready(name)).collect();
        // A pod may stand in two of them while it moves.
        ready.sort_unstable();
        ready.dedup();
        let pods = ready.into_iter().map(|(addr, port)| Endpoint {
            host: Host::Addr(addr),
            port,
            weight: 1,
        });
        pods.collect()
    }

    /// The same proxy as one made before, if there is one.
    fn share(&mut self, proxy: Proxy) -> Arc<Proxy> {
        let known = self.made.iter().find(|made| same(made, &proxy));
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let proxy = Arc::new(proxy);
        self.made.push(Arc::clone(&proxy));
        proxy
    }
}

impl Described<'_> {
    fn id(self) -> String {
        match self {
            Self::Entry(document) => document.id(),
            Self::Service(document) => document.id(),
        }
    }

    fn shows_to(self, namespace: Option<&Namespace>) -> Result<(), String> {
        let Self::Entry(document) = self else {
            return Ok(());
        };
        let exports = &document.object.spec.export_to;
        let shown = Visibility::new(exports, document.namespace());
        // What has no namespace stands for the node, and sees everything on it.
        if namespace.is_none_or(|namespace| shown.shows_to(Some(namespace.as_ref()))) {
            return Ok(());
        }
        Err(format!(
            "{} describes it, and its exportTo does not show it to this namespace",
            document.id()
        ))
    }

    /// The numbers of its ports, and what is spoken there.
    fn ports(self) -> Vec<(u16, PortProtocol)> {
        match self {
            Self::Entry(document) => {
                let ports = document.object.spec.ports.iter();
                ports.map(|p| (p.number.get(), p.protocol)).collect()
            }
            Self::Service(document) => {
                let ports = document.object.spec.ports.iter();
                ports
                    .map(|port| {
                        let protocol = port.app_protocol.as_deref();
                        let protocol = protocol.and_then(PortProtocol::from_word);
                        (port.port.get(), protocol.unwrap_or_default())
                    })
                    .collect()
            }
        }
    }
}

fn port(wanted: &Wanted<'_>, described: Option<Described<'_>>) -> Result<u16, String> {
    let Some(described) = described else {
        return wanted.port.ok_or_else(|| {
            format!(
                "it is missing; no ServiceEntry or Service describes `{}`, which could give it",
                wanted.host
            )
        });
    };
    let ports = described.ports();
    let listed = || some(ports.iter().map(|(number, _)| number));
    if let Some(port) = wanted.port {
        if ports.is_empty() || ports.iter().any(|(number, _)| *number == port) {
            return Ok(port);
        }
        let id = described.id();
        return Err(format!("{id} has no port {port}, only {}", listed()));
    }
    let for_tunnels: Vec<_> = ports.iter().filter(|(_, p)| p.is_of_proxy()).collect();
    match (ports.as_slice(), for_tunnels.as_slice()) {
        ([(port, _)], _) | (_, [(port, _)]) => Ok(*port),
        ([], _) => Err(format!("it is missing, and {} has no port", described.id())),
        _ => Err(format!(
            "it is missing, and {} has several ports: {}",
            described.id(),
            listed()
        )),
    }
}

/// What is offered to a proxy inside TLS, the best first. One that should speak HTTP/2 and does not
/// can serve CONNECT over HTTP/1.1.
fn alpn(protocol: TunnelProtocol) -> &'static [&'static [u8]] {
    match protocol {
        TunnelProtocol::Http1Connect => &[b"http/1.1"],
        TunnelProtocol::Http2Connect => &[b"h2", b"http/1.1"],
        TunnelProtocol::Http2Post => &[b"h2"],
    }
}

fn protocol(
    wanted: &Wanted<'_>,
    described: Option<Described<'_>>,
    port: u16,
) -> Result<TunnelProtocol, (String, String)> {
    let ports = described.map(Described::ports).unwrap_or_default();
    let declared = ports.iter().find(|(number, _)| *number == port);
    let protocol = match (wanted.protocol, declared.map(|(_, protocol)| *protocol)) {
        (Some(ProxyProtocol::Http1Connect), _) => TunnelProtocol::Http1Connect,
        (Some(ProxyProtocol::Http2Connect), _) => TunnelProtocol::Http2Connect,
        (Some(ProxyProtocol::Http2Post), _) | (None, Some(PortProtocol::Http2Post)) => {
            TunnelProtocol::Http2Post
        }
        // In Istio the version of HTTP is that of the proxy's port.
        (None, Some(PortProtocol::Http2 | PortProtocol::Http2Connect)) => {
            TunnelProtocol::Http2Connect
        }
        (None, _) => TunnelProtocol::Http1Connect,
    };
    match (wanted.method, protocol) {
        (Some((_, TunnelMethod::Post)), TunnelProtocol::Http2Connect) => {
            Ok(TunnelProtocol::Http2Post)
        }
        (Some((key, TunnelMethod::Post)), TunnelProtocol::Http1Connect) => Err((
            key.to_owned(),
            "POST needs HTTP/2: the port of the proxy must have the protocol HTTP2-POST, \
             HTTP2-CONNECT or HTTP2"
                .to_owned(),
        )),
        (Some((key, TunnelMethod::Connect)), TunnelProtocol::Http2Post) => Err((
            key.to_owned(),
            "the port of the proxy has the protocol HTTP2-POST: leave this out, or declare the port \
             as HTTP2-CONNECT"
                .to_owned(),
        )),
        _ => Ok(protocol),
    }
}

/// How plain HTTP goes to it: requests in absolute form are said in HTTP/1.1.
fn plain_http(
    wanted: &Wanted<'_>,
    protocol: TunnelProtocol,
) -> Result<PlainHttp, (String, String)> {
    match (wanted.plain_http, protocol) {
        (PlainHttpField::Connect, _) => Ok(PlainHttp::Connect),
        (PlainHttpField::AbsoluteForm, TunnelProtocol::Http1Connect) => Ok(PlainHttp::AbsoluteForm),
        (PlainHttpField::AbsoluteForm, _) => Err((
            format!("{}.plainHTTP", wanted.key),
            format!(
                "ABSOLUTE_FORM needs a proxy with the protocol HTTP-CONNECT, and this one has {}",
                protocol.as_str()
            ),
        )),
    }
}

fn dial_from(wanted: &Wanted<'_>) -> Result<DialFrom, (String, String)> {
    match (wanted.dial_from, wanted.check) {
        (DialFromField::Node, _) => Ok(DialFrom::Node),
        (DialFromField::Workload, None) => Ok(DialFrom::Workload),
        (DialFromField::Workload, Some(_)) => Err((
            format!("{}.healthCheck", wanted.key),
            "with `dialFrom: workload` there is nowhere to check from: what the node can reach \
             says nothing about a workload"
                .to_owned(),
        )),
    }
}

fn check(wanted: &HealthCheck) -> Result<Arc<Check>, String> {
    let interval = wanted.interval.map_or(CHECKED_EVERY, |time| time.0);
    if interval < CHECKED_AT_MOST_EVERY {
        return Err("expected a time from 1s to 24h".to_owned());
    }
    Ok(Arc::new(Check {
        target: Target {
            host: wanted.target_host.0.clone(),
            port: wanted.target_port.map_or(443, Port::get),
        },
        interval,
    }))
}

/// Where a proxy is.
fn endpoints(
    host: &Host,
    described: Option<Described<'_>>,
    port: u16,
) -> Result<Vec<Endpoint>, String> {
    let at_host = |host: Host| {
        vec![Endpoint {
            host,
            port,
            weight: 1,
        }]
    };
    let document = match described {
        None => return Ok(at_host(host.clone())),
        Some(Described::Service(document)) => {
            let external = &document.object.spec.external_name;
            // The names of a Service are short; its full name is found wherever it is looked for.
            let host = match external {
                Some(external) => external.0.clone(),
                None => full_name(document)?,
            };
            return Ok(at_host(Host::Name(host)));
        }
        Some(Described::Entry(document)) => document,
    };
    let spec = &document.object.spec;
    if spec.endpoints.is_empty() {
        let id = document.id();
        return match (spec.resolution, spec.addresses.as_slice()) {
            (Resolution::Static, []) => Err(format!(
                "{id} has resolution STATIC and neither endpoints nor addresses"
            )),
            (Resolution::Static | Resolution::None, [_, ..]) => spec
                .addresses
                .iter()
                .map(|address| {
                    let net = address.0;
                    if net.prefix_len() != net.max_prefix_len() {
                        return Err(format!(
                            "{id} has the range {net} where the proxy should be"
                        ));
                    }
                    Ok(Endpoint {
                        host: Host::Addr(net.addr()),
                        port,
                        weight: 1,
                    })
                })
                .collect(),
            _ => Ok(at_host(host.clone())),
        };
    }
    let named = spec.ports.iter().find(|p| p.number.get() == port);
    let target = named.and_then(|p| p.target_port).map_or(port, Port::get);
    let name = named.and_then(|p| p.name.as_deref());
    let endpoints = spec.endpoints.iter().map(|endpoint| {
        if spec.resolution == Resolution::Static && endpoint.address.0.name().is_some() {
            return Err(format!(
                "{} has resolution STATIC, and the endpoint `{}` is a name",
                document.id(),
                endpoint.address.0
            ));
        }
        let own = name.and_then(|name| endpoint.ports.get(name));
        Ok(Endpoint {
            host: endpoint.address.0.clone(),
            port: own.copied().map_or(target, Port::get),
            weight: endpoint.weight.map_or(1, |weight| weight.0),
        })
    });
    endpoints.collect()
}

/// The names by which a DestinationRule may mean a proxy, the nearest first.
fn names(host: &Host, described: Option<Described<'_>>) -> Vec<HostName> {
    let mut names: Vec<HostName> = host.name().cloned().into_iter().collect();
    if let Some(Described::Service(document)) = described {
        names.extend(full_name(document));
        names.extend(
            document
                .object
                .spec
                .external_name
                .as_ref()
                .map(|n| n.0.clone()),
        );
    }
    names
}

/// By what a Service is called inside its cluster.
fn cluster_names(document: &Document<Service>) -> Vec<String> {
    let name = &document.object.metadata.name;
    match document.namespace() {
        None => vec![name.to_string()],
        Some(namespace) => vec![
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        ],
    }
}

fn full_name(document: &Document<Service>) -> Result<HostName, String> {
    let names = cluster_names(document);
    let full = names.last().map(String::as_str).unwrap_or_default();
    full.parse()
        .map_err(|err| format!("{} has a name that is no host: {err}", document.id()))
}

fn same(a: &Proxy, b: &Proxy) -> bool {
    let tls = |proxy: &Proxy| proxy.tls.as_ref().map(Arc::as_ptr);
    let credentials = |proxy: &Proxy| {
        let credentials = proxy.credentials.as_ref();
        credentials.map(|credentials| credentials.header().to_owned())
    };
    (&a.host, a.port, &a.endpoints, a.protocol, &a.headers)
        == (&b.host, b.port, &b.endpoints, b.protocol, &b.headers)
        && (a.plain_http, &a.check, a.settings) == (b.plain_http, &b.check, b.settings)
        && tls(a) == tls(b)
        && credentials(a) == credentials(b)
}
