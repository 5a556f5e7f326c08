//! The access log.

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::gateway::accept;
use crate::gateway::access::Record;

/// Where a test's log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    /// The fields of the records so far, once there are `count`.
    async fn records(&self, count: usize) -> Vec<serde_json::Value> {
        for _ in 0..250 {
            let text = String::from_utf8(self.0.lock().clone()).unwrap();
            if text.lines().count() >= count {
                return text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .map(|mut event: serde_json::Value| event["fields"].take())
                    .collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("fewer than {count} records");
    }
}

/// Collects the access log of this thread, and so of a gateway in a test's runtime, which has no
/// other thread.
fn capture() -> (Log, DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(log.clone())
        .with_env_filter("underpass::access=info")
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    // A test on another thread, where nobody listens, may have been the first to write a record,
    // and it is remembered that nobody does.
    let metrics = Arc::new(GatewayMetrics::new(&Registry::new()).unwrap());
    let addr = (Ipv4Addr::LOCALHOST, 0).into();
    drop(Record::unreadable(
        &metrics,
        accept::Client { addr, tls: false },
    ));
    tracing::callsite::rebuild_interest_cache();
    log.0.lock().clear();
    (log, guard)
}

#[tokio::test]
async fn every_request_leaves_one_record() {
    let (log, _guard) = capture();
    let gateway = start(GatewayConfig {
        users: only_for("ann:s3cret\n", Scheme::Basic),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let target = format!("here.example:{}", server.port());
    let mut client = Client::new(&gateway).await;
    let from = client.0.local_addr().unwrap().to_string();
    client.connect(&target).await;
    let authorization = "Proxy-Authorization: Basic YW5uOnMzY3JldA==";
    let request = format!("CONNECT {target} HTTP/1.1\r\n{authorization}\r\n\r\nearly");
    client.ask(&request).await;
    let mut upstream = server.accept().await;
    upstream.write_all(b"0123456789").await.unwrap();
    drop(upstream);
    client.0.shutdown().await.unwrap();
    client.rest().await.ok();
    let mut garbage = Client::new(&gateway).await;
    garbage.ask("\r\n\r\n\0\0").await;
    drop(garbage);

    let records = log.records(3).await;
    assert_eq!(records.len(), 3, "{records:?}");
    let line = format!("CONNECT {target} HTTP/1.1");
    for (record, code) in records.iter().zip([407, 200]) {
        assert_eq!(record["client"], *from);
        assert_eq!(record["request"], *line);
        assert_eq!(record["method"], "CONNECT");
        assert_eq!(record["target"], *target);
        assert_eq!(record["protocol"], "HTTP/1.1");
        assert_eq!(record["tls"], false);
        assert_eq!(record["code"], code);
        assert!(record["duration_ms"].is_u64());
    }
    let [refused, tunnel, unreadable] = &records[..] else {
        unreachable!()
    };
    assert!(refused["user"].is_null());
    assert!(refused["error"].is_string());
    assert_eq!(refused["bytes_sent"], 0);
    assert_eq!(tunnel["user"], "ann");
    assert_eq!(tunnel["bytes_received"], 10);
    assert_eq!(unreadable["code"], 400);
    assert_eq!(unreadable["request"], "-");
    let text = format!("{records:?}");
    assert!(
        !text.contains("s3cret") && !text.contains("YW5uOn"),
        "{text}"
    );
}

#[tokio::test]
async fn a_tunnel_that_fails_says_why() {
    let (log, _guard) = capture();
    let gateway = start(local()).await;
    let server = Server::new().await;
    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    client.0.write_all(b"abc").await.unwrap();
    upstream.read_exact(&mut [0; 3]).await.unwrap();
    crate::sockets::reset_on_close(&upstream);
    drop(upstream);
    client.rest().await.unwrap_err();
    let records = log.records(1).await;
    assert_eq!(records[0]["code"], 200);
    assert_eq!(records[0]["bytes_sent"], 3);
    let error = records[0]["error"].as_str().unwrap();
    assert!(error.contains("upstream"), "{error}");
}
