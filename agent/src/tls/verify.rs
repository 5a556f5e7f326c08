//! Checks of a server's certificate other than by its name.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

/// How a certificate is checked, if not as a browser does. The signatures of the handshake are
/// always checked.
#[derive(Debug)]
pub(super) enum Check {
    /// Not at all.
    Nothing,
    /// Issuer and time as usual, and one of these names instead of the one connected to.
    Names {
        roots: Arc<RootCertStore>,
        names: Vec<String>,
    },
}

/// A [`Check`] with the algorithms it may use.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) check: Check,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Check::Names { roots, names } = &self.check {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
            verify_one_of(&certificate, end_entity, names)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_one_of(
    certificate: &ParsedCertificate<'_>,
    der: &CertificateDer<'_>,
    wanted: &[String],
) -> Result<(), Error> {
    let mut presented = Vec::new();
    for name in wanted {
        // Names and addresses, by the rules for them (RFC 6125 section 6.4).
        if let Ok(name) = ServerName::try_from(name.as_str()) {
            match verify_server_name(certificate, &name) {
                Ok(()) => return Ok(()),
                Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                    presented: names,
                    ..
                })) => presented = names,
                Err(_) => {}
            }
        }
    }
    let parsed = EndEntityCert::try_from(der)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    // URIs byte by byte; of DNS names, wildcards that are asked for as they stand.
    let is_uri = |uri: &str| wanted.iter().any(|name| name == uri);
    let is_wildcard = |dns: &str| {
        dns.starts_with('*') && wanted.iter().any(|name| name.eq_ignore_ascii_case(dns))
    };
    if parsed.valid_uri_names().any(is_uri) || parsed.valid_dns_names().any(is_wildcard) {
        return Ok(());
    }
    if presented.is_empty() {
        let names = parsed.valid_dns_names().chain(parsed.valid_uri_names());
        presented = names.map(ToOwned::to_owned).collect();
    }
    let error = NoneOfTheNames {
        wanted: wanted.to_vec(),
        presented,
    };
    Err(CertificateError::Other(OtherError(Arc::new(error))).into())
}

/// A certificate without any of the configured names.
#[derive(Debug)]
pub(super) struct NoneOfTheNames {
    pub(super) wanted: Vec<String>,
    pub(super) presented: Vec<String>,
}

impl fmt::Display for NoneOfTheNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the certificate has none of the subjectAltNames")
    }
}

impl std::error::Error for NoneOfTheNames {}
