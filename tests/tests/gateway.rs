//! `underpass gateway`: a forward proxy to try Underpass with.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{binary, exec};
use underpass_tests::curl::Seen;
use underpass_tests::process::Running;
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene};

const SECONDS: Duration = Duration::from_secs(20);

/// The scene's `proxy.example` is the gateway, with these options.
#[track_caller]
fn start(scene: &Scene, options: &[&str]) -> Running {
    let inet = scene.world.inet();
    let gateway = inet
        .command(binary())
        .args(["gateway", "--listen", &proxy_v4().to_string()])
        .args(options);
    let mut running = gateway.start();
    running.wait_until_listening(inet, proxy_v4());
    running
}

/// curl, not captured, with the gateway as the proxy it was told of.
fn by_proxy(scene: &Scene, proxy: &str, url: &str) -> Seen {
    let curl = scene.curl(url).args(["-4", "--proxytunnel", "-x", proxy]);
    let seen = curl.run(scene.world.host().command("curl"));
    scene.world.expect_no_direct_arrivals();
    seen
}

/// The head of the answer to `request`, and the connection.
fn ask(scene: &Scene, request: &str) -> (String, TcpStream) {
    let mut stream = scene
        .world
        .host()
        .connect(proxy_v4())
        .must("connect to the gateway");
    stream.set_read_timeout(Some(SECONDS)).must("set a timeout");
    write!(stream, "{request}\r\n\r\n").must("send a request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).must("read an answer");
        head.extend(byte);
    }
    (String::from_utf8_lossy(&head).into_owned(), stream)
}

/// The status of the answer to CONNECT.
fn status(scene: &Scene, target: &str) -> String {
    let (head, _) = ask(
        scene,
        &format!("CONNECT {target} HTTP/1.1\r\nHost: {target}"),
    );
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn programs_that_know_it_and_programs_that_do_not_get_through() {
    let scene = Scene::new("gateway");
    let mut gateway = start(&scene, &[]);
    let seen = by_proxy(&scene, "http://proxy.example:3128", "https://site.example/").expect_ok();
    assert_eq!((seen.connect_status, seen.verification), (200, 0));

    let seen = scene
        .curl("https://site.example/")
        .args(["-4"])
        .run_by(exec(&scene.world, "http://proxy.example:3128", &[]))
        .expect_ok();
    assert_eq!(seen.remote_ip, "203.0.113.10");
    scene.world.expect_no_direct_arrivals();

    gateway.stop();
    let log = gateway.stderr();
    let tunnels = log
        .lines()
        .filter(|line| line.contains("CONNECT site.example:443") && line.contains("code=200"));
    assert_eq!(tunnels.count(), 2, "{log}");
}

#[test]
fn it_goes_where_its_rules_allow() {
    let scene = Scene::new("gateway-rules");
    let address = proxy_v4().to_string();
    // Nothing said: port 443 of everywhere.
    let mut gateway = start(&scene, &[]);
    assert_eq!(status(&scene, "site.example:443"), "200");
    assert_eq!(status(&scene, "site.example:80"), "403");
    let refused = by_proxy(&scene, &address, "http://site.example/");
    assert_eq!((refused.status, refused.connect_status), (0, 403));
    gateway.stop();

    let rules = ["--allow", "*.example:80", "--allow", "203.0.113.11:*"];
    let gateway = start(&scene, &rules);
    assert_eq!(status(&scene, "site.example:80"), "200");
    assert_eq!(status(&scene, "site.example:443"), "403");
    assert_eq!(status(&scene, "203.0.113.10:80"), "403");
    // Allowed, and nobody is there.
    assert_eq!(status(&scene, "203.0.113.11:9999"), "502");
    assert_eq!(status(&scene, "nowhere.example:80"), "502");
    assert!(gateway.stderr().contains("403"), "{}", gateway.stderr());
}

#[test]
fn its_own_machine_and_link_are_refused_under_any_name() {
    let scene = Scene::new("gateway-own");
    let inet = scene.world.inet();
    // Somebody to find: only a rule keeps clients from it.
    let _own = Server::echo(inet, SocketAddr::from(([127, 0, 0, 1], 443)));
    let mut hosts = File::options()
        .append(true)
        .open(inet.dir().join("hosts"))
        .must("open hosts");
    writeln!(
        hosts,
        "\n127.0.0.1 own.example\n169.254.169.254 data.example"
    )
    .must("add names");

    let _gateway = start(&scene, &["--allow", "*:*", "--allow", "0.0.0.0/0:*"]);
    for target in [
        "127.0.0.1:443",
        "127.9.9.9:443",
        "[::1]:443",
        "[::ffff:127.0.0.1]:443",
        "0.0.0.0:443",
        "169.254.169.254:80",
        "[fe80::1]:443",
        "localhost:443",
        "own.example:443",
        "data.example:80",
    ] {
        assert_eq!(status(&scene, target), "403", "{target}");
    }
    // Everything else is allowed.
    assert_eq!(status(&scene, "site.example:80"), "200");
}

#[test]
fn it_only_tunnels() {
    let scene = Scene::new("gateway-405");
    let _gateway = start(&scene, &[]);
    let requests = [
        "GET http://site.example/ HTTP/1.1\r\nHost: site.example",
        "GET / HTTP/1.1\r\nHost: proxy.example",
        "POST / HTTP/1.1\r\nHost: proxy.example\r\nContent-Length: 0",
    ];
    for request in requests {
        let (head, _) = ask(&scene, request);
        assert!(head.starts_with("HTTP/1.1 405 "), "{request}: {head}");
        assert!(
            head.to_lowercase().contains("\r\nallow: connect\r\n"),
            "{head}"
        );
    }
    let seen = {
        let curl = scene
            .curl("http://site.example/")
            .args(["-x", "http://proxy.example:3128"]);
        curl.run(scene.world.host().command("curl"))
    };
    assert_eq!(seen.status, 405);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn it_knows_its_users_and_never_tells_their_passwords() {
    const PASSWORD: &str = "open:sesame%";
    // The same, in a URL and in Basic credentials.
    const ENCODED: [&str; 2] = ["open%3Asesame%25", "bWVnOm9wZW46c2VzYW1lJQ=="];

    let scene = Scene::new("gateway-users");
    let file = scene.world.dir().join("users");
    fs::write(&file, format!("# who may\nmeg:{PASSWORD}\n")).must("write credentials");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).must("hide credentials");
    let path = file.display().to_string();
    let mut gateway = start(&scene, &["--credentials", &path, "--log-level", "trace"]);
    let pid = gateway.pid();

    let url = "https://site.example/";
    for (user, connect_status) in [
        ("meg:open%3Asesame%25@", 200),
        ("", 407),
        ("meg:wrong@", 407),
        ("ann:open%3Asesame%25@", 407),
    ] {
        let proxy = format!("http://{user}proxy.example:3128");
        let seen = by_proxy(&scene, &proxy, url);
        assert_eq!(seen.connect_status, connect_status, "{user}: {seen:?}");
        assert_eq!(seen.exit == 0, connect_status == 200, "{user}: {seen:?}");
    }
    let (head, _) = ask(&scene, "CONNECT site.example:443 HTTP/1.1");
    assert!(
        head.to_lowercase()
            .contains("\r\nproxy-authenticate: basic "),
        "{head}"
    );

    let proxy = format!("http://meg:{}@proxy.example:3128", ENCODED[0]);
    let curl = scene.curl(url).args(["-4"]);
    curl.run_by(exec(&scene.world, &proxy, &[])).expect_ok();
    scene.world.expect_no_direct_arrivals();

    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).must("read arguments");
    gateway.stop();
    let log = gateway.stderr() + &gateway.stdout() + &arguments;
    assert!(
        log.contains("user=meg") || log.contains("user=\"meg\""),
        "{log}"
    );
    for secret in [PASSWORD, ENCODED[0], ENCODED[1], "wrong"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
}

#[test]
fn open_tunnels_outlive_the_order_to_stop() {
    let scene = Scene::new("gateway-drain");
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let mut gateway = start(&scene, &["--allow", "*:7"]);
    let (head, mut tunnel) = ask(&scene, "CONNECT other.example:7 HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");

    gateway.signal(Signal::SIGTERM);
    let host = scene.world.host().clone();
    gateway.wait_for("new clients are refused", SECONDS, || {
        host.connect(proxy_v4()).is_err()
    });
    tunnel.write_all(b"still here").must("send");
    let mut answer = [0; 10];
    tunnel.read_exact(&mut answer).must("receive");
    assert_eq!(&answer, b"still here");
    assert!(gateway.is_running());

    drop(tunnel);
    let status = gateway.wait(SECONDS).expect("it ends with its last tunnel");
    assert_eq!(status.code(), Some(0), "{}", gateway.tails());
}

#[test]
fn what_it_cannot_use_is_named() {
    let scene = Scene::new("gateway-usage");
    let run = |options: &[&str]| {
        let inet = scene.world.inet();
        let gateway = inet.command(binary()).arg("gateway").args(options);
        gateway.run(SECONDS)
    };
    let listen = ["--listen", "192.0.2.20:3128"];
    let missing = run(&[&listen[..], &["--credentials", "/no/such/file"]].concat());
    assert_eq!(missing.status.code(), Some(64), "{missing:?}");
    assert!(missing.stderr.contains("/no/such/file"), "{missing:?}");
    let rule = run(&[&listen[..], &["--allow", "site.example:https"]].concat());
    assert_eq!(rule.status.code(), Some(64), "{rule:?}");
    assert!(rule.stderr.contains("site.example:https"), "{rule:?}");
    // An address of somebody else.
    let foreign = run(&["--listen", "203.0.113.99:3128"]);
    assert_eq!(foreign.status.code(), Some(1), "{foreign:?}");
    assert!(foreign.stderr.contains("203.0.113.99:3128"), "{foreign:?}");
}
