//! DNS that the agent answers: virtual addresses for declared hosts, and everything else from the
//! server that was asked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{INTERNAL_V4, OTHER_V4, PROXY_V4, SITE_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::pod::{Node, Pod};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::servers::zone::{A, HTTPS, RRSIG, Zone, record};
use underpass_tests::{Must as _, Place, Scene, World, wait_for};

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
    // Several at a time, with EDNS.
    for server in ["192.0.2.53", "2001:db8:113::10"] {
        let said = resolve(&scene, &["both", "db.test.example", server]);
        let expected = [&v4[..], &v6].concat();
        assert!(said.lines().eq(expected), "{server}: {said}");
    }
    let said = resolve(&scene, &["both", "other.example", "192.0.2.53"]);
    assert!(
        said.lines().eq(["203.0.113.11", "2001:db8:113::11"]),
        "{said}"
    );
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
    let agent = Agent::start(&scene.world, &some("mail.example, nowhere.example"));
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

/// Connects to a virtual address; what came of it.
fn connect(scene: &Scene, address: &str) -> String {
    let talk = scene.program("talk").args([address, "5432", "x"]);
    talk.run(SECONDS).expect_success().stdout
}

#[test]
fn hosts_below_a_wildcard_have_their_addresses_again_when_they_are_asked_for_again() {
    let scene = Scene::new("dns-again");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let policy = policy(&[]);
    let ask = || {
        let said =
            scene
                .workload("dig")
                .args(["a.wild.example", "A", "@192.0.2.53", "+noall", "+answer"]);
        let said = said.run(SECONDS).expect_success().stdout;
        let words: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
        assert_eq!(words.len(), 5, "{said}");
        (words[1].clone(), words[4].clone())
    };
    let agent = Agent::start(&scene.world, &policy);
    let (ttl, address) = ask();
    assert!(is_virtual(&address));
    assert_eq!(ttl, "10", "it is to be asked for again soon");
    connect(&scene, &address);
    assert_eq!(asked(&proxy), "a.wild.example:5432");
    drop(agent);
    let before = proxy.requests().len();

    // Who remembers it is refused, and told why in the log, until somebody asks.
    let agent = Agent::start(&scene.world, &policy);
    let said = connect(&scene, &address);
    assert!(
        said.contains(" reset ") || said.contains(" closed "),
        "{said}"
    );
    let record = agent.wait_for_access("it", |it| it.text("decision") == "deny");
    assert!(record.text("error").contains("ask"), "{record:?}");
    assert_eq!(proxy.requests().len(), before);
    assert_eq!(ask(), (ttl, address.clone()));
    connect(&scene, &address);
    assert_eq!(asked(&proxy), "a.wild.example:5432");
    assert!(proxy.requests().len() > before);
}

#[test]
fn explain_tells_which_host_a_virtual_address_stands_for() {
    let scene = Scene::new("dns-explain");
    let _agent = Agent::start(&scene.world, &policy(&[]));
    let file = scene.world.dir().join("policy.yaml");
    let explain = |destination: &str| {
        let explain = underpass(&scene.world).args(["explain", destination, "--policy"]);
        explain.arg(&file).run(SECONDS).expect_success().stdout
    };
    let mut addresses = getent(&scene, "db.test.example");
    assert_eq!(addresses.len(), 2);
    addresses.sort();
    let [v4, v6] = [&addresses[0], &addresses[1]];
    for destination in [format!("{v4}:5432"), format!("[{v6}]:5432")] {
        let said = explain(&destination);
        for part in [
            "is the virtual address of db.test.example",
            "target:         db.test.example:5432",
            "virtual address stands for",
        ] {
            assert!(said.contains(part), "no {part} in {said}");
        }
    }
    let wild = dig(&scene, &["a.wild.example", "A", "@192.0.2.53"]);
    let said = explain(&format!("{}:5432", virtual_one(&wild)));
    assert!(said.contains("below a wildcard"), "{said}");
    let said = explain("a.wild.example:5432");
    assert!(
        said.contains("virtual address of a.wild.example")
            && said.contains("target:         a.wild.example:5432"),
        "{said}"
    );
}

/// The data of an HTTPS record: `1 . alpn=h2 ipv4hint=203.0.113.11`, and a key for ECH.
fn https_data(mandatory: bool) -> Vec<u8> {
    let mut data = vec![0, 1, 0];
    if mandatory {
        data.extend([0, 0, 0, 2, 0, 5]);
    }
    data.extend([0, 1, 0, 3, 2, b'h', b'2', 0, 4, 0, 4, 203, 0, 113, 11]);
    data.extend([0, 5, 0, 8, 0, 6, 0xfe, 0x0d, 0, 2, 7, 7]);
    data
}

#[test]
fn keys_for_ech_are_taken_out_of_answers_where_policy_says_so() {
    let scene = Scene::new("dns-ech");
    // To a server outside queries over TCP go through it.
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let signature = |covered: u16| {
        let mut data = covered.to_be_bytes().to_vec();
        data.extend([13, 2, 0, 0, 1, 44, 0x70, 0, 0, 0, 0x60, 0, 0, 0, 0, 7]);
        data.extend(b"\x07example\0signature");
        data
    };
    let records = [
        record("keyed.example", HTTPS, "300", &https_data(false)),
        record("keyed.example", A, "300", &OTHER_V4.octets()),
        record(
            "_8443._https.keyed.example",
            HTTPS,
            "300",
            &https_data(false),
        ),
        record("only.example", HTTPS, "300", &https_data(true)),
        record("signed.example", HTTPS, "300", &https_data(false)),
        record("signed.example", RRSIG, "300", &signature(HTTPS)),
        record("kept.example", HTTPS, "300", &https_data(false)),
    ];
    let _zone = Zone::start_at(&scene.world, SITE_V4, &records);
    let ask = |name: &str, way: &str| dig(&scene, &[name, "HTTPS", "@203.0.113.10", way]);
    let with_key = "1 . alpn=\"h2\" ipv4hint=203.0.113.11 ech=AAb+DQACBwc=";
    let without = "1 . alpn=\"h2\" ipv4hint=203.0.113.11";
    let ways = ["+notcp", "+tcp"];

    let kept = "\
        ---\n\
        apiVersion: networking.istio.io/v1\n\
        kind: ServiceEntry\n\
        metadata: {name: kept, labels: {ech: kept}}\n\
        spec: {hosts: [kept.example]}\n\
        ---\n\
        apiVersion: underpass.dev/v1alpha1\n\
        kind: Tunnel\n\
        metadata: {name: kept}\n\
        spec: {proxy: {host: proxy.example, port: 3128}, selector: {matchLabels: {ech: kept}}}\n";
    // Without a word of policy nothing is changed, nor even seen.
    let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + kept));
    for way in ways {
        assert_eq!(ask("keyed.example", way), [with_key], "{way}");
    }
    assert_eq!(agent.metrics().sum(QUERIES, &[]), Some(0.0));
    drop(agent);

    let agent = Agent::start(&scene.world, &(tunnel_policy(&["echKeys: Remove"]) + kept));
    for way in ways {
        assert_eq!(ask("keyed.example", way), [without], "{way}");
        assert_eq!(ask("_8443._https.keyed.example", way), [without], "{way}");
        assert_eq!(ask("only.example", way), [""; 0], "{way}");
        assert_eq!(ask("kept.example", way), [with_key], "{way}");
        assert_eq!(
            dig(&scene, &["keyed.example", "A", "@203.0.113.10", way]),
            ["203.0.113.11"]
        );
        // What is not what was signed is not passed for it.
        let signed = scene.workload("dig").args(["+dnssec", way]);
        let signed = signed.args(["signed.example", "HTTPS", "@203.0.113.10"]);
        let said = signed.run(SECONDS).expect_success().stdout;
        assert!(said.contains(without) && !said.contains("ech="), "{said}");
        assert!(!said.contains("RRSIG"), "{said}");
        let flags = said.lines().find(|line| line.contains("flags:"));
        let flags = flags.expect("a line of flags");
        assert!(!flags.contains(" ad"), "{flags}");
    }
    // It has no addresses of its own, and knows what was answered.
    assert!(agent.metrics().sum(QUERIES, &[("result", "forwarded")]) >= Some(12.0));
    assert_eq!(
        agent.metrics().sum(QUERIES, &[("result", "answered")]),
        Some(0.0)
    );
    assert_eq!(agent.metrics().sum(PASSED, &[]), Some(0.0));
}

/// Who owns a name says where it is.
#[test]
fn an_answer_cannot_borrow_the_address_of_another() {
    let scene = Scene::new("dns-rebinding");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let inside = SocketAddr::from((INTERNAL_V4, 5432));
    let _inside = Server::banner(scene.world.inet(), inside, "inside\r\n");
    let agent = Agent::start(&scene.world, &policy(&[]));
    let given = dig(&scene, &["db.test.example", "A", "@192.0.2.53"]);
    let given = virtual_one(&given);
    let octets = given.parse::<std::net::Ipv4Addr>().expect("IPv4").octets();
    let records = [
        record("evil.example", A, "300", &octets),
        record("rebound.example", A, "300", &INTERNAL_V4.octets()),
    ];
    let _zone = Zone::start_at(&scene.world, SITE_V4, &records);
    let ask = |name: &str| {
        let found = dig(&scene, &[name, "A", "@203.0.113.10"]);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    };

    // A virtual address is its host's, whoever else claims it.
    assert_eq!(ask("evil.example"), given);
    connect(&scene, given);
    assert_eq!(asked(&proxy), "db.test.example:5432");
    let before = proxy.requests().len();
    // What is internal is nobody's tunnel, whatever its name.
    assert_eq!(ask("rebound.example"), INTERNAL_V4.to_string());
    let said = connect(&scene, "10.9.0.10");
    assert!(said.contains("inside"), "{said}");
    assert_eq!(proxy.requests().len(), before, "{}", agent.tails());
}

/// Where a host is looked up by the agent, whose loopback is not that of a pod.
#[test]
fn a_host_that_is_said_to_be_near_is_near_to_the_workload() {
    let world = World::new("dns-near");
    let near: IpAddr = [127, 0, 0, 1].into();
    let names: [(&str, &[IpAddr]); 2] = [
        ("near.example", &[near]),
        ("proxy.example", &[IpAddr::V4(PROXY_V4)]),
    ];
    let _dns = Dns::start_with(&world, &names, 0);
    let node = Node::new(&world);
    let pod = node.start(7);
    let agent = Agent::start(&world, &some("near.example"));
    wait_for("the pod is enrolled", SECONDS, || {
        agent.metrics().sum("underpass_namespaces_enrolled", &[]) >= Some(2.0)
    });
    let server = |place: &Place, says: &'static str| {
        Server::banner(place, SocketAddr::new(near, 7000), says)
    };
    let of_node = server(world.host(), "of the node\r\n");
    let found = pod
        .command("dig")
        .args(["+short", "near.example", "A", "@192.0.2.53"]);
    let address = found.run(SECONDS).expect_success().stdout.trim().to_owned();
    assert!(is_virtual(&address), "{address}");
    let talk = || {
        let talk = pod.program("talk").args([address.as_str(), "7000", "x"]);
        talk.run(SECONDS).expect_success().stdout
    };
    let said = talk();
    assert!(!said.contains("of the node"), "{said}");
    let _of_pod = server(pod.place(), "of the pod\r\n");
    let said = talk();
    assert!(said.contains("of the pod"), "{said}\n{}", agent.tails());
    assert!(of_node.peers().is_empty(), "{:?}", of_node.peers());
}

#[test]
fn names_go_into_connect_of_a_real_proxy() {
    let scene = Scene::new("dns-squid");
    let servers = [(25, "220 mail\r\n"), (22, "SSH-2.0-Test\r\n"), (5432, "N")];
    let _servers = servers.map(|(port, says)| {
        let address = SocketAddr::from((OTHER_V4, port));
        Server::banner(scene.world.inet(), address, says)
    });
    let options = Options {
        connect_ports: &[22, 25, 5432],
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let clients = || {
        let curl = scene
            .workload("curl")
            .args(["--verbose", "--max-time", "20"]);
        let said = curl
            .args(["smtp://mail.example:25/", "-X", "HELP"])
            .run(SECONDS);
        assert!(said.stderr.contains("220 mail"), "{said:?}");
        let ssh = scene.workload("ssh");
        let ssh = ssh.args(["-4", "-o", "BatchMode=yes", "-v", "mail.example"]);
        let said = ssh.run(SECONDS);
        assert!(
            said.stderr.contains("remote software version Test"),
            "{said:?}"
        );
        let psql = scene.workload("psql");
        let psql = psql.args(["-h", "mail.example", "-U", "me", "-c", "select 1"]);
        psql.env("PGCONNECT_TIMEOUT", "5").run(SECONDS);
    };
    let by_name = |connects: Vec<String>| {
        let mut connects = connects;
        connects.sort();
        // psql tries once more without TLS.
        connects.dedup();
        assert_eq!(
            connects,
            ["mail.example:22", "mail.example:25", "mail.example:5432"]
        );
    };
    // What was resolved, by servers that answer.
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    clients();
    by_name(squid.connects(3));
    let before = squid.log().len();
    drop(agent);
    // What the agent answers.
    let _agent = Agent::start(&scene.world, &policy(&[]));
    assert!(
        getent(&scene, "mail.example")
            .iter()
            .all(|it| is_virtual(it))
    );
    clients();
    by_name(squid.connects(before + 3).split_off(before));
    let arrivals = scene.world.direct_arrivals();
    assert!(arrivals.is_empty(), "{arrivals:?}");
}

/// UDP sockets of the agent in a network namespace, on loopback.
fn fronts(place: &Place, agent: &Agent) -> usize {
    let ss = place.command("ss").args(["-H", "-u", "-l", "-n", "-p"]);
    let table = ss.run(SECONDS).expect_success().stdout;
    let ours = format!("pid={},", agent.pid());
    table.lines().filter(|line| line.contains(&ours)).count()
}

#[test]
fn queries_come_to_the_agent_only_while_policy_wants_them() {
    let scene = Scene::new("dns-reload");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let node = Node::new(&scene.world);
    let pod = node.start(7);
    let mut agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + HOSTS));
    wait_for("the pod is enrolled", SECONDS, || {
        agent.metrics().sum("underpass_namespaces_enrolled", &[]) >= Some(2.0)
    });
    let file = scene.world.dir().join("policy.yaml");
    let reload = |agent: &mut Agent, generation: f64, policy: &str| {
        std::fs::write(&file, policy).must("write the policy");
        agent.process().signal(Signal::SIGHUP);
        agent.wait_for_metric("underpass_policy_generation", &[], generation);
    };
    let ask = |place: &Pod, way: &str| {
        let dig = place
            .command("dig")
            .args(["+short", "+time=5", "+tries=1", way]);
        let dig = dig.args(["db.test.example", "A", "@192.0.2.53"]);
        dig.run(SECONDS).expect_success().stdout.trim().to_owned()
    };
    let on_host = |way: &str| dig(&scene, &["db.test.example", "A", "@192.0.2.53", way]);
    let places = [scene.world.host(), pod.place()];
    let mut generation = 1.0;
    for _ in 0..2 {
        // No work for what no policy names.
        for place in places {
            wait_for("there are none", SECONDS, || fronts(place, &agent) == 0);
        }
        for way in ["+notcp", "+tcp"] {
            assert_eq!(ask(&pod, way), "");
            assert_eq!(on_host(way), [""; 0]);
        }
        generation += 1.0;
        reload(&mut agent, generation, &policy(&[]));
        for place in places {
            assert_eq!(fronts(place, &agent), 6);
        }
        for way in ["+notcp", "+tcp"] {
            assert!(is_virtual(&ask(&pod, way)), "{}", agent.tails());
            virtual_one(&on_host(way));
        }
        // Whoever comes now has them at once.
        let other = node.start(8);
        wait_for("the other is served", SECONDS, || {
            is_virtual(&ask(&other, "+notcp"))
        });
        drop(other);
        generation += 1.0;
        reload(&mut agent, generation, &(tunnel_policy(&[]) + HOSTS));
    }
    assert!(agent.readiness().0);
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

/// A policy that answers for these hosts, and tunnels what goes to their port 443.
fn some(hosts: &str) -> String {
    format!(
        "apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata: {{name: some}}\n\
         spec: {{proxy: {{host: proxy.example, port: 3128}}, dns: Serve, \
                 selector: {{matchLabels: {{a: b}}}}}}\n\
         ---\n\
         apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{name: some, labels: {{a: b}}}}\n\
         spec: {{hosts: [{hosts}], ports: [{{number: 443, name: tls}}]}}\n"
    )
}
