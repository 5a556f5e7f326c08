//! Squid, configured as Debian ships it, as the forward proxy; and built with OpenSSL, by which it
//! knows clients as well.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::User;

use super::forward::{self, Credentials, ForwardProxy, addresses, directory, tabbed};
use crate::addr::{PROXY_PORT, PROXY_V4, PROXY_V6, proxy_v4};
use crate::pki::Issued;
use crate::process::Running;
use crate::{Must as _, World, poll, tools};

/// The configuration of the distribution's package.
const STOCK: &str = "/etc/squid/squid.conf";
/// Where that configuration takes in what an administrator adds.
const LOCAL_RULES: &str = "include /etc/squid/conf.d/*.conf";
/// Where it speaks TLS, if it has a certificate.
pub const TLS_PORT: u16 = PROXY_PORT + 1;
/// The user Debian's Squid runs as.
const USER: &str = "proxy";
/// What [`tabbed`] reads.
const FORMAT: &str = "%rm %ru HTTP/%rv\t%>Hs\t%'{Proxy-Authorization}>h\t\
    %ssl::>negotiated_version\t%ssl::>sni\t%ssl::>cert_subject\t-";

/// Squid on `proxy.example`, port 3128, both families.
///
/// The rules are the stock ones: CONNECT to port 443 only. What is added is what every
/// administrator has to add: who the local network is, and that it may use the proxy.
pub struct Squid {
    running: Running,
    log: PathBuf,
}

/// What may differ from the stock configuration.
#[derive(Default)]
pub struct Options<'a> {
    /// Ports besides 443 that CONNECT may name.
    pub connect_ports: &'a [u16],
    /// The user name and password it demands.
    pub credentials: Option<(&'a str, &'a str)>,
    /// The certificate it shows on [`TLS_PORT`], where it listens as well then. Client certificates
    /// are more than Debian's build can do, which has GnuTLS.
    pub tls: Option<&'a Issued>,
}

/// One line of the log, written when the request or tunnel has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// `CONNECT`, `GET`, …
    pub method: String,
    /// The request target as it was sent.
    pub target: String,
    /// The status Squid answered with.
    pub status: u16,
    /// The authenticated user, or `-`.
    pub user: String,
}

impl Squid {
    /// Starts it with the stock rules.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &Options::default())
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start_with(world: &World, options: &Options<'_>) -> Self {
        let dir = world.dir().join("squid");
        fs::create_dir(&dir).must("make squid's directory");
        hand_over(&dir);
        let file = dir.join("squid.conf");
        fs::write(&file, stock(world, &dir, options)).must("write squid.conf");
        let command = world.inet().command("squid").args(["-N", "-f"]).arg(&file);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), proxy_v4());
        if options.tls.is_some() {
            running.wait_until_listening(world.inet(), (PROXY_V6, TLS_PORT).into());
        }
        Self {
            running,
            log: dir.join("access.log"),
        }
    }

    /// What it has logged, oldest first.
    pub fn log(&self) -> Vec<Logged> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(logged).collect()
    }

    /// Waits for `count` lines and takes them; panics with what there is when that takes too long.
    #[track_caller]
    pub fn wait_for_log(&self, count: usize) -> Vec<Logged> {
        let complete = || Some(self.log()).filter(|log| log.len() >= count);
        poll(Duration::from_secs(20), complete).unwrap_or_else(|| {
            panic!(
                "squid logged {:?}, not {count} lines\n{}",
                self.log(),
                self.running.tails()
            )
        })
    }

    /// The targets of all CONNECT requests so far, after waiting for `count` of them.
    #[track_caller]
    pub fn connects(&self, count: usize) -> Vec<String> {
        let log = self.wait_for_log(count);
        log.into_iter()
            .filter(|line| line.method == "CONNECT")
            .map(|line| line.target)
            .collect()
    }

    /// Has it do nothing for a while, with its sockets open, or go on.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Ends it at once: `proxy.example` refuses connections from now on.
    pub fn stop(&mut self) {
        // Asked politely, it takes seconds even without any client.
        self.running.kill();
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the build with OpenSSL, with one port, and waits until it answers. Who lacks the token it
/// demands gets status 403, for Squid has no challenge for that.
#[track_caller]
pub fn with_openssl(world: &World, options: &forward::Options<'_>) -> ForwardProxy {
    let dir = directory(world, "squid", options.port);
    hand_over(&dir);
    let tls = options.security.identity().map(|identity| {
        let clients = options.security.client_ca();
        let clients = clients.map(|ca| format!(" clientca={}", ca.display()));
        files(identity) + &clients.unwrap_or_default()
    });
    let ports: String = addresses(options.port)
        .iter()
        .map(|address| match &tls {
            None => format!("http_port {address}\n"),
            Some(tls) => format!("https_port {address} {tls}\n"),
        })
        .collect();
    let who = match options.credentials {
        Credentials::None => String::new(),
        Credentials::Basic(user, password) => known(world, &dir, user, password),
        Credentials::Bearer(token) => format!(
            "acl known req_header Proxy-Authorization ^Bearer\\ {token}$\n\
             http_access deny !known\n"
        ),
    };
    let file = dir.join("squid.conf");
    forward::write(&file, &configuration(&dir, &who, &ports, FORMAT));
    let command = tools::unpacked(world.inet(), "squid-openssl", "usr/sbin/squid");
    let command = command.args(["-N", "-f"]).arg(&file);
    let log = dir.join("access.log");
    ForwardProxy::start(world, command, options.port, log, with_tls).slow()
}

/// Reads a line of [`FORMAT`], in Squid's words.
fn with_tls(line: &str) -> Option<forward::Logged> {
    // A connection that ended before it said anything, such as the harness's own probe.
    if line.starts_with("- ") {
        return None;
    }
    let mut logged = tabbed(line)?;
    if let Some(tls) = &mut logged.tls {
        tls.version = tls.version.replace('/', "v");
        tls.client = tls.client.trim_start_matches('/').to_owned();
    }
    Some(logged)
}

/// What it tells of a request.
pub fn told(request: forward::Logged) -> forward::Logged {
    let tls = request.tls.map(|tls| forward::Handshake {
        server_name: String::new(),
        ..tls
    });
    forward::Logged { tls, ..request }
}

/// Makes `dir` a directory of Squid's user.
#[track_caller]
fn hand_over(dir: &Path) {
    let user = User::from_name(USER).must("look up squid's user");
    let user = user.unwrap_or_else(|| panic!("no user {USER}: is squid installed?"));
    chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).must("hand over a directory");
}

/// The certificate of a port.
fn files(identity: &Issued) -> String {
    format!(
        "tls-cert={} tls-key={}",
        identity.certificate.display(),
        identity.key.display()
    )
}

/// Rules that let in only `user`, who has to have `password`.
#[track_caller]
fn known(world: &World, dir: &Path, user: &str, password: &str) -> String {
    let passwords = dir.join("passwords");
    let openssl = world
        .inet()
        .command("openssl")
        .args(["passwd", "-apr1", password]);
    let hash = openssl.run(Duration::from_secs(5)).expect_success().stdout;
    fs::write(&passwords, format!("{user}:{hash}")).must("write passwords");
    format!(
        "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
         auth_param basic children 1\n\
         acl known proxy_auth REQUIRED\n\
         http_access deny !known\n",
        passwords.display()
    )
}

/// The stock configuration with what `options` have.
#[track_caller]
fn stock(world: &World, dir: &Path, options: &Options<'_>) -> String {
    let mut rules = String::new();
    for port in options.connect_ports {
        rules.push_str(&format!(
            "acl SSL_ports port {port}\nacl Safe_ports port {port}\n"
        ));
    }
    if let Some((user, password)) = options.credentials {
        rules.push_str(&known(world, dir, user, password));
    }
    let mut ports =
        format!("http_port {PROXY_V4}:{PROXY_PORT}\nhttp_port [{PROXY_V6}]:{PROXY_PORT}\n");
    if let Some(identity) = options.tls {
        let files = files(identity);
        ports.push_str(&format!(
            "https_port {PROXY_V4}:{TLS_PORT} {files}\nhttps_port [{PROXY_V6}]:{TLS_PORT} {files}\n"
        ));
    }
    configuration(dir, &rules, &ports, "%rm %ru %>Hs %[un")
}

/// The stock configuration with the world's addresses, directories and name server, and with these
/// rules before those about who may use it, ports, and format of the log.
#[track_caller]
fn configuration(dir: &Path, rules: &str, ports: &str, format: &str) -> String {
    let stock = fs::read_to_string(STOCK).must(format_args!("read {STOCK}"));
    let rules = format!(
        "acl localnet src 198.51.100.0/24 2001:db8:51::/64 192.0.2.20\n\
         {rules}http_access allow localnet\n"
    );
    let mut found = (false, false);
    let mut text = String::new();
    for line in stock.lines() {
        match line.trim() {
            LOCAL_RULES => {
                found.0 = true;
                text.push_str(&rules);
            }
            "http_port 3128" => {
                found.1 = true;
                text.push_str(ports);
            }
            line if line.starts_with("coredump_dir") => {}
            line => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    assert!(
        found == (true, true),
        "{STOCK} is not the one of Debian's package: {found:?}"
    );
    text.push_str(&format!(
        "logformat seen {format}\n\
         access_log stdio:{dir}/access.log seen\n\
         cache_log {dir}/cache.log\n\
         pid_filename {dir}/pid\n\
         coredump_dir {dir}\n\
         visible_hostname proxy.example\n\
         dns_nameservers {dns}\n\
         pinger_enable off\n\
         max_filedescriptors 16384\n\
         shutdown_lifetime 0 seconds\n",
        dir = dir.display(),
        dns = crate::addr::DNS_V4,
    ));
    text
}

fn logged(line: &str) -> Option<Logged> {
    // A connection that ended before it said anything, such as the harness's own probe.
    if line.starts_with("- ") {
        return None;
    }
    let mut words = line.split(' ').map(str::to_owned);
    Some(Logged {
        method: words.next()?,
        target: words.next()?,
        status: words.next()?.parse().ok()?,
        user: words.next()?,
    })
}
