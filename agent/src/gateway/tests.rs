//! A whole gateway on loopback, asked by raw TCP clients.

mod chain;
mod forwarding;
mod http2;
mod logs;
mod refusals;
mod ssrf;
mod tls;
mod tunnels;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::name::HostName;
use crate::telemetry::scrape::Scrape;

/// A gateway at work, until it is dropped.
struct Running {
    address: SocketAddr,
    control: Control,
    registry: Registry,
    serving: JoinHandle<()>,
}

impl Running {
    /// Waits until the one metric of this name and these labels has `value`.
    async fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.wait_until(name, labels, |found| found == value).await;
    }

    /// Waits until files were read again with this result; how often is chance.
    async fn wait_for_reload(&self, what: &str, result: &str) {
        let labels = [("what", what), ("result", result)];
        let name = "underpass_gateway_reloads_total";
        self.wait_until(name, &labels, |found| found > 0.0).await;
    }

    async fn wait_until(&self, name: &str, labels: &[(&str, &str)], is: impl Fn(f64) -> bool) {
        for _ in 0..500 {
            let scrape = Scrape::of(&self.registry);
            if is(scrape.value(name, labels).unwrap_or_default()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{name}{labels:?} never has the value: {:#?}",
            Scrape::of(&self.registry)
        );
    }
}

/// Starts a gateway that knows the names of [`Table`].
async fn start(config: GatewayConfig) -> Running {
    start_with(|_| config).await
}

/// The same with what is counted as the gateway counts.
async fn start_with(config: impl FnOnce(&GatewayMetrics) -> GatewayConfig) -> Running {
    let registry = Registry::new();
    let metrics = GatewayMetrics::new(&registry).unwrap();
    let config = GatewayConfig {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        ..config(&metrics)
    };
    let bound = Gateway::bind(config, Table::default(), metrics).await;
    let gateway = bound.unwrap();
    let address = gateway.addresses()[0];
    let control = Control::default();
    let serving = tokio::spawn(gateway.serve(control.clone()));
    Running {
        address,
        control,
        registry,
        serving,
    }
}

/// Loopback is allowed, by whatever name.
fn local() -> GatewayConfig {
    allow(&["*:*", "127.0.0.0/8:*"])
}

fn allow(rules: &[&str]) -> GatewayConfig {
    GatewayConfig {
        allow: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..GatewayConfig::default()
    }
}

/// Only for the users of a file with this text.
fn only_for(text: &str, scheme: Scheme) -> Vec<Followed<CredentialFile>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_owned();
    // The file is there as long as it is followed.
    let load = move || CredentialFile::load(file.path(), scheme);
    vec![Followed::new("credentials", vec![path], load).unwrap()]
}

/// Names and addresses that never change, but for one.
struct Table {
    names: HashMap<&'static str, Vec<IpAddr>>,
    rebound: AtomicBool,
}

impl Default for Table {
    fn default() -> Self {
        let table = [
            ("here.example", vec!["127.0.0.1"]),
            ("metadata.example", vec!["169.254.169.254", "fe80::1"]),
            ("second.example", vec!["169.254.169.254", "127.0.0.1"]),
            ("mapped.example", vec!["::ffff:127.0.0.1"]),
            ("translated.example", vec!["64:ff9b::169.254.169.254"]),
            ("private.example", vec!["10.0.0.1", "192.168.0.1"]),
            ("mixed.example", vec!["203.0.113.7", "10.0.0.1"]),
            ("denied.example", vec!["203.0.113.7"]),
            ("to-denied.example", vec!["203.0.113.66"]),
            ("empty.example", vec![]),
            ("slow.example", vec![]),
        ];
        let names = table.into_iter().map(|(name, addrs)| {
            let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
            (name, addrs)
        });
        Self {
            names: names.collect(),
            rebound: AtomicBool::new(false),
        }
    }
}

impl Resolve for Table {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a> {
        Resolving::new(async {
            if name.as_str() == "slow.example" {
                std::future::pending::<()>().await;
            }
            // Loopback once, and then somewhere else.
            if name.as_str() == "rebound.example" {
                let again = self.rebound.swap(true, Ordering::Relaxed);
                let addr = if again {
                    [169, 254, 169, 254]
                } else {
                    [127, 0, 0, 1]
                };
                return Ok(vec![IpAddr::from(addr)]);
            }
            let addrs = self.names.get(name.as_str()).cloned();
            addrs.ok_or_else(|| io::Error::other("no such name"))
        })
    }
}

/// A server on loopback that takes one connection.
struct Server(TcpListener);

impl Server {
    async fn new() -> Self {
        Self(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    async fn accept(&self) -> TcpStream {
        self.0.accept().await.unwrap().0
    }
}

/// An answer of the gateway.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn status(&self) -> &str {
        &self.head[9..12]
    }

    /// The value of a field.
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (own, value) = line.split_once(": ")?;
            own.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

struct Client(TcpStream);

impl Client {
    async fn new(gateway: &Running) -> Self {
        Self(TcpStream::connect(gateway.address).await.unwrap())
    }

    /// A client whose tunnel to `server` stands.
    async fn tunnel(gateway: &Running, server: &Server) -> (Self, TcpStream) {
        let mut client = Self::new(gateway).await;
        let target = format!("here.example:{}", server.port());
        let answer = client.connect(&target).await;
        assert_eq!(answer.status(), "200", "{}", answer.body);
        (client, server.accept().await)
    }

    async fn connect(&mut self, target: &str) -> Answer {
        self.ask(&format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        ))
        .await
    }

    async fn ask(&mut self, request: &str) -> Answer {
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.answer().await
    }

    /// Reads one answer and not a byte more.
    async fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let mut answer = Answer {
            head: String::from_utf8(head).unwrap(),
            body: String::new(),
        };
        let length = answer.field("content-length").map(str::parse);
        let mut body = vec![0; length.map_or(0, Result::unwrap)];
        self.0.read_exact(&mut body).await.unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let reading = self.0.read_to_end(&mut bytes);
        timeout(Duration::from_secs(5), reading).await.unwrap()?;
        Ok(bytes)
    }
}

async fn bind(config: GatewayConfig) -> Result<Gateway, GatewayError> {
    let metrics = GatewayMetrics::new(&Registry::new()).unwrap();
    Gateway::bind(config, Table::default(), metrics).await
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_what_to_do() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    for (listen, parts) in [
        (vec![taken.1], [taken.1.to_string().as_str(), "in use"]),
        (
            vec!["203.0.113.7:3128".parse().unwrap()],
            ["203.0.113.7:3128", "no interface"],
        ),
        (vec![], ["no address", "127.0.0.1:3128"]),
    ] {
        let config = GatewayConfig {
            listen,
            ..GatewayConfig::default()
        };
        let error = bind(config).await.unwrap_err();
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let denied = io::ErrorKind::PermissionDenied.into();
    let message = GatewayError::listen("0.0.0.0:80".parse().unwrap(), denied).to_string();
    assert!(message.contains("0.0.0.0:80") && message.contains("CAP_NET_BIND_SERVICE"));
}

#[tokio::test]
async fn every_listener_serves() {
    let config = GatewayConfig {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into(); 2],
        ..local()
    };
    let gateway = bind(config).await.unwrap();
    let addresses = gateway.addresses().to_vec();
    assert_ne!(addresses[0], addresses[1]);
    tokio::spawn(gateway.serve(Control::default()));
    for address in addresses {
        let mut client = Client(TcpStream::connect(address).await.unwrap());
        assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").await.status(), "400");
    }
}
