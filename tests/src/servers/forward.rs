//! What the forward proxies of other makers have in common: how they are asked to listen, whom
//! they let in, and what they log.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::addr::{PROXY_PORT, PROXY_V4, PROXY_V6};
use crate::pki::{Authority, Issued};
use crate::process::{Cmd, Running};
use crate::{Must as _, World, poll};

/// How a proxy is to listen, and whom it lets in.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The port of `proxy.example`, on both families.
    pub port: u16,
    /// What lies between it and its clients.
    pub security: Security<'a>,
    /// What it demands.
    pub credentials: Credentials<'a>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            port: PROXY_PORT,
            security: Security::Plain,
            credentials: Credentials::None,
        }
    }
}

/// TLS of a proxy.
#[derive(Clone, Copy)]
pub enum Security<'a> {
    /// None.
    Plain,
    /// The proxy shows this certificate.
    Tls(&'a Issued),
    /// The proxy shows the first, and wants one of the second.
    Mutual(&'a Issued, &'a Authority),
}

impl<'a> Security<'a> {
    /// The proxy's certificate.
    pub fn identity(&self) -> Option<&'a Issued> {
        match *self {
            Self::Plain => None,
            Self::Tls(identity) | Self::Mutual(identity, _) => Some(identity),
        }
    }

    /// The certificate of the authority whose clients it lets in.
    pub fn client_ca(&self) -> Option<PathBuf> {
        match *self {
            Self::Mutual(_, authority) => Some(authority.certificate()),
            Self::Plain | Self::Tls(_) => None,
        }
    }
}

/// What a proxy demands in Proxy-Authorization.
#[derive(Clone, Copy, Debug)]
pub enum Credentials<'a> {
    /// Nothing.
    None,
    /// A user and a password.
    Basic(&'a str, &'a str),
    /// A token.
    Bearer(&'a str),
}

impl Credentials<'_> {
    /// The value of the header, if one is demanded.
    #[track_caller]
    pub fn header(&self, world: &World) -> Option<String> {
        match self {
            Self::None => None,
            Self::Basic(user, password) => {
                let encode = world.inet().command("openssl").args(["base64", "-A"]);
                let encode = encode.input(format!("{user}:{password}"));
                let encoded = encode.run(Duration::from_secs(5)).expect_success().stdout;
                Some(format!("Basic {}", encoded.trim()))
            }
            Self::Bearer(token) => Some(format!("Bearer {token}")),
        }
    }
}

/// A forward proxy, which ends when this value is dropped.
pub struct ForwardProxy {
    running: Running,
    log: PathBuf,
    read: fn(&str) -> Option<Logged>,
    is_slow: bool,
}

/// One request as the proxy logged it, most of them at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logged {
    /// `CONNECT`, `GET`, `POST`, …
    pub method: String,
    /// The target of the request as it was sent; of Envoy's HTTP/2 POST the `:authority`.
    pub target: String,
    /// `HTTP/1.1`, and `HTTP/2` or `HTTP/2.0`, as the proxy has it.
    pub protocol: String,
    /// The status it answered with; 0 where the proxy does not log it.
    pub status: u16,
    /// The value of Proxy-Authorization as it came; empty without one, or where the proxy does not
    /// log it.
    pub authorization: String,
    /// The TLS that carried the request.
    pub tls: Option<Handshake>,
}

/// TLS as the proxy saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// `TLSv1.2`, `TLSv1.3`.
    pub version: String,
    /// The name the client asked for; empty without one. Squid does not tell.
    pub server_name: String,
    /// The subject of the client's certificate; empty without one.
    pub client: String,
    /// Whether an earlier session went on. Envoy and Squid do not tell, and this is false.
    pub resumed: bool,
}

impl ForwardProxy {
    /// Starts `command` and waits until it answers on `port` over both families.
    #[track_caller]
    pub(crate) fn start(
        world: &World,
        command: Cmd,
        port: u16,
        log: PathBuf,
        read: fn(&str) -> Option<Logged>,
    ) -> Self {
        let mut running = command.start();
        for address in addresses(port) {
            running.wait_until_listening(world.inet(), address);
        }
        Self {
            running,
            log,
            read,
            is_slow: false,
        }
    }

    /// It takes seconds to end when it is asked to, so it is not asked.
    #[must_use]
    pub(crate) fn slow(mut self) -> Self {
        self.is_slow = true;
        self
    }

    /// What it has logged, oldest first. The harness's own probes, which say nothing, are left out.
    pub fn log(&self) -> Vec<Logged> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(self.read).collect()
    }

    /// Waits for `count` requests and takes them; panics with what there is when that takes too
    /// long.
    #[track_caller]
    pub fn wait_for_log(&self, count: usize) -> Vec<Logged> {
        let complete = || Some(self.log()).filter(|log| log.len() >= count);
        poll(Duration::from_secs(20), complete).unwrap_or_else(|| {
            panic!(
                "the proxy logged {:?}, not {count} requests\n{}",
                self.log(),
                self.running.tails()
            )
        })
    }

    /// Ends it, and what it has started: from now on its port refuses connections.
    pub fn stop(&mut self) {
        if self.is_slow {
            self.running.kill();
        }
        self.running.stop();
    }

    /// The process, to be held still or killed. Apache's does its work in a child.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where a proxy with this port listens.
pub fn addresses(port: u16) -> [SocketAddr; 2] {
    [
        SocketAddr::from((PROXY_V4, port)),
        SocketAddr::from((PROXY_V6, port)),
    ]
}

/// Makes the directory of the proxy `name` that listens on `port`, unless it was started before.
#[track_caller]
pub(crate) fn directory(world: &World, name: &str, port: u16) -> PathBuf {
    let dir = world.dir().join(format!("{name}-{port}"));
    fs::create_dir_all(&dir).must("make a proxy's directory");
    dir
}

/// Writes a file of a proxy's.
#[track_caller]
pub(crate) fn write(path: &Path, content: &str) {
    fs::write(path, content).must(format_args!("write {}", path.display()));
}

/// Reads what proxies write that let us choose: the request line, the status, Proxy-Authorization,
/// the TLS version, the server name, the client's subject, and whether the session was resumed,
/// with tabs between and `-` for what is not there.
pub(crate) fn tabbed(line: &str) -> Option<Logged> {
    let mut fields = line
        .split('\t')
        .map(|field| if field == "-" { "" } else { field });
    let mut next = || fields.next();
    let mut request = next()?.splitn(3, ' ').map(str::to_owned);
    let logged = Logged {
        method: request.next()?,
        target: request.next()?,
        protocol: request.next()?,
        status: next()?.parse().ok()?,
        authorization: next()?.to_owned(),
        tls: None,
    };
    let tls = Handshake {
        version: next()?.to_owned(),
        server_name: next()?.to_owned(),
        client: next()?.to_owned(),
        resumed: matches!(next()?, "Resumed" | "r"),
    };
    let tls = (!tls.version.is_empty()).then_some(tls);
    Some(Logged { tls, ..logged })
}
