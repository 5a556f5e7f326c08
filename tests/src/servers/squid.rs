//! Squid, configured as Debian ships it, as the forward proxy.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::addr::{PROXY_PORT, PROXY_V4, PROXY_V6, proxy_v4};
use crate::pki::Issued;
use crate::process::Running;
use crate::{Must as _, World, poll};

/// The configuration of the distribution's package.
const STOCK: &str = "/etc/squid/squid.conf";
/// Where that configuration takes in what an administrator adds.
const LOCAL_RULES: &str = "include /etc/squid/conf.d/*.conf";
/// Where it speaks TLS, if it has a certificate.
pub const TLS_PORT: u16 = PROXY_PORT + 1;
/// The user Debian's Squid runs as.
const USER: &str = "proxy";

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
        let user = User::from_name(USER).must("look up squid's user");
        let user = user.unwrap_or_else(|| panic!("no user {USER}: is squid installed?"));
        chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).must("hand over a directory");

        let file = dir.join("squid.conf");
        fs::write(&file, configuration(world, &dir, options)).must("write squid.conf");
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

/// The stock configuration with the world's addresses, directories and name server.
#[track_caller]
fn configuration(world: &World, dir: &Path, options: &Options<'_>) -> String {
    let stock = fs::read_to_string(STOCK).must(format_args!("read {STOCK}"));
    let mut rules = String::new();
    for port in options.connect_ports {
        rules.push_str(&format!(
            "acl SSL_ports port {port}\nacl Safe_ports port {port}\n"
        ));
    }
    rules.push_str("acl localnet src 198.51.100.0/24 2001:db8:51::/64 192.0.2.20\n");
    if let Some((user, password)) = options.credentials {
        let passwords = dir.join("passwords");
        let openssl = world
            .inet()
            .command("openssl")
            .args(["passwd", "-apr1", password]);
        let hash = openssl.run(Duration::from_secs(5)).expect_success().stdout;
        fs::write(&passwords, format!("{user}:{hash}")).must("write passwords");
        rules.push_str(&format!(
            "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\n\
             auth_param basic children 1\n\
             acl known proxy_auth REQUIRED\n\
             http_access deny !known\n",
            passwords.display()
        ));
    }
    rules.push_str("http_access allow localnet\n");

    let mut ports =
        format!("http_port {PROXY_V4}:{PROXY_PORT}\nhttp_port [{PROXY_V6}]:{PROXY_PORT}\n");
    if let Some(identity) = options.tls {
        let files = format!(
            "tls-cert={} tls-key={}",
            identity.certificate.display(),
            identity.key.display()
        );
        ports.push_str(&format!(
            "https_port {PROXY_V4}:{TLS_PORT} {files}\nhttps_port [{PROXY_V6}]:{TLS_PORT} {files}\n"
        ));
    }
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
                text.push_str(&ports);
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
        "logformat seen %rm %ru %>Hs %[un\n\
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
