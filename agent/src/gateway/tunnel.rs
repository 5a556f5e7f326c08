//! An established tunnel, to its end.

use std::fmt::Display;
use std::future::Future;

use bytes::Bytes;
use http::Version;

use super::access::Record;
use super::stream::{End, Upstream};
use super::{Control, Shared};
use crate::relay::relay;
use crate::sockets::Carrier as _;

/// Runs a tunnel until both sides have ended, or one of them failed, or `broken` says that the
/// client's did. `ahead` came from the client before.
pub(super) async fn run<C: End, D: Display>(
    mut client: C,
    ahead: Bytes,
    mut upstream: Upstream,
    mut record: Record,
    version: Version,
    broken: impl Future<Output = D>,
    (shared, control): (&Shared, &Control),
) {
    let _active = shared.metrics.tunnel(version);
    let Upstream { stream, early } = &mut upstream;
    // Whatever ends it but the relay must not look like the end of the data.
    stream.abort_on_drop();
    let failure = tokio::select! {
        result = relay(
            &mut client,
            stream,
            ahead,
            std::mem::take(early),
            &shared.relay,
            &record.progress.traffic,
        ) => result.err().map(|error| error.to_string()),
        reason = broken => Some(reason.to_string()),
        () = control.stopped() => Some("the gateway was stopped".to_owned()),
    };
    match failure {
        None => stream.finish_on_drop(),
        Some(failure) => {
            client.abort();
            record.failed(failure);
        }
    }
}
