//! Lookups against name servers of our own on loopback.

mod server;

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use socket2::{SockRef, Type};
use tempfile::TempDir;

use super::{
    Arc, DnsError, Host, HostName, Instant, IpAddr, RecordType, Resolver, SocketFactory, Times,
};
use server::{NameServer, Reply, Transport};

const DEADLINE: Duration = Duration::from_secs(2);
const STAGGER: Duration = Duration::from_millis(500);

/// Counts the sockets that it is shown.
#[derive(Debug, Default)]
struct Counting {
    udp: AtomicUsize,
    tcp: AtomicUsize,
}

impl SocketFactory for Counting {
    fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let counter = match SockRef::from(&socket).r#type()? {
            Type::STREAM => &self.tcp,
            _ => &self.udp,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A resolver after files of its own, with short times.
struct World {
    files: TempDir,
    made: Arc<Counting>,
    resolver: Resolver,
}

impl World {
    fn new(resolv_conf: &str, hosts: &str, port: u16) -> Self {
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("resolv.conf"), resolv_conf).unwrap();
        fs::write(files.path().join("hosts"), hosts).unwrap();
        let made = Arc::new(Counting::default());
        let resolver = Resolver::new(
            Arc::clone(&made) as Arc<dyn SocketFactory>,
            &files.path().join("resolv.conf"),
            &files.path().join("hosts"),
            port,
            Times {
                deadline: DEADLINE,
                stagger: STAGGER,
                grace: Duration::from_millis(200),
            },
        );
        Self {
            files,
            made,
            resolver,
        }
    }

    /// One that asks `server` only.
    fn asking(server: &NameServer) -> Self {
        let resolv_conf = format!("nameserver {}\n", server.addr.ip());
        Self::new(&resolv_conf, "", server.addr.port())
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.files.path().join(file), text).unwrap();
    }

    async fn addrs(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let found = self.resolver.lookup(&name.parse().unwrap()).await?;
        Ok(found.addrs.iter().map(ToString::to_string).collect())
    }

    async fn error(&self, name: &str) -> DnsError {
        self.addrs(name).await.unwrap_err()
    }
}

async fn server(reply: Reply) -> NameServer {
    NameServer::start(("127.0.0.1", 0), move |_| reply).await
}

#[tokio::test]
async fn both_families_are_asked_and_take_turns() {
    let server = server(Reply::Addresses(
        &[
            "192.0.2.1",
            "192.0.2.2",
            "2001:db8::1",
            "::ffff:192.0.2.9",
            "192.0.2.3",
        ],
        60,
    ))
    .await;
    let world = World::asking(&server);
    let before = Instant::now();
    let name = "www.example.com".parse().unwrap();
    let found = world.resolver.lookup(&name).await.unwrap();
    let expected: Vec<IpAddr> = [
        "2001:db8::1",
        "192.0.2.9",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
    ]
    .map(|addr| addr.parse().unwrap())
    .to_vec();
    assert_eq!(
        found
            .addrs
            .iter()
            .collect::<std::collections::BTreeSet<_>>(),
        expected.iter().collect()
    );
    assert!(found.addrs[0].is_ipv6() && found.addrs[1..].iter().all(IpAddr::is_ipv4));
    let life = found.valid_until - before;
    assert!(
        life > Duration::from_secs(50) && life < Duration::from_secs(70),
        "{life:?}"
    );
    let mut types: Vec<_> = server
        .asked()
        .into_iter()
        .map(|(name, kind, _)| (name, kind))
        .collect();
    types.sort();
    let full = String::from("www.example.com.");
    assert_eq!(
        types,
        [(full.clone(), RecordType::A), (full, RecordType::AAAA)]
    );
}

#[tokio::test]
async fn answers_are_remembered_for_their_time_to_live() {
    let server = server(Reply::Addresses(&["192.0.2.1", "2001:db8::1"], 1)).await;
    let world = World::asking(&server);
    for _ in 0..3 {
        world.addrs("cached.example").await.unwrap();
    }
    assert_eq!(server.asked().len(), 2);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    world.addrs("cached.example").await.unwrap();
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn what_is_not_there_is_told_apart_from_who_does_not_answer() {
    let server = NameServer::start(("127.0.0.1", 0), |(name, kind, _)| match name.as_str() {
        "absent.example." => Reply::Code(ResponseCode::NXDomain),
        "empty.example." => Reply::Code(ResponseCode::NoError),
        "broken.example." => Reply::Code(ResponseCode::ServFail),
        "silent.example." => Reply::Silence,
        "half.example." if *kind == RecordType::A => Reply::Addresses(&["192.0.2.1"], 60),
        "half.example." => Reply::Silence,
        "undecided.example." if *kind == RecordType::A => Reply::Code(ResponseCode::NXDomain),
        _ => Reply::Silence,
    })
    .await;
    let world = World::asking(&server);
    let name = |text: &str| text.parse::<HostName>().unwrap();

    let absent = world.error("absent.example").await;
    assert_eq!(absent, DnsError::NoSuchName(name("absent.example")));
    assert!(absent.is_negative());
    let empty = world.error("empty.example").await;
    assert_eq!(empty, DnsError::NoAddresses(name("empty.example")));
    let broken = world.error("broken.example").await;
    assert!(!broken.is_negative());
    assert!(
        broken.to_string().contains("127.0.0.1: Server Failure"),
        "{broken}"
    );

    let start = Instant::now();
    let silent = world.error("silent.example").await;
    assert!(matches!(silent, DnsError::Timeout { .. }), "{silent}");
    let took = start.elapsed();
    assert!(took >= DEADLINE && took < 2 * DEADLINE, "{took:?}");
    // One family that is silent does not make the name absent, nor keeps the other waiting.
    assert!(matches!(
        world.error("undecided.example").await,
        DnsError::Timeout { .. }
    ));
    let start = Instant::now();
    let half = world.resolver.lookup(&name("half.example")).await.unwrap();
    assert!(start.elapsed() < DEADLINE);
    assert!(half.valid_until < Instant::now() + Duration::from_secs(6));
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_by_tcp_and_every_socket_is_marked() {
    let server = NameServer::start(("127.0.0.1", 0), |(_, _, transport)| match transport {
        Transport::Udp => Reply::Truncated,
        Transport::Tcp => Reply::Addresses(&["192.0.2.1", "2001:db8::1"], 60),
    })
    .await;
    let world = World::asking(&server);
    assert_eq!(
        world.addrs("large.example").await.unwrap(),
        ["2001:db8::1", "192.0.2.1"]
    );
    let asked = server.asked();
    let by = |transport| asked.iter().filter(|asked| asked.2 == transport).count();
    assert_eq!((by(Transport::Udp), by(Transport::Tcp)), (2, 2));
    // One UDP socket per question. Of TCP connections one or two, as the questions meet.
    assert_eq!(world.made.udp.load(Ordering::Relaxed), 2);
    assert!((1..=2).contains(&world.made.tcp.load(Ordering::Relaxed)));
}

#[tokio::test]
async fn servers_that_are_silent_failing_or_dead_are_passed_over() {
    let good = server(Reply::Addresses(&["192.0.2.1"], 0)).await;
    let port = good.addr.port();
    let silent = NameServer::start(("127.0.0.2", port), |_| Reply::Silence).await;
    let refusing =
        NameServer::start(("127.0.0.3", port), |_| Reply::Code(ResponseCode::Refused)).await;
    let list = |first, second| format!("nameserver {first}\nnameserver {second}\n");

    let world = World::new(&list("127.0.0.2", "127.0.0.1"), "", port);
    let start = Instant::now();
    assert_eq!(world.addrs("a.example").await.unwrap(), ["192.0.2.1"]);
    assert!(start.elapsed() >= STAGGER);
    // It has been found silent: now it comes second and is not asked at all.
    let before = silent.asked().len();
    world.addrs("b.example").await.unwrap();
    assert_eq!(silent.asked().len(), before);

    let world = World::new(&list("127.0.0.3", "127.0.0.1"), "", port);
    let start = Instant::now();
    assert_eq!(world.addrs("a.example").await.unwrap(), ["192.0.2.1"]);
    assert!(start.elapsed() < STAGGER);
    assert_eq!(refusing.asked().len(), 2);

    // Nothing listens on 127.0.0.4; ICMP tells.
    let world = World::new(&list("127.0.0.4", "127.0.0.1"), "", port);
    let start = Instant::now();
    assert_eq!(world.addrs("a.example").await.unwrap(), ["192.0.2.1"]);
    assert!(start.elapsed() < STAGGER);

    let world = World::new(&list("127.0.0.3", "127.0.0.4"), "", port);
    let error = world.error("a.example").await.to_string();
    assert!(
        error.contains("127.0.0.3: Query Refused; 127.0.0.4: cannot be reached"),
        "{error}"
    );
}

#[tokio::test]
async fn the_search_list_serves_single_labels_only() {
    let server = NameServer::start(("127.0.0.1", 0), |(name, ..)| match name.as_str() {
        "proxy.corp.example." | "top." => Reply::Addresses(&["192.0.2.1"], 60),
        _ => Reply::Code(ResponseCode::NXDomain),
    })
    .await;
    let port = server.addr.port();
    let resolv_conf = "search first.example corp.example\nnameserver 127.0.0.1\noptions ndots:5\n";
    let world = World::new(resolv_conf, "", port);
    assert_eq!(world.addrs("proxy").await.unwrap(), ["192.0.2.1"]);
    assert_eq!(world.addrs("top").await.unwrap(), ["192.0.2.1"]);
    let asked = server.asked().len();
    assert_eq!(
        world.error("proxy.corp").await,
        DnsError::NoSuchName("proxy.corp".parse().unwrap())
    );
    let new: Vec<_> = server
        .asked()
        .drain(asked..)
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(new, ["proxy.corp.", "proxy.corp."]);
}

#[tokio::test]
async fn hosts_come_first_and_are_read_again_when_they_change() {
    let server = server(Reply::Addresses(&["192.0.2.1", "2001:db8::1"], 60)).await;
    let hosts = "# a comment\n127.0.0.7  proxy.example Alias.Example # and another\n\
                 ::1%lo odd.example\nno-address x.example\n127.0.0.8 proxy.example\n";
    let resolv_conf = "nameserver 127.0.0.1\n";
    let world = World::new(resolv_conf, hosts, server.addr.port());
    // The name server's IPv6 address must not mix in.
    assert_eq!(
        world.addrs("proxy.example").await.unwrap(),
        ["127.0.0.7", "127.0.0.8"]
    );
    assert_eq!(world.addrs("alias.example").await.unwrap(), ["127.0.0.7"]);
    assert!(server.asked().is_empty());

    world.write("hosts", "127.0.0.9 proxy.example\n");
    assert_eq!(world.addrs("proxy.example").await.unwrap(), ["127.0.0.9"]);
    fs::remove_file(world.files.path().join("hosts")).unwrap();
    assert_eq!(
        world.addrs("proxy.example").await.unwrap(),
        ["2001:db8::1", "192.0.2.1"]
    );
}

#[tokio::test]
async fn without_name_servers_addresses_and_hosts_still_work() {
    let server = server(Reply::Addresses(&["192.0.2.1"], 60)).await;
    let world = World::new(
        "# nothing yet\n",
        "127.0.0.7 proxy.example\n",
        server.addr.port(),
    );
    assert_eq!(world.addrs("proxy.example").await.unwrap(), ["127.0.0.7"]);
    let address = Host::Addr("192.0.2.7".parse().unwrap());
    assert_eq!(
        world.resolver.resolve(&address).await.unwrap(),
        ["192.0.2.7".parse::<IpAddr>().unwrap()]
    );
    let error = world.error("www.example").await.to_string();
    assert!(
        error.starts_with("cannot look up `www.example`: no name servers: /")
            && error.contains("resolv.conf: "),
        "{error}"
    );
    fs::remove_file(world.files.path().join("resolv.conf")).unwrap();
    let error = world.error("www.example").await.to_string();
    assert!(error.contains("No such file"), "{error}");
    // The network comes up.
    world.write("resolv.conf", "nameserver 127.0.0.1\n");
    assert_eq!(world.addrs("www.example").await.unwrap(), ["192.0.2.1"]);
    // And a file caught while it is being written takes nothing away.
    world.write("resolv.conf", "");
    assert_eq!(world.addrs("other.example").await.unwrap(), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_claim_is_true_if_the_name_has_the_address() {
    let server = NameServer::start(("127.0.0.1", 0), |(name, ..)| match name.as_str() {
        "www.example." => Reply::Addresses(&["192.0.2.1", "2001:db8::1"], 60),
        _ => Reply::Code(ResponseCode::NXDomain),
    })
    .await;
    let world = World::asking(&server);
    for (name, addr, maps) in [
        ("www.example", "192.0.2.1", true),
        ("www.example", "::ffff:192.0.2.1", true),
        ("www.example", "2001:db8::1", true),
        ("www.example", "192.0.2.2", false),
        ("other.example", "192.0.2.1", false),
    ] {
        let (name, addr) = (name.parse().unwrap(), addr.parse().unwrap());
        assert_eq!(
            world.resolver.maps(&name, addr).await,
            maps,
            "{name} {addr}"
        );
    }
}
