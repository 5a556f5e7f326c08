//! The harness itself: a test that leans on it can only be as honest as it is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use underpass_tests::addr::{
    self, HOST_V4, HOST_V6, OTHER_V4, OTHER_V6, OUTSIDE_V4, SITE_V4, SITE_V6, proxy_v4, proxy_v6,
};
use underpass_tests::arrivals::Kind;
use underpass_tests::cgroup::{Cgroup, own_cgroup};
use underpass_tests::curl::Curl;
use underpass_tests::pki::Pki;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Logged, Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, World, poll, wait_for};

const SECONDS: Duration = Duration::from_secs(10);

#[test]
fn nothing_leaves_a_world() {
    // World::new tries and panics if something can; here a real program tries as well.
    let world = World::new("closed");
    for place in [world.host(), world.inet()] {
        for url in [
            format!("http://{OUTSIDE_V4}/"),
            "http://[2001:2::1]/".into(),
        ] {
            let seen = Curl::get(&url).run(place.command("curl"));
            assert_eq!(seen.exit, 7, "{seen:?}");
        }
        let routes = place
            .command("ip")
            .args(["route", "show", "default"])
            .run(SECONDS);
        assert_eq!(routes.expect_success().stdout, "");
    }
}

#[test]
fn a_direct_connection_is_seen_to_arrive() {
    let world = World::new("arrivals");
    let (v4, v6) = (
        SocketAddr::from((OTHER_V4, 7)),
        SocketAddr::from((OTHER_V6, 7)),
    );
    let servers = [
        Server::echo(world.inet(), v4),
        Server::echo(world.inet(), v6),
    ];
    let sources = [IpAddr::from(HOST_V4), IpAddr::from(HOST_V6)];
    world.expect_no_direct_arrivals();
    for (server, source) in servers.iter().zip(sources) {
        let mut stream = world
            .host()
            .connect(server.address())
            .must("connect directly");
        stream.write_all(b"there and back").must("write");
        let mut back = [0; 14];
        stream.read_exact(&mut back).must("read");
        assert_eq!(&back, b"there and back");

        let arrivals = world.arrivals_at(server.address().ip());
        assert_eq!(arrivals.len(), 1, "{arrivals:?}");
        assert_eq!(arrivals[0].kind, Kind::Syn);
        assert_eq!(arrivals[0].source.ip(), source);
        assert_eq!(arrivals[0].destination, server.address());
        assert_eq!(server.peers(), [arrivals[0].source]);
    }
    assert_eq!(world.direct_arrivals().len(), 2);

    // A refused connection and a datagram are arrivals, too; what stays within `inet` is none.
    assert!(world.host().connect((SITE_V6, 9).into()).is_err());
    assert!(world.inet().connect((SITE_V4, 9).into()).is_err());
    let dig = world
        .host()
        .within(|| std::net::UdpSocket::bind("0.0.0.0:0").must("bind"));
    dig.send_to(b"x", (SITE_V4, 443)).must("send a datagram");
    let arrivals = world.direct_arrivals();
    assert_eq!(arrivals.len(), 4, "{arrivals:?}");
    assert_eq!(
        (arrivals[2].kind, arrivals[2].destination.port()),
        (Kind::Syn, 9)
    );
    assert_eq!(
        (arrivals[3].kind, arrivals[3].destination.port()),
        (Kind::Udp, 443)
    );
}

#[test]
fn thousands_of_arrivals_are_all_counted() {
    let world = World::new("many-arrivals");
    world.host().within(|| {
        for port in 1..=6000 {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").must("bind");
            socket.send_to(b"x", (SITE_V4, port)).must("send");
        }
    });
    assert_eq!(world.direct_arrivals().len(), 6000);
}

#[test]
fn names_resolve_by_the_worlds_name_server() {
    let world = World::new("dns");
    let dns = Dns::start(&world);
    let lookup = |database: &str, name: &str| {
        let getent = world
            .host()
            .command("getent")
            .args([database, name])
            .run(SECONDS);
        let first = getent
            .stdout
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        first.parse::<IpAddr>().ok()
    };
    assert_eq!(lookup("ahostsv4", "site.example"), Some(SITE_V4.into()));
    assert_eq!(lookup("ahostsv6", "site.example"), Some(SITE_V6.into()));
    assert_eq!(lookup("ahosts", "v6.example"), Some(SITE_V6.into()));
    assert_eq!(lookup("ahosts", "v4.example"), Some(SITE_V4.into()));
    assert_eq!(lookup("ahosts", "nowhere.example"), None);
    assert!(dns.was_asked_for("site.example"));
    assert!(!dns.was_asked_for("proxy.example"));
}

#[test]
fn curl_reaches_nginx_through_squid_and_without_it() {
    let world = World::new("servers");
    let _dns = Dns::start(&world);
    let pki = Pki::new(&world);
    let nginx = Nginx::start(&world, &pki);
    let squid = Squid::start(&world);

    let get = || Curl::get("https://site.example/page").trusting(&pki.ca());
    for proxy in [proxy_v4(), proxy_v6()] {
        let proxied = get().args(["-x".into(), format!("http://{proxy}")]);
        let seen = proxied.run(world.host().command("curl")).expect_ok();
        assert_eq!(seen.body, Nginx::GREETING);
        assert_eq!(
            (seen.http_version.as_str(), seen.connect_status),
            ("2", 200)
        );
        assert_eq!(seen.remote_ip, proxy.ip().to_string());
    }
    let connect = Logged {
        method: "CONNECT".into(),
        target: "site.example:443".into(),
        status: 200,
        user: "-".into(),
    };
    assert_eq!(squid.wait_for_log(2), [connect.clone(), connect]);
    world.expect_no_direct_arrivals();
    assert_eq!(world.arrivals_at(addr::PROXY_V4).len(), 1);

    let seen = get()
        .args(["--http1.1", "-4"])
        .run(world.host().command("curl"))
        .expect_ok();
    assert_eq!((seen.http_version.as_str(), seen.verification), ("1.1", 0));
    assert_eq!(seen.remote_ip, SITE_V4.to_string());
    let last = nginx
        .requests()
        .pop()
        .expect("nginx has logged three requests");
    assert_eq!(last.peer, HOST_V4.to_string());
    assert_eq!(
        (last.sni.as_str(), last.path.as_str()),
        ("site.example", "/page")
    );
    assert_eq!(world.direct_arrivals().len(), 1);

    // The certificate counts: with the machine's authorities instead of ours, curl refuses it.
    let seen = Curl::get("https://site.example/").run(world.host().command("curl"));
    assert_eq!(seen.exit, 60, "{seen:?}");
}

#[test]
fn squid_enforces_its_stock_rules_and_credentials() {
    let world = World::new("squid-rules");
    let _dns = Dns::start(&world);
    let pki = Pki::new(&world);
    let _nginx = Nginx::start(&world, &pki);
    let squid = Squid::start_with(
        &world,
        &Options {
            credentials: Some(("meg", "open sesame")),
            ..Options::default()
        },
    );
    let get = |url: &str, credentials: &str| {
        let proxy = [
            "-x",
            "http://192.0.2.20:3128",
            "--proxytunnel",
            "-U",
            credentials,
        ];
        Curl::get(url)
            .trusting(&pki.ca())
            .args(proxy)
            .run(world.host().command("curl"))
    };
    get("https://site.example/", "meg:open sesame").expect_ok();
    assert_eq!(
        get("https://site.example/", "meg:wrong").connect_status,
        407
    );
    // Stock rule: CONNECT names port 443 only.
    assert_eq!(
        get("http://site.example/", "meg:open sesame").connect_status,
        403
    );
    let statuses: Vec<u16> = squid
        .wait_for_log(3)
        .iter()
        .map(|line| line.status)
        .collect();
    assert_eq!(statuses, [200, 407, 403]);
}

#[test]
fn the_fake_proxy_records_refuses_and_relays() {
    let world = World::new("fake-proxy");
    let sink = Server::sink(world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let source = Server::source(world.inet(), SocketAddr::from((OTHER_V4, 9001)), 100_000);
    let proxy = FakeProxy::start(world.inet(), proxy_v4(), Answer::tunnel());
    let open = |target: &str| {
        let mut stream = world
            .host()
            .connect(proxy_v4())
            .must("connect to the proxy");
        write!(
            stream,
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        )
        .must("write");
        let mut head = [0; 39];
        stream.read_exact(&mut head).must("read the answer's head");
        assert!(
            head.starts_with(b"HTTP/1.1 200") && head.ends_with(b"\r\n\r\n"),
            "{head:?}"
        );
        stream
    };

    // The client ends its stream first and still gets the answer.
    let mut stream = open("other.example:9000");
    stream.write_all(b"Wikipedia").must("write");
    stream
        .shutdown(std::net::Shutdown::Write)
        .must("end the stream");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).must("read");
    assert_eq!(answer, "9 300286872\n");
    let report = sink.wait_for_reports(1)[0];
    assert_eq!(
        (report.received, report.adler32, report.complete),
        (9, 0x11e6_0398, true)
    );

    // The server ends its stream first and still gets the rest.
    let mut stream = open("203.0.113.11:9001");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).must("read to the end");
    assert_eq!(bytes.len(), 100_000);
    stream
        .write_all(b"still here")
        .must("write after the server's end");
    drop(stream);
    let report = source.wait_for_reports(1)[0];
    assert_eq!((report.received, report.complete), (10, true));

    proxy.set_answer(Answer::refusal("403 Forbidden", "no"));
    let url = "https://site.example/";
    let through = |curl: Curl| {
        let curl = curl.args(["-x", "http://192.0.2.20:3128"]);
        curl.run(world.host().command("curl"))
    };
    assert_eq!(through(Curl::get(url)).connect_status, 403);
    proxy.set_answer(Answer::Reset);
    assert_eq!(through(Curl::get(url)).exit, 56);
    proxy.set_answer(Answer::Silence);
    assert_eq!(through(Curl::get(url).args(["--max-time", "0.3"])).exit, 28);
    let requests = proxy.requests();
    assert_eq!(requests[0].line(), "CONNECT other.example:9000 HTTP/1.1");
    assert_eq!(requests[2].header("host"), Some("site.example:443"));
    assert_eq!(requests.len(), 5);
}

#[test]
fn a_banner_comes_before_a_word_is_said() {
    let world = World::new("banner");
    let banner = Server::banner(
        world.inet(),
        (OTHER_V4, 25).into(),
        "220 mail.example ESMTP\r\n",
    );
    let nc = world
        .host()
        .command("nc")
        .args(["-w", "1", "203.0.113.11", "25"]);
    let seen = nc.input("").run(SECONDS);
    assert_eq!(seen.stdout, "220 mail.example ESMTP\r\n");
    wait_for("the connection ends", SECONDS, || {
        banner.open_connections() == 0
    });
}

#[test]
fn workload_programs_do_what_they_say_without_an_agent() {
    let world = World::new("programs");
    let at = |port: u16| SocketAddr::from((OTHER_V4, port));
    let _echo = Server::echo(world.inet(), at(7));
    let sink = Server::sink(world.inet(), at(9000));
    let source = Server::source(world.inet(), at(9001), 100_000);
    let run = |name: &str, args: &[&str]| {
        let program = world.host().python(name).args(args);
        program.run(SECONDS * 6).expect_success().stdout
    };
    let other = OTHER_V4.to_string();

    let said = run("echo", &[&other, "7", "10000000"]);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!((words[0], words[1]), ("10000000", words[2]));
    assert_eq!(
        run("end_first", &[&other, "9000", "Wikipedia"]),
        "9 300286872\n"
    );
    assert!(run("end_last", &[&other, "9001", "still here"]).starts_with("100000 "));
    assert_eq!(source.wait_for_reports(1)[0].received, 10);
    assert_eq!(
        run("mapped", &[&other, "7"]),
        "::ffff:203.0.113.11 mapped\n"
    );
    assert_eq!(
        run("mapped", &[&other, "7", "198.51.100.2"]),
        "::ffff:203.0.113.11 mapped\n"
    );
    assert_eq!(run("send_and_close", &[&other, "9000", "bye"]), "");
    assert_eq!(sink.wait_for_reports(2)[1].received, 3);
    assert_eq!(run("many", &[&other, "7", "50", "2"]), "50 {}\n50 {}\n");
    assert!(run("talk", &[&other, "7", r"a\r\n"]).ends_with(" data 203.0.113.11 b'a\\r\\n'\n"));
    assert!(run("talk", &[&other, "9"]).contains(" refused - "));

    let proxy = FakeProxy::start(world.inet(), proxy_v4(), Answer::Reset);
    let proxy_at = |text: &str| run("talk", &["192.0.2.20", "3128", text]);
    assert!(proxy_at(r"CONNECT x:1 HTTP/1.1\r\n\r\n").contains(" reset 192.0.2.20 "));
    proxy.set_answer(Answer::Send(Vec::new()));
    assert!(proxy_at(r"CONNECT x:1 HTTP/1.1\r\n\r\n").contains(" closed 192.0.2.20 "));
}

#[test]
fn processes_run_where_they_are_put() {
    let world = World::new("places");
    let script = "cat /proc/self/cgroup; readlink /proc/self/ns/net; cat /etc/resolv.conf; env; \
        ls /run; grep -c bpf /proc/self/mounts";
    let own = fs::read_link("/proc/self/ns/net").must("read own namespace");
    let sh = world
        .host()
        .command("sh")
        .args(["-c", script])
        .in_cgroup(world.workload());
    let seen = sh.run(SECONDS).expect_success();
    let cgroup = world
        .workload()
        .path()
        .components()
        .next_back()
        .expect("a name");
    assert!(
        seen.stdout
            .contains(&format!("/{}\n", cgroup.as_os_str().display())),
        "{seen:?}"
    );
    assert!(
        !seen.stdout.contains(&own.display().to_string()),
        "{seen:?}"
    );
    assert!(seen.stdout.contains("nameserver 192.0.2.53\n"), "{seen:?}");
    assert!(!seen.stdout.to_lowercase().contains("proxy="), "{seen:?}");
    // The rest of the machine sees none of it.
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert!(!resolv_conf.contains("192.0.2.53"));

    let sleeper = world
        .host()
        .command("sleep")
        .arg("60")
        .in_cgroup(world.workload())
        .start();
    assert_eq!(world.workload().processes(), [sleeper.pid()]);
    assert_eq!(
        fs::metadata(world.workload().path()).must("stat").ino(),
        world.workload().id()
    );
    drop(sleeper);
    assert_eq!(world.workload().processes(), [0_u32; 0]);
}

#[test]
fn a_world_that_ends_leaves_nothing_behind() {
    let world = World::new("ends");
    let (dir, cgroup) = (world.dir().to_owned(), parent(world.workload()));
    let pki = Pki::new(&world);
    let nginx = Nginx::start(&world, &pki);
    let squid = Squid::start(&world);
    // Something that would go on for ever: ignores the request to end, in a session of its own.
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & wait";
    world
        .host()
        .command("sh")
        .args(["-c", script])
        .in_cgroup(world.workload())
        .start()
        .pid();
    world.workload().child("grandchild").path();
    let namespaces = namespaces_of(&world);
    assert!(processes_in(&namespaces) > 0);
    drop((nginx, squid));
    drop(world);
    assert!(!dir.exists() && !cgroup.exists());
    wait_for("no process is left in the namespaces", SECONDS, || {
        processes_in(&namespaces) == 0
    });
}

#[test]
fn a_test_that_is_interrupted_or_killed_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let this = std::env::current_exe().must("find this program");
        let report = tempfile::NamedTempFile::new().must("make a file");
        // Whoever runs the tests in the background may have SIGINT ignored, which is inherited.
        let mut test = Command::new("env")
            .arg("--default-signal=INT")
            .arg(this)
            .args(["--ignored", "--exact", "holds_a_world_for_ever"])
            .env(REPORT, report.path())
            .stdout(Stdio::null())
            .spawn()
            .must("start a test");
        let held = poll(Duration::from_secs(20), || {
            let text = fs::read_to_string(report.path()).ok()?;
            text.ends_with("end\n").then_some(text)
        });
        let held = held.expect("the other test makes its world");
        let mut lines = held.lines();
        let mut path = || PathBuf::from(lines.next().expect("a line"));
        let (dir, cgroup, namespace) = (path(), path(), path());
        assert!(dir.exists() && cgroup.exists());
        assert!(processes_in(std::slice::from_ref(&namespace)) > 0);

        let pid = Pid::from_raw(test.id().cast_signed());
        kill(pid, signal).must("interrupt the test");
        test.wait().must("wait for the test");
        wait_for(
            &format!("everything is gone after {signal}"),
            SECONDS,
            || {
                let processes = processes_in(std::slice::from_ref(&namespace));
                !dir.exists() && !cgroup.exists() && processes == 0
            },
        );
    }
}

/// Where [`holds_a_world_for_ever`] tells what it has made.
const REPORT: &str = "UNDERPASS_TEST_REPORT";

#[test]
#[ignore = "the victim of the test above; does nothing but wait"]
fn holds_a_world_for_ever() {
    let Some(report) = std::env::var_os(REPORT) else {
        return;
    };
    let world = World::new("held");
    let _squid = Squid::start(&world);
    let namespace = namespaces_of(&world).remove(0);
    let (dir, cgroup) = (world.dir().display(), parent(world.workload()));
    let text = format!(
        "{dir}\n{}\n{}\nend\n",
        cgroup.display(),
        namespace.display()
    );
    fs::write(report, text).must("report");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn cgroups_are_found_wherever_they_are_mounted() {
    let own = own_cgroup().must("find the own cgroup");
    let procs = fs::read_to_string(own.join("cgroup.procs")).must("read cgroup.procs");
    let pid = std::process::id().to_string();
    assert!(
        procs.lines().any(|line| line == pid),
        "not in {}",
        own.display()
    );
}

fn parent(cgroup: &Cgroup) -> PathBuf {
    cgroup
        .path()
        .parent()
        .expect("a cgroup has a parent")
        .into()
}

/// The network namespaces of a world's processes, `inet`'s first.
fn namespaces_of(world: &World) -> Vec<PathBuf> {
    let read = |place: &underpass_tests::Place| {
        let link = place
            .command("readlink")
            .arg("/proc/self/ns/net")
            .run(SECONDS);
        PathBuf::from(link.expect_success().stdout.trim())
    };
    vec![read(world.inet()), read(world.host())]
}

/// How many processes of this machine are in one of these network namespaces.
fn processes_in(namespaces: &[PathBuf]) -> usize {
    let processes = fs::read_dir("/proc").must("list processes").flatten();
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    processes
        .filter_map(|process| namespace(&process.path()))
        .filter(|namespace| namespaces.contains(namespace))
        .count()
}
