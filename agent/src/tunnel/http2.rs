//! Tunnels as streams of HTTP/2 connections (RFC 9113 section 8.5).
//!
//! [`Connection`] is one connection to a proxy, on any transport; [`Connection::open`] asks for a
//! tunnel, and a [`TunnelStream`] is one. [`Pool`] keeps as few connections as the tunnels need,
//! and opens streams on them. Nothing in here opens a socket: a [`Dial`] brings the transports.
//!
//! # Flow control
//! A workload that does not read must not keep others waiting, and what comes for it must not fill
//! the memory. The window of its stream bounds what may be under way or lie here for it
//! ([`Config::stream_window`]); it is opened again only as the workload reads. The window of the
//! connection is as large as those of all its streams together ([`Config::max_streams`]), so it
//! never closes before each of them has closed. So a proxy can make a connection hold the window
//! of each stream whose workload does not read, and half as much again by sending it in small
//! frames; whatever else it sends is answered before more is read.
//!
//! The other direction is the proxy's to keep open. Where its window for a connection is no larger
//! than that for a stream (nghttpx: 64 KiB each, unless told otherwise), one target that does not
//! read holds up what all streams of the connection send; [`Config::max_streams`] bounds how many
//! those are.

mod ahead;
mod connection;
mod driver;
mod error;
mod pool;
mod request;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use connection::{Connection, OpenStream, Opened, Sent, Status};
pub use error::{Ended, HandshakeError, NotTaken, OpenError, StreamError};
pub use pool::{Dial, NoConnection, Pool, PoolConfig, PoolError, PoolOpened, Stats};
pub use request::{Method, RequestError, TunnelRequest};
pub use stream::TunnelStream;

/// How one connection to a proxy is spoken on.
#[derive(Clone, Debug)]
pub struct Config {
    /// How much the proxy may send on one stream before the workload reads, in bytes. Default:
    /// 256 KiB, which carries 100 Mbit/s at a round trip of 20 ms.
    pub stream_window: u32,
    /// Streams at a time, also if the proxy allows more. Default: 1024.
    pub max_streams: u32,
    /// The longest header list that is taken, in the count of RFC 9113 section 6.5.2; it bounds
    /// CONTINUATION frames as well. Default: 16 KiB.
    pub max_header_list: u32,
    /// How much of one workload's data waits here to be sent, in bytes. Default: 128 KiB.
    pub send_buffer: usize,
    /// Silence of the proxy, with streams open, after which it is asked for a sign of life (PING,
    /// RFC 9113 section 6.7). Default: 10 s.
    pub ping_after: Duration,
    /// The same where a request waits for its answer, which has to be sent elsewhere while there
    /// is time. Default: 2 s.
    pub ping_request_after: Duration,
    /// Silence after that question by which the connection counts as dead. Default: 5 s.
    pub ping_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stream_window: 256 * 1024,
            max_streams: 1024,
            max_header_list: 16 * 1024,
            send_buffer: 128 * 1024,
            ping_after: Duration::from_secs(10),
            ping_request_after: Duration::from_secs(2),
            ping_timeout: Duration::from_secs(5),
        }
    }
}
