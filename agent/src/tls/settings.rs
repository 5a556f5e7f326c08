//! TLS as policy asks for it.

use std::fmt;
use std::hash::{Hash, Hasher};

use secrecy::{ExposeSecret, SecretString};

use crate::name::HostName;

/// What a connection by TLS is to be: plain data, of which [`super::ClientTls`] is made. Equal
/// settings may share one, and with it the sessions to resume.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct TlsSettings {
    /// The name that is sent (SNI, RFC 6066 section 3) and that the certificate has to be for;
    /// without it, the name connected to.
    pub sni: Option<HostName>,
    /// Who may vouch for the server.
    pub roots: Roots,
    /// Who we are to a server that asks (mutual TLS).
    pub identity: Option<Identity>,
    /// DNS names, URIs (SPIFFE) and addresses, one of which the certificate must have; they stand
    /// in for the check of the name, as Istio's `subjectAltNames` do. A name matches a wildcard of
    /// the certificate, and `*.example.com` here matches that very name in the certificate.
    pub subject_alt_names: Vec<String>,
    /// Takes any certificate: neither issuer nor time nor name is checked, `subject_alt_names`
    /// included. That the server has the certificate's key is checked still.
    pub insecure_skip_verify: bool,
    /// The lowest version that is spoken.
    pub min_version: TlsVersion,
    /// Protocols to offer, best first (ALPN, RFC 7301); none, no offer.
    pub alpn: Vec<Vec<u8>>,
}

/// Certificate authorities that are trusted.
#[derive(Clone, Default, Eq, Hash, PartialEq)]
pub enum Roots {
    /// Those of the system, see [`super::SystemRoots`].
    #[default]
    System,
    /// These only: certificates in PEM form.
    Pem(Vec<u8>),
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::Pem(pem) => write!(f, "Pem({} bytes)", pem.len()),
        }
    }
}

/// A certificate and its key. The key never shows in `Debug`.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, followed by those that lead to its authority, in PEM form.
    pub chain: Vec<u8>,
    /// The key in PEM form: PKCS#8, PKCS#1 (RSA) or SEC1 (EC), not encrypted.
    pub key: SecretString,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.expose_secret() == other.key.expose_secret()
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    /// Of the chain alone: another key has another certificate.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.chain.hash(state);
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} bytes of certificates)", self.chain.len())
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}
