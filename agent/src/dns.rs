//! Names to addresses, by a resolver of the agent's own.
//!
//! `getaddrinfo` opens sockets that cannot be marked, so its questions would be captured like a
//! workload's. This resolver asks the name servers of `/etc/resolv.conf` through the
//! [`SocketFactory`], after `/etc/hosts`. Both files are followed: a change counts from the next
//! lookup on. `nsswitch.conf` and mDNS are not consulted.
//!
//! A name with a dot is asked for as it stands; the search list of `resolv.conf` serves names of
//! one label only (as with `ndots:1`), and those are asked for as they stand last.

mod answer;
mod ech;
mod files;
mod forward;
mod knowledge;
mod known;
mod provider;
mod query;
mod servers;
mod staggered;
#[cfg(test)]
mod tests;
mod virtuals;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::RecordType;

use crate::name::{Host, HostName};
use crate::sockets::SocketFactory;

use files::{Hosts, Watched};
use servers::{Answer, Failure, NameServers};

pub use answer::{Answer as ObservedAnswer, Malformed};
pub use ech::without_ech_keys;
pub use forward::{ForwardError, Forwarder};
pub use knowledge::{Heard, Knowledge, Listener, Outcome};
pub(crate) use query::grant_existence;
pub use query::{Kind, Query};
pub(crate) use staggered::first_success;
pub use virtuals::{Exhausted, Virtuals};

/// Where name servers listen (RFC 1035 section 4.2).
pub const PORT_DNS: u16 = 53;

/// The whole of a lookup, all servers and both address families together.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long a name server may be silent before the next one is asked as well.
const STAGGER: Duration = Duration::from_secs(1);

/// How long one address family is waited for after the other has given addresses. There are name
/// servers that never answer one of the two (RFC 8305 section 3).
const GRACE: Duration = Duration::from_millis(300);

/// How long addresses are good that carry no time to live: those from `/etc/hosts`, which may
/// change at any time, and answers of which one family is missing.
const SHORT: Duration = Duration::from_secs(5);

/// Resolves names on the agent's own sockets. Clones share cache and servers.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    sockets: Arc<dyn SocketFactory>,
    hosts: Watched<Hosts>,
    servers: Watched<Result<NameServers, String>>,
    times: Times,
    port: u16,
}

#[derive(Clone, Copy)]
struct Times {
    deadline: Duration,
    stagger: Duration,
    grace: Duration,
}

impl Resolver {
    /// A resolver after `/etc/resolv.conf` and `/etc/hosts`.
    ///
    /// Neither has to be there yet, or be usable: the agent may start before the network does.
    /// Until then a lookup fails with [`DnsError::NoServers`], except for what the other file
    /// knows.
    pub fn from_system(sockets: Arc<dyn SocketFactory>) -> Self {
        let (resolv_conf, hosts) = (Path::new("/etc/resolv.conf"), Path::new("/etc/hosts"));
        Self::from_files(sockets, resolv_conf, hosts)
    }

    /// As [`Self::from_system`], after other files in the same format.
    pub fn from_files(sockets: Arc<dyn SocketFactory>, resolv_conf: &Path, hosts: &Path) -> Self {
        let times = Times {
            deadline: DEADLINE,
            stagger: STAGGER,
            grace: GRACE,
        };
        Self::new(sockets, resolv_conf, hosts, 53, times)
    }

    fn new(
        sockets: Arc<dyn SocketFactory>,
        resolv_conf: &Path,
        hosts: &Path,
        port: u16,
        times: Times,
    ) -> Self {
        Self(Arc::new(Inner {
            sockets,
            hosts: Watched::new(hosts),
            servers: Watched::new(resolv_conf),
            times,
            port,
        }))
    }

    /// The addresses of `name`, asked for in both families at once.
    ///
    /// # Errors
    /// Whatever keeps the name from having an address; see [`DnsError`]. It takes 5 s at most.
    pub async fn lookup(&self, name: &HostName) -> Result<Lookup, DnsError> {
        let addrs = self.hosts().addresses(name);
        if !addrs.is_empty() {
            return Ok(Lookup {
                addrs: interleaved(addrs),
                valid_until: Instant::now() + SHORT,
            });
        }
        let servers = self.servers();
        let servers = match &*servers {
            Ok(servers) => servers,
            Err(reason) => {
                return Err(DnsError::NoServers {
                    name: name.clone(),
                    path: self.0.servers.path().to_owned(),
                    reason: reason.clone(),
                });
            }
        };
        let times = self.0.times;
        let search = async {
            let mut absent = DnsError::NoSuchName(name.clone());
            for candidate in servers.candidates(name) {
                match self.ask(servers, name, &candidate).await {
                    Err(negative) if negative.is_negative() => absent = negative,
                    other => return other,
                }
            }
            Err(absent)
        };
        match tokio::time::timeout(times.deadline, search).await {
            Ok(result) => result,
            Err(_) => Err(DnsError::Timeout {
                name: name.clone(),
                after: times.deadline,
            }),
        }
    }

    /// The addresses of `host`: itself if it is an address, else what [`Self::lookup`] finds.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, DnsError> {
        match host {
            Host::Addr(addr) => Ok(vec![*addr]),
            Host::Name(name) => self.lookup(name).await.map(|found| found.addrs),
        }
    }

    /// Whether `addr` is one of the addresses of `name`; a name that cannot be resolved has none.
    pub async fn maps(&self, name: &HostName, addr: IpAddr) -> bool {
        match self.lookup(name).await {
            Ok(found) => found.addrs.contains(&addr.to_canonical()),
            Err(error) => {
                tracing::debug!(%name, %addr, %error, "name not verified");
                false
            }
        }
    }

    fn hosts(&self) -> Arc<Hosts> {
        self.0.hosts.current(|content, _| {
            // Without the file there is nothing in it.
            Arc::new(Hosts::parse(&content.unwrap_or_default()))
        })
    }

    fn servers(&self) -> Arc<Result<NameServers, String>> {
        self.0.servers.current(|content, before| {
            let read = content.map_err(|error| error.to_string()).and_then(|text| {
                let sockets = &self.0.sockets;
                NameServers::parse(&text, sockets, self.0.port, self.0.times.stagger)
            });
            match (read, before) {
                // A file caught half written must not take away servers that work.
                (Err(reason), Some(before)) if before.is_ok() => {
                    let path = self.0.servers.path().display();
                    tracing::warn!(%path, reason, "keeping the name servers known so far");
                    before
                }
                (read, _) => Arc::new(read),
            }
        })
    }

    /// Asks for both families of `candidate`, which stands for `name`.
    async fn ask(
        &self,
        servers: &NameServers,
        name: &HostName,
        candidate: &servers::Question,
    ) -> Result<Lookup, DnsError> {
        let mut v6 = pin!(servers.ask(candidate, RecordType::AAAA));
        let mut v4 = pin!(servers.ask(candidate, RecordType::A));
        let (mut got_v6, mut got_v4) = (None, None);
        let mut grace = pin!(tokio::time::sleep(self.0.times.deadline));
        while got_v6.is_none() || got_v4.is_none() {
            let has_addresses = tokio::select! {
                got = &mut v6, if got_v6.is_none() => {
                    matches!(got_v6.insert(got), Ok(Answer::Addresses { .. }))
                }
                got = &mut v4, if got_v4.is_none() => {
                    matches!(got_v4.insert(got), Ok(Answer::Addresses { .. }))
                }
                () = &mut grace => break,
            };
            if has_addresses {
                let end = tokio::time::Instant::now() + self.0.times.grace;
                grace.as_mut().reset(end);
            }
        }
        self.combine(name, got_v6, got_v4)
    }

    fn combine(
        &self,
        name: &HostName,
        v6: Option<Result<Answer, Failure>>,
        v4: Option<Result<Answer, Failure>>,
    ) -> Result<Lookup, DnsError> {
        let mut addrs = Vec::new();
        let mut valid_until: Option<Instant> = None;
        let mut failure = None;
        let mut no_such_name = false;
        for got in [v6, v4] {
            let until = match got {
                Some(Ok(Answer::Addresses {
                    addrs: found,
                    valid_until,
                })) => {
                    addrs.extend(found);
                    valid_until
                }
                Some(Ok(Answer::NoSuchName)) => {
                    no_such_name = true;
                    continue;
                }
                Some(Ok(Answer::NoAddresses)) => continue,
                Some(Err(reasons)) => {
                    failure.get_or_insert(reasons);
                    Instant::now() + SHORT
                }
                None => Instant::now() + SHORT,
            };
            valid_until = Some(valid_until.map_or(until, |other| other.min(until)));
        }
        match (valid_until, failure) {
            (Some(valid_until), _) if !addrs.is_empty() => Ok(Lookup {
                addrs: interleaved(addrs),
                valid_until,
            }),
            // What no server told for one family may exist, whatever they say of the other.
            (_, Some(Failure::Silence)) => Err(DnsError::Timeout {
                name: name.clone(),
                after: self.0.times.deadline,
            }),
            (_, Some(Failure::Reasons(reason))) => Err(DnsError::Failed {
                name: name.clone(),
                reason,
            }),
            (Some(_), None) => Err(DnsError::Timeout {
                name: name.clone(),
                after: self.0.times.deadline,
            }),
            (None, None) if no_such_name => Err(DnsError::NoSuchName(name.clone())),
            (None, None) => Err(DnsError::NoAddresses(name.clone())),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("resolv_conf", &self.0.servers.path())
            .field("hosts", &self.0.hosts.path())
            .finish_non_exhaustive()
    }
}

/// What a name stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lookup {
    /// The addresses, IPv6 and IPv4 in turn (RFC 8305 section 4), none twice, never empty, never
    /// IPv4-mapped IPv6.
    pub addrs: Vec<IpAddr>,
    /// Until when they hold, by their time to live.
    pub valid_until: Instant,
}

/// Why a name has no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// There is nobody to ask.
    #[error("cannot look up `{name}`: no name servers: {}: {reason}", path.display())]
    NoServers {
        /// The name asked for.
        name: HostName,
        /// The file that should name them.
        path: PathBuf,
        /// What is the matter with it.
        reason: String,
    },
    /// A name server said that there is no such name (NXDOMAIN).
    #[error("there is no host `{0}` (name server: NXDOMAIN)")]
    NoSuchName(HostName),
    /// The name exists, without an address.
    #[error("`{0}` exists but has neither an IPv4 nor an IPv6 address")]
    NoAddresses(HostName),
    /// Name servers were asked and were silent.
    #[error("no name server answered for `{name}` within {after:?}")]
    Timeout {
        /// The name asked for.
        name: HostName,
        /// The time that was allowed.
        after: Duration,
    },
    /// Every name server failed, refused or could not be reached.
    #[error("no name server could tell about `{name}`: {reason}")]
    Failed {
        /// The name asked for.
        name: HostName,
        /// What each of them said.
        reason: String,
    },
}

impl DnsError {
    /// Whether a server answered that there is nothing, so that asking again soon is no use.
    pub fn is_negative(&self) -> bool {
        matches!(self, Self::NoSuchName(_) | Self::NoAddresses(_))
    }
}

/// IPv6 and IPv4 in turn, in the order given, none twice.
fn interleaved(addrs: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addrs
        .into_iter()
        .map(|addr| addr.to_canonical())
        .partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return all;
        }
        for addr in pair.into_iter().flatten() {
            if !all.contains(&addr) {
                all.push(addr);
            }
        }
    }
}
