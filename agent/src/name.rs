//! Names and addresses of connections, each checked once where it enters.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A checked DNS host name: lower case, without a trailing dot, at most 253 bytes, labels of at
/// most 63 (RFC 1035 section 2.3.4, RFC 1123 section 2.1; underscores are let through, as
/// resolvers do). It never looks like an IP address, and nothing in it can break a request line.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(Box<str>);

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name stands below `domain` (`www.example.com` below `example.com`), itself
    /// not included.
    pub fn is_below(&self, domain: &HostName) -> bool {
        self.0
            .strip_suffix(domain.as_str())
            .is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for HostName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let reject = |reason| {
            // A hostile name must not flood a log line.
            let shown: String = text
                .chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect();
            Err(InvalidName {
                name: shown,
                reason,
            })
        };
        if name.is_empty() {
            return reject("it is empty");
        }
        if name.len() > 253 {
            return reject("it is longer than 253 characters");
        }
        for label in name.split('.') {
            if label.is_empty() {
                return reject("a label between dots is empty");
            }
            if label.len() > 63 {
                return reject("a label is longer than 63 characters");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return reject("a label begins or ends with a hyphen");
            }
            if !label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            {
                return reject("only letters, digits, hyphens and underscores may stand in it");
            }
        }
        // `inet_aton` takes 127.1, 0x7f.1 and 2130706433 for addresses; a name whose last label
        // is a number would be one for some proxy (URL standard, "ends in a number").
        let last = name.rsplit('.').next().unwrap_or(name);
        let digits = last.strip_prefix("0x").or(last.strip_prefix("0X"));
        if last.bytes().all(|b| b.is_ascii_digit())
            || digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return reject("it ends in a number, so it could be taken for an address");
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl TryFrom<String> for HostName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a host name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{name}` is not a host name: {reason}")]
pub struct InvalidName {
    name: String,
    reason: &'static str,
}

/// A host as somebody asked for it: by name or by address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// An address; never IPv4-mapped IPv6.
    Addr(IpAddr),
    /// A name, not resolved.
    Name(HostName),
}

impl Host {
    /// The name, if it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Addr(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl FromStr for Host {
    type Err = InvalidName;

    /// Takes a name, an IPv4 address, or an IPv6 address with or without brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(addr) = bare.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
            return Ok(Self::Addr(IpAddr::V6(addr).to_canonical()));
        }
        match text.parse::<IpAddr>() {
            Ok(addr) => Ok(Self::Addr(addr.to_canonical())),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(IpAddr::V6(addr)) => write!(f, "[{addr}]"),
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// The host and port a tunnel is asked for. Its text is the authority form of RFC 9112 section
/// 3.2.3, IPv6 addresses in brackets.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// Name or address.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

impl FromStr for Target {
    type Err = String;

    /// `HOST:PORT` or `IP:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or("expected HOST:PORT or IP:PORT")?;
        let host: Host = host.parse().map_err(|error| format!("{error}"))?;
        if matches!(host, Host::Addr(IpAddr::V6(_))) && !text.starts_with('[') {
            return Err("write an IPv6 address in brackets: [2001:db8::1]:443".to_owned());
        }
        let port: u16 = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("expected a port from 1 to 65535 behind the last colon")?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The address and port that a workload called `connect` with; never IPv4-mapped IPv6.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OriginalDst(pub SocketAddr);

impl OriginalDst {
    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// The port.
    pub fn port(self) -> u16 {
        self.0.port()
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<OriginalDst> for Target {
    fn from(dst: OriginalDst) -> Self {
        Self {
            host: Host::Addr(dst.ip().to_canonical()),
            port: dst.port(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        let name: HostName = "WWW.Example.COM.".parse().unwrap();
        assert_eq!(name.as_str(), "www.example.com");
        assert!(name.is_below(&"example.com".parse().unwrap()));
        assert!(!name.is_below(&"www.example.com".parse().unwrap()));
        assert!(!name.is_below(&"ample.com".parse().unwrap()));
    }

    #[test]
    fn what_could_break_a_request_line_is_no_name() {
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a\r\nX: y",
            "-a.example",
            "a-.example",
            "1.2.3.4",
            "127.1",
            "0x7f.0x1",
            "ex%41mple",
            "naïve.example",
            "[::1]",
            "a:80",
            "host/",
            "*.example.com",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?} was accepted");
        }
        assert!("a".repeat(64).parse::<HostName>().is_err());
        assert!(
            vec!["a".repeat(63); 4]
                .join(".")
                .parse::<HostName>()
                .is_err()
        );
    }

    #[test]
    fn hosts_are_shown_as_an_authority_wants_them() {
        for (text, shown) in [
            ("example.com", "example.com:443"),
            ("203.0.113.7", "203.0.113.7:443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("::ffff:203.0.113.7", "203.0.113.7:443"),
        ] {
            let target = Target {
                host: text.parse().unwrap(),
                port: 443,
            };
            assert_eq!(target.to_string(), shown);
        }
    }
}
