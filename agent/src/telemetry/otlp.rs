//! Spans on their way to a collector, by OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! Finished spans wait in a queue of bounded length, from which one task takes them and sends them
//! in batches. Whatever the collector does, connections wait for none of it: what finds the queue
//! full is dropped, and counted.

mod client;
mod message;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::dns::Resolver;
use crate::sockets::SocketFactory;
use crate::telemetry::SpanLoss;
use crate::telemetry::metrics::TraceMetrics;
use crate::trace::{Finished, Sink, Tracer};
use client::{Client, SendError};
use message::Resource;

pub use settings::{Settings, SettingsError};

/// Spans that wait: at half a KiB each, about 1 MiB.
const QUEUE: usize = 2048;

/// Spans in one message.
const BATCH: usize = 512;

/// How the task takes its time.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// How long the first span of a message waits for others.
    gather: Duration,
    /// Until a message that failed is sent again: at first, and at most.
    pause: Duration,
    longest_pause: Duration,
    /// How long one message is tried.
    patience: Duration,
    /// For one try.
    request: Duration,
}

const TIMES: Times = Times {
    gather: Duration::from_secs(1),
    pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(30),
    patience: Duration::from_secs(60),
    request: Duration::from_secs(10),
};

/// Sends finished spans.
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts the task, on the runtime. Spans of the tracer go to it, and from there to the
    /// collector on sockets of `sockets`.
    pub fn start(
        settings: Settings,
        sockets: &Arc<dyn SocketFactory>,
        resolver: &Resolver,
        metrics: &TraceMetrics,
    ) -> (Tracer, Self) {
        Self::start_with(settings, sockets, resolver, metrics, TIMES)
    }

    fn start_with(
        settings: Settings,
        sockets: &Arc<dyn SocketFactory>,
        resolver: &Resolver,
        metrics: &TraceMetrics,
        times: Times,
    ) -> (Tracer, Self) {
        let (sender, receiver) = channel(QUEUE);
        let stop = CancellationToken::new();
        let sampler = settings.sampler;
        let task = Task {
            queue: receiver,
            resource: Resource::new(&settings.resource),
            client: Client::new(
                settings,
                Arc::clone(sockets),
                resolver.clone(),
                times.request,
            ),
            metrics: metrics.clone(),
            times,
            pause: times.pause,
            failing: false,
            stop: stop.clone(),
        };
        let queue = Queue {
            sender,
            metrics: metrics.clone(),
        };
        let task = tokio::spawn(task.run());
        (Tracer::new(sampler, Arc::new(queue)), Self { stop, task })
    }

    /// Sends what has been recorded, each message once, and no longer than `within`.
    pub async fn finish(mut self, within: Duration) {
        self.stop.cancel();
        if timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the collector is too slow: the last spans are lost");
        }
    }
}

/// Where spans wait.
#[derive(Debug)]
struct Queue {
    sender: Sender<Finished>,
    metrics: TraceMetrics,
}

impl Sink for Queue {
    fn take(&self, span: Finished) {
        match self.sender.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.metrics.dropped(SpanLoss::QueueFull, 1),
            Err(TrySendError::Closed(_)) => self.metrics.dropped(SpanLoss::Stopped, 1),
        }
    }
}

struct Task {
    queue: Receiver<Finished>,
    resource: Resource,
    client: Client,
    metrics: TraceMetrics,
    times: Times,
    /// Before the next try.
    pause: Duration,
    /// Whether the last try failed.
    failing: bool,
    stop: CancellationToken,
}

impl Task {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            self.gather(&mut batch).await;
            if batch.is_empty() {
                return;
            }
            let spans = batch.len();
            let message = message::encode(&self.resource, batch.drain(..));
            self.deliver(message, spans).await;
        }
    }

    /// Takes the next spans; none if there will be none.
    async fn gather(&mut self, batch: &mut Vec<Finished>) {
        self.take(batch).await;
        let deadline = Instant::now() + self.times.gather;
        while !batch.is_empty() && batch.len() < BATCH {
            match timeout_at(deadline, self.take(batch)).await {
                Ok(taken) if taken > 0 => {}
                _ => return,
            }
        }
    }

    async fn take(&mut self, batch: &mut Vec<Finished>) -> usize {
        let room = BATCH - batch.len();
        tokio::select! {
            biased;
            taken = self.queue.recv_many(batch, room) => taken,
            () = self.stop.cancelled() => {
                // What has come meanwhile is still to be had.
                self.queue.close();
                self.queue.recv_many(batch, room).await
            }
        }
    }

    /// Sends a message, again and again if need be.
    async fn deliver(&mut self, message: Bytes, spans: usize) {
        let give_up = Instant::now() + self.times.patience;
        loop {
            let error = match self.client.send(message.clone()).await {
                Ok(rejected) => {
                    self.succeeded();
                    let rejected = rejected.min(spans);
                    self.metrics.exported(spans - rejected);
                    self.metrics.dropped(SpanLoss::Refused, rejected);
                    return;
                }
                Err(error) => error,
            };
            self.failed(&error);
            let loss = if error.is_final() {
                Some(SpanLoss::Refused)
            } else if self.stop.is_cancelled() {
                Some(SpanLoss::Stopped)
            } else {
                (Instant::now() >= give_up).then_some(SpanLoss::Unreachable)
            };
            if let Some(loss) = loss {
                self.metrics.dropped(loss, spans);
                return;
            }
            // A collector may want it later, but not sooner. Not all agents at once.
            let pause = self
                .pause
                .max(error.retry_after().unwrap_or_default())
                .min(self.times.longest_pause)
                .mul_f64(0.75 + fastrand::f64() / 2.0);
            self.pause = (self.pause * 2).min(self.times.longest_pause);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    fn succeeded(&mut self) {
        self.pause = self.times.pause;
        if std::mem::take(&mut self.failing) {
            tracing::info!("the collector takes spans again");
        }
    }

    fn failed(&mut self, error: &SendError) {
        let collector = self.client.collector();
        // Once is enough while it goes on; the metrics tell the rest.
        if std::mem::replace(&mut self.failing, true) {
            tracing::debug!(collector, %error, "cannot send spans");
        } else {
            tracing::warn!(collector, %error, "cannot send spans");
        }
    }
}
