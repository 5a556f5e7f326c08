//! `underpass gateway`: a forward proxy of our own.

#[path = "gateway/encrypted.rs"]
mod encrypted;
#[path = "gateway/forwarded.rs"]
mod forwarded;
#[path = "gateway/observed.rs"]
mod observed;
#[path = "gateway/smuggled.rs"]
mod smuggled;

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{INTERNAL_V4, OTHER_V4, proxy_v4};
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

/// A file that only its owner can read.
fn secret_file(scene: &Scene, name: &str, text: &str) -> PathBuf {
    let file = scene.world.dir().join(name);
    fs::write(&file, text).must("write a secret");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).must("hide a secret");
    file
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
    let mut gateway = start(&scene, &rules);
    assert_eq!(status(&scene, "site.example:80"), "200");
    assert_eq!(status(&scene, "site.example:443"), "403");
    assert_eq!(status(&scene, "203.0.113.10:80"), "403");
    // Allowed, and nobody is there.
    assert_eq!(status(&scene, "203.0.113.11:9999"), "502");
    assert_eq!(status(&scene, "nowhere.example:80"), "502");
    gateway.wait_for_logged("code=403");
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
        // The scene has a server there.
        "internal.example:80",
        &format!("{INTERNAL_V4}:80"),
        &format!("[::ffff:{INTERNAL_V4}]:80"),
    ] {
        assert_eq!(status(&scene, target), "403", "{target}");
    }
    // Everything else is allowed.
    assert_eq!(status(&scene, "site.example:80"), "200");
}

#[test]
fn what_is_denied_stays_so_whatever_allows_it() {
    let scene = Scene::new("gateway-deny");
    let rules = [
        "--allow",
        "*:*",
        "--deny",
        "v4.example",
        "--deny",
        "203.0.113.11",
        "--deny",
        "2001:db8:113::/64",
    ];
    let _gateway = start(&scene, &rules);
    assert_eq!(status(&scene, "site.example:80"), "200");
    for target in ["v4.example:80", "203.0.113.11:80", "other.example:80"] {
        assert_eq!(status(&scene, target), "403", "{target}");
    }
}

#[test]
fn an_address_inside_is_reached_where_a_rule_names_it() {
    let scene = Scene::new("gateway-inside");
    let rules = ["--allow", "*:80", "--allow", "10.9.0.0/16:80"];
    let _gateway = start(&scene, &rules);
    assert_eq!(status(&scene, "internal.example:80"), "200");
    assert_eq!(status(&scene, "internal.example:443"), "403");
}

#[test]
fn it_knows_its_users_and_never_tells_their_passwords() {
    const PASSWORD: &str = "open:sesame%";
    // The same, in a URL and in Basic credentials.
    const ENCODED: [&str; 2] = ["open%3Asesame%25", "bWVnOm9wZW46c2VzYW1lJQ=="];

    let scene = Scene::new("gateway-users");
    let file = secret_file(&scene, "users", &format!("# who may\nmeg:{PASSWORD}\n"));
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
fn tokens_do_as_well_and_files_are_read_again() {
    let scene = Scene::new("gateway-tokens");
    let file = secret_file(&scene, "tokens", "ci:first.token\n");
    let path = file.display().to_string();
    let mut gateway = start(&scene, &["--tokens", &path, "--log-level", "trace"]);
    let with = |token: &str| {
        let request =
            format!("CONNECT site.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer {token}");
        ask(&scene, &request)
    };
    let refused = with("other").0.to_lowercase();
    assert!(refused.starts_with("http/1.1 407 "), "{refused}");
    assert!(
        refused.contains("\r\nproxy-authenticate: bearer "),
        "{refused}"
    );
    let (head, _open) = with("first.token");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");

    secret_file(&scene, "tokens", "ci:second.token\n");
    gateway.signal(Signal::SIGHUP);
    gateway.wait_for("the new token counts", SECONDS, || {
        with("second.token").0.starts_with("HTTP/1.1 200 ")
    });
    assert!(with("first.token").0.starts_with("HTTP/1.1 407 "));
    gateway.stop();
    let log = gateway.stderr();
    assert!(
        log.contains("user=ci") || log.contains("user=\"ci\""),
        "{log}"
    );
    assert!(
        !log.contains("first.token") && !log.contains("second.token"),
        "{log}"
    );
}

#[test]
fn a_second_order_to_stop_is_obeyed_at_once() {
    let scene = Scene::new("gateway-stop");
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let mut gateway = start(&scene, &["--allow", "*:7"]);
    let (_, mut tunnel) = ask(&scene, "CONNECT other.example:7 HTTP/1.1");
    gateway.signal(Signal::SIGTERM);
    let host = scene.world.host().clone();
    gateway.wait_for("new clients are refused", SECONDS, || {
        host.connect(proxy_v4()).is_err()
    });
    assert!(gateway.is_running());
    gateway.signal(Signal::SIGTERM);
    let status = gateway.wait(Duration::from_secs(5)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", gateway.tails());
    let ended = tunnel.read(&mut [0]).expect_err("a reset");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
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
    let deny = run(&[&listen[..], &["--deny", "10.0.0.1/8"]].concat());
    assert_eq!(deny.status.code(), Some(64), "{deny:?}");
    assert!(deny.stderr.contains("is 10.0.0.0/8 meant?"), "{deny:?}");
    let key = scene.pki.key().display().to_string();
    let bad = scene.world.dir().join("policy.yaml");
    fs::write(
        &bad,
        "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {}\n",
    )
    .must("write a policy");
    let bad = bad.display().to_string();
    for (options, part) in [
        (
            vec!["--tls-cert", &key, "--tls-key", &key],
            "server.key: no certificate",
        ),
        (
            vec!["--tls-cert", "/no/cert", "--tls-key", &key],
            "/no/cert: cannot be read",
        ),
        (vec!["--tls-cert", "/no/cert"], "--tls-key"),
        (vec!["--tls-client-ca", "/no/ca"], "--tls-cert"),
        (vec!["--tokens", "/no/tokens"], "/no/tokens"),
        (vec!["--policy", "/no/policy"], "/no/policy"),
        (vec!["--policy", &bad], "policy.yaml:3: "),
        (vec!["--secrets", "/tmp"], "--policy"),
    ] {
        let done = run(&[&listen[..], &options].concat());
        assert_eq!(done.status.code(), Some(64), "{done:?}");
        assert!(done.stderr.contains(part), "{done:?}");
    }
    // An address of somebody else.
    let foreign = run(&["--listen", "203.0.113.99:3128"]);
    assert_eq!(foreign.status.code(), Some(1), "{foreign:?}");
    assert!(foreign.stderr.contains("203.0.113.99:3128"), "{foreign:?}");
}
