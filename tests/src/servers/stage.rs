//! What tests of the way to a proxy begin with: certificates, and clients that are not ours.

use std::cell::Cell;

use super::envoy::client::{Client, Tls, Tunnel, Way};
use super::forward::{Credentials, Handshake, Logged, Options, Security, addresses};
use crate::curl::{Curl, Seen};
use crate::pki::{Authority, Issued, Request};
use crate::{Scene, World, tools};

/// What is asked for: the site of the scene.
pub const TARGET: &str = "site.example:443";

/// A scene with a proxy's certificate, and an authority for clients with a client of it.
pub struct Stage {
    /// The certificate of `proxy.example`.
    pub proxy: Issued,
    /// The authority whose clients it lets in.
    pub clients: Authority,
    /// One of them.
    pub client: Issued,
    /// The port of the next client that listens.
    port: Cell<u16>,
    /// The scene. Its world is the last to end.
    pub scene: Scene,
}

impl Stage {
    /// Makes the stage of the test `name`.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let (world, authority) = (&scene.world, scene.pki.authority());
        let proxy = authority.issue(world, "proxy", &Request::server(&["DNS:proxy.example"]));
        let clients = Authority::new(world, "clients");
        let client = clients.issue(world, "client", &Request::client("workload"));
        Self {
            proxy,
            clients,
            client,
            port: Cell::new(15100),
            scene,
        }
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.scene.world
    }

    /// Without TLS, with it, and with client certificates.
    pub fn securities(&self) -> [Security<'_>; 3] {
        [
            Security::Plain,
            Security::Tls(&self.proxy),
            Security::Mutual(&self.proxy, &self.clients),
        ]
    }

    /// curl through the proxy that was started with `options`, with a client certificate where one
    /// is demanded, and with `credentials`.
    #[track_caller]
    pub fn curl(&self, options: &Options<'_>, credentials: Credentials<'_>) -> Seen {
        let curl = self.proxied_curl(options, credentials);
        curl.run(self.world().host().command("curl"))
    }

    /// As [`curl`](Self::curl), over HTTP/2 where there is TLS: without, curl does not speak it with
    /// proxies.
    #[track_caller]
    pub fn curl_http2(&self, options: &Options<'_>, credentials: Credentials<'_>) -> Seen {
        let mut curl = self.proxied_curl(options, credentials);
        if options.security.identity().is_some() {
            curl = curl.args(["--proxy-http2"]);
        }
        curl.run(tools::unpacked(self.world().host(), "curl", "usr/bin/curl"))
    }

    #[track_caller]
    fn proxied_curl(&self, options: &Options<'_>, credentials: Credentials<'_>) -> Curl {
        let curl = self.scene.curl("https://site.example/page");
        let scheme = match options.security {
            Security::Plain => "http",
            Security::Tls(_) | Security::Mutual(..) => "https",
        };
        let mut curl = curl
            .args([
                "-x".into(),
                format!("{scheme}://proxy.example:{}", options.port),
            ])
            .args(["--proxy-cacert".into(), self.scene.pki.ca()]);
        if options.security.client_ca().is_some() {
            curl = curl
                .args(["--proxy-cert".into(), self.client.certificate.clone()])
                .args(["--proxy-key".into(), self.client.key.clone()]);
        }
        if let Credentials::Basic(user, password) = credentials {
            curl = curl.args(["--proxy-user".into(), format!("{user}:{password}")]);
        } else if let Some(value) = credentials.header(self.world()) {
            curl = curl.args([
                "--proxy-header".into(),
                format!("Proxy-Authorization: {value}"),
            ]);
        }
        curl
    }

    /// As [`curl`](Self::curl), which however knows of no proxy: Envoy on its own host asks for the
    /// tunnel, in this `way`.
    #[track_caller]
    pub fn through_envoy(
        &self,
        way: Way,
        options: &Options<'_>,
        credentials: Credentials<'_>,
    ) -> Seen {
        let ca = self.scene.pki.ca();
        let authorization = credentials.header(self.world());
        let tls = options.security.identity().map(|_| Tls {
            authority: &ca,
            identity: options.security.client_ca().map(|_| &self.client),
        });
        let [proxy, _] = addresses(options.port);
        let tunnel = Tunnel {
            proxy,
            way,
            target: TARGET,
            tls,
            authorization: authorization.as_deref(),
        };
        let port = self.port.replace(self.port.get() + 1);
        let client = Client::start(self.world(), port, &tunnel);
        let curl = self.scene.curl("https://site.example/page");
        let curl = curl.args([
            "--connect-to".into(),
            format!("{TARGET}:{}", client.address()),
        ]);
        curl.run(self.world().host().command("curl"))
    }

    /// What a proxy is to log about a tunnel to the site.
    #[track_caller]
    pub fn tunnel(
        &self,
        protocol: &str,
        options: &Options<'_>,
        credentials: Credentials<'_>,
    ) -> Logged {
        Logged {
            method: "CONNECT".into(),
            target: TARGET.into(),
            protocol: protocol.into(),
            status: 200,
            authorization: credentials.header(self.world()).unwrap_or_default(),
            tls: options.security.identity().map(|_| Handshake {
                version: "TLSv1.3".into(),
                server_name: "proxy.example".into(),
                client: match options.security {
                    Security::Mutual(..) => "CN=workload".into(),
                    _ => String::new(),
                },
                resumed: false,
            }),
        }
    }
}
