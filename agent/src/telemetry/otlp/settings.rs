//! Where spans go, as options and OpenTelemetry's environment variables say.

use std::fmt;
use std::io;
use std::path::Path;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::name::Host;
use crate::tls::{ClientTls, Roots, SystemRoots, TlsConfigError, TlsSettings};
use crate::trace::{Sampler, SamplerError};

/// What all signals have at a collector's base URL.
const PATH: &str = "v1/traces";

/// Where spans go, and which.
#[derive(Debug)]
pub struct Settings {
    pub(super) collector: Collector,
    pub(super) tls: Option<ClientTls>,
    /// Their values do not show.
    pub(super) headers: HeaderMap,
    pub(super) sampler: Sampler,
    pub(super) resource: Vec<(String, String)>,
}

/// Where a collector is.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) authority: HeaderValue,
    /// With the query; either may be a secret.
    pub(super) path: Uri,
    is_tls: bool,
}

impl fmt::Display for Collector {
    /// Without the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        let Self { host, port, .. } = self;
        match host {
            Host::Addr(addr) if addr.is_ipv6() => write!(f, "{scheme}://[{addr}]:{port}"),
            Host::Addr(addr) => write!(f, "{scheme}://{addr}:{port}"),
            Host::Name(name) => write!(f, "{scheme}://{name}:{port}"),
        }
    }
}

/// What cannot be used. Never quotes a header's value, nor an endpoint, which may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file with CA certificates.
    #[error("{variable}: cannot read {path}: {error}")]
    Certificate {
        /// Which variable named it.
        variable: &'static str,
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// An endpoint.
    #[error("{from} is no endpoint: {reason}; expected http://HOST[:PORT][/PATH], or https://")]
    Endpoint {
        /// The option or variable.
        from: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Headers to send.
    #[error("{variable}: entry {number} {reason}; expected NAME=VALUE,NAME=VALUE")]
    Header {
        /// Which variable.
        variable: &'static str,
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another protocol than ours.
    #[error("{variable} is `{protocol}`: spans are sent by http/protobuf only")]
    Protocol {
        /// Which variable.
        variable: &'static str,
        /// What it says.
        protocol: String,
    },
    /// Attributes of the resource.
    #[error("OTEL_RESOURCE_ATTRIBUTES: entry {0} is not KEY=VALUE, percent-encoded")]
    Resource(usize),
    /// A sampler.
    #[error("OTEL_TRACES_SAMPLER: {0}")]
    Sampler(#[from] SamplerError),
    /// TLS.
    #[error("TLS to the collector is not possible: {0}")]
    Tls(#[from] TlsConfigError),
    /// A variable that is no text.
    #[error("{0} is not UTF-8")]
    Unreadable(&'static str),
}

/// What an environment variable says, unless it is not set, or no text.
type Variable = Result<String, std::env::VarError>;

/// Reads variables. An empty one is as good as none, as OpenTelemetry has it.
struct Environment<F>(F);

impl<F: Fn(&str) -> Variable> Environment<F> {
    fn get(&self, name: &'static str) -> Result<Option<String>, SettingsError> {
        match (self.0)(name) {
            Ok(value) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(SettingsError::Unreadable(name)),
        }
    }

    /// The first of these that is set.
    fn first<const N: usize>(
        &self,
        names: [&'static str; N],
    ) -> Result<Option<(&'static str, String)>, SettingsError> {
        for name in names {
            if let Some(value) = self.get(name)? {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }
}

impl Settings {
    /// What the option `--otlp-endpoint` and the environment say; `None` if spans go nowhere. With
    /// `by_environment`, the environment alone may send them somewhere.
    ///
    /// # Errors
    /// Whatever cannot be used, if spans go anywhere.
    pub fn read(
        option: Option<&str>,
        by_environment: bool,
        environment: impl Fn(&str) -> Variable,
    ) -> Result<Option<Self>, SettingsError> {
        let environment = Environment(environment);
        let (from, url, is_base) = match option {
            Some(url) => ("--otlp-endpoint", url.to_owned(), true),
            None if !by_environment => return Ok(None),
            None => match endpoint_of(&environment)? {
                Some(endpoint) => endpoint,
                None => return Ok(None),
            },
        };
        let collector = Collector::parse(&url, is_base)
            .map_err(|reason| SettingsError::Endpoint { from, reason })?;
        let tls = if collector.is_tls {
            Some(tls(&environment)?)
        } else {
            None
        };
        let sampler = match environment.get("OTEL_TRACES_SAMPLER")? {
            Some(name) => {
                let argument = environment.get("OTEL_TRACES_SAMPLER_ARG")?;
                Sampler::parse(&name, argument.as_deref())?
            }
            None => Sampler::default(),
        };
        Ok(Some(Self {
            collector,
            tls,
            headers: headers(&environment)?,
            sampler,
            resource: resource(&environment)?,
        }))
    }

    /// Where spans go, without what may be secret.
    pub fn collector(&self) -> String {
        self.collector.to_string()
    }
}

/// The endpoint that the environment names: by which variable, and whether it is a base URL.
fn endpoint_of<F: Fn(&str) -> Variable>(
    environment: &Environment<F>,
) -> Result<Option<(&'static str, String, bool)>, SettingsError> {
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let is_true = |value: &String| value.eq_ignore_ascii_case("true");
    let disabled = environment.get("OTEL_SDK_DISABLED")?;
    let exporter = environment.get("OTEL_TRACES_EXPORTER")?;
    if disabled.as_ref().is_some_and(is_true) || exporter.as_deref() == Some("none") {
        return Ok(None);
    }
    let Some((from, url)) = environment.first([TRACES, "OTEL_EXPORTER_OTLP_ENDPOINT"])? else {
        return Ok(None);
    };
    let protocol = environment.first([
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ])?;
    match protocol {
        Some((variable, protocol)) if protocol != "http/protobuf" => {
            Err(SettingsError::Protocol { variable, protocol })
        }
        _ => Ok(Some((from, url, from != TRACES))),
    }
}

impl Collector {
    fn parse(text: &str, is_base: bool) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "it is no URL")?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err("its scheme is not http or https"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has credentials, which belong into OTEL_EXPORTER_OTLP_HEADERS");
        }
        if url.fragment().is_some() || (is_base && url.query().is_some()) {
            return Err("it has more than host, port and path");
        }
        let host: Host = url
            .host_str()
            .and_then(|host| host.parse().ok())
            .ok_or("it has no host")?;
        let port = url
            .port_or_known_default()
            .filter(|port| *port != 0)
            .ok_or("it has no port")?;
        let authority = HeaderValue::from_str(url.authority()).map_err(|_| "it has no host")?;
        let mut path = url.path().to_owned();
        if is_base {
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(PATH);
        }
        if let Some(query) = url.query() {
            path.push('?');
            path.push_str(query);
        }
        let path = path.parse().map_err(|_| "its path cannot be asked for")?;
        Ok(Self {
            host,
            port,
            authority,
            path,
            is_tls,
        })
    }
}

fn tls<F: Fn(&str) -> Variable>(environment: &Environment<F>) -> Result<ClientTls, SettingsError> {
    let certificate = environment.first([
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    ])?;
    let (roots, system) = match certificate {
        None => (Roots::System, SystemRoots::load()),
        Some((variable, path)) => {
            let pem =
                std::fs::read(Path::new(&path)).map_err(|error| SettingsError::Certificate {
                    variable,
                    path,
                    error,
                })?;
            (Roots::Pem(pem), SystemRoots::none())
        }
    };
    let settings = TlsSettings {
        roots,
        alpn: vec![b"http/1.1".to_vec()],
        ..TlsSettings::default()
    };
    Ok(ClientTls::new(&settings, &system)?)
}

/// The fields that go with each message.
fn headers<F: Fn(&str) -> Variable>(
    environment: &Environment<F>,
) -> Result<HeaderMap, SettingsError> {
    let mut headers = HeaderMap::new();
    let set = environment.first([
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "OTEL_EXPORTER_OTLP_HEADERS",
    ])?;
    let Some((variable, text)) = set else {
        return Ok(headers);
    };
    for (index, entry) in entries(&text) {
        let wrong = |reason| SettingsError::Header {
            variable,
            number: index + 1,
            reason,
        };
        let (name, value) = entry.ok_or_else(|| wrong("has no name, or is no text"))?;
        let name = HeaderName::try_from(name).map_err(|_| wrong("has no name of a header"))?;
        if [
            CONNECTION,
            CONTENT_LENGTH,
            CONTENT_TYPE,
            HOST,
            TRANSFER_ENCODING,
        ]
        .contains(&name)
        {
            return Err(wrong("is a header that cannot be set"));
        }
        let value = HeaderValue::try_from(value);
        let mut value = value.map_err(|_| wrong("has a value that cannot be sent"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// What is told of the agent with all spans.
fn resource<F: Fn(&str) -> Variable>(
    environment: &Environment<F>,
) -> Result<Vec<(String, String)>, SettingsError> {
    const SERVICE: &str = "service.name";
    let mut attributes = vec![
        (SERVICE.to_owned(), "underpass".to_owned()),
        (
            "service.version".to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
    ];
    let mut set = |key: String, value: String| {
        attributes.retain(|(known, _)| *known != key);
        attributes.push((key, value));
    };
    if let Some(text) = environment.get("OTEL_RESOURCE_ATTRIBUTES")? {
        for (index, entry) in entries(&text) {
            let (key, value) = entry.ok_or(SettingsError::Resource(index + 1))?;
            set(key, value);
        }
    }
    if let Some(name) = environment.get("OTEL_SERVICE_NAME")? {
        set(SERVICE.to_owned(), name);
    }
    Ok(attributes)
}

/// The entries of a list `KEY=VALUE,KEY=VALUE`, percent-encoded, as W3C Baggage has it. `None`: it is
/// none.
fn entries(text: &str) -> impl Iterator<Item = (usize, Option<(String, String)>)> {
    let entries = text.split(',').map(str::trim).enumerate();
    // One that is empty, such as after the last comma, is none (W3C Baggage section 3.2.1.1).
    let entries = entries.filter(|(_, entry)| !entry.is_empty());
    entries.map(|(index, entry)| {
        let decoded = |part: &str| {
            let part = percent_decode_str(part.trim()).decode_utf8().ok()?;
            Some(part.into_owned())
        };
        let pair = entry.split_once('=').and_then(|(key, value)| {
            let key = decoded(key).filter(|key| !key.is_empty())?;
            Some((key, decoded(value)?))
        });
        (index, pair)
    })
}

#[cfg(test)]
mod tests;
