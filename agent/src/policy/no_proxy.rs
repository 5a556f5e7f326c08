//! Lists of what does not go through a proxy.
//!
//! There is no standard for `NO_PROXY`; these are our rules, the same in documents and on the
//! command line:
//!
//! | entry | means |
//! |---|---|
//! | `example.com` | the name and every name below it |
//! | `.example.com`, `*.example.com` | only names below it |
//! | `203.0.113.7`, `2001:db8::1` | the address |
//! | `203.0.113.0/24`, `2001:db8::/32` | the range; no bits may stand beyond the prefix |
//! | `*` | everything |
//!
//! Each may end in a port (`example.com:8443`, `*:25`, `[2001:db8::1]:443`) and then means only
//! connections to that port. Letter case and a final dot do not matter. Names are compared with
//! names, addresses with addresses: nothing is resolved.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::api::value::HostPattern;
use super::hosts::HostTable;
use super::prefix::{self, PrefixTable};
use super::problem::quotable;
use crate::name::HostName;

/// One entry of a [`HostList`]. Its text is the entry in its shortest form.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct HostEntry {
    hosts: Hosts,
    port: Option<u16>,
}

/// The hosts that an entry means.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Hosts {
    All,
    Below(HostName),
    Name(HostName),
    Net(IpNet),
}

impl FromStr for HostEntry {
    type Err = InvalidHostEntry;

    fn from_str(text: &str) -> Result<Self, InvalidHostEntry> {
        let text = text.trim();
        if text.contains("://") || text.contains('@') {
            return Err(InvalidHostEntry::Url);
        }
        let (hosts, port) = split_port(text).ok_or_else(|| InvalidHostEntry::new(text, "port"))?;
        let hosts = match hosts {
            "*" => Hosts::All,
            net if net.contains('/') => Hosts::Net(range(text, net)?),
            host => match host.parse::<IpAddr>() {
                Ok(addr) => Hosts::Net(addr.to_canonical().into()),
                Err(_) => names(host).ok_or_else(|| InvalidHostEntry::new(text, "host"))?,
            },
        };
        Ok(Self { hosts, port })
    }
}

impl TryFrom<String> for HostEntry {
    type Error = InvalidHostEntry;

    fn try_from(text: String) -> Result<Self, InvalidHostEntry> {
        text.parse()
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host_only = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        match (&self.hosts, self.port) {
            (Hosts::All, _) => f.write_str("*")?,
            (Hosts::Below(domain), _) => write!(f, "*.{domain}")?,
            (Hosts::Name(name), _) => write!(f, "{name}")?,
            (Hosts::Net(net @ IpNet::V6(_)), Some(_)) if host_only(net) => {
                write!(f, "[{}]", net.addr())?;
            }
            (Hosts::Net(net), _) if host_only(net) => write!(f, "{}", net.addr())?,
            (Hosts::Net(net @ IpNet::V6(_)), Some(_)) => write!(f, "[{net}]")?,
            (Hosts::Net(net), _) => write!(f, "{net}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Serialize for HostEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is not an entry of a [`HostList`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidHostEntry {
    /// The range has bits beyond its prefix.
    #[error("`{entry}` has bits set beyond the prefix; write `{range}`")]
    HostBits {
        /// The entry.
        entry: String,
        /// The range it may have meant.
        range: IpNet,
    },
    /// A part of it cannot be read.
    #[error(
        "`{entry}` has no valid {part}; expected a name, `*.name`, an address, a CIDR range or \
         `*`, each with an optional `:port` (IPv6 in brackets then)"
    )]
    Syntax {
        /// The entry.
        entry: String,
        /// `host`, `port` or `prefix`.
        part: &'static str,
    },
    /// It is a URL; not shown, because a password may stand in it.
    #[error("a URL is not an entry; give the host alone, with `:port` if only one is meant")]
    Url,
}

impl InvalidHostEntry {
    fn new(entry: &str, part: &'static str) -> Self {
        let entry = quotable(entry);
        Self::Syntax { entry, part }
    }
}

/// A list of hosts, indexed: lookups take time only by the labels of the name and the prefix
/// lengths in the list.
#[derive(Clone, Debug, Default)]
pub struct HostList {
    entries: Vec<Arc<HostEntry>>,
    all: Vec<Arc<HostEntry>>,
    names: HostTable<Arc<HostEntry>>,
    nets: PrefixTable<Vec<Arc<HostEntry>>>,
}

impl HostList {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any entry is by name.
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// The entries, as they were given.
    pub fn entries(&self) -> impl Iterator<Item = &HostEntry> {
        self.entries.iter().map(|entry| &**entry)
    }

    /// The entry that a connection to this address and port is under, if any: `*`, an address or
    /// a range.
    pub fn match_addr(&self, addr: IpAddr, port: u16) -> Option<&Arc<HostEntry>> {
        let nets = || self.nets.covering(addr).map(|(_, entries)| entries);
        for_port(&self.all, port).or_else(|| nets().find_map(|entries| for_port(entries, port)))
    }

    /// The entry that a connection to this name and port is under, if any.
    pub fn match_name(&self, name: &HostName, port: u16) -> Option<&Arc<HostEntry>> {
        for_port(self.names.matching(name), port)
    }

    /// The ranges that are in the list whatever the port.
    pub(super) fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.entries().filter_map(|entry| match entry {
            HostEntry {
                hosts: Hosts::Net(net),
                port: None,
            } => Some(*net),
            _ => None,
        })
    }

    /// The ranges that are in the list on one port.
    pub(super) fn nets_on_ports(&self) -> impl Iterator<Item = (IpNet, u16)> {
        self.entries().filter_map(|entry| match entry {
            HostEntry {
                hosts: Hosts::Net(net),
                port: Some(port),
            } => Some((*net, *port)),
            _ => None,
        })
    }

    /// The ports that are in the list whatever the host: `None` means all of them.
    pub(super) fn ports(&self) -> impl Iterator<Item = Option<u16>> {
        self.all.iter().map(|entry| entry.port)
    }

    fn push(&mut self, entry: HostEntry) {
        let entry = Arc::new(entry);
        self.entries.push(Arc::clone(&entry));
        match &entry.hosts {
            Hosts::All => self.all.push(entry),
            Hosts::Below(domain) => {
                self.names.push(&HostPattern::Below(domain.clone()), entry);
            }
            Hosts::Name(name) => {
                let itself = HostPattern::Exact(name.clone());
                self.names.push(&itself, Arc::clone(&entry));
                self.names.push(&HostPattern::Below(name.clone()), entry);
            }
            Hosts::Net(net) => self.nets.entry(*net).push(entry),
        }
    }
}

impl FromIterator<HostEntry> for HostList {
    fn from_iter<I: IntoIterator<Item = HostEntry>>(entries: I) -> Self {
        let mut list = Self::default();
        for entry in entries {
            list.push(entry);
        }
        list
    }
}

impl FromStr for HostList {
    type Err = InvalidHostEntry;

    /// Takes entries between commas or white space, as in `NO_PROXY`.
    fn from_str(text: &str) -> Result<Self, InvalidHostEntry> {
        text.split(|c: char| c == ',' || c.is_whitespace())
            .filter(|entry| !entry.is_empty())
            .map(str::parse)
            .collect()
    }
}

fn for_port<'a>(
    entries: impl IntoIterator<Item = &'a Arc<HostEntry>>,
    port: u16,
) -> Option<&'a Arc<HostEntry>> {
    entries
        .into_iter()
        .find(|entry| entry.port.is_none_or(|only| only == port))
}

/// Takes brackets and port off. `None` if the port or the brackets are wrong.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return None,
        };
        // Brackets belong to IPv6 only.
        let addr = inside.split_once('/').map_or(inside, |(addr, _)| addr);
        return addr.parse::<Ipv6Addr>().ok().map(|_| (inside, port));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(parse_port(port)?))),
        _ => Some((text, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn range(entry: &str, text: &str) -> Result<IpNet, InvalidHostEntry> {
    let net: IpNet = text
        .parse()
        .map_err(|_| InvalidHostEntry::new(entry, "prefix"))?;
    let range = net.trunc();
    if net != range {
        let entry = quotable(entry);
        return Err(InvalidHostEntry::HostBits { entry, range });
    }
    Ok(prefix::canonical(net))
}

fn names(text: &str) -> Option<Hosts> {
    match text.strip_prefix("*.").or(text.strip_prefix('.')) {
        Some(domain) => domain.parse().ok().map(Hosts::Below),
        None => text.parse().ok().map(Hosts::Name),
    }
}

#[cfg(test)]
mod tests;
