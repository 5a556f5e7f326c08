use std::collections::VecDeque;
use std::convert::Infallible;
use std::env::VarError;
use std::net::SocketAddr;
use std::path::Path;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prometheus::Registry;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::message::{ExportTraceServiceRequest, ExportTraceServiceResponse, PartialSuccess};
use super::*;
use crate::sockets::PlainSockets;
use crate::telemetry::Metrics;
use crate::telemetry::scrape::Scrape;
use crate::tls::testing::{Authority, server};
use crate::trace::{Kind, SpanContext};

const FAST: Times = Times {
    gather: Duration::from_millis(10),
    pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(20),
    patience: Duration::from_millis(200),
    request: Duration::from_millis(500),
};

const MINUTE: Duration = Duration::from_secs(60);

/// A status, and a body.
type Say = (u16, Vec<u8>);

/// What a collector got.
struct Got {
    path: String,
    headers: HeaderMap,
    message: ExportTraceServiceRequest,
}

impl Got {
    fn spans(&self) -> Vec<message::Span> {
        let resources = self.message.resource_spans.iter();
        resources
            .flat_map(|resource| resource.scope_spans.iter())
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }
}

/// A collector that says what it is told to, and then always 200.
#[derive(Clone, Default)]
struct Collector {
    says: Arc<Mutex<VecDeque<Say>>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Collector {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            let this = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, says) = this.says.lock().pop_front().unwrap_or((200, Vec::new()));
                this.got.lock().push(Got {
                    path: head.uri.to_string(),
                    headers: head.headers,
                    message: ExportTraceServiceRequest::decode(body).unwrap(),
                });
                let answer = Response::builder().status(status).header(RETRY_AFTER, "0");
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(says))).unwrap())
            }
        });
        // Whether the client closes it in order is not asked here.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(this.clone().serve(stream));
            }
        });
        addr
    }
}

/// One that does with each connection what it is told to.
async fn hostile<F>(act: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(act(stream));
        }
    });
    addr
}

struct Agent {
    tracer: Tracer,
    exporter: Exporter,
    registry: Registry,
}

impl Agent {
    fn start(endpoint: &str, variables: &[(&str, &str)]) -> Self {
        let settings = Settings::read(Some(endpoint), false, |name| {
            let sampler = [("OTEL_TRACES_SAMPLER", "always_on")];
            let mut all = variables.iter().chain(&sampler);
            let set = all.find(|(known, _)| *known == name);
            set.map(|(_, value)| (*value).to_owned())
                .ok_or(VarError::NotPresent)
        });
        let sockets: Arc<dyn SocketFactory> = Arc::new(PlainSockets);
        let nowhere = Path::new("/nowhere");
        let resolver = Resolver::from_files(Arc::clone(&sockets), nowhere, nowhere);
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap().traces;
        let settings = settings.unwrap().unwrap();
        let (tracer, exporter) =
            Exporter::start_with(settings, &sockets, &resolver, &metrics, FAST);
        Self {
            tracer,
            exporter,
            registry,
        }
    }

    fn record(&self, spans: usize) {
        for _ in 0..spans {
            let now = std::time::Instant::now();
            drop(self.tracer.begin(None, "span", Kind::Internal, now));
        }
    }

    fn exported(&self) -> f64 {
        let name = "underpass_trace_spans_exported_total";
        Scrape::of(&self.registry).value(name, &[]).unwrap()
    }

    fn dropped(&self, reason: &str) -> f64 {
        let name = "underpass_trace_spans_dropped_total";
        let labels = [("reason", reason)];
        Scrape::of(&self.registry).value(name, &labels).unwrap()
    }

    async fn wait_for(&self, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(MINUTE, waiting).await.expect("in time");
    }
}

#[tokio::test]
async fn spans_arrive_as_they_were() {
    let collector = Collector::default();
    let addr = collector.start().await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret"),
        ("OTEL_SERVICE_NAME", "edge"),
    ];
    let agent = Agent::start(&format!("http://{addr}/at"), &variables);
    let value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let parent = SpanContext::read([value.as_bytes()]);
    let now = std::time::Instant::now();
    let mut request = agent.tracer.begin(parent, "GET", Kind::Client, now);
    request.number("http.response.status_code", 503);
    request.word("underpass.flags", "UF");
    let mut child = request.past("dns", now, Duration::from_millis(3));
    child.failed("timeout", &"no answer");
    drop(child);
    let other = agent.tracer.begin(None, "connection", Kind::Internal, now);
    request.link(other.context());
    drop(request);
    drop(other);
    agent.wait_for(|agent| agent.exported() == 3.0).await;
    let got = std::mem::take(&mut *collector.got.lock());
    let [got] = &got[..] else {
        panic!("one message");
    };
    assert_eq!(got.path, "/at/v1/traces");
    assert_eq!(got.headers["api-key"], "s3cret");
    assert_eq!(got.headers["host"], addr.to_string());
    assert_eq!(got.headers[CONTENT_TYPE], "application/x-protobuf");
    let resource = got.message.resource_spans[0].resource.as_ref().unwrap();
    let text = |text: &str| Some(message::Value::Text(text.to_owned()));
    let told = |attributes: &[message::KeyValue], key: &str| {
        let found = attributes.iter().find(|attribute| attribute.key == key);
        found.and_then(|found| found.value.clone()?.value)
    };
    assert_eq!(told(&resource.attributes, "service.name"), text("edge"));
    let spans = got.spans();
    let [dns, request, other] = &spans[..] else {
        panic!("{spans:?}");
    };
    let parent = parent.unwrap();
    assert_eq!(request.trace_id, parent.trace.as_bytes());
    assert_eq!(request.parent_span_id, parent.span.as_bytes());
    assert_eq!((request.name.as_str(), request.kind), ("GET", 3));
    assert_eq!(request.flags, 0x301, "sampled, and the parent is remote");
    let status = told(&request.attributes, "http.response.status_code");
    assert_eq!(status, Some(message::Value::Int(503)));
    assert_eq!(request.links.len(), 1);
    assert_eq!(request.links[0].span_id, other.span_id);
    assert_eq!(request.links[0].trace_id, other.trace_id);
    assert!(request.status.is_none());
    assert_eq!(dns.parent_span_id, request.span_id);
    assert_eq!((dns.kind, dns.flags), (1, 0x101));
    assert_eq!(dns.end_time_unix_nano - dns.start_time_unix_nano, 3_000_000);
    assert_eq!(told(&dns.attributes, "error.type"), text("timeout"));
    let status = dns.status.as_ref().unwrap();
    assert_eq!((status.message.as_str(), status.code), ("no answer", 2));
    assert!(other.parent_span_id.is_empty());
}

#[tokio::test]
async fn what_may_pass_is_sent_again_and_what_may_not_is_dropped() {
    let collector = Collector::default();
    let rejected = ExportTraceServiceResponse {
        partial_success: Some(PartialSuccess {
            rejected_spans: 1,
            error_message: "too old".to_owned(),
        }),
    };
    let nothing = Vec::new();
    collector.says.lock().extend([
        (503, nothing.clone()),
        (429, nothing.clone()),
        (200, nothing.clone()),
        (400, nothing.clone()),
        (200, rejected.encode_to_vec()),
        // It has taken them, but what does it say?
        (200, vec![0xff; 100]),
    ]);
    let addr = collector.start().await;
    let agent = Agent::start(&format!("http://{addr}"), &[]);
    agent.record(2);
    agent.wait_for(|agent| agent.exported() == 2.0).await;
    assert_eq!(collector.got.lock().len(), 3, "the same three times");
    agent.record(3);
    agent
        .wait_for(|agent| agent.dropped("refused") == 3.0)
        .await;
    agent.record(2);
    agent.wait_for(|agent| agent.exported() == 3.0).await;
    assert_eq!(agent.dropped("refused"), 4.0);
    agent.record(1);
    agent.wait_for(|agent| agent.exported() == 4.0).await;
}

#[tokio::test]
async fn a_collector_that_is_in_a_hurry_waits_all_the_same() {
    let collector = Collector::default();
    // Each says to come back at once.
    collector
        .says
        .lock()
        .extend(vec![(503, Vec::new()); 10_000]);
    let addr = collector.start().await;
    let agent = Agent::start(&format!("http://{addr}"), &[]);
    agent.record(1);
    agent
        .wait_for(|agent| agent.dropped("unreachable") == 1.0)
        .await;
    let tries = collector.got.lock().len();
    let most = FAST.patience.as_millis() / FAST.pause.mul_f64(0.75).as_millis() + 2;
    assert!((2..most as usize).contains(&tries), "{tries} tries");
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_does_not_answer() {
    let addr = hostile(|mut stream| async move {
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let agent = Agent::start(&format!("http://{addr}"), &[]);
    agent.record(1);
    // It has taken what it will ever take before the queue fills up.
    sleep(FAST.gather * 5).await;
    agent.record(QUEUE + 100);
    assert_eq!(agent.dropped("queue_full"), 100.0);
    agent
        .wait_for(|agent| agent.dropped("unreachable") >= 1.0)
        .await;
    let before = std::time::Instant::now();
    agent.exporter.finish(Duration::from_millis(50)).await;
    assert!(before.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_hostile_collector_is_of_no_account() {
    for says in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 503 no\r\nRetry-After: 99999999999999999999999\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 no\r\nRetry-After: 4294967296\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-hello\r\n",
        b"",
    ] {
        let addr = hostile(move |mut stream| async move {
            let mut sink = [0; 4096];
            let _ = stream.read(&mut sink).await;
            let _ = stream.write_all(says).await;
            if says.starts_with(b"HTTP/1.1 200") {
                let chunk = [b"10000\r\n", &[b'x'; 0x1_0000][..], b"\r\n"].concat();
                while stream.write_all(&chunk).await.is_ok() {}
            }
        })
        .await;
        let agent = Agent::start(&format!("http://{addr}"), &[]);
        agent.record(1);
        agent
            .wait_for(|agent| agent.dropped("unreachable") + agent.dropped("refused") == 1.0)
            .await;
    }
}

#[tokio::test]
async fn what_was_recorded_is_sent_before_the_end() {
    let collector = Collector::default();
    let addr = collector.start().await;
    let agent = Agent::start(&format!("http://{addr}"), &[]);
    agent.record(3 * BATCH / 2);
    let Agent {
        exporter,
        tracer,
        registry,
    } = agent;
    exporter.finish(MINUTE).await;
    let sent: usize = collector
        .got
        .lock()
        .iter()
        .map(|got| got.spans().len())
        .sum();
    assert_eq!(sent, 3 * BATCH / 2);
    drop(tracer.begin(None, "late", Kind::Internal, std::time::Instant::now()));
    let labels = [("reason", "stopped")];
    let late = Scrape::of(&registry).value("underpass_trace_spans_dropped_total", &labels);
    assert_eq!(late, Some(1.0));
}

#[tokio::test]
async fn by_tls_the_collector_must_be_who_it_says() {
    let files = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let path = files.path().join("ca.pem");
    std::fs::write(&path, ours.pem()).unwrap();
    for (authority, is_good) in [(&ours, true), (&theirs, false)] {
        let acceptor = server(&authority.issue(&["127.0.0.1"]), None);
        let collector = Collector::default();
        let serving = collector.clone();
        let addr = hostile(move |stream| {
            let (acceptor, serving) = (acceptor.clone(), serving.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serving.serve(stream).await;
                }
            }
        })
        .await;
        let ca = ("OTEL_EXPORTER_OTLP_CERTIFICATE", path.to_str().unwrap());
        let agent = Agent::start(&format!("https://{addr}"), &[ca]);
        agent.record(1);
        agent
            .wait_for(|agent| agent.exported() + agent.dropped("unreachable") == 1.0)
            .await;
        assert_eq!(agent.exported() == 1.0, is_good);
        assert_eq!(collector.got.lock().len(), usize::from(is_good));
    }
}
