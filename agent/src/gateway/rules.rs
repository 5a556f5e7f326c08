//! Where clients of the gateway may go.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::{Host, HostName, Target};

/// Destinations that clients may connect to, written `HOST[:PORT]`.
///
/// `HOST` is a name, `*.name` (every name below it, itself not included), `*` (everything), an
/// address or a CIDR; IPv6 with a port stands in brackets, `[2001:db8::/32]:443`. `PORT` is a
/// number or `*`, and 443 when it is left out. An address or CIDR also lets clients reach it by
/// any name that resolves to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowRule {
    host: HostPattern,
    /// `None` is every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum HostPattern {
    Any,
    Below(HostName),
    Name(HostName),
    Net(IpNet),
}

impl AllowRule {
    /// HTTPS to everywhere: what is allowed where nothing else is said.
    pub fn https_everywhere() -> Self {
        Self {
            host: HostPattern::Any,
            port: Some(HTTPS),
        }
    }

    fn covers_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

impl FromStr for AllowRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidRule {
            rule: text.chars().take(80).flat_map(char::escape_debug).collect(),
            reason,
        })
    }
}

impl fmt::Display for AllowRule {
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

/// Why a text is not an [`AllowRule`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{rule}` is not an allow rule: {reason}")]
pub struct InvalidRule {
    rule: String,
    reason: String,
}

/// The rules of one gateway.
#[derive(Clone, Debug)]
pub(super) struct Rules(Vec<AllowRule>);

impl Rules {
    /// No rule at all stands for [`AllowRule::https_everywhere`].
    pub(super) fn new(rules: Vec<AllowRule>) -> Self {
        if rules.is_empty() {
            Self(vec![AllowRule::https_everywhere()])
        } else {
            Self(rules)
        }
    }

    /// What may be done for a client that asks for `target`, as far as can be told before a name
    /// is resolved.
    pub(super) fn judge(&self, target: &Target) -> Result<Permit, Forbidden> {
        let mut rules = self.0.iter().filter(|rule| rule.covers_port(target.port));
        let by_host = rules.clone().any(|rule| match (&rule.host, &target.host) {
            (HostPattern::Any, _) => true,
            (HostPattern::Below(domain), Host::Name(name)) => name.is_below(domain),
            (HostPattern::Name(own), Host::Name(name)) => own == name,
            _ => false,
        });
        if by_host {
            return Ok(Permit { by_host });
        }
        let by_address = rules.any(|rule| match (&rule.host, &target.host) {
            (HostPattern::Net(net), Host::Addr(addr)) => net.contains(addr),
            (HostPattern::Net(_), Host::Name(_)) => true,
            _ => false,
        });
        if by_address {
            Ok(Permit { by_host })
        } else {
            Err(Forbidden::NoRule)
        }
    }

    /// Whether `permit` extends to `addr`, which the target is or resolves to.
    pub(super) fn judge_address(
        &self,
        permit: Permit,
        addr: IpAddr,
        port: u16,
    ) -> Result<(), Forbidden> {
        let reserved = Reserved::of(addr);
        let named = self.0.iter().any(|rule| match &rule.host {
            // `0.0.0.0/0` allows all hosts; it does not name the loopback or metadata address.
            HostPattern::Net(net) => {
                rule.covers_port(port)
                    && net.contains(&addr)
                    && reserved.is_none_or(|reserved| reserved.net.contains(net))
            }
            _ => false,
        });
        match reserved {
            _ if named => Ok(()),
            Some(reserved) => Err(Forbidden::Reserved(reserved.kind)),
            None if permit.by_host => Ok(()),
            None => Err(Forbidden::NoRule),
        }
    }
}

/// What the rules say about a target before it is resolved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit {
    /// Its host is allowed as it stands; else only addresses that a rule names.
    pub(super) by_host: bool,
}

/// Why a target is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Forbidden {
    #[error("no allow rule of this gateway covers it")]
    NoRule,
    #[error("it leads to {0}, which is refused unless an allow rule names it")]
    Reserved(&'static str),
}

/// A range whose hosts are the gateway's own business: its machine, its link, its cloud.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    net: IpNet,
    kind: &'static str,
}

impl Reserved {
    fn of(addr: IpAddr) -> Option<Self> {
        let addr = match addr {
            IpAddr::V6(v6) => translated(v6).map_or(addr, IpAddr::V4),
            IpAddr::V4(_) => addr,
        };
        RESERVED
            .into_iter()
            .find(|reserved| reserved.net.contains(&addr))
    }

    const fn v4(addr: [u8; 4], prefix: u8, kind: &'static str) -> Self {
        let [a, b, c, d] = addr;
        Self {
            net: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)),
            kind,
        }
    }

    const fn v6(addr: Ipv6Addr, prefix: u8, kind: &'static str) -> Self {
        Self {
            net: IpNet::V6(Ipv6Net::new_assert(addr, prefix)),
            kind,
        }
    }
}

/// The IPv4 address behind a NAT64 address (RFC 6052 section 2.1).
fn translated(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = addr.segments() else {
        return None;
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

fn parse(text: &str) -> Result<AllowRule, String> {
    if let Ok(net) = parse_net(text) {
        return Ok(AllowRule {
            host: HostPattern::Net(net),
            port: Some(HTTPS),
        });
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
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
    let port = match port {
        None => Some(HTTPS),
        Some("*") => None,
        Some(digits) => {
            Some(parse_port(digits).ok_or("the port is neither a number from 1 to 65535 nor `*`")?)
        }
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
    Ok(AllowRule { host, port })
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
pub(super) fn parse_port(digits: &str) -> Option<u16> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0)
}

#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn reason(error: crate::name::InvalidName) -> String {
    error.to_string()
}

const HTTPS: u16 = 443;

const RESERVED: [Reserved; 9] = [
    Reserved::v4([0, 0, 0, 0], 8, "an unspecified address"),
    Reserved::v4([127, 0, 0, 0], 8, "a loopback address"),
    Reserved::v4([169, 254, 0, 0], 16, "a link-local address"),
    Reserved::v4([224, 0, 0, 0], 4, "a multicast address"),
    Reserved::v4([255, 255, 255, 255], 32, "the broadcast address"),
    // `::`, `::1` and the IPv4-compatible addresses that were given up (RFC 4291 section 2.5.5.1).
    Reserved::v6(
        Ipv6Addr::UNSPECIFIED,
        96,
        "a loopback or unspecified address",
    ),
    Reserved::v6(
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
        10,
        "a link-local address",
    ),
    // The metadata service of EC2: unique-local by number, link-local by nature.
    Reserved::v6(
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        128,
        "a metadata service",
    ),
    Reserved::v6(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
        "a multicast address",
    ),
];

#[cfg(test)]
mod tests;
