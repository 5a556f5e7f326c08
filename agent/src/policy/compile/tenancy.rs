//! Whose documents count for whom, where many hands write them: in a cluster.
//!
//! What stands in the root namespace, or in none, is for all workloads. What stands in another is for
//! the workloads of that namespace, whatever it exports, and may refer to what is in that namespace
//! or in the root namespace, but to no files of the node.

use crate::policy::api::metadata::Namespace;
use crate::policy::api::service_entry::ExportTo;
use crate::policy::workloads::Visibility;

/// The rules for namespaces.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct Tenancy<'a> {
    /// `None`: all documents are of one hand.
    root: Option<&'a Namespace>,
}

impl<'a> Tenancy<'a> {
    pub(in crate::policy) fn new(root: Option<&'a Namespace>) -> Self {
        Self { root }
    }

    /// Whether documents are of many hands.
    pub(super) fn is_many(self) -> bool {
        self.root.is_some()
    }

    /// The namespace, if its documents are for its own workloads only.
    pub(super) fn tenant(self, namespace: Option<&Namespace>) -> Option<&Namespace> {
        namespace.filter(|namespace| self.root.is_some_and(|root| root != *namespace))
    }

    /// Whether a document is for all, while others are not.
    pub(super) fn is_for_all(self, namespace: Option<&Namespace>) -> bool {
        self.root.is_some() && self.tenant(namespace).is_none()
    }

    /// For whom a rule in `namespace` is. What it exports can narrow that.
    pub(super) fn visibility(
        self,
        exports: &[ExportTo],
        namespace: Option<&Namespace>,
    ) -> Visibility {
        let exported = Visibility::new(exports, namespace);
        let Some(own) = self.tenant(namespace) else {
            return exported;
        };
        let own = own.as_ref();
        let only = exported.shows_to(Some(own)).then(|| own.into());
        Visibility::Namespaces(only.into_iter().collect())
    }

    /// Whether a document in `namespace` may count on one in `other`, and which of several it
    /// prefers: the least.
    pub(super) fn distance(
        self,
        namespace: Option<&Namespace>,
        other: Option<&Namespace>,
    ) -> Option<u8> {
        match self.root {
            None => Some(0),
            Some(_) if namespace == other => Some(0),
            Some(_) if self.is_for_all(other) => Some(1),
            Some(_) => None,
        }
    }

    /// Why a document in `namespace` may not name a file of the node, if it may not.
    pub(in crate::policy) fn refuse_file(
        self,
        namespace: Option<&Namespace>,
    ) -> Result<(), String> {
        match (self.tenant(namespace), self.root) {
            (Some(_), Some(root)) => Err(format!(
                "files of the node are for documents in namespace `{root}`; use `credentialName`"
            )),
            _ => Ok(()),
        }
    }

    /// Why a document in `namespace` may not have the Secret that it means by `reference`, if it
    /// may not.
    pub(super) fn refuse_secret(
        self,
        reference: &str,
        namespace: Option<&Namespace>,
    ) -> Result<(), String> {
        if self.root.is_none() {
            return Ok(());
        }
        match (reference.split_once('/'), namespace) {
            (Some((other, _)), Some(own)) if other != own.as_ref() => Err(format!(
                "in a cluster a document has the Secrets of its own namespace only, which is `{own}`"
            )),
            _ => Ok(()),
        }
    }
}
