//! Lines as JSON.
//!
//! Our own rather than the one of tracing-subscriber, which puts a field `target` and its own
//! `target` into one object under the same key.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// One flat object per line.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Fields(mut fields) = fields;

        let metadata = event.metadata();
        // An event that was a record of the `log` crate has its origin in these fields.
        let origin = fields.remove("log.target");
        for name in ["log.module_path", "log.file", "log.line"] {
            fields.remove(name);
        }
        let logger = origin.unwrap_or_else(|| metadata.target().into());
        let spans = spans(ctx);

        // Last, so that no field of an event can pass for one of these.
        fields.insert("time".to_owned(), time.into());
        fields.insert("level".to_owned(), metadata.level().as_str().into());
        fields.insert("logger".to_owned(), logger);
        if !spans.is_empty() {
            fields.insert("spans".to_owned(), spans.into());
        }
        writeln!(writer, "{}", Value::Object(fields))
    }
}

/// The spans around an event, outermost first: `conn{id=7}:tunnel`.
fn spans<S, N>(ctx: &FmtContext<'_, S, N>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut out = String::new();
    for span in ctx.event_scope().into_iter().flat_map(Scope::from_root) {
        if !out.is_empty() {
            out.push(':');
        }
        out.push_str(span.name());
        if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
            && !fields.is_empty()
        {
            out.push('{');
            out.push_str(fields);
            out.push('}');
        }
    }
    out
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }
}
