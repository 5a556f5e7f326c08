//! Traces: who caused what, and how long each part of it took.
//!
//! [`SpanContext`] is what a program says of its trace in a request (W3C Trace Context), [`Sampler`]
//! whether we record our part of it, [`Span`] one such part. A finished span goes to a [`Sink`]. What
//! is not recorded costs a comparison: it holds nothing and allocates nothing.

mod context;
mod sampler;
mod span;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use context::{Onward, SpanContext, SpanId, TRACEPARENT, TRACESTATE, TraceId};
pub use sampler::{Sampler, SamplerError};
pub use span::{Finished, Kind, MAX_TEXT, Span, Value};

/// Takes finished spans. It is called where connections are served, so it must not wait.
pub trait Sink: fmt::Debug + Send + Sync {
    /// A span has ended.
    fn take(&self, span: Finished);
}

/// Begins spans, or none where nothing is traced, the default. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampler: Sampler,
    sink: Arc<dyn Sink>,
}

impl Tracer {
    /// Records what `sampler` picks, and gives it to `sink`.
    pub fn new(sampler: Sampler, sink: Arc<dyn Sink>) -> Self {
        Self(Some(Arc::new(Inner { sampler, sink })))
    }

    /// Whether anything may be recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A span below `parent`, which another program told of; without one, the first of a trace.
    /// It began at `start`. The sampler decides whether it is recorded.
    pub fn begin(
        &self,
        parent: Option<SpanContext>,
        name: &'static str,
        kind: Kind,
        start: Instant,
    ) -> Span {
        let Some(inner) = &self.0 else {
            return Span::none();
        };
        if inner.sampler.never_samples(parent.as_ref()) {
            return Span::none();
        }
        let Some(trace) = parent.map_or_else(TraceId::random, |parent| Some(parent.trace)) else {
            return Span::none();
        };
        if !inner.sampler.samples(parent.as_ref(), trace) {
            return Span::none();
        }
        Span::begin(inner, trace, parent, name, kind, start)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use parking_lot::Mutex;

    use super::*;

    /// Keeps what it is given.
    #[derive(Debug, Default)]
    pub(crate) struct Kept(Mutex<Vec<Finished>>);

    impl Kept {
        pub(crate) fn take_all(&self) -> Vec<Finished> {
            std::mem::take(&mut self.0.lock())
        }
    }

    impl Sink for Kept {
        fn take(&self, span: Finished) {
            self.0.lock().push(span);
        }
    }

    /// A tracer with this sampler, and what it records.
    pub(crate) fn tracer(sampler: &str) -> (Tracer, Arc<Kept>) {
        let kept = Arc::new(Kept::default());
        let sampler = Sampler::parse(sampler, None).unwrap();
        (Tracer::new(sampler, Arc::clone(&kept) as _), kept)
    }
}

#[cfg(test)]
mod tests;
