//! The name servers of `resolv.conf`, and asking them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Resolver, system_conf};
use parking_lot::Mutex;

use super::first_success;
use super::provider::OwnSockets;
use crate::name::HostName;
use crate::sockets::SocketFactory;

/// As many servers, and search domains, as the C library looks at.
const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 6;

/// Answers remembered per server; one address family of one name is one.
const CACHE_ENTRIES: u64 = 4096;

/// How long "there is no such name" is remembered at most, whatever its time to live: the name
/// of a proxy that was just entered should not stay unknown for hours.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// How long one server may take, UDP retries and TCP included.
const SERVER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a server that was silent or failed is asked after the others.
const SUSPICION: Duration = Duration::from_secs(30);

/// The name servers and the search list.
///
/// Each server is a resolver of its own, for hickory's pool takes a quick SERVFAIL or REFUSED of
/// one server for the answer of all.
pub(super) struct NameServers {
    servers: Vec<Server>,
    search: Vec<Name>,
    stagger: Duration,
}

struct Server {
    addr: IpAddr,
    client: Resolver<OwnSockets>,
    suspect_until: Mutex<Option<Instant>>,
}

/// A fully qualified name to ask for.
pub(super) struct Question(Name);

/// What a name server says about one address family of a name.
pub(super) enum Answer {
    Addresses {
        addrs: Vec<IpAddr>,
        valid_until: Instant,
    },
    NoSuchName,
    NoAddresses,
}

/// Why no server said anything.
pub(super) enum Failure {
    /// All of them were silent.
    Silence,
    /// What went wrong with each.
    Reasons(String),
}

impl NameServers {
    /// Reads the text of a `resolv.conf`; `port` is the port its servers listen on.
    pub(super) fn parse(
        text: &[u8],
        sockets: &Arc<dyn SocketFactory>,
        port: u16,
        stagger: Duration,
    ) -> Result<Self, String> {
        let (config, mut options) =
            system_conf::parse_resolv_conf(text).map_err(|error| match error {
                NetError::Io(error) => error.to_string(),
                other => other.to_string(),
            })?;
        // Following the file and failing over between servers is done here.
        options.use_hosts_file = ResolveHosts::Never;
        options.attempts = 0;
        options.timeout = SERVER_TIMEOUT;
        options.cache_size = CACHE_ENTRIES;
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        let (_, mut search, found) = config.into_parts();
        search.truncate(MAX_SEARCH);
        let mut servers = Vec::new();
        for mut server in found.into_iter().take(MAX_SERVERS) {
            let addr = server.ip;
            for connection in &mut server.connections {
                connection.port = port;
            }
            servers.push(Server {
                addr,
                client: client(server, &options, sockets).map_err(|error| error.to_string())?,
                suspect_until: Mutex::new(None),
            });
        }
        let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
        tracing::debug!(servers = ?addrs, ?search, "name servers");
        Ok(Self {
            servers,
            search,
            stagger,
        })
    }

    /// The fully qualified names that `name` may stand for, in the order to ask for them.
    pub(super) fn candidates(&self, name: &HostName) -> Vec<Question> {
        // From labels, so that no second set of rules for names gets a say.
        let labels = name.as_str().split('.').map(str::as_bytes);
        let Ok(full) = Name::from_labels(labels) else {
            return Vec::new();
        };
        let is_single = !name.as_str().contains('.') && name.as_str() != "localhost";
        let suffixes = if is_single { &self.search[..] } else { &[] };
        let mut candidates: Vec<_> = suffixes
            .iter()
            .filter_map(|suffix| full.clone().append_domain(suffix).ok())
            .collect();
        candidates.push(full);
        candidates.into_iter().map(Question).collect()
    }

    /// Asks for the addresses of one family. The first server goes first; another one follows
    /// when it fails, or is silent for a while.
    pub(super) async fn ask(
        &self,
        question: &Question,
        family: RecordType,
    ) -> Result<Answer, Failure> {
        let now = Instant::now();
        let mut order: Vec<&Server> = self.servers.iter().collect();
        // Stable: among the equal the order of the file.
        order.sort_by_key(|server| server.is_suspect(now));
        let attempts: Vec<_> = order.iter().copied().enumerate().collect();
        let result = first_success(attempts, self.stagger, |(place, server)| async move {
            match server.ask(question, family).await {
                Ok(answer) => Ok((place, answer)),
                Err(error) => Err((server.addr, error)),
            }
        })
        .await;
        let (answer, passed_over) = match result {
            Ok((place, answer)) => (Ok(answer), &order[..place]),
            Err(errors) => (Err(Failure::from(errors)), &order[..]),
        };
        for server in passed_over {
            *server.suspect_until.lock() = Some(now + SUSPICION);
        }
        answer
    }
}

impl Server {
    fn is_suspect(&self, now: Instant) -> bool {
        self.suspect_until.lock().is_some_and(|until| now < until)
    }

    async fn ask(&self, question: &Question, family: RecordType) -> Result<Answer, NetError> {
        match self.client.lookup(question.0.clone(), family).await {
            Ok(found) => {
                let records = found.answers().iter();
                let addrs: Vec<_> = records.filter_map(|record| record.data.ip_addr()).collect();
                Ok(if addrs.is_empty() {
                    Answer::NoAddresses
                } else {
                    Answer::Addresses {
                        addrs,
                        valid_until: found.valid_until(),
                    }
                })
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Ok(match none.response_code {
                ResponseCode::NXDomain => Answer::NoSuchName,
                _ => Answer::NoAddresses,
            }),
            Err(error) => Err(error),
        }
    }
}

impl From<Vec<(IpAddr, NetError)>> for Failure {
    fn from(errors: Vec<(IpAddr, NetError)>) -> Self {
        if errors
            .iter()
            .all(|(_, error)| matches!(error, NetError::Timeout))
        {
            return Self::Silence;
        }
        let reasons: Vec<_> = errors
            .iter()
            .map(|(server, error)| match error {
                NetError::Dns(DnsError::ResponseCode(code)) => format!("{server}: {code}"),
                NetError::Io(error) => format!("{server}: {error}"),
                NetError::Timeout => format!("{server}: no answer"),
                // What hickory makes of every input/output error.
                NetError::NoConnections => format!("{server}: cannot be reached"),
                other => format!("{server}: {other}"),
            })
            .collect();
        Self::Reasons(reasons.join("; "))
    }
}

fn client(
    server: NameServerConfig,
    options: &ResolverOpts,
    sockets: &Arc<dyn SocketFactory>,
) -> Result<Resolver<OwnSockets>, NetError> {
    let config = ResolverConfig::from_name_servers(vec![server]);
    let provider = OwnSockets::new(Arc::clone(sockets));
    Resolver::builder_with_config(config, provider)
        .with_options(options.clone())
        .build()
}
