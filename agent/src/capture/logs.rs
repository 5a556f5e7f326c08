//! What the programs log.

#![expect(
    unsafe_code,
    reason = "tokio wants a promise about the ring buffer's descriptor"
)]

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::CaptureError;

/// Passes the programs' log records on to the agent's log, for ever.
pub(super) fn forward(
    ebpf: &mut Ebpf,
) -> Result<impl Future<Output = ()> + Send + use<>, CaptureError> {
    let logger = EbpfLogger::init(ebpf).map_err(CaptureError::Logs)?;
    // SAFETY: the logger owns the descriptor, keeps it open for its whole life, and always gives
    // the same one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .map_err(|error| CaptureError::LogsPoll(error.into()))?;
    Ok(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    })
}
