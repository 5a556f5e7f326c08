//! Capture health: canaries again and again, and readiness that tells what came of them.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Family;
use crate::admin::{Check, Readiness};
use crate::capture::{Canary, CaptureError};

/// Readiness must turn red within 10 s of a program being detached: a round and its deadlines
/// take less.
const INTERVAL: Duration = Duration::from_secs(3);

/// Starts the thread that sends canaries below `cgroup` until `stop`; when it has ended, so have
/// the helper process and its cgroup. It has a thread of its own because the helper answers in
/// blocking calls.
pub(super) fn watch(
    cgroup: PathBuf,
    families: Vec<Family>,
    readiness: &Readiness,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let checks: Vec<(Family, Check)> = families
        .into_iter()
        .map(|family| {
            let name = match family {
                Family::V4 => "capture-ipv4",
                Family::V6 => "capture-ipv6",
            };
            (family, readiness.check(name))
        })
        .collect();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime.inspect_err(|error| {
            for (_, check) in &checks {
                check.failed(error);
            }
        }) else {
            return;
        };
        let mut canary = None;
        loop {
            for (family, check) in &checks {
                let sung = stop.run_until_cancelled(sing(&mut canary, &cgroup, *family));
                match runtime.block_on(sung) {
                    None => return,
                    Some(Ok(())) => check.ok(),
                    Some(Err(error)) => {
                        tracing::error!(%error, "capture does not work");
                        check.failed(&error);
                        // The helper may be what is broken.
                        canary = None;
                    }
                }
            }
            let stopped = async { timeout(INTERVAL, stop.cancelled()).await.is_ok() };
            if runtime.block_on(stopped) {
                return;
            }
        }
    })
}

async fn sing(
    canary: &mut Option<Canary>,
    cgroup: &std::path::Path,
    family: Family,
) -> Result<(), CaptureError> {
    let canary = match canary {
        Some(canary) => canary,
        None => canary.insert(Canary::start(cgroup)?),
    };
    canary.sing(family == Family::V6).await
}
