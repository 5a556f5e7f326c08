//! HTTP/2, request by request (RFC 9113): the mechanics, which know of no policy.
//!
//! [`serve`] reads the connection of a client and hands out its streams; [`Request::check`] reads
//! what a stream begins with, strictly, so that no two readers can understand it in two ways. An
//! exchange carries one request and its answer: [`exchange`] to a target that speaks HTTP/2, on one
//! of many streams of its connection, and [`translate`] to one that speaks HTTP/1.1. [`Upgrade`] is
//! the other way round: a request of HTTP/1.1 on a stream. A body waits where it comes from until
//! there is room where it goes, so a stream that stalls holds up no other, and nothing is kept but
//! what the windows allow.
//!
//! Of the libraries for HTTP/2 the lower one is used: resets have codes that matter (RFC 9113
//! section 8.7), and answers may come before the request has ended. It refuses by itself what breaks
//! the rules of frames, of header compression and of flow control, names in capitals, fields of a
//! connection (section 8.2.2), pseudo-fields out of place, and bodies that are not as long as said.

mod answer;
mod exchange;
mod grpc;
mod messages;
mod pump;
mod request;
mod serve;
#[cfg(test)]
mod tests;
mod translate;
mod upgrade;

pub use answer::{Client, OwnAnswer};
pub(crate) use exchange::why;
pub use exchange::{ExchangeError, exchange};
pub use request::Request;
pub use serve::{End, Incoming, serve};
pub use translate::translate;
pub use upgrade::{Upgrade, UpgradeError};
