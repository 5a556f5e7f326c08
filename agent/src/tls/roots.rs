//! The certificate authorities of the system.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_native_certs::CertificateResult;

/// How many of what could not be read is kept.
const MAX_UNREADABLE: usize = 8;

/// The certificate authorities that the system trusts. Clones share them.
#[derive(Clone, Debug)]
pub struct SystemRoots {
    store: Arc<RootCertStore>,
    unreadable: Arc<[String]>,
}

impl SystemRoots {
    /// Reads them from `SSL_CERT_FILE` and `SSL_CERT_DIR` if either is set, else from where the
    /// distribution keeps them. This blocks, for some milliseconds; call it once and clone.
    ///
    /// It does not fail: settings that need them do, when there is none.
    pub fn load() -> Self {
        rustls_native_certs::load_native_certs().into()
    }

    /// None at all.
    pub fn none() -> Self {
        CertificateResult::default().into()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// What could not be read, and why; the first few.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    pub(super) fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }
}

impl From<CertificateResult> for SystemRoots {
    fn from(found: CertificateResult) -> Self {
        let mut store = RootCertStore::empty();
        let (_, ignored) = store.add_parsable_certificates(found.certs);
        let mut unreadable: Vec<String> = found
            .errors
            .iter()
            .take(MAX_UNREADABLE)
            .map(ToString::to_string)
            .collect();
        if ignored > 0 {
            unreadable.push(format!("{ignored} certificates that cannot be parsed"));
        }
        Self {
            store: Arc::new(store),
            unreadable: unreadable.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_is_used() {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("ca.pem");
        std::fs::write(&path, Authority::new("a root").pem()).unwrap();
        let missing = Path::new("/nowhere/certs");
        let found = rustls_native_certs::load_certs_from_paths(Some(&path), Some(missing));
        let roots = SystemRoots::from(found);
        assert_eq!((roots.len(), roots.unreadable().len()), (1, 1));
        let told = &roots.unreadable()[0];
        assert!(told.contains("/nowhere/certs"), "{told}");
        assert!(SystemRoots::none().is_empty());
    }
}
