//! The messages of OTLP that are needed (`opentelemetry/proto/trace/v1/trace.proto` and those it
//! imports), and spans as such messages.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::trace::{self, Finished, SpanContext};

/// Of `Span.flags` and `Link.flags`: whether the next bit means anything, and that the span above,
/// or the one linked, is another program's.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Of `SpanKind` and `StatusCode`.
const KIND_INTERNAL: i32 = 1;
const KIND_CLIENT: i32 = 3;
const STATUS_ERROR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(super) scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(super) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub(super) scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub(super) spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Scope {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(super) name: String,
    #[prost(int32, tag = "6")]
    pub(super) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(super) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(super) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(super) attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub(super) links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    pub(super) status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    pub(super) flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) span_id: Vec<u8>,
    #[prost(fixed32, tag = "6")]
    pub(super) flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(int32, tag = "3")]
    pub(super) code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    pub(super) value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Int(i64),
}

/// What a collector answers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

impl Resource {
    pub(super) fn new(attributes: &[(String, String)]) -> Self {
        let attributes = attributes.iter();
        Self {
            attributes: attributes
                .map(|(key, value)| attribute(key.clone(), Value::Text(value.clone())))
                .collect(),
        }
    }
}

/// One message with all these spans.
pub(super) fn encode(resource: &Resource, spans: impl Iterator<Item = Finished>) -> Bytes {
    let scope = Scope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let message = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: spans.map(Span::from).collect(),
            }],
        }],
    };
    message.encode_to_vec().into()
}

impl From<Finished> for Span {
    fn from(span: Finished) -> Self {
        let start = nanos(span.start);
        let is_remote = span.parent.is_some_and(|(_, is_remote)| is_remote);
        let parent = span.parent.map(|(id, _)| id.as_bytes().to_vec());
        let attributes = span.attributes.into_iter();
        Self {
            trace_id: span.context.trace.as_bytes().to_vec(),
            span_id: span.context.span.as_bytes().to_vec(),
            parent_span_id: parent.unwrap_or_default(),
            name: span.name.to_owned(),
            kind: match span.kind {
                trace::Kind::Internal => KIND_INTERNAL,
                trace::Kind::Client => KIND_CLIENT,
            },
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(whole(span.took)),
            attributes: attributes
                .map(|(key, value)| attribute(key.to_owned(), value.into()))
                .collect(),
            links: span.link.iter().map(Link::from).collect(),
            status: span.error.map(|message| Status {
                message,
                code: STATUS_ERROR,
            }),
            flags: flags(&span.context, is_remote),
        }
    }
}

impl From<&SpanContext> for Link {
    /// One of ours.
    fn from(to: &SpanContext) -> Self {
        Self {
            trace_id: to.trace.as_bytes().to_vec(),
            span_id: to.span.as_bytes().to_vec(),
            flags: flags(to, false),
        }
    }
}

impl From<trace::Value> for Value {
    fn from(value: trace::Value) -> Self {
        match value {
            trace::Value::Int(number) => Self::Int(number),
            trace::Value::Text(text) => Self::Text(text.into_owned()),
        }
    }
}

fn attribute(key: String, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key, value }
}

fn flags(context: &SpanContext, is_remote: bool) -> u32 {
    let remote = if is_remote { IS_REMOTE } else { 0 };
    u32::from(context.flags()) | HAS_IS_REMOTE | remote
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    whole(since.unwrap_or_default())
}

fn whole(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
