//! Apache with mod_proxy_connect: HTTP/1.1 and HTTP/2, TLS, client certificates, credentials.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::forward::{
    Credentials, ForwardProxy, Options, Security, addresses, directory, tabbed, write,
};
use crate::World;

/// Where Debian has its modules.
const MODULES: &str = "/usr/lib/apache2/modules";

/// What [`tabbed`] reads.
const FORMAT: &str = "%r\\t%>s\\t%{Proxy-Authorization}i\\t%{SSL_PROTOCOL}e\\t\
    %{SSL_TLS_SNI}e\\t%{SSL_CLIENT_S_DN}e\\t%{SSL_SESSION_RESUMED}e";

/// What the log tells of TLS. It is kept when a request comes in, for it may be logged when its
/// connection is gone.
const HANDSHAKE: [&str; 4] = [
    "SSL_PROTOCOL",
    "SSL_TLS_SNI",
    "SSL_CLIENT_S_DN",
    "SSL_SESSION_RESUMED",
];

/// Starts it and waits until it answers. It speaks HTTP/1.1 and HTTP/2: over TLS as ALPN says,
/// without TLS by prior knowledge. Who lacks the token it demands gets status 403, for Apache has
/// no challenge for that.
#[track_caller]
pub fn start(world: &World, options: &Options<'_>) -> ForwardProxy {
    start_with(world, options, "")
}

/// The same, with these lines in its configuration.
#[track_caller]
pub fn start_with(world: &World, options: &Options<'_>, more: &str) -> ForwardProxy {
    let dir = directory(world, "apache", options.port);
    let file = dir.join("apache.conf");
    write(&file, &(configuration(world, &dir, options) + more));
    let command = world.inet().command("apache2");
    let command = command.args(["-DFOREGROUND", "-f"]).arg(&file);
    let log = dir.join("access.log");
    ForwardProxy::start(world, command, options.port, log, tabbed)
}

#[track_caller]
fn configuration(world: &World, dir: &Path, options: &Options<'_>) -> String {
    let mut text = String::new();
    for module in [
        "mpm_event",
        "authn_core",
        "authn_file",
        "authz_core",
        "authz_user",
        "auth_basic",
        "http2",
        "proxy",
        "proxy_connect",
        "proxy_http",
        "setenvif",
        "ssl",
    ] {
        let _ = writeln!(text, "LoadModule {module}_module {MODULES}/mod_{module}.so");
    }
    for address in addresses(options.port) {
        let _ = writeln!(text, "Listen {address}");
    }
    let _ = write!(
        text,
        "ServerRoot {dir}\n\
         ServerName proxy.example\n\
         PidFile {dir}/pid\n\
         DefaultRuntimeDir {dir}\n\
         ErrorLog /dev/stderr\n\
         LogLevel warn\n\
         LogFormat \"{FORMAT}\" seen\n\
         CustomLog {dir}/access.log seen\n\
         User www-data\n\
         Group www-data\n\
         StartServers 1\n\
         ServerLimit 1\n\
         ThreadLimit 64\n\
         ThreadsPerChild 64\n\
         MaxRequestWorkers 64\n\
         MinSpareThreads 1\n\
         MaxSpareThreads 64\n\
         ProxyRequests On\n\
         AllowCONNECT 1-65535\n",
        dir = dir.display(),
    );
    text.push_str(match options.security {
        Security::Plain => "Protocols h2c http/1.1\n",
        Security::Tls(_) | Security::Mutual(..) => "Protocols h2 http/1.1\n",
    });
    if let Some(identity) = options.security.identity() {
        let _ = write!(
            text,
            "SSLEngine on\nSSLCertificateFile {}\nSSLCertificateKeyFile {}\n",
            identity.certificate.display(),
            identity.key.display(),
        );
        for variable in HANDSHAKE {
            let _ = writeln!(
                text,
                "SetEnvIfExpr \"%{{{variable}}} =~ /(.+)/\" {variable}=$1"
            );
        }
    }
    if let Some(authority) = options.security.client_ca() {
        let _ = write!(
            text,
            "SSLCACertificateFile {}\nSSLVerifyClient require\n",
            authority.display(),
        );
    }
    let _ = write!(text, "<Proxy *>\n{}</Proxy>\n", who(world, dir, options));
    text
}

/// The lines that say who may use it.
#[track_caller]
fn who(world: &World, dir: &Path, options: &Options<'_>) -> String {
    match options.credentials {
        Credentials::None => "Require all granted\n".into(),
        Credentials::Basic(user, password) => {
            let passwords = dir.join("passwords");
            let openssl = world.inet().command("openssl");
            let openssl = openssl.args(["passwd", "-apr1", password]);
            let hash = openssl.run(Duration::from_secs(5)).expect_success().stdout;
            write(&passwords, &format!("{user}:{hash}"));
            format!(
                "AuthType Basic\nAuthName proxy.example\nAuthUserFile {}\nRequire valid-user\n",
                passwords.display()
            )
        }
        Credentials::Bearer(token) => {
            format!("Require expr %{{HTTP:Proxy-Authorization}} == 'Bearer {token}'\n")
        }
    }
}
