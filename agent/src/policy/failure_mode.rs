//! What a policy promises for the time when it cannot be carried out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of a connection when there is no tunnel to be had: the proxy cannot be reached, or
/// the agent itself is gone.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
#[schemars(!try_from)]
pub enum FailureMode {
    /// It is refused.
    #[default]
    Closed,
    /// It goes to its original destination, past the proxy.
    Open,
}

impl TryFrom<String> for FailureMode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err("expected `closed` or `open`"),
        }
    }
}
