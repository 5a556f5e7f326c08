//! How far the exchange of a request and its answer has come.

use std::fmt;
use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::sleep;

use super::Traffic;

/// How far an exchange has come, for whoever looks at it from outside or after its end.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes passed on, heads included.
    pub traffic: Arc<Traffic>,
    status: AtomicU16,
    heard: AtomicBool,
    /// What gRPC says came of it, and one more; 0 if it has said nothing.
    grpc_status: AtomicU16,
    messages: [AtomicU64; 2],
    judge: OnceLock<Judge>,
}

/// The head of an answer, before it goes to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// `grpc-status`, if it has one already.
    pub grpc_status: Option<u16>,
    /// Whether nothing has gone to the client before it.
    pub is_first: bool,
}

/// Says whether an answer is to go to the client.
struct Judge(Box<dyn Fn(Head) -> bool + Send + Sync>);

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

impl Progress {
    /// The status of the answer whose head has begun to go to the client.
    pub fn status(&self) -> Option<u16> {
        Some(self.status.load(Relaxed)).filter(|status| *status != 0)
    }

    /// Whether the target has sent anything.
    pub fn heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    /// `grpc-status` of the answer, as far as it has come.
    pub fn grpc_status(&self) -> Option<u16> {
        self.grpc_status.load(Acquire).checked_sub(1)
    }

    /// Messages of gRPC that have passed whole, from the client and to it.
    pub fn messages(&self) -> (u64, u64) {
        let [sent, received] = &self.messages;
        (sent.load(Relaxed), received.load(Relaxed))
    }

    /// Waits until nothing has moved for `patience`.
    pub async fn silence(&self, patience: Duration) {
        let moved = || (self.traffic.sent(), self.traffic.received());
        loop {
            let before = moved();
            sleep(patience).await;
            if moved() == before {
                return;
            }
        }
    }

    /// The client got an answer of ours.
    pub fn answered(&self, status: u16, bytes: usize) {
        self.begins(status);
        self.traffic.add_received(bytes);
    }

    /// Has `judge` say of every answer that comes from now on whether it is to go to the client;
    /// the first to ask so is heard.
    pub fn judge(&self, judge: impl Fn(Head) -> bool + Send + Sync + 'static) {
        let _ = self.judge.set(Judge(Box::new(judge)));
    }

    /// The request is sent, once more perhaps.
    pub fn starts(&self) {
        self.heard.store(false, Relaxed);
    }

    /// Whether an answer of the target is to go to the client.
    pub(super) fn takes(&self, status: u16, grpc_status: Option<u16>) -> bool {
        let head = Head {
            status,
            grpc_status,
            is_first: self.traffic.received() == 0,
        };
        self.judge.get().is_none_or(|judge| (judge.0)(head))
    }

    /// The head of the answer begins to go to the client.
    pub(super) fn begins(&self, status: u16) {
        self.status.store(status, Relaxed);
    }

    /// The target has sent something.
    pub(super) fn hears(&self) {
        self.heard.store(true, Relaxed);
    }

    /// gRPC says what came of it; the first time counts.
    pub(super) fn ends(&self, grpc_status: u16) {
        let value = grpc_status.saturating_add(1);
        let _ = self.grpc_status.compare_exchange(0, value, AcqRel, Acquire);
    }

    pub(super) fn add_sent_messages(&self, count: u64) {
        self.messages[0].fetch_add(count, Relaxed);
    }

    pub(super) fn add_received_messages(&self, count: u64) {
        self.messages[1].fetch_add(count, Relaxed);
    }
}
