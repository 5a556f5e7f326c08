//! Names of connections that say none: what the workload has resolved.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::addr::{DNS_V4, HOST_V4, OTHER_V4, SITE_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::process::Cmd;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::servers::zone::{A, Zone, record};
use underpass_tests::{Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(30);
const ANSWERS: &str = "underpass_dns_answers_total";

/// What the proxy was last asked for.
fn asked(proxy: &FakeProxy) -> String {
    let requests = proxy.requests();
    let last = requests.last().expect("the proxy was asked");
    let target = last.line().split(' ').nth(1);
    target.expect("a target").to_owned()
}

/// Talks to an address without asking for it.
fn talk(scene: &Scene, address: &str) {
    let talk = scene.program("talk").args([address, "25", "EHLO me\\r\\n"]);
    let said = talk.run(SECONDS).expect_success().stdout;
    assert!(said.contains(" data "), "{said}");
}

fn resolve(scene: &Scene, verb: &str) -> Cmd {
    scene.program("resolve").arg(verb)
}

/// Mail servers, which speak first.
fn mail(scene: &Scene) -> [Server; 3] {
    [OTHER_V4.into(), SITE_V4.into(), SITE_V6.into()].map(|address: std::net::IpAddr| {
        Server::banner(
            scene.world.inet(),
            SocketAddr::from((address, 25)),
            "220 mail\r\n",
        )
    })
}

#[test]
fn a_protocol_without_names_goes_by_the_name_that_was_resolved() {
    let scene = Scene::new("resolved");
    let _mail = mail(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    // Nobody has asked yet.
    talk(&scene, "203.0.113.11");
    assert_eq!(asked(&proxy), "203.0.113.11:25");

    // The resolver of glibc, on one connected socket; mail of curl.
    let curl = scene
        .workload("curl")
        .args(["--silent", "--max-time", "20"]);
    let curl = curl.args(["--verbose", "smtp://mail.example:25/", "-X", "HELP"]);
    let said = curl.run(SECONDS);
    assert!(said.stderr.contains("220 mail"), "{said:?}");
    assert_eq!(asked(&proxy), "mail.example:25");
    let record = agent.wait_for_access("the mail", |access| {
        access.text("target") == "mail.example:25"
    });
    assert_eq!(record.text("target.source"), "dns");
    assert_eq!(record.text("original_dst"), "203.0.113.11:25");

    // Over IPv6, and by another name of the same address; the last one counts.
    let nc = |name: &str| {
        let nc = scene.workload("nc").args(["-w", "5", name, "25"]);
        let said = nc.input("EHLO me\r\n").run(SECONDS);
        assert!(said.stdout.contains("220 mail"), "{said:?}");
    };
    nc("v6.example");
    assert_eq!(asked(&proxy), "v6.example:25");
    nc("other.example");
    assert_eq!(asked(&proxy), "other.example:25");

    // One socket asks two servers, of which one is silent.
    let ask = resolve(&scene, "ask").args(["v4.example", "A", "192.0.2.99"]);
    let found = ask.arg(DNS_V4.to_string()).run(SECONDS).expect_success();
    talk(&scene, found.stdout.trim());
    assert_eq!(asked(&proxy), "v4.example:25");
    let ask = resolve(&scene, "ask").args(["site.example", "AAAA"]);
    let found = ask.arg(DNS_V4.to_string()).run(SECONDS).expect_success();
    talk(&scene, found.stdout.trim());
    assert_eq!(asked(&proxy), "site.example:25");

    assert!(agent.metrics().sum(ANSWERS, &[("result", "learnt")]) >= Some(5.0));
    assert_eq!(
        agent.metrics().sum(ANSWERS, &[("result", "malformed")]),
        Some(0.0)
    );
    assert_eq!(
        agent.metrics().sum("underpass_dns_answers_lost_total", &[]),
        Some(0.0)
    );
    let status = agent.admin("/status");
    assert!(status.to_string().contains("\"site.example\""), "{status}");
    let arrivals = scene.world.direct_arrivals();
    assert!(arrivals.is_empty(), "{arrivals:?}");
}

#[test]
fn policy_can_do_without_and_auto_sni_does() {
    let scene = Scene::new("resolved-off");
    let _mail = mail(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let connect = || {
        let nc = scene
            .workload("nc")
            .args(["-4", "-w", "5", "mail.example", "25"]);
        nc.input("EHLO me\r\n").run(SECONDS).stdout
    };
    let agent = Agent::start(&scene.world, &tunnel_policy(&["dns: Off"]));
    assert!(connect().contains("220 mail"));
    assert_eq!(asked(&proxy), "203.0.113.11:25");
    assert_eq!(agent.metrics().sum(ANSWERS, &[]), Some(0.0));
    drop(agent);

    let agent = Agent::start(&scene.world, &tunnel_policy(&["targetHost: AUTO_SNI"]));
    assert_eq!(connect(), "");
    agent.wait_for_metric(
        "underpass_policy_denied_total",
        &[("reason", "no_name")],
        1.0,
    );
    assert_eq!(proxy.requests().len(), 1);
}

#[test]
fn what_nobody_asked_for_is_not_believed() {
    let scene = Scene::new("resolved-forged");
    let _mail = mail(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    // An answer that is right in everything, but comes from whom was not asked.
    let listening = resolve(&scene, "listen").args([HOST_V4.to_string(), "5353".to_owned()]);
    let listening = listening.start();
    wait_for("it has asked", SECONDS, || {
        listening.stdout().contains("ready")
    });
    let forge = scene
        .world
        .inet()
        .python("resolve")
        .args(["forge", "203.0.113.10"]);
    let forge = forge.args([HOST_V4.to_string(), "5353".to_owned()]);
    forge
        .args(["evil.example", "203.0.113.11"])
        .run(SECONDS)
        .expect_success();
    wait_for("it has come", SECONDS, || {
        listening.stdout().contains("got 203.0.113.10")
    });

    talk(&scene, "203.0.113.11");
    assert_eq!(asked(&proxy), "203.0.113.11:25");
    assert_eq!(agent.metrics().sum(ANSWERS, &[]), Some(0.0));
}

/// A workload asks whom it likes: what it is told opens no way past the proxy.
#[test]
fn a_resolved_name_leads_past_the_proxy_only_if_the_agent_finds_it_there() {
    let scene = Scene::new("resolved-direct");
    let _mail = mail(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(
        &scene.world,
        &tunnel_policy(&["noProxy: [mail.example, v4.example]"]),
    );

    // Its own name server says that `v4.example` is at an address where it is not.
    let server = Dns::start_at(
        &scene.world,
        SITE_V4.into(),
        &[("v4.example", &[OTHER_V4.into()])],
        600,
    );
    let ask = resolve(&scene, "ask").args(["v4.example", "A", "203.0.113.10"]);
    assert_eq!(
        ask.run(SECONDS).expect_success().stdout.trim(),
        "203.0.113.11"
    );
    talk(&scene, "203.0.113.11");
    assert_eq!(asked(&proxy), "v4.example:25");
    drop(server);

    // What is true leads there.
    let before = proxy.requests().len();
    let ask = resolve(&scene, "ask").args(["mail.example", "A"]);
    ask.arg(DNS_V4.to_string()).run(SECONDS).expect_success();
    talk(&scene, "203.0.113.11");
    assert_eq!(proxy.requests().len(), before);
    let record = agent.wait_for_access("it", |access| access.text("decision") == "direct");
    assert_eq!(record.text("original_dst"), "203.0.113.11:25");
}

#[test]
fn a_name_that_was_not_resolved_to_the_address_is_what_policy_says() {
    let scene = Scene::new("resolved-mismatch");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let fetch = |url: &str, options: &[&str]| {
        let curl = scene.curl(url).args(["--ipv4", "--insecure"]);
        scene.captured(&curl.args(options.iter().copied()))
    };
    // What it says, and where it says it: the address of something else.
    let elsewhere = ["--resolve", "site.example:443:203.0.113.11"];
    let in_the_open = ["--resolve", "site.example:80:203.0.113.11"];
    let spoof = || {
        (
            fetch("https://site.example/", &elsewhere),
            fetch("http://site.example/", &in_the_open),
        )
    };

    let agent = Agent::start(&scene.world, &tunnel_policy(&["onMismatch: Deny"]));
    let (tls, plain) = spoof();
    assert_eq!((tls.status, plain.status), (0, 403), "{tls:?} {plain:?}");
    assert!(proxy.requests().is_empty());
    let denied = [("reason", "mismatch")];
    agent.wait_for_metric("underpass_policy_denied_total", &denied, 2.0);
    // What is so, passes.
    assert_eq!(fetch("https://site.example/", &[]).status, 200);
    assert_eq!(asked(&proxy), "site.example:443");
    assert_eq!(fetch("http://site.example/", &[]).status, 200);
    assert_eq!(asked(&proxy), "site.example:80");
    // As does what its own name server says, which decides nothing but the name.
    let names: [(&str, &[std::net::IpAddr]); 1] = [("v4.example", &[OTHER_V4.into()])];
    let _server = Dns::start_at(&scene.world, SITE_V4.into(), &names, 600);
    let ask = resolve(&scene, "ask").args(["v4.example", "A", "203.0.113.10"]);
    ask.run(SECONDS).expect_success();
    fetch(
        "https://v4.example/",
        &["--resolve", "v4.example:443:203.0.113.11"],
    );
    assert_eq!(asked(&proxy), "v4.example:443");
    drop(agent);

    let agent = Agent::start(&scene.world, &tunnel_policy(&["onMismatch: UseAddress"]));
    let before = proxy.requests().len();
    spoof();
    // Some more than once, since nobody is there.
    let requests = proxy.requests();
    let mut targets: Vec<_> = requests[before..]
        .iter()
        .map(|it| it.line().to_owned())
        .collect();
    targets.dedup();
    assert_eq!(
        targets,
        [
            "CONNECT 203.0.113.11:443 HTTP/1.1",
            "CONNECT 203.0.113.11:80 HTTP/1.1"
        ],
        "{}",
        agent.tails()
    );
    assert_eq!(fetch("https://site.example/", &[]).status, 200);
    assert_eq!(asked(&proxy), "site.example:443");
    drop(agent);

    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    spoof();
    assert_eq!(asked(&proxy), "site.example:80");
}

#[test]
fn times_to_live_that_lie_change_no_decision_and_fill_no_memory() {
    let scene = Scene::new("resolved-ttl");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let there = OTHER_V4.octets();
    let flood = "flood.example/1/2147483647/flood".to_owned();
    let records = [
        record("zero.example", A, "0", &there),
        record("longest.example", A, "2147483647", &there),
        record("negative.example", A, "2147483648,4294967295", &there),
        record("growing.example", A, "0,1,60,86400,2147483647", &there),
        flood,
    ];
    let _zone = Zone::start_at(&scene.world, SITE_V4, &records);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let resolved = |name: &str| {
        let ask = resolve(&scene, "ask").args([name, "A", "203.0.113.10"]);
        ask.run(SECONDS).expect_success();
        // The proxy knows no such name: what counts is what it is asked for.
        let talk = scene.program("talk").args(["203.0.113.11", "25"]);
        talk.run(SECONDS).expect_success();
        asked(&proxy)
    };
    for (name, times) in [
        ("zero.example", 1),
        ("longest.example", 1),
        ("negative.example", 2),
        ("growing.example", 5),
        // What was told last counts, however long all others are good.
        ("zero.example", 1),
    ] {
        for _ in 0..times {
            assert_eq!(resolved(name), format!("{name}:25"));
        }
    }

    // Thirty thousand addresses, good for ever.
    let rss = || agent.metrics().sum("process_resident_memory_bytes", &[]);
    let before = rss().expect("its memory");
    let flood = resolve(&scene, "rounds").args(["1000", "flood.example", "203.0.113.10"]);
    flood.run(SECONDS).expect_success();
    assert_eq!(resolved("zero.example"), "zero.example:25");
    let addresses = agent.metrics().sum("underpass_dns_addresses", &[]);
    assert!(
        addresses > Some(1000.0) && addresses <= Some(4096.0),
        "{addresses:?}"
    );
    let grown = rss().expect("its memory") - before;
    assert!(grown < 32e6, "{grown}");
}

/// A ClientHello with this server name, as `talk` takes it; with `ech` it offers to hide another.
fn hello(server_name: &str, ech: bool) -> String {
    let with_length = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes(), bytes].concat()
    };
    let extension = |kind: u16, data: &[u8]| [&kind.to_be_bytes(), &*with_length(data)].concat();
    let name = [&[0], &*with_length(server_name.as_bytes())].concat();
    let mut extensions = extension(0, &with_length(&name));
    if ech {
        extensions.extend(extension(0xfe0d, &[0; 100]));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session, one suite, no compression.
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(with_length(&extensions));
    let message = [&[1, 0], &*with_length(&body)].concat();
    let record = [&[22, 3, 1], &*with_length(&message)].concat();
    record.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[test]
fn what_a_client_hello_may_hide_is_what_policy_says() {
    let scene = Scene::new("resolved-ech");
    let servers = [OTHER_V4, SITE_V4].map(|address| {
        let address = SocketAddr::from((address, 8443));
        Server::banner(scene.world.inet(), address, "hello\r\n")
    });
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let learn = |name: &str| {
        let ask = resolve(&scene, "ask").args([name, "A", "192.0.2.53"]);
        ask.run(SECONDS).expect_success();
    };
    let say = |address: &str, server_name: &str, ech: bool| {
        let talk = scene.program("talk");
        let talk = talk.args([address, "8443", &hello(server_name, ech)]);
        talk.run(SECONDS).expect_success().stdout
    };
    let [other, site] = ["203.0.113.11", "203.0.113.10"];

    // What was resolved counts, and the server name in the open where that was, or nothing.
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    say(other, "v4.example", true);
    assert_eq!(asked(&proxy), "v4.example:8443");
    learn("mail.example");
    for (server_name, ech, name) in [
        ("v4.example", true, "mail.example"),
        ("mail.example", true, "mail.example"),
        ("v4.example", false, "v4.example"),
    ] {
        say(other, server_name, ech);
        assert_eq!(asked(&proxy), format!("{name}:8443"), "{server_name} {ech}");
    }
    drop(agent);

    let agent = Agent::start(&scene.world, &tunnel_policy(&["onECH: UseServerName"]));
    learn("mail.example");
    say(other, "v4.example", true);
    assert_eq!(asked(&proxy), "v4.example:8443");
    drop(agent);

    // Nobody knows what is hidden.
    let agent = Agent::start(&scene.world, &tunnel_policy(&["onECH: Deny"]));
    learn("mail.example");
    let requests = proxy.requests().len();
    let said = say(site, "v4.example", true);
    assert!(
        said.contains(" reset ") || said.contains(" closed "),
        "{said}"
    );
    let denied = [("reason", "hidden_name")];
    agent.wait_for_metric("underpass_policy_denied_total", &denied, 1.0);
    let record = agent.wait_for_access("it", |it| it.text("decision") == "deny");
    assert!(record.text("error").contains("onECH"), "{record:?}");
    assert_eq!(proxy.requests().len(), requests);
    say(site, "v4.example", false);
    assert_eq!(asked(&proxy), "v4.example:8443");
    say(other, "v4.example", true);
    assert_eq!(asked(&proxy), "mail.example:8443");
    // GREASE: it hides nothing.
    say(other, "mail.example", true);
    assert_eq!(asked(&proxy), "mail.example:8443");
    drop(servers);
    let arrivals = scene.world.direct_arrivals();
    assert!(arrivals.is_empty(), "{arrivals:?}");
}
