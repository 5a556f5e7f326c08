//! How many there are of what is limited.

use crate::policy::TargetSettings;
use crate::telemetry::TargetLimit;

/// What there is of one target now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    connections: u32,
    pending: u32,
    requests: u32,
    retries: u32,
    /// Of the pending, those for whom there is no room.
    awaiting: u32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Count {
    Connections,
    Pending,
    Requests,
    Retries,
}

impl Count {
    /// How many there may be.
    pub(super) fn limit(self, settings: &TargetSettings) -> Option<u32> {
        match self {
            Self::Connections => settings.max_connections,
            Self::Pending => settings.http.max_pending,
            Self::Requests => settings.http.max_requests,
            Self::Retries => settings.http.max_retries,
        }
    }

    /// As documents have it.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Connections => "maxConnections",
            Self::Pending => "http1MaxPendingRequests",
            Self::Requests => "http2MaxRequests",
            Self::Retries => "maxRetries",
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "requests that wait for a connection",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }

    pub(super) fn reason(self) -> TargetLimit {
        match self {
            Self::Connections => TargetLimit::Connections,
            Self::Pending => TargetLimit::PendingRequests,
            Self::Requests => TargetLimit::Requests,
            Self::Retries => TargetLimit::Retries,
        }
    }
}

impl Counts {
    fn of(&mut self, count: Count) -> &mut u32 {
        match count {
            Count::Connections => &mut self.connections,
            Count::Pending => &mut self.pending,
            Count::Requests => &mut self.requests,
            Count::Retries => &mut self.retries,
        }
    }

    /// One more, unless there are as many as there may be.
    pub(super) fn take(&mut self, count: Count, limit: Option<u32>) -> bool {
        let now = self.of(count);
        let has_room = *now < limit.unwrap_or(u32::MAX);
        if has_room {
            *now += 1;
        }
        has_room
    }

    /// One that was taken is over.
    pub(super) fn give_back(&mut self, count: Count) {
        let now = self.of(count);
        debug_assert!(*now > 0, "{count:?} that were never there");
        *now = now.saturating_sub(1);
    }

    pub(super) fn begin_to_wait(&mut self) {
        self.awaiting += 1;
    }

    pub(super) fn stop_waiting(&mut self) {
        self.awaiting = self.awaiting.saturating_sub(1);
    }

    /// Whether somebody waits for a connection to be given up.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaiting > 0
    }

    #[cfg(test)]
    pub(super) fn now(&self, count: Count) -> u32 {
        *self.clone().of(count)
    }
}
