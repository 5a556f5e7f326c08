//! DNS that the agent answers: virtual addresses for declared hosts, and everything else from the
//! server that was asked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use underpass_tests::addr::{OTHER_V4, PROXY_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::pod::Node;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(30);
const QUERIES: &str = "underpass_dns_queries_total";
const PASSED: &str = "underpass_dns_queries_passed_total";

/// Hosts that are declared, by name and below a wildcard.
const HOSTS: &str = "\
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: declared}
spec: {hosts: ['*.wild.example', db.test.example, site.example, mail.example, v4.example]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed}
spec: {hosts: [fixed.test.example], addresses: [203.0.113.11]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inside}
spec: {hosts: [inside.wild.example], location: MESH_INTERNAL}
";

fn policy(spec: &[&str]) -> String {
    tunnel_policy(&[&["dns: Serve"], spec].concat()) + HOSTS
}

fn resolve(scene: &Scene, args: &[&str]) -> String {
    let resolve = scene.program("resolve").args(args);
    resolve.run(SECONDS).expect_success().stdout
}

/// What dig says, in short.
fn dig(scene: &Scene, args: &[&str]) -> Vec<String> {
    let dig = scene
        .workload("dig")
        .args(["+short", "+time=5", "+tries=1"]);
    let said = dig.args(args).run(SECONDS).expect_success().stdout;
    said.lines().map(str::to_owned).collect()
}

fn is_virtual(address: &str) -> bool {
    let range = match address.parse() {
        Ok(IpAddr::V4(_)) => "240.240.",
        Ok(IpAddr::V6(_)) => "fd75:6e64:6572:7061::",
        Err(_) => return false,
    };
    address.starts_with(range)
}

/// The only virtual address among these.
#[track_caller]
fn virtual_one(said: &[String]) -> &str {
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(is_virtual(&said[0]), "{said:?}");
    &said[0]
}

/// What the C library finds.
fn getent(scene: &Scene, name: &str) -> Vec<String> {
    let getent = scene.workload("getent").args(["ahosts", name]).run(SECONDS);
    let lines = getent.stdout.lines();
    let mut found: Vec<_> = lines
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What the proxy was last asked for.
fn asked(proxy: &FakeProxy) -> String {
    let requests = proxy.requests();
    let last = requests.last().expect("the proxy was asked");
    let target = last.line().split(' ').nth(1);
    target.expect("a target").to_owned()
}

#[test]
fn every_resolver_gets_answers_from_whom_it_asked() {
    let scene = Scene::new("dns-clients");
    let elsewhere: IpAddr = [203, 0, 113, 77].into();
    let names: [(&str, &[IpAddr]); 1] = [("other.example", &[elsewhere])];
    let _second = Dns::start_at(&scene.world, PROXY_V4.into(), &names, 60);
    let _third = Dns::start_at(&scene.world, SITE_V6.into(), &names, 60);
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &policy(&[]));

    // Hosts of policy, whoever is asked, over UDP and TCP, IPv4 and IPv6.
    let [first, second] = ["@192.0.2.53", "@2001:db8:113::10"];
    let v4 = dig(&scene, &["db.test.example", "A", first]);
    let v6 = dig(&scene, &["db.test.example", "AAAA", first]);
    assert!(
        virtual_one(&v4)
            .parse::<IpAddr>()
            .is_ok_and(|it| it.is_ipv4())
    );
    assert!(
        virtual_one(&v6)
            .parse::<IpAddr>()
            .is_ok_and(|it| it.is_ipv6())
    );
    for way in [
        &["+tcp", first][..],
        &[second],
        &["+tcp", second],
        &["+edns=0", first],
    ] {
        let ask = |kind| dig(&scene, &[&["db.test.example", kind], way].concat());
        assert_eq!(ask("A"), v4, "{way:?}");
        assert_eq!(ask("AAAA"), v6, "{way:?}");
    }
    assert_eq!(
        dig(&scene, &["fixed.test.example", "A", first]),
        ["203.0.113.11"]
    );
    virtual_one(&dig(&scene, &["a.b.wild.example", "A", first]));
    // Neither keys that hide names nor other places for addresses.
    assert_eq!(dig(&scene, &["db.test.example", "HTTPS", first]), [""; 0]);
    assert!(!scene.dns.was_asked_for("db.test.example"));
    assert!(!scene.dns.was_asked_for("a.b.wild.example"));
    let answered = agent.metrics().sum(QUERIES, &[("result", "answered")]);
    assert!(answered >= Some(13.0), "{answered:?}");

    // Others, from the server that was asked, as far as anybody can see.
    let said = scene.workload("dig").args(["other.example", "A", first]);
    let said = said.run(SECONDS).expect_success().stdout;
    assert!(said.contains("SERVER: 192.0.2.53#53"), "{said}");
    assert!(said.contains("203.0.113.11"), "{said}");
    assert_eq!(
        dig(&scene, &["+tcp", "other.example", "A", first]),
        ["203.0.113.11"]
    );
    assert_eq!(
        dig(&scene, &["other.example", "A", second]),
        ["203.0.113.77"]
    );
    assert_eq!(
        dig(&scene, &["+tcp", "other.example", "A", second]),
        ["203.0.113.77"]
    );
    assert_eq!(dig(&scene, &["inside.wild.example", "A", first]), [""; 0]);
    assert!(scene.dns.was_asked_for("inside.wild.example"));

    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // One socket asks several servers, as musl does, and hears each of them.
    let servers = ["192.0.2.53", "192.0.2.20"];
    let each = |family, servers: &[&str]| {
        let args = [&["each", family, "other.example", "A"], servers].concat();
        sorted(resolve(&scene, &args))
    };
    assert_eq!(
        each("inet", &servers),
        ["192.0.2.20 53 203.0.113.77", "192.0.2.53 53 203.0.113.11"]
    );
    assert_eq!(
        each("inet6", &[servers[0], "2001:db8:113::10", servers[1]]),
        [
            "2001:db8:113::10 53 203.0.113.77",
            "::ffff:192.0.2.20 53 203.0.113.77",
            "::ffff:192.0.2.53 53 203.0.113.11",
        ]
    );
    for (server, address) in [
        ("192.0.2.53", "203.0.113.11"),
        ("2001:db8:113::10", "203.0.113.77"),
    ] {
        assert_eq!(
            resolve(&scene, &["peer", "other.example", "A", server]).trim(),
            format!("{server} 53 {server} 53 {address}")
        );
    }
    // The C library.
    assert_eq!(getent(&scene, "db.test.example"), [v4, v6].concat());
    assert_eq!(
        getent(&scene, "other.example"),
        ["2001:db8:113::11", "203.0.113.11"]
    );
    assert_eq!(
        agent.metrics().sum(PASSED, &[]),
        Some(0.0),
        "{}",
        agent.tails()
    );
    assert_eq!(
        agent.metrics().sum(QUERIES, &[("result", "stranger")]),
        Some(0.0)
    );
}

/// A query of type 65280, which nobody knows, with an EDNS option that nobody knows either.
const STRANGE: &str = "1234010000010000000000010573697465320765786d61706c650000ff0000010000291000\
                       000000000008fde9000401020304";

#[test]
fn what_is_not_known_passes_byte_for_byte_and_what_is_wrong_does_no_harm() {
    let scene = Scene::new("dns-bytes");
    let bytes = |time: &str, datagrams: &[&str]| {
        let args = [&["bytes", "192.0.2.53"], datagrams].concat();
        let sent = scene.program("resolve").args(&args).env("TIME", time);
        sent.run(SECONDS).expect_success().stdout
    };
    let direct = bytes("20", &[STRANGE]);
    let agent = Agent::start(&scene.world, &policy(&[]));
    assert_eq!(bytes("20", &[STRANGE]), direct);

    let oversized = "00".repeat(9000);
    let wrong = [
        "",
        "00",
        "1234",
        "123401000001",
        // A name that points to itself, one without end, a promise of 65535 questions.
        "12340100000100000000000 0c00c00010001",
        "123401000001000000000000ff6161",
        "12340100ffffffffffffffff00",
        &oversized,
    ];
    let wrong: Vec<_> = wrong.iter().map(|it| it.replace(' ', "")).collect();
    let wrong: Vec<_> = wrong.iter().map(String::as_str).collect();
    bytes("0.3", &wrong);
    virtual_one(&dig(&scene, &["db.test.example", "A", "@192.0.2.53"]));
    assert_eq!(agent.metrics().sum(PASSED, &[]), Some(0.0));
    assert!(agent.readiness().0);

    // To where nobody is, a query fails at once, as it would by itself.
    let gone =
        scene
            .workload("dig")
            .args(["+tries=1", "+time=20", "other.example", "@198.51.100.1"]);
    let said = gone.run(SECONDS).stdout;
    assert!(
        said.contains("SERVFAIL") && !said.contains("timed out"),
        "{said}"
    );
    agent.wait_for_metric(QUERIES, &[("result", "failed")], 1.0);
}

#[test]
fn a_world_without_external_names_is_reached_by_name() {
    let scene = Scene::new("dns-virtual");
    let mail = SocketAddr::from((OTHER_V4, 25));
    let _mail = Server::banner(scene.world.inet(), mail, "220 mail\r\n");
    let shell = SocketAddr::from((OTHER_V4, 22));
    let _shell = Server::banner(scene.world.inet(), shell, "SSH-2.0-Test\r\n");
    // The only server knows nothing of the world outside.
    let Scene { dns, .. } = &scene;
    assert!(!dns.was_asked_for("db.test.example"));
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let by_address = policy(&["failureMode: closed"]).replace("proxy.example", "192.0.2.20");
    let mut agent = Agent::start(&scene.world, &by_address);
    let before = getent(&scene, "site.example");
    assert!(
        before.len() == 2 && before.iter().all(|it| is_virtual(it)),
        "{before:?}"
    );

    // HTTP, TLS, and protocols in which the server speaks first, or nobody says a name.
    let seen = scene.captured(&scene.curl("https://site.example/"));
    assert_eq!((seen.exit, seen.status), (0, 200), "{seen:?}");
    assert_eq!(asked(&proxy), "site.example:443");
    let record = agent.wait_for_access("the site", |it| it.text("target") == "site.example:443");
    assert_eq!(record.text("target.source"), "virtual_address");
    let seen = scene.captured(&scene.curl("http://site.example/"));
    assert_eq!((seen.exit, seen.status), (0, 200), "{seen:?}");
    assert_eq!(asked(&proxy), "site.example:80");
    let curl = scene
        .workload("curl")
        .args(["--silent", "--verbose", "--max-time", "20"]);
    let said = curl
        .args(["smtp://mail.example:25/", "-X", "HELP"])
        .run(SECONDS);
    assert!(said.stderr.contains("220 mail"), "{said:?}");
    assert_eq!(asked(&proxy), "mail.example:25");
    let ssh = scene
        .workload("ssh")
        .args(["-o", "BatchMode=yes", "-v", "mail.example"]);
    let said = ssh.run(SECONDS);
    assert!(
        said.stderr.contains("remote software version Test"),
        "{said:?}"
    );
    assert_eq!(asked(&proxy), "mail.example:22");
    let psql = scene
        .workload("psql")
        .args(["-h", "v4.example", "-U", "me", "-c", "select 1"]);
    psql.env("PGCONNECT_TIMEOUT", "5")
        .env("PGSSLMODE", "disable")
        .run(SECONDS);
    assert_eq!(asked(&proxy), "v4.example:5432");

    // What a workload says does not change where the address leads.
    let spoofed = scene
        .curl("http://site.example/")
        .args(["-H", "Host: db.test.example"]);
    scene.captured(&spoofed);
    assert_eq!(asked(&proxy), "site.example:80");

    // An address that nobody was given leads nowhere, at once, with a reason.
    let talk = scene.program("talk").args(["240.240.255.1", "443", "x"]);
    let said = talk.run(SECONDS).expect_success().stdout;
    assert!(
        said.contains(" reset ") || said.contains(" closed "),
        "{said}"
    );
    let denied = [("reason", "unknown_address")];
    agent.wait_for_metric("underpass_policy_denied_total", &denied, 1.0);
    // Nor is there anything for UDP, also where there is a way.
    let ip = scene.world.host().command("ip");
    let ip = ip.args(["route", "add", "240.240.0.0/16", "via", "198.51.100.1"]);
    ip.run(SECONDS).expect_success();
    let udp = scene.program("udp").args([before[0].as_str(), "443"]);
    let said = udp.run(SECONDS).expect_success().stdout;
    assert!(said.lines().all(|line| line.ends_with("EPERM")), "{said}");

    // Without the agent names that are not its own are resolved as ever, and no connection passes.
    agent.process().kill();
    assert_eq!(
        getent(&scene, "other.example"),
        ["2001:db8:113::11", "203.0.113.11"]
    );
    let talk = scene.program("talk").args([before[0].as_str(), "443", "x"]);
    let said = talk.run(SECONDS).expect_success().stdout;
    assert!(said.contains(" refused "), "{said}");

    // The next agent gives the same.
    let agent = Agent::start(&scene.world, &by_address);
    assert_eq!(getent(&scene, "site.example"), before);
    let requests = proxy.requests().len();
    for address in &before {
        let talk = scene.program("talk").args([address.as_str(), "443", "x"]);
        talk.run(SECONDS).expect_success();
        wait_for("the proxy is asked", SECONDS, || {
            proxy.requests().len() > requests
        });
        assert_eq!(asked(&proxy), "site.example:443");
    }
    let arrivals = scene.world.direct_arrivals();
    assert!(arrivals.is_empty(), "{arrivals:?}\n{}", agent.tails());
}

#[test]
fn what_goes_direct_goes_to_the_host_itself() {
    let scene = Scene::new("dns-direct");
    let mail = SocketAddr::from((OTHER_V4, 25));
    let _mail = Server::banner(scene.world.inet(), mail, "220 mail\r\n");
    let some = "apiVersion: underpass.dev/v1alpha1\n\
                kind: Tunnel\n\
                metadata: {name: some}\n\
                spec: {proxy: {host: proxy.example, port: 3128}, dns: Serve, \
                       selector: {matchLabels: {a: b}}}\n\
                ---\n\
                apiVersion: networking.istio.io/v1\n\
                kind: ServiceEntry\n\
                metadata: {name: db, labels: {a: b}}\n\
                spec: {hosts: [mail.example, nowhere.example], ports: [{number: 443, name: tls}]}\n";
    let agent = Agent::start(&scene.world, some);
    let talk = |name: &str| {
        let nc = scene.workload("nc").args(["-4", "-w", "5", name, "25"]);
        nc.input("EHLO me\r\n").run(SECONDS).stdout
    };
    // Policy is about another port of it.
    assert!(
        talk("mail.example").contains("220 mail"),
        "{}",
        agent.tails()
    );
    let record = agent.wait_for_access("it", |it| it.text("decision") == "direct");
    assert!(is_virtual(
        record.text("original_dst").split(':').next().unwrap()
    ));
    assert_eq!(scene.world.arrivals_at(OTHER_V4).len(), 1);
    // A host that there is not is refused, and the reason says so.
    assert_eq!(talk("nowhere.example"), "");
    let failed = |it: &underpass_tests::agent::Access| it.text("error").contains("nowhere.example");
    agent.wait_for_access("the failure", failed);
}

#[test]
fn pods_ask_from_where_they_are() {
    let scene = Scene::new("dns-pods");
    let node = Node::new(&scene.world);
    let pod = node.start(7);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &policy(&[]));
    wait_for("the pod is enrolled", SECONDS, || {
        agent.metrics().sum("underpass_namespaces_enrolled", &[]) >= Some(2.0)
    });
    // A cache on loopback, whose own queries pass as well.
    let cache = pod.command("dnsmasq").args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--server=192.0.2.53",
        "--bind-interfaces",
        "--listen-address=127.0.0.53",
        "--log-queries",
        "--log-facility=-",
    ]);
    let mut cache = cache.start();
    cache.wait_until_listening(pod.place(), SocketAddr::from(([127, 0, 0, 53], 53)));
    let dig = |args: &[&str]| {
        let dig = pod
            .command("dig")
            .args(["+short", "+time=5", "+tries=1"])
            .args(args);
        dig.run(SECONDS).expect_success().stdout.trim().to_owned()
    };
    for way in [&[][..], &["+tcp"]] {
        let ask = |name| dig(&[&[name, "A", "@127.0.0.53"], way].concat());
        assert_eq!(
            ask("other.example"),
            "203.0.113.11",
            "{way:?}\n{}",
            agent.tails()
        );
        assert!(is_virtual(&ask("db.test.example")));
    }
    assert!(
        cache.stderr().contains("other.example from 127.0.0.1"),
        "{}",
        cache.stderr()
    );
    assert!(
        scene.dns.log().contains("other.example from 10.77.0.7"),
        "{}",
        scene.dns.log()
    );
    let address = dig(&["db.test.example", "A", "@192.0.2.53"]);
    let talk = pod.program("talk").args([address.as_str(), "5432"]);
    talk.run(SECONDS).expect_success();
    assert_eq!(asked(&proxy), "db.test.example:5432");
    assert_eq!(
        agent.metrics().sum(QUERIES, &[("result", "stranger")]),
        Some(0.0)
    );
}

#[test]
fn ten_thousand_names_below_a_wildcard() {
    let scene = Scene::new("dns-many");
    let agent = Agent::start(&scene.world, &policy(&[]));
    let rss = || {
        agent
            .metrics()
            .sum("process_resident_memory_bytes", &[])
            .unwrap_or_default()
    };
    let before = rss();
    let said = resolve(&scene, &["names", "10000", "wild.example", "192.0.2.53"]);
    let addresses: std::collections::BTreeSet<&str> = said.lines().collect();
    // One workload has a quarter of the upper half, and hears no more then.
    assert_eq!(addresses.len(), 8191, "{:?}", addresses.first());
    let hosts = agent.metrics().sum("underpass_dns_virtual_hosts", &[]);
    println!("{hosts:?} hosts, {} bytes each", (rss() - before) / 8191.0);
    assert!(rss() - before < 32e6, "{before} {}", rss());
    virtual_one(&dig(&scene, &["db.test.example", "A", "@192.0.2.53"]));
}

/// Printed, and never decides.
#[test]
fn what_a_query_takes() {
    let scene = Scene::new("dns-latency");
    let rounds = || resolve(&scene, &["rounds", "2000", "other.example", "192.0.2.53"]);
    let direct: f64 = rounds().trim().parse().expect("a time");
    let _agent = Agent::start(&scene.world, &policy(&[]));
    let forwarded: f64 = rounds().trim().parse().expect("a time");
    let served = resolve(&scene, &["rounds", "2000", "db.test.example", "192.0.2.53"]);
    let served: f64 = served.trim().parse().expect("a time");
    println!(
        "a query in the middle of 2000: {direct} us direct, {forwarded} us by way of the agent \
         ({:.2} times), {served} us answered by it ({:.2} times)",
        forwarded / direct,
        served / direct
    );
}
