//! Web servers that keep what is PUT, so that what went up is seen to come down again.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::unistd::User;

use crate::addr::OTHER_V4;
use crate::pki::Pki;
use crate::process::{Cmd, Running};
use crate::{Must as _, World};

/// Where they speak plain HTTP.
pub const PORT: u16 = 8080;
/// Where they speak it by TLS, with the certificate of all names of the world.
pub const TLS_PORT: u16 = 8443;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Apache's, with mod_dav.
    Apache,
    /// nginx, with its module for PUT.
    Nginx,
    /// Node's (`programs/web.js`).
    Node,
    /// That of Python's library (`programs/web.py`).
    Python,
}

impl Maker {
    /// Whether it does what `programs/web.py` tells of beside PUT and GET.
    pub fn is_scripted(self) -> bool {
        matches!(self, Self::Node | Self::Python)
    }
}

/// Starts it at `other.example`, and waits until it answers.
#[track_caller]
pub fn start(world: &World, pki: &Pki, maker: Maker) -> Running {
    let dir = world.dir().join("web");
    fs::create_dir(&dir).must("make a web server's directory");
    let inet = world.inet();
    let command = match maker {
        Maker::Apache => apache(world, &dir, pki),
        Maker::Nginx => nginx(world, &dir, pki),
        Maker::Node => {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/web.js");
            scripted(inet.command("node").arg(script), pki)
        }
        Maker::Python => scripted(inet.python("web"), pki),
    };
    let mut running = command.start();
    for port in [PORT, TLS_PORT] {
        running.wait_until_listening(inet, SocketAddr::from((OTHER_V4, port)));
    }
    running
}

fn scripted(command: Cmd, pki: &Pki) -> Cmd {
    command
        .arg(OTHER_V4.to_string())
        .args([PORT.to_string(), TLS_PORT.to_string()])
        .args([pki.certificate(), pki.key()])
}

#[track_caller]
fn nginx(world: &World, dir: &Path, pki: &Pki) -> Cmd {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {}/{what};\n", dir.display()))
        .collect();
    let server = |listen: String| {
        format!(
            "server {{ listen {OTHER_V4}:{listen};\n\
             ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             location / {{ root {dir}/files; dav_methods PUT; client_max_body_size 0; }} }}\n",
            certificate = pki.certificate().display(),
            key = pki.key().display(),
            dir = dir.display(),
        )
    };
    let configuration = format!(
        "daemon off; master_process off; user root; pid {dir}/pid; error_log stderr;\n\
         events {{}}\n\
         http {{ access_log off;\n{temporary}{plain}{secure}}}\n",
        dir = dir.display(),
        plain = server(PORT.to_string()),
        secure = server(format!("{TLS_PORT} ssl")),
    );
    let file = write(dir, "nginx.conf", &configuration);
    fs::create_dir(dir.join("files")).must("make a directory for files");
    let command = world.inet().command("nginx").arg("-p").arg(dir);
    command.arg("-c").arg(file).args(["-e", "stderr"])
}

#[track_caller]
fn apache(world: &World, dir: &Path, pki: &Pki) -> Cmd {
    let modules = ["mpm_event", "authz_core", "dav", "dav_fs", "ssl"];
    let modules: String = modules
        .iter()
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .collect();
    let configuration = format!(
        "{modules}\
         Listen {OTHER_V4}:{PORT}\n\
         Listen {OTHER_V4}:{TLS_PORT}\n\
         ServerRoot {dir}\n\
         ServerName other.example\n\
         PidFile {dir}/pid\n\
         DefaultRuntimeDir {dir}\n\
         ErrorLog /dev/stderr\n\
         LogLevel warn\n\
         User www-data\n\
         Group www-data\n\
         StartServers 1\n\
         DavLockDB {dir}/files/.locks\n\
         DocumentRoot {dir}/files\n\
         <Directory {dir}/files>\nRequire all granted\nDav On\n</Directory>\n\
         <VirtualHost *:{TLS_PORT}>\n\
         DocumentRoot {dir}/files\n\
         SSLEngine on\n\
         SSLCertificateFile {certificate}\n\
         SSLCertificateKeyFile {key}\n\
         </VirtualHost>\n",
        dir = dir.display(),
        certificate = pki.certificate().display(),
        key = pki.key().display(),
    );
    let file = write(dir, "apache.conf", &configuration);
    let files = dir.join("files");
    fs::create_dir(&files).must("make a directory for files");
    let user = User::from_name("www-data").must("look up apache's user");
    let user = user.expect("no user www-data: is apache2-bin installed?");
    chown(&files, Some(user.uid.as_raw()), Some(user.gid.as_raw())).must("hand over a directory");
    let command = world.inet().command("apache2");
    command.args(["-DFOREGROUND", "-f"]).arg(file)
}

#[track_caller]
fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let file = dir.join(name);
    fs::write(&file, text).must(format_args!("write {name}"));
    file
}
