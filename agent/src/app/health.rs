//! Capture health: what the kernel and the agent's own tasks are asked again and again, canaries
//! that are sent, and readiness and a metric that tell what came of it.

mod map;

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use underpass_abi::Counter;

use super::Family;
use super::cgroups::Cgroups;
use super::vital::VitalTasks;
use crate::admin::{AdminThread, Check, Readiness};
use crate::capture::{Canary, CaptureError, Flows, KernelCounters};
use crate::telemetry::Metrics;
use map::FlowMap;

/// Readiness must turn red within 10 s of a program being detached: a round and its deadlines
/// take less.
const INTERVAL: Duration = Duration::from_secs(3);

/// What is looked at.
pub(super) struct Subject {
    pub(super) cgroups: Arc<Cgroups>,
    pub(super) families: Vec<Family>,
    pub(super) flows: Arc<Flows>,
    pub(super) counters: Arc<KernelCounters>,
    pub(super) tasks: VitalTasks,
    /// From here on accept loops are meant to end, and nobody looks any more.
    pub(super) closing: CancellationToken,
    pub(super) admin: Weak<AdminThread>,
}

/// The check of the programs, which comes with all others.
pub(super) const PROGRAMS: &str = "programs";

/// Starts the thread that looks until the agent closes; when it has ended, so have the canary's
/// helper process and its cgroup. It has a thread of its own because the helper answers in
/// blocking calls.
pub(super) fn watch(
    subject: Subject,
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
) -> JoinHandle<()> {
    let probe = |name| Probe {
        name,
        check: readiness.check(name),
        metrics: Arc::clone(metrics),
    };
    let probes = Probes {
        canaries: subject
            .families
            .iter()
            .map(|family| {
                let name = match family {
                    Family::V4 => "canary-ipv4",
                    Family::V6 => "canary-ipv6",
                };
                (*family, probe(name))
            })
            .collect(),
        map: probe("flow-map"),
        programs: probe(PROGRAMS),
        tasks: probe("tasks"),
    };
    thread::spawn(move || {
        match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => probes.watch(&subject, &runtime),
            Err(error) => tracing::error!(%error, "capture cannot be watched"),
        }
    })
}

/// The checks. Should the thread panic, nobody looks any more, so none of them may stay green.
struct Probes {
    canaries: Vec<(Family, Probe)>,
    map: Probe,
    programs: Probe,
    tasks: Probe,
}

impl Probes {
    fn watch(&self, subject: &Subject, runtime: &Runtime) {
        let mut canary = None;
        let mut flows = FlowMap::new(subject.counters.value(Counter::RefusedMapFull));
        loop {
            self.tasks.report(tasks(subject));
            self.programs.report(subject.cgroups.check());
            self.map.report(flows.check(
                subject.flows.len(),
                subject.flows.capacity(),
                subject.counters.value(Counter::RefusedMapFull),
            ));
            // Without it there is nothing to be captured, and the programs' check says so.
            let cgroup = subject.cgroups.main();
            let canaries = cgroup.iter().flat_map(|cgroup| {
                let canaries = self.canaries.iter();
                canaries.map(move |(family, probe)| (cgroup, *family, probe))
            });
            for (cgroup, family, probe) in canaries {
                let sung = sing(&mut canary, cgroup, family);
                let sung = runtime.block_on(subject.closing.run_until_cancelled(sung));
                let Some(sung) = sung else {
                    return;
                };
                let failed = sung.is_err();
                probe.report(sung);
                if failed {
                    // The helper may be what is broken.
                    canary = None;
                }
            }
            let closing = async { timeout(INTERVAL, subject.closing.cancelled()).await.is_ok() };
            if runtime.block_on(closing) {
                return;
            }
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let canaries = self.canaries.iter().map(|(_, probe)| probe);
        for probe in canaries.chain([&self.map, &self.programs, &self.tasks]) {
            probe.report(Err("the thread that watches capture has ended"));
        }
    }
}

/// One check, in readiness and as a metric.
struct Probe {
    name: &'static str,
    check: Check,
    metrics: Arc<Metrics>,
}

impl Probe {
    /// Says what came of it; a change is logged.
    fn report<E: std::fmt::Display>(&self, result: Result<(), E>) {
        self.metrics.capture.set_healthy(self.name, result.is_ok());
        match result {
            Ok(()) => self.check.ok(),
            Err(error) => self.check.failed(&error),
        }
    }
}

/// Whether everything runs that has to.
fn tasks(subject: &Subject) -> Result<(), String> {
    if subject.closing.is_cancelled() {
        return Ok(());
    }
    let mut ended = subject.tasks.ended();
    if subject
        .admin
        .upgrade()
        .is_some_and(|admin| !admin.is_serving())
    {
        ended.push("endpoints".to_owned());
    }
    if ended.is_empty() {
        Ok(())
    } else {
        Err(format!("ended unexpectedly: {}", ended.join(", ")))
    }
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
