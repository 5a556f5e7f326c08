//! TLS as a client speaks it: to proxies, and inside a tunnel to the target.
//!
//! [`TlsSettings`] are plain data; [`ClientTls`] is made of them once, without I/O, and opens
//! connections. [`TlsStream`] ends each direction by itself, as TCP does.

mod config;
mod error;
mod roots;
mod settings;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::name::Host;
use error::Expectation;

pub use config::{Material, TlsConfigError};
pub use error::{TlsError, TlsFailure};
pub use roots::SystemRoots;
pub use settings::{Identity, Roots, TlsSettings, TlsVersion};
pub use stream::TlsStream;

/// Opens TLS connections, all by the same settings. Share it: it remembers sessions, and a later
/// connection to the same name takes one up again.
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// Stands in for the name connected to.
    name: Option<ServerName<'static>>,
    settings: TlsSettings,
}

impl ClientTls {
    /// Makes ready what `settings` describe.
    ///
    /// # Errors
    /// Certificates and keys that cannot be used or do not belong together, and the lack of
    /// anybody to trust.
    pub fn new(settings: &TlsSettings, system: &SystemRoots) -> Result<Self, TlsConfigError> {
        let name = match &settings.sni {
            None => None,
            Some(sni) => match ServerName::try_from(sni.as_str().to_owned()) {
                Ok(name) => Some(name),
                Err(_) => return Err(TlsConfigError::BadSni(sni.to_string())),
            },
        };
        Ok(Self {
            config: Arc::new(config::build(settings, system)?),
            name,
            settings: settings.clone(),
        })
    }

    /// The same, but offering these protocols (ALPN, RFC 7301). What is remembered of sessions is
    /// shared.
    #[must_use]
    pub fn offering(&self, protocols: &[&[u8]]) -> Self {
        let alpn: Vec<Vec<u8>> = protocols.iter().map(|name| name.to_vec()).collect();
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols.clone_from(&alpn);
        let mut settings = self.settings.clone();
        settings.alpn = alpn;
        Self {
            config: Arc::new(config),
            name: self.name.clone(),
            settings,
        }
    }

    /// What it was made of.
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// Shakes hands over `stream` with the server that was reached as `host`, until `deadline`.
    /// To an address no name is sent; its certificate has to be for the address.
    ///
    /// A server that wants a client certificate may say so only afterwards (TLS 1.3): the first
    /// read then fails, with a [`TlsError`] inside its error.
    ///
    /// # Errors
    /// See [`TlsFailure`]. The peer has been told why, where TLS has an alert for it, and `stream`
    /// is closed.
    pub async fn connect<S>(
        &self,
        stream: S,
        host: &Host,
        deadline: Instant,
    ) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match (&self.name, host) {
            (Some(name), _) => name.clone(),
            (None, Host::Addr(addr)) => ServerName::IpAddress((*addr).into()),
            (None, Host::Name(name)) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|_| TlsError::invalid_name(name.as_str()))?,
        };
        let connector = TlsConnector::from(Arc::clone(&self.config));
        // On the heap: the state of a handshake is large, and short-lived.
        let shaking = Box::pin(connector.connect(name.clone(), stream));
        match timeout_at(deadline, shaking).await {
            Ok(Ok(stream)) => Ok(TlsStream::new(stream)),
            Ok(Err(error)) => {
                let expectation = Expectation {
                    name: &name,
                    roots: match self.settings.roots {
                        Roots::System => {
                            "the CAs that this system trusts: give its CA with caCertificates"
                        }
                        Roots::Pem(_) => "the CAs configured for it",
                    },
                };
                Err(TlsError::handshake(&error, &expectation))
            }
            Err(_) => Err(TlsError::timeout()),
        }
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(&self.settings).finish()
    }
}
