//! HTTP/1.1, request by request (RFC 9112): the mechanics, which know of no policy.
//!
//! The head of a message is read whole, checked, and written anew, so that no two readers can
//! understand it in two ways; what is not for the neighbour stays as it was sent, the case and the
//! order of field names included. Bodies pass through as they come. A message that breaks the rules
//! of framing goes no further.

mod body;
mod exchange;
mod forward;
mod from_proxy;
mod head;
mod input;
mod write;

pub(super) use body::Piece;
pub(super) use exchange::{read_answer, send};
pub(super) use from_proxy::{PSEUDONYM, host, is_for_proxies};
pub(super) use head::{Answer, Fields};
pub(super) use write::{BETWEEN_NEIGHBOURS, Manner, answer_head};

pub use body::{Body, BodyError};
pub use exchange::{Answered, Client, ExchangeError, exchange};
pub use forward::Challenge;
pub use head::{Framing, Request};
pub use input::{Input, Patience, next_request};
pub use write::own_answer;

#[cfg(test)]
mod tests;
