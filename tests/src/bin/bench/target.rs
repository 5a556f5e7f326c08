//! What clients ask.

use std::fs::{self, File};
use std::net::SocketAddr;

use underpass_tests::addr::SITE_V4;
use underpass_tests::pki::Pki;
use underpass_tests::process::Running;
use underpass_tests::{Must as _, World};

/// nginx with an answer of one kibibyte and one of one gibibyte.
pub(crate) struct Target {
    _running: Running,
}

impl Target {
    pub(crate) fn start(world: &World, pki: &Pki) -> Self {
        let dir = world.dir().join("target");
        fs::create_dir(&dir).must("make the target's directory");
        fs::write(dir.join("1k"), [b'x'; 1024]).must("write an answer");
        let long = File::create(dir.join("long")).must("make an answer");
        long.set_len(1 << 30).must("make a long answer");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {}/{what};\n", dir.display()))
            .collect();
        let configuration = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
             worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 16384; }}\n\
             http {{\n\
             {temporary}\
             access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;\n\
             keepalive_timeout 600s; open_file_cache max=16;\n\
             server {{\n\
             listen {SITE_V4}:80 backlog=4096; listen {SITE_V4}:443 ssl backlog=4096;\n\
             ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             ssl_protocols TLSv1.3;\n\
             root {dir};\n\
             }}\n\
             }}\n",
            dir = dir.display(),
            certificate = pki.certificate().display(),
            key = pki.key().display(),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, configuration).must("write nginx.conf");
        let command = world.inet().command("nginx").arg("-p").arg(&dir);
        let command = command.arg("-c").arg(&file).args(["-e", "stderr"]);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), SocketAddr::from((SITE_V4, 443)));
        Self { _running: running }
    }

    /// Where it serves, in plain or by TLS.
    pub(crate) fn address(tls: bool) -> SocketAddr {
        SocketAddr::from((SITE_V4, if tls { 443 } else { 80 }))
    }
}
