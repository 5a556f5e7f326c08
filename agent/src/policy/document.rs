//! The documents of a policy, checked one by one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::api::Object;
use super::api::destination_rule::DestinationRule;
use super::api::endpoint_slice::EndpointSlice;
use super::api::metadata::{Metadata, Namespace, ObjectName};
use super::api::secret::Secret;
use super::api::service::Service;
use super::api::service_entry::ServiceEntry;
use super::api::tls::{TlsFields, TlsMode};
use super::api::tunnel::Tunnel;
use super::api::virtual_service::VirtualService;
use super::problem::{Place, Problem, Subject, quotable};
use super::yaml::{self, Fault, Node, Value};

/// Documents gathered from files, and what was wrong with some of them.
#[derive(Debug, Default)]
pub struct Documents {
    pub(super) destination_rules: Vec<Arc<Document<DestinationRule>>>,
    pub(super) endpoint_slices: Vec<Arc<Document<EndpointSlice>>>,
    pub(super) secrets: Vec<Arc<Document<Secret>>>,
    pub(super) service_entries: Vec<Arc<Document<ServiceEntry>>>,
    pub(super) services: Vec<Arc<Document<Service>>>,
    pub(super) tunnels: Vec<Arc<Document<Tunnel>>>,
    pub(super) virtual_services: Vec<Arc<Document<VirtualService>>>,
    ignored: Vec<Problem>,
    problems: Vec<Problem>,
}

/// Every kind there is, for messages.
const KINDS: &[&str] = &[
    DestinationRule::KIND,
    Secret::KIND,
    Service::KIND,
    ServiceEntry::KIND,
    Tunnel::KIND,
    VirtualService::KIND,
];

impl Documents {
    /// Adds the documents of a text: YAML, many in a stream, empty ones ignored. `file` is only
    /// for messages. What is wrong is kept for [`Policy::compile`](super::Policy::compile) to
    /// report. Returns how many documents there were, good or bad.
    pub fn add(&mut self, file: &Path, text: &str) -> usize {
        let parsed = yaml::parse(text);
        let count = parsed.len();
        for (document, number) in parsed.into_iter().zip(1..) {
            match document {
                Ok(root) => self.add_document(file, number, root),
                Err(error) => {
                    let place = Place {
                        file,
                        line: error.line,
                    };
                    let subject = Subject::Document(number);
                    self.report(Problem::new(place, subject, "yaml", error.reason));
                }
            }
        }
        count
    }

    /// Adds an object of a cluster. `place` is only for messages.
    pub(super) fn add_object(&mut self, place: &Path, object: serde_json::Value) {
        self.add_document(place, 0, object.into());
    }

    /// Adds what there is in `other`, and what was wrong with it.
    pub(super) fn extend(&mut self, other: &Self) {
        let Self {
            destination_rules,
            endpoint_slices,
            secrets,
            service_entries,
            services,
            tunnels,
            virtual_services,
            ignored,
            problems,
        } = other;
        self.destination_rules.extend_from_slice(destination_rules);
        self.endpoint_slices.extend_from_slice(endpoint_slices);
        self.secrets.extend_from_slice(secrets);
        self.service_entries.extend_from_slice(service_entries);
        self.services.extend_from_slice(services);
        self.tunnels.extend_from_slice(tunnels);
        self.virtual_services.extend_from_slice(virtual_services);
        self.ignored.extend_from_slice(ignored);
        self.problems.extend_from_slice(problems);
    }

    /// Adds a Secret that is a directory with a file for each key, as Kubernetes mounts it. The
    /// name of the directory is that of the Secret.
    pub(super) fn add_mounted_secret(
        &mut self,
        directory: &Path,
        name: String,
        values: BTreeMap<String, Vec<u8>>,
    ) {
        let subject = Subject::Directory;
        let place = Place {
            file: directory,
            line: 1,
        };
        match ObjectName::try_from(name) {
            Ok(name) => {
                let subject = Subject::Object {
                    kind: Secret::KIND.to_owned(),
                    namespace: None,
                    name: name.to_string(),
                };
                self.secrets.push(Arc::new(Document {
                    file: directory.to_owned(),
                    object: Secret::mounted(name, values),
                    root: Node::nothing(),
                    subject,
                }));
            }
            Err(reason) => self.report(Problem::new(place, subject, "path", reason)),
        }
    }

    /// Puts the last good version of each bad document in its place, and of a file that cannot be
    /// read all that it had. What is bad is forgotten: the caller has it as `problems`.
    pub(super) fn keep_last_good(&mut self, problems: &[Problem], last: &Self) {
        let bad = Bad::new(problems);
        self.problems.clear();
        bad.keep(&mut self.destination_rules, &last.destination_rules);
        bad.keep(&mut self.secrets, &last.secrets);
        bad.keep(&mut self.service_entries, &last.service_entries);
        bad.keep(&mut self.services, &last.services);
        bad.keep(&mut self.tunnels, &last.tunnels);
        bad.keep(&mut self.virtual_services, &last.virtual_services);
    }

    /// Has what others refer to by name be as it was: Secrets, and descriptions of proxies that are
    /// gone. Those that have changed say what other documents of now may count on.
    pub(super) fn hold(&mut self, last: &Self) {
        let old: HashSet<_> = last.secrets.iter().map(|document| document.id()).collect();
        self.secrets
            .retain(|document| !old.contains(&document.id()));
        bring_back(&mut self.secrets, &last.secrets);
        bring_back(&mut self.service_entries, &last.service_entries);
        bring_back(&mut self.services, &last.services);
    }

    /// Whether they are others than the last.
    pub(super) fn has_news(&self, last: &Self) -> bool {
        any_new(&self.endpoint_slices, &last.endpoint_slices)
            || any_new(&self.destination_rules, &last.destination_rules)
            || any_new(&self.secrets, &last.secrets)
            || any_new(&self.service_entries, &last.service_entries)
            || any_new(&self.services, &last.services)
            || any_new(&self.tunnels, &last.tunnels)
            || any_new(&self.virtual_services, &last.virtual_services)
    }

    /// The files that documents name: certificates and keys. Only those in some namespaces may.
    pub(super) fn named_files(
        &self,
        may: impl Fn(Option<&Namespace>) -> bool,
    ) -> BTreeSet<PathBuf> {
        let files = |fields: &TlsFields| {
            [
                fields.ca_certificates.clone(),
                fields.client_certificate.clone(),
                fields.private_key.clone(),
            ]
        };
        self.tls_fields()
            .filter(|(namespace, _)| may(*namespace))
            .flat_map(|(_, fields)| files(fields))
            .flatten()
            .map(PathBuf::from)
            .collect()
    }

    /// Whether some document wants TLS and does not say whom to trust.
    pub(super) fn wants_system_roots(&self) -> bool {
        self.tls_fields()
            .any(|(_, fields)| fields.mode != TlsMode::Disable && fields.ca_certificates.is_none())
    }

    fn tls_fields(&self) -> impl Iterator<Item = (Option<&Namespace>, &TlsFields)> {
        let rules = self.destination_rules.iter().flat_map(|document| {
            let policy = &document.object.spec.traffic_policy;
            let ports = policy.port_level_settings.iter();
            policy
                .tls
                .iter()
                .chain(ports.filter_map(|port| port.tls.as_ref()))
                .map(|fields| (document.namespace(), fields))
        });
        let tunnels = self.tunnels.iter().flat_map(|document| {
            let spec = &document.object.spec;
            let proxies = spec.proxy.iter().chain(spec.proxies.iter().flatten());
            let fields = proxies.filter_map(|proxy| proxy.tls.as_ref());
            fields.map(|fields| (document.namespace(), fields))
        });
        rules.chain(tunnels)
    }

    /// What was wrong so far, in the order of finding.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Fields that are not acted on, in the order of finding.
    pub(super) fn ignored(&self) -> &[Problem] {
        &self.ignored
    }

    /// Keeps a problem with the others.
    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Objects of a kind with the same name in the same namespace.
    pub(super) fn duplicates(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        duplicates(&self.destination_rules, &mut problems);
        duplicates(&self.secrets, &mut problems);
        duplicates(&self.service_entries, &mut problems);
        duplicates(&self.services, &mut problems);
        duplicates(&self.tunnels, &mut problems);
        duplicates(&self.virtual_services, &mut problems);
        problems
    }

    fn add_document(&mut self, file: &Path, number: usize, root: Node) {
        let subject = subject(&root, number);
        if !matches!(root.value, Value::Map(_)) {
            let reason = format!(
                "expected a mapping with apiVersion, kind, metadata and spec, found {}",
                root.value.what()
            );
            return self.report_fault(file, &subject, fault(&root, "document", reason));
        }
        let kind = match text_field(&root, "kind") {
            Ok(kind) => kind.to_owned(),
            Err(fault) => return self.report_fault(file, &subject, fault),
        };
        let source = Source {
            file,
            subject: &subject,
        };
        match kind.as_str() {
            DestinationRule::KIND => {
                let found = self.take(source, root);
                self.destination_rules.extend(found);
            }
            EndpointSlice::KIND => {
                let found = self.take(source, root);
                self.endpoint_slices.extend(found);
            }
            Secret::KIND => {
                let found = self.take(source, root);
                self.secrets.extend(found);
            }
            Service::KIND => {
                let found = self.take(source, root);
                self.services.extend(found);
            }
            ServiceEntry::KIND => {
                let found = self.take(source, root);
                self.service_entries.extend(found);
            }
            Tunnel::KIND => {
                let found = self.take(source, root);
                self.tunnels.extend(found);
            }
            VirtualService::KIND => {
                let found = self.take(source, root);
                self.virtual_services.extend(found);
            }
            _ => {
                let kind = quotable(&kind);
                let known = KINDS.join("`, `");
                let reason = format!("unknown kind `{kind}`, expected one of `{known}`");
                self.report_fault(file, &subject, fault(&root, "kind", reason));
            }
        }
    }

    fn take<T: Object>(&mut self, source: Source<'_>, mut root: Node) -> Option<Arc<Document<T>>> {
        let Source { file, subject } = source;
        for ignored in yaml::take_out_ignored(&mut root, &T::NOTES) {
            self.ignored.push(problem(file, subject, ignored));
        }
        let version = api_version::<T>(&root);
        let decoded = yaml::decode(&mut root, &T::NOTES);
        if T::SECRET {
            root.forget_values();
        }
        let faults = match (version, decoded) {
            (Ok(()), Ok(object)) => {
                return Some(Arc::new(Document {
                    file: file.to_owned(),
                    object,
                    root,
                    subject: subject.clone(),
                }));
            }
            (Ok(()), Err(faults)) => faults,
            (Err(fault), Ok(_)) => vec![fault],
            (Err(fault), Err(mut faults)) => {
                faults.insert(0, fault);
                faults
            }
        };
        for fault in faults {
            self.report_fault(file, subject, fault);
        }
        None
    }

    fn report_fault(&mut self, file: &Path, subject: &Subject, fault: Fault) {
        self.report(problem(file, subject, fault));
    }
}

/// What some problems are about.
struct Bad<'a> {
    objects: HashSet<&'a Subject>,
    /// Of which it cannot be told what is in them, and all below.
    places: Vec<&'a Path>,
}

impl<'a> Bad<'a> {
    fn new(problems: &'a [Problem]) -> Self {
        let mut bad = Self {
            objects: HashSet::new(),
            places: Vec::new(),
        };
        for problem in problems {
            match problem.about() {
                Subject::Directory | Subject::Document(_) | Subject::File => {
                    bad.places.push(problem.file());
                }
                object @ Subject::Object { .. } => {
                    bad.objects.insert(object);
                }
            }
        }
        bad
    }

    fn keep<T: Object>(&self, now: &mut Vec<Arc<Document<T>>>, last: &[Arc<Document<T>>]) {
        now.retain(|document| !self.objects.contains(&document.subject));
        let mut there: HashSet<String> = now.iter().map(|document| document.id()).collect();
        for document in last {
            let was_bad = self.objects.contains(&document.subject)
                || self.places.iter().any(|at| document.file.starts_with(at));
            if was_bad && there.insert(document.id()) {
                now.push(Arc::clone(document));
            }
        }
    }
}

fn bring_back<T: Object>(now: &mut Vec<Arc<Document<T>>>, last: &[Arc<Document<T>>]) {
    let there: HashSet<String> = now.iter().map(|document| document.id()).collect();
    let gone = last
        .iter()
        .filter(|document| !there.contains(&document.id()));
    now.extend(gone.cloned());
}

fn any_new<T>(now: &[Arc<Document<T>>], last: &[Arc<Document<T>>]) -> bool {
    let last: HashSet<_> = last.iter().map(Arc::as_ptr).collect();
    now.len() != last.len()
        || now
            .iter()
            .any(|document| !last.contains(&Arc::as_ptr(document)))
}

/// Where a document comes from, and what it is called.
#[derive(Clone, Copy)]
struct Source<'a> {
    file: &'a Path,
    subject: &'a Subject,
}

/// An object and where it was written.
#[derive(Debug)]
pub(super) struct Document<T> {
    file: PathBuf,
    /// What was written.
    pub(super) object: T,
    root: Node,
    subject: Subject,
}

impl<T> Document<T> {
    /// Where `key` (`spec.proxy`) stands, or would stand.
    pub(super) fn place(&self, key: &str) -> Place<'_> {
        Place {
            file: &self.file,
            line: self.root.line_of(key),
        }
    }

    /// A problem with the value of `key`.
    pub(super) fn problem(&self, key: &str, reason: impl Into<String>) -> Problem {
        Problem::new(self.place(key), self.subject.clone(), key, reason)
    }

    /// Whether it is written in Istio's API and not in ours.
    pub(super) fn is_of_istio(&self) -> bool {
        let version = self.root.get("apiVersion").and_then(Node::text);
        version.is_some_and(|version| version.starts_with("networking.istio.io/"))
    }

    /// `KIND/NAME`.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }
}

impl<T: Object> Document<T> {
    /// `KIND/NAME`, or `KIND/NAMESPACE/NAME`: what decisions are attributed to.
    pub(super) fn id(&self) -> String {
        let Metadata {
            name, namespace, ..
        } = self.object.metadata();
        match namespace {
            Some(namespace) => format!("{}/{namespace}/{name}", T::KIND),
            None => format!("{}/{name}", T::KIND),
        }
    }

    /// The namespace, if it has one.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        self.object.metadata().namespace.as_ref()
    }

    /// The first in this order wins where several objects apply: the oldest, then by name. What has
    /// no age, as in most files, comes after what has.
    pub(super) fn seniority(&self) -> impl Ord + Clone + use<'_, T> {
        let metadata = self.object.metadata();
        let created = metadata.creation_timestamp.as_ref();
        (
            created.is_none(),
            created,
            &metadata.name,
            &metadata.namespace,
        )
    }
}

/// What the document is called in problems. Names that are none could be anything.
fn subject(root: &Node, number: usize) -> Subject {
    let kind = root.get("kind").and_then(Node::text);
    let metadata = |key| root.get("metadata")?.get(key)?.text();
    let name = metadata("name");
    let namespace = metadata("namespace").map(str::to_owned);
    match (kind, name) {
        (Some(kind), Some(name))
            if !kind.is_empty()
                && kind.len() <= 63
                && kind.bytes().all(|b| b.is_ascii_alphanumeric())
                && ObjectName::try_from(name.to_owned()).is_ok() =>
        {
            Subject::Object {
                kind: kind.to_owned(),
                namespace: namespace.filter(|name| name.parse::<Namespace>().is_ok()),
                name: name.to_owned(),
            }
        }
        _ => Subject::Document(number),
    }
}

fn api_version<T: Object>(root: &Node) -> Result<(), Fault> {
    let version = text_field(root, "apiVersion")?;
    if T::API_VERSIONS.contains(&version) {
        return Ok(());
    }
    let reason = format!(
        "`{}` has no kind `{}`, expected {}`{}`",
        quotable(version),
        T::KIND,
        if T::API_VERSIONS.len() > 1 {
            "one of "
        } else {
            ""
        },
        T::API_VERSIONS.join("`, `")
    );
    Err(fault(root, "apiVersion", reason))
}

fn text_field<'a>(root: &'a Node, key: &str) -> Result<&'a str, Fault> {
    let Some(node) = root.get(key) else {
        return Err(fault(root, key, "it is missing"));
    };
    node.text().ok_or_else(|| {
        let reason = format!("expected a string, found {}", node.value.what());
        fault(root, key, reason)
    })
}

fn fault(root: &Node, key: &str, reason: impl Into<String>) -> Fault {
    Fault {
        key: key.to_owned(),
        line: root.line_of(key),
        reason: reason.into(),
    }
}

fn problem(file: &Path, subject: &Subject, fault: Fault) -> Problem {
    let Fault { key, line, reason } = fault;
    Problem::new(Place { file, line }, subject.clone(), key, reason)
}

fn duplicates<T: Object>(documents: &[Arc<Document<T>>], problems: &mut Vec<Problem>) {
    let mut first = BTreeMap::new();
    for document in documents {
        let metadata = document.object.metadata();
        let key = (&metadata.namespace, &metadata.name);
        let other: &Document<T> = first.entry(key).or_insert(document);
        if !std::ptr::eq(other, &raw const **document) {
            let reason = format!(
                "`{}` is already the name of a {} in {}",
                metadata.name,
                T::KIND,
                other.place("metadata.name")
            );
            problems.push(document.problem("metadata.name", reason));
        }
    }
}
