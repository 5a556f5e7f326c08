//! Authorities, certificates and servers for tests.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::time::{Duration, Instant};
use tokio_rustls::TlsAcceptor;

use super::{ClientTls, Identity, Roots, SystemRoots, TlsSettings};

/// A certificate authority of our own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for these names and addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Identity {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        self.issue_as(&CertificateParams::new(names).unwrap())
    }

    pub(crate) fn issue_as(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: certificate.pem().into_bytes(),
            key: key.serialize_pem().into(),
        }
    }

    /// Trusts this authority and nobody else.
    pub(crate) fn settings(&self) -> TlsSettings {
        TlsSettings {
            roots: Roots::Pem(self.pem().into_bytes()),
            ..TlsSettings::default()
        }
    }

    fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add(self.certificate.der().clone()).unwrap();
        store
    }
}

/// A client without roots of the system.
pub(crate) fn client(settings: &TlsSettings) -> ClientTls {
    ClientTls::new(settings, &SystemRoots::none()).unwrap()
}

/// A server with this certificate; with `clients`, it demands one of theirs.
pub(crate) fn server(identity: &Identity, clients: Option<&Authority>) -> TlsAcceptor {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    TlsAcceptor::from(Arc::new(server_config(identity, clients, &versions)))
}

pub(crate) fn server_config(
    identity: &Identity,
    clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    use secrecy::ExposeSecret;

    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_slice_iter(&identity.chain)
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.expose_secret().as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(authority.store()), provider)
                .build()
                .unwrap(),
        ),
    };
    builder.with_single_cert(chain, key).unwrap()
}

/// Long enough for everything that ends by itself.
pub(crate) fn patience() -> Instant {
    Instant::now() + Duration::from_secs(30)
}
