//! Where a connection goes, and what is assumed of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::name::{Host, HostName, OriginalDst, Target};
use crate::policy::{Claim, Facts, NameSource, Policy, Served, View};

/// Stands for an external address where none is known (TEST-NET-1, RFC 5737).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Ports on which plain HTTP is spoken.
const HTTP_PORTS: &[u16] = &[80, 8000, 8080];

/// `HOST:PORT` or `IP:PORT`.
#[derive(Clone, Debug)]
pub(super) struct Destination(Target);

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the program says, as far as it is given.
#[derive(Clone, Copy, Default)]
pub(super) struct Said<'a> {
    /// The server name of its ClientHello.
    pub(super) sni: Option<&'a HostName>,
    /// Whether that may hide another name.
    pub(super) ech: bool,
    /// The Host of its request.
    pub(super) host: Option<&'a HostName>,
}

/// What is taken for the facts of the connection.
pub(super) struct Assumed {
    pub(super) facts: Facts,
    /// In words.
    pub(super) notes: Vec<String>,
}

impl Destination {
    /// Whether it is a name, whose address is another matter.
    pub(super) fn is_name(&self) -> bool {
        matches!(self.0.host, Host::Name(_))
    }

    /// What a connection there is like, as far as it is not said.
    pub(super) fn assume(
        &self,
        (policy, view): (&Policy, &View),
        address: Option<IpAddr>,
        said: &Said<'_>,
    ) -> anyhow::Result<Assumed> {
        let Target { host: to, port } = &self.0;
        let mut notes = Vec::new();
        let addr = match (to, address) {
            (Host::Addr(_), Some(_)) => {
                anyhow::bail!("--address is for a destination by name, and {self} has an address");
            }
            (Host::Addr(addr), None) => *addr,
            (Host::Name(_), Some(addr)) => addr.to_canonical(),
            (Host::Name(name), None) => answered(policy, view, name).unwrap_or_else(|| {
                resolve(name, *port).unwrap_or_else(|| {
                    notes.push(format!(
                        "{name} does not resolve here: taken to be at some external address \
                         (--address says which)"
                    ));
                    SOMEWHERE
                })
            }),
        };
        let original_dst = OriginalDst(SocketAddr::new(addr, *port));
        if let Some((_, host)) = policy.virtual_slot(addr) {
            let host = host.or_else(|| to.name());
            let facts = match host {
                Some(host) => {
                    notes.push(format!("{addr} is the virtual address of {host}"));
                    Facts::of_virtual(original_dst, host.clone())
                }
                None => {
                    notes.push(format!(
                        "{addr} is a virtual address: the agent knows if a name below a wildcard \
                         has it"
                    ));
                    Facts::new(original_dst)
                }
            };
            return Ok(Assumed { facts, notes });
        }
        let claim = |name: &HostName, source| Claim {
            host: Host::Name(name.clone()),
            source,
        };
        let claimed = match (said.sni, said.host, to) {
            (Some(name), _, _) => Some(claim(name, NameSource::Sni)),
            (None, Some(name), _) => Some(claim(name, NameSource::HttpHost)),
            (None, None, Host::Name(name)) if HTTP_PORTS.contains(port) && !said.ech => {
                notes.push("taken to be plain HTTP (--sni NAME for TLS)".to_owned());
                Some(claim(name, NameSource::HttpHost))
            }
            (None, None, Host::Name(name)) => {
                notes.push("taken to be TLS (--host NAME for plain HTTP)".to_owned());
                Some(claim(name, NameSource::Sni))
            }
            (None, None, Host::Addr(_)) => {
                notes.push("taken to name no host (--sni NAME, --host NAME)".to_owned());
                None
            }
        };
        // A program that connects to a name has its address from the same servers as the agent.
        let is_the_name = |claim: &Claim| claim.host == *to;
        let claimed_is_verified = claimed.as_ref().is_some_and(is_the_name);
        if let Some(claim) = claimed.as_ref().filter(|_| !claimed_is_verified) {
            notes.push(format!(
                "{} is taken not to resolve to {addr}: the program merely claims it",
                claim.host
            ));
        }
        let mut facts = Facts {
            original_dst,
            claimed,
            claimed_is_verified,
            hides_name: false,
        };
        if said.ech && !claimed_is_verified {
            notes.push(see_through_ech(&mut facts, to, (policy, view)));
        }
        Ok(Assumed { facts, notes })
    }
}

/// What becomes of the name of a ClientHello that may hide another, of a program that has asked for this
/// host; in words.
fn see_through_ech(facts: &mut Facts, asked: &Host, (policy, view): (&Policy, &View)) -> String {
    let resolved = asked.name().map(|name| Claim {
        host: Host::Name(name.clone()),
        source: NameSource::Dns,
    });
    let counts = policy.see_through_ech(facts, resolved, view);
    if facts.hides_name {
        return "taken to hide another name (ECH), and to have resolved none of the address"
            .to_owned();
    }
    if !counts {
        return "its server name counts, though it may hide another (onECH: UseServerName)"
            .to_owned();
    }
    facts.claimed_is_verified = true;
    format!("taken to hide another name (ECH): {asked} counts, which it has resolved")
}

/// The first address that the agent answers when the workload asks for a name, if it does.
fn answered(policy: &Policy, view: &View, name: &HostName) -> Option<IpAddr> {
    let range = policy.virtual_range()?;
    let slot = match policy.serves(name, view)? {
        Served::At(addresses) => return addresses.first().copied(),
        Served::Virtual(slot) => slot,
        Served::OnDemand => range.upper(name).next()?,
    };
    let [first, _] = range.addresses(slot);
    Some(first)
}

/// The first address of a name, as programs on this machine find it.
fn resolve(name: &HostName, port: u16) -> Option<IpAddr> {
    let mut found = (name.as_str(), port).to_socket_addrs().ok()?;
    found.next().map(|addr| addr.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{HostList, Options, Proxy};

    #[test]
    fn a_destination_is_a_host_and_a_port() {
        for good in ["www.example.com:443", "203.0.113.7:80", "[2001:db8::1]:443"] {
            assert_eq!(good.parse::<Destination>().unwrap().to_string(), good);
        }
        for bad in [
            "www.example.com",
            "a:0",
            "a:x",
            "2001:db8::1:443",
            ":443",
            "a b:1",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_claimed_about_another_address_is_not_taken_for_true() {
        let name = "www.example.com".parse().unwrap();
        let proxy = Proxy::plain("proxy.example".parse().unwrap(), 3128);
        let policy = Policy::for_proxy(proxy, HostList::default(), &Options::default());
        let view = &**policy.view_of_stranger();
        let at = |text: &str, sni: Option<&HostName>| {
            let destination: Destination = text.parse().unwrap();
            let address = Some("203.0.113.7".parse().unwrap());
            let address = address.filter(|_| text.starts_with("www"));
            let said = Said {
                sni,
                ..Said::default()
            };
            let assumed = destination.assume((&policy, view), address, &said);
            assumed.unwrap().facts
        };
        assert!(at("www.example.com:443", None).claimed_is_verified);
        assert!(!at("203.0.113.7:443", Some(&name)).claimed_is_verified);
        assert!(at("203.0.113.7:443", None).claimed.is_none());
        let facts = at("www.example.com:80", None);
        assert_eq!(facts.claimed.unwrap().source, NameSource::HttpHost);
    }
}
