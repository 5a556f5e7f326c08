//! How a rule is written: `HOST[:PORT]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::name::{Host, HostName, Target};

/// Hosts and ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pattern {
    pub(super) host: HostPattern,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum HostPattern {
    Any,
    Below(HostName),
    Name(HostName),
    Net(IpNet),
}

impl Pattern {
    pub(super) const fn any_host(port: u16) -> Self {
        Self {
            host: HostPattern::Any,
            port: Some(port),
        }
    }

    /// Reads a pattern; one that names no port has `port`.
    ///
    /// # Errors
    /// Why the text is none.
    pub(super) fn parse(text: &str, port: Option<u16>) -> Result<Self, String> {
        if let Ok(net) = parse_net(text) {
            let host = HostPattern::Net(net);
            return Ok(Self { host, port });
        }
        let (host, own_port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None => return Err("only a port may follow the bracket".into()),
            },
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.contains(':') && !text.starts_with('[') {
            return Err("an IPv6 address or CIDR with a port needs brackets".into());
        }
        let port = match own_port {
            None => port,
            Some("*") => None,
            Some(digits) => Some(
                parse_port(digits).ok_or("the port is neither a number from 1 to 65535 nor `*`")?,
            ),
        };
        let host = if host == "*" {
            HostPattern::Any
        } else if let Some(domain) = host.strip_prefix("*.") {
            HostPattern::Below(domain.parse().map_err(reason)?)
        } else if host.contains([':', '/']) || host.parse::<Ipv4Addr>().is_ok() {
            HostPattern::Net(parse_net(host)?)
        } else {
            HostPattern::Name(host.parse().map_err(reason)?)
        };
        Ok(Self { host, port })
    }

    pub(super) fn covers_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    /// Whether the host is covered as it was asked for; one by name may also be covered by an
    /// address that it has.
    pub(super) fn covers(&self, target: &Target) -> bool {
        self.covers_port(target.port)
            && match (&self.host, &target.host) {
                (HostPattern::Any, _) => true,
                (HostPattern::Below(domain), Host::Name(name)) => name.is_below(domain),
                (HostPattern::Name(own), Host::Name(name)) => own == name,
                (HostPattern::Net(net), Host::Addr(addr)) => net.contains(addr),
                _ => false,
            }
    }

    /// The addresses that are written as such, for `port`.
    pub(super) fn net(&self, port: u16) -> Option<&IpNet> {
        match &self.host {
            HostPattern::Net(net) if self.covers_port(port) => Some(net),
            _ => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostPattern::Any => f.write_str("*")?,
            HostPattern::Below(name) => write!(f, "*.{name}")?,
            HostPattern::Name(name) => write!(f, "{name}")?,
            HostPattern::Net(net) => {
                let single = net.prefix_len() == net.max_prefix_len();
                match (single, net.addr()) {
                    (true, IpAddr::V4(addr)) => write!(f, "{addr}")?,
                    (true, IpAddr::V6(addr)) => write!(f, "[{addr}]")?,
                    (false, IpAddr::V4(_)) => write!(f, "{net}")?,
                    (false, IpAddr::V6(_)) => write!(f, "[{net}]")?,
                }
            }
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

fn parse_net(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(addr) => IpNet::from(addr.to_canonical()),
        Err(_) => text
            .parse::<IpNet>()
            .map_err(|_| "it is neither an address nor a CIDR")?,
    };
    if net.trunc() != net {
        return Err(format!(
            "bits are set behind the prefix; is {} meant?",
            net.trunc()
        ));
    }
    match net {
        IpNet::V6(v6) if v6.prefix_len() > 0 && v6.addr().to_ipv4_mapped().is_some() => {
            Err("IPv4 addresses are to be written as such".into())
        }
        _ => Ok(net),
    }
}

/// A port as digits only: `u16::from_str` would also take `+443`.
pub(in crate::gateway) fn parse_port(digits: &str) -> Option<u16> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0)
}

#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn reason(error: crate::name::InvalidName) -> String {
    error.to_string()
}
