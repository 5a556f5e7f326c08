//! The forward proxies of other makers: that they run here, and log what they were asked, is shown
//! with clients that are not ours.

use std::time::Duration;

use underpass_tests::addr::proxy_v4;
use underpass_tests::curl::{Curl, Seen};
use underpass_tests::pki::{Authority, Issued, Request};
use underpass_tests::servers::envoy::client::Way;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{
    Credentials, ForwardProxy, Logged, Options, Security, addresses,
};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{self, Squid};
use underpass_tests::servers::stage::Stage;
use underpass_tests::servers::{apache, nghttpx, tinyproxy};
use underpass_tests::{Scene, World};

const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");
const BEARER: Credentials<'_> = Credentials::Bearer("token-1");

#[track_caller]
fn expect_page(seen: Seen) {
    assert_eq!(seen.expect_ok().body, Nginx::GREETING);
}

/// Waits for `expected`, which is all there is in the log.
#[track_caller]
fn expect_log(proxy: &ForwardProxy, expected: &[Logged]) {
    assert_eq!(proxy.wait_for_log(expected.len()), expected);
}

#[test]
fn tinyproxy_tunnels_with_and_without_a_password() {
    let stage = Stage::new("tinyproxy");
    for (port, credentials) in [(3128, Credentials::None), (3129, BASIC)] {
        let options = Options {
            port,
            credentials,
            ..Options::default()
        };
        let tinyproxy = tinyproxy::start(stage.world(), &options);
        expect_page(stage.curl(&options, credentials));
        // Neither status nor credentials are in its log.
        let expected = Logged {
            status: 0,
            authorization: String::new(),
            ..stage.tunnel("HTTP/1.1", &options, credentials)
        };
        expect_log(&tinyproxy, std::slice::from_ref(&expected));
        if let Credentials::Basic(user, _) = credentials {
            let refused = stage.curl(&options, Credentials::None);
            assert_eq!(refused.connect_status, 407, "{refused:?}");
            // It really says 401, as if it were the site.
            let refused = stage.curl(&options, Credentials::Basic(user, "wrong"));
            assert_eq!(refused.connect_status, 401, "{refused:?}");
            expect_log(&tinyproxy, &[expected.clone(), expected.clone(), expected]);
        }
    }
    stage.world().expect_no_direct_arrivals();
}

/// Every security with every kind of credentials: a client that has what is demanded gets through,
/// one without the credentials is told what is missing.
fn matrix(
    stage: &Stage,
    protocol: &str,
    token_refusal: u16,
    start: impl Fn(&Options<'_>) -> ForwardProxy,
    get: impl Fn(&Options<'_>, Credentials<'_>) -> Seen,
) {
    matrix_of(stage, protocol, token_refusal, |logged| logged, start, get);
}

/// The same with a proxy that tells less than others.
fn matrix_of(
    stage: &Stage,
    protocol: &str,
    token_refusal: u16,
    told: fn(Logged) -> Logged,
    start: impl Fn(&Options<'_>) -> ForwardProxy,
    get: impl Fn(&Options<'_>, Credentials<'_>) -> Seen,
) {
    let mut port = proxy_v4().port();
    for security in stage.securities() {
        for credentials in [Credentials::None, BASIC, BEARER] {
            let options = Options {
                port,
                security,
                credentials,
            };
            port += 1;
            let proxy = start(&options);
            expect_page(get(&options, credentials));
            let mut expected = vec![told(stage.tunnel(protocol, &options, credentials))];
            expect_log(&proxy, &expected);
            if !matches!(credentials, Credentials::None) {
                let refused = get(&options, Credentials::None);
                assert_ne!(refused.exit, 0, "{refused:?}");
                expected.push(told(Logged {
                    status: match credentials {
                        Credentials::Bearer(_) => token_refusal,
                        _ => 407,
                    },
                    ..stage.tunnel(protocol, &options, Credentials::None)
                }));
                expect_log(&proxy, &expected);
            }
        }
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn squid_tunnels_over_http1() {
    let stage = Stage::new("squid-http1");
    let start = |options: &Options<'_>| squid::with_openssl(stage.world(), options);
    let get =
        |options: &Options<'_>, credentials: Credentials<'_>| stage.curl(options, credentials);
    matrix_of(&stage, "HTTP/1.1", 403, squid::told, start, get);
}

#[test]
fn apache_tunnels_over_http1() {
    let stage = Stage::new("apache-http1");
    let start = |options: &Options<'_>| apache::start(stage.world(), options);
    let get =
        |options: &Options<'_>, credentials: Credentials<'_>| stage.curl(options, credentials);
    matrix(&stage, "HTTP/1.1", 403, start, get);
}

#[test]
fn apache_tunnels_over_http2() {
    let stage = Stage::new("apache-http2");
    let start = |options: &Options<'_>| apache::start(stage.world(), options);
    let get = |options: &Options<'_>, credentials: Credentials<'_>| {
        stage.through_envoy(Way::Http2, options, credentials)
    };
    matrix(&stage, "HTTP/2.0", 403, start, get);
}

#[test]
fn envoy_tunnels_over_http1() {
    let stage = Stage::new("envoy-http1");
    let start = |options: &Options<'_>| envoy::start(stage.world(), options, Versions::Http1);
    let get =
        |options: &Options<'_>, credentials: Credentials<'_>| stage.curl(options, credentials);
    matrix(&stage, "HTTP/1.1", 407, start, get);
}

#[test]
fn envoy_tunnels_over_http2() {
    let stage = Stage::new("envoy-http2");
    let start = |options: &Options<'_>| envoy::start(stage.world(), options, Versions::Http2);
    let get = |options: &Options<'_>, credentials: Credentials<'_>| {
        stage.through_envoy(Way::Http2, options, credentials)
    };
    matrix(&stage, "HTTP/2", 407, start, get);
}

#[test]
fn a_client_without_a_certificate_is_turned_away() {
    let stage = Stage::new("no-client-certificate");
    let mutual = Options {
        security: Security::Mutual(&stage.proxy, &stage.clients),
        ..Options::default()
    };
    let other = Authority::new(stage.world(), "others");
    let stranger = other.issue(stage.world(), "stranger", &Request::client("stranger"));
    let get = |port: u16, identity: Option<&Issued>| {
        let mut curl = stage
            .scene
            .curl("https://site.example/")
            .args(["-x".into(), format!("https://proxy.example:{port}")])
            .args(["--proxy-cacert".into(), stage.scene.pki.ca()]);
        if let Some(identity) = identity {
            curl = curl
                .args(["--proxy-cert".into(), identity.certificate.clone()])
                .args(["--proxy-key".into(), identity.key.clone()]);
        }
        curl.run(stage.world().host().command("curl"))
    };
    let behind = tinyproxy::start(
        stage.world(),
        &Options {
            port: 3131,
            ..Options::default()
        },
    );
    let at = |port| Options { port, ..mutual };
    let proxies = [
        apache::start(stage.world(), &at(3128)),
        envoy::start(stage.world(), &at(3129), Versions::Both),
        nghttpx::start(stage.world(), &at(3130), addresses(3131)[0]),
    ];
    for (port, proxy) in (3128..).zip(proxies) {
        for identity in [None, Some(&stranger)] {
            let refused = get(port, identity);
            assert_ne!(refused.exit, 0, "port {port}: {refused:?}");
            assert_eq!(refused.connect_status, 0, "port {port}: {refused:?}");
        }
        expect_page(get(port, Some(&stage.client)));
        assert_eq!(proxy.wait_for_log(1).len(), 1);
    }
    assert_eq!(behind.wait_for_log(1).len(), 1);
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn envoy_takes_a_post_for_a_tunnel() {
    let stage = Stage::new("envoy-post");
    let start = |options: &Options<'_>| envoy::start(stage.world(), options, Versions::Http2);
    for (port, security) in (3128..).zip(stage.securities()) {
        let options = Options {
            port,
            security,
            credentials: BEARER,
        };
        let proxy = start(&options);
        expect_page(stage.through_envoy(Way::Http2Post, &options, BEARER));
        let expected = Logged {
            method: "POST".into(),
            ..stage.tunnel("HTTP/2", &options, BEARER)
        };
        expect_log(&proxy, &[expected]);
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn nghttpx_tunnels_over_http2_and_passes_credentials_on() {
    let stage = Stage::new("nghttpx");
    let world = stage.world();
    let behind = Options {
        port: 3131,
        credentials: BASIC,
        ..Options::default()
    };
    let apache = apache::start(world, &behind);
    for (number, security) in (0..).zip(stage.securities()) {
        let options = Options {
            port: 3128 + number,
            security,
            credentials: Credentials::None,
        };
        let nghttpx = nghttpx::start(world, &options, addresses(behind.port)[0]);
        expect_page(stage.through_envoy(Way::Http2, &options, BASIC));
        let expected = stage.tunnel("HTTP/2", &options, BASIC);
        expect_log(&nghttpx, &[expected]);
        let passed_on = apache.wait_for_log(usize::from(number) + 1);
        let last = passed_on.last();
        assert_eq!(last, Some(&stage.tunnel("HTTP/1.1", &behind, BASIC)));
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn envoy_takes_both_versions_at_one_port() {
    let stage = Stage::new("envoy-both");
    for (port, security) in (3128..).zip(stage.securities()) {
        let options = Options {
            port,
            security,
            ..Options::default()
        };
        let proxy = envoy::start(stage.world(), &options, Versions::Both);
        let mut expected = Vec::new();
        for (way, protocol) in [(Way::Http1, "HTTP/1.1"), (Way::Http2, "HTTP/2")] {
            expect_page(stage.through_envoy(way, &options, Credentials::None));
            expected.push(stage.tunnel(protocol, &options, Credentials::None));
            expect_log(&proxy, &expected);
        }
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn plain_requests_are_forwarded_in_absolute_form() {
    let scene = Scene::new("absolute-form");
    let world = &scene.world;
    let at = |port| Options {
        port,
        ..Options::default()
    };
    let squid = Squid::start(world);
    let proxies = [
        tinyproxy::start(world, &at(3129)),
        apache::start(world, &at(3130)),
        nghttpx::start(world, &at(3131), addresses(3130)[0]),
    ];
    let url = "http://site.example/page";
    let get = |port: u16| {
        let curl = Curl::get(url).args(["-x".into(), format!("http://proxy.example:{port}")]);
        expect_page(curl.run(world.host().command("curl")));
    };
    get(3128);
    let logged = squid.wait_for_log(1);
    assert_eq!(
        (logged[0].method.as_str(), logged[0].target.as_str()),
        ("GET", url)
    );
    for (port, proxy) in (3129..).zip(&proxies) {
        get(port);
        let logged = proxy.wait_for_log(1).pop().expect("a request");
        let line = [logged.method, logged.target, logged.protocol].join(" ");
        assert_eq!(line, format!("GET {url} HTTP/1.1"));
    }
    assert!(
        scene
            .nginx
            .requests()
            .iter()
            .all(|request| request.path == "/page")
    );
    world.expect_no_direct_arrivals();
}

#[test]
fn a_resumed_session_is_told_from_a_new_one() {
    let stage = Stage::new("resumed");
    let world = stage.world();
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let behind = Options {
        port: 3129,
        ..Options::default()
    };
    let session = world.dir().join("session");
    let connect = |port: u16, options: &[&str]| {
        let openssl = world
            .host()
            .command("openssl")
            .args(["s_client", "-quiet", "-connect"]);
        let openssl = openssl.arg(format!("proxy.example:{port}")).args(options);
        let openssl = openssl.arg(&session).args(["-servername", "proxy.example"]);
        // The target's end of the data ends the tunnel, and that the client.
        let request = "GET / HTTP/1.0\r\n\r\n";
        let input =
            format!("CONNECT site.example:80 HTTP/1.1\r\nHost: site.example:80\r\n\r\n{request}");
        let seen = openssl.input(input).run(Duration::from_secs(20));
        assert!(seen.stdout.ends_with(Nginx::GREETING), "{seen:?}");
    };
    let _tinyproxy = tinyproxy::start(world, &behind);
    let nghttpx = Options {
        port: 3130,
        ..options
    };
    for (port, proxy) in [
        (3128, apache::start(world, &options)),
        (3130, nghttpx::start(world, &nghttpx, addresses(3129)[0])),
    ] {
        connect(port, &["-sess_out"]);
        connect(port, &["-sess_in"]);
        let logged = proxy.wait_for_log(2);
        let resumed: Vec<_> = logged
            .into_iter()
            .map(|request| request.tls.map(|tls| tls.resumed))
            .collect();
        assert_eq!(resumed, [Some(false), Some(true)], "port {port}");
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn a_proxy_that_was_stopped_refuses_connections() {
    let world = World::new("stopped");
    let at = |port| Options {
        port,
        ..Options::default()
    };
    let proxies = [
        tinyproxy::start(&world, &at(3128)),
        apache::start(&world, &at(3129)),
        nghttpx::start(&world, &at(3130), addresses(3128)[0]),
        envoy::start(&world, &at(3131), Versions::Both),
    ];
    for (port, mut proxy) in (3128..).zip(proxies) {
        proxy.stop();
        for address in addresses(port) {
            assert!(world.inet().connect(address).is_err(), "{address}");
        }
    }
}
