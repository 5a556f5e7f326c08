//! The client's end of a stream, and answers of our own.

use std::future::poll_fn;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use super::grpc;
use super::request::size_of;
use crate::relay::Progress;

/// The client's end of a stream. Dropped before the end of the answer, it is reset.
#[derive(Debug)]
pub struct Client {
    pub(super) body: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
    /// Once the head of the answer has been sent.
    pub(super) answer: Option<SendStream<Bytes>>,
    /// Whether some of the body has been read.
    pub(super) touched: bool,
}

/// An answer of our own.
#[derive(Clone, Copy, Debug)]
pub struct OwnAnswer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// What gRPC has for it.
    pub grpc: u16,
    /// For people.
    pub reason: &'a str,
    /// Under which the log has the request.
    pub id: &'a str,
}

impl Client {
    /// The stream that began with a request whose `body` is still to come.
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self {
            body,
            respond,
            answer: None,
            touched: false,
        }
    }

    /// Whether the request has no body.
    pub fn has_no_body(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Whether nothing of the body has been read, so that the request can be sent once more.
    pub fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// Waits until the client gives the stream up. Only before the answer.
    pub async fn reset(&mut self) -> h2::Error {
        poll_fn(|cx| self.respond.poll_reset(cx))
            .await
            .map_or_else(|error| error, h2::Error::from)
    }

    /// Answers by ourselves; to a call of gRPC as its servers do. Of the body nothing more is read.
    ///
    /// # Errors
    /// The client has gone.
    pub fn answer(
        &mut self,
        answer: &OwnAnswer<'_>,
        (is_call, head_only): (bool, bool),
        progress: &Progress,
    ) -> Result<(), h2::Error> {
        let OwnAnswer { reason, id, .. } = answer;
        let mut response = Response::new(());
        let fields = response.headers_mut();
        if is_call {
            let text = format!("underpass: {reason} (request id: {id})");
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            fields.insert(grpc::GRPC_STATUS, answer.grpc.into());
            fields.insert(grpc::GRPC_MESSAGE, grpc::message(&text));
            let size = size_of(fields);
            self.respond.send_response(response, true)?;
            progress.ends(answer.grpc);
            progress.answered(StatusCode::OK.as_u16(), size);
            return Ok(());
        }
        let body = Bytes::from(format!("underpass: {reason}\nrequest id: {id}\n"));
        let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
        fields.insert(CONTENT_TYPE, content_type);
        fields.insert(CONTENT_LENGTH, body.len().into());
        let size = size_of(fields) + if head_only { 0 } else { body.len() };
        *response.status_mut() = answer.status;
        let mut stream = self.respond.send_response(response, head_only)?;
        if !head_only {
            stream.send_data(body, true)?;
        }
        progress.answered(answer.status.as_u16(), size);
        Ok(())
    }

    /// Answers with this, whole. Of the body nothing more is read.
    ///
    /// # Errors
    /// The client has gone.
    pub fn give(&mut self, answer: Response<Bytes>) -> Result<(), h2::Error> {
        let (head, text) = answer.into_parts();
        let head = Response::from_parts(head, ());
        let mut stream = self.respond.send_response(head, text.is_empty())?;
        if text.is_empty() {
            return Ok(());
        }
        stream.send_data(text, true)
    }

    /// Both ends of the stream, before the answer.
    pub fn into_parts(self) -> (RecvStream, SendResponse<Bytes>) {
        (self.body, self.respond)
    }

    /// Resets the stream.
    pub fn abort(&mut self, reason: Reason) {
        match &mut self.answer {
            Some(answer) => answer.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}
