//! The queue between those who log and the one thread that writes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const QUEUE: usize = 8192;

/// For how long lines may come before they are looked for.
const PAUSE: Duration = Duration::from_millis(1);

/// How often the log tells of lost lines, at most: under overload the telling takes room too.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Takes lines and never waits; a line for which there is no room is lost and counted.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: SyncSender<Item>,
    lost: Arc<Lost>,
}

#[derive(Debug)]
enum Item {
    /// A whole line, its end included.
    Line(Vec<u8>),
    /// To be answered when all before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Lost {
    total: AtomicU64,
    /// Not yet told in the log.
    untold: AtomicU64,
}

impl Queue {
    /// Starts the thread that writes to `output`; it ends when the last clone is dropped.
    pub(super) fn start(output: Box<dyn Write + Send>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let lost = Arc::new(Lost::default());
        let drain = Drain {
            output,
            lost: Arc::clone(&lost),
            torn: false,
            told: None,
        };
        thread::Builder::new()
            .name("underpass-log".to_owned())
            .spawn(move || drain.run(&receiver))?;
        Ok(Self { sender, lost })
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.total.load(Ordering::Relaxed)
    }

    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (done, written) = mpsc::sync_channel(1);
        let mut item = Item::Flush(done);
        loop {
            match self.sender.try_send(item) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    item = back;
                    thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return false,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        written.recv_timeout(left).is_ok()
    }
}

impl Write for Queue {
    /// Takes one line: the formatter writes each with a single call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Item::Line(line.to_vec())).is_err() {
            self.lost.add();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lost {
    fn add(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
    }
}

/// The thread's side.
struct Drain {
    output: Box<dyn Write + Send>,
    lost: Arc<Lost>,
    /// Whether the last write stopped within a line.
    torn: bool,
    /// When the log last told of lost lines.
    told: Option<Instant>,
}

impl Drain {
    fn run(mut self, receiver: &Receiver<Item>) {
        for first in receiver {
            self.take(first);
            loop {
                for next in receiver.try_iter() {
                    self.take(next);
                }
                // Whoever logs must wake one that waits, which costs more than the line. So under
                // load this one does not wait, but looks again.
                thread::sleep(PAUSE);
                match receiver.try_recv() {
                    Ok(next) => self.take(next),
                    Err(_) => break,
                }
            }
        }
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Line(line) => match self.write(&line) {
                Ok(()) => self.tell(),
                Err(_) => self.lost.add(),
            },
            Item::Flush(done) => {
                let _ = self.output.flush();
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }

    /// Writes a line; after one that was written in part it begins on a new one, so that only
    /// the torn line is spoilt.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.write_all(b"\n")?;
            self.torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.output.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = &rest[n..];
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writing works: says what is missing. The event goes through the queue like any other, and
    /// that never waits.
    fn tell(&mut self) {
        if self.lost.untold.load(Ordering::Relaxed) == 0
            || self.told.is_some_and(|at| at.elapsed() < TELL_EVERY)
        {
            return;
        }
        self.told = Some(Instant::now());
        tracing::warn!(
            lines = self.lost.untold.swap(0, Ordering::Relaxed),
            total = self.lost.total.load(Ordering::Relaxed),
            "log lines were lost: the log could not be written as fast as it came, or not at all \
             (disk full?)"
        );
    }
}

#[cfg(test)]
mod tests;
