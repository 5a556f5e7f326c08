//! Orders to a gateway at work.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a gateway at work can be told. Clones tell the same gateway.
#[derive(Clone, Debug, Default)]
pub struct Control {
    drain: CancellationToken,
    stop: CancellationToken,
    reload: Arc<Notify>,
}

impl Control {
    /// No new connection or request; what has begun may finish, within
    /// [`GatewayConfig::drain`](super::GatewayConfig::drain).
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Everything ends now, tunnels with a reset.
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// The files of the configuration are read again, whether they have changed or not.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Waits for [`Self::drain`].
    pub(super) async fn drained(&self) {
        self.drain.cancelled().await;
    }

    /// Waits for [`Self::stop`].
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits for [`Self::reload`].
    pub(super) async fn reloaded(&self) {
        self.reload.notified().await;
    }
}
