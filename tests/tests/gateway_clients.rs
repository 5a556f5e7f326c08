//! What clients of all kinds ask of the gateway, and what it logs of that.

use std::fs;
use std::path::PathBuf;

use underpass_tests::Must as _;
use underpass_tests::agent::underpass;
use underpass_tests::curl::Seen;
use underpass_tests::servers::envoy::client::Way;
use underpass_tests::servers::forward::{Credentials, Options, Security};
use underpass_tests::servers::gateway::{Gateway, TOKENS_USER};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::stage::{Stage, TARGET};

const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");
const BEARER: Credentials<'_> = Credentials::Bearer("token-1");

/// One request as it is logged.
#[derive(Debug, PartialEq, Eq)]
struct Logged {
    /// The request line.
    request: String,
    code: u64,
    user: String,
    tls: String,
}

/// Every security with every kind of credentials: a client that has what is demanded gets through,
/// one without the credentials is told what is missing. `request` is the line of its request, given
/// whether it speaks TLS.
fn matrix(
    name: &str,
    request: impl Fn(bool) -> String,
    get: impl Fn(&Stage, &Options<'_>, Credentials<'_>) -> Seen,
) {
    let stage = Stage::new(name);
    let mut port = 3128;
    for security in stage.securities() {
        let tls = security.identity().is_some();
        for credentials in [Credentials::None, BASIC, BEARER] {
            let options = Options {
                port,
                security,
                credentials,
            };
            port += 1;
            let gateway = Gateway::start_with(stage.world(), &options);
            let logged = |code, user: &str| Logged {
                request: request(tls),
                code,
                user: user.to_owned(),
                tls: tls.to_string(),
            };
            let user = match credentials {
                Credentials::None => "",
                Credentials::Basic(user, _) => user,
                Credentials::Bearer(_) => TOKENS_USER,
            };
            let seen = get(&stage, &options, credentials).expect_ok();
            assert_eq!(seen.body, Nginx::GREETING);
            let mut expected = vec![logged(200, user)];
            if !matches!(credentials, Credentials::None) {
                let refused = get(&stage, &options, Credentials::None);
                assert_ne!(refused.exit, 0, "{refused:?}");
                expected.push(logged(407, ""));
            }
            let log = gateway.wait_for_log(expected.len());
            let log: Vec<_> = log
                .iter()
                .map(|line| Logged {
                    request: line.text("request"),
                    code: line.number("code"),
                    user: line.text("user"),
                    tls: line.text("tls"),
                })
                .collect();
            assert_eq!(log, expected, "{}", gateway.tails());
        }
    }
    stage.world().expect_no_direct_arrivals();
}

fn connect(version: &str) -> impl Fn(bool) -> String {
    move |_| format!("CONNECT {TARGET} HTTP/{version}")
}

fn post(tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("POST {scheme}://{TARGET}/ HTTP/2.0")
}

#[test]
fn curl_over_http1() {
    let name = "clients-curl";
    matrix(name, connect("1.1"), |stage, options, credentials| {
        stage.curl(options, credentials)
    });
}

/// Without TLS curl speaks HTTP/1.1 with proxies.
#[test]
fn curl_over_http2() {
    let request = |tls| connect(if tls { "2.0" } else { "1.1" })(tls);
    matrix("clients-curl2", request, |stage, options, credentials| {
        stage.curl_http2(options, credentials)
    });
}

#[test]
fn envoy_over_http1() {
    let name = "clients-envoy-http1";
    matrix(name, connect("1.1"), |stage, options, credentials| {
        stage.through_envoy(Way::Http1, options, credentials)
    });
}

#[test]
fn envoy_over_http2() {
    let name = "clients-envoy-http2";
    matrix(name, connect("2.0"), |stage, options, credentials| {
        stage.through_envoy(Way::Http2, options, credentials)
    });
}

#[test]
fn envoy_by_post() {
    let name = "clients-envoy-post";
    matrix(name, post, |stage, options, credentials| {
        stage.through_envoy(Way::Http2Post, options, credentials)
    });
}

/// The line of a request, of a client that speaks TLS or does not.
type RequestLine = fn(bool) -> String;

/// The protocols of policy, and what our own agent asks by each.
const AGENT: [(&str, RequestLine); 3] = [
    ("HTTP-CONNECT", |_| format!("CONNECT {TARGET} HTTP/1.1")),
    ("HTTP2-CONNECT", |_| format!("CONNECT {TARGET} HTTP/2.0")),
    ("HTTP2-POST", post),
];

#[test]
fn our_own_agent() {
    for (protocol, request) in AGENT {
        let name = format!("clients-agent-{}", protocol.to_lowercase());
        matrix(&name, request, agent(protocol));
    }
}

/// curl, which knows of no proxy, by `exec` with a policy that asks in this way.
fn agent(protocol: &'static str) -> impl Fn(&Stage, &Options<'_>, Credentials<'_>) -> Seen {
    move |stage, options, credentials| {
        let policy = policy(stage, protocol, options, credentials);
        let log = stage.world().dir().join("exec.log");
        let exec = underpass(stage.world())
            .args(["exec", "--policy"])
            .arg(policy)
            .arg("--log-file")
            .arg(log)
            .arg("--");
        stage.scene.curl("https://site.example/page").run_by(exec)
    }
}

#[track_caller]
fn policy(
    stage: &Stage,
    protocol: &str,
    options: &Options<'_>,
    credentials: Credentials<'_>,
) -> PathBuf {
    let mut proxy = format!(
        "host: proxy.example, port: {}, protocol: {protocol}",
        options.port
    );
    if options.security.identity().is_some() {
        let ca = stage.scene.pki.ca();
        proxy += &match options.security {
            Security::Mutual(..) => format!(
                ", tls: {{mode: MUTUAL, caCertificates: {}, clientCertificate: {}, privateKey: {}}}",
                ca.display(),
                stage.client.certificate.display(),
                stage.client.key.display()
            ),
            _ => format!(", tls: {{mode: SIMPLE, caCertificates: {}}}", ca.display()),
        };
    }
    let secret = match credentials {
        Credentials::None => None,
        Credentials::Basic(user, password) => {
            Some(format!("{{username: {user}, password: {password}}}"))
        }
        Credentials::Bearer(token) => Some(format!("{{token: {token}}}")),
    };
    let secret = secret.map_or_else(String::new, |data| {
        proxy += ", authentication: {credentialName: it}";
        format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: it}}\nstringData: {data}\n")
    });
    let file = stage.world().dir().join("policy.yaml");
    let text = format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: all}}\n\
         spec: {{proxy: {{{proxy}}}}}\n{secret}"
    );
    fs::write(&file, text).must("write a policy");
    file
}
