//! A body on its way from one stream to another.

use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Why a body goes no further.
#[derive(Debug)]
pub(super) enum Stop {
    /// Where it comes from.
    From(h2::Error),
    /// Where it goes.
    To(h2::Error),
}

/// What trailers must not change (RFC 9110 section 6.5.1), and what is never for more than the next
/// hop.
const NO_TRAILERS: [HeaderName; 11] = [
    AUTHORIZATION,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Passes all of a body on, its trailers included, and its end. Room is made where it comes from
/// only for what the other side has taken.
pub(super) async fn pump(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut passed: impl FnMut(&[u8]),
    ends_with: impl FnOnce(&HeaderMap),
) -> Result<(), Stop> {
    while let Some(data) = next(from, to).await? {
        let length = data.len();
        passed(&data);
        let is_last = from.is_end_stream();
        if length > 0 || is_last {
            send(to, data, is_last, |taken| release(from, taken))
                .await
                .map_err(Stop::To)?;
        }
        if is_last {
            return Ok(());
        }
    }
    let trailers = poll_fn(|cx| from.poll_trailers(cx)).await;
    match trailers.map_err(Stop::From)? {
        Some(mut trailers) => {
            clean(&mut trailers);
            ends_with(&trailers);
            to.send_trailers(trailers).map_err(Stop::To)
        }
        None => to.send_data(Bytes::new(), true).map_err(Stop::To),
    }
}

/// Takes out of trailers what must not be in them.
pub(super) fn clean(trailers: &mut HeaderMap) {
    for name in &NO_TRAILERS {
        trailers.remove(name);
    }
}

/// The next data of `from`; `None` is the end of it. Ends early if `to` takes no more.
async fn next(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Stop> {
    poll_fn(|cx| {
        if let Poll::Ready(reset) = to.poll_reset(cx) {
            let error = reset.map_or_else(|error| error, h2::Error::from);
            return Poll::Ready(Err(Stop::To(error)));
        }
        Poll::Ready(match ready!(from.poll_data(cx)) {
            None => Ok(None),
            Some(Ok(data)) => Ok(Some(data)),
            Some(Err(error)) => Err(Stop::From(error)),
        })
    })
    .await
}

/// Sends `data` as there is room for it, and tells of what has been taken; `ends`: it is the last.
pub(super) async fn send(
    to: &mut SendStream<Bytes>,
    mut data: Bytes,
    ends: bool,
    mut taken: impl FnMut(usize),
) -> Result<(), h2::Error> {
    if data.is_empty() {
        return to.send_data(data, ends);
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        // Told of are changes only, so what there is already is asked for first.
        while to.capacity() == 0 {
            match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(closed(to).await),
            };
        }
        let length = to.capacity().min(data.len());
        let piece = data.split_to(length);
        to.send_data(piece, ends && data.is_empty())?;
        taken(length);
    }
    Ok(())
}

/// Why nothing more can be sent.
async fn closed(to: &mut SendStream<Bytes>) -> h2::Error {
    poll_fn(|cx| {
        Poll::Ready(match to.poll_reset(cx) {
            Poll::Ready(reset) => reset.map_or_else(|error| error, h2::Error::from),
            Poll::Pending => Reason::STREAM_CLOSED.into(),
        })
    })
    .await
}

pub(super) fn release(from: &mut RecvStream, length: usize) {
    // Fails only if more is given back than came.
    let _ = from.flow_control().release_capacity(length);
}
