//! A site with certificates of all kinds, and one that demands them of its clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use underpass_tests::World;
use underpass_tests::addr::SITE_V4;
use underpass_tests::curl::{Curl, Seen};
use underpass_tests::pki::{Authority, Issued, Pki, Request, Validity};
use underpass_tests::process::Running;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::nginx::{self, Nginx};

/// A world with a site of the test's own.
struct Site {
    pki: Pki,
    _dns: Dns,
    world: World,
}

impl Site {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let _dns = Dns::start(&world);
        let pki = Pki::new(&world);
        Self { pki, _dns, world }
    }

    fn get(&self, options: &[PathBuf]) -> Seen {
        let curl = Curl::get("https://site.example/").trusting(&self.pki.ca());
        let curl = curl.args(["-4"]).args(options.iter().cloned());
        curl.run(self.world.host().command("curl"))
    }
}

#[test]
fn a_site_can_demand_client_certificates_and_tells_what_it_saw() {
    let site = Site::new("site-mutual");
    let clients = Authority::new(&site.world, "clients");
    let client = clients.issue(&site.world, "client", &Request::client("some workload"));
    let options = nginx::Options {
        identity: site.pki.server(),
        clients: Some(&clients),
    };
    let nginx = Nginx::start_with(&site.world, &options);
    assert_eq!(site.get(&[]).status, 400);
    let identity = [
        "--cert".into(),
        client.certificate,
        "--key".into(),
        client.key,
    ];
    let tls_1_2 = ["--tls-max".into(), "1.2".into(), "--http1.1".into()];
    site.get(&identity).expect_ok();
    site.get(&[&identity[..], &tls_1_2[..]].concat())
        .expect_ok();

    let seen = nginx.requests();
    let told: Vec<[&str; 4]> = seen
        .iter()
        .map(|request| {
            [&request.sni, &request.tls, &request.alpn, &request.client].map(String::as_str)
        })
        .collect();
    let subject = "CN=some workload";
    assert_eq!(
        told,
        [
            ["site.example", "TLSv1.3", "h2", ""],
            ["site.example", "TLSv1.3", "h2", subject],
            ["site.example", "TLSv1.2", "http/1.1", subject],
        ]
    );
}

#[test]
fn certificates_are_wrong_in_the_way_that_was_asked_for() {
    let site = Site::new("certificates");
    let names = ["DNS:site.example"];
    let expired = Request::server(&names).valid(Validity::Expired);
    let not_yet = Request::server(&names).valid(Validity::NotYet);
    let wrong_name = Request::server(&["DNS:other.example"]);
    let (known, unknown) = (site.pki.authority(), Authority::new(&site.world, "unknown"));
    // What curl says, in OpenSSL's words.
    let cases = [
        (known, &Request::server(&names), None),
        (known, &expired, Some("certificate has expired")),
        (known, &not_yet, Some("certificate is not yet valid")),
        (
            known,
            &wrong_name,
            Some("no alternative certificate subject name matches"),
        ),
        (
            &unknown,
            &Request::server(&names),
            Some("unable to get local issuer certificate"),
        ),
        (
            known,
            &Request::client("site.example"),
            Some("unsuitable certificate purpose"),
        ),
    ];
    for (authority, request, complaint) in cases {
        // The name is used again: the certificate is replaced.
        let identity = authority.issue(&site.world, "site", request);
        let server = tls_server(&site.world, &identity);
        let seen = site.get(&[]);
        match complaint {
            None => assert_eq!(seen.verification, 0, "{seen:?}"),
            Some(complaint) => {
                assert_eq!(seen.exit, 60, "{seen:?}");
                assert!(seen.error.contains(complaint), "{complaint}: {seen:?}");
            }
        }
        drop(server);
    }
}

/// `openssl s_server`, which needs no directory and so can be started again and again.
fn tls_server(world: &World, identity: &Issued) -> Running {
    let address = SocketAddr::from((SITE_V4, 443));
    let command = world.inet().command("openssl");
    let mut running = command
        .args(["s_server", "-quiet", "-www", "-accept"])
        .arg(address.to_string())
        .arg("-cert")
        .arg(&identity.certificate)
        .arg("-key")
        .arg(&identity.key)
        .start();
    running.wait_until_listening(world.inet(), address);
    running
}
