//! From settings to what rustls works with.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;

use super::roots::SystemRoots;
use super::settings::{Identity, Roots, TlsSettings, TlsVersion};
use super::verify::{Check, Verifier};

pub(super) fn build(
    settings: &TlsSettings,
    system: &SystemRoots,
) -> Result<ClientConfig, TlsConfigError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let identity = match &settings.identity {
        Some(identity) => Some(certified(identity, &provider)?),
        None => None,
    };
    let verifier = verifier(settings, system, &provider)?;
    let versions = match settings.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TlsConfigError::Unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&settings.alpn);
    Ok(config)
}

fn verifier(
    settings: &TlsSettings,
    system: &SystemRoots,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsConfigError> {
    let algorithms = provider.signature_verification_algorithms;
    let with = |check| Arc::new(Verifier { check, algorithms });
    if settings.insecure_skip_verify {
        return Ok(with(Check::Nothing));
    }
    let roots = match &settings.roots {
        Roots::System if system.is_empty() => {
            return Err(TlsConfigError::NoSystemRoots {
                why: match system.unreadable() {
                    [] => String::new(),
                    unreadable => format!(" ({})", unreadable.join("; ")),
                },
            });
        }
        Roots::System => system.store(),
        Roots::Pem(pem) => Arc::new(roots(pem)?),
    };
    if settings.subject_alt_names.is_empty() {
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
        // It wants roots, and there are some.
        return match builder.build() {
            Ok(verifier) => Ok(verifier),
            Err(_) => Err(TlsConfigError::NoRoots),
        };
    }
    Ok(with(Check::Names {
        roots,
        names: settings.subject_alt_names.clone(),
    }))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsConfigError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(TlsConfigError::RootsPem)?;
        store
            .add(certificate)
            .map_err(|error| TlsConfigError::BadRoot {
                number: store.len() + 1,
                error,
            })?;
    }
    if store.is_empty() {
        return Err(TlsConfigError::NoRoots);
    }
    Ok(store)
}

fn certified(
    identity: &Identity,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsConfigError> {
    let chain = CertificateDer::pem_slice_iter(&identity.chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsConfigError::ChainPem)?;
    if chain.is_empty() {
        return Err(TlsConfigError::NoCertificate);
    }
    let pem = identity.key.expose_secret();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound if pem.contains("ENCRYPTED PRIVATE KEY") => {
            TlsConfigError::EncryptedKey
        }
        pem::Error::NoItemsFound => TlsConfigError::NoKey,
        error => TlsConfigError::KeyPem(error),
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsConfigError::KeyMismatch,
        rustls::Error::InvalidCertificate(error) => TlsConfigError::BadCertificate(error),
        error => TlsConfigError::BadKey(error),
    })
}

/// Why settings cannot be used. Keys are never part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// The client certificate is PEM, and no certificate.
    #[error("the client certificate cannot be parsed: {0}")]
    BadCertificate(rustls::CertificateError),
    /// The key is PEM, and no key that we can use.
    #[error("the private key cannot be used: {0}")]
    BadKey(rustls::Error),
    /// A CA certificate is PEM, and no certificate.
    #[error("CA certificate number {number} cannot be parsed: {error}")]
    BadRoot {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        error: rustls::Error,
    },
    /// A name that no certificate can have.
    #[error("`{0}` cannot be a server name (SNI)")]
    BadSni(String),
    /// The PEM of the client certificate is broken.
    #[error("the client certificate is not good PEM: {}", in_words(.0))]
    ChainPem(pem::Error),
    /// The key wants a password.
    #[error("the private key is encrypted; only keys without a password can be used")]
    EncryptedKey,
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the client certificate, the first of its chain")]
    KeyMismatch,
    /// The PEM of the key is broken.
    #[error("the private key is not good PEM: {}", in_words(.0))]
    KeyPem(pem::Error),
    /// No certificate to go with the key.
    #[error("the client certificate has no certificate in PEM form")]
    NoCertificate,
    /// No key to go with the certificate.
    #[error("there is no private key in PEM form: PKCS#8, PKCS#1 or SEC1 is expected")]
    NoKey,
    /// A CA file without a certificate.
    #[error("the CA certificates have no certificate in PEM form")]
    NoRoots,
    /// The system trusts nobody, so nobody could be trusted.
    #[error(
        "this system has no CA certificates{why}: install them (ca-certificates), point \
         SSL_CERT_FILE to them, or give the CA with caCertificates"
    )]
    NoSystemRoots {
        /// What could not be read, in parentheses.
        why: String,
    },
    /// The PEM of the CA certificates is broken.
    #[error("the CA certificates are not good PEM: {}", in_words(.0))]
    RootsPem(pem::Error),
    /// The TLS library does not take them.
    #[error("the settings cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// Which of the things that settings are made of something is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Material {
    /// The certificates of CAs.
    Roots,
    /// Our own certificate.
    Certificate,
    /// Its key.
    Key,
}

impl TlsConfigError {
    /// What it is that cannot be used, if it is one of these.
    pub fn material(&self) -> Option<Material> {
        match self {
            Self::BadRoot { .. } | Self::NoRoots | Self::RootsPem(_) => Some(Material::Roots),
            Self::BadCertificate(_) | Self::ChainPem(_) | Self::NoCertificate => {
                Some(Material::Certificate)
            }
            Self::BadKey(_)
            | Self::EncryptedKey
            | Self::KeyMismatch
            | Self::KeyPem(_)
            | Self::NoKey => Some(Material::Key),
            Self::BadSni(_) | Self::NoSystemRoots { .. } | Self::Unusable(_) => None,
        }
    }
}

/// What is wrong with PEM, without any of its bytes.
fn in_words(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no END line; the file may be cut off"
        }
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "the text of a section is not base64",
        pem::Error::NoItemsFound => "there is no section of the kind that is wanted",
        _ => "it cannot be parsed",
    }
}
