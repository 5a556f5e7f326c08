//! Names of addresses, as workloads have been told them.
//!
//! That is what a workload was answered, by servers of its own choice: it tells which name it means,
//! and never that an address belongs to a name.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::answer::Answer;
use super::known::{Bounds, Known};
use crate::capture::Answers;
use crate::name::HostName;

/// What is remembered at the most; a name and its address take some 150 bytes.
const BOUNDS: Bounds = Bounds {
    workloads: 1024,
    addresses: 4096,
};

/// What came of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// Addresses of a name were learnt.
    Learnt,
    /// It says nothing of addresses.
    Nothing,
    /// It could not be read.
    Malformed,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was answered from policy.
    Answered,
    /// Its server answered it.
    Forwarded,
    /// Its server did not answer, or could not be asked.
    Failed,
    /// It was one too many.
    Refused,
    /// It was not redirected here, or nobody knows by whom.
    Stranger,
}

/// Is told of every answer.
pub trait Listener: Send + Sync {
    /// An answer came; so many addresses have names now.
    fn heard(&self, heard: Heard, addresses: usize);
}

/// Which names workloads have resolved.
pub struct Knowledge {
    answers: Answers,
    known: Mutex<Known>,
    listener: Arc<dyn Listener>,
}

impl Knowledge {
    /// Nothing yet, from these answers.
    pub fn new(answers: Answers, listener: Arc<dyn Listener>) -> Self {
        Self {
            answers,
            known: Mutex::new(Known::new(BOUNDS)),
            listener,
        }
    }

    /// Learns whatever comes, for ever.
    ///
    /// # Errors
    /// The answers cannot be waited for.
    pub async fn follow(&self) -> io::Result<()> {
        loop {
            self.learn();
            self.answers.arrived().await?;
        }
    }

    /// The names that an address has for the workload in the cgroup of this id, the one it was told
    /// last first. What the workload has seen, counts.
    pub fn names(&self, workload: u64, address: IpAddr) -> Vec<HostName> {
        self.learn();
        self.known.lock().names(workload, address, Instant::now())
    }

    /// Names and addresses of every workload that has some, by the id of its cgroup, no more than
    /// `limit` each.
    pub fn all(&self, limit: usize) -> Vec<(u64, Vec<(HostName, IpAddr)>)> {
        self.known.lock().all(Instant::now(), limit)
    }

    fn learn(&self) {
        // Under one lock, so that nobody looks between an answer's taking and its learning.
        let mut known = self.known.lock();
        self.answers
            .take(|workload, message| self.hear(&mut known, workload, message));
    }

    /// Learns from an answer that the workload in the cgroup of this id is about to get.
    pub fn tell(&self, workload: u64, message: &[u8]) {
        self.hear(&mut self.known.lock(), workload, message);
    }

    fn hear(&self, known: &mut Known, workload: u64, message: &[u8]) {
        let heard = match Answer::read(message) {
            Ok(Some(answer)) => {
                known.learn(workload, &answer, Instant::now());
                Heard::Learnt
            }
            Ok(None) => Heard::Nothing,
            Err(_) => Heard::Malformed,
        };
        self.listener.heard(heard, known.len());
    }
}
