//! Where the queries of workloads arrive: in every enrolled network namespace while policy has them come
//! to the agent, else nowhere.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use underpass_abi::Listeners;

use super::accept::Acceptor;
use super::enrolment::Enrolment;
use crate::capture::{Capture, CaptureError, Netns};
use crate::sockets::Vantage;

/// A network namespace that is enrolled.
pub(super) struct Place {
    /// The kernel's name for it.
    cookie: u64,
    /// Itself, and as connections are made from it; `None`: the agent's own.
    there: Option<(Arc<Netns>, Arc<Vantage>)>,
    ports: Listeners,
    /// Ends whatever is open there.
    closing: CancellationToken,
    open: Option<Open>,
}

/// Fronts that are open.
struct Open {
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Place {
    /// A namespace with these listeners, without fronts yet.
    pub(super) fn new(
        cookie: u64,
        there: Option<(Arc<Netns>, Arc<Vantage>)>,
        ports: Listeners,
        closing: CancellationToken,
    ) -> Self {
        Self {
            cookie,
            there,
            ports,
            closing,
            open: None,
        }
    }

    /// Where the agent listens in it.
    pub(super) fn ports(&self) -> Listeners {
        self.ports
    }

    /// How many file descriptors the fronts take.
    pub(super) fn descriptors(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.tasks.len())
    }

    /// Whether a front has ended though nobody asked it to.
    pub(super) fn has_ended(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.tasks.iter().any(JoinHandle::is_finished))
    }

    /// Opens fronts or closes them. To be called on the runtime.
    pub(super) fn set(
        &mut self,
        wanted: bool,
        acceptor: &Acceptor,
        capture: &Mutex<Capture>,
    ) -> Result<(), CaptureError> {
        if wanted == self.open.is_some() {
            return Ok(());
        }
        if !wanted {
            capture.lock().close_fronts(self.cookie, &mut self.ports)?;
            if let Some(open) = self.open.take() {
                open.closing.cancel();
            }
            return Ok(());
        }
        let namespace = self.there.as_ref().map(|(namespace, _)| &**namespace);
        let place = (self.cookie, namespace);
        let fronts = capture.lock().open_fronts(place, &mut self.ports)?;
        let closing = self.closing.child_token();
        let mut tasks = Vec::new();
        for front in fronts {
            match &self.there {
                Some((_, vantage)) => {
                    let there = Some(Arc::clone(vantage));
                    let serving = acceptor.serve(front, there, closing.clone());
                    tasks.push(tokio::spawn(serving));
                }
                None => {
                    let serving = acceptor.serve(front, None, closing.clone());
                    let vital = acceptor.vital();
                    vital.spawn_until(closing.clone(), "queries of workloads", serving);
                }
            }
        }
        self.open = Some(Open { closing, tasks });
        Ok(())
    }
}

/// The fronts of every enrolled namespace.
pub(super) struct Fronts {
    acceptor: Acceptor,
    capture: Arc<Mutex<Capture>>,
    own: Mutex<Place>,
    /// The others, if there are.
    enrolment: Option<Arc<Enrolment>>,
}

impl Fronts {
    /// None yet. The agent's own namespace is enrolled so.
    pub(super) fn new(
        acceptor: Acceptor,
        capture: Arc<Mutex<Capture>>,
        (cookie, ports): (u64, Listeners),
        enrolment: Option<Arc<Enrolment>>,
    ) -> Self {
        let closing = acceptor.closing().clone();
        Self {
            acceptor,
            capture,
            own: Mutex::new(Place::new(cookie, None, ports, closing)),
            enrolment,
        }
    }

    /// Opens them or closes them. To be called on the runtime.
    ///
    /// # Errors
    /// Those of the agent's own namespace cannot be opened. Of the others it is told in the log.
    pub(super) fn set(&self, wanted: bool) -> Result<(), CaptureError> {
        let mut own = self.own.lock();
        own.set(wanted, &self.acceptor, &self.capture)?;
        if let Some(enrolment) = &self.enrolment {
            enrolment.set_fronts(wanted);
        }
        Ok(())
    }
}
