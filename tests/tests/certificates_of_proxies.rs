//! A proxy that cannot prove who it is learns nothing; certificates that are renewed are used.

use std::fs;
use std::time::Duration;

use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Access, Agent};
use underpass_tests::pki::{Authority, Request, Validity};
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{Credentials, Options, Security};
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
    let put = |files: [&std::path::PathBuf; 2]| {
        for (file, copy) in files.iter().zip(&copies) {
            let new = copy.with_extension("new");
            fs::copy(file, &new).must("copy a certificate");
            fs::rename(&new, copy).must("put a certificate into place");
        }
    };
    put(originals);
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
    put([&renewed.certificate, &renewed.key]);
    // The files are followed. Not one tunnel fails meanwhile.
    let is_used = || {
        assert_eq!(page(&stage), Nginx::GREETING, "{}", agent.tails());
        subject().filter(|subject| subject == "CN=renewed")
    };
    let used = poll(Duration::from_secs(20), is_used);
    assert!(used.is_some(), "{:?}\n{}", envoy.log(), agent.tails());
    world.expect_no_direct_arrivals();
}
