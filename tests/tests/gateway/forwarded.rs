//! Plain HTTP that is forwarded, and not tunnelled.

use underpass_tests::curl::{Curl, Seen};
use underpass_tests::servers::nginx::Nginx;

use super::*;

/// curl, not captured, with the gateway as the proxy it was told of. It tunnels https only.
fn curl(scene: &Scene, curl: &Curl) -> Seen {
    let seen = curl.run(scene.world.host().command("curl"));
    scene.world.expect_no_direct_arrivals();
    seen
}

fn get(scene: &Scene, url: &str) -> Curl {
    let curl = scene
        .curl(url)
        .args(["-4", "-x", "http://proxy.example:3128"]);
    curl.args(["--noproxy", ""])
}

#[test]
fn the_site_sees_an_ordinary_request() {
    let scene = Scene::new("gateway-forward");
    let mut gateway = start(&scene, &["--allow", "*:80", "--log-format", "json"]);
    let seen = curl(&scene, &get(&scene, "http://site.example/a/path?q=1")).expect_ok();
    assert_eq!(seen.body, Nginx::GREETING);
    assert_eq!(seen.connect_status, 0, "no tunnel");
    let requests = scene.nginx.requests();
    let [request] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(request.host, "site.example");
    assert_eq!(request.path, "/a/path?q=1");
    assert_eq!(request.protocol, "HTTP/1.1");

    for (options, status) in [
        (vec!["--data", "some=data"], 200),
        (vec!["--data", "x", "-H", "Transfer-Encoding: chunked"], 200),
        (vec!["--data", "x", "-H", "Expect: 100-continue"], 200),
        (vec!["--head"], 200),
        (vec!["--http1.0"], 200),
    ] {
        let seen = curl(&scene, &get(&scene, "http://site.example/").args(&options));
        assert_eq!(
            (seen.exit, seen.status),
            (0, status),
            "{options:?}: {seen:?}"
        );
    }
    for (url, status) in [
        ("http://site.example:81/", 403),
        ("http://internal.example/", 403),
        ("http://127.0.0.1/", 403),
        ("http://nowhere.example/", 502),
    ] {
        let seen = curl(&scene, &get(&scene, url));
        assert_eq!(seen.status, status, "{url}: {seen:?}");
    }
    gateway.stop();
    let log = gateway.stderr();
    let line = log.lines().find(|line| line.contains("/a/path?..."));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    // Heads included.
    assert!(!line.contains("\"bytes_received\":0,"), "{line}");
    for part in [
        "\"method\":\"GET\"",
        "\"target\":\"site.example:80\"",
        "\"protocol\":\"HTTP/1.1\"",
        "\"code\":200",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_client_keeps_its_connection_and_its_credentials_go_no_further() {
    let scene = Scene::new("gateway-keep");
    let file = secret_file(&scene, "users", "meg:sesame\n");
    let path = file.display().to_string();
    let metrics = "192.0.2.20:9901";
    let rules = [
        "--allow",
        "*:*",
        "--credentials",
        &path,
        "--metrics-addr",
        metrics,
    ];
    let _gateway = start(&scene, &rules);
    // Not nginx: it is to be seen what arrives, all of it.
    let probe = SocketAddr::from((OTHER_V4, 80));
    let _echo = Server::echo(scene.world.inet(), probe);
    let request = "GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\
                   Proxy-Authorization: Basic bWVnOnNlc2FtZQ==\r\nX-Kept: yes";
    let mut stream = scene.world.host().connect(proxy_v4()).must("connect");
    stream.set_read_timeout(Some(SECONDS)).must("set a timeout");
    write!(stream, "{request}\r\n\r\n").must("send a request");
    // The echo of a request is no answer of HTTP.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).must("read an answer");
    assert_eq!(&answer, b"HTTP/1.1 502");
    drop(stream);

    let two = get(&scene, "http://site.example/one").args(["http://site.example/two"]);
    let unknown = curl(&scene, &two);
    assert_eq!(unknown.status, 407);
    let accepted = |scene: &Scene| {
        let address = metrics.parse().expect("an address");
        let scrape = underpass_tests::http::get(scene.world.inet(), address, "/metrics");
        let body = scrape.must("scrape").body;
        let line = body
            .lines()
            .find(|line| line.starts_with("underpass_gateway_connections_total"));
        let line = line.expect("a metric").to_owned();
        let count = line.rsplit(' ').next().unwrap_or_default().parse::<u32>();
        count.must("read a number")
    };
    let before = accepted(&scene);
    let known = two.args(["--proxy-user", "meg:sesame"]);
    curl(&scene, &known).expect_ok();
    assert_eq!(accepted(&scene) - before, 1, "one connection for both");
    let requests = scene.nginx.requests();
    let paths: Vec<&str> = requests.iter().map(|request| &*request.path).collect();
    assert_eq!(paths, ["/one", "/two"]);
}

#[test]
fn no_url_that_curl_takes_leads_inside() {
    let scene = Scene::new("gateway-ssrf");
    let inet = scene.world.inet();
    // Somebody to find: only a rule keeps clients from it.
    let _own = Server::echo(inet, SocketAddr::from(([127, 0, 0, 1], 80)));
    let hosts = File::options().append(true).open(inet.dir().join("hosts"));
    let mut hosts = hosts.must("open hosts");
    let names = "127.0.0.1 own.example\n169.254.169.254 data.example\n::1 own6.example";
    writeln!(hosts, "\n{names}").must("add names");
    let _gateway = start(&scene, &["--allow", "*:*", "--allow", "0.0.0.0/0:*"]);
    for host in [
        "127.0.0.1",
        // Some of these curl writes as it should; then they are the address that they are.
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "0",
        "localhost",
        "own.example",
        "own.example.",
        "OWN.example",
        "own6.example",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "169.254.169.254",
        "2852039166",
        "data.example",
        "internal.example",
        "10.9.0.10",
        "[::ffff:10.9.0.10]",
        "site.example@127.0.0.1",
        "site.example:80@own.example",
    ] {
        let url = format!("http://{host}/");
        let refused = |status: u64| matches!(status, 400 | 403);
        let seen = curl(&scene, &get(&scene, &url));
        assert!(refused(seen.status), "{url}: {seen:?}");
        let seen = curl(&scene, &get(&scene, &url).args(["--proxytunnel"]));
        let (status, code) = (seen.status, seen.connect_status);
        assert!(status == 0 && refused(code), "{url}: {seen:?}");
    }
    // It is not that it goes nowhere.
    curl(&scene, &get(&scene, "http://site.example/")).expect_ok();
}
