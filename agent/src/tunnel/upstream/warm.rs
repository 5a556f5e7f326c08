//! Connections to an endpoint that are there before they are needed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::endpoint::Endpoint;
use super::line::Line;
use crate::sockets::{Side as _, end_handshake};
use crate::tunnel::{Attempt, Stream};

/// How long a connection is kept: less than proxies wait for a first request.
const KEPT: Duration = Duration::from_secs(4);

/// Connections kept at a time.
const MAX: usize = 16;

/// The time over which the rate of tunnels is averaged.
const MEMORY: Duration = Duration::from_secs(5);

/// Tunnels a second below which connections would mostly be thrown away.
const LEAST_RATE: f64 = 0.5;

/// For making one.
const DEADLINE: Duration = Duration::from_secs(10);

/// Warm connections of one endpoint.
#[derive(Debug)]
pub(super) struct Warm {
    /// Whether they are made ahead of demand.
    ahead: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Those kept longest first.
    ready: VecDeque<Ready>,
    /// Whether a task sees to it that none is kept too long; one for all of them.
    is_swept: bool,
    making: usize,
    demand: Demand,
}

impl State {
    /// Drops those whose time is over at `now`; when that of the next one is. Without a next one
    /// nobody sees to them any more.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        while self
            .ready
            .pop_front_if(|ready| ready.until <= now)
            .is_some()
        {}
        let next = self.ready.front().map(|ready| ready.until);
        self.is_swept = next.is_some();
        next
    }
}

#[derive(Debug)]
struct Ready {
    stream: Stream,
    until: Instant,
}

impl Warm {
    pub(super) fn new(ahead: bool) -> Self {
        Self {
            ahead,
            state: Mutex::default(),
        }
    }

    /// Keeps `stream`, to `endpoint`, for a while.
    pub(super) fn put(&self, endpoint: &Arc<Endpoint>, stream: Stream) {
        let until = Instant::now() + KEPT;
        let is_swept = {
            let mut state = self.state.lock();
            if state.ready.len() >= MAX {
                return;
            }
            state.ready.push_back(Ready { stream, until });
            std::mem::replace(&mut state.is_swept, true)
        };
        if !is_swept {
            let endpoint = Arc::clone(endpoint);
            tokio::spawn(async move {
                let mut next = Some(until);
                while let Some(until) = next {
                    sleep_until(until).await;
                    next = endpoint.warm.state.lock().sweep(until);
                }
            });
        }
    }

    /// A connection on which nothing has been said yet, if there is one that the proxy has not
    /// closed, as far as is known.
    pub(super) async fn take(&self) -> Option<Stream> {
        loop {
            let ready = self.state.lock().ready.pop_front()?;
            let mut stream = ready.stream;
            if ready.until > Instant::now() && is_open(&mut stream).await {
                return Some(stream);
            }
        }
    }

    /// A tunnel is wanted: makes as many connections as others soon may want.
    pub(super) fn demand(&self, endpoint: &Arc<Endpoint>, line: &Arc<Line>) {
        if !self.ahead {
            return;
        }
        let missing = {
            let mut state = self.state.lock();
            let wanted = state.demand.another(Instant::now());
            let missing = wanted.saturating_sub(state.ready.len() + state.making);
            state.making += missing;
            missing
        };
        for _ in 0..missing {
            let (endpoint, line) = (Arc::clone(endpoint), Arc::clone(line));
            tokio::spawn(async move {
                let begin = Instant::now();
                let mut attempt = Attempt::default();
                let made = line
                    .connect(&endpoint, begin + DEADLINE, &mut attempt)
                    .await;
                {
                    let mut state = endpoint.warm.state.lock();
                    state.making -= 1;
                    state.demand.took(begin.elapsed());
                }
                match made {
                    Ok(stream) => {
                        if let Some(socket) = stream.socket() {
                            end_handshake(socket);
                        }
                        endpoint.warm.put(&endpoint, stream);
                    }
                    Err(error) => {
                        let place = &endpoint.place;
                        tracing::debug!(proxy = %place.proxy, %error, "no warm connection");
                    }
                }
            });
        }
    }
}

/// Whether `stream`, on which the peer has nothing to say, still stands. Inside TLS it may have
/// sent what is for TLS alone.
async fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    poll_fn(|cx| {
        let mut buf = ReadBuf::new(&mut byte);
        Poll::Ready(Pin::new(&mut *stream).poll_read(cx, &mut buf).is_pending())
    })
    .await
}

/// How many connections are worth keeping.
#[derive(Debug, Default)]
struct Demand {
    /// Tunnels a second, those longer ago counting less.
    rate: f64,
    last: Option<Instant>,
    /// Seconds that a connection takes, likewise.
    setup: f64,
}

impl Demand {
    /// Takes note of a tunnel; the number to keep from now on.
    fn another(&mut self, now: Instant) -> usize {
        let memory = MEMORY.as_secs_f64();
        let since = self
            .last
            .map_or(f64::INFINITY, |last| (now - last).as_secs_f64());
        self.last = Some(now);
        self.rate = self.rate * (-since / memory).exp() + 1.0 / memory;
        if self.rate < LEAST_RATE {
            return 0;
        }
        // What is used up while another one is being made, twice for bursts, and the next.
        let wanted = 1.0 + 2.0 * self.rate * self.setup;
        (1..MAX).take_while(|n| (*n as f64) < wanted).count() + 1
    }

    fn took(&mut self, setup: Duration) {
        self.setup = 0.7 * self.setup + 0.3 * setup.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn those_kept_too_long_go_and_the_others_are_seen_to_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut state = State {
            is_swept: true,
            ..State::default()
        };
        let start = Instant::now();
        for seconds in [1, 2, 2, 4] {
            let stream = TcpStream::connect(listener.local_addr().unwrap());
            let stream = Stream::from(stream.await.unwrap());
            let until = start + Duration::from_secs(seconds);
            state.ready.push_back(Ready { stream, until });
        }
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(state.sweep(after(0)), Some(after(1)));
        assert_eq!(state.sweep(after(2)), Some(after(4)));
        assert_eq!((state.ready.len(), state.is_swept), (1, true));
        assert_eq!(state.sweep(after(4)), None);
        assert_eq!((state.ready.len(), state.is_swept), (0, false));
    }

    #[test]
    fn as_many_are_kept_as_the_recent_rate_uses_up() {
        let mut demand = Demand::default();
        let mut now = Instant::now();
        assert_eq!(demand.another(now), 0, "one tunnel tells nothing");
        let mut burst = |demand: &mut Demand, pause: Duration| {
            let mut wanted = 0;
            for _ in 0..400 {
                now += pause;
                wanted = demand.another(now);
            }
            wanted
        };
        let often = Duration::from_millis(50);
        assert_eq!(burst(&mut demand, often), 1);
        for _ in 0..50 {
            demand.took(Duration::from_millis(100));
        }
        // 20 a second take 100 ms each.
        assert_eq!(burst(&mut demand, often), 6);
        assert_eq!(burst(&mut demand, Duration::from_millis(1)), MAX);
        assert_eq!(burst(&mut demand, Duration::from_secs(3)), 0);
    }
}
