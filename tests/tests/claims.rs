//! Claims do not open doors: a name that policy lets past the proxy does so at its own address only.
//!
//! `v6.example` is at one address of the site. Who sends its name to the other address, which the
//! site answers as well, would be served if the name alone counted, and seen to arrive directly.

use std::net::IpAddr;
use std::time::Duration;

use underpass_tests::Scene;
use underpass_tests::addr::{SITE_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Access, Agent};
use underpass_tests::curl::Curl;
use underpass_tests::process::Cmd;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Request};
use underpass_tests::servers::nginx::Nginx;

const SECONDS: Duration = Duration::from_secs(20);

const NAME: &str = "v6.example";

/// By what a name leads past the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// `action: Direct`.
    Direct,
    /// It is in `noProxy`.
    NoProxy,
    /// `failureMode: open`, and the proxy is not there.
    Open,
    /// The proxy is asked for the address: `targetHost: ORIGINAL_DST`.
    OriginalDst,
    /// `location: MESH_INTERNAL`.
    Internal,
}

const DOORS: [Door; 5] = [
    Door::Direct,
    Door::NoProxy,
    Door::Open,
    Door::OriginalDst,
    Door::Internal,
];

/// What rules the address that the name is not at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wall {
    /// Everything is denied.
    Deny,
    /// Everything is tunnelled.
    Tunnel,
    /// This very address is denied.
    DenyAddress,
}

impl Door {
    fn documents(self) -> String {
        let location = match self {
            Self::Internal => "MESH_INTERNAL",
            _ => "MESH_EXTERNAL",
        };
        let entry = format!(
            "apiVersion: networking.istio.io/v1\n\
             kind: ServiceEntry\n\
             metadata: {{name: named, labels: {{is: named}}}}\n\
             spec: {{hosts: [{NAME}], location: {location}}}\n"
        );
        let proxy = "proxy: {host: proxy.example, port: 3128}";
        let how = match self {
            Self::Direct => "action: Direct".to_owned(),
            Self::NoProxy => format!("noProxy: [{NAME}], {proxy}"),
            // Nobody listens there.
            Self::Open => "failureMode: open, proxy: {host: 192.0.2.20, port: 3999}".to_owned(),
            Self::OriginalDst => format!("targetHost: ORIGINAL_DST, {proxy}"),
            Self::Internal => return entry,
        };
        format!("{entry}---\n{}", tunnel("door", Some("named"), &how))
    }

    /// Whether what is through it goes to the address without any proxy.
    fn is_past_proxies(self) -> bool {
        self != Self::OriginalDst
    }
}

impl Wall {
    fn documents(self) -> String {
        match self {
            Self::Deny => tunnel("wall", None, "action: Deny"),
            Self::Tunnel => tunnel("wall", None, "proxy: {host: proxy.example, port: 3128}"),
            Self::DenyAddress => format!(
                "apiVersion: networking.istio.io/v1\n\
                 kind: ServiceEntry\n\
                 metadata: {{name: shut, labels: {{is: shut}}}}\n\
                 spec: {{hosts: [shut.example], addresses: [{SITE_V4}]}}\n\
                 ---\n{}",
                tunnel("wall", Some("shut"), "action: Deny")
            ),
        }
    }

    /// What is to become of a claim: the rule, and what the proxy is asked for, if anything.
    fn verdict(self, door: Door, port: u16) -> (&'static str, &'static str, Option<String>) {
        let by_name = Some(format!("CONNECT {NAME}:{port} HTTP/1.1"));
        match (self, door) {
            (Self::DenyAddress, _) => ("deny", "Tunnel/wall", None),
            // A name may choose a tunnel, and the proxy what becomes of it.
            (_, Door::NoProxy) => ("tunnel", "Tunnel/door", by_name),
            (_, Door::Open) => ("tunnel", "Tunnel/door", None),
            (Self::Deny, _) => ("deny", "Tunnel/wall", None),
            (Self::Tunnel, _) => ("tunnel", "Tunnel/wall", by_name),
        }
    }
}

fn tunnel(name: &str, selected: Option<&str>, how: &str) -> String {
    let selector = selected.map(|label| format!("selector: {{matchLabels: {{is: {label}}}}}, "));
    format!(
        "apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata: {{name: {name}}}\n\
         spec: {{{}{how}}}\n",
        selector.unwrap_or_default()
    )
}

/// A program that says the name to the address of another, and the port it does that on.
fn liars(scene: &Scene) -> [(&'static str, u16, Cmd); 3] {
    let curl = |curl: Curl| {
        let [program, args @ ..] = &curl.command_line()[..] else {
            panic!("a program");
        };
        let program = program.to_string_lossy();
        scene.workload(&program).args(args)
    };
    let resolve = format!("{NAME}:443:{SITE_V4}");
    let https = scene.curl(&format!("https://{NAME}/"));
    let http = scene.curl(&format!("http://{SITE_V4}/"));
    let s_client = scene.workload("openssl").args(["s_client", "-brief"]);
    let s_client = s_client.args(["-connect", &format!("{SITE_V4}:443")]);
    [
        ("curl: SNI", 443, curl(https.args(["--resolve", &resolve]))),
        (
            "curl: Host",
            80,
            curl(http.args(["--header", &format!("Host: {NAME}")])),
        ),
        (
            "openssl: SNI",
            443,
            s_client.args(["-servername", NAME]).input("Q\n"),
        ),
    ]
}

/// The record of the connection after `before` of them.
#[track_caller]
fn next(agent: &Agent, before: usize) -> Access {
    let log = agent.wait_for_accesses(before + 1);
    assert_eq!(log.len(), before + 1, "{log:?}");
    log[before].clone()
}

#[track_caller]
fn hold(wall: Wall, door: Door) {
    let scene = Scene::new("claims");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let policy = format!("{}---\n{}", door.documents(), wall.documents());
    let agent = Agent::start(&scene.world, &policy);
    let direct = |address: IpAddr| scene.world.arrivals_at(address).len();

    for (number, (liar, port, program)) in liars(&scene).into_iter().enumerate() {
        let case = format!("{liar} against {wall:?} with {door:?}");
        let asked = proxy.requests().len();
        program.run(SECONDS);
        let record = next(&agent, number);
        let (decision, rule, connect) = wall.verdict(door, port);
        let did = (record.text("decision"), record.text("policy"));
        assert_eq!(did, (decision.into(), rule.into()), "{case}: {record:?}");
        let original = format!("{SITE_V4}:{port}");
        assert_eq!(record.text("original_dst"), original, "{case}");
        let requests = proxy.requests();
        let lines = requests[asked..].iter().map(Request::line);
        assert!(lines.eq(connect.as_deref()), "{case}: {requests:?}");
        let arrivals = scene.world.direct_arrivals();
        assert!(arrivals.is_empty(), "{case}: slipped past: {arrivals:?}");
    }

    // The same name where it belongs is let through: the door is one.
    for (number, scheme) in ["https", "http"].into_iter().enumerate() {
        let url = format!("{scheme}://{NAME}/");
        let case = format!("{url} itself with {door:?} and {wall:?}");
        let asked = proxy.requests().len();
        let seen = scene.captured(&scene.curl(&url)).expect_ok();
        assert_eq!(seen.body, Nginx::GREETING, "{case}");
        let count = usize::from(door.is_past_proxies()) * (number + 1);
        assert_eq!(direct(SITE_V6.into()), count, "{case}");
        let requests = proxy.requests();
        let lines = requests[asked..].iter().map(Request::line);
        let port = if scheme == "https" { 443 } else { 80 };
        let by_address = format!("CONNECT [{SITE_V6}]:{port} HTTP/1.1");
        let connect = (!door.is_past_proxies()).then_some(by_address.as_str());
        assert!(lines.eq(connect), "{case}: {requests:?}");
    }
    assert_eq!(direct(SITE_V4.into()), 0);
}

#[test]
fn no_claim_leads_past_a_denial_of_everything() {
    for door in DOORS {
        hold(Wall::Deny, door);
    }
}

#[test]
fn no_claim_leads_past_a_tunnel_for_everything() {
    for door in DOORS {
        hold(Wall::Tunnel, door);
    }
}

#[test]
fn no_claim_leads_past_a_denial_of_the_address() {
    for door in DOORS {
        hold(Wall::DenyAddress, door);
    }
}

/// A name may even belong to an address that is denied: it stays so.
#[test]
fn a_true_name_does_not_open_an_address_that_is_denied() {
    let scene = Scene::new("claims-true");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    for door in DOORS {
        let policy = format!("{}---\n{}", door.documents(), Wall::DenyAddress.documents());
        let agent = Agent::start(&scene.world, &policy.replace(NAME, "site.example"));
        // Who speaks HTTP is told.
        for (number, (url, status)) in [("https://site.example/", 0), ("http://site.example/", 403)]
            .into_iter()
            .enumerate()
        {
            let seen = scene.captured(&scene.curl(url).args(["-4"]));
            assert_eq!(seen.status, status, "{door:?} {url}: {seen:?}");
            let record = next(&agent, number);
            assert_eq!(record.text("decision"), "deny", "{door:?} {url}");
            assert_eq!(record.text("policy"), "Tunnel/wall", "{door:?} {url}");
        }
        scene.world.expect_no_direct_arrivals();
    }
}
