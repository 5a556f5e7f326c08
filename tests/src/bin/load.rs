//! `load MILLISECONDS TARGET,… KIND=THREADS:MILLISECONDS…`: a workload that never stops connecting.
//!
//! Each thread has one connection at a time, to a target it chooses by chance, and checks that
//! every answer is that target's own and to its own question. The kinds:
//!
//! - `short`, `half`, `reset`: one connection every so many milliseconds. `short` has one exchange;
//!   `half` ends its stream first and reads to the end of the other; `reset` resets, or is reset.
//! - `slow` reads two mebibytes a little at a time, and rests for so many milliseconds.
//! - `long` and `idle` keep a connection for so many milliseconds, the one with an exchange every
//!   now and then, the other with one at the end.
//!
//! Every so many milliseconds it prints how many of each kind came to which end, and a last time
//! after SIGTERM; and a line for each that failed, with the moments of its start and its end.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use parking_lot::Mutex;
use socket2::SockRef;
use underpass_tests::load::{END, FAILED, WRONG, now};
use underpass_tests::random::Random;
use underpass_tests::servers::identity::{ECHO, RESET, SOURCE, pattern};

/// Nothing here takes so long unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Within this time all threads have started.
const RAMP: Duration = Duration::from_secs(10);
/// Between two exchanges on a long connection.
const EXCHANGE: Duration = Duration::from_millis(100);
/// After a failure, where nothing else sets the pace.
const REST: Duration = Duration::from_millis(20);
/// What a slow reader reads in all, at a time, and how often.
const SLOW: (usize, usize, Duration) = (2 << 20, 32 << 10, Duration::from_millis(25));

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// As it should.
    Ok,
    /// `connect` failed.
    Refused,
    /// An error before the answer.
    Reset,
    /// An error after it.
    Cut,
    /// An end of stream where there should have been bytes: it says that these are all.
    Ended,
    /// Nothing happened for too long.
    TimedOut,
    /// Bytes that are not for this connection.
    Wrong,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Ended => "ended",
            Self::TimedOut => "timed-out",
            Self::Wrong => "wrong",
        }
    }
}

/// One kind of load.
#[derive(Clone, Debug)]
struct Kind {
    name: String,
    threads: u64,
    time: Duration,
}

impl Kind {
    fn parse(word: &str) -> anyhow::Result<Self> {
        let parse = || {
            let (name, rest) = word.split_once('=')?;
            let (threads, time) = rest.split_once(':')?;
            Some(Self {
                name: name.to_owned(),
                threads: threads.parse().ok()?,
                time: Duration::from_millis(time.parse().ok()?),
            })
        };
        let kind = parse().with_context(|| format!("not KIND=THREADS:MILLISECONDS: {word}"))?;
        let known = ["short", "half", "reset", "slow", "long", "idle"];
        anyhow::ensure!(known.contains(&kind.name.as_str()), "no such kind: {word}");
        Ok(kind)
    }
}

struct Shared {
    targets: Vec<SocketAddr>,
    stop: AtomicBool,
    counts: Mutex<BTreeMap<(String, Outcome), u64>>,
}

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let interval: u16 = words.next().context("no interval")?.parse()?;
    let targets = words.next().context("no targets")?;
    let targets: Result<_, _> = targets.split(',').map(str::parse).collect();
    let kinds: Vec<Kind> = words
        .map(|word| Kind::parse(&word))
        .collect::<Result<_, _>>()?;
    let shared = Shared {
        targets: targets.context("not addresses")?,
        stop: AtomicBool::new(false),
        counts: Mutex::default(),
    };
    // Before the threads, which inherit it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    thread::scope(|scope| {
        for kind in &kinds {
            for number in 0..kind.threads {
                let shared = &shared;
                // Not all at the same moment.
                let delay = (kind.time.min(RAMP) / kind.threads.max(1) as u32) * number as u32;
                thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, move || shared.work(kind, delay))?;
            }
        }
        loop {
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let told = nix::poll::poll(&mut fds, PollTimeout::from(interval))? > 0;
            if told {
                shared.stop.store(true, Ordering::Release);
                return anyhow::Ok(());
            }
            println!("{}", shared.line());
        }
    })?;
    println!("{END} {}", shared.line());
    Ok(())
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps, but not past the end.
    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn line(&self) -> String {
        let counts = self.counts.lock();
        let pairs = counts
            .iter()
            .map(|((kind, outcome), count)| format!("{kind}.{}={count}", outcome.name()));
        pairs.collect::<Vec<_>>().join(" ")
    }

    fn work(&self, kind: &Kind, delay: Duration) {
        let mut random = Random::new(Random::seed());
        self.rest(delay);
        let mut next = Instant::now();
        while !self.stopped() {
            let start = now();
            let outcome = match self.connection(kind, &mut random) {
                Ok(()) => Outcome::Ok,
                Err(outcome) => outcome,
            };
            if outcome != Outcome::Ok {
                let (kind, outcome) = (&kind.name, outcome.name());
                println!("{FAILED} {kind} {outcome} {start} {}", now());
            }
            *self
                .counts
                .lock()
                .entry((kind.name.clone(), outcome))
                .or_default() += 1;
            match kind.name.as_str() {
                "long" | "idle" if outcome == Outcome::Ok => {}
                "long" | "idle" => self.rest(REST),
                "slow" => self.rest(kind.time),
                _ => {
                    // No burst after a delay.
                    next = (next + kind.time).max(Instant::now() - kind.time);
                    self.rest(next.saturating_duration_since(Instant::now()));
                }
            }
        }
    }

    fn connection(&self, kind: &Kind, random: &mut Random) -> Result<(), Outcome> {
        match kind.name.as_str() {
            "half" => {
                let bytes = bytes(random, 100_000);
                let mut conversation = Conversation::open(self, random, ECHO)?;
                conversation.say(&bytes)?;
                conversation.end()?;
                conversation.expect(&bytes)?;
                conversation.expect_end()
            }
            "reset" if random.below(2) == 0 => {
                Conversation::open(self, random, RESET)?.expect_reset()
            }
            "reset" => {
                let bytes = bytes(random, 10_000);
                let mut conversation = Conversation::open(self, random, ECHO)?;
                conversation.say(&bytes)?;
                conversation.reset()
            }
            "slow" => {
                let (total, step, pause) = SLOW;
                let verb = format!("{SOURCE} {total}");
                let mut conversation = Conversation::open(self, random, &verb)?;
                let bytes: Vec<u8> = pattern().take(total).collect();
                for part in bytes.chunks(step) {
                    conversation.expect(part)?;
                    if !self.stopped() {
                        thread::sleep(pause);
                    }
                }
                conversation.expect_end()
            }
            "long" | "idle" => {
                let mut conversation = Conversation::open(self, random, ECHO)?;
                let end = Instant::now() + kind.time;
                while kind.name == "long" && Instant::now() < end && !self.stopped() {
                    conversation.exchange(random)?;
                    self.rest(EXCHANGE);
                }
                self.rest(end.saturating_duration_since(Instant::now()));
                conversation.exchange(random)
            }
            _ => Conversation::open(self, random, ECHO)?.exchange(random),
        }
    }
}

/// A connection whose answer was the right one.
struct Conversation {
    stream: BufReader<TcpStream>,
    target: SocketAddr,
    /// Who talks to whom, for a message.
    about: String,
}

impl Conversation {
    fn open(shared: &Shared, random: &mut Random, verb: &str) -> Result<Self, Outcome> {
        let target = random.pick(&shared.targets);
        let nonce = format!("n{:016x}{:016x}", random.number(), random.number());
        let stream = TcpStream::connect_timeout(&target, PATIENCE)
            .map_err(|error| after(&error, Outcome::Refused))?;
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        prepared.map_err(|error| after(&error, Outcome::Reset))?;
        let mut conversation = Self {
            stream: BufReader::new(stream),
            target,
            about: format!("{target} asked with {nonce}"),
        };
        let question = format!("{nonce} {target} {verb}\n");
        let mut answer = String::new();
        let stream = &mut conversation.stream;
        stream
            .get_mut()
            .write_all(question.as_bytes())
            .and_then(|()| stream.read_line(&mut answer))
            .map_err(|error| after(&error, Outcome::Reset))?;
        if answer == format!("{target} {nonce}\n") {
            Ok(conversation)
        } else if answer.is_empty() {
            Err(Outcome::Ended)
        } else {
            Err(conversation.wrong(answer.as_bytes()))
        }
    }

    /// Says something and expects to hear it, from whom it means to talk to.
    fn exchange(&mut self, random: &mut Random) -> Result<(), Outcome> {
        let bytes = bytes(random, 2_000);
        self.say(&bytes)?;
        self.expect(&bytes)?;
        match self.stream.get_ref().peer_addr() {
            Ok(peer) if peer != self.target => Err(self.wrong(format!("as {peer}").as_bytes())),
            // One that has just been reset has no peer any more.
            _ => Ok(()),
        }
    }

    fn say(&mut self, bytes: &[u8]) -> Result<(), Outcome> {
        let said = self.stream.get_mut().write_all(bytes);
        said.map_err(|error| after(&error, Outcome::Cut))
    }

    fn end(&mut self) -> Result<(), Outcome> {
        let ended = self.stream.get_mut().shutdown(Shutdown::Write);
        ended.map_err(|error| after(&error, Outcome::Cut))
    }

    fn expect(&mut self, bytes: &[u8]) -> Result<(), Outcome> {
        let mut heard = vec![0; bytes.len()];
        match self.stream.read_exact(&mut heard) {
            Ok(()) if heard == bytes => Ok(()),
            Ok(()) => Err(self.wrong(&heard)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Outcome::Ended),
            Err(error) => Err(after(&error, Outcome::Cut)),
        }
    }

    fn expect_end(&mut self) -> Result<(), Outcome> {
        let mut more = [0];
        match self.stream.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.wrong(&more)),
            Err(error) => Err(after(&error, Outcome::Cut)),
        }
    }

    fn expect_reset(&mut self) -> Result<(), Outcome> {
        let mut more = [0];
        match self.stream.read(&mut more) {
            Ok(0) => Err(Outcome::Ended),
            Ok(_) => Err(self.wrong(&more)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(after(&error, Outcome::Cut)),
        }
    }

    fn reset(self) -> Result<(), Outcome> {
        let stream = self.stream.into_inner();
        let set = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        set.map_err(|error| after(&error, Outcome::Cut))
    }

    fn wrong(&self, heard: &[u8]) -> Outcome {
        let start = &heard[..heard.len().min(100)];
        println!(
            "{WRONG} {} heard {:?}",
            self.about,
            String::from_utf8_lossy(start)
        );
        Outcome::Wrong
    }
}

/// What an error means: a time-out is one whenever it comes.
fn after(error: &io::Error, otherwise: Outcome) -> Outcome {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
        _ => otherwise,
    }
}

/// Some bytes, at least one and at most `most`, that are like no others.
fn bytes(random: &mut Random, most: u64) -> Vec<u8> {
    let length = 1 + random.below(most) as usize;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
