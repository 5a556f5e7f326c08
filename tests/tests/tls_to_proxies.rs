//! TLS with proxies: one that cannot prove who it is learns nothing, unless policy spells out that it
//! need not; certificates that are renewed are used, and sessions go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Access, Agent, underpass};
use underpass_tests::pki::{Authority, Issued, Request, Validity};
use underpass_tests::servers::apache;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{Credentials, Options, Security};
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::policy::policy;
use underpass_tests::servers::stage::Stage;
use underpass_tests::{Must as _, poll};

const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");

/// The site's page by a captured curl; empty without one.
fn page(stage: &Stage) -> String {
    let curl = stage.scene.curl("https://site.example/page");
    stage.scene.captured(&curl).body
}

/// Puts a copy of `file` in the place of another, at one moment.
#[track_caller]
fn put(file: &Path, place: &Path) {
    let new = place.with_extension("new");
    fs::copy(file, &new).must("copy a certificate");
    fs::rename(&new, place).must("put a certificate into place");
}

#[test]
fn a_proxy_with_a_bad_certificate_gets_no_request() {
    let stage = Stage::new("proxy-certificates");
    let world = stage.world();
    let names = ["DNS:proxy.example"];
    let unknown = Authority::new(world, "unknown");
    let known = stage.scene.pki.authority();
    let cases = [
        (
            known,
            Request::server(&names).valid(Validity::Expired),
            "expired",
        ),
        (
            known,
            Request::server(&names).valid(Validity::NotYet),
            "is a clock wrong",
        ),
        (
            known,
            Request::server(&["DNS:other.example"]),
            "not for `proxy.example`",
        ),
        (&unknown, Request::server(&names), "CA"),
    ];
    let mut port = proxy_v4().port();
    for (authority, request, complaint) in cases {
        let identity = authority.issue(world, "bad-proxy", &request);
        for protocol in ["HTTP-CONNECT", "HTTP2-CONNECT"] {
            let options = Options {
                port,
                security: Security::Tls(&identity),
                credentials: Credentials::None,
            };
            port += 1;
            let envoy = envoy::start(world, &options, Versions::Both);
            let agent = Agent::start(world, &policy(&stage, protocol, &options, BASIC));
            assert_eq!(page(&stage), "");
            let refused = |record: &Access| record.text("flags") == "UF";
            let error = agent.wait_for_access("a failure", refused).text("error");
            assert!(error.contains(complaint), "{complaint}: {error}");
            assert_eq!(envoy.log(), []);
        }
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn a_client_certificate_is_renewed_while_tunnels_go_on() {
    let stage = Stage::new("proxy-renewal");
    let world = stage.world();
    let options = Options {
        security: Security::Mutual(&stage.proxy, &stage.clients),
        ..Options::default()
    };
    let envoy = envoy::start(world, &options, Versions::Http2);
    let text = policy(&stage, "HTTP2-CONNECT", &options, Credentials::None);
    // Copies, since a new one does not come to its files at one moment.
    let copies = ["client.crt", "client.key"].map(|name| world.dir().join(name));
    let originals = [&stage.client.certificate, &stage.client.key];
    let text = originals
        .iter()
        .zip(&copies)
        .fold(text, |text, (original, copy)| {
            text.replace(&original.display().to_string(), &copy.display().to_string())
        });
    let put_both = |files: [&PathBuf; 2]| {
        for (file, copy) in files.iter().zip(&copies) {
            put(file, copy);
        }
    };
    put_both(originals);
    let agent = Agent::start(world, &text);
    assert_eq!(page(&stage), Nginx::GREETING);
    let subject = || {
        let last = envoy.log().pop()?;
        Some(last.tls?.client)
    };
    let first = envoy.wait_for_log(1).pop().and_then(|request| request.tls);
    assert_eq!(first.expect("TLS").client, "CN=workload");

    let renewed = Request::client("renewed");
    let renewed = stage.clients.issue(world, "renewed", &renewed);
    put_both([&renewed.certificate, &renewed.key]);
    // The files are followed. Not one tunnel fails meanwhile.
    let is_used = || {
        assert_eq!(page(&stage), Nginx::GREETING, "{}", agent.tails());
        subject().filter(|subject| subject == "CN=renewed")
    };
    let used = poll(Duration::from_secs(20), is_used);
    assert!(used.is_some(), "{:?}\n{}", envoy.log(), agent.tails());
    world.expect_no_direct_arrivals();
}

/// `policy` with more in the TLS of the proxy's DestinationRule.
#[track_caller]
fn with_tls(policy: &str, more: &str) -> String {
    let changed = policy.replace("tls: { mode: ", &format!("tls: {{ {more}, mode: "));
    assert_ne!(changed, policy);
    changed
}

/// Whatever sessions there were before, it is the certificate of now that counts.
#[test]
fn a_proxy_renews_its_certificate() {
    let stage = Stage::new("proxy-renews");
    let world = stage.world();
    let names = ["DNS:proxy.example"];
    let known = stage.scene.pki.authority();
    let shown = known.issue(world, "shown", &Request::server(&names));
    let renewed = known.issue(world, "renewed", &Request::server(&names));
    let unknown = Authority::new(world, "unknown");
    let wrong = unknown.issue(world, "wrong", &Request::server(&names));
    let options = Options {
        security: Security::Tls(&shown),
        credentials: BASIC,
        ..Options::default()
    };
    let _gateway = Gateway::start_with(world, &options);
    let agent = Agent::start(world, &policy(&stage, "HTTP-CONNECT", &options, BASIC));
    for _ in 0..2 {
        assert_eq!(page(&stage), Nginx::GREETING, "{}", agent.tails());
    }
    let show = |other: &Issued| {
        put(&other.certificate, &shown.certificate);
        put(&other.key, &shown.key);
    };
    let until = |body: &str| {
        let comes = || (page(&stage) == body).then_some(());
        let comes = poll(Duration::from_secs(20), comes);
        assert!(comes.is_some(), "not {body:?}\n{}", agent.tails());
    };
    show(&wrong);
    until("");
    let refused = |record: &Access| record.text("flags") == "UF";
    let error = agent.wait_for_access("a failure", refused).text("error");
    assert!(error.contains("none of the CAs configured"), "{error}");
    show(&renewed);
    until(Nginx::GREETING);
    world.expect_no_direct_arrivals();
}

#[test]
fn that_nothing_is_verified_must_be_spelled_out_and_is_told() {
    let stage = Stage::new("proxy-unverified");
    let world = stage.world();
    let unknown = Authority::new(world, "unknown");
    let bad = Request::server(&["DNS:other.example"]).valid(Validity::Expired);
    let identity = unknown.issue(world, "bad-proxy", &bad);
    let options = Options {
        security: Security::Tls(&identity),
        ..Options::default()
    };
    let envoy = envoy::start(world, &options, Versions::Http1);
    let verified = policy(&stage, "HTTP-CONNECT", &options, Credentials::None);
    let unverified = with_tls(&verified, "insecureSkipVerify: true");

    let agent = Agent::start(world, &verified);
    assert_eq!(page(&stage), "");
    assert_eq!(envoy.log(), []);
    drop(agent);

    let told = "spec.trafficPolicy.tls.insecureSkipVerify: no certificate is verified: everybody \
                on the way can read and change what is sent";
    let mut agent = Agent::start(world, &unverified);
    assert_eq!(page(&stage), Nginx::GREETING);
    assert_eq!(envoy.wait_for_log(1).len(), 1);
    agent.process().wait_for_logged(told);
    assert_eq!(agent.admin("/status")["policy"]["warnings"], 1);
    let file = world.dir().join("unverified.yaml");
    fs::write(&file, &unverified).must("write a policy");
    let check = underpass(world).arg("check").arg(&file);
    let checked = check.run(Duration::from_secs(20)).expect_success();
    let said = [checked.stdout, checked.stderr].concat();
    assert!(said.contains(told), "{said}");
    world.expect_no_direct_arrivals();
}

#[test]
fn the_lowest_version_of_tls_is_policys() {
    let stage = Stage::new("proxy-tls-version");
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let apache = apache::start_with(stage.world(), &options, "SSLProtocol TLSv1.2\n");
    let any = policy(&stage, "HTTP-CONNECT", &options, Credentials::None);
    let agent = Agent::start(stage.world(), &any);
    assert_eq!(page(&stage), Nginx::GREETING);
    let tls = apache.wait_for_log(1).pop().and_then(|request| request.tls);
    assert_eq!(tls.expect("TLS").version, "TLSv1.2");
    drop(agent);

    let newest = with_tls(&any, "minProtocolVersion: TLSV1_3");
    let agent = Agent::start(stage.world(), &newest);
    assert_eq!(page(&stage), "");
    let refused = |record: &Access| record.text("flags") == "UF";
    let error = agent.wait_for_access("a failure", refused).text("error");
    assert!(error.contains("no version of TLS"), "{error}");
    assert_eq!(apache.log().len(), 1, "it was asked for nothing more");
    stage.world().expect_no_direct_arrivals();
}

/// A proxy that is reached by another name than its certificate's.
#[test]
fn the_name_of_the_certificate_may_be_policys() {
    let stage = Stage::new("proxy-names");
    let world = stage.world();
    let names = [
        "DNS:egress.corp.example",
        "URI:spiffe://corp.example/egress",
    ];
    let issued = stage.scene.pki.authority();
    let identity = issued.issue(world, "named-proxy", &Request::server(&names));
    let options = Options {
        security: Security::Tls(&identity),
        ..Options::default()
    };
    let apache = apache::start(world, &options);
    let plain = policy(&stage, "HTTP-CONNECT", &options, Credentials::None);
    let mut served = 0;
    for (more, sent) in [
        ("sni: egress.corp.example", Some("egress.corp.example")),
        (
            "subjectAltNames: [else.example, 'spiffe://corp.example/egress']",
            Some("proxy.example"),
        ),
        ("subjectAltNames: [else.example]", None),
        ("sni: else.example", None),
    ] {
        let agent = Agent::start(world, &with_tls(&plain, more));
        let Some(sent) = sent else {
            assert_eq!(page(&stage), "", "{more}");
            let refused = |record: &Access| record.text("flags") == "UF";
            let error = agent.wait_for_access("a failure", refused).text("error");
            assert!(error.contains("else.example"), "{more}: {error}");
            assert_eq!(apache.log().len(), served, "{more}");
            continue;
        };
        assert_eq!(page(&stage), Nginx::GREETING, "{more}");
        served += 1;
        let tls = apache.wait_for_log(served).pop().and_then(|last| last.tls);
        assert_eq!(tls.expect("TLS").server_name, sent, "{more}");
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn sessions_with_a_proxy_go_on() {
    let stage = Stage::new("proxy-sessions");
    for (port, security) in (3128..).zip(&stage.securities()[1..]) {
        let options = Options {
            port,
            security: *security,
            ..Options::default()
        };
        let apache = apache::start(stage.world(), &options);
        let policy = policy(&stage, "HTTP-CONNECT", &options, Credentials::None);
        let _agent = Agent::start(stage.world(), &policy);
        for _ in 0..3 {
            assert_eq!(page(&stage), Nginx::GREETING);
        }
        let log = apache.wait_for_log(3).into_iter();
        let resumed: Vec<_> = log
            .map(|request| request.tls.expect("TLS").resumed)
            .collect();
        assert_eq!(resumed, [false, true, true]);
    }
    stage.world().expect_no_direct_arrivals();
}
