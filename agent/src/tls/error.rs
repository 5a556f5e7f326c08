//! What can go wrong with TLS, in words for people and in words for programs.

use std::fmt::{self, Write};
use std::io;
use std::time::Duration;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible,
};

use super::verify::NoneOfTheNames;

/// How many names of a certificate a message shows, and how much of each.
const MAX_NAMES: usize = 6;
const MAX_NAME: usize = 100;

/// Why TLS with a peer failed. Its text says what the peer, "it", did, and what to do.
#[derive(Debug)]
pub struct TlsError(Box<Failed>);

#[derive(Debug)]
struct Failed {
    failure: TlsFailure,
    text: String,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TlsFailure {
    /// The peer said what it does not like.
    Alert(AlertDescription),
    /// Its certificate cannot be used, for another reason than those with a name here.
    BadCertificate,
    /// It closed the connection during the handshake.
    Closed,
    /// Its certificate, or one that leads to it, is no longer valid.
    Expired,
    /// It has no version or algorithm in common with us.
    Incompatible,
    /// The connection broke during the handshake.
    Io,
    /// What it sends is not TLS.
    NotTls,
    /// Its certificate, or one that leads to it, is not valid yet.
    NotYetValid,
    /// It broke the rules.
    Protocol,
    /// The deadline passed.
    Timeout,
    /// It closed the connection without close_notify.
    Truncated,
    /// Nobody we trust vouches for its certificate.
    UnknownIssuer,
    /// Its certificate is somebody else's.
    WrongName,
}

impl TlsError {
    /// What went wrong.
    pub fn failure(&self) -> TlsFailure {
        self.0.failure
    }

    /// The failure as a metric label: one word out of a fixed list.
    pub fn reason(&self) -> &'static str {
        match self.0.failure {
            TlsFailure::Alert(alert) => alert_reason(alert),
            TlsFailure::BadCertificate => "tls_bad_certificate",
            TlsFailure::Closed => "tls_closed",
            TlsFailure::Expired => "tls_expired",
            TlsFailure::Incompatible => "tls_incompatible",
            TlsFailure::Io => "tls_broken",
            TlsFailure::NotTls => "tls_not_spoken",
            TlsFailure::NotYetValid => "tls_not_yet_valid",
            TlsFailure::Protocol => "tls_protocol",
            TlsFailure::Timeout => "tls_timeout",
            TlsFailure::Truncated => "tls_truncated",
            TlsFailure::UnknownIssuer => "tls_unknown_issuer",
            TlsFailure::WrongName => "tls_wrong_name",
        }
    }

    pub(super) fn timeout() -> Self {
        let text = "it did not finish the handshake in time: does this port speak TLS?";
        Self::new(TlsFailure::Timeout, text.to_owned())
    }

    pub(super) fn invalid_name(name: &str) -> Self {
        let text = format!("`{name}` cannot stand in a certificate; set another name (sni)");
        Self::new(TlsFailure::WrongName, text)
    }

    /// What ended a handshake.
    pub(super) fn handshake(error: &io::Error, expectation: &Expectation<'_>) -> Self {
        match inner(error) {
            Some(error) => Self::classify(error, Some(expectation)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::new(
                TlsFailure::Closed,
                "it closed the connection during the handshake: does this port speak TLS?".into(),
            ),
            None => Self::new(
                TlsFailure::Io,
                format!("the connection broke during the handshake: {error}"),
            ),
        }
    }

    /// Says better what ended the reading of an established stream; failures of the stream below
    /// stay what they are.
    pub(super) fn explain(error: io::Error) -> io::Error {
        let kind = error.kind();
        if let Some(error) = inner(&error) {
            return io::Error::new(kind, Self::classify(error, None));
        }
        // The stream below has no such error of its own but if it is TLS, and said so already.
        let is_ours = matches!(error.get_ref(), Some(inner) if inner.is::<Self>());
        if kind == io::ErrorKind::UnexpectedEof && !is_ours {
            let text = "it closed the connection without close_notify, so data may be missing";
            return io::Error::new(kind, Self::new(TlsFailure::Truncated, text.to_owned()));
        }
        error
    }

    fn new(failure: TlsFailure, text: String) -> Self {
        Self(Box::new(Failed { failure, text }))
    }

    fn classify(error: &Error, handshake: Option<&Expectation<'_>>) -> Self {
        match (error, handshake) {
            (Error::InvalidCertificate(error), Some(expectation)) => {
                Self::certificate(error, expectation)
            }
            (Error::NoCertificatesPresented, _) => Self::new(
                TlsFailure::BadCertificate,
                "it presents no certificate".to_owned(),
            ),
            (Error::AlertReceived(alert), _) => Self::alert(*alert, handshake),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), Some(_)) => Self::new(
                TlsFailure::NotTls,
                "it does not speak TLS on this port: what it answers is something else".to_owned(),
            ),
            (Error::PeerIncompatible(why), _) => Self::new(
                TlsFailure::Incompatible,
                match why {
                    PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                    | PeerIncompatible::ServerDoesNotSupportTls12Or13
                    | PeerIncompatible::SupportedVersionsExtensionRequired => {
                        "it speaks only versions of TLS below the lowest that is allowed".to_owned()
                    }
                    _ => format!("it has nothing in common with us: {error}"),
                },
            ),
            _ => Self::new(
                TlsFailure::Protocol,
                format!("it does not follow the rules of TLS: {error}"),
            ),
        }
    }

    fn certificate(error: &CertificateError, expectation: &Expectation<'_>) -> Self {
        let (failure, text) = match error {
            CertificateError::Expired => (
                TlsFailure::Expired,
                "its certificate, or one that leads to it, has expired".to_owned(),
            ),
            CertificateError::ExpiredContext { time, not_after } => (
                TlsFailure::Expired,
                format!(
                    "its certificate, or one that leads to it, has expired {} ago",
                    distance(*not_after, *time)
                ),
            ),
            CertificateError::NotValidYet => (
                TlsFailure::NotYetValid,
                "its certificate, or one that leads to it, is not valid yet: is a clock wrong?"
                    .to_owned(),
            ),
            CertificateError::NotValidYetContext { time, not_before } => (
                TlsFailure::NotYetValid,
                format!(
                    "its certificate, or one that leads to it, will be valid in {}: is a clock \
                     wrong?",
                    distance(*time, *not_before)
                ),
            ),
            CertificateError::NotValidForName => (
                TlsFailure::WrongName,
                format!("its certificate is not for `{}`", expectation.name()),
            ),
            CertificateError::NotValidForNameContext { presented, .. } => (
                TlsFailure::WrongName,
                format!(
                    "its certificate is not for `{}`, {}; if it is the right one, say so with sni \
                     or subjectAltNames",
                    expectation.name(),
                    presented_names(presented)
                ),
            ),
            CertificateError::UnknownIssuer => (
                TlsFailure::UnknownIssuer,
                format!("its certificate is issued by none of {}", expectation.roots),
            ),
            CertificateError::Other(OtherError(other)) => {
                match other.downcast_ref::<NoneOfTheNames>() {
                    Some(error) => (TlsFailure::WrongName, none_of_the_names(error)),
                    None => (
                        TlsFailure::BadCertificate,
                        format!("its certificate cannot be used: {other}"),
                    ),
                }
            }
            error => (
                TlsFailure::BadCertificate,
                format!("its certificate cannot be used: {error}"),
            ),
        };
        Self::new(failure, text)
    }

    fn alert(alert: AlertDescription, handshake: Option<&Expectation<'_>>) -> Self {
        let mut text = format!("it sends the alert `{}`", alert_name(alert));
        let hint = match alert {
            AlertDescription::CertificateRequired => ": it wants a client certificate",
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied => {
                ": it does not accept our client certificate, or the lack of one"
            }
            AlertDescription::HandshakeFailure => {
                ": it has nothing in common with us, or wants a client certificate"
            }
            AlertDescription::ProtocolVersion => ": it speaks no version of TLS that is allowed",
            AlertDescription::NoApplicationProtocol => {
                ": it speaks none of the protocols offered (ALPN)"
            }
            _ => "",
        };
        text.push_str(hint);
        if let (AlertDescription::UnrecognisedName, Some(expectation)) = (alert, handshake) {
            // Writing to a string does not fail.
            let _ = write!(text, ": it does not know `{}`", expectation.name());
        }
        Self::new(TlsFailure::Alert(alert), text)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS failed: {}", self.0.text)
    }
}

impl std::error::Error for TlsError {}

/// What a handshake was to prove.
pub(super) struct Expectation<'a> {
    pub(super) name: &'a ServerName<'a>,
    /// Whom we trust, in words.
    pub(super) roots: &'static str,
}

impl Expectation<'_> {
    fn name(&self) -> String {
        self.name.to_str().into_owned()
    }
}

fn inner(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn none_of_the_names(error: &NoneOfTheNames) -> String {
    let mut text = "its certificate is for none of the configured subjectAltNames (".to_owned();
    list(&mut text, &error.wanted);
    text.push_str("), ");
    text.push_str(&presented_names(&error.presented));
    text
}

fn presented_names(names: &[String]) -> String {
    if names.is_empty() {
        return "and names nothing else (it has no subjectAltName)".to_owned();
    }
    let mut text = "but for ".to_owned();
    list(&mut text, names);
    text
}

/// Names as a peer wrote them: not more than anybody reads, and printable.
fn list(text: &mut String, names: &[String]) {
    for (index, name) in names.iter().take(MAX_NAMES).enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        let plain = plain(name).chars().take(MAX_NAME);
        text.extend(plain.flat_map(char::escape_default));
    }
    if names.len() > MAX_NAMES {
        // Writing to a string does not fail.
        let _ = write!(text, " and {} more", names.len() - MAX_NAMES);
    }
}

/// The name itself, which rustls gives together with its kind: `DnsName("a.example")`.
fn plain(name: &str) -> &str {
    let value = ["DnsName(", "IpAddress(", "UniformResourceIdentifier("]
        .iter()
        .find_map(|kind| name.strip_prefix(kind)?.strip_suffix(')'));
    value.map_or(name, |value| value.trim_matches('"'))
}

fn distance(from: UnixTime, to: UnixTime) -> String {
    let apart = Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()));
    let (count, unit) = match apart.as_secs() {
        seconds @ 0..=119 => (seconds, "seconds"),
        seconds @ 120..=7_199 => (seconds / 60, "minutes"),
        seconds @ 7_200..=172_799 => (seconds / 3_600, "hours"),
        seconds => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

/// The name of an alert as RFC 8446 section 6.2 has it.
fn alert_name(alert: AlertDescription) -> &'static str {
    alert_reason(alert)
        .strip_prefix("tls_alert_")
        .unwrap_or_default()
}

fn alert_reason(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::AccessDenied => "tls_alert_access_denied",
        AlertDescription::BadCertificate => "tls_alert_bad_certificate",
        AlertDescription::CertificateExpired => "tls_alert_certificate_expired",
        AlertDescription::CertificateRequired => "tls_alert_certificate_required",
        AlertDescription::CertificateRevoked => "tls_alert_certificate_revoked",
        AlertDescription::CertificateUnknown => "tls_alert_certificate_unknown",
        AlertDescription::DecodeError => "tls_alert_decode_error",
        AlertDescription::DecryptError => "tls_alert_decrypt_error",
        AlertDescription::HandshakeFailure => "tls_alert_handshake_failure",
        AlertDescription::IllegalParameter => "tls_alert_illegal_parameter",
        AlertDescription::InternalError => "tls_alert_internal_error",
        AlertDescription::NoApplicationProtocol => "tls_alert_no_application_protocol",
        AlertDescription::ProtocolVersion => "tls_alert_protocol_version",
        AlertDescription::UnexpectedMessage => "tls_alert_unexpected_message",
        AlertDescription::UnknownCA => "tls_alert_unknown_ca",
        AlertDescription::UnrecognisedName => "tls_alert_unrecognized_name",
        AlertDescription::UnsupportedCertificate => "tls_alert_unsupported_certificate",
        AlertDescription::UserCanceled => "tls_alert_user_canceled",
        _ => "tls_alert_other",
    }
}
