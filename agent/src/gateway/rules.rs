//! Where clients of the gateway may go.

mod pattern;
mod reserved;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::name::{Host, Target};
use pattern::{HostPattern, Pattern};
use reserved::{Reserved, embedded};

pub(super) use pattern::parse_port;

/// Destinations that clients may connect to, written `HOST[:PORT]`.
///
/// `HOST` is a name, `*.name` (every name below it, itself not included), `*` (everything), an
/// address or a CIDR; IPv6 with a port stands in brackets, `[2001:db8::/32]:443`. `PORT` is a
/// number or `*`, and 443 when it is left out. An address or CIDR also lets clients reach it by
/// any name that resolves to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowRule(Pattern);

impl AllowRule {
    /// HTTPS to everywhere: what is allowed where nothing else is said.
    pub const fn https_everywhere() -> Self {
        Self(Pattern::any_host(HTTPS))
    }
}

impl FromStr for AllowRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = Pattern::parse(text, Some(HTTPS));
        pattern
            .map(Self)
            .map_err(|reason| InvalidRule::new("an allow", text, reason))
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Destinations that clients may not connect to, whatever allows them. Written as an
/// [`AllowRule`], but every port is meant where none is named. An address or CIDR is kept from
/// clients by whatever name they ask for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DenyRule(Pattern);

impl FromStr for DenyRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = Pattern::parse(text, None);
        pattern
            .map(Self)
            .map_err(|reason| InvalidRule::new("a deny", text, reason))
    }
}

impl fmt::Display for DenyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not an [`AllowRule`] or [`DenyRule`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{rule}` is not {kind} rule: {reason}")]
pub struct InvalidRule {
    kind: &'static str,
    rule: String,
    reason: String,
}

impl InvalidRule {
    fn new(kind: &'static str, text: &str, reason: String) -> Self {
        Self {
            kind,
            rule: text.chars().take(80).flat_map(char::escape_debug).collect(),
            reason,
        }
    }
}

/// The rules of one gateway.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    allow: Vec<AllowRule>,
    deny: Vec<DenyRule>,
}

impl Rules {
    /// No allow rule at all stands for [`AllowRule::https_everywhere`].
    pub(super) fn new(mut allow: Vec<AllowRule>, deny: Vec<DenyRule>) -> Self {
        if allow.is_empty() {
            allow.push(AllowRule::https_everywhere());
        }
        Self { allow, deny }
    }

    /// What may be done for a client that asks for `target`, as far as can be told before a name
    /// is resolved.
    pub(super) fn judge(&self, target: &Target) -> Result<Permit, Forbidden> {
        if self.deny.iter().any(|rule| rule.0.covers(target)) {
            return Err(Forbidden::Denied);
        }
        let covering = |rule: &&AllowRule| rule.0.covers(target);
        let by_host = self
            .allow
            .iter()
            .filter(covering)
            .any(|rule| !matches!(rule.0.host, HostPattern::Net(_)));
        let by_address = || match target.host {
            Host::Addr(_) => self.allow.iter().any(|rule| rule.0.covers(target)),
            // A name may have an address of the rule.
            Host::Name(_) => self
                .allow
                .iter()
                .any(|rule| rule.0.net(target.port).is_some()),
        };
        if by_host || by_address() {
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
        if self.denies_address(addr, port) {
            return Err(Forbidden::Denied);
        }
        let reserved = Reserved::of(addr);
        let named = self.allow.iter().any(|rule| {
            rule.0.net(port).is_some_and(|net| {
                net.contains(&addr) && reserved.is_none_or(|reserved| reserved.is_named_by(net))
            })
        });
        match reserved {
            _ if named => Ok(()),
            Some(reserved) => Err(Forbidden::Reserved(reserved.kind)),
            None if permit.by_host => Ok(()),
            None => Err(Forbidden::NoRule),
        }
    }

    /// A denied IPv4 address is denied inside IPv6 addresses as well.
    fn denies_address(&self, addr: IpAddr, port: u16) -> bool {
        let mut nets = self.deny.iter().filter_map(|rule| rule.0.net(port));
        nets.any(|net| match addr {
            IpAddr::V4(_) => net.contains(&addr),
            IpAddr::V6(v6) => {
                net.contains(&addr) || embedded(v6).any(|(v4, _)| net.contains(&IpAddr::V4(v4)))
            }
        })
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
    #[error("a deny rule of this gateway covers it")]
    Denied,
    #[error("no allow rule of this gateway covers it")]
    NoRule,
    #[error("it leads to {0}, which is refused unless an allow rule names it")]
    Reserved(&'static str),
}

const HTTPS: u16 = 443;

#[cfg(test)]
mod tests;
