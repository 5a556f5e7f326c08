//! Bodies of requests and answers, between the two libraries.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use hyper::body::{Body, Frame};
use tokio::time::timeout;

/// The body of a request. The client is given room for more when its data is taken.
pub(super) struct Asked(RecvStream);

impl Asked {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self(stream)
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            return Poll::Ready(Some(data.map(|data| {
                // Fails only if more is given back than was there.
                let _ = self.0.flow_control().release_capacity(data.len());
                Frame::data(data)
            })));
        }
        let trailers = ready!(self.0.poll_trailers(cx));
        Poll::Ready(trailers.map(|found| found.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Sends `response`, as fast as the client takes it, but not to one that takes nothing for as long
/// as `patience`. If its body breaks off, so does the stream.
pub(super) async fn send<B>(
    response: Response<B>,
    mut respond: SendResponse<Bytes>,
    patience: Duration,
) where
    B: Body<Data = Bytes>,
{
    let (parts, body) = response.into_parts();
    let mut body = pin!(body);
    let ended = body.is_end_stream();
    let head = Response::from_parts(parts, ());
    let mut stream = match respond.send_response(head, ended) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "an answer was not sent"),
    };
    if ended {
        // Says that it has been seen to its end.
        poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
        return;
    }
    let finished = loop {
        let frame = tokio::select! {
            frame = poll_fn(|cx| body.as_mut().poll_frame(cx)) => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
        };
        let frame = match frame {
            None => break stream.send_data(Bytes::new(), true),
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
        };
        match frame.into_data() {
            Ok(data) => match timeout(patience, send_data(&mut stream, data)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::debug!(%error, "an answer was not taken"),
                Err(_) => return stream.send_reset(Reason::CANCEL),
            },
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    break stream.send_trailers(trailers);
                }
            }
        }
    };
    if let Err(error) = finished {
        tracing::debug!(%error, "the end of an answer was not sent");
    }
}

async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // Polling tells changes only, so what is there already is to be asked for first.
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(Reason::STREAM_CLOSED.into()),
            };
        }
        let length = stream.capacity().min(data.len());
        stream.send_data(data.split_to(length), false)?;
    }
    Ok(())
}
