//! `pace MODE to=ADDRESS KEY=VALUE…`: a client that does one thing as often as it can, for a time.
//!
//! | mode | one operation |
//! |---|---|
//! | `connections` | a connection, one request on it, and its answer |
//! | `tls` | the same in TLS, with a full handshake |
//! | `requests` | one request and its answer on a connection that is kept |
//! | `bulk` | reading of one long answer; what counts is bytes |
//! | `idle` | a connection with one request, kept until this program is ended |
//!
//! | key | meaning |
//! |---|---|
//! | `via` | the forward proxy that is asked for each connection (CONNECT); else `to` itself |
//! | `workers` | how many connections there are at a time |
//! | `millis` | how long it goes on |
//! | `ca` | the authority of the target's certificate, which is for its address |
//!
//! At the end, `idle` as soon as all connections are there, it prints one line of JSON: `done`,
//! `failed`, `bytes`, `seconds`, `p50` and `p99` of an operation in microseconds, and `error`, why
//! the first one failed.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};
use tokio::io::{BufReader, BufStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Nothing here takes so long unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long idle connections are kept by a program that nobody ends.
const IDLE: Duration = Duration::from_secs(300);
/// After a failure, so that it does not become a flood.
const REST: Duration = Duration::from_millis(10);
/// How much of a long answer is read at a time.
const CHUNK: usize = 256 * 1024;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Connection = BufStream<Box<dyn Duplex>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Connections,
    Tls,
    Requests,
    Bulk,
    Idle,
}

struct Pace {
    mode: Mode,
    to: SocketAddr,
    via: Option<SocketAddr>,
    workers: usize,
    time: Duration,
    tls: Option<TlsConnector>,
}

/// What one worker has done.
#[derive(Default)]
struct Tally {
    /// Of each operation, in microseconds.
    times: Vec<u32>,
    failed: u64,
    bytes: u64,
    error: Option<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.error = self.error.take().or(other.error);
    }

    fn note(&mut self, began: Instant, outcome: anyhow::Result<u64>) -> bool {
        match outcome {
            Ok(bytes) => {
                self.bytes += bytes;
                let micros = began.elapsed().as_micros();
                self.times.push(micros.try_into().unwrap_or(u32::MAX));
                true
            }
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert(format!("{error:#}"));
                false
            }
        }
    }

    fn report(mut self, elapsed: Duration) -> serde_json::Value {
        self.times.sort_unstable();
        let at = |share: f64| {
            let index = (self.times.len() as f64 * share) as usize;
            self.times.get(index).or(self.times.last()).copied()
        };
        json!({
            "done": self.times.len(),
            "failed": self.failed,
            "bytes": self.bytes,
            "seconds": elapsed.as_secs_f64(),
            "p50": at(0.5),
            "p99": at(0.99),
            "error": self.error,
        })
    }
}

fn main() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let pace = Arc::new(Pace::parse(std::env::args().skip(1))?);
    // One thread: on a small machine it leaves the rest to those that are measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let began = Instant::now();
        let workers: Vec<_> = (0..pace.workers)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move { pace.work(began).await })
            })
            .collect();
        let mut tally = Tally::default();
        let mut kept = Vec::new();
        for worker in workers {
            let (one, connection) = worker.await?;
            tally.add(one);
            kept.extend(connection);
        }
        println!("{}", tally.report(began.elapsed()));
        if pace.mode == Mode::Idle {
            sleep(IDLE).await;
        }
        drop(kept);
        anyhow::Ok(())
    })
}

impl Pace {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mode = match words.next().context("no mode")?.as_str() {
            "connections" => Mode::Connections,
            "tls" => Mode::Tls,
            "requests" => Mode::Requests,
            "bulk" => Mode::Bulk,
            "idle" => Mode::Idle,
            other => bail!("no such mode: {other}"),
        };
        let mut given = HashMap::new();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("not KEY=VALUE: {word}"))?;
            given.insert(key.to_owned(), value.to_owned());
        }
        let tls = match given.get("ca") {
            Some(file) if mode == Mode::Tls => Some(connector(file)?),
            _ if mode == Mode::Tls => bail!("tls needs ca"),
            _ => None,
        };
        Ok(Self {
            mode,
            to: given.get("to").context("no to")?.parse()?,
            via: given.get("via").map(|via| via.parse()).transpose()?,
            workers: given.get("workers").map_or(Ok(1), |word| word.parse())?,
            time: Duration::from_millis(given.get("millis").map_or(Ok(1000), |word| word.parse())?),
            tls,
        })
    }

    async fn work(&self, began: Instant) -> (Tally, Option<Connection>) {
        let mut tally = Tally::default();
        let mut kept = None;
        while began.elapsed() < self.time {
            let start = Instant::now();
            let outcome = match timeout(PATIENCE, self.once(&mut kept, began)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("stuck")),
            };
            if !tally.note(start, outcome) {
                kept = None;
                sleep(REST).await;
            } else if self.mode == Mode::Idle {
                break;
            }
        }
        (tally, kept)
    }

    /// One operation; gives how many bytes came.
    async fn once(&self, kept: &mut Option<Connection>, began: Instant) -> anyhow::Result<u64> {
        match self.mode {
            Mode::Connections | Mode::Tls => {
                let mut connection = self.open().await?;
                self.ask(&mut connection, "/1k", true).await?;
                let length = answer(&mut connection).await?;
                skip(&mut connection, length).await?;
                Ok(length)
            }
            Mode::Requests | Mode::Idle => {
                let connection = match kept {
                    Some(connection) => connection,
                    None => kept.insert(self.open().await?),
                };
                self.ask(connection, "/1k", false).await?;
                let length = answer(connection).await?;
                skip(connection, length).await?;
                Ok(length)
            }
            Mode::Bulk => {
                let mut connection = self.open().await?;
                self.ask(&mut connection, "/long", true).await?;
                let length = answer(&mut connection).await?;
                let mut chunk = vec![0; CHUNK];
                let mut read = 0;
                while read < length && began.elapsed() < self.time {
                    // So much at a time passes its buffer by.
                    let some = connection.read(&mut chunk).await?;
                    ensure!(some > 0, "the answer broke off after {read} bytes");
                    read += some as u64;
                }
                Ok(read)
            }
        }
    }

    async fn open(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.via.unwrap_or(self.to)).await;
        let stream = stream.context("connect")?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Duplex> = Box::new(stream);
        if self.via.is_some() {
            let to = self.to;
            let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).await.context("CONNECT")?;
            ensure!(line.contains(" 200"), "CONNECT was answered {line:?}");
            while !line.trim_end().is_empty() {
                line.clear();
                ensure!(reader.read_line(&mut line).await? > 0, "CONNECT broke off");
            }
            ensure!(reader.buffer().is_empty(), "the target spoke first");
            stream = reader.into_inner();
        }
        if let Some(tls) = &self.tls {
            let name = ServerName::from(self.to.ip());
            stream = Box::new(tls.connect(name, stream).await.context("TLS")?);
        }
        Ok(BufStream::new(stream))
    }

    async fn ask(&self, to: &mut Connection, path: &str, last: bool) -> anyhow::Result<()> {
        let close = if last { "Connection: close\r\n" } else { "" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{close}\r\n",
            self.to.ip()
        );
        to.write_all(request.as_bytes()).await.context("ask")?;
        to.flush().await.context("ask")
    }
}

/// Reads the head of an answer, and gives the length of its body.
async fn answer(from: &mut Connection) -> anyhow::Result<u64> {
    let mut line = String::new();
    from.read_line(&mut line).await.context("answer")?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "answered {line:?}");
    let mut length = None;
    while !line.trim_end().is_empty() {
        line.clear();
        ensure!(from.read_line(&mut line).await? > 0, "the answer broke off");
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
    length.context("an answer without length")
}

/// Reads a body of `length` bytes.
async fn skip(from: &mut Connection, length: u64) -> anyhow::Result<()> {
    let mut left = length as usize;
    while left > 0 {
        let buffered = from.fill_buf().await?.len();
        ensure!(buffered > 0, "the answer broke off");
        let some = buffered.min(left);
        from.consume(some);
        left -= some;
    }
    Ok(())
}

/// TLS that begins anew each time.
fn connector(ca: &str) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(ca).with_context(|| format!("read {ca}"))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config).into())
}
