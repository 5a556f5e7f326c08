//! Ending a test with a reason.

use std::fmt::Display;

/// Takes the value out of a result, or panics with what was being done and why it failed.
pub trait Must<T> {
    /// Panics at the caller's line with `what` and the error's whole chain.
    fn must(self, what: impl Display) -> T;
}

impl<T, E: Into<anyhow::Error>> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self, what: impl Display) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {:#}", error.into()),
        }
    }
}
