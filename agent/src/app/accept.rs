//! Takes the connections that the programs send to a listener.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Tasks;
use super::shed::Shedder;
use super::vital::VitalTasks;
use crate::capture::{Canary, Front, Incoming, Listener};
use crate::connection::Way;
use crate::dns::Outcome;
use crate::sockets::Vantage;

/// How long a retired listener still takes what was redirected to it before: those connections
/// are on loopback, so they are there in far less.
const LAST_CALL: Duration = Duration::from_millis(20);

/// What all listeners have in common. Clones share it.
#[derive(Clone)]
pub(super) struct Acceptor {
    way: Arc<Way>,
    tasks: Tasks,
    /// One for all: descriptors run out for everybody at the same time.
    shedder: Arc<Mutex<Shedder>>,
}

impl Acceptor {
    pub(super) fn new(way: Arc<Way>, tasks: Tasks) -> Self {
        Self {
            way,
            tasks,
            shedder: Arc::new(Mutex::new(Shedder::new())),
        }
    }

    /// What connections go by.
    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    /// Ends every acceptor.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.tasks.closing
    }

    /// What must not end before it is told to.
    pub(super) fn vital(&self) -> &VitalTasks {
        &self.tasks.vital
    }

    /// Starts to accept in another network namespace, until `closing`.
    pub(super) fn start(
        &self,
        listener: Listener,
        there: Arc<Vantage>,
        closing: CancellationToken,
    ) -> JoinHandle<()> {
        tokio::spawn(self.run(listener, Some(there), closing))
    }

    /// Accepts until `closing`, and then what was on its way here.
    pub(super) fn run(
        &self,
        listener: Listener,
        there: Option<Arc<Vantage>>,
        closing: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let this = self.clone();
        let accepting = async move { this.accept(&listener, there.as_ref(), &closing).await };
        self.tasks.acceptors.track_future(accepting)
    }

    /// Answers queries until `closing`, in another network namespace or the agent's own.
    pub(super) fn serve(
        &self,
        front: Front,
        there: Option<Arc<Vantage>>,
        closing: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let this = self.clone();
        let serving = async move { this.answer(Arc::new(front), there, &closing).await };
        self.tasks.acceptors.track_future(serving)
    }

    async fn answer(
        &self,
        front: Arc<Front>,
        there: Option<Arc<Vantage>>,
        closing: &CancellationToken,
    ) {
        let mut buffer = Vec::new();
        let receive = async |buffer: &mut Vec<u8>| {
            match front.receive(buffer).await {
                Ok(Some(asked)) => {
                    let (way, front) = (Arc::clone(&self.way), Arc::clone(&front));
                    let there = there.clone();
                    let cut = self.tasks.cut.clone();
                    self.tasks
                        .connections
                        .spawn(cut.run_until_cancelled_owned(async move {
                            if let Some(answer) = way.answer(&asked, there.as_ref()).await
                                && let Err(error) = front.answer(&answer, asked.client).await
                            {
                                tracing::debug!(%error, "answer to a query not sent");
                            }
                        }));
                }
                Ok(None) => self.way.metrics.dns.asked(Outcome::Stranger),
                // That an answer could not be delivered, to one who is gone.
                Err(error) => tracing::debug!(%error, "front"),
            }
        };
        loop {
            tokio::select! {
                () = receive(&mut buffer) => {}
                () = closing.cancelled() => break,
            }
        }
        if let Err(error) = front.retire() {
            tracing::warn!(%error, "queries made right now may get no answer");
        }
        let last_call = sleep(LAST_CALL);
        tokio::pin!(last_call);
        loop {
            tokio::select! {
                biased;
                () = receive(&mut buffer) => {}
                () = &mut last_call => break,
            }
        }
    }

    async fn accept(
        &self,
        listener: &Listener,
        there: Option<&Arc<Vantage>>,
        closing: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                incoming = listener.accept() => self.receive(incoming, listener, there).await,
                () = closing.cancelled() => break,
            }
        }
        if let Err(error) = listener.retire() {
            tracing::warn!(%error, "connections made right now may be reset");
        }
        let last_call = sleep(LAST_CALL);
        tokio::pin!(last_call);
        loop {
            tokio::select! {
                biased;
                incoming = listener.accept() => self.receive(incoming, listener, there).await,
                () = &mut last_call => break,
            }
        }
    }

    /// Sends what was accepted on its way.
    async fn receive(
        &self,
        incoming: io::Result<Incoming>,
        listener: &Listener,
        there: Option<&Arc<Vantage>>,
    ) {
        let Self {
            way,
            tasks,
            shedder,
        } = self;
        match incoming {
            Ok(Incoming::Redirected(accepted)) if Canary::is_canary(accepted.original_dst) => {
                tokio::spawn(Canary::greet(accepted.stream));
            }
            Ok(Incoming::Redirected(accepted)) => match way.admission.admit(accepted.cgroup_id) {
                Ok(admitted) => {
                    let (there, cut) = (there.cloned(), tasks.cut.clone());
                    let serving = Arc::clone(way).serve(accepted, there, cut, admitted);
                    tasks.connections.spawn(serving);
                }
                Err(refusal) => way.refuse(&accepted, refusal),
            },
            Ok(Incoming::Stranger(client)) => {
                way.metrics.capture.original_destination_missed();
                tracing::warn!(%client, "reset a connection that nothing had redirected here");
            }
            Err(error) => shedder.lock().await.failed(error, listener, way).await,
        }
    }
}
