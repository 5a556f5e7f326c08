//! How far the exchange of a request and its answer has come.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
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
