//! What Secrets hold.

use std::collections::HashMap;

use secrecy::SecretString;

use super::tenancy::Tenancy;
use crate::policy::api::metadata::Namespace;
use crate::policy::api::secret::Secret;
use crate::policy::document::{Document, Documents};
use crate::policy::problem::{quotable, some};
use crate::policy::proxy::Credentials;

/// The Secrets, by namespace and name.
#[derive(Debug)]
pub(super) struct Secrets<'a> {
    by_name: HashMap<(Option<&'a str>, &'a str), &'a Document<Secret>>,
    tenancy: Tenancy<'a>,
}

impl<'a> Secrets<'a> {
    pub(super) fn new(documents: &'a Documents, tenancy: Tenancy<'a>) -> Self {
        let by_name = documents.secrets.iter().map(|document| {
            let metadata = &document.object.metadata;
            let namespace = metadata.namespace.as_ref().map(AsRef::as_ref);
            ((namespace, metadata.name.as_ref()), &**document)
        });
        Self {
            by_name: by_name.collect(),
            tenancy,
        }
    }

    /// The Secret that a document in `namespace` means by `reference`: `NAME` in its own namespace,
    /// else one without a namespace, or `NAMESPACE/NAME`.
    pub(super) fn get(
        &self,
        reference: &str,
        namespace: Option<&Namespace>,
    ) -> Result<&'a Document<Secret>, String> {
        self.tenancy.refuse_secret(reference, namespace)?;
        // Those of the node.
        let nobodys = || {
            let allowed = self.tenancy.tenant(namespace).is_none();
            allowed
                .then(|| self.by_name.get(&(None, reference)))
                .flatten()
        };
        let found = match reference.split_once('/') {
            Some((namespace, name)) => self.by_name.get(&(Some(namespace), name)),
            None => self
                .by_name
                .get(&(namespace.map(AsRef::as_ref), reference))
                .or_else(nobodys),
        };
        found.copied().ok_or_else(|| {
            let place = match namespace {
                Some(namespace) if !reference.contains('/') => {
                    format!(" in namespace `{namespace}`")
                }
                _ => String::new(),
            };
            let elsewhere = self.by_name.keys().filter(|(_, name)| *name == reference);
            let elsewhere = elsewhere.filter_map(|(namespace, _)| *namespace).min();
            let hint = match elsewhere.filter(|_| !self.tenancy.is_many()) {
                Some(other) => format!("; that in namespace `{other}` is `{other}/{reference}`"),
                None => String::new(),
            };
            format!("there is no Secret `{}`{place}{hint}", quotable(reference))
        })
    }
}

/// What a proxy wants to see, from the keys of a Secret: `username` and `password`, `token`, or
/// `header`.
pub(super) fn credentials(document: &Document<Secret>) -> Result<Credentials, String> {
    let secret = &document.object;
    let id = document.id();
    let text = |key: &str| match secret.get(key).map(str::from_utf8) {
        None => Ok(None),
        // What tools write ends in a line end that is no part of it.
        Some(Ok(text)) => Ok(Some(SecretString::from(
            text.trim_end_matches(['\r', '\n']),
        ))),
        Some(Err(_)) => Err(format!("`{key}` of {id} is not UTF-8 text")),
    };
    let (username, password) = (text("username")?, text("password")?);
    let (token, header) = (text("token")?, text("header")?);
    let found = match (username, password, token, header) {
        (Some(username), password, None, None) => {
            use secrecy::ExposeSecret as _;
            let password = password.unwrap_or_default();
            Credentials::basic(username.expose_secret(), &password)
        }
        (None, None, Some(token), None) => Credentials::bearer(&token),
        (None, None, None, Some(header)) => Credentials::verbatim(&header),
        (None, None, None, None) | (None, Some(_), None, None) => {
            let keys = some(secret.keys().map(|key| format!("`{}`", quotable(key))));
            let has = match &*keys {
                "" => "nothing".to_owned(),
                keys => format!("only {keys}"),
            };
            return Err(format!(
                "{id} has no credentials for a proxy: expected `username` and `password`, \
                 `token`, or `header`, found {has}"
            ));
        }
        _ => {
            return Err(format!(
                "{id} has several credentials for a proxy: expected only one of `username` with \
                 `password`, `token`, and `header`"
            ));
        }
    };
    found.map_err(|err| format!("the credentials in {id} cannot be sent: {err}"))
}
