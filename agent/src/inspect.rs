//! What a captured connection is, from its first bytes.

pub mod client_hello;
#[cfg(test)]
mod sample;

/// The most that is read before a connection must be decided, in bytes.
pub const MAX_BYTES: usize = 16 * 1024;
