//! Lines as JSON.
//!
//! Our own rather than the one of tracing-subscriber, which puts a field `target` and its own
//! `target` into one object under the same key. Each request has a line, so nothing is put together
//! first: fields are written as they come.

use std::fmt::{self, Debug};
use std::io;

use serde::Serializer as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// One flat object per line.
pub(super) struct Json;

/// What no field of an event can pass for.
const OWN: [&str; 4] = ["time", "level", "logger", "spans"];

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
        let metadata = event.metadata();
        writer.write_str("{\"time\":\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\"", metadata.level())?;
        let mut fields = Fields {
            writer: &mut writer,
            origin: None,
            result: Ok(()),
        };
        event.record(&mut fields);
        let Fields { origin, result, .. } = fields;
        result?;
        let logger = origin.as_deref().unwrap_or(metadata.target());
        text(&mut writer, "logger", format_args!("{logger}"))?;
        let spans = spans(ctx);
        if !spans.is_empty() {
            text(&mut writer, "spans", format_args!("{spans}"))?;
        }
        writer.write_str("}\n")
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

struct Fields<'a, 'w> {
    writer: &'a mut Writer<'w>,
    /// Of an event that was a record of the `log` crate: where that comes from.
    origin: Option<String>,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn put(
        &mut self,
        field: &Field,
        write: impl FnOnce(&mut Writer<'_>, &'static str) -> fmt::Result,
    ) {
        let name = field.name();
        if self.result.is_ok() && !OWN.contains(&name) && !name.starts_with("log.") {
            self.result = write(self.writer, name);
        }
    }

    fn put_plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.put(field, |writer, name| {
            key(writer, name)?;
            write!(writer, "{value}")
        });
    }
}

impl Visit for Fields<'_, '_> {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.put_plain(field, value);
        } else {
            self.put_plain(field, "null");
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.origin = Some(value.to_owned());
        }
        self.put(field, |writer, name| {
            text(writer, name, format_args!("{value}"))
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, |writer, name| {
            text(writer, name, format_args!("{value:?}"))
        });
    }
}

/// The name of a member that is not the first, which is ours and needs no escape.
fn key(writer: &mut Writer<'_>, name: &str) -> fmt::Result {
    writer.write_str(",\"")?;
    writer.write_str(name)?;
    writer.write_str("\":")
}

/// A member whose value is a string.
fn text(writer: &mut Writer<'_>, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    key(writer, name)?;
    let mut serializer = serde_json::Serializer::new(Bytes(writer));
    serializer.collect_str(&value).map_err(|_| fmt::Error)
}

/// What serde_json writes to, which is whole characters at a time.
struct Bytes<'a, 'w>(&'a mut Writer<'w>);

impl io::Write for Bytes<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
