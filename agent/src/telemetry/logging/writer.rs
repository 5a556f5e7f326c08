//! The queue between those who log and the one thread that writes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// What may wait, in bytes.
const QUEUE: usize = 4 << 20;

/// What is kept of the room that a burst took, in bytes.
const ROOM: usize = 64 << 10;

/// For how long lines may come before they are written, all at once.
const PAUSE: Duration = Duration::from_millis(2);

/// How often the log tells of lost lines, at most: under overload the telling takes room too.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Takes lines and never waits; a line for which there is no room is lost and counted.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Sender>);

/// The side of those who log; when the last is gone the thread ends.
#[derive(Debug)]
struct Sender(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Wakes the thread.
    wake: Condvar,
    /// Wakes those who flush.
    written: Condvar,
    lost: Lost,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole lines, their ends included.
    lines: Vec<u8>,
    /// Bytes that ever came, and how many of them the thread is done with.
    came: u64,
    done: u64,
    /// The thread has nothing to do: whoever brings something wakes it.
    idle: bool,
    /// Somebody waits for what is here to be written.
    urgent: bool,
    closed: bool,
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
        let shared = Arc::new(Shared::default());
        let drain = Drain::new(output, Arc::clone(&shared));
        thread::Builder::new()
            .name("underpass-log".to_owned())
            .spawn(move || drain.run())?;
        Ok(Self(Arc::new(Sender(shared))))
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    pub(super) fn lost(&self) -> u64 {
        self.shared().lost.total.load(Ordering::Relaxed)
    }

    /// Waits until all that came before is written, for `limit` at most. Says whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut waiting = self.shared().waiting.lock();
        let all = waiting.came;
        while waiting.done < all {
            waiting.urgent = true;
            self.shared().wake.notify_one();
            let waited = self.shared().written.wait_until(&mut waiting, deadline);
            if waited.timed_out() {
                return waiting.done >= all;
            }
        }
        true
    }
}

impl Write for &Queue {
    /// Takes one line: the formatter writes each with a single call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.shared().waiting.lock();
        if waiting.lines.len() + line.len() > QUEUE {
            drop(waiting);
            self.shared().lost.add();
            return Ok(line.len());
        }
        waiting.lines.extend_from_slice(line);
        waiting.came += line.len() as u64;
        if std::mem::take(&mut waiting.idle) {
            self.shared().wake.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.wake.notify_one();
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
    shared: Arc<Shared>,
    /// Whether the last write stopped within a line.
    torn: bool,
    /// When the log last told of lost lines.
    told: Option<Instant>,
}

impl Drain {
    fn new(output: Box<dyn Write + Send>, shared: Arc<Shared>) -> Self {
        Self {
            output,
            shared,
            torn: false,
            told: None,
        }
    }

    fn run(mut self) {
        let mut lines = Vec::new();
        while self.take(&mut lines) {
            self.write(&lines);
            let _ = self.output.flush();
            let mut waiting = self.shared.waiting.lock();
            waiting.done += lines.len() as u64;
            self.shared.written.notify_all();
            drop(waiting);
            lines.clear();
            lines.shrink_to(ROOM);
            self.tell();
            self.pause();
        }
    }

    /// Waits for lines and takes all that are there. Says whether there are any: else nobody is left
    /// to bring them.
    fn take(&self, lines: &mut Vec<u8>) -> bool {
        let mut waiting = self.shared.waiting.lock();
        while waiting.lines.is_empty() && !waiting.closed {
            waiting.idle = true;
            self.shared.wake.wait(&mut waiting);
        }
        waiting.idle = false;
        waiting.urgent = false;
        std::mem::swap(&mut waiting.lines, lines);
        !lines.is_empty()
    }

    /// Lets lines come. Whoever logs must wake a thread that waits, and that writes for each line,
    /// which costs more than the line: so there is something to do once in a while only.
    fn pause(&self) {
        let end = Instant::now() + PAUSE;
        let mut waiting = self.shared.waiting.lock();
        while !waiting.urgent && !waiting.closed {
            if self.shared.wake.wait_until(&mut waiting, end).timed_out() {
                break;
            }
        }
    }

    /// Writes lines. One that cannot be written is lost; the next is tried all the same, and after one
    /// that was written in part it begins on a new line, so that only the torn one is spoilt.
    fn write(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let written = self.write_some(lines);
            lines = &lines[written..];
            if !lines.is_empty() {
                let end = lines.iter().position(|&byte| byte == b'\n');
                lines = &lines[end.map_or(lines.len(), |end| end + 1)..];
                self.shared.lost.add();
            }
        }
    }

    /// Writes until that fails, and says how much was written.
    fn write_some(&mut self, lines: &[u8]) -> usize {
        if self.torn {
            if !matches!(self.output.write(b"\n"), Ok(1)) {
                return 0;
            }
            self.torn = false;
        }
        let mut written = 0;
        while written < lines.len() {
            match self.output.write(&lines[written..]) {
                Ok(n) if n > 0 => {
                    written += n;
                    self.torn = lines[written - 1] != b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        written
    }

    /// Says what is missing. The event goes through the queue like any other, and that never waits.
    fn tell(&mut self) {
        let lost = &self.shared.lost;
        if lost.untold.load(Ordering::Relaxed) == 0
            || self.told.is_some_and(|at| at.elapsed() < TELL_EVERY)
        {
            return;
        }
        self.told = Some(Instant::now());
        tracing::warn!(
            lines = lost.untold.swap(0, Ordering::Relaxed),
            total = lost.total.load(Ordering::Relaxed),
            "log lines were lost: the log could not be written as fast as it came, or not at all \
             (disk full?)"
        );
    }
}

#[cfg(test)]
mod tests;
