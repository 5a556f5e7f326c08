//! Takes the connections that the programs send to a listener.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Tasks;
use super::shed::Shedder;
use crate::capture::{Canary, Incoming, Listener};
use crate::connection::Way;

/// How long a retired listener still takes what was redirected to it before: those connections
/// are on loopback, so they are there in far less.
const LAST_CALL: Duration = Duration::from_millis(20);

/// Accepts until told to stop, and then what was on its way here.
pub(super) async fn accept(listener: Listener, way: Arc<Way>, tasks: Tasks) {
    let mut shedder = Shedder::new();
    loop {
        tokio::select! {
            incoming = listener.accept() => {
                receive(incoming, &listener, &way, &tasks, &mut shedder).await;
            }
            () = tasks.closing.cancelled() => break,
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
            incoming = listener.accept() => {
                receive(incoming, &listener, &way, &tasks, &mut shedder).await;
            }
            () = &mut last_call => break,
        }
    }
}

/// Sends what was accepted on its way.
async fn receive(
    incoming: io::Result<Incoming>,
    listener: &Listener,
    way: &Arc<Way>,
    tasks: &Tasks,
    shedder: &mut Shedder,
) {
    match incoming {
        Ok(Incoming::Redirected(accepted)) if Canary::is_canary(accepted.original_dst) => {
            tokio::spawn(Canary::greet(accepted.stream));
        }
        Ok(Incoming::Redirected(accepted)) => match way.admission.admit(accepted.cgroup_id) {
            Ok(admitted) => {
                let way = Arc::clone(way);
                let cut = tasks.cut.clone();
                tasks.connections.spawn(async move {
                    way.serve(accepted, &cut).await;
                    drop(admitted);
                });
            }
            Err(refusal) => way.refuse(&accepted, refusal),
        },
        Ok(Incoming::Stranger(client)) => {
            way.metrics.capture.original_destination_missed();
            tracing::warn!(%client, "reset a connection that nothing had redirected here");
        }
        Err(error) => shedder.failed(error, listener, way).await,
    }
}
