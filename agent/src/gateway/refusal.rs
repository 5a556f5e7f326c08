//! An answer of the gateway's own.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::access::Record;
use super::metrics::Denial;

/// No tunnel and no answer of a target, but a line of text for whoever looks for the reason.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    fields: Vec<(HeaderName, &'static str)>,
    denial: Option<Denial>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            fields: Vec::new(),
            denial: None,
        }
    }

    /// The request breaks the rules of HTTP, or those for proxies.
    pub(super) fn malformed(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text).because(Denial::Malformed)
    }

    pub(super) fn because(mut self, denial: Denial) -> Self {
        self.denial = Some(denial);
        self
    }

    pub(super) fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    /// Whether the request breaks rules, so that what comes behind it may not be meant as it looks.
    pub(super) fn is_of_malformed(&self) -> bool {
        self.denial == Some(Denial::Malformed)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer, which is also noted in `record`.
    pub(super) fn into_response(self, record: &mut Record) -> Response<Bytes> {
        record.code = Some(self.status);
        record.failed(&self.text);
        if let Some(denial) = self.denial {
            record.denied(denial);
        }
        let mut response = Response::new(format!("{}\n", self.text).into());
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        for (name, value) in self.fields {
            fields.append(name, HeaderValue::from_static(value));
        }
        response
    }
}
