//! One direction of a relay.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::net::{SendFlags, send};
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

use super::Counter;
use super::pipe::{Filled, Pipe};
use crate::sockets::Side;

/// Runs `work` with the read buffer of this thread.
///
/// The buffer is taken out meanwhile, so a relay that is polled inside another one (a stream may
/// do anything in its `poll_read`) gets a buffer of its own for the time.
pub(super) fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = READ_BUFFER
        .take()
        .unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice());
    let result = work(&mut buffer);
    READ_BUFFER.set(Some(buffer));
    result
}

/// Which end of a direction failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The side that is read.
    From(io::Error),
    /// The side that is written.
    To(io::Error),
}

/// The state of one direction. Between polls it holds only bytes that the receiver did not take.
#[derive(Debug)]
pub(super) struct Direction {
    unsent: Bytes,
    /// Such bytes, where the kernel moves them.
    pipe: Option<Pipe>,
    /// How much came in long reads in a row.
    streak: usize,
    /// The streak from which on the kernel moves the bytes, where it can.
    bulk_after: usize,
    read_size: usize,
    state: State,
    passes_end_on: bool,
    unflushed: bool,
    active: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// The receiver has failed.
    Broken,
    Open,
    /// The sender has finished; the receiver is to be told once it has everything.
    Ending,
    Ended,
}

impl Direction {
    /// A direction in which `first` goes out before anything is read. Between sockets, the kernel
    /// moves the bytes once `bulk_after` of them have come in long reads.
    pub(super) fn new(first: Bytes, bulk_after: usize) -> Self {
        Self {
            unsent: first,
            pipe: None,
            streak: 0,
            bulk_after,
            read_size: FIRST_READ_SIZE,
            state: State::Open,
            passes_end_on: true,
            unflushed: false,
            active: false,
        }
    }

    /// Whether there is nothing left to do: ended, or failed.
    pub(super) fn is_over(&self) -> bool {
        match self.state {
            State::Broken | State::Ended => true,
            State::Ending => !self.passes_end_on && self.unsent.is_empty() && self.pipe.is_none(),
            State::Open => false,
        }
    }

    /// Makes the end of the sender's data, from now on, no reason to tell the receiver that it has
    /// everything.
    pub(super) fn keep_end(&mut self) {
        self.passes_end_on = false;
    }

    /// Whether bytes wait in a pipe.
    #[cfg(test)]
    pub(super) fn has_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    /// Whether anything has moved since the last call.
    pub(super) fn take_activity(&mut self) -> bool {
        std::mem::take(&mut self.active)
    }

    /// Moves what can be moved, within a bound that keeps one busy connection from holding its
    /// thread; ready when the direction is over. A failed receiver is reported once. If this
    /// direction `is_last`, its end is that of the relay.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        (from, to): (&mut R, &mut W),
        is_last: bool,
        counter: &Counter,
    ) -> Poll<Result<(), Fault>>
    where
        R: Side,
        W: Side,
    {
        let result = ready!(self.poll_steps(cx, buffer, (from, to), is_last, counter));
        if let Err(Fault::To(_)) = result {
            self.state = State::Broken;
            self.unsent = Bytes::new();
            self.pipe = None;
        }
        Poll::Ready(result)
    }

    fn poll_steps<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        (from, to): (&mut R, &mut W),
        is_last: bool,
        counter: &Counter,
    ) -> Poll<Result<(), Fault>>
    where
        R: Side,
        W: Side,
    {
        ready!(self.poll_unsent(cx, to, counter))?;
        if let Some(to) = to.socket() {
            ready!(self.poll_pipe(cx, to, counter))?;
        }
        for _ in 0..READS_PER_POLL {
            match self.state {
                State::Open => {}
                State::Ending if self.passes_end_on => {
                    // A socket that is closed next tells its peer by that.
                    if !is_last || to.socket().is_none() {
                        ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Fault::To)?;
                    }
                    self.state = State::Ended;
                    self.active = true;
                    return Poll::Ready(Ok(()));
                }
                State::Broken | State::Ended | State::Ending => return Poll::Ready(Ok(())),
            }
            if self.streak >= self.bulk_after
                && let (Some(from), Some(to)) = (from.socket(), to.socket())
                && ready!(self.poll_splice(cx, from, to, counter))?
            {
                continue;
            }
            let mut read = ReadBuf::new(&mut buffer[..self.read_size]);
            if let Poll::Ready(result) = Pin::new(&mut *from).poll_read(cx, &mut read) {
                result.map_err(Fault::From)?;
            } else {
                ready!(self.poll_flush(cx, to))?;
                return Poll::Pending;
            }
            if read.filled().is_empty() {
                self.state = State::Ending;
                continue;
            }
            let behind = from
                .socket()
                .map_or(Ok(false), |from| read_on(from, &mut read));
            if let Ok(true) = behind {
                self.state = State::Ending;
            }
            self.came(read.filled().len());
            let forwarded = self.poll_forward(cx, read.filled(), to, counter);
            // After a failure of the sender nothing more is for the receiver than what it took.
            behind.map_err(Fault::From)?;
            ready!(forwarded)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts the `len` bytes that came.
    fn came(&mut self, len: usize) {
        self.active = true;
        self.streak = if len < LONG_READ {
            0
        } else {
            self.streak.saturating_add(len)
        };
    }

    /// Has the kernel move bytes; `false`: there were none to move so, and a read tells why.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        counter: &Counter,
    ) -> Poll<Result<bool, Fault>> {
        let Some(mut pipe) = Pipe::take() else {
            self.streak = 0;
            return Poll::Ready(Ok(false));
        };
        // Only what a read says shows that there is nothing, so that is no reason to wait.
        let filled = match from.try_io(Interest::READABLE, || pipe.fill(from)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Filled::Nothing,
            Err(error) => {
                pipe.give_back();
                return Poll::Ready(Err(Fault::From(error)));
            }
            Ok(filled) => filled,
        };
        match filled {
            Filled::Some(len) => {
                self.came(len);
                self.pipe = Some(pipe);
                self.poll_pipe(cx, to, counter).map_ok(|()| true)
            }
            Filled::Never => {
                self.bulk_after = usize::MAX;
                Poll::Ready(Ok(false))
            }
            Filled::Nothing => {
                pipe.give_back();
                Poll::Ready(Ok(false))
            }
        }
    }

    /// Empties the pipe, if there is one.
    fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        counter: &Counter,
    ) -> Poll<Result<(), Fault>> {
        while let Some(pipe) = &mut self.pipe {
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Ok(len) => {
                    counter.add(len);
                    self.active = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(to.poll_write_ready(cx)).map_err(Fault::To)?;
                }
                Err(error) => return Poll::Ready(Err(Fault::To(error))),
            }
            if pipe.is_empty()
                && let Some(pipe) = self.pipe.take()
            {
                pipe.give_back();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, just read; keeps what is not taken.
    fn poll_forward<W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut W,
        counter: &Counter,
    ) -> Poll<Result<(), Fault>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.poll_write(cx, rest, to, counter) {
                Poll::Ready(written) => rest = &rest[written?..],
                Poll::Pending => {
                    // Next time no more is read than was taken now: less to copy, and less to
                    // hold for a receiver that is slow.
                    let taken = bytes.len() - rest.len();
                    self.read_size = taken.clamp(LEAST_READ_SIZE, BUFFER_SIZE);
                    self.unsent = Bytes::copy_from_slice(rest);
                    return Poll::Pending;
                }
            }
        }
        if bytes.len() == self.read_size {
            self.read_size = (2 * self.read_size).min(BUFFER_SIZE);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_unsent<W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        counter: &Counter,
    ) -> Poll<Result<(), Fault>> {
        while !self.unsent.is_empty() {
            let mut unsent = std::mem::take(&mut self.unsent);
            let written = self.poll_write(cx, &unsent, to, counter);
            if let Poll::Ready(Ok(written)) = written {
                unsent.advance(written);
            }
            if !unsent.is_empty() {
                self.unsent = unsent;
            }
            ready!(written)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut W,
        counter: &Counter,
    ) -> Poll<Result<usize, Fault>> {
        let written = match to.socket() {
            Some(to) if self.state == State::Ending && self.passes_end_on => {
                ready!(poll_write_before_end(cx, to, bytes))
            }
            _ => ready!(Pin::new(to).poll_write(cx, bytes)),
        };
        let written = written.map_err(Fault::To)?;
        if written == 0 {
            return Poll::Ready(Err(Fault::To(io::ErrorKind::WriteZero.into())));
        }
        counter.add(written);
        self.unflushed = true;
        self.active = true;
        Poll::Ready(Ok(written))
    }

    /// A stream that buffers what it is given (TLS) must not keep it while the sender is silent.
    fn poll_flush<W: Side>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Fault>> {
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx)).map_err(Fault::To)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads what came behind `read`, if there is room; whether that is the end. What is known to have
/// nothing is not asked.
fn read_on(from: &TcpStream, read: &mut ReadBuf<'_>) -> io::Result<bool> {
    if read.remaining() == 0 {
        return Ok(false);
    }
    match from.try_read_buf(read) {
        Ok(len) => Ok(len == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// As `poll_write`, of what the end comes right behind: they share a packet.
fn poll_write_before_end(
    cx: &mut Context<'_>,
    to: &TcpStream,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let send = || send(to.as_fd(), bytes, SendFlags::MORE | SendFlags::NOSIGNAL);
    loop {
        ready!(to.poll_write_ready(cx))?;
        match to.try_io(Interest::WRITABLE, || Ok(send()?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// The size of a thread's read buffer; larger reads no longer gain throughput.
pub(super) const BUFFER_SIZE: usize = 256 * 1024;

/// Reads from here on make a streak: moved in small pieces, bytes are cheaper to copy.
const LONG_READ: usize = 32 * 1024;

/// See [`Direction::new`].
pub(super) const BULK_AFTER: usize = 1024 * 1024;

/// The reads of a direction grow from here as long as the receiver takes all of them.
const FIRST_READ_SIZE: usize = 64 * 1024;

/// A slow receiver does not bring them below this.
const LEAST_READ_SIZE: usize = 16 * 1024;

/// At the full buffer size 2 MiB, about a millisecond of copying; twice as much is moved by the
/// kernel in that time.
const READS_PER_POLL: usize = 8;

thread_local! {
    static READ_BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}
