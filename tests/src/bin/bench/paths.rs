//! Ways from the client to the target.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use underpass_tests::addr::{PROXY_PORT, PROXY_V4, SITE_V4};
use underpass_tests::agent::Agent;
use underpass_tests::cgroup::Cgroup;
use underpass_tests::pki::Pki;
use underpass_tests::process::Running;
use underpass_tests::servers::forward::{ForwardProxy, Options};
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::{apache, envoy, nghttpx};
use underpass_tests::{Must as _, Place, World};

use super::target::Target;

/// A way from the client to the target.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    /// The port of the forward proxy.
    port: u16,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The client speaks CONNECT itself.
    Explicit,
    /// The agent, which asks the proxy in this way, and reads nothing of what the client sends.
    Underpass(&'static str),
    /// The agent, which reads HTTP request by request.
    UnderpassHttp,
    Redsocks,
    /// Envoy, with the version of HTTP towards the proxy.
    Envoy(&'static str),
}

pub(crate) const GATEWAY: u16 = PROXY_PORT;
const APACHE: u16 = 3131;
const ENVOY: u16 = 3133;
const NGHTTPX: u16 = 3134;

/// Where the peers listen for what the kernel redirects to them.
const REDIRECTED: u16 = 15001;

const fn path(name: &'static str, port: u16, kind: Kind) -> Path {
    Path { name, port, kind }
}

/// All of them. What they are compared with is first; before those through another proxy is the
/// client that asks that one itself, by HTTP/1.1.
pub(crate) const PATHS: [Path; 13] = [
    path("explicit", GATEWAY, Kind::Explicit),
    path("underpass", GATEWAY, Kind::Underpass("HTTP-CONNECT")),
    path("underpass-http", GATEWAY, Kind::UnderpassHttp),
    path("underpass-h2", GATEWAY, Kind::Underpass("HTTP2-CONNECT")),
    path("explicit-apache", APACHE, Kind::Explicit),
    path(
        "underpass-h2-apache",
        APACHE,
        Kind::Underpass("HTTP2-CONNECT"),
    ),
    path("explicit-envoy", ENVOY, Kind::Explicit),
    path(
        "underpass-h2-envoy",
        ENVOY,
        Kind::Underpass("HTTP2-CONNECT"),
    ),
    path("explicit-nghttpx", NGHTTPX, Kind::Explicit),
    path(
        "underpass-h2-nghttpx",
        NGHTTPX,
        Kind::Underpass("HTTP2-CONNECT"),
    ),
    path("redsocks", GATEWAY, Kind::Redsocks),
    path("envoy", GATEWAY, Kind::Envoy("http_protocol_options")),
    path(
        "envoy-h2-envoy",
        ENVOY,
        Kind::Envoy("http2_protocol_options"),
    ),
];

/// What all paths share: a world, forward proxies and a target. The world ends last.
pub(crate) struct Setting {
    _resident: Running,
    _target: Target,
    _proxies: [ForwardProxy; 3],
    _gateway: Gateway,
    pub(crate) pki: Pki,
    pub(crate) congestion: &'static str,
    pub(crate) world: World,
}

impl Setting {
    pub(crate) fn new() -> Self {
        let world = World::new("bench");
        let congestion = set_congestion([world.host(), world.inet()]);
        for (name, value) in SETTINGS {
            world.host().set_net(name, value);
            world.inet().set_net(name, value);
        }
        let pki = Pki::new(&world);
        let gateway = Gateway::start(&world);
        let on = |port| Options {
            port,
            ..Options::default()
        };
        let behind = SocketAddr::from((PROXY_V4, GATEWAY));
        let proxies = [
            apache::start(&world, &on(APACHE)),
            envoy::start(&world, &on(ENVOY), envoy::Versions::Both),
            nghttpx::start(&world, &on(NGHTTPX), behind),
        ];
        let target = Target::start(&world, &pki);
        // As in every pod somebody is there all the time. Else the agent would let the network
        // namespace go between two clients, and refuse the first connections of the next.
        let resident = world.host().command("sleep").arg("infinity");
        let resident = resident.in_cgroup(world.workload()).start();
        Self {
            _resident: resident,
            _target: target,
            _proxies: proxies,
            _gateway: gateway,
            pki,
            congestion,
            world,
        }
    }
}

/// Thousands of connections a second to one address leave so many ports in TIME-WAIT that finding
/// a free one would be what is measured.
const SETTINGS: [(&str, &str); 2] = [
    ("ipv4/ip_local_port_range", "1024 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
];

/// Has congestion controlled as Linux does it unless it is told otherwise, and where the machine
/// keeps that from network namespaces (`tcp_allowed_congestion_control`), by what it keeps from
/// nobody. BBR, which it may be told, paces what is sent, and that costs more than what is measured.
fn set_congestion(places: [&Place; 2]) -> &'static str {
    let set = |algorithm: &&str| {
        let name = "ipv4/tcp_congestion_control";
        places.map(|place| place.try_set_net(name, algorithm).is_ok()) == [true; 2]
    };
    ["cubic", "reno"].into_iter().find(set).unwrap_or_default()
}

/// What stands between the client and the forward proxy; it ends with this value.
pub(crate) enum Peer {
    Agent(Agent),
    Redirected(Redirected),
}

impl Peer {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Agent(agent) => agent.pid(),
            Self::Redirected(peer) => peer.running.pid(),
        }
    }
}

/// A process to which the kernel redirects what goes to the target.
pub(crate) struct Redirected {
    running: Running,
    host: Place,
}

impl Redirected {
    fn start(mut running: Running, host: &Place) -> Self {
        running.wait_until_listening(host, SocketAddr::from((Ipv4Addr::LOCALHOST, REDIRECTED)));
        let to = format!("-A OUTPUT -p tcp -d {SITE_V4} -j REDIRECT --to-ports {REDIRECTED}");
        rules(host, &to);
        Self {
            running,
            host: host.clone(),
        }
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        rules(&self.host, "-F OUTPUT");
    }
}

fn rules(host: &Place, rule: &str) {
    let command = host.command("iptables-legacy").args(["-w", "-t", "nat"]);
    let command = command.args(rule.split(' '));
    command.run(Duration::from_secs(10)).expect_success();
}

impl Path {
    /// Whether an agent or a peer of it is on the way.
    pub(crate) fn is_transparent(&self) -> bool {
        self.kind != Kind::Explicit
    }

    /// Whether the forward proxy is the one that most paths have.
    pub(crate) fn is_by_gateway(&self) -> bool {
        self.port == GATEWAY
    }

    /// The client that asks the same proxy itself.
    pub(crate) fn baseline(&self) -> Option<&'static str> {
        let same = |path: &&Path| path.kind == Kind::Explicit && path.port == self.port;
        PATHS.iter().find(same).map(|path| path.name)
    }

    /// The proxy that the client itself must ask.
    pub(crate) fn via(&self) -> Option<SocketAddr> {
        (!self.is_transparent()).then(|| self.proxy())
    }

    /// The cgroup of the client.
    pub(crate) fn cgroup<'a>(&self, setting: &'a Setting) -> &'a Cgroup {
        match self.kind {
            Kind::Underpass(_) | Kind::UnderpassHttp => setting.world.workload(),
            _ => setting.world.services(),
        }
    }

    fn proxy(&self) -> SocketAddr {
        SocketAddr::from((PROXY_V4, self.port))
    }

    /// Starts what it needs.
    pub(crate) fn up(&self, setting: &Setting) -> Option<Peer> {
        let world = &setting.world;
        match self.kind {
            Kind::Explicit => None,
            Kind::Underpass(protocol) => {
                let policy = opaque(self.port, protocol);
                Some(Peer::Agent(agent(world, &policy)))
            }
            Kind::UnderpassHttp => {
                let policy = policy(self.port, "HTTP-CONNECT", "");
                Some(Peer::Agent(agent(world, &policy)))
            }
            Kind::Redsocks => {
                let configuration = format!(
                    "base {{ log_debug = off; log_info = off; log = \"stderr\"; daemon = off;
                       redirector = iptables; rlimit_nofile = 20000; redsocks_conn_max = 9000; }}
                     redsocks {{ local_ip = 127.0.0.1; local_port = {REDIRECTED}; listenq = 4096;
                       ip = {PROXY_V4}; port = {}; type = http-connect; }}\n",
                    self.port
                );
                let file = world.dir().join("redsocks.conf");
                fs::write(&file, configuration).must("write redsocks.conf");
                let command = world.host().command("redsocks").arg("-c").arg(file);
                let peer = Redirected::start(command.start(), world.host());
                Some(Peer::Redirected(peer))
            }
            Kind::Envoy(version) => {
                let running = envoy::transparent(world, REDIRECTED, self.proxy(), version);
                Some(Peer::Redirected(Redirected::start(running, world.host())))
            }
        }
    }
}

/// The access log is written as always, but nobody reads it.
pub(crate) fn agent(world: &World, policy: &str) -> Agent {
    Agent::start_with(world, policy, &["--log-file", "/dev/null"])
}

/// A policy of one Tunnel for everything, of which nothing is read.
pub(crate) fn opaque(port: u16, protocol: &str) -> String {
    policy(port, protocol, "targetHost: ORIGINAL_DST")
}

/// A policy of one Tunnel for everything; `target` is a further line of it.
fn policy(port: u16, protocol: &str, target: &str) -> String {
    format!(
        "apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata: {{ name: bench }}\n\
         spec:\n\
         \x20 proxy: {{ host: {PROXY_V4}, port: {port}, protocol: {protocol} }}\n\
         \x20 {target}\n"
    )
}
