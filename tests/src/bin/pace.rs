//! `pace MODE to=ADDRESS KEY=VALUE…`: a client that does one thing as often as it can, for a time.
//!
//! | mode | one operation |
//! |---|---|
//! | `connections` | a connection, one request on it, and its answer |
//! | `tls` | the same in TLS, with a full handshake |
//! | `requests` | one request and its answer on one of the connections that are kept, each in its turn |
//! | `bulk` | reading of one long answer; what counts is bytes |
//! | `idle` | a connection with one request, kept until this program is ended |
//! | `thirsty` | a connection on which a long answer is asked for and never read, kept likewise |
//!
//! | key | meaning |
//! |---|---|
//! | `via` | the forward proxy that is asked for each connection (CONNECT); else `to` itself |
//! | `workers` | how many operations there are at a time |
//! | `kept` | how many connections are opened before the clock starts and kept all the time, beside those of operations or for them; `requests` has one for each worker unless told otherwise |
//! | `millis` | how long it goes on |
//! | `watch` | the process whose processor time is told |
//! | `ca` | the authority of the target's certificate, which is for its address |
//!
//! At the end, `idle` and `thirsty` as soon as all connections are there, it prints one line of JSON:
//! `done`, `failed`, `bytes`, `seconds`, `p50` and `p99` of an operation in microseconds, `cpu` of the
//! watched process meanwhile, and `error`, why the first one failed.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::collections::{HashMap, VecDeque};
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
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use underpass_tests::usage::processor_time;

/// Nothing here takes so long unless it is stuck; nor does opening all connections that are kept.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long idle connections are kept by a program that nobody ends.
const IDLE: Duration = Duration::from_secs(300);
/// After a failure, so that it does not become a flood.
const REST: Duration = Duration::from_millis(10);
/// How much of a long answer is read at a time.
const CHUNK: usize = 256 * 1024;
/// How many of the connections that are kept are opened at a time.
const OPENING: usize = 64;
/// The receive buffer of who never reads: the least that there is.
const THIRST: u32 = 4096;

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
    Thirsty,
}

struct Pace {
    mode: Mode,
    to: SocketAddr,
    via: Option<SocketAddr>,
    workers: usize,
    kept: usize,
    time: Duration,
    watch: Option<u32>,
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

    fn report(mut self, elapsed: Duration, cpu: f64) -> serde_json::Value {
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
            "cpu": cpu,
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
    runtime.block_on(pace.run())
}

impl Pace {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mode = match words.next().context("no mode")?.as_str() {
            "connections" => Mode::Connections,
            "tls" => Mode::Tls,
            "requests" => Mode::Requests,
            "bulk" => Mode::Bulk,
            "idle" => Mode::Idle,
            "thirsty" => Mode::Thirsty,
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
        let number = |key: &str, otherwise: usize| {
            given
                .get(key)
                .map_or(Ok(otherwise), |word| word.parse().context(key.to_owned()))
        };
        let workers = number("workers", 1)?;
        let kept = match mode {
            Mode::Requests | Mode::Idle | Mode::Thirsty => workers,
            Mode::Connections | Mode::Tls | Mode::Bulk => 0,
        };
        Ok(Self {
            mode,
            to: given.get("to").context("no to")?.parse()?,
            via: given.get("via").map(|via| via.parse()).transpose()?,
            workers,
            kept: number("kept", kept)?,
            time: Duration::from_millis(number("millis", 1000)? as u64),
            watch: given.get("watch").map(|pid| pid.parse()).transpose()?,
            tls,
        })
    }

    async fn run(self: Arc<Self>) -> anyhow::Result<()> {
        let began = Instant::now();
        // What is opened before the clock starts is no part of what is measured.
        let (opening, mut kept) = self.open_all().await?;
        if matches!(self.mode, Mode::Idle | Mode::Thirsty) {
            println!("{}", opening.report(began.elapsed(), self.used()));
            sleep(IDLE).await;
            return Ok(());
        }
        let cpu = self.used();
        let began = Instant::now();
        let workers: Vec<_> = (0..self.workers)
            .map(|index| {
                // Those that come after it have as many, or one less.
                let share = kept.len().div_ceil(self.workers - index);
                let share = match self.mode {
                    Mode::Requests => kept.drain(..share).map(Some).collect(),
                    _ => VecDeque::new(),
                };
                let pace = Arc::clone(&self);
                tokio::spawn(async move { pace.work(share, began).await })
            })
            .collect();
        let mut tally = Tally::default();
        let mut idle = Vec::new();
        for worker in workers {
            let (one, share) = worker.await?;
            tally.add(one);
            idle.push(share);
        }
        let (elapsed, cpu) = (began.elapsed(), self.used() - cpu);
        tally.failed += opening.failed;
        tally.error = opening.error.or(tally.error);
        println!("{}", tally.report(elapsed, cpu));
        Ok(())
    }

    /// Opens what is kept, each with one request, some at a time and within [`PATIENCE`].
    async fn open_all(self: &Arc<Self>) -> anyhow::Result<(Tally, Vec<Connection>)> {
        let deadline = Instant::now() + PATIENCE;
        let turns = Arc::new(Semaphore::new(OPENING));
        let tasks: Vec<_> = (0..self.kept)
            .map(|_| {
                let (pace, turns) = (Arc::clone(self), Arc::clone(&turns));
                tokio::spawn(async move {
                    let _turn = turns.acquire().await?;
                    let start = Instant::now();
                    let opened = timeout_at(deadline, pace.first(deadline)).await;
                    anyhow::Ok((start, opened.unwrap_or_else(|_| bail!("stuck"))))
                })
            })
            .collect();
        let mut tally = Tally::default();
        let mut kept = Vec::with_capacity(self.kept);
        for task in tasks {
            let (start, opened) = task.await??;
            match opened {
                Ok((connection, bytes)) => {
                    tally.note(start, Ok(bytes));
                    kept.push(connection);
                }
                Err(error) => {
                    tally.note(start, Err(error));
                }
            }
        }
        Ok((tally, kept))
    }

    /// A connection that is kept, after its first request; gives how many bytes came.
    async fn first(&self, deadline: Instant) -> anyhow::Result<(Connection, u64)> {
        ensure!(Instant::now() < deadline, "there was no time left for it");
        let mut connection = self.open().await?;
        if self.mode == Mode::Thirsty {
            self.ask(&mut connection, "/long", true).await?;
            return Ok((connection, 0));
        }
        let bytes = self.exchange(&mut connection).await?;
        Ok((connection, bytes))
    }

    /// What the watched process has used of processors.
    fn used(&self) -> f64 {
        self.watch.map_or(0.0, processor_time)
    }

    /// Works with connections of its own, in turn, one of which may have to be opened anew.
    async fn work(
        &self,
        mut mine: VecDeque<Option<Connection>>,
        began: Instant,
    ) -> (Tally, VecDeque<Option<Connection>>) {
        let mut tally = Tally::default();
        while began.elapsed() < self.time {
            let start = Instant::now();
            let mut next = mine.pop_front().flatten();
            let outcome = match timeout(PATIENCE, self.once(&mut next, began)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("stuck")),
            };
            if !tally.note(start, outcome) {
                next = None;
                sleep(REST).await;
            }
            mine.push_back(next);
        }
        (tally, mine)
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
            Mode::Requests | Mode::Idle | Mode::Thirsty => {
                if kept.is_none() {
                    *kept = Some(self.open().await?);
                }
                let connection = kept.as_mut().expect("it has just been opened");
                self.exchange(connection).await
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

    /// One short request and its answer; gives how many bytes came.
    async fn exchange(&self, connection: &mut Connection) -> anyhow::Result<u64> {
        self.ask(connection, "/1k", false).await?;
        let length = answer(connection).await?;
        skip(connection, length).await?;
        Ok(length)
    }

    async fn open(&self) -> anyhow::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        if self.mode == Mode::Thirsty {
            socket.set_recv_buffer_size(THIRST)?;
        }
        let stream = socket.connect(self.via.unwrap_or(self.to)).await;
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
