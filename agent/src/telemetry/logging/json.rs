//! Lines as JSON.
//!
//! Our own rather than the one of tracing-subscriber, which puts a field `target` and its own
//! `target` into one object under the same key. Each request has a line, so nothing is put together
//! first: fields are written as they come.

use std::fmt::{self, Debug, Write};

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
    writer.write_char('"')?;
    Escaped(&mut *writer).write_fmt(value)?;
    writer.write_char('"')
}

/// The inside of a string (RFC 8259 section 7).
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        let is_special = |byte: u8| byte < 0x20 || matches!(byte, b'"' | b'\\');
        while let Some(at) = text.bytes().position(is_special) {
            // What is special is one byte long.
            let (plain, rest) = text.split_at(at);
            let (special, rest) = rest.split_at(1);
            self.0.write_str(plain)?;
            match special {
                "\"" => self.0.write_str("\\\"")?,
                "\\" => self.0.write_str("\\\\")?,
                "\n" => self.0.write_str("\\n")?,
                "\r" => self.0.write_str("\\r")?,
                "\t" => self.0.write_str("\\t")?,
                other => write!(self.0, "\\u{:04x}", other.as_bytes()[0])?,
            }
            text = rest;
        }
        self.0.write_str(text)
    }
}
