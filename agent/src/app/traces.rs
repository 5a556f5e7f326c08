//! Whether spans are recorded, and where they go.

#[cfg(feature = "otlp")]
pub use crate::telemetry::otlp::Settings as TraceSettings;

/// There is no way for spans to go.
#[cfg(not(feature = "otlp"))]
pub type TraceSettings = std::convert::Infallible;

#[cfg(feature = "otlp")]
pub(super) use with::Traces;
#[cfg(not(feature = "otlp"))]
pub(super) use without::Traces;

#[cfg(feature = "otlp")]
mod with {
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::TraceSettings;
    use crate::dns::Resolver;
    use crate::sockets::SocketFactory;
    use crate::telemetry::Metrics;
    use crate::telemetry::otlp::Exporter;
    use crate::trace::Tracer;

    /// How long the last spans may take after the last connection.
    const FLUSH: Duration = Duration::from_secs(2);

    /// Spans on their way.
    pub(in crate::app) struct Traces(Mutex<Option<Exporter>>);

    impl Traces {
        pub(in crate::app) fn start(
            settings: Option<TraceSettings>,
            sockets: &Arc<dyn SocketFactory>,
            resolver: &Resolver,
            metrics: &Metrics,
        ) -> (Tracer, Self) {
            let Some(settings) = settings else {
                return (Tracer::default(), Self(Mutex::default()));
            };
            tracing::info!(collector = settings.collector(), "sending spans");
            let (tracer, exporter) = Exporter::start(settings, sockets, resolver, &metrics.traces);
            (tracer, Self(Mutex::new(Some(exporter))))
        }

        /// Sends what has been recorded.
        pub(in crate::app) async fn finish(&self) {
            let exporter = self.0.lock().take();
            if let Some(exporter) = exporter {
                exporter.finish(FLUSH).await;
            }
        }
    }
}

#[cfg(not(feature = "otlp"))]
mod without {
    use std::sync::Arc;

    use super::TraceSettings;
    use crate::dns::Resolver;
    use crate::sockets::SocketFactory;
    use crate::telemetry::Metrics;
    use crate::trace::Tracer;

    pub(in crate::app) struct Traces;

    impl Traces {
        pub(in crate::app) fn start(
            _: Option<TraceSettings>,
            _: &Arc<dyn SocketFactory>,
            _: &Resolver,
            _: &Metrics,
        ) -> (Tracer, Self) {
            (Tracer::default(), Self)
        }

        pub(in crate::app) async fn finish(&self) {}
    }
}
