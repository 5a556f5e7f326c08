//! Faults of requests of HTTP, and of their answers.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, OTHER_V6, PROXY_V4};
use underpass_tests::pki::{Authority, Request, Validity};
use underpass_tests::servers::fake_proxy::{Answer, Step};
use underpass_tests::{World, wait_for};

use crate::proxy;
use crate::stage::{Saw, Stage};

const SECONDS: Duration = Duration::from_secs(10);

/// A request, as Python writes it.
pub(crate) const GET: &str = r"GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
/// The head of one with a body of ten bytes.
pub(crate) const POST: &str =
    r"POST / HTTP/1.1\r\nHost: other.example\r\nContent-Length: 10\r\nConnection: close\r\n\r\n";
/// The head of one with a body in chunks.
pub(crate) const CHUNKS: &str = concat!(
    r"POST / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n",
    r"Transfer-Encoding: chunked\r\n\r\n"
);
/// As [`GET`], for the host of [`certificates`].
const GET_VERIFIED: &str = r"GET / HTTP/1.1\r\nHost: mail.example\r\nConnection: close\r\n\r\n";

/// Where workloads ask.
const PORT: u16 = 80;

/// A workload asks the target.
pub(crate) fn asks(stage: &Stage) -> Saw {
    stage.see_to("ask", &OTHER_V4.to_string(), PORT, &[GET])
}

/// A workload asks the proxy for a tunnel with this answer.
pub(crate) fn refused(stage: &Stage, status: &str) -> Saw {
    stage.proxy.set_answer(Answer::refusal(status, "because"));
    asks(stage)
}

/// The target hears a request and takes these steps.
pub(crate) fn meets(stage: &Stage, steps: &[Step]) -> Saw {
    stage.proxy.set_answer(heard_and(steps));
    asks(stage)
}

/// The target hears a request and answers with these bytes, and the end.
pub(crate) fn answered(stage: &Stage, bytes: &str) -> Saw {
    meets(
        stage,
        &[Step::Send(bytes.into()), Step::Finish, Step::Listen],
    )
}

fn heard_and(steps: &[Step]) -> Answer {
    let steps = steps.iter().cloned();
    // All that is sure to come of a request.
    Answer::opened([Step::Read(16)].into_iter().chain(steps))
}

/// A workload says something in two parts, and the target hears it to its end.
pub(crate) fn asks_in_parts(stage: &Stage, first: &str, second: &str) -> Saw {
    stage.proxy.set_answer(Answer::opened([Step::Listen]));
    stage.see_to(
        "ask_in_parts",
        &OTHER_V4.to_string(),
        PORT,
        &[first, second],
    )
}

/// A workload leaves when the target has had its request, and some bytes of the answer are there.
pub(crate) fn leaves(stage: &Stage, text: &str, how: &str, steps: &[Step], read: &str) -> Saw {
    stage.proxy.set_answer(heard_and(steps));
    let args = [text, how, read];
    let workload = stage.fault_to("ask_and_leave", &OTHER_V4.to_string(), PORT, &args);
    let workload = workload.start();
    wait_for("the request is on its way", SECONDS, || {
        let open = stage.agent().admin("/connections");
        workload.stdout().contains("up") && open[0]["bytes_sent"].as_u64() > Some(0)
    });
    workload.signal(Signal::SIGTERM);
    stage.finish(workload)
}

/// Nobody listens where the proxy should be.
pub(crate) fn without_proxy(stage: &mut Stage) -> Saw {
    proxy::take_down(stage);
    asks(stage)
}

/// Where servers with certificates listen that do not do: the port of the workload, and the server's.
const CERTIFICATES: [(u16, u16, &str); 3] = [
    (8001, 9001, "expired"),
    (8002, 9002, "other"),
    (8003, 9003, "unknown"),
];

/// Certificates for mail.example that do not do, and documents by which TLS is spoken to it.
pub(crate) fn certificates(world: &World) -> String {
    let known = Authority::new(world, "known");
    let unknown = Authority::new(world, "strange");
    let names = ["DNS:mail.example"];
    let right = Request::server(&names);
    known.issue(world, "expired", &right.valid(Validity::Expired));
    known.issue(world, "other", &Request::server(&["DNS:else.example"]));
    unknown.issue(world, "unknown", &right);
    let ports: String = CERTIFICATES
        .iter()
        .map(|(port, target, name)| {
            format!("  - {{number: {port}, name: {name}, protocol: HTTP, targetPort: {target}}}\n")
        })
        .collect();
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: mail}}
spec:
  hosts: [mail.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
{ports}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: mail}}
spec:
  host: mail.example
  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}
",
        known.certificate().display()
    )
}

/// A workload asks a target that shows this certificate.
pub(crate) fn shown(stage: &Stage, certificate: &str) -> Saw {
    let mut all = CERTIFICATES.iter();
    let found = all.find(|(_, _, name)| *name == certificate);
    let (port, target, _) = found.expect("a certificate of the table");
    let authority = if certificate == "unknown" {
        "strange"
    } else {
        "known"
    };
    let file = stage.world.dir().join(authority).join(certificate);
    let inet = stage.world.inet();
    let mut server = inet
        .command("openssl")
        .args(["s_server", "-quiet", "-www", "-accept"])
        .arg(format!("{OTHER_V4}:{target}"))
        .arg("-cert")
        .arg(file.with_extension("crt"))
        .arg("-key")
        .arg(file.with_extension("key"))
        .start();
    server.wait_until_listening(inet, SocketAddr::from((OTHER_V4, *target)));
    stage.see_to("ask", &OTHER_V4.to_string(), *port, &[GET_VERIFIED])
}

/// A workload asks the proxy's host, for which a rule says that there is no proxy before it.
pub(crate) fn refused_directly(stage: &Stage) -> Saw {
    let text = r"GET / HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n";
    stage.see_to("ask", &PROXY_V4.to_string(), 81, &[text])
}

/// What denies the target.
pub(crate) fn denied(_: &World) -> String {
    "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mail, labels: {secret: \"yes\"}}
spec: {hosts: [mail.example], location: MESH_EXTERNAL, resolution: DNS}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: no-secrets}
spec: {selector: {matchLabels: {secret: \"yes\"}}, action: Deny}
"
    .to_owned()
}

/// A workload asks for what [`denied`] denies.
pub(crate) fn asks_for_secrets(stage: &Stage) -> Saw {
    stage.see_to("ask", &OTHER_V4.to_string(), PORT, &[GET_VERIFIED])
}

/// What wants a name of whoever goes to one address.
pub(crate) fn named(_: &World) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: named, labels: {{named: \"yes\"}}}}
spec:
  hosts: [other.example]
  addresses: [\"{OTHER_V6}\"]
  location: MESH_EXTERNAL
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {{name: named}}
spec:
  selector: {{matchLabels: {{named: \"yes\"}}}}
  targetHost: AUTO_SNI
  proxy: {{host: proxy.example, port: 3128}}
"
    )
}

/// A workload asks there, and says an address only.
pub(crate) fn asks_without_a_name(stage: &Stage) -> Saw {
    let text = format!(r"GET / HTTP/1.1\r\nHost: [{OTHER_V6}]\r\nConnection: close\r\n\r\n");
    stage.see_to("ask", &OTHER_V6.to_string(), PORT, &[&text])
}

/// One tunnel is being opened, and there may be one.
pub(crate) fn one_tunnel_too_many(stage: &mut Stage) -> Saw {
    let answer = [Step::Hold, Step::Reset];
    stage.proxy.set_answer(Answer::Play(answer.into()));
    let before = stage.proxy.requests().len();
    let first = stage.fault("echo", &[]).start();
    wait_for("the proxy is asked", SECONDS, || {
        stage.proxy.requests().len() > before
    });
    let saw = asks(stage);
    stage.proxy.let_go();
    stage.finish(first);
    saw
}

/// The agent is told to stop, and once more while a request waits for its answer.
pub(crate) fn outlives_the_patience(stage: &mut Stage) -> Saw {
    stage.proxy.set_answer(heard_and(&[Step::Stall]));
    let before = stage.records_before();
    let workload = stage.fault_to("ask", &OTHER_V4.to_string(), PORT, &[GET]);
    let workload = workload.start();
    wait_for("the request is on its way", SECONDS, || {
        let open = stage.agent().admin("/connections");
        open[0]["bytes_sent"].as_u64() > Some(0)
    });
    let mut agent = stage.agent.take().expect("the agent runs");
    agent.process().signal(Signal::SIGTERM);
    agent.process().wait_for_logged("draining");
    agent.process().signal(Signal::SIGTERM);
    let status = agent.process().wait(SECONDS).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", agent.tails());
    let log = agent.access_log().split_off(before);
    let flags: Vec<String> = log.iter().map(|record| record.text("flags")).collect();
    assert_eq!(flags, ["LR"], "{log:?}");
    assert_eq!(log[0].text("status"), "", "{log:?}");
    assert_ne!(log[0].text("request_id"), "", "{log:?}");
    stage.finish(workload)
}
