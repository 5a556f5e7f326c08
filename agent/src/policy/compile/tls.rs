//! TLS settings of documents into clients.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;

use super::credentials::Secrets;
use super::tenancy::Tenancy;
use super::{Materials, Report, TlsSetting};
use crate::name::HostName;
use crate::policy::api::Object;
use crate::policy::api::destination_rule::DestinationRule;
use crate::policy::api::metadata::Namespace;
use crate::policy::api::tls::{TlsFields, TlsMode, TlsVersion};
use crate::policy::api::value::HostPattern;
use crate::policy::document::{Document, Documents};
use crate::policy::hosts::HostTable;
use crate::policy::problem::quotable;
use crate::policy::workloads::WorkloadMatch;
use crate::tls::{self, ClientTls, Identity, Material, Roots, TlsConfigError, TlsSettings};

/// Makes clients, one for all documents that want the same.
#[derive(Debug)]
pub(super) struct TlsConfigs<'a> {
    pub(super) secrets: Secrets<'a>,
    pub(super) tenancy: Tenancy<'a>,
    documents: &'a Documents,
    materials: &'a Materials,
    made: HashMap<TlsSettings, Arc<ClientTls>>,
}

/// The settings of a DestinationRule for its host, or one port of it.
struct Facet<'a> {
    document: &'a Document<DestinationRule>,
    key: String,
    fields: &'a TlsFields,
    port: Option<u16>,
}

impl<'a> TlsConfigs<'a> {
    pub(super) fn new(
        documents: &'a Documents,
        materials: &'a Materials,
        tenancy: Tenancy<'a>,
    ) -> Self {
        Self {
            secrets: Secrets::new(documents, tenancy),
            tenancy,
            documents,
            materials,
            made: HashMap::new(),
        }
    }

    /// The settings of DestinationRules: the oldest first, and of one rule its ports first.
    pub(super) fn of_rules(&mut self, report: &mut Report) -> Vec<TlsSetting> {
        let mut settings = Vec::new();
        let sans = self.subject_alt_names();
        let mut seen: HashMap<(&HostPattern, Option<u16>), &Document<DestinationRule>> =
            HashMap::new();
        for facet in facets(self.documents) {
            let Facet {
                document,
                key,
                fields,
                port,
            } = facet;
            let spec = &document.object.spec;
            let workloads = workloads(document, self.tenancy);
            if workloads.is_everyone() {
                if let Some(first) = seen.get(&(&spec.host, port)) {
                    report.warnings.push(document.problem(
                        &key,
                        format!(
                            "it never applies: {} in {} says how TLS is spoken to `{}`, and the \
                             oldest wins, then the first by name",
                            first.subject(),
                            first.place("spec.trafficPolicy"),
                            spec.host
                        ),
                    ));
                } else {
                    seen.insert((&spec.host, port), document);
                }
            }
            let names = spec.host.name().and_then(|name| sans.get(name));
            let names = names.map_or(&[][..], |names| names);
            match self.client(document, &key, fields, names, report) {
                Ok(tls) => settings.push(TlsSetting {
                    namespace: document.namespace().cloned(),
                    host: spec.host.clone(),
                    port,
                    policy: document.id().into(),
                    workloads,
                    tls,
                }),
                Err(problem) => report
                    .problems
                    .push(document.problem(&problem.0, problem.1)),
            }
        }
        settings
    }

    /// The client that `fields`, which stand at `key` of `document`, describe; `None` for none.
    pub(super) fn client<T: Object>(
        &mut self,
        document: &Document<T>,
        key: &str,
        fields: &TlsFields,
        subject_alt_names: &[String],
        report: &mut Report,
    ) -> Result<Option<Arc<ClientTls>>, (String, String)> {
        let at = |field: &str| format!("{key}.{field}");
        let files = [
            ("clientCertificate", &fields.client_certificate),
            ("privateKey", &fields.private_key),
        ];
        for (field, file) in files
            .iter()
            .chain([&("caCertificates", &fields.ca_certificates)])
        {
            if file.is_some() {
                let refused = self.tenancy.refuse_file(document.namespace());
                refused.map_err(|reason| (at(field), reason))?;
            }
        }
        let given = files.iter().find(|(_, file)| file.is_some());
        if fields.mode != TlsMode::Mutual
            && let Some((field, _)) = given
        {
            let mode = fields.mode;
            let reason = format!("a certificate of our own is for mode MUTUAL, and mode is {mode}");
            return Err((at(field), reason));
        }
        if fields.mode == TlsMode::Disable {
            let idle = fields.credential_name.is_some()
                || fields.ca_certificates.is_some()
                || fields.sni.is_some()
                || !fields.subject_alt_names.is_empty();
            if idle {
                let reason = "mode is DISABLE, so the fields beside it have no effect";
                report.warnings.push(document.problem(&at("mode"), reason));
            }
            return Ok(None);
        }
        if fields.credential_name.is_some()
            && let Some((field, _)) = given
        {
            let reason = "give either files or `credentialName`".to_owned();
            return Err((at(field), reason));
        }
        let settings = self.settings(document.namespace(), key, fields, subject_alt_names)?;
        if fields.insecure_skip_verify {
            let reason = "no certificate is verified: everybody on the way can read and change \
                          what is sent";
            let problem = document.problem(&at("insecureSkipVerify"), reason);
            report.warnings.push(problem);
        }
        self.make(settings)
            .map(Some)
            .map_err(|error| unusable(key, fields, &error))
    }

    /// The client that is as `client` but for the protocols that it offers.
    pub(super) fn with_alpn(
        &mut self,
        client: &ClientTls,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientTls>, TlsConfigError> {
        let mut settings = client.settings().clone();
        settings.alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        self.make(settings)
    }

    fn make(&mut self, settings: TlsSettings) -> Result<Arc<ClientTls>, TlsConfigError> {
        if let Some(made) = self.made.get(&settings) {
            return Ok(Arc::clone(made));
        }
        let client = ClientTls::new(&settings, &self.materials.roots)?;
        let client = Arc::new(client);
        self.made.insert(settings, Arc::clone(&client));
        Ok(client)
    }

    fn settings(
        &self,
        namespace: Option<&Namespace>,
        key: &str,
        fields: &TlsFields,
        subject_alt_names: &[String],
    ) -> Result<TlsSettings, (String, String)> {
        let at = |field: &str| format!("{key}.{field}");
        let mut roots = Roots::System;
        let mut identity = None;
        if let Some(file) = &fields.ca_certificates {
            let pem = self.file(file).map_err(|err| (at("caCertificates"), err))?;
            roots = Roots::Pem(pem.to_vec());
        }
        if let Some(reference) = &fields.credential_name {
            let wrong = |reason: String| (at("credentialName"), reason);
            let document = self.secrets.get(reference, namespace).map_err(wrong)?;
            let secret = &document.object;
            let id = document.id();
            match secret.get("ca.crt") {
                Some(_) if fields.ca_certificates.is_some() => {
                    let reason = format!("{id} has a `ca.crt` as well: give one of them");
                    return Err((at("caCertificates"), reason));
                }
                Some(pem) => roots = Roots::Pem(pem.to_vec()),
                None => {}
            }
            if fields.mode == TlsMode::Mutual {
                let (Some(chain), Some(key)) = (secret.get("tls.crt"), secret.get("tls.key"))
                else {
                    let reason = format!("{id} lacks `tls.crt` or `tls.key`, for mode MUTUAL");
                    return Err(wrong(reason));
                };
                let key = secret_text(key)
                    .ok_or_else(|| wrong(format!("`tls.key` of {id} is not PEM text")))?;
                identity = Some(Identity {
                    chain: chain.to_vec(),
                    key,
                });
            }
        } else if fields.mode == TlsMode::Mutual {
            let missing = |field: &str| {
                let reason = "it is missing; mode MUTUAL needs `clientCertificate` and \
                              `privateKey`, or `credentialName`";
                (at(field), reason.to_owned())
            };
            let chain = fields.client_certificate.as_ref();
            let chain = chain.ok_or_else(|| missing("clientCertificate"))?;
            let key = fields.private_key.as_ref();
            let key = key.ok_or_else(|| missing("privateKey"))?;
            let chain = self
                .file(chain)
                .map_err(|err| (at("clientCertificate"), err))?;
            let pem = self.file(key).map_err(|err| (at("privateKey"), err))?;
            let key = secret_text(pem).ok_or_else(|| {
                let reason = format!("{} is not PEM text", quotable(key));
                (at("privateKey"), reason)
            })?;
            identity = Some(Identity {
                chain: chain.to_vec(),
                key,
            });
        }
        Ok(TlsSettings {
            sni: fields.sni.as_ref().map(|sni| sni.0.clone()),
            roots,
            identity,
            subject_alt_names: if fields.subject_alt_names.is_empty() {
                subject_alt_names.to_vec()
            } else {
                fields.subject_alt_names.clone()
            },
            insecure_skip_verify: fields.insecure_skip_verify,
            min_version: match fields.min_protocol_version {
                None | Some(TlsVersion::Tls12) => tls::TlsVersion::Tls12,
                Some(TlsVersion::Tls13) => tls::TlsVersion::Tls13,
            },
            alpn: Vec::new(),
        })
    }

    fn file(&self, path: &str) -> Result<&'a [u8], String> {
        match self.materials.files.get(Path::new(path)) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(format!("{} cannot be read: {error}", quotable(path))),
            None => Err(format!("{} was not read", quotable(path))),
        }
    }

    /// What ServiceEntries say must be in certificates, by host.
    fn subject_alt_names(&self) -> HashMap<&'a HostName, Vec<String>> {
        let mut names: HashMap<_, Vec<String>> = HashMap::new();
        for document in &self.documents.service_entries {
            let spec = &document.object.spec;
            if spec.subject_alt_names.is_empty() {
                continue;
            }
            for host in spec.hosts.iter().filter_map(HostPattern::name) {
                names
                    .entry(host)
                    .or_default()
                    .extend_from_slice(&spec.subject_alt_names);
            }
        }
        names
    }
}

/// The field that has what cannot be used, and why it cannot, with the file or Secret it is in.
fn unusable(key: &str, fields: &TlsFields, error: &TlsConfigError) -> (String, String) {
    let (field, file) = match error.material() {
        Some(Material::Roots) => ("caCertificates", &fields.ca_certificates),
        Some(Material::Certificate) => ("clientCertificate", &fields.client_certificate),
        Some(Material::Key) => ("privateKey", &fields.private_key),
        None => return (key.to_owned(), error.to_string()),
    };
    match (file, &fields.credential_name) {
        (Some(file), _) => (format!("{key}.{field}"), format!("{file}: {error}")),
        (None, Some(secret)) => (
            format!("{key}.credentialName"),
            format!("Secret {secret}: {error}"),
        ),
        (None, None) => (key.to_owned(), error.to_string()),
    }
}

/// Settings by host; of one host the oldest first.
pub(super) fn by_host(settings: &[TlsSetting]) -> HostTable<usize> {
    let mut table = HostTable::default();
    for (index, setting) in settings.iter().enumerate() {
        table.push(&setting.host, index);
    }
    table
}

/// For whom a DestinationRule is.
pub(super) fn workloads(
    document: &Document<DestinationRule>,
    tenancy: Tenancy<'_>,
) -> WorkloadMatch {
    let spec = &document.object.spec;
    let visibility = tenancy.visibility(&spec.export_to, document.namespace());
    match &spec.workload_selector {
        None => WorkloadMatch::new(None, visibility),
        Some(selector) => WorkloadMatch::labelled(&selector.match_labels, visibility),
    }
}

/// Every TLS setting of a DestinationRule, the oldest rule first, and of one rule its ports first.
fn facets(documents: &Documents) -> impl Iterator<Item = Facet<'_>> {
    let mut rules: Vec<_> = documents.destination_rules.iter().collect();
    rules.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    rules.into_iter().flat_map(|document| {
        let policy = &document.object.spec.traffic_policy;
        let ports = policy.port_level_settings.iter().enumerate();
        let by_port = ports.filter_map(move |(index, port)| {
            Some(Facet {
                document,
                key: format!("spec.trafficPolicy.portLevelSettings[{index}].tls"),
                fields: port.tls.as_ref()?,
                port: Some(port.port.number.get()),
            })
        });
        let whole = policy.tls.as_ref().map(|fields| Facet {
            document,
            key: "spec.trafficPolicy.tls".to_owned(),
            fields,
            port: None,
        });
        by_port.chain(whole)
    })
}

fn secret_text(pem: &[u8]) -> Option<SecretString> {
    str::from_utf8(pem).ok().map(SecretString::from)
}
